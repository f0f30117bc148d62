"""The manager's check of arguments: the stored form, and errors as FastAPI words them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from easyjobs.domain import job
from easyjobs.domain.arguments import Arguments
from easyjobs.domain.cloning import Converter, describe
from easyjobs.domain.signature import ANYTHING
from easyjobs.errors import InvalidArguments, PayloadTooLarge
from tests.domain import zoo


def arguments(fn: Callable[..., Any]) -> Arguments:
    return Arguments(describe(fn), fn.__name__)


def refusal(call: Callable[[], Any]) -> list[tuple[str, tuple[Any, ...]]]:
    with pytest.raises(InvalidArguments) as caught:
        call()
    json.dumps(caught.value.errors)
    assert all({"type", "loc", "msg", "input"} <= error.keys() for error in caught.value.errors)
    return [(error["type"], tuple(error["loc"])) for error in caught.value.errors]


# --- the stored form ------------------------------------------------------------------------------------------------------------


def test_a_body_is_stored_byte_for_byte_where_names_are_enough() -> None:
    body = b' {"a": 1.0,  "b":12345678901234567890123} '
    assert arguments(zoo.defaults).from_body(body) == b"[[]," + body + b"]"


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}"])
def test_an_empty_body_is_an_empty_object(body: bytes) -> None:
    assert json.loads(arguments(zoo.optional).from_body(body)) == [[], {}]
    assert refusal(lambda: arguments(zoo.integer).from_body(body)) == [("missing", ("body", "value"))]


@pytest.mark.parametrize(
    ("fn", "named", "stored"),
    [
        (zoo.positional_only, {"a": 1}, [[1], {}]),
        (zoo.positional_only, {"a": 1, "b": 5, "c": 6}, [[1, 5], {"c": 6}]),
        (zoo.rest, {"a": 1, "args": ["2020-01-01"]}, [[1, 2, "2020-01-01"], {}]),
        (zoo.rest, {"a": 1, "args": []}, [[], {"a": 1}]),
        (zoo.rest, {"a": 1, "b": 3}, [[], {"a": 1, "b": 3}]),
        (zoo.untyped_everything, {"args": [1, [2]], "x": None}, [[1, [2]], {"x": None}]),
        (zoo.everything, {"a": 1, "b": "red", "c": {"x": 1}, "z": 2.5}, [[1], {"b": "red", "c": {"x": 1}, "z": 2.5}]),
        (zoo.everything, {"a": 1, "b": "red", "args": [3], "c": {"x": 1}}, [[1, "red", 3], {"c": {"x": 1}}]),
    ],
)
def test_positional_parameters_become_positional_arguments(fn: Callable[..., Any], named: dict[str, Any], stored: Any) -> None:
    assert json.loads(arguments(fn).from_body(json.dumps(named).encode())) == stored
    assert json.loads(arguments(fn).from_named(named)) == stored
    args, kwargs = Converter(fn).convert(*stored)
    fn(*args, **kwargs)


def test_a_left_out_default_before_star_args_must_be_one_that_json_can_carry() -> None:
    def fn(a=object(), *args):  # noqa: B008
        return a, args

    assert refusal(lambda: arguments(fn).from_named({"args": [1]})) == [("missing", ("body", "a"))]
    assert json.loads(arguments(fn).from_named({"a": 0, "args": [1]})) == [[0, 1], {}]


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (zoo.integer, [1], {}),
        (zoo.integer, [], {"value": 1}),
        (zoo.rest, [1, 2, "2020-01-01"], {}),
        (zoo.positional_only, [1, 2, 3], {}),
        (zoo.positional_only, [1], {"c": 3}),
        (zoo.everything, [1, "red", 2], {"c": {"x": 1}, "a": 2.5, "args": 1}),
    ],
)
def test_a_call_keeps_its_form(fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
    raw = arguments(fn).from_call(args, kwargs)
    assert json.loads(raw) == [args, kwargs]
    arguments(fn).check_call(raw)


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "expected"),
    [
        (
            zoo.integer,
            [1, 2, 3],
            {},
            [("unexpected_positional_argument", ("body", "args", 1)), ("unexpected_positional_argument", ("body", "args", 2))],
        ),
        (zoo.integer, [1], {"value": 2}, [("multiple_argument_values", ("body", "value"))]),
        (zoo.integer, [], {"valeu": 2}, [("missing", ("body", "value")), ("extra_forbidden", ("body", "valeu"))]),
        (zoo.integer, ["x"], {}, [("int_type", ("body", "value"))]),
        (zoo.keyword_only, [1], {}, [("unexpected_positional_argument", ("body", "args", 0)), ("missing", ("body", "value"))]),
        (zoo.positional_only, [], {"a": 1}, [("unexpected_keyword_argument", ("body", "a")), ("missing", ("body", "a"))]),
        (zoo.rest, [1, 2, "x"], {}, [("date_from_datetime_parsing", ("body", "args", 0))]),
        (zoo.everything, [1, "red"], {"c": {"x": 1}, "a": "x"}, [("float_type", ("body", "a"))]),
    ],
)
def test_a_call_binds_as_python_binds(fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], expected: Any) -> None:
    assert sorted(refusal(lambda: arguments(fn).from_call(args, kwargs))) == sorted(expected)
    assert sorted(refusal(lambda: arguments(fn).check_call(json.dumps([args, kwargs]).encode()))) == sorted(expected)


def test_anything_goes_where_the_signature_says_so() -> None:
    raw = b'[[1,null],{"x":[{}],"args":2}]'
    Arguments(ANYTHING, "t").check_call(raw)
    assert Arguments(ANYTHING, "t").from_call([1, None], {"x": [{}], "args": 2}) == raw


# --- errors ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "value", "type_", "path", "message"),
    [
        (zoo.integer, "1", "int_type", (), "Input should be a valid integer"),
        (zoo.integer, True, "int_type", (), "Input should be a valid integer"),
        (zoo.integer, 1.5, "int_from_float", (), "Input should be a valid integer, got a number with a fractional part"),
        (zoo.number, "x", "float_type", (), "Input should be a valid number"),
        (zoo.boolean, 1, "bool_type", (), "Input should be a valid boolean"),
        (zoo.text, None, "string_type", (), "Input should be a valid string"),
        (zoo.optional, "x", "int_type", (), "Input should be a valid integer or None"),
        (zoo.union, [], "int_type", (), "Input should be a valid integer, a valid string or None"),
        (zoo.enumeration, "green", "enum", (), "Input should be 'red' or 'blue'"),
        (zoo.literal, "c", "literal_error", (), "Input should be 'a', 'b' or 3"),
        (zoo.instant, "yesterday", "datetime_from_date_parsing", (), "Input should be a valid datetime or date, input is too short"),
        (zoo.uuid, "x", "uuid_parsing", (), None),
        (zoo.decimal, "x", "decimal_parsing", (), "Input should be a valid decimal"),
        (zoo.list_of_ints, [0, "x"], "int_type", (1,), "Input should be a valid integer"),
        (zoo.list_of_ints, {}, "list_type", (), "Input should be a valid list"),
        (zoo.list_of_models, [{"name": "a"}, {}], "missing", (1, "name"), "Field required"),
        (zoo.list_of_models, [{"name": "a", "x": 1}], "extra_forbidden", (0, "x"), "Extra inputs are not permitted"),
        (zoo.dict_of_models, {"home": {"street": "s", "number": 0}}, "greater_than", ("home", "number"), "Input should be greater than 0"),
        (zoo.model, {"name": ""}, "string_too_short", ("name",), "String should have at least 1 character"),
        (zoo.model, [], "dict_type", (), "Input should be a valid dictionary"),
        (
            zoo.recursive,
            {"value": 1, "children": [{"value": "x"}]},
            "int_type",
            ("children", 0, "value"),
            "Input should be a valid integer",
        ),
        (zoo.tagged, {"kind": "dog", "tricks": 1}, "list_type", ("tricks",), "Input should be a valid list"),
        (zoo.tagged, {"kind": "dog"}, "missing", ("tricks",), "Field required"),
        (zoo.union_of_models, {"street": "s", "number": "x"}, "int_type", ("number",), "Input should be a valid integer"),
        (zoo.fixed_tuple, [1], "too_short", (), "List should have at least 2 items after validation, not 1"),
        (zoo.bounded, 11, "less_than_equal", (), "Input should be less than or equal to 10"),
    ],
)
def test_a_wrong_value_is_refused_in_pydantics_words(
    fn: Callable[..., Any], value: Any, type_: str, path: tuple[Any, ...], message: str | None
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        arguments(fn).from_body(json.dumps({"value": value}).encode())
    [error] = caught.value.errors
    assert (error["type"], error["loc"]) == (type_, ("body", "value", *path))
    assert message is None or error["msg"] == message


def test_all_errors_are_reported_at_once() -> None:
    found = refusal(lambda: arguments(zoo.defaults).from_body(b'{"b":"x","c":1,"d":[1,"y"],"zz":1}'))
    assert sorted(found) == [
        ("extra_forbidden", ("body", "zz")),
        ("int_type", ("body", "b")),
        ("int_type", ("body", "d", 1)),
        ("missing", ("body", "a")),
        ("string_type", ("body", "c")),
    ]


def test_a_pattern_of_a_user_is_matched_in_linear_time() -> None:
    def fn(value: str) -> None: ...

    signature = describe(fn)
    signature.arguments["properties"]["value"]["pattern"] = "^(a+)+$"
    assert refusal(lambda: Arguments(signature, "t").from_named({"value": "a" * 100_000 + "!"})) == [
        ("string_pattern_mismatch", ("body", "value"))
    ]


@pytest.mark.parametrize(
    ("body", "type_", "loc"),
    [
        (b'{"value":', "json_invalid", ("body", 9)),
        (b'{"value":1,}', "json_invalid", ("body", 11)),
        (b'{"value":NaN}', "json_invalid", ("body", 9)),
        (b'{"value":Infinity}', "json_invalid", ("body", 9)),
        (b'{"value":"\xff"}', "json_invalid", ("body", 0)),
        (b"\xef\xbb\xbf{}", "json_invalid", ("body", 0)),
        (b'{"value":1e400}', "finite_number", ("body",)),
        (b'{"value":' + b"1" * 5000 + b"}", "int_parsing_size", ("body",)),
        (b'{"value":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion_limit", ("body",)),
        (b'{"value":' + b"[" * 32 + b"]" * 32 + b"}", "recursion_limit", ("body",)),
        (b"[1]", "dict_type", ("body",)),
        (b"null", "dict_type", ("body",)),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, type_: str, loc: tuple[Any, ...]) -> None:
    for fn in (zoo.anything, zoo.untyped_everything):
        assert refusal(lambda fn=fn: arguments(fn).from_body(body)) == [(type_, loc)]


def test_a_lone_surrogate_is_refused_and_named() -> None:
    with pytest.raises(InvalidArguments, match="lone surrogate"):
        arguments(zoo.anything).from_body(b'{"value":"\\ud800"}')


def test_the_deepest_allowed_body_is_accepted_in_every_form() -> None:
    body = b'{"value":' + b"[" * 31 + b"]" * 31 + b"}"
    stored = arguments(zoo.anything).from_body(body)
    arguments(zoo.anything).check_call(stored)
    assert json.loads(arguments(zoo.anything).from_call(*json.loads(stored))) == json.loads(stored)
    assert refusal(lambda: arguments(zoo.anything).check_call(b'[[],{"value":' + b"[" * 32 + b"]" * 32 + b"}]")) == [
        ("recursion_limit", ("body",))
    ]


@pytest.mark.parametrize("raw", [b"[]", b"[[]]", b"[{},[]]", b"[[],{},1]", b"{}", b"[[],{}", b"1"])
def test_what_is_not_the_stored_form_is_refused(raw: bytes) -> None:
    assert refusal(lambda: arguments(zoo.optional).check_call(raw))


def test_too_many_bytes_are_refused_as_such() -> None:
    body = b'{"value":"%s"}' % (b"x" * job.MAX_ARGUMENTS)
    for call in (
        lambda: arguments(zoo.text).from_body(body),
        lambda: arguments(zoo.text).check_call(b"[[]," + body + b"]"),
        lambda: arguments(zoo.text).from_call(["x" * job.MAX_ARGUMENTS], {}),
        lambda: arguments(zoo.text).from_query([("value", "x")], body),
    ):
        with pytest.raises(PayloadTooLarge):
            call()
    largest = b'{"value":"%s"}' % (b"x" * (job.MAX_ARGUMENTS - 12))
    assert len(largest) == job.MAX_ARGUMENTS
    arguments(zoo.text).check_call(arguments(zoo.text).from_body(largest))


def test_a_large_input_is_cut_in_errors_and_errors_are_limited() -> None:
    with pytest.raises(InvalidArguments) as caught:
        arguments(zoo.list_of_ints).from_named({"value": ["x" * 5000] * 2000})
    assert len(caught.value.errors) == 100
    assert all(len(error["input"]) < 1100 for error in caught.value.errors)
    with pytest.raises(InvalidArguments) as caught:
        arguments(zoo.text).from_named({"value": list(range(10_000))})
    assert caught.value.errors[0]["input"].startswith("[0,1,2,")
    assert len(caught.value.errors[0]["input"]) < 1100


@pytest.mark.parametrize("value", [2**63, 2**64, 2**70, -(2**70), 10**4000])
def test_integers_of_any_size_round_trip(value: int) -> None:
    stored = arguments(zoo.integer).from_call([value], {})
    assert stored == b"[[%s],{}]" % str(value).encode()
    arguments(zoo.integer).check_call(stored)
    assert refusal(lambda: arguments(zoo.bounded).from_call([value], {}))[0][1] == ("body", "value")


def test_the_last_of_duplicate_keys_counts_as_in_pythons_json() -> None:
    body = b'{"value":"x","value":1}'
    assert json.loads(arguments(zoo.integer).from_body(body)) == [[], {"value": 1}]
    assert refusal(lambda: arguments(zoo.text).from_body(body)) == [("string_type", ("body", "value"))]


# --- query parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "texts", "expected"),
    [
        (zoo.untyped, ["5"], "5"),
        (zoo.integer, ["5"], 5),
        (zoo.integer, [str(2**70)], 2**70),
        (zoo.number, ["1e3"], 1000.0),
        (zoo.boolean, ["true"], True),
        (zoo.boolean, ["off"], False),
        (zoo.boolean, ["1"], True),
        (zoo.boolean, ["yes"], True),
        (zoo.text, ["5"], "5"),
        (zoo.text, ["null"], "null"),
        (zoo.optional, ["5"], 5),
        (zoo.union, ["5"], "5"),
        (zoo.enumeration, ["red"], "red"),
        (zoo.literal, ["3"], 3),
        (zoo.literal, ["a"], "a"),
        (zoo.instant, ["2020-01-01T00:00:00"], "2020-01-01T00:00:00"),
        (zoo.decimal, ["1.50"], "1.50"),
        (zoo.list_of_ints, ["1", "2"], [1, 2]),
        (zoo.list_of_ints, ["1"], [1]),
        (zoo.set_of_text, ["a", "b"], ["a", "b"]),
        (zoo.fixed_tuple, ["1", "2"], [1, "2"]),
        (zoo.bounded, ["3"], 3),
    ],
)
def test_query_parameters_are_converted_by_the_schema(fn: Callable[..., Any], texts: list[str], expected: Any) -> None:
    _, kwargs = json.loads(arguments(fn).from_query([("value", text) for text in texts], None))
    assert kwargs == {"value": expected}
    assert type(kwargs["value"]) is type(expected)


def test_star_parameters_come_from_the_query_too() -> None:
    stored = arguments(zoo.rest).from_query([("a", "1"), ("args", "2020-01-01"), ("args", "2020-01-02")], b"")
    assert json.loads(stored) == [[1, 2, "2020-01-01", "2020-01-02"], {}]
    stored = arguments(zoo.everything).from_query([("a", "1"), ("b", "red"), ("z", "2")], b'{"c":{"x":1}}')
    assert json.loads(stored) == [[1], {"b": "red", "z": 2.0, "c": {"x": 1}}]
    assert json.loads(arguments(zoo.untyped_everything).from_query([("k", "1"), ("args", "2")], None)) == [["2"], {"k": "1"}]


@pytest.mark.parametrize(
    ("fn", "pairs", "body", "expected"),
    [
        (zoo.integer, [("value", "x")], None, [("int_parsing", ("query", "value"))]),
        (zoo.integer, [("value", "")], None, [("int_parsing", ("query", "value"))]),
        (zoo.optional, [("value", "null")], None, [("int_parsing", ("query", "value"))]),
        (zoo.number, [("value", "x")], None, [("float_parsing", ("query", "value"))]),
        (zoo.number, [("value", "nan")], None, [("finite_number", ("query", "value"))]),
        (zoo.boolean, [("value", "maybe")], None, [("bool_parsing", ("query", "value"))]),
        (zoo.list_of_ints, [("value", "1"), ("value", "x")], None, [("int_parsing", ("query", "value", 1))]),
        (zoo.integer, [("value", "1"), ("value", "2")], None, [("multiple_argument_values", ("query", "value"))]),
        (zoo.integer, [("value", "1")], b'{"value":2}', [("multiple_argument_values", ("query", "value"))]),
        (zoo.integer, [("value", "1"), ("x", "2")], None, [("extra_forbidden", ("query", "x"))]),
        (zoo.defaults, [("b", "1")], None, [("missing", ("query", "a"))]),
        (zoo.defaults, [("b", "1")], b'{"c":"x"}', [("missing", ("body", "a"))]),
        (zoo.defaults, [("a", "1")], b'{"b":"x"}', [("int_type", ("body", "b"))]),
        (zoo.bounded, [("value", "11")], None, [("less_than_equal", ("query", "value"))]),
        (zoo.uuid, [("value", "x")], None, [("uuid_parsing", ("query", "value"))]),
        (zoo.model, [("value", "x")], None, [("dict_type", ("query", "value"))]),
        (zoo.integer, [("value", "1")], b"[", [("json_invalid", ("body", 1))]),
        (zoo.integer, [("value", "1")], b"[]", [("dict_type", ("body",))]),
    ],
)
def test_wrong_query_parameters_are_refused(
    fn: Callable[..., Any], pairs: list[tuple[str, str]], body: bytes | None, expected: Any
) -> None:
    assert refusal(lambda: arguments(fn).from_query(pairs, body)) == expected


@hypothesis.settings(deadline=None)
@hypothesis.given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789ae.-\\u value', max_size=40).map(str.encode))
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    for check in (EVERYTHING.from_body, EVERYTHING.check_call):
        try:
            check(raw)
        except InvalidArguments as error:
            json.dumps(error.errors)


EVERYTHING = arguments(zoo.untyped_everything)


def test_a_required_parameter_after_one_with_a_default_is_not_forgotten() -> None:
    signature = describe(zoo.positional_only)  # Python does not allow that order, a stranger's signature may have it
    first, *others = signature.parameters
    odd = msgspec.structs.replace(signature, parameters=(others[0], first, others[1]))
    assert ("missing", ("body", "a")) in refusal(lambda: Arguments(odd, "t").check_call(b"[[1],{}]"))


def test_star_arguments_that_are_no_list_are_refused_though_they_are_empty() -> None:
    def takes_more(a: int, *rest: float) -> None: ...

    for empty in ("{}", '""', "0", "false", "null"):
        with pytest.raises(InvalidArguments):
            arguments(takes_more).from_body(f'{{"a": 1, "rest": {empty}}}'.encode())
    assert arguments(takes_more).from_body(b'{"a": 1, "rest": []}')
