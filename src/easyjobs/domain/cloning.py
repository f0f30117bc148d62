"""From a Python function: what it takes (`describe`), and its arguments as real Python objects (`Converter`).

Describing and converting use the same pydantic types, so that what /docs shows is what the function gets. Conversion is pydantic's
lax mode on decoded JSON, as FastAPI does it: for `int`, 1.0 gives 1 and "1" gives 1; for `float`, 1 gives 1.0; for `bool`, 1 and
"true" give True; for `str`, numbers are refused; a datetime may come as text or as a Unix time. (The manager's check is stricter and
comes first; see `arguments`.) Defaults are left to Python: they are never converted.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pydantic
import typing_extensions
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from easyjobs.domain import payload
from easyjobs.domain.complaints import Loc, shorten
from easyjobs.domain.job import MAX_DEPTH
from easyjobs.domain.signature import MAX_DOC, MAX_SIGNATURE, MAX_SUMMARY, Parameter, Signature, check, check_schema, compile_schema, encode
from easyjobs.errors import InvalidArguments, RegistrationError

_KINDS: Final[dict[Any, Any]] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional_only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional_or_keyword",
    inspect.Parameter.VAR_POSITIONAL: "var_positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword_only",
    inspect.Parameter.VAR_KEYWORD: "var_keyword",
}
_REST, _EXTRA = "*", "**"  # the fields of *args and **kwargs in the TypedDict of all arguments
_ANY: Final = object()
_EXACT: Final = (int, float, str, bool, list, dict)
_MISSING: Final = object()
_make_typed_dict: Final[Any] = typing_extensions.TypedDict  # type checkers take it with literals only


def describe(
    fn: Callable[..., Any], injected: Sequence[type] = (), *, task: str | None = None, names: Mapping[str, Any] | None = None
) -> Signature:
    """Describe a function for the manager.

    Args:
        fn: a function, method, partial or other callable; what `functools.wraps` covers is looked through.
        injected: classes that the worker passes by itself, such as JobContext; a parameter of such a type is left out.
        task: its name in errors, by default that of the function.
        names: more names for annotations that are text, such as the locals of the function that defines the task.

    Raises: RegistrationError, which names the task, the parameter and a way out.
    """
    return _Function(fn, injected, task, names).describe()


class Converter:
    """Turns arguments from JSON values into what one function's annotations ask for.

    `injected` maps the names of parameters that the caller has to pass, by `inject`, to their classes. `trivial` says that `convert` has
    nothing to convert: no parameter says what it is. Raises: RegistrationError, as `describe`.
    """

    def __init__(
        self, fn: Callable[..., Any], injected: Sequence[type] = (), *, task: str | None = None, names: Mapping[str, Any] | None = None
    ) -> None:
        function = _Function(fn, injected, task, names)
        self.task = function.task
        self.injected: dict[str, type] = function.injected
        parameters = function.parameters
        kinds = inspect.Parameter
        self._only_positional = frozenset(p.name for p in parameters if p.kind is kinds.POSITIONAL_ONLY)
        self._positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self._rest = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        self._extra = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        variable = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        self._keywords = frozenset(p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY))
        self._required = frozenset(p.name for p in parameters if p.default is p.empty and p.kind not in variable)
        self._quick = {p.name: _quick(p.annotation) for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
        self._places = function.places
        self._cut = min(function.places.values(), default=len(self._positional))
        self._quick_places = [_quick(p.annotation) for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self._most = min(self._cut, len(self._positional))
        if self._required <= set(self._positional):  # how many positional arguments are enough
            self._least = max((index + 1 for index, name in enumerate(self._positional) if name in self._required), default=0)
        else:
            self._least = self._most + 1
        self._validate = function.adapter.validator.validate_python
        self.trivial = all(_quick(p.annotation) is _ANY for p in parameters)

    def convert(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments for the call. Raises: InvalidArguments, in FastAPI's format, also for missing and unknown ones."""
        if not args and self._required <= kwargs.keys():
            quick = self._quick
            for name, value in kwargs.items():
                expected = quick.get(name)
                if expected is not _ANY and type(value) is not expected:
                    break
            else:
                return args, kwargs
        elif not kwargs and self._least <= len(args) <= self._most:
            for value, expected in zip(args, self._quick_places, strict=False):
                if expected is not _ANY and type(value) is not expected:
                    break
            else:
                return args, kwargs
        return self._convert(args, kwargs)

    def _convert(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        errors: list[dict[str, Any]] = []
        named: dict[str, Any] = dict(zip(self._positional, args, strict=False))
        places = len(named)
        if len(args) > places:
            if self._rest:
                named[_REST] = args[places:]
            else:
                errors.append(
                    _entry("unexpected_positional_argument", ("body", "args", places), "Unexpected positional argument", args[places])
                )
        extra: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name not in self._keywords and self._extra:
                extra[name] = value
            elif name in self.injected or name not in self._keywords:
                errors.append(_entry("unexpected_keyword_argument", ("body", name), "Unexpected keyword argument", value))
            elif name in named:
                errors.append(_entry("multiple_argument_values", ("body", name), "Got multiple values for argument", value))
            else:
                named[name] = value
        if extra:
            named[_EXTRA] = extra
        try:
            values: dict[str, Any] = self._validate(named)
        except pydantic.ValidationError as error:
            errors += (self._located(e) for e in error.errors(include_url=False))
        if errors:
            raise InvalidArguments(self.task, errors)
        rest = values.pop(_REST, ())
        extra = values.pop(_EXTRA, {})
        # What stands behind an injected parameter goes by keyword, unless *args is filled: then `inject` has to insert.
        first = places if rest else min(places, self._cut)
        positional = [values.pop(name) for name in self._positional[:first]]
        return [*positional, *rest], {**values, **extra}

    def inject(self, args: list[Any], kwargs: dict[str, Any], values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Add the injected parameters, by name, to what `convert` returned. Passing them by keyword does too if there is no `*args`."""
        args, kwargs = list(args), dict(kwargs)
        for name in self.injected:
            place = self._places.get(name)
            if place is not None and place <= len(args):
                args.insert(place, values[name])
            else:
                kwargs[name] = values[name]
        return args, kwargs

    def _located(self, error: Any) -> dict[str, Any]:
        first, *path = error["loc"]
        loc: Loc = ("body", *path) if first == _EXTRA else ("body", "args", *path) if first == _REST else ("body", first, *path)
        entry = _entry(error["type"], loc, error["msg"], error["input"])
        context = {key: item if isinstance(item, int | float | str) else str(item) for key, item in error.get("ctx", {}).items()}
        return {**entry, "ctx": context} if context else entry


def to_json(value: Any) -> bytes:
    """Write a result as JSON, as FastAPI would. Raises: payload.NotJson (a ValueError), which names the place: `$.a[3].b: float nan …`."""
    return payload.encode(value)


def arguments_json(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Write arguments given in Python as the stored form, `[args, kwargs]`. Raises: payload.NotJson, naming the place: `args[0].when: …`."""
    call = [list(args), dict(kwargs)]
    try:
        return payload.encode(call, max_depth=MAX_DEPTH + 1)
    except payload.NotJson as error:
        found = payload.find_fault(call[0], "args") or payload.find_fault(call[1], "kwargs")
        raise payload.NotJson(found or f"arguments: {error}") from None


# --- the function ---------------------------------------------------------------------------------------------------------------


class _Function:
    """What pydantic and inspect know of one function."""

    def __init__(self, fn: Callable[..., Any], injected: Sequence[type], task: str | None, names: Mapping[str, Any] | None) -> None:
        self.fn = fn
        self.task = task or _name(fn)
        self._names = {**{cls.__name__: cls for cls in injected}, **_closure(fn), **(names or {})}
        inner = inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            raise RegistrationError(
                f"task {self.task}: a generator gives no result: return a list, or collect what it yields in another function"
            )
        try:
            signature = inspect.signature(fn)
        except (ValueError, TypeError) as error:
            raise RegistrationError(
                f"task {self.task}: its signature cannot be read ({error}): wrap it in a function of your own"
            ) from error
        self.injected: dict[str, type] = {}
        self.places: dict[str, int] = {}  # where an injected parameter stands among the positional ones
        self.parameters: list[inspect.Parameter] = []
        for index, parameter in enumerate(signature.parameters.values()):
            annotation = self._resolve(parameter.annotation, f"parameter {parameter.name!r}")
            found = _injected(annotation, injected)
            if found is not None:
                if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                    raise RegistrationError(
                        f"task {self.task}: parameter {parameter.name!r} ({found.__name__}) must be passable by keyword"
                    )
                self.injected[parameter.name] = found
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                    self.places[parameter.name] = index
                continue
            self._check_default(parameter, annotation)
            self.parameters.append(parameter.replace(annotation=annotation))
        self.returns = self._resolve(signature.return_annotation, "the return type")

    @functools.cached_property
    def adapter(self) -> pydantic.TypeAdapter[Any]:
        """Of a TypedDict with a field per parameter, `*` for *args and `**` for **kwargs; a default makes a field that may be absent."""
        fields: dict[str, Any] = {}
        for p in self.parameters:
            kind: Any = Any if p.annotation in (p.empty, object) else p.annotation
            if p.kind is p.VAR_POSITIONAL:
                fields[_REST] = typing_extensions.NotRequired[list[kind]]
            elif p.kind is p.VAR_KEYWORD:
                fields[_EXTRA] = typing_extensions.NotRequired[dict[str, kind]]
            else:
                fields[p.name] = typing_extensions.Required[kind] if p.default is p.empty else typing_extensions.NotRequired[kind]
        try:
            return pydantic.TypeAdapter(_make_typed_dict("Arguments", fields))
        except Exception as error:
            raise self._blame(error) from error

    def describe(self) -> Signature:
        try:
            schema: dict[str, Any] = self.adapter.json_schema(schema_generator=_Schemas)
        except RegistrationError:
            raise
        except Exception as error:
            raise self._blame(error) from error
        given = schema.get("properties", {})
        properties: dict[str, Any] = {}
        arguments: dict[str, Any] = {"type": "object", "properties": properties}
        required = [p.name for p in self.parameters if p.name in schema.get("required", ())]
        if required:
            arguments["required"] = required
        arguments["additionalProperties"] = False
        for p in self.parameters:
            if p.kind is p.VAR_POSITIONAL:
                properties[p.name] = {**given[_REST], "title": _title(p.name)}
            elif p.kind is p.VAR_KEYWORD:
                arguments["additionalProperties"] = given[_EXTRA].get("additionalProperties", True)
            else:
                properties[p.name] = given[p.name]
                if p.default is not p.empty:
                    default = self._default(p)
                    if default is not _MISSING:
                        properties[p.name] = {**given[p.name], "default": default}
        if "$defs" in schema:
            arguments["$defs"] = schema["$defs"]
        doc = (inspect.getdoc(self.fn.func if isinstance(self.fn, functools.partial) else self.fn) or "").strip()
        if len(doc) > MAX_DOC:
            doc = doc[: MAX_DOC - 1] + "…"
        signature = Signature(
            parameters=tuple(Parameter(p.name, _KINDS[p.kind], p.name in required) for p in self.parameters),
            arguments=_linear(arguments),
            returns=self._returns(),
            summary=doc.split("\n", 1)[0].strip()[:MAX_SUMMARY],
            doc=doc,
        )
        try:
            check(signature)
        except ValueError as error:
            raise RegistrationError(f"task {self.task}: {error}") from error
        size = len(encode(signature))
        if size > MAX_SIGNATURE:
            raise RegistrationError(
                f"task {self.task}: its signature has {size:,} bytes of JSON schema, the limit is {MAX_SIGNATURE:,}: "
                "shorten the docstrings of its models, or take a dict and validate it inside"
            )
        return signature

    def _returns(self) -> dict[str, Any] | None:
        """The schema of the result. A type that has none is left out: whether a result can be written shows when it is there."""
        if self.returns is inspect.Parameter.empty:
            return None
        kind: Any = type(None) if self.returns in (None, typing.NoReturn) else self.returns
        try:
            schema: dict[str, Any] = _linear(pydantic.TypeAdapter(kind).json_schema(mode="serialization", schema_generator=_Schemas))
            check_schema(schema)
        except Exception:  # noqa: BLE001 – pydantic raises whatever the types' own hooks raise
            return None
        return schema

    def _default(self, p: inspect.Parameter) -> Any:
        """The default as JSON, where it can be written."""
        try:
            return payload.decode(payload.encode(p.default))
        except ValueError:
            return _MISSING

    def _check_default(self, p: inspect.Parameter, annotation: Any) -> None:
        if isinstance(p.default, FieldInfo):
            raise RegistrationError(
                f"task {self.task}: parameter {p.name!r} has Field(…) as its default, which plain calls would get: "
                f"write {p.name}: Annotated[…, Field(…)] = <default>"
            )
        for extra in getattr(annotation, "__metadata__", ()):
            if isinstance(extra, FieldInfo) and (extra.alias or extra.validation_alias or not extra.is_required()):
                raise RegistrationError(
                    f"task {self.task}: parameter {p.name!r}: Field in its annotation must not have an alias or a default: "
                    "arguments go by the parameter's name, and the default belongs after '='"
                )

    def _resolve(self, annotation: Any, what: str) -> Any:
        """Evaluate an annotation that is text, and replace what pydantic does not take."""
        if isinstance(annotation, str):
            inner = inspect.unwrap(self.fn.func if isinstance(self.fn, functools.partial) else self.fn)
            if not hasattr(inner, "__globals__"):  # a method, or an object with __call__
                inner = getattr(inner, "__func__", None) or vars(type(inner)).get("__call__", inner)
            scope = getattr(inner, "__globals__", {})
            try:
                annotation = eval(annotation, dict(scope), self._names)  # noqa: S307 – the user's own code, as typing.get_type_hints does it
            except Exception as error:
                raise RegistrationError(
                    f"task {self.task}: the annotation {annotation!r} of {what} cannot be evaluated ({error}): "
                    "define or import that name at the top of the module, outside of TYPE_CHECKING"
                ) from error
        if annotation is None:
            return type(None)
        return _modern(annotation) if sys.version_info < (3, 12) else annotation

    def _blame(self, error: Exception) -> RegistrationError:
        """Find the parameter that pydantic cannot take."""
        for p in self.parameters:
            kind: Any = Any if p.annotation in (p.empty, object) else p.annotation
            try:
                pydantic.TypeAdapter(kind).json_schema(schema_generator=_Schemas)
            except Exception as reason:  # noqa: BLE001 – as above
                text = str(reason).split("\n", 1)[0]
                return RegistrationError(
                    f"task {self.task}: parameter {p.name!r} has the type {_type_name(kind)}, which JSON cannot carry ({text}): "
                    "take plain data, a dataclass or a pydantic model, or leave the annotation out"
                )
        return RegistrationError(f"task {self.task}: its parameters cannot be described: {error}")


class _Schemas(GenerateJsonSchema):
    """Pydantic's generator, with a Decimal's text as a format instead of a pattern with lookahead, which takes no linear time."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A number, or a string that pydantic takes for one."""
        bounds: Any = {
            key: float(typing.cast("float", value)) for key, value in schema.items() if key in ("gt", "ge", "lt", "le", "multiple_of")
        }
        number = self.float_schema(core_schema.float_schema(**bounds))
        return {"anyOf": [number, {"type": "string", "format": "decimal"}]}

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Say nothing: a default that JSON cannot carry is not shown."""


def _linear(schema: Any) -> Any:
    """Leave out patterns that only a backtracking engine can match (lookaround, backreferences): the worker checks those alone."""
    if isinstance(schema, list):
        return [_linear(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: value if key in ("default", "const", "enum", "examples", "example") else _linear(value) for key, value in schema.items()}
    if isinstance(copy.get("pattern"), str):
        try:
            compile_schema({"pattern": copy["pattern"]})
        except ValueError:
            del copy["pattern"]
    return copy


def _quick(annotation: Any) -> Any:
    """The class that a JSON value must be of to need no conversion; `_ANY`: none; otherwise a value that no class equals."""
    if annotation is Any or annotation in (inspect.Parameter.empty, object):
        return _ANY
    return annotation if annotation in _EXACT else None


def _injected(annotation: Any, injected: Sequence[type]) -> type | None:
    """The injected class that an annotation names: itself, `Annotated` or `| None`."""
    if isinstance(annotation, type):
        return next((cls for cls in injected if annotation is cls or issubclass(annotation, cls)), None)
    if typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        found = [_injected(arg, injected) for arg in typing.get_args(annotation)]
        return next((cls for cls in found if cls is not None), None)
    return None


def _closure(fn: Any) -> dict[str, Any]:
    inner = inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn)
    try:
        return dict(inspect.getclosurevars(inner).nonlocals)
    except (TypeError, ValueError):
        return {}


def _modern(annotation: Any) -> Any:
    """Before Python 3.12 pydantic takes no `typing.TypedDict`: rebuild it, inside of generics too, as one of typing_extensions."""
    if isinstance(annotation, type) and typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        return _rebuilt(annotation)
    args = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if not args or origin is typing.Literal:
        return annotation
    if origin is typing.Annotated:
        inner = _modern(args[0])
        return annotation if inner is args[0] else typing.Annotated[(inner, *annotation.__metadata__)]
    changed = tuple(_modern(arg) if not isinstance(arg, list) else arg for arg in args)
    if all(new is old for new, old in zip(changed, args, strict=True)):
        return annotation
    if origin in (typing.Union, types.UnionType):
        return typing.Union[changed]  # noqa: UP007
    return origin[changed]


@functools.cache
def _rebuilt(cls: Any) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {}
    for name, hint in hints.items():
        inner = hint
        while typing.get_origin(inner) in (typing.Required, typing.NotRequired):
            [inner] = typing.get_args(inner)
        presence = typing_extensions.Required if name in cls.__required_keys__ else typing_extensions.NotRequired
        fields[name] = presence[_modern(inner)]
    rebuilt: Any = _make_typed_dict(cls.__name__, fields)
    rebuilt.__doc__, rebuilt.__module__, rebuilt.__qualname__ = cls.__doc__, cls.__module__, cls.__qualname__
    return rebuilt


def _name(fn: Any) -> str:
    if isinstance(fn, functools.partial):
        return _name(fn.func)
    return str(getattr(fn, "__name__", type(fn).__name__))


def _title(name: str) -> str:
    return re.sub(r"_+", " ", name).strip().title()


def _type_name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _entry(type: str, loc: Loc, message: str, value: Any) -> dict[str, Any]:
    return {"type": type, "loc": loc, "msg": message, "input": _shown(value)}


def _shown(value: Any) -> Any:
    """A value for an error, as JSON can carry it."""
    try:
        return shorten(payload.decode(payload.encode(value)))
    except ValueError:
        return repr(value)[:200]
