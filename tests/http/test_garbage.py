"""Whatever comes in, the answer is a clear one: never a 500, and never a job that was not meant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.http.conftest import Manager, build, client_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["a", "name", "args", "job"]), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = (
    st.sampled_from([b'{"a": 1}', b'[{"name": "f", "args": [1]}]', b'{"name": "f", "kwargs": {"a": 1}}', b""])
    | st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40).map(str.strip)
headers = st.dictionaries(
    st.sampled_from(
        ["Idempotency-Key", "Prefer", "Authorization", "Origin", "Content-Type", "Content-Encoding", "Sec-Fetch-Site", "Forwarded"]
    ),
    header_values | st.sampled_from(["wait=0", "Bearer ej1.submit.0..x", "application/x-ndjson", "null", "identity"]),
    max_size=3,
)
queries = st.text(st.sampled_from("ab=&%+;#1x\u00e9"), max_size=20)
paths = st.sampled_from(["/DEFAULT/task/f", "/task/f", "/task/%00", "/%2e%2e/task/f", "/DEFAULT/task/" + "x" * 300, "/jobs/api/v1/jobs"])


def f(a: int, b: list[str] | None = None) -> None: ...


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[asyncio.Runner, Manager]]:
    """One manager for all examples: mounting one costs more than hundreds of requests."""
    with asyncio.Runner() as runner:

        async def begin() -> Manager:
            clock = FakeClock()
            store = MemoryStore(clock=clock)
            await store.open()
            manager = build(FastAPI(), store, clock)
            await manager.offer(f)
            return manager

        manager = runner.run(begin())
        yield runner, manager
        runner.run(manager.store.close())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(st.tuples(paths, queries, headers, bodies), min_size=1, max_size=8))
def test_no_request_makes_the_manager_stumble(
    world: tuple[asyncio.Runner, Manager], requests: list[tuple[str, str, dict[str, str], bytes]]
) -> None:
    runner, manager = world

    async def play() -> None:
        accepted, before = 0, sum((await manager.store.counts()).values())
        async with client_of(manager.app) as http:
            for path, query, fields, body in requests:
                raw: Any = {name.encode(): value.encode("latin-1") for name, value in fields.items()}
                answer = await http.post(f"{path}?{query}", content=body, headers=raw)
                assert answer.status_code in {200, 202, 401, 403, 404, 415, 422}, answer.text
                if answer.status_code in (200, 202):
                    accepted += len(answer.json().get("request_ids", [1]))
                else:
                    assert answer.json()["detail"]
            stored = sum((await manager.store.counts()).values()) - before
            assert stored <= accepted  # a repeated key answers the same job
            assert (await http.get("/job/view/queued?limit=5")).status_code == 200

    runner.run(play())
