"""The JSON Schema in docs/brokers.md and the manager give the same answers."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from easyjobs.domain.job import JobQuery
from easyjobs.domain.quarantine import QuarantineQuery
from easyjobs.services.inbox import Letter
from tests.acceptance.readme import blocks
from tests.processes import ROOT
from tests.services.conftest import Parts

JOB = {"name": "work", "args": [1]}
GOOD: list[Any] = [
    JOB,
    {"name": "work", "kwargs": {"n": 1}, "args": None},
    {"namespace": "Q", "name": "work", "args": [1], "kwargs": {}},
    {"namespace": None, "name": "work", "args": [1], "kwargs": None},
    {"job": JOB},
    {"job": JOB, "namespace": "Q"},
    [JOB, {"job": JOB}],
    {**JOB, "id": "a"},
    {**JOB, "key": "ü" * 255},
    {**JOB, "key": "a", "id": "b"},
    {**JOB, "reply_to": "answers"},
    {**JOB, "delay": 0},
    {**JOB, "delay": 1.5},
    {**JOB, "delay": 316224000},
    {**JOB, "at": "2027-01-31T09:00:00+01:00"},
    {**JOB, "at": "2027-01-31T09:00:00Z"},
    {**JOB, "priority": -1_000_000},
]
BAD: list[Any] = [
    1, None, "work", [], [[]], {}, {"args": [1]},
    {**JOB, "name": ""}, {**JOB, "name": 1}, {**JOB, "name": "x" * 201},
    {**JOB, "args": {}}, {**JOB, "args": "1"}, {**JOB, "kwargs": []},
    {**JOB, "namespace": ""}, {**JOB, "namespace": 7},
    {**JOB, "queue": "Q"}, {"job": JOB, "key": "a"}, {"job": [JOB]}, {"job": None},
    {**JOB, "id": ""}, {**JOB, "id": 5}, {**JOB, "key": "k" * 256}, {**JOB, "key": None},
    {**JOB, "reply_to": ""}, {**JOB, "reply_to": ["q"]}, {**JOB, "reply_to": "q" * 256},
    {**JOB, "delay": -1}, {**JOB, "delay": "5"}, {**JOB, "delay": 316224001}, {**JOB, "delay": True},
    {**JOB, "at": "tomorrow"}, {**JOB, "at": 5}, {**JOB, "delay": 1, "at": "2027-01-31T09:00:00Z"},
    {**JOB, "priority": 1.5}, {**JOB, "priority": 1_000_001}, {**JOB, "priority": "high"},
    [JOB, {"args": [1]}],
]  # fmt: skip


def schema() -> dict[str, Any]:
    found = [json.loads(content) for language, content in blocks((ROOT / "docs" / "brokers.md").read_text()) if language == "json"]
    [one] = [each for each in found if "$schema" in each]
    return dict(one)


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.Draft202012Validator(schema(), validate_formats=True)


@pytest.mark.parametrize("message", GOOD, ids=lambda message: json.dumps(message)[:60])
async def test_what_the_schema_allows_becomes_a_job(parts: Parts, validator: Any, message: Any) -> None:
    assert validator.is_valid(message)
    await parts.task()
    await parts.inbox.take([Letter("b", "Q", "m", json.dumps(message).encode())])
    assert [row.detail for row in await parts.store.quarantined(QuarantineQuery())] == []
    assert len(await parts.store.page(JobQuery())) == (len(message) if isinstance(message, list) else 1)


@pytest.mark.parametrize("message", BAD, ids=lambda message: json.dumps(message)[:60])
async def test_what_the_schema_refuses_goes_into_quarantine(parts: Parts, validator: Any, message: Any) -> None:
    assert not validator.is_valid(message)
    await parts.task()
    await parts.inbox.take([Letter("b", "Q", "m", json.dumps(message).encode())])
    assert await parts.store.page(JobQuery()) == []
    [row] = await parts.store.quarantined(QuarantineQuery())
    assert row.reason in ("bad_format", "invalid_arguments")


def test_the_schema_names_every_field(validator: Any) -> None:
    from easyjobs.domain.message import OPTIONS

    assert set(schema()["$defs"]["job"]["properties"]) == OPTIONS | {"namespace", "name", "args", "kwargs"}
