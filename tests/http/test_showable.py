"""A schema that is small and quickly validated is no endless work for a page that shows it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

from easyjobs.domain.cloning import describe
from easyjobs.domain.signature import check_schema
from easyjobs.http.showable import TOO_LARGE, longest_example, showable


def of(field: Any, definitions: Any = None) -> dict[str, Any]:
    """The arguments of a task whose parameter `a` is such a field."""
    schema = {"type": "object", "properties": {"a": field, "n": {"type": "integer"}}, "additionalProperties": False}
    schema |= {"$defs": definitions} if definitions else {}
    check_schema(schema)
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Definitions that refer twice to the next one."""
    names = [f"M{n}" for n in range(levels + 1)]
    return {
        one: {"type": "object", "properties": {side: {"$ref": f"#/$defs/{other}"} for side in "ab"}} for one, other in pairwise(names)
    } | {names[-1]: {"type": "string"}}


def meeting(many: int) -> dict[str, Any]:
    """Definitions each of which refers to all: as many ways as there are orders of them."""
    names = [f"M{n}" for n in range(many)]
    return {name: {"type": "object", "properties": {other: {"$ref": f"#/$defs/{other}"} for other in names}} for name in names}


def nested(levels: int, least: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "minItems": least}
    return schema


REF = {"$ref": "#/$defs/M0"}


class Node(BaseModel):
    """It has others of its kind."""

    name: str
    left: Node | None = None
    others: list[Node] = []


class Order(BaseModel):
    """An ordinary one."""

    first: Node
    second: dict[str, Node]
    codes: list[int] = []


def order(order: Order, node: Node, words: list[str]) -> None: ...


def test_an_ordinary_signature_is_shown_as_it_is() -> None:
    arguments = describe(order).arguments
    assert showable(arguments) == arguments
    for part in ("properties", "$defs"):
        assert json.dumps(showable(arguments)[part]) == json.dumps(arguments[part]), "in its own order, too"
    some = of({"type": "array", "minItems": 3, "items": {"type": "string", "minLength": 8, "pattern": r"^[a-z]{2,40}(-[a-z0-9]+)*$"}})
    assert showable(some) == some


@pytest.mark.parametrize("schema", [of(REF, doubling(12)), of(REF, doubling(60)), of(REF, meeting(10)), of(REF, doubling(300))])
def test_what_would_be_written_out_without_end_is_named_only(schema: dict[str, Any]) -> None:
    shown = showable(schema)
    assert shown["properties"] == {"a": TOO_LARGE, "n": {"type": "integer"}}
    assert "$defs" not in shown
    assert shown["additionalProperties"] is False


@pytest.mark.parametrize(
    "field",
    [
        {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
        {"type": "array", "minItems": 1e9},
        {"type": "array", "minContains": 10**9, "contains": {"type": "string"}},
        {"type": "object", "minProperties": 10**9, "additionalProperties": {"type": "string"}},
        {"type": "string", "minLength": 10**9},
        {"type": "string", "pattern": "((((a*)*)*)*)*"},
        nested(6, 50),
    ],
)
def test_an_example_of_any_length_is_not_asked_for(field: dict[str, Any]) -> None:
    shown = json.dumps(showable(of(field)))
    assert '"type": ' in shown
    for keyword in ("minItems", "minContains", "minProperties", "minLength", "pattern"):
        assert f'"{keyword}"' not in shown


def test_a_definition_with_much_text_counts_as_often_as_it_is_used() -> None:
    text = {"M0": {"type": "string", "description": "x" * 20_000}}
    assert showable(of(REF, text))["properties"]["a"] == REF
    often = {"type": "object", "properties": {f"p{n}": REF for n in range(100)}}
    assert showable(of(often, text))["properties"]["a"] == TOO_LARGE


def test_what_is_cut_takes_no_other_parameter_with_it() -> None:
    definitions = doubling(30) | {"Good": {"type": "object", "properties": {"x": {"type": "string"}}}}
    schema = of(REF, definitions)
    schema["properties"]["good"] = {"$ref": "#/$defs/Good"}
    schema["required"] = ["good"]
    shown = showable(schema)
    assert shown["properties"]["a"] == TOO_LARGE
    assert shown["properties"]["good"] == {"$ref": "#/$defs/Good"}
    assert shown["$defs"] == {"Good": definitions["Good"]}
    assert shown["required"] == ["good"]


def test_a_discriminator_names_definitions_and_nothing_else() -> None:
    """Swagger UI searches by what the mapping has, as a pattern."""
    mapping = {"good": "#/$defs/M0", "bad": "(a+)+$", "worse": 7, "away": "https://evil.test/x"}
    field = {"oneOf": [REF], "discriminator": {"propertyName": "kind", "mapping": mapping}, "$$ref": "a" * 50}
    shown = showable(of(field, {"M0": {"type": "string"}}))["properties"]["a"]
    assert shown == {"oneOf": [REF], "discriminator": {"propertyName": "kind", "mapping": {"good": "#/$defs/M0"}}}
    for wrong in ("x", {"mapping": mapping}, {"propertyName": ["x"]}, None):
        assert showable(of({**field, "discriminator": wrong}, {"M0": {"type": "string"}}))["properties"]["a"] == {"oneOf": [REF]}


@pytest.mark.parametrize(
    ("pattern", "least"),
    [
        ("", 0), ("abc", 3), ("a*", 100), ("a+?b", 101), ("a?", 1), ("(a{3}){4}", 12), ("((a*)*)*", 10**6), ("[a*)(]{5}", 5), (r"\({7}", 7),
        ("(?:ab|c){2,}", 204), ("[]a]{9}", 9), (r"[^\]]{9}", 9), ("(", 0), (")", 1), ("[", 1), ("\\", 1), ("a{2}{3}", 6), (r"\p{L}{50}", 50),
    ],
)  # fmt: skip
def test_the_example_of_a_pattern_is_not_longer_than_was_counted(pattern: str, least: int) -> None:
    assert least <= longest_example(pattern) <= 3 * least + 10
