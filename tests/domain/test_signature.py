"""Signatures from strangers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from easyjobs.domain.arguments import Arguments
from easyjobs.domain.cloning import describe
from easyjobs.domain.signature import ANYTHING, MAX_SIGNATURE, Signature, compile_schema, decode, encode
from tests.domain import zoo


def wire(schema: Any = None, *, names: Any = ("a",), kind: str = "positional_or_keyword", defs: Any = None, **changes: Any) -> bytes:
    """A signature as JSON, with one schema for every parameter."""
    arguments: dict[str, Any] = {
        "type": "object",
        "properties": {n: {} if schema is None else schema for n in names},
        "additionalProperties": False,
    }
    if defs is not None:
        arguments["$defs"] = defs
    parameters = [{"name": n, "kind": kind, "required": False} for n in names]
    return json.dumps({"parameters": parameters, "arguments": arguments, **changes}).encode()


def test_a_plain_signature_is_read() -> None:
    assert decode(wire({"type": "integer"})).arguments["properties"] == {"a": {"type": "integer"}}
    assert decode(encode(ANYTHING)) == ANYTHING


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "cannot be read"),
        (b"[]", "not as expected"),
        (b"\xff", "cannot be read"),
        (b"[" * 20_000, "nested too deeply"),
        (b"{}" + b" " * MAX_SIGNATURE, r"has 32,770 bytes, the limit is 32,768"),
        (wire(other=1), "unknown field"),
        (wire(names=["a b"]), "parameter name 'a b' is not an ASCII identifier"),
        (wire(names=["1a"]), "not an ASCII identifier"),
        (wire(names=["größe"]), "not an ASCII identifier"),
        (wire(names=["x" * 65]), "not an ASCII identifier"),
        (wire(names=["a\n"]), "not an ASCII identifier"),
        (wire(names=["import"]), "not an ASCII identifier"),
        (wire(names=[""]), "not an ASCII identifier"),
        (wire(names=["a", "a"]), "'a' is used twice"),
        (wire(names=[f"a{i}" for i in range(65)]), "has 65 parameters, the limit is 64"),
        (wire(kind="odd"), "Invalid enum value"),
        (wire(names=["a", "b"], kind="var_keyword"), "order that Python allows"),
        (wire(arguments={"type": "object", "properties": {}, "additionalProperties": False}), "one property per parameter"),
        (wire(arguments={"type": "object", "properties": {"a": {}}}), "'additionalProperties' must be false"),
        (
            wire(arguments={"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}),
            "'required' .* differs",
        ),
        (
            wire(arguments={"type": "object", "properties": {"a": {}}, "not": {}, "additionalProperties": False}),
            "does not belong at its top: 'not'",
        ),
        (wire(summary="x" * 201), "summary or the docstring is too long"),
        (wire({"$ref": "https://example.com/x"}), r"'\$ref' must be '#/\$defs/<name>'"),
        (wire({"$ref": "file:///etc/passwd"}), r"'\$ref' must be"),
        (wire({"$ref": "#"}), r"'\$ref' must be"),
        (wire({"$ref": "#/properties/a"}), r"'\$ref' must be"),
        (wire({"$ref": 1}), r"'\$ref' must be"),
        (wire({"$ref": "#/$defs/x"}), r"points to 'x', which is not in"),
        (wire({"items": [{"$ref": "#/$defs/x"}]}), "a schema must be an object, not list"),
        (wire({"$id": "http://x"}), r"'\$id' is not allowed"),
        (wire({"$schema": "http://json-schema.org/draft-04/schema#"}), r"'\$schema' is not allowed"),
        (wire({"$dynamicRef": "#x"}), r"'\$dynamicRef' is not allowed"),
        (wire({"items": {"$defs": {}}}), "at the top of a schema only"),
        (wire({"$ref": "#/$defs/a"}, defs={"a": {"$ref": "#/$defs/a"}}), "refers to itself"),
        (
            wire({"$ref": "#/$defs/a"}, defs={"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}),
            "refers to itself",
        ),
        (wire({"type": "strin"}), "does not compile"),
        (wire({"minimum": "x"}), "does not compile"),
        (wire({"properties": []}), "'properties' in a schema is not an object"),
        (wire({"anyOf": {}}), "'anyOf' in a schema is not a list"),
        (wire({"anyOf": [1]}), "a schema must be an object, not int"),
        (wire({"pattern": "^(?=a)b"}), "no regular expression of linear time"),
        (wire({"pattern": "(a)\\1"}), "no regular expression of linear time"),
        (wire({"pattern": "("}), "no regular"),
        (wire({"pattern": "(a{1000}){1000}"}), "or too large"),
        (wire({"pattern": "x" * 1001}), "a pattern must be text of up to"),
        (wire({"anyOf": [{"pattern": "a"}] * 33}), "too many patterns"),
        (wire({"patternProperties": {"(": {}}}), "no regular"),
        (wire({"pattern": 5}), "a pattern must be text"),
        (wire({"pattern": ["a"]}), "a pattern must be text"),
        (wire({"patternProperties": 5}), "'patternProperties' in a schema is not an object"),
        (wire({"anyOf": [{"pattern": r"^\w{1,90}$"}] * 5}), "too many patterns"),
        (wire(returns={"$ref": "#/$defs/x"}), "points to 'x'"),
    ],
)
def test_a_harmful_or_broken_signature_is_refused_with_a_sentence(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(raw)


def test_alternatives_that_multiply_are_refused() -> None:
    defs: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(30)}
    defs["d30"] = {"type": "integer"}
    with pytest.raises(ValueError, match="alternatives would be tried for one value"):
        decode(wire({"$ref": "#/$defs/d0"}, defs=defs))
    chain: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(700)}
    chain["d700"] = {}
    with contextlib.suppress(ValueError):  # refused or not, it must not hurt
        Arguments(decode(wire({"$ref": "#/$defs/d0"}, defs=chain)), "t").from_named({"a": 1})


def test_recursion_through_properties_and_items_is_allowed() -> None:
    signature = decode(encode(describe(zoo.recursive)))
    Arguments(signature, "t").from_named({"value": {"value": 1, "children": [{"value": 2, "children": []}]}})


def test_data_inside_a_schema_is_not_taken_for_a_schema() -> None:
    decode(wire({"default": {"$ref": "http://x", "properties": 5}, "enum": [{"$id": "x"}]}))
    decode(wire({"properties": {"$ref": {"type": "integer"}, "pattern": {}, "$id": {}}}))


def test_a_pattern_means_what_it_means_to_pydantic() -> None:
    validator = compile_schema({"properties": {"a": {"pattern": r"^\w+$", "format": "email"}, "b": {"pattern": r"^\w+\\w$"}}})
    assert compile_schema({"pattern": r"^\w+$"}).is_valid("José")
    assert compile_schema({"pattern": "b"}).is_valid("abc")
    assert validator.is_valid({"b": r"é\w"})
    assert not validator.is_valid({"b": "é"})
    assert not validator.is_valid({"a": "jose"})
    assert not validator.is_valid({"a": "jose@example.com"})


def test_everyday_patterns_compile() -> None:
    for pattern in (
        r"^\w{1,100}$",
        r"^[\w.+-]+@[\w-]+\.[\w.]+$",
        r"^\p{L}[\p{L}\d ]{0,63}$",
        r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    ):
        compile_schema({"pattern": pattern})


@pytest.mark.parametrize(
    ("format_", "good", "bad"),
    [
        ("date-time", ["2020-01-01T00:00:00Z", "2020-01-01 00:00:00", "2020-01-01T00:00:00.5+01:00"], ["x", "2020-13-01T00:00:00Z"]),
        ("date", ["2020-02-29"], ["2021-02-29", "x"]),
        ("time", ["10:11", "10:11:12.5Z"], ["25:00"]),
        ("duration", ["P1D", "PT1H", "1 days, 00:00:00", "10:00"], ["x"]),
        ("uuid", ["12345678-1234-5678-1234-567812345678", "12345678123456781234567812345678"], ["x"]),
        ("uri", ["http://example.com/ä"], ["x"]),
        ("ipv4", ["127.0.0.1"], ["256.0.0.1"]),
        ("email", ["a@example.com"], ["x"]),
        ("unheard-of", ["x"], []),
    ],
)
def test_formats_are_asserted_as_pydantic_would(format_: str, good: list[str], bad: list[str]) -> None:
    validator = compile_schema({"format": format_})
    assert all(validator.is_valid(text) for text in good)
    assert not any(validator.is_valid(text) for text in bad)
    assert validator.is_valid(5)


schemas = st.recursive(
    st.booleans() | st.none() | st.integers(-2, 5) | st.sampled_from(["", "a", "#/$defs/a", "#/$defs/b", "string", "object", "^a", "("]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$ref", "anyOf", "allOf", "not", "if", "then", "items", "properties", "type", "enum", "pattern", "a", "b", "required", "minimum", "format",
                 "additionalProperties", "patternProperties", "prefixItems", "$defs", "dependentSchemas", "propertyNames", "contains", "const", "multipleOf"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(schemas, schemas, schemas, schemas)
def test_a_fuzzed_schema_is_refused_by_a_value_error_or_works(a: Any, b: Any, c: Any, value: Any) -> None:
    try:
        signature = decode(wire(a, defs={"a": b, "b": c}))
    except ValueError as error:
        assert str(error)  # noqa: PT017 – most are refused
        return
    assert isinstance(signature, Signature)
    validator = compile_schema(signature.arguments)
    assert isinstance(validator.is_valid({"a": value}), bool)
    list(validator.iter_errors({"a": value}))


@hypothesis.settings(deadline=None)
@hypothesis.given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_fuzzed_bytes_are_refused_by_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="signature"):
        decode(raw)
