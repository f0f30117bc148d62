"""What a finished job hands on."""

from __future__ import annotations

from typing import Any

import pytest

from easyjobs.domain.flow import arguments_after, arguments_on_failure
from easyjobs.domain.signature import Parameter, Signature


def a_signature(*parameters: tuple[str, str, bool]) -> Signature:
    return Signature(
        parameters=tuple(Parameter(name=name, kind=kind, required=required) for name, kind, required in parameters),  # type: ignore[arg-type]
        arguments={"type": "object"},
        returns=None,
        summary="",
        doc="",
    )


BOTH = "positional_or_keyword"


@pytest.mark.parametrize(
    ("parameters", "result", "expected"),
    [
        ([], {"a": 1}, ([], {})),
        ([("a", BOTH, True)], 5, ([5], {})),
        ([("a", BOTH, True)], None, ([None], {})),
        ([("a", BOTH, True), ("b", BOTH, False)], {"a": 1}, ([], {"a": 1})),
        ([("a", BOTH, True), ("b", BOTH, True)], {"a": 1, "b": 2}, ([], {"a": 1, "b": 2})),
        ([("a", BOTH, True)], {"other": 1}, ([{"other": 1}], {})),  # the keys do not fit: it is one value
        ([("a", BOTH, True), ("b", BOTH, True)], {"a": 1}, ([{"a": 1}], {})),
        ([("a", BOTH, True), ("more", "var_keyword", False)], {"a": 1, "x": 2}, ([], {"a": 1, "x": 2})),
        ([("results", "positional_only", True)], {"results": 1}, ([{"results": 1}], {})),
        ([("a", BOTH, True)], [1, 2], ([[1, 2]], {})),
    ],
)
def test_a_result_becomes_arguments_by_name_where_they_fit_and_one_value_else(
    parameters: list[tuple[str, str, bool]], result: Any, expected: tuple[list[Any], dict[str, Any]]
) -> None:
    assert arguments_after(a_signature(*parameters), result) == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([], ([], {})),
        ([("reason", BOTH, True)], (["why"], {})),
        ([("anything", BOTH, False)], (["why"], {})),
        ([("reason", "keyword_only", True)], ([], {"reason": "why"})),
        ([("args", "var_positional", False)], (["why"], {})),
    ],
)
def test_the_reason_is_the_first_argument_whatever_it_is_called(
    parameters: list[tuple[str, str, bool]], expected: tuple[list[Any], dict[str, Any]]
) -> None:
    assert arguments_on_failure(a_signature(*parameters), "why", {}) == expected
