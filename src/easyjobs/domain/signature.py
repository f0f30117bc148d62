r"""What a task takes and gives, as plain data that is safe to take from a stranger.

A worker describes its functions (`cloning.describe`), the manager reads the description (`decode`), validates calls against it
(`arguments.Arguments`) and shows it in its OpenAPI, without the worker's code.

Parameter names are ASCII identifiers of up to 64 characters. Python also allows others (`größe`), but normalises them (NFKC), and
JSON keys, query strings and generated clients do not: two spellings of one name would be two arguments. `describe` refuses them too.

Patterns are matched by pydantic itself, so that `\w` means the same on both sides (JSON Schema's own dialect, ECMA-262, has ASCII
letters only). Its engine is Rust's `regex` crate: linear time, no lookaround, no backreferences; the compiled size is limited.
"""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import keyword
import re
import uuid
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final, Literal, get_args

import jsonschema_rs
import msgspec
import pydantic
from pydantic_core import SchemaError, SchemaValidator, core_schema

from easyjobs.domain import payload

MAX_PARAMETERS: Final = 64
MAX_SIGNATURE: Final = 32 * 1024  # bytes of `encode`
MAX_SIGNATURE_DEPTH: Final = 32
MAX_SUMMARY: Final = 200
MAX_DOC: Final = 8 * 1024  # characters
MAX_PATTERN: Final = 1000  # characters
MAX_PATTERNS: Final = 32
MAX_COMPILED_PATTERN: Final = 8 * 1024 * 1024  # bytes; `^\w{1,100}$` needs about 5 MiB, since \w means all of Unicode
SMALL_PATTERN: Final = 1024 * 1024  # a larger one counts for `LARGE_WEIGHT`, so that a signature compiles to some 40 MiB at most
LARGE_WEIGHT: Final = 8
MAX_EXPANSION: Final = 2000  # subschemas that may look at one value, see `_check_expansion`

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_DEFINITION: Final = re.compile(r"#/\$defs/([A-Za-z0-9._-]{1,200})")

Kind = Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)  # in the order in which Python allows them


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter. `required` is false for `*args` and `**kwargs`."""

    name: str
    kind: Kind
    required: bool


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters in order, and two JSON Schemas (2020-12).

    `arguments` is an object schema of all arguments by name: `*args` is an array property under its own name, `**kwargs` are
    `additionalProperties`, which are false otherwise. `returns` is None where the function does not say. Each has its own `$defs`.
    """

    parameters: tuple[Parameter, ...]
    arguments: dict[str, Any]
    returns: dict[str, Any] | None = None
    summary: str = ""
    doc: str = ""


ANYTHING: Final = Signature(
    parameters=(Parameter("args", "var_positional", False), Parameter("kwargs", "var_keyword", False)),
    arguments={"type": "object", "properties": {"args": {"type": "array"}}, "additionalProperties": True},
)
"""The signature of `def f(*args, **kwargs)`."""


def encode(signature: Signature) -> bytes:
    """Write a signature as JSON; the same signature always gives the same bytes. Fields keep their order, which /docs shows."""
    return payload.encode(msgspec.to_builtins(signature))


def decode(raw: bytes) -> Signature:
    """Read a signature from a stranger. Raises: ValueError, with a sentence that says what is wrong with it."""
    if len(raw) > MAX_SIGNATURE:
        raise ValueError(f"the signature has {len(raw):,} bytes, the limit is {MAX_SIGNATURE:,}: shorten docstrings, or take a plain dict")
    try:
        signature = msgspec.convert(payload.decode(raw, MAX_SIGNATURE_DEPTH), Signature)
    except msgspec.ValidationError as error:
        raise ValueError(f"the signature is not as expected: {error}") from None
    except payload.BadJson as error:
        raise ValueError(f"the signature cannot be read: {error}") from None
    check(signature)
    return signature


