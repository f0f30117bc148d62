"""Events, logs, progress and failed attempts of a job over HTTP. Streams that stay open are tried with real processes, in acceptance."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from easyjobs.domain.job import ErrorInfo, NewSession, Outcome, Report, Reports, Want
from easyjobs.domain.seeing import Line, Mark, Notes
from easyjobs.http import seeing as module
from easyjobs.services.dispatcher import Session
from tests.http.conftest import Manager, client_of
from tests.services.conftest import FakePeer

NOBODY = "00000000-0000-0000-0000-000000000000"
NOW = "2023-11-14T22:13:20.000000Z"


def work(n: int = 1) -> int:
    return n


@pytest.fixture
async def manager(manager: Manager) -> Manager:
    manager.options = {"max_retries": 5}
    await manager.offer(work)
    [manager.session] = await manager.store.begin([NewSession(b"s" * 16, "tester")])
    return manager


async def submit(http: httpx2.AsyncClient) -> str:
    return str((await http.post("/DEFAULT/task/work", json={})).json()["request_id"])


async def claim(manager: Manager) -> None:
    lanes = tuple(task.lane for task in manager.services.catalogue.visible())
    await manager.store.claim([Want(manager.session, lanes, 1)])


async def shows(manager: Manager, count: int, *, attempt: int = 1, mark: Mark | None = None, first: int = 1) -> None:
    at = manager.clock.now()
    lines = [Line(1, attempt, number, at, 30, "app", f"line\n{number}") for number in range(first, first + count)]
    await manager.store.note([Notes(manager.session, [mark] if mark else [], lines)])


async def ends(manager: Manager, attempt: int, outcome: Outcome = Outcome.SUCCEEDED, body: bytes = b"1", retry: bool = False) -> None:
    await manager.store.finish([Reports(manager.session, [Report(1, attempt, outcome, 0, body, retry)])])


def events_of(text: str) -> list[tuple[str, str, Any]]:
    """(event, id, data) of each event, comments and `retry` left out."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "event" in fields:
            found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


