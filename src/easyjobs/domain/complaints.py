"""What a person reads when arguments do not fit: the validator's findings in FastAPI's 422 format.

Types and messages are pydantic's where it has one for the case. Values are shown in full up to 1 KiB, then cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, TypeAlias

import jsonschema_rs

from easyjobs.domain import payload
from easyjobs.domain.signature import FORMATS, PATTERN, adapter

Loc: TypeAlias = tuple[str | int, ...]

MAX_ERRORS: Final = 100
MAX_LOOKED_AT: Final = 2000  # items of arrays and objects, in all
MAX_INPUT: Final = 1024  # bytes of JSON

_TYPES: Final[dict[str, tuple[str, str]]] = {
    "integer": ("int_type", "a valid integer"),
    "number": ("float_type", "a valid number"),
    "string": ("string_type", "a valid string"),
    "boolean": ("bool_type", "a valid boolean"),
    "array": ("list_type", "a valid list"),
    "object": ("dict_type", "a valid dictionary"),
    "null": ("none_required", "None"),
}


_OF_A_CUT: Final = frozenset({"missing", "too_short"})


def complain(validator: jsonschema_rs.Draft202012Validator, value: Any, loc: Loc) -> list[dict[str, Any]]:
    """List up to `MAX_ERRORS` reasons why `value` does not fit, never none. `loc` is put before each path.

    The validator makes all errors before it gives the first, at some 50 µs each, while the manager's loop stands still: ten seconds for
    150,000 bad items. So of a large value only the beginning is complained about.
    """
    part, is_cut = _beginning(value)
    found: list[dict[str, Any]] = []
    for error in islice(validator.iter_errors(part), MAX_ERRORS):
        found += _entries(error, loc)
    if is_cut:  # what was left out is not missing
        found = [entry for entry in found if entry["type"] not in _OF_A_CUT]
    if not found:
        where = f", somewhere after its first {MAX_LOOKED_AT:,} items" if is_cut else ""
        found = [{"type": "value_error", "loc": loc, "msg": f"Value error, does not fit the schema{where}", "input": shorten(value)}]
    return found[:MAX_ERRORS]


def _beginning(value: Any) -> tuple[Any, bool]:
    """The value, or a copy that ends after `MAX_LOOKED_AT` items; and whether it is cut."""
    left = MAX_LOOKED_AT

    def copy(node: Any) -> Any:
        nonlocal left
        if type(node) is list:
            kept = []
            for item in node:
                if left <= 0:
                    break
                left -= 1
                kept.append(copy(item))
            return kept
        if type(node) is dict:
            named = {}
            for key, item in node.items():
                if left <= 0:
                    break
                left -= 1
                named[key] = copy(item)
            return named
        return node

    part = copy(value)
    return (part, True) if left <= 0 else (value, False)


def shorten(value: Any) -> Any:
    """The value itself if its JSON is short, else the start of it as text."""
    if isinstance(value, str):
        return value if len(value) <= MAX_INPUT else value[:MAX_INPUT] + "…"
    if value is None or isinstance(value, bool | float):
        return value
    try:
        text = payload.encode_plain(value)
    except payload.NotJson:
        return repr(type(value))
    return value if len(text) <= MAX_INPUT else text[:MAX_INPUT].decode(errors="ignore") + "…"


def _entries(error: jsonschema_rs.ValidationError, loc: Loc) -> list[dict[str, Any]]:
    kind: Any = error.kind
    where: Loc = (*loc, *error.instance_path)
    value = error.instance
    name = type(kind).__name__.rpartition("_")[2]
    match name:
        case "Required":
            return [_entry("missing", (*where, kind.property), "Field required", value)]
        case "AdditionalProperties" | "UnevaluatedProperties":
            known = value if isinstance(value, dict) else {}
            return [_entry("extra_forbidden", (*where, key), "Extra inputs are not permitted", known.get(key)) for key in kind.unexpected]
        case "AnyOf" | "OneOfNotValid":
            return _alternatives(error, kind.context, loc)
        case "Type":
            return [_wrong_type(kind.types, where, value)]
        case "Format":
            if kind.format.startswith(PATTERN):
                pattern = kind.format.removeprefix(PATTERN)
                return [_entry("string_pattern_mismatch", where, f"String should match pattern '{pattern}'", value, pattern=pattern)]
            return [_wrong_format(kind.format, where, value)]
        case "Enum" | "Constant":
            options = kind.options if name == "Enum" else [kind.expected_value]
            of_class = name == "Enum" and "$defs" in error.schema_path
            expected = _either([repr(option) for option in options])
            return [_entry("enum" if of_class else "literal_error", where, f"Input should be {expected}", value, expected=expected)]
    if name in _BOUNDS:
        type_, key, message = _BOUNDS[name]
        limit = kind.multiple_of if name == "MultipleOf" else kind.limit
        size = len(value) if isinstance(value, str | list | dict) else 0
        text = message.format(limit=limit, s="" if limit == 1 else "s", size=size)
        return [_entry(type_, where, text, value, **{key: limit})]
    return [_entry("value_error", where, f"Value error, {error.message[:500]}", value)]


_BOUNDS: Final[dict[str, tuple[str, str, str]]] = {
    "Minimum": ("greater_than_equal", "ge", "Input should be greater than or equal to {limit}"),
    "ExclusiveMinimum": ("greater_than", "gt", "Input should be greater than {limit}"),
    "Maximum": ("less_than_equal", "le", "Input should be less than or equal to {limit}"),
    "ExclusiveMaximum": ("less_than", "lt", "Input should be less than {limit}"),
    "MultipleOf": ("multiple_of", "multiple_of", "Input should be a multiple of {limit}"),
    "MinLength": ("string_too_short", "min_length", "String should have at least {limit} character{s}"),
    "MaxLength": ("string_too_long", "max_length", "String should have at most {limit} character{s}"),
    "MinItems": ("too_short", "min_length", "List should have at least {limit} item{s} after validation, not {size}"),
    "MaxItems": ("too_long", "max_length", "List should have at most {limit} item{s} after validation, not {size}"),
    "MinProperties": ("too_short", "min_length", "Dictionary should have at least {limit} item{s} after validation, not {size}"),
    "MaxProperties": ("too_long", "max_length", "Dictionary should have at most {limit} item{s} after validation, not {size}"),
}


def _entry(type: str, loc: Loc, message: str, value: Any, **context: Any) -> dict[str, Any]:
    entry = {"type": type, "loc": loc, "msg": message, "input": shorten(value)}
    return {**entry, "ctx": context} if context else entry


def _either(texts: Iterable[str]) -> str:
    *most, last = list(texts) or ["nothing"]
    return f"{', '.join(most)} or {last}" if most else last


def _wrong_type(types: list[str], where: Loc, value: Any) -> dict[str, Any]:
    named = [_TYPES.get(t, ("value_error", t)) for t in sorted(types, key=lambda t: (t == "null", t))]
    if types == ["integer"] and isinstance(value, float):
        return _entry("int_from_float", where, "Input should be a valid integer, got a number with a fractional part", value)
    return _entry(named[0][0], where, f"Input should be {_either(text for _, text in named)}", value)


def _wrong_format(format: str, where: Loc, value: Any) -> dict[str, Any]:
    if format in FORMATS:
        try:
            adapter(FORMATS[format]).validate_python(value)
        except ValueError as error:
            [first, *_] = error.errors(include_url=False, include_input=False)  # type: ignore[attr-defined]
            context = {key: str(item) for key, item in first.get("ctx", {}).items()}
            return _entry(first["type"], where, first["msg"], value, **context)
    return _entry("value_error", where, f"Value error, not a valid {format}", value)


def _alternatives(
    error: jsonschema_rs.ValidationError, branches: list[list[jsonschema_rs.ValidationError]], loc: Loc
) -> list[dict[str, Any]]:
    """Explain a union by the branch that was most likely meant; by all of them if the value is of none of their types."""
    here = list(error.instance_path)
    meant = [branch for branch in branches if not any(_rules_out(e, here) for e in branch)]
    if not meant:
        types: list[str] = []
        options: list[Any] = []
        for branch in branches:
            for e in branch:
                kind: Any = e.kind
                if type(kind).__name__.endswith("_Type") or type(kind).__name__ == "Type":
                    types += (t for t in kind.types if t not in types)
        types.sort(key=lambda t: t == "null")
        others = [branch for branch in branches if not any(hasattr(e.kind, "types") for e in branch)]
        if others:  # a discriminator or literals, none of which is there
            return [entry for branch in others[:5] for e in branch for entry in _entries(e, loc)]
        if types and not options:
            names = [_TYPES.get(t, ("value_error", t)) for t in types]
            plain = [t for t in types if t != "null"]
            if plain == ["integer"] and isinstance(error.instance, float):
                return [_wrong_type(["integer"], (*loc, *here), error.instance)]
            return [_entry(names[0][0], (*loc, *here), f"Input should be {_either(text for _, text in names)}", error.instance)]
        meant = branches
    best = min(meant, key=len)
    return [entry for e in best for entry in _entries(e, loc)]


def _rules_out(error: jsonschema_rs.ValidationError, here: list[Any]) -> bool:
    """Whether an error says that the branch was not meant: another type, or another tag of a tagged union."""
    name = type(error.kind).__name__.rpartition("_")[2]
    path = list(error.instance_path)
    return (name == "Type" and path == here) or (name in ("Constant", "Enum") and len(path) <= len(here) + 1)
