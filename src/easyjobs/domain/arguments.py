"""Whether arguments fit a task's signature, decided without the worker's code.

The manager compiles each signature once and checks every call against it before anything is queued. Arguments arrive in three
shapes: a JSON object by parameter name (`from_body`, `from_named`), query parameters (`from_query`), or positional and keyword
arguments as in a Python call (`from_call`, `check_call`). They are stored in one: the JSON array `[args, kwargs]`.

JSON is taken as the schema in /docs says. What FastAPI, by pydantic's lax mode, would take and we refuse: the string "1" or true
for a number, 0, 1 or "yes" for a boolean, numbers for dates and durations, duplicates for a set, an object for a named tuple.
(In query parameters strings are converted, as FastAPI does.) A JSON 1.0 is an integer, for both. What we accept and the worker may
still refuse: whatever a schema cannot say, such as a validator's own code, bounds of dates or Decimals, or the keys of `dict[int, …]`;
a pattern that takes no linear time; and a float such as 1e300 for an integer. The job then fails with `invalid_arguments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import jsonschema_rs
import msgspec
import pydantic

from easyjobs.domain import payload
from easyjobs.domain.complaints import Loc, complain, shorten
from easyjobs.domain.job import MAX_ARGUMENTS, MAX_DEPTH
from easyjobs.domain.signature import Signature, adapter, compile_schema
from easyjobs.errors import InvalidArguments, PayloadTooLarge

BODY: Final[Loc] = ("body",)
_MISSING: Final = object()
_AROUND: Final = 5  # bytes that the stored form puts around a body: [[],…]
_SHALLOW: Final = 2 * MAX_DEPTH  # in so few bytes nothing is too deep
_decode_call: Final = msgspec.json.Decoder(tuple[list[Any], dict[str, Any]]).decode


class Arguments:
    """The compiled signature of one task. `task` names it in errors. Raises: ValueError for a schema that does not compile."""

    def __init__(self, signature: Signature, task: str) -> None:
        self.signature, self.task = signature, task
        kinds = {kind: [p.name for p in signature.parameters if p.kind == kind] for kind in {p.kind for p in signature.parameters}}
        self._only_positional = kinds.get("positional_only", [])
        self._positional = self._only_positional + kinds.get("positional_or_keyword", [])
        self._keywords = frozenset(kinds.get("positional_or_keyword", []) + kinds.get("keyword_only", []))
        self._rest = kinds["var_positional"][0] if "var_positional" in kinds else None
        self._extra = "var_keyword" in kinds
        self._required = frozenset(p.name for p in signature.parameters if p.required)
        self._by_name = not self._only_positional and self._rest is None  # then the stored form is [[], named]
        self._schema = signature.arguments
        self._properties: dict[str, Any] = signature.arguments.get("properties", {})
        self._validator = compile_schema(signature.arguments)
        self._is_valid = self._validator.is_valid
        self._parts: dict[str, jsonschema_rs.Draft202012Validator] = {}

    # --- the ways in -------------------------------------------------------------------------------------------------------------

    def from_body(self, body: bytes) -> bytes:
        """Check a JSON object by parameter name; an empty body is `{}`. The stored form. Raises: InvalidArguments, PayloadTooLarge."""
        if len(body) > MAX_ARGUMENTS:
            raise PayloadTooLarge(f"the body of {self.task}", len(body), MAX_ARGUMENTS)
        if not body or not body.strip():
            body = b"{}"
        named = self._decode(body, MAX_DEPTH)
        if type(named) is not dict:
            raise self._error("dict_type", BODY, "Input should be a valid dictionary", named)
        if self._by_name:
            if not self._is_valid(named):
                raise self._refuse(named)
            return b"[[]," + body + b"]"
        return self._store(*self._split(named))

    def from_named(self, named: Mapping[str, Any], source: str = "body") -> bytes:
        """The same from decoded JSON values. `source` starts the `loc` of errors."""
        args, kwargs = self._split(dict(named), (source,))
        return self._store(args, kwargs)

    def from_call(self, args: Sequence[Any], kwargs: Mapping[str, Any], loc: Loc = BODY) -> bytes:
        """Check the arguments of a Python call, given as JSON values. The stored form. `loc` starts the `loc` of errors."""
        args, kwargs = list(args), dict(kwargs)
        self._check(args, kwargs, loc)
        return self._store(args, kwargs)

    def check_call(self, raw: bytes) -> None:
        """Check the stored form, `[args, kwargs]`, as it came from a client. Raises: InvalidArguments, PayloadTooLarge."""
        try:
            args, kwargs = _decode_call(raw)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise self._explain(raw) from None
        if len(raw) > _SHALLOW:
            self._check_limits(raw, args, kwargs)
        if not args and self._by_name:
            if not self._is_valid(kwargs):
                raise self._refuse(kwargs)
            return
        if kwargs or not self._is_valid_list(args):
            self._check(args, kwargs, BODY)

    @cached_property
    def _is_valid_list(self) -> Callable[[list[Any]], bool]:
        """Whether a call with positional arguments only is valid: the common one from Python, checked without binding it to names."""
        if not self._required <= set(self._positional):
            return lambda _: False
        least = max((index + 1 for index, name in enumerate(self._positional) if name in self._required), default=0)
        schema: dict[str, Any] = {"type": "array", "minItems": least, "$defs": self._schema.get("$defs", {}), "items": False}
        if self._positional:  # an empty prefixItems is not allowed
            schema["prefixItems"] = [self._properties[name] for name in self._positional]
        if self._rest is not None:
            schema["items"] = self._properties[self._rest].get("items", True)
        return compile_schema(schema).is_valid

    def _check_limits(self, raw: bytes, args: list[Any], kwargs: dict[str, Any]) -> None:
        if len(raw) > MAX_ARGUMENTS + _AROUND:
            raise PayloadTooLarge(f"the arguments of {self.task}", len(raw), MAX_ARGUMENTS)
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
            try:
                payload.check_depth([args, kwargs], MAX_DEPTH + 1)
            except payload.BadJson as error:
                raise self._error(error.type, BODY, error.message, None) from None

    def _explain(self, raw: bytes) -> InvalidArguments:
        """Why `raw` is not the stored form."""
        try:
            call = self._decode(raw, MAX_DEPTH + 1)
        except InvalidArguments as error:
            return error
        return self._error("arguments_type", BODY, "Arguments should be a list of positional ones and an object of named ones", call)

    def from_query(self, pairs: Sequence[tuple[str, str]], body: bytes | None) -> bytes:
        """Check query parameters, joined by those of a JSON body. The stored form. Raises: InvalidArguments, PayloadTooLarge.

        Strings become what the schema asks for, as FastAPI converts them: integers, numbers, booleans (true/false, 1/0, on/off, yes/no);
        repeated names make a list for an array; "null" is a string like any other. What may be a string stays one.
        """
        if not pairs:
            return self.from_body(body or b"")
        if body is not None and len(body) > MAX_ARGUMENTS:
            raise PayloadTooLarge(f"the body of {self.task}", len(body), MAX_ARGUMENTS)
        named: Any = {} if body is None or not body.strip() else self._decode(body, MAX_DEPTH)
        if type(named) is not dict:
            raise self._error("dict_type", BODY, "Input should be a valid dictionary", named)
        in_body = frozenset(named)
        texts: dict[str, list[str]] = {}
        for name, text in pairs:
            texts.setdefault(name, []).append(text)
        errors: list[dict[str, Any]] = []
        for name, values in texts.items():
            schema = self._properties.get(name, self._schema.get("additionalProperties", True) if self._extra else _MISSING)
            loc = ("query", name)
            if name in in_body:
                errors.append(_entry("multiple_argument_values", loc, "Given in the query and in the body", values[-1]))
            elif schema is _MISSING:
                errors.append(_entry("extra_forbidden", loc, "Extra inputs are not permitted", values[-1]))
            else:
                named[name] = self._from_text(name, schema, values, loc, errors)
        if errors:
            raise InvalidArguments(self.task, errors)
        if not self._is_valid(named):
            source = "body" if in_body else "query"
            found = complain(self._validator, named, ())
            for error in found:
                where = error["loc"]
                error["loc"] = ("query" if where and where[0] in texts else source, *where)
            raise InvalidArguments(self.task, found)
        return self._store(*self._split(named))

    # --- binding -----------------------------------------------------------------------------------------------------------------

    def _split(self, named: dict[str, Any], loc: Loc = BODY) -> tuple[list[Any], dict[str, Any]]:
        """Check arguments by name, and part those that must be positional from the others."""
        if self._rest is not None and named.get(self._rest) == []:
            named = {name: value for name, value in named.items() if name != self._rest}  # an empty list is none
        if self._by_name:
            if not self._is_valid(named):
                raise self._refuse(named, loc)
            return [], named
        last = -1  # of the parameters that have to be positional
        if self._rest in named:
            last = len(self._positional) - 1
        else:
            for index, name in enumerate(self._only_positional):
                if name in named:
                    last = index
        # A default that is left out before one that is given: only the schema knows it here.
        for name in self._positional[: last + 1]:
            if name not in named and name not in self._required:
                default = self._default(name)
                if default is _MISSING:
                    raise self._error("missing", (*loc, name), "Field required, since a positional argument after it is given", named)
                named = {**named, name: default}
        if not self._is_valid(named):
            raise self._refuse(named, loc)
        positional = self._positional[: last + 1]
        args = [named[name] for name in positional]
        if self._rest in named:
            args += named[self._rest]
        taken = {*positional, self._rest}
        return args, {name: value for name, value in named.items() if name not in taken}

    def _default(self, name: str) -> Any:
        schema = self._properties[name]
        default = schema.get("default", _MISSING) if isinstance(schema, dict) else _MISSING
        return default if default is not _MISSING and self._part(name, schema).is_valid(default) else _MISSING

    def _check(self, args: list[Any], kwargs: dict[str, Any], loc: Loc) -> None:
        """Bind as Python would, then validate. Raises: InvalidArguments."""
        if not kwargs:
            if self._is_valid_list(args):
                return
        elif len(args) <= len(self._positional) and kwargs.keys() <= self._keywords:
            bound = dict(zip(self._positional, args, strict=False))
            if bound.keys().isdisjoint(kwargs):
                bound.update(kwargs)
                if self._is_valid(bound):
                    return
        errors: list[dict[str, Any]] = []
        named = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional):
            if self._rest is not None:
                named[self._rest] = args[len(self._positional) :]
            else:
                errors = [
                    _entry("unexpected_positional_argument", (*loc, "args", index), "Unexpected positional argument", args[index])
                    for index in range(len(self._positional), min(len(args), len(self._positional) + 10))
                ]
        clashing: dict[str, Any] = {}  # keywords for **kwargs that are called like a positional-only parameter or *args
        for name, value in kwargs.items():
            if name not in self._properties or name in self._keywords:
                if name in named:
                    errors.append(_entry("multiple_argument_values", (*loc, name), "Got multiple values for argument", value))
                else:
                    named[name] = value
            elif self._extra:
                clashing[name] = value
            else:
                errors.append(_entry("unexpected_keyword_argument", (*loc, name), "Unexpected keyword argument", value))
        if not self._is_valid(named):
            errors += complain(self._validator, named, loc)
        for name, value in clashing.items():
            part = self._part("**", self._schema.get("additionalProperties", True))
            if not part.is_valid(value):
                errors += complain(part, value, (*loc, name))
        if errors:
            raise InvalidArguments(self.task, errors)

    def _store(self, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        try:
            payload.check_depth(args, MAX_DEPTH + 1)
            payload.check_depth(kwargs, MAX_DEPTH)
            raw = payload.encode_plain([args, kwargs])
        except payload.NotJson as error:
            raise self._error("json_invalid", BODY, str(error), None) from None
        except payload.BadJson as error:
            raise self._error(error.type, BODY, error.message, None) from None
        if len(raw) > MAX_ARGUMENTS + _AROUND:
            raise PayloadTooLarge(f"the arguments of {self.task}", len(raw), MAX_ARGUMENTS)
        return raw

    # --- query parameters --------------------------------------------------------------------------------------------------------

    def _from_text(self, name: str, schema: Any, texts: list[str], loc: Loc, errors: list[dict[str, Any]]) -> Any:
        """Make the value of one parameter of its texts."""
        kinds = self._kinds(schema)
        if len(texts) > 1 or ("array" in kinds and not kinds & {"any", "string"}):
            arrays = [node for node in self._alternatives(schema) if "array" in self._own_kinds(node)]
            if not arrays:
                errors.append(_entry("multiple_argument_values", loc, "Got multiple values for an argument that is no list", texts))
                return texts
            return [self._scalar(None, self._item(arrays[0], index), text, (*loc, index), errors) for index, text in enumerate(texts)]
        return self._scalar(name, schema, texts[0], loc, errors)

    def _scalar(self, name: str | None, schema: Any, text: str, loc: Loc, errors: list[dict[str, Any]]) -> Any:
        kinds = self._kinds(schema)
        if "any" in kinds:
            return text
        part = self._part(name, schema)
        if "string" in kinds and part.is_valid(text):
            return text
        failed: list[dict[str, Any]] = []
        converted: Any = _MISSING
        for kind, python in (("integer", int), ("number", pydantic.FiniteFloat), ("boolean", bool)):
            if kind in kinds:
                try:
                    value = adapter(python).validate_python(text)
                except ValueError as error:
                    failed = failed or [_entry(e["type"], loc, e["msg"], text) for e in error.errors()]  # type: ignore[attr-defined]
                    continue
                if part.is_valid(value):
                    return value
                converted = value if converted is _MISSING else converted
        if converted is not _MISSING:
            return converted  # of the right type, and refused for its value: the validation of the whole says why
        if "string" not in kinds:
            errors += failed
        return text

    def _item(self, array: Any, index: int) -> Any:
        prefix = array.get("prefixItems", [])
        return prefix[index] if index < len(prefix) else array.get("items", True)

    def _alternatives(self, schema: Any, depth: int = 0) -> Iterator[Any]:
        """The schema, and those that it offers as alternatives."""
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return
        yield schema
        if "$ref" in schema:
            yield from self._alternatives(self._schema["$defs"][schema["$ref"].removeprefix("#/$defs/")], depth + 1)
        for keyword in ("anyOf", "oneOf", "allOf"):
            for node in schema.get(keyword, ()):
                yield from self._alternatives(node, depth + 1)

    def _own_kinds(self, node: Any) -> set[str]:
        kinds = node.get("type")
        if kinds is not None:
            return {kinds} if isinstance(kinds, str) else set(kinds)
        values = node.get("enum", [node["const"]] if "const" in node else [])
        return {_KINDS.get(type(value), "object") for value in values}

    def _kinds(self, schema: Any) -> set[str]:
        """The JSON types that a schema may take; "any" where it does not say."""
        kinds: set[str] = set()
        for node in self._alternatives(schema):
            kinds |= self._own_kinds(node)
            if not node.keys() & {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"}:
                kinds.add("any")
        return kinds or {"any"}

    # --- helpers -----------------------------------------------------------------------------------------------------------------

    def _part(self, name: str | None, schema: Any) -> jsonschema_rs.Draft202012Validator:
        """A validator of one part of the schema, kept under `name`."""
        if name is not None and name in self._parts:
            return self._parts[name]
        whole = {"allOf": [schema], "$defs": self._schema.get("$defs", {})}
        part = compile_schema(whole)
        if name is not None and (name in self._properties or name == "**"):
            self._parts[name] = part
        return part

    def _decode(self, raw: bytes, max_depth: int) -> Any:
        try:
            return payload.decode(raw, max_depth)
        except payload.BadJson as error:
            loc = ("body", error.position) if error.type == "json_invalid" else BODY
            raise InvalidArguments(self.task, [{**_entry(error.type, loc, error.message, {}), "ctx": {"error": error.message}}]) from None

    def _refuse(self, named: Any, loc: Loc = BODY) -> InvalidArguments:
        return InvalidArguments(self.task, complain(self._validator, named, loc))

    def _error(self, type: str, loc: Loc, message: str, value: Any) -> InvalidArguments:
        return InvalidArguments(self.task, [_entry(type, loc, message, value)])


_KINDS: Final[dict[type, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
    type(None): "null",
}


def _entry(type: str, loc: Loc, message: str, value: Any) -> dict[str, Any]:
    return {"type": type, "loc": loc, "msg": message, "input": shorten(value)}