async def test_the_events_of_a_job_that_has_ended(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    await claim(manager)
    await shows(manager, 2, mark=Mark(1, 1, 3, 4, "m"))
    await ends(manager, 1)
    answer = await http.get(f"/jobs/api/v1/jobs/{id}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.startswith("retry: ")
    line = {"attempt": 1, "at": NOW, "level": "WARNING", "logger": "app"}
    assert events_of(answer.text) == [
        ("log", "1.1", line | {"number": 1, "text": "line\n1"}),
        ("log", "1.2", line | {"number": 2, "text": "line\n2"}),
        ("progress", "1.2", {"attempt": 1, "done": 3, "total": 4, "message": "m", "at": NOW}),
        ("state", "1.2.end", {"status": "succeeded", "attempt": 1}),
    ]


async def test_who_comes_back_gets_the_lines_after_the_last_that_it_has(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    await claim(manager)
    await shows(manager, 3)
    await ends(manager, 1)
    answer = await http.get(f"/jobs/api/v1/jobs/{id}/events", headers={"Last-Event-ID": "1.2"})
    assert [(name, place) for name, place, _ in events_of(answer.text)] == [("log", "1.3"), ("state", "1.3.end")]
    assert (await http.get(f"/jobs/api/v1/jobs/{id}/events", headers={"Last-Event-ID": "1.3.end"})).status_code == 204


async def test_the_end_of_an_earlier_round_ends_no_later_one(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    manager.services.events.close()  # else the stream would stay open
    answer = await http.get(f"/jobs/api/v1/jobs/{id}/events", headers={"Last-Event-ID": "1.3.end"})
    assert events_of(answer.text) == [("state", "1.3", {"status": "queued", "attempt": 0})]


async def test_a_stream_ends_at_once_when_the_manager_closes(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    stream = asyncio.ensure_future(http.get(f"/jobs/api/v1/jobs/{id}/events"))
    async with asyncio.timeout(10):
        while not manager.services.events.followed:
            await manager.store.counts()
        manager.services.events.close()
        assert [name for name, _, _ in events_of((await stream).text)] == ["state"]
    assert manager.services.events.followed.here == {}


async def test_a_stream_that_is_given_up_leaves_nothing_behind(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    stream = asyncio.ensure_future(http.get(f"/jobs/api/v1/jobs/{id}/events"))
    async with asyncio.timeout(10):
        while not manager.services.events.followed:
            await manager.store.counts()
        stream.cancel()
        while manager.services.events.followed:
            await manager.store.counts()


@pytest.mark.parametrize("what", ["events", "logs", "explain"])
async def test_a_job_that_is_not_there(manager: Manager, http: httpx2.AsyncClient, what: str) -> None:
    for id in (NOBODY, "nothing"):
        answer = await http.get(f"/jobs/api/v1/jobs/{id}/{what}")
        assert (answer.status_code, answer.json()["title"]) == (404, "No such job")


async def test_a_place_that_is_none_is_refused(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    answer = await http.get(f"/jobs/api/v1/jobs/{id}/events", headers={"Last-Event-ID": "no place"})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["header", "last-event-id"])
    answer = await http.get(f"/jobs/api/v1/jobs/{id}/logs?after=x")
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "after"])


@pytest.mark.parametrize("what", ["events", "logs", "explain"])
async def test_others_need_a_token_to_look(manager: Manager, what: str) -> None:
    async with client_of(manager.app, ("10.0.0.1", 5)) as far:
        assert (await far.get(f"/jobs/api/v1/jobs/{NOBODY}/{what}")).status_code == 401


async def test_the_log_comes_in_pages(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    assert (await http.get(f"/jobs/api/v1/jobs/{id}/logs")).json() == {
        "items": [],
        "next_cursor": None,
        "is_more": False,
        "lines": 0,
        "dropped": 0,
    }
    await claim(manager)
    await shows(manager, 5)
    first = (await http.get(f"/jobs/api/v1/jobs/{id}/logs?limit=3")).json()
    assert [line["number"] for line in first["items"]] == [1, 2, 3]
    assert (first["next_cursor"], first["is_more"], first["lines"]) == ("1.3", True, 5)
    rest = (await http.get(f"/jobs/api/v1/jobs/{id}/logs?limit=3&after=1.3")).json()
    assert ([line["number"] for line in rest["items"]], rest["is_more"]) == ([4, 5], False)
    last = (await http.get(f"/jobs/api/v1/jobs/{id}/logs?after=1.5")).json()
    assert (last["items"], last["next_cursor"]) == ([], "1.5"), "to be asked again later"
    assert (await http.get(f"/jobs/api/v1/jobs/{id}/logs?limit={module.MAX_LINES + 1}")).status_code == 422


async def test_a_job_in_full_shows_its_progress_and_each_failed_attempt(manager: Manager, http: httpx2.AsyncClient) -> None:
    id = await submit(http)
    job = (await http.get(f"/jobs/api/v1/jobs/{id}")).json()
    assert (job["progress"], job["attempts"], job["log_lines"], job["log_lines_dropped"]) == (None, [], 0, 0)
    for attempt in (1, 2):
        await claim(manager)
        error = json.dumps({"type": "ValueError", "message": str(attempt)}).encode()
        await ends(manager, attempt, Outcome.FAILED, error, retry=True)
    await claim(manager)
    await shows(manager, 2, attempt=3, mark=Mark(1, 3, 1))
    job = (await http.get(f"/jobs/api/v1/jobs/{id}")).json()
    assert [(one["attempt"], one["worker"], one["error"]["message"]) for one in job["attempts"]] == [(1, "tester", "1"), (2, "tester", "2")]
    assert job["attempts"][0]["failed_at"] == NOW
    assert job["progress"] == {"attempt": 3, "done": 1, "total": None, "message": "", "at": NOW}
    assert job["log_lines"] == 2
    assert ErrorInfo(**job["attempts"][1]["error"]).type == "ValueError"


async def explanation(http: httpx2.AsyncClient, id: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/jobs/api/v1/jobs/{id}/explain")
    assert answer.status_code == 200
    reasons: list[dict[str, Any]] = answer.json()["reasons"]
    return reasons


async def test_a_job_explains_why_it_does_not_run(manager: Manager, http: httpx2.AsyncClient) -> None:
    first, second = await submit(http), await submit(http)
    [reason] = await explanation(http, first)
    assert reason["code"] == "no_worker"
    assert reason["last_offered_at"] == NOW
    [session] = await manager.store.begin([NewSession(b"w" * 16, "w1")])
    peer = FakePeer()
    worker = Session(session, b"w" * 16, "w1", "DEFAULT", 1, peer, 0)
    dispatcher = manager.services.dispatcher
    dispatcher.attach(worker)
    dispatcher.offered(worker, manager.services.catalogue.lanes_of(None, None))
    dispatcher.credit(worker, 1)
    while not peer.got:
        await manager.store.counts()
    assert (await explanation(http, first))[0] == {"code": "running", "text": "attempt 1 runs on w1", "attempt": 1, "worker": "w1"}
    [busy] = await explanation(http, second)
    assert (busy["code"], busy["workers"], busy["slots"]) == ("slots_busy", ["w1"], 1)
    third = await submit(http)
    assert [reason["code"] for reason in await explanation(http, third)] == ["slots_busy", "behind_others"]
    manager.clock.advance(25)
    dispatcher.is_paused = True
    assert [reason["code"] for reason in await explanation(http, second)] == ["manager_paused", "worker_silent"]
    dispatcher.detach(worker)
    [running] = await explanation(http, first)
    assert (running["code"], running["worker"], running["connected"]) == ("running", "w1", False)


async def test_a_paused_queue_and_the_jobs_before_are_named(manager: Manager, http: httpx2.AsyncClient) -> None:
    manager.options = {"run_before": ["work"]}

    def after(n: int = 1) -> int:
        return n

    await manager.offer(after)
    id = str((await http.post("/DEFAULT/task/after", json={})).json()["request_id"])
    await manager.services.control.pause("DEFAULT", is_paused=True)
    waits, paused, no_worker = await explanation(http, id)
    assert (waits["code"], waits["text"]) == ("waits_for_jobs", "it waits for DEFAULT/work (queued)")
    assert [(job["task"], job["status"]) for job in waits["jobs"]] == [("DEFAULT/work", "queued")]
    assert (paused["code"], paused["queue"]) == ("queue_paused", "DEFAULT")
    assert no_worker["code"] == "no_worker"
    [first, *_] = await explanation(http, waits["jobs"][0]["id"])
    assert first["code"] == "queue_paused"


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (TRACE, TRACE),
        (TRACE.replace("00-", "cc-", 1) + "-what-comes-later", TRACE.replace("00-", "cc-", 1)),
        (TRACE.upper(), None),
        (TRACE + "x", None),
        (TRACE[:-1], None),
        ("ff" + TRACE[2:], None),
        ("00-" + "0" * 32 + TRACE[35:], None),
        ("é", None),
        (None, None),
    ],
)
async def test_the_trace_of_a_submit_is_kept_if_it_can_be_read(
    manager: Manager, http: httpx2.AsyncClient, header: str | None, kept: str | None
) -> None:
    headers = {} if header is None else {"traceparent": header.encode("latin-1")}
    one = (await http.post("/DEFAULT/task/work", json={}, headers=headers)).json()["request_id"]
    many = (await http.post("/jobs/api/v1/jobs", json=[{"name": "work"}] * 2, headers=headers)).json()["request_ids"]
    for id in (one, *many):
        assert (await http.get(f"/jobs/api/v1/jobs/{id}")).json()["traceparent"] == kept


async def test_the_routes_are_in_openapi(manager: Manager) -> None:
    paths = manager.app.openapi()["paths"]
    events = paths["/jobs/api/v1/jobs/{id}/events"]["get"]
    assert list(events["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {"204", "401", "404"} <= events["responses"].keys()
    logs = paths["/jobs/api/v1/jobs/{id}/logs"]["get"]
    assert logs["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("EasyJobsLogPage")
    explain = paths["/jobs/api/v1/jobs/{id}/explain"]["get"]
    assert explain["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("EasyJobsExplanation")
