"""What a finished job hands to the jobs that follow it.

`run_after`: the result, as keyword arguments if it is an object whose keys fit the parameters, else as the one positional argument;
nothing where the task has no parameters. `on_failure`: the reason, a string, as the first argument whatever it is called.
"""

from __future__ import annotations

from typing import Any

from easyjobs.domain.signature import Parameter, Signature

_NAMED = ("positional_or_keyword", "keyword_only")
_POSITIONAL = ("positional_only", "positional_or_keyword", "var_positional")


def arguments_after(signature: Signature, result: Any) -> tuple[list[Any], dict[str, Any]]:
    """The (args, kwargs) of a `run_after` job, given its parent's result."""
    parameters = signature.parameters
    if not parameters:
        return [], {}
    if isinstance(result, dict) and _fits(parameters, result):
        return [], result
    return [result], {}


def arguments_on_failure(signature: Signature, reason: str) -> tuple[list[Any], dict[str, Any]]:
    """The (args, kwargs) of an `on_failure` job."""
    parameters = signature.parameters
    if not parameters:
        return [], {}
    first = parameters[0]
    if first.kind in _POSITIONAL:
        return [reason], {}
    return [], {first.name: reason}


def _fits(parameters: tuple[Parameter, ...], result: dict[str, Any]) -> bool:
    """Whether these keys are all taken as keywords, and none that is required is missing."""
    open_ended = any(parameter.kind == "var_keyword" for parameter in parameters)
    names = {parameter.name for parameter in parameters if parameter.kind in _NAMED}
    needed = {parameter.name for parameter in parameters if parameter.required}
    return needed <= result.keys() and (open_ended or result.keys() <= names)