def check(signature: Signature) -> None:
    """Refuse what could harm the manager or cannot be meant. Raises: ValueError."""
    parameters, arguments = signature.parameters, signature.arguments
    if len(parameters) > MAX_PARAMETERS:
        raise ValueError(f"the signature has {len(parameters)} parameters, the limit is {MAX_PARAMETERS}")
    if len(signature.summary) > MAX_SUMMARY or len(signature.doc) > MAX_DOC:
        raise ValueError(f"the summary or the docstring is too long, the limits are {MAX_SUMMARY} and {MAX_DOC:,} characters")
    for parameter in parameters:
        if not NAME.fullmatch(parameter.name) or keyword.iskeyword(parameter.name):
            raise ValueError(f"the parameter name {parameter.name[:80]!r} is not an ASCII identifier of up to 64 characters")
    names = [p.name for p in parameters]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"the parameter name {twice[0]!r} is used twice")
    order = [KINDS.index(p.kind) for p in parameters]
    if order != sorted(order) or any(order.count(KINDS.index(kind)) > 1 for kind in ("var_positional", "var_keyword")):
        raise ValueError("the parameters are not in an order that Python allows")
    if any(p.required for p in parameters if p.kind in ("var_positional", "var_keyword")):
        raise ValueError("*args and **kwargs cannot be required")

    named = {p.name for p in parameters if p.kind != "var_keyword"}
    properties = arguments.get("properties", {})
    if arguments.get("type") != "object" or not isinstance(properties, dict) or properties.keys() != named:
        raise ValueError("the schema of the arguments is not an object with one property per parameter")
    required = arguments.get("required", [])
    if not isinstance(required, list) or any(not isinstance(n, str) for n in required):
        raise ValueError("'required' in the schema of the arguments is not a list of names")
    if set(required) != {p.name for p in parameters if p.required}:
        raise ValueError("'required' in the schema of the arguments differs from the required parameters")
    open_ended = any(p.kind == "var_keyword" for p in parameters)
    if (arguments.get("additionalProperties") is not False) != open_ended:
        raise ValueError("'additionalProperties' must be false without **kwargs, and a schema with them")
    unknown = arguments.keys() - {"type", "properties", "required", "additionalProperties", "$defs", "title", "description"}
    if unknown:
        raise ValueError(f"the schema of the arguments has a keyword that does not belong at its top: {min(unknown)!r}")
    check_schema(arguments)
    if signature.returns is not None:
        check_schema(signature.returns)


# --- schemas --------------------------------------------------------------------------------------------------------------------

