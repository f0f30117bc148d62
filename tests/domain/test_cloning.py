"""From functions to signatures, and from JSON to real objects."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import functools
import json
import math
import typing
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import hypothesis
import pydantic
import pytest
from hypothesis import strategies as st

from easyjobs.domain import payload
from easyjobs.domain.arguments import Arguments
from easyjobs.domain.cloning import Converter, arguments_json, describe, to_json
from easyjobs.domain.job import MAX_DEPTH
from easyjobs.domain.signature import decode, encode
from easyjobs.errors import InvalidArguments, RegistrationError
from tests.domain import zoo

ID = "12345678-1234-5678-1234-567812345678"


class JobContext:
    """Stands for the class that the worker injects."""


# --- describe -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", zoo.ALL)
def test_every_kind_of_signature_survives_the_journey_to_the_manager(fn: Callable[..., Any]) -> None:
    signature = describe(fn)
    raw = encode(signature)
    assert decode(raw) == signature
    assert encode(describe(fn)) == raw


def test_a_signature_keeps_kinds_defaults_docstring_and_return_type() -> None:
    signature = describe(zoo.everything)
    assert [(p.name, p.kind, p.required) for p in signature.parameters] == [
        ("a", "positional_only", True),
        ("b", "positional_or_keyword", True),
        ("args", "var_positional", False),
        ("c", "keyword_only", True),
        ("d", "keyword_only", False),
        ("kwargs", "var_keyword", False),
    ]
    assert signature.arguments["additionalProperties"] == {"type": "number"}
    assert signature.arguments["properties"]["args"] == {"items": {"type": "integer"}, "title": "Args", "type": "array"}
    greeting = describe(zoo.model)
    assert (greeting.summary, greeting.doc) == ("Greet somebody.", "Greet somebody.\n\nAt length.")
    assert greeting.returns is not None
    assert greeting.returns["title"] == "Person"
    defaults = describe(zoo.defaults).arguments["properties"]
    assert [defaults[name].get("default") for name in "abcde"] == [None, 2, "c", [1], "2020-01-01T00:00:00"]
    assert "default" not in defaults["a"]


def test_returns_is_a_null_schema_for_none_and_absent_for_what_has_no_schema() -> None:
    def nothing() -> None: ...

    def odd() -> JobContext:
        return JobContext()

    assert describe(nothing).returns == {"type": "null"}
    assert describe(odd).returns is None
    assert describe(zoo.untyped).returns is None


def test_a_context_parameter_is_left_out_and_reported() -> None:
    def fn(ctx: JobContext, n: int, maybe: JobContext | None = None) -> None: ...

    assert [p.name for p in describe(fn, (JobContext,)).parameters] == ["n"]
    converter = Converter(fn, (JobContext,))
    assert converter.injected == {"ctx": JobContext, "maybe": JobContext}
    assert converter.convert([], {"n": 1}) == ([], {"n": 1})
    with pytest.raises(InvalidArguments, match="Unexpected keyword"):
        converter.convert([], {"n": 1, "ctx": 2})


def test_a_context_after_others_does_not_shift_positional_arguments() -> None:
    def fn(n: int, ctx: JobContext, m: int) -> Any:
        return n, ctx, m

    converter = Converter(fn, (JobContext,))
    args, kwargs = converter.convert([1, 2], {})
    assert fn(*args, **kwargs, ctx=JobContext())[::2] == (1, 2)  # type: ignore[misc]
    args, kwargs = converter.inject(args, kwargs, {"ctx": "context"})
    assert fn(*args, **kwargs) == (1, "context", 2)


def test_a_context_before_star_args_is_inserted() -> None:
    def fn(ctx: JobContext, a: int, other: JobContext, *args: int, **kwargs: int) -> Any:
        return ctx, a, other, args, kwargs

    converter = Converter(fn, (JobContext,))
    for given in ([1], {}), ([], {"a": 1}), ([1, 2, 3], {"k": 4}):
        args, kwargs = converter.inject(*converter.convert(*given), {"ctx": "c", "other": "o"})
        assert fn(*args, **kwargs) == ("c", 1, "o", tuple(given[0][1:]), {"k": 4} if given[0][1:] else {})


def test_an_annotation_imported_for_type_checkers_only_still_names_the_context() -> None:
    def fn(n: int, ctx: NotImported) -> None: ...  # type: ignore[name-defined]

    NotImported = type("NotImported", (), {})  # noqa: N806
    assert [p.name for p in describe(fn, (NotImported,)).parameters] == ["n"]


def test_an_annotation_that_is_text_may_name_locals_that_are_handed_over() -> None:
    class Local(pydantic.BaseModel):
        n: int

    def fn(value: Local) -> int:
        return value.n

    with pytest.raises(RegistrationError, match=r"task fn: the annotation 'Local' of parameter 'value' cannot be evaluated"):
        describe(fn)
    assert describe(fn, names=locals()).arguments["properties"]["value"] == {"$ref": "#/$defs/Local"}
    assert Converter(fn, names=locals()).convert([{"n": 1}], {}) == ([Local(n=1)], {})


@pytest.mark.parametrize(
    ("annotation", "default", "message"),
    [
        (JobContext, None, r"task fn: parameter 'value' has the type .*JobContext, which JSON cannot carry"),
        (typing.Callable[[], int], None, r"parameter 'value' has the type"),
        (int, pydantic.Field(3), r"parameter 'value' has Field\(…\) as its default"),
        (Annotated[int, pydantic.Field(alias="x")], 1, r"must not have an alias or a default"),
        (Annotated[int, pydantic.Field(default=3)], 1, r"must not have an alias or a default"),
    ],
)
def test_what_cannot_be_cloned_is_refused_with_the_parameter_and_a_way_out(annotation: Any, default: Any, message: str) -> None:
    def fn(value=default) -> None: ...

    fn.__annotations__["value"] = annotation
    with pytest.raises(RegistrationError, match=message):
        describe(fn)


def test_names_that_are_not_ascii_and_generators_are_refused() -> None:
    def größe(größe: int) -> None: ...  # noqa: PLC2401

    def generator():
        yield 1

    async def async_generator():
        yield 1

    with pytest.raises(RegistrationError, match="'größe' is not an ASCII identifier"):
        describe(größe)
    for fn in (generator, async_generator):
        with pytest.raises(RegistrationError, match="generator gives no result"):
            describe(fn)


def test_a_signature_that_is_too_large_is_refused_at_home() -> None:
    def fn(value: int) -> None: ...

    fields: Any = {f"f{i}": (int, pydantic.Field(description="x" * 1000)) for i in range(40)}
    fn.__annotations__["value"] = pydantic.create_model("Big", **fields)
    with pytest.raises(RegistrationError, match=r"bytes of JSON schema, the limit is 32,768"):
        describe(fn)


def test_a_pattern_that_needs_backtracking_is_left_to_the_worker() -> None:
    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(regex_engine="python-re")
        code: str = pydantic.Field(pattern=r"^(?=a)[a-z]+$")

    def fn(value: int) -> None: ...

    fn.__annotations__["value"] = Strict
    arguments = Arguments(decode(encode(describe(fn))), "fn")
    arguments.from_named({"value": {"code": "bcd"}})
    with pytest.raises(InvalidArguments, match="pattern"):
        Converter(fn).convert([{"code": "bcd"}], {})


def test_partials_methods_callables_and_wrapped_functions_are_cloned_as_they_are_called() -> None:
    class Service:
        def method(self, n: int, when: dt.date) -> Any:
            """Serve."""
            return n, when

        def __call__(self, n: zoo.Color) -> Any:
            return n

    @functools.wraps(zoo.instant)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return zoo.instant(*args, **kwargs)

    partial = functools.partial(zoo.defaults, 1, c="x")
    assert [(p.name, p.required) for p in describe(Service().method).parameters] == [("n", True), ("when", True)]
    assert describe(Service().method).summary == "Serve."
    assert Converter(Service()).convert(["red"], {}) == ([zoo.Color.RED], {})
    assert describe(wrapper) == describe(zoo.instant)
    assert [(p.name, p.kind) for p in describe(partial).parameters][:2] == [("b", "positional_or_keyword"), ("c", "keyword_only")]
    args, kwargs = Converter(partial).convert([5], {"d": [1, 2]})
    assert partial(*args, **kwargs)[:4] == (1, 5, "x", (1, 2))
    assert describe(lambda x, y=1: x).parameters[1].required is False


def test_a_typed_dict_of_typing_works_before_python_3_12_too() -> None:
    Inner = typing.TypedDict("Inner", {"when": dt.date})  # noqa: UP013
    Old = typing.TypedDict("Old", {"a": int, "inner": typing.NotRequired[list[Inner]]})  # noqa: UP013

    def fn(value: list[Old], other: Old | None = None) -> None: ...

    signature = describe(fn, names=locals())
    assert signature.arguments["$defs"]["Old"]["required"] == ["a"]
    converted = Converter(fn, names=locals()).convert([[{"a": 1, "inner": [{"when": "2020-01-01"}]}]], {})
    assert converted == ([[{"a": 1, "inner": [{"when": dt.date(2020, 1, 1)}]}]], {})


# --- convert --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "given", "expected"),
    [
        (zoo.instant, "2020-01-02T03:04:05+02:00", dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
        (zoo.instant, "2020-01-02T03:04:05", dt.datetime(2020, 1, 2, 3, 4, 5)),  # noqa: DTZ001
        (zoo.day, "2020-01-02", dt.date(2020, 1, 2)),
        (zoo.clock_time, "03:04", dt.time(3, 4)),
        (zoo.duration, "P1DT2H", dt.timedelta(days=1, hours=2)),
        (zoo.uuid, ID, UUID(ID)),
        (zoo.decimal, "1.10", Decimal("1.10")),
        (zoo.decimal, 0.1, Decimal("0.1")),
        (zoo.path, "/tmp/x", Path("/tmp/x")),
        (zoo.raw_bytes, "äb", "äb".encode()),
        (zoo.number, 1, 1.0),
        (zoo.integer, 2**70, 2**70),
        (zoo.set_of_text, ["a", "b"], {"a", "b"}),
        (zoo.fixed_tuple, [1, "a"], (1, "a")),
        (zoo.named_tuple, [1, "a"], zoo.Pair(1, "a")),
        (zoo.data_class, {"x": 1}, zoo.Point(1)),
        (zoo.model, {"name": "A", "born": "2000-01-01"}, zoo.Person(name="A", born=dt.date(2000, 1, 1))),
        (zoo.dict_of_models, {"home": {"street": "s", "number": 1}}, {"home": zoo.Address(street="s", number=1)}),
        (zoo.recursive, {"value": 1, "children": [{"value": 2}]}, zoo.Tree(value=1, children=[zoo.Tree(value=2)])),
        (zoo.tagged, {"kind": "dog", "tricks": []}, zoo.Dog(kind="dog", tricks=[])),
        (zoo.literal, 3, 3),
        (zoo.union, "5", "5"),
    ],
)
def test_a_function_gets_real_objects_by_position_and_by_name(fn: Callable[..., Any], given: Any, expected: Any) -> None:
    raw = Arguments(describe(fn), "t").from_named({"value": given})
    for args, kwargs in ([given], {}), ([], {"value": given}), json.loads(raw):
        converted, named = Converter(fn).convert(args, kwargs)
        got = fn(*converted, **named)
        assert got == expected
        assert type(got) is type(expected)


def test_defaults_are_untouched_and_everything_binds_as_python_does() -> None:
    args, kwargs = Converter(zoo.defaults).convert([1], {})
    assert (args, kwargs) == ([1], {})
    args, kwargs = Converter(zoo.everything).convert([1, "red", 3, 4.0], {"c": {"x": 1}, "z": 1, "args": 2})
    assert zoo.everything(*args, **kwargs) == (1, zoo.Color.RED, (3, 4), zoo.Point(1), None, {"z": 1.0, "args": 2.0})


def test_the_lax_rules_are_pydantics() -> None:
    assert Converter(zoo.integer).convert([], {"value": 1.0}) == ([], {"value": 1})
    assert type(Converter(zoo.number).convert([], {"value": 1})[1]["value"]) is float
    assert type(Converter(zoo.integer).convert([], {"value": True})[1]["value"]) is int
    assert Converter(zoo.boolean).convert([1], {}) == ([True], {})
    assert Converter(zoo.text).convert(["x"], {}) == (["x"], {})
    with pytest.raises(InvalidArguments):
        Converter(zoo.text).convert([1], {})


@pytest.mark.parametrize(
    ("args", "kwargs", "type_", "loc"),
    [
        ([], {}, "missing", ("body", "value")),
        (["x"], {}, "int_parsing", ("body", "value")),
        ([1, 2], {}, "unexpected_positional_argument", ("body", "args", 1)),
        ([1], {"value": 2}, "multiple_argument_values", ("body", "value")),
        ([1], {"other": 2}, "unexpected_keyword_argument", ("body", "other")),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_fastapis_format(
    args: list[Any], kwargs: dict[str, Any], type_: str, loc: tuple[Any, ...]
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        Converter(zoo.integer).convert(args, kwargs)
    [error] = caught.value.errors
    assert (error["type"], error["loc"]) == (type_, loc)
    json.dumps(error)


def test_only_what_is_untyped_is_trivial() -> None:
    assert Converter(zoo.untyped).trivial
    assert Converter(zoo.anything).trivial
    assert Converter(zoo.untyped_everything).trivial
    assert not Converter(zoo.integer).trivial
    assert not Converter(zoo.rest).trivial


def test_values_of_the_right_plain_type_are_handed_on_without_a_copy() -> None:
    value = {"value": [1]}
    _, kwargs = Converter(zoo.anything).convert([], value)
    assert kwargs is value


# --- what pydantic itself would do ----------------------------------------------------------------------------------------------

ARGUMENTS = {fn: Arguments(decode(encode(describe(fn))), fn.__name__) for fn in zoo.ALL}
CONVERTERS = {fn: Converter(fn) for fn in zoo.ALL}
ORACLES = {fn: pydantic.validate_call(fn) for fn in zoo.ALL}

scalars = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from([2**70, -(2**64), 1.0, 2.5, 1e300, -0.0])
    | st.sampled_from(["", "a", "b", "red", "cat", "1", "1.5", "true", "2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01T10:11:12.5", "10:11", "P1D",
                       "PT5M", ID, ID.replace("-", ""), "1e5", "nan", "x" * 30, "/tmp", "\x00", "é"])
)  # fmt: skip
keys = st.sampled_from(
    [
        "name",
        "born",
        "addresses",
        "street",
        "number",
        "value",
        "children",
        "kind",
        "lives",
        "tricks",
        "x",
        "y",
        "tags",
        "retries",
        "verbose",
    ]
)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6)
address = st.fixed_dictionaries({"street": st.text(max_size=3), "number": st.integers(-1, 9) | scalars})
person = st.fixed_dictionaries(
    {"name": st.text(max_size=4)}, optional={"born": scalars, "addresses": st.lists(address, max_size=2), "other": scalars}
)
tree = st.recursive(
    st.fixed_dictionaries({"value": st.integers()}),
    lambda t: st.fixed_dictionaries({"value": st.integers(), "children": st.lists(t, max_size=2)}),
    max_leaves=4,
)
likely: dict[Any, st.SearchStrategy[Any]] = {
    zoo.Person: person,
    zoo.Address: address,
    zoo.Tree: tree,
    zoo.Point: st.fixed_dictionaries({"x": st.integers()}, optional={"y": scalars, "tags": st.lists(st.text(max_size=2), max_size=2)}),
    zoo.Options: st.fixed_dictionaries({"retries": st.integers() | scalars}, optional={"verbose": st.booleans() | scalars}),
    zoo.Pair: st.tuples(st.integers(), st.text(max_size=2)).map(list),
    zoo.Address | zoo.Point: address | st.fixed_dictionaries({"x": st.integers()}),
    zoo.Pet: st.fixed_dictionaries(
        {"kind": st.sampled_from(["cat", "dog", "cow"])}, optional={"lives": scalars, "tricks": st.lists(scalars, max_size=2)}
    ),
    list[zoo.Person]: st.lists(person, max_size=2),
    list[int]: st.lists(st.integers() | scalars, max_size=3),
    set[str]: st.lists(scalars, max_size=3),
    dict[str, zoo.Address]: st.dictionaries(st.text(max_size=2), address, max_size=2),
    tuple[int, str]: st.tuples(scalars, scalars).map(list),
    tuple[int, ...]: st.lists(scalars, max_size=3),
    zoo.Options | None: st.none() | st.fixed_dictionaries({"retries": st.integers()}),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]:
    """A function of the zoo, arguments by name that may fit it, and its annotations."""
    fn = draw(st.sampled_from(zoo.ALL))
    hints = typing.get_type_hints(fn, include_extras=True)
    named: dict[str, Any] = {}
    for parameter in ARGUMENTS[fn].signature.parameters:
        hint = hints.get(parameter.name, Any)
        values = (likely.get(hint, scalars) if _hashable(hint) else scalars) | anything
        if parameter.kind == "var_positional":
            named[parameter.name] = draw(st.lists(scalars, max_size=2))
        elif parameter.kind == "var_keyword":
            named.update(draw(st.dictionaries(st.sampled_from(["k1", "k2"]), scalars, max_size=2)))
        elif parameter.required or draw(st.booleans()):
            named[parameter.name] = draw(values)
    return fn, named, hints


def _hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


def _outcome(fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = fn(*args, **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@hypothesis.settings(max_examples=200, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(calls())
def test_what_the_manager_accepts_pydantic_accepts_with_the_same_objects(
    call: tuple[Callable[..., Any], dict[str, Any], dict[str, Any]],
) -> None:
    fn, named, _ = call
    try:
        raw = ARGUMENTS[fn].from_named(named)
    except InvalidArguments as error:
        assert error.errors  # noqa: PT017 – either outcome is fine
        json.dumps(error.errors)
        return
    args, kwargs = json.loads(raw)
    ARGUMENTS[fn].check_call(raw)
    assert json.loads(ARGUMENTS[fn].from_call(args, kwargs)) == [args, kwargs]
    try:
        expected = _outcome(ORACLES[fn], args, kwargs)
    except pydantic.ValidationError as error:
        # The known difference: a float such as 1e300 is an integer for JSON Schema, and too large a one for pydantic.
        assert any(e["type"] == "int_parsing_size" and isinstance(e["input"], float) for e in error.errors())  # noqa: PT017
        return
    converted, keywords = CONVERTERS[fn].convert(args, kwargs)
    got = _outcome(fn, converted, keywords)
    assert got == expected
    assert repr(got) == repr(expected)  # of the same types too


@hypothesis.settings(max_examples=200, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(calls())
def test_what_the_manager_refuses_pydantics_strict_json_mode_refuses_too(
    call: tuple[Callable[..., Any], dict[str, Any], dict[str, Any]],
) -> None:
    fn, named, hints = call
    try:
        ARGUMENTS[fn].from_named(named)
    except InvalidArguments as error:
        if any("non-unique" in e["msg"] for e in error.errors):
            return  # duplicates for a set: the known difference
    else:
        return
    for parameter in ARGUMENTS[fn].signature.parameters:
        kind = hints.get(parameter.name, Any)
        if parameter.kind == "var_keyword":
            kind, value = dict[str, kind], {k: v for k, v in named.items() if k in ("k1", "k2")}
        else:
            if parameter.kind == "var_positional":
                kind = list[kind]
            value = named.get(parameter.name, ...)
        if value is ...:
            continue
        try:
            pydantic.TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError:
            return
    pytest.fail(f"{fn.__name__} would take {named}")


# --- results and arguments to JSON ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    at: dt.datetime
    parts: tuple[int, ...]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"null"),
        (0, b"0"),
        ("", b'""'),
        (2**70, str(2**70).encode()),
        (10**4000, str(10**4000).encode()),
        ({"a": [1, 2.5, True, None, "é"]}, '{"a":[1,2.5,true,null,"é"]}'.encode()),
        ((1, 2), b"[1,2]"),
        ({1: "x"}, b'{"1":"x"}'),
        (zoo.Color.RED, b'"red"'),
        (zoo.Level.HIGH, b"2"),
        (zoo.Pair(1, "a"), b'[1,"a"]'),
        ({"d": Decimal("1.10")}, b'{"d":"1.10"}'),
        (UUID(ID), b'"%s"' % ID.encode()),
        (dt.datetime(2020, 1, 1, tzinfo=dt.UTC), b'"2020-01-01T00:00:00Z"'),
        (dt.timedelta(hours=1), b'"PT1H"'),
        (Path("/x"), b'"/x"'),
        (b"abc", b'"abc"'),
        ({1}, b"[1]"),
        (Report(dt.datetime(2020, 1, 1, tzinfo=dt.UTC), (1,)), b'{"at":"2020-01-01T00:00:00Z","parts":[1]}'),
        ([zoo.Address(street="s", number=1)], b'[{"street":"s","number":1}]'),
    ],
)
def test_a_result_is_written_as_fastapi_writes_it(value: Any, expected: bytes) -> None:
    assert to_json(value) == expected


class Measured(pydantic.BaseModel):
    value: float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"\$: float nan is not JSON"),
        ({"a": [0, 0, 0, {"b": math.inf}]}, r"\$\.a\[3\]\.b: float inf is not JSON"),
        ({"a b": (math.nan,)}, r"\$\['a b'\]\[0\]: float nan"),
        ({"m": Measured(value=math.nan)}, r"\$\.m\.value: float nan"),
        ({"a": "\ud800"}, r"\$\.a: a string with a lone surrogate at 0"),
        ("\udfff", r"\$: a string with a lone surrogate"),
        ({"a": object()}, r"\$\.a: builtins\.object cannot be written as JSON"),
        ([lambda: 1], r"\$\[0\]: builtins\.function cannot be written as JSON"),
        ({"a": b"\xff"}, r"\$\.a: bytes that are no UTF-8"),
        ([1, 10**5000], r"\$\[1\]: an integer of more than 4,300 digits"),
    ],
)
def test_a_result_that_json_cannot_carry_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(payload.NotJson, match=message):
        to_json(value)


def test_depth_is_limited_and_circles_are_found() -> None:
    def nest(levels: int) -> Any:
        value: Any = []
        for _ in range(levels - 1):
            value = [value]
        return value

    assert to_json(nest(MAX_DEPTH)).count(b"[") == MAX_DEPTH
    circle: list[Any] = []
    circle.append(circle)
    tuples: Any = ()
    for _ in range(MAX_DEPTH):
        tuples = (tuples,)
    for value in (nest(MAX_DEPTH + 1), circle, tuples, nest(100_000)):
        with pytest.raises(payload.NotJson, match="nested too deeply"):
            to_json(value)


def test_arguments_given_in_python_become_the_stored_form() -> None:
    assert arguments_json((1, zoo.Color.RED), {"when": dt.date(2020, 1, 1)}) == b'[[1,"red"],{"when":"2020-01-01"}]'
    with pytest.raises(payload.NotJson, match=r"^args\[1\]\.x: float nan"):
        arguments_json((1, {"x": math.nan}), {})
    with pytest.raises(payload.NotJson, match=r"^kwargs\.a: builtins\.object"):
        arguments_json((1,), {"a": object()})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@hypothesis.given(plain)
def test_plain_values_round_trip(value: Any) -> None:
    assert payload.decode(to_json(value)) == value
    assert json.loads(to_json(value)) == value
