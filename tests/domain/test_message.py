"""The job format that producers send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from easyjobs.domain import job
from easyjobs.domain.message import Call, parse, parse_lines
from easyjobs.errors import InvalidArguments, PayloadTooLarge

ONE = {"namespace": "Q", "name": "f", "args": [1], "kwargs": {"a": 2}}


def refusal(raw: Any) -> list[tuple[str, tuple[Any, ...]]]:
    with pytest.raises(InvalidArguments) as caught:
        parse(raw)
    return [(error["type"], tuple(error["loc"])) for error in caught.value.errors]


@pytest.mark.parametrize("wrap", [json.dumps, lambda x: json.dumps(x).encode(), lambda x: x], ids=["text", "bytes", "object"])
@pytest.mark.parametrize("message", [ONE, {"job": ONE}, {"namespace": "Q", "job": {"name": "f", "args": [1], "kwargs": {"a": 2}}}])
def test_one_job_may_be_wrapped_and_in_an_array(message: Any, wrap: Any) -> None:
    if isinstance(wrap(message), str):
        message, wrap = json.loads(wrap(message)), lambda x: bytearray(json.dumps(x).encode())
    expected = Call("Q", "f", [1], {"a": 2})
    assert parse(wrap(message)) == [expected]
    assert parse(wrap([message, message])) == [expected] * 2


def test_all_but_the_name_may_be_left_out() -> None:
    assert parse(b'{"name":"f"}') == [Call(None, "f", [], {})]
    assert parse(b'[{"name":"f"}]') == [Call(None, "f", [], {})]
    assert parse(b'{"name":"f","args":null,"kwargs":null,"namespace":null}') == [Call(None, "f", [], {})]


def test_lines_are_jobs_and_blank_lines_are_not() -> None:
    assert [call.name for call in parse_lines(b'{"name":"a"}\r\n\n{"job":{"name":"b"}}\n')] == ["a", "b"]
    with pytest.raises(InvalidArguments) as caught:
        parse_lines(b'{"name":"a"}\n{"name":')
    assert caught.value.errors[0]["loc"][:2] == ("body", 1)


def test_known_options_are_handed_on() -> None:
    options = {"key": "k", "delay": 1.5, "priority": 2, "reply_to": "r", "id": "i"}
    assert parse({**ONE, **options})[0].options == options
    assert parse([{**ONE, **options}, ONE])[0].options == options


@pytest.mark.parametrize(
    ("message", "type_", "loc"),
    [
        ({}, "missing", ("body", "name")),
        ({"name": 1}, "string_type", ("body", "name")),
        ({"name": ""}, "string_type", ("body", "name")),
        ({"name": "x" * 201}, "string_type", ("body", "name")),
        ({**ONE, "namespace": 5}, "string_type", ("body", "namespace")),
        ({**ONE, "args": {}}, "list_type", ("body", "args")),
        ({**ONE, "kwargs": []}, "dict_type", ("body", "kwargs")),
        ({**ONE, "nmae": 1}, "extra_forbidden", ("body", "nmae")),
        ({"job": ONE, "key": 1}, "extra_forbidden", ("body", "key")),
        ({"job": {**ONE, "x": 1}}, "extra_forbidden", ("body", "job", "x")),
        ({"job": []}, "dict_type", ("body", "job")),
        ("f", "dict_type", ("body",)),
    ],
)
def test_what_is_wrong_is_named_with_its_place(message: Any, type_: str, loc: tuple[Any, ...]) -> None:
    assert refusal(json.dumps(message).encode()) == [(type_, loc)]
    assert refusal(json.dumps([ONE, message]).encode()) == [(type_, ("body", 1, *loc[1:]))]


def test_malformed_deep_empty_and_too_many_are_refused() -> None:
    assert refusal(b'[{"name":"f"') == [("json_invalid", ("body", 12))]
    assert refusal(b"[]") == [("too_short", ("body",))]
    assert refusal(b"[" * 100_000) == [("recursion_limit", ("body",))]
    assert refusal(b'[{"name":"f","args":' + b"[" * 40 + b"]" * 40 + b"}]") == [("recursion_limit", ("body",))]
    assert refusal([ONE] * (job.MAX_BULK_JOBS + 1)) == [("too_long", ("body",))]
    assert refusal(json.dumps([{"name": "f"}] * (job.MAX_BULK_JOBS + 1)).encode()) == [("too_long", ("body",))]
    assert len(parse(json.dumps([{"name": "f"}] * job.MAX_BULK_JOBS).encode())) == job.MAX_BULK_JOBS
    for read in (parse, parse_lines):
        with pytest.raises(PayloadTooLarge):
            read(b" " * (job.MAX_BULK_BYTES + 1))