MAPS: Final = frozenset({"properties", "$defs", "patternProperties", "dependentSchemas"})
LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
ONES: Final = frozenset(
    {"additionalProperties", "items", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
)
_IN_PLACE: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"})
_FOREIGN: Final = frozenset(
    {"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary", "$schema"}
)


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that points outside itself, can be slow, or that the validator cannot compile. Raises: ValueError."""
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, dict):
        raise ValueError("'$defs' is not an object")  # noqa: TRY004 – a bad value of the peer, not a wrong type in our program
    patterns = 0
    todo: list[tuple[Any, bool]] = [(schema, True)]
    while todo:
        node, is_root = todo.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise ValueError(f"a schema must be an object, not {type(node).__name__}")  # noqa: TRY004
        foreign = _FOREIGN & node.keys()
        if foreign:
            raise ValueError(f"the keyword {min(foreign)!r} is not allowed in a signature's schema")
        if ("$defs" in node and not is_root) or "definitions" in node:
            raise ValueError("definitions are allowed at the top of a schema only, as '$defs'")
        _target(node, definitions)
        children = _children(node)
        for text in [node[key] for key in ("pattern",) if key in node] + list(node.get("patternProperties", ())):
            if not isinstance(text, str) or len(text) > MAX_PATTERN:
                raise ValueError(f"a pattern must be text of up to {MAX_PATTERN:,} characters")
            patterns += _weight(text)
            if patterns > MAX_PATTERNS:
                raise ValueError(
                    f"there are too many patterns: {MAX_PATTERNS} small ones are allowed, a large one counts for {LARGE_WEIGHT}"
                )
        todo += ((child, False) for child in children)
    _check_expansion(schema, definitions)
    try:
        compile_schema(schema)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"the schema does not compile: {reason[:300]}") from None


def _target(node: dict[str, Any], definitions: dict[str, Any]) -> str | None:
    """The name that a `$ref` points to, None if there is none."""
    if "$ref" not in node:
        return None
    ref = node["$ref"]
    found = _DEFINITION.fullmatch(ref) if isinstance(ref, str) else None
    if not found:
        raise ValueError(f"'$ref' must be '#/$defs/<name>', not {str(ref)[:80]!r}")
    if found[1] not in definitions:
        raise ValueError(f"'$ref' points to {found[1]!r}, which is not in '$defs'")
    return found[1]


def _children(node: dict[str, Any], keywords: frozenset[str] = MAPS | LISTS | ONES) -> list[Any]:
    found: list[Any] = []
    for key in node.keys() & keywords:
        value = node[key]
        if key in MAPS:
            if not isinstance(value, dict):
                raise ValueError(f"{key!r} in a schema is not an object")
            found += value.values()
        elif key in LISTS:
            if not isinstance(value, list):
                raise ValueError(f"{key!r} in a schema is not a list")
            found += value
        else:
            found.append(value)
    return found


def _check_expansion(schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Refuse chains such as a: anyOf [b, b], b: anyOf [c, c], …, where one small value costs 2^n checks, and circles of them.

    Counts the subschemas that look at one and the same value through `$ref`, anyOf and the like. A step into a property or an item
    starts a new count, since that goes down one level of the value.
    """
    costs: dict[str, int] = {}
    open_names: set[str] = set()

    def cost(node: Any) -> int:
        if not isinstance(node, dict):
            return 1
        total = 1 + sum(cost(child) for child in _children(node, _IN_PLACE))
        name = _target(node, definitions)
        if name is not None:
            if name in open_names:
                raise ValueError(f"the definition {name!r} refers to itself without a property or an item between")
            if name not in costs:
                open_names.add(name)
                costs[name] = cost(definitions[name])
                open_names.discard(name)
            total += costs[name]
        if total > MAX_EXPANSION:
            raise ValueError(f"more than {MAX_EXPANSION:,} alternatives would be tried for one value")
        return total

    todo = [schema]
    try:
        while todo:
            node = todo.pop()
            if isinstance(node, dict):
                cost(node)
                todo += _children(node)
    except RecursionError:
        raise ValueError("the definitions refer to one another through too many levels") from None


def compile_schema(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Make a validator that fetches nothing, asserts formats and matches patterns in linear time. Raises: ValueError."""
    patterns: dict[str, Callable[[str], bool]] = {}
    return jsonschema_rs.Draft202012Validator(
        _with_own_patterns(schema, patterns),
        formats={**_checkers(), **patterns},
        validate_formats=True,
        ignore_unknown_formats=True,
        offline=True,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=MAX_COMPILED_PATTERN),
    )


# --- patterns -------------------------------------------------------------------------------------------------------------------

PATTERN: Final = "pattern:"  # what a format's name starts with that stands for a pattern
_UNICODE: Final = {"w": r"\p{L}", "W": r"\P{L}", "d": r"\p{Nd}", "D": r"\P{Nd}"}  # as large as what they stand for


def _with_own_patterns(node: Any, patterns: dict[str, Callable[[str], bool]]) -> Any:
    """Copy a schema, its patterns replaced by formats that ask pydantic; those are added to `patterns`. Raises: ValueError."""
    if not isinstance(node, dict):
        return node
    copy = dict(node)
    for key in node.keys() & (MAPS | LISTS | ONES):
        value = node[key]
        if key in MAPS and isinstance(value, dict):
            copy[key] = {name: _with_own_patterns(child, patterns) for name, child in value.items()}
        elif key in LISTS and isinstance(value, list):
            copy[key] = [_with_own_patterns(child, patterns) for child in value]
        elif key in ONES:
            copy[key] = _with_own_patterns(value, patterns)
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        name = PATTERN + pattern
        patterns[name] = _matcher(pattern)
        del copy["pattern"]
        if "format" not in copy:
            copy["format"] = name
        else:
            others = copy.get("allOf", [])
            copy["allOf"] = [*others, {"format": name}] if isinstance(others, list) else others
    return copy


@lru_cache(maxsize=256)
def _weight(pattern: str) -> int:
    """What a pattern counts for. Raises: ValueError, for one that is not allowed."""
    for weight, limit in ((1, SMALL_PATTERN), (LARGE_WEIGHT, MAX_COMPILED_PATTERN)):
        try:
            _compile_pattern(pattern, limit)
        except ValueError:
            continue
        return weight
    raise ValueError(
        f"the pattern {pattern[:80]!r} is no regular expression of linear time, or too large: use no lookaround, and shorter repeats"
    )


def _compile_pattern(pattern: str, limit: int) -> None:
    # The engine that pydantic uses, under a limit that pydantic does not offer. In this dialect `\w` is ASCII and small, so something
    # as large as the real one stands for it.
    full_size = re.sub(r"\\(.)", lambda found: _UNICODE.get(found[1], found[0]), pattern, flags=re.DOTALL)
    jsonschema_rs.Draft202012Validator({"pattern": full_size}, pattern_options=jsonschema_rs.RegexOptions(size_limit=limit))


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> Callable[[str], bool]:
    _weight(pattern)
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError as error:
        raise ValueError(f"{pattern!r} is not a regex: {error}") from None
    return validator.isinstance_python


# --- formats --------------------------------------------------------------------------------------------------------------------

# A string is of such a format if pydantic would take it in the worker: so date-time may lack an offset, which RFC 3339 demands and
# `dt.now().isoformat()` does not give. Formats that are not listed (email, hostname, regex …) are the validator's own;
# unknown ones (binary, path …) are not checked.
FORMATS: Final[dict[str, Any]] = {
    "date-time": dt.datetime,
    "date": dt.date,
    "time": dt.time,
    "duration": dt.timedelta,
    "uuid": uuid.UUID,
    "uuid1": pydantic.UUID1,
    "uuid3": pydantic.UUID3,
    "uuid4": pydantic.UUID4,
    "uuid5": pydantic.UUID5,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "ipv4network": ipaddress.IPv4Network,
    "ipv6network": ipaddress.IPv6Network,
    "ipv4interface": ipaddress.IPv4Interface,
    "ipv6interface": ipaddress.IPv6Interface,
    "uri": pydantic.AnyUrl,
    "decimal": decimal.Decimal,
}


@cache
def adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """The TypeAdapter of a type, made once."""
    return pydantic.TypeAdapter(kind)


@cache
def _checkers() -> dict[str, Callable[[str], bool]]:
    return {name: _checker(kind) for name, kind in FORMATS.items()}


def _checker(kind: Any) -> Callable[[str], bool]:
    def fits(text: str) -> bool:
        try:
            validate(text)
        except ValueError:
            return False
        return True

    validate = adapter(kind).validator.validate_python
    return fits
