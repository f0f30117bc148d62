"""What a finished job hands to the jobs that follow it.

`run_after`: the result, as keyword arguments if it is an object whose keys fit the parameters, else as the one positional argument;
nothing where the task has no parameters. `on_failure`: the reason, a string, as the first argument whatever it is called; a parameter
that is annotated `JobFailure` gets that instead. `run_before`: those of the waiting job's arguments that its parameters name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from easyjobs.domain.payload import canonical, decode
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


def arguments_on_failure(signature: Signature, reason: str, failure: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The (args, kwargs) of an `on_failure` job: `failure` is a `JobFailure` as JSON, for a parameter that is annotated so."""
    parameters = signature.parameters
    if not parameters:
        return [], {}
    first = parameters[0]
    kind = signature.arguments.get("properties", {}).get(first.name, {}).get("$ref", "")
    value: Any = failure if kind.rpartition("/")[2] == "JobFailure" else reason
    if first.kind in _POSITIONAL:
        return [value], {}
    return [], {first.name: value}


def arguments_before(signature: Signature, named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The (args, kwargs) of a `run_before` job, given the waiting job's arguments by name."""
    only_positional = [p.name for p in signature.parameters if p.kind == "positional_only"]
    args = [named[name] for name in only_positional if name in named]
    return args, {p.name: named[p.name] for p in signature.parameters if p.kind in _NAMED and p.name in named}


def by_name(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by parameter name: those of `*args` as a list under its own name, if there are any."""
    positional = [p.name for p in signature.parameters if p.kind in ("positional_only", "positional_or_keyword")]
    named = dict(zip(positional, args, strict=False)) | dict(kwargs)
    rest = [p.name for p in signature.parameters if p.kind == "var_positional"]
    if rest and len(args) > len(positional):
        named[rest[0]] = list(args[len(positional) :])
    return named


def fingerprint(queue: str, name: str, args: bytes) -> str:
    """What makes two calls of a job the same call: the task and the arguments (JSON `[args, kwargs]`), in 32 hexadecimal digits."""
    return hashlib.sha256(f"{queue}/{name}".encode() + canonical(decode(args, 64))).hexdigest()[:32]


def _fits(parameters: tuple[Parameter, ...], result: dict[str, Any]) -> bool:
    """Whether these keys are all taken as keywords, and none that is required is missing."""
    open_ended = any(parameter.kind == "var_keyword" for parameter in parameters)
    names = {parameter.name for parameter in parameters if parameter.kind in _NAMED}
    needed = {parameter.name for parameter in parameters if parameter.required}
    return needed <= result.keys() and (open_ended or result.keys() <= names)
