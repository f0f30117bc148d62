"""Schedules over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from easyjobs.http.auth import Scope, make_token
from easyjobs.http.schemas import REF
from tests.http.conftest import SECRET, Manager, client_of

URL = "/jobs/api/v1/schedules"
SUNDAY = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


async def report(day: str, copies: int = 1) -> None: ...


@pytest.fixture(autouse=True)
async def offered(manager: Manager) -> None:
    manager.clock.set_system_clock(SUNDAY.timestamp() - manager.clock.now() / 1_000_000)
    manager.options = {
        "schedule": ["30 6 * * 1-5", "@monthly"],
        "timezone": "Europe/Berlin",
        "default_args": [["monday"], {"copies": 2}],
        "catch_up": "all",
        "catch_up_window_us": 90_000_000,
        "overlap": "skip",
    }
    await manager.offer(report, "mail")
    manager.options = {"schedule": ["* * * * *"], "default_args": [["x"], {}]}
    await manager.offer(report)
    manager.options = {}


async def items(http: httpx2.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    answer = await http.get(URL + query)
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_schedules_are_listed_as_their_schema_says(manager: Manager, http: httpx2.AsyncClient) -> None:
    first, second, third = await items(http)
    assert first == {
        "id": 1,
        "namespace": "mail",
        "name": "report",
        "expression": "30 6 * * 1-5",
        "timezone": "Europe/Berlin",
        "args": ["monday"],
        "kwargs": {"copies": 2},
        "catch_up": "all",
        "catch_up_window_s": 90.0,
        "overlap": "skip",
        "workers": 1,
        "paused_at": None,
        "next_at": "2026-03-02T05:30:00.000000Z",
        "last_tick_at": None,
        "last_job_id": None,
    }
    assert (second["expression"], third["namespace"]) == ("@monthly", "DEFAULT")
    assert (await http.get(f"{URL}/1")).json() == first
    document = manager.app.openapi()
    schema = document["paths"][URL]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"] == f"{REF}SchedulePage"
    jsonschema_rs.validator_for({**schema, "components": document["components"]}).validate({"items": [first, second, third]})


async def test_schedules_can_be_asked_for_by_queue_and_task(http: httpx2.AsyncClient) -> None:
    assert [one["id"] for one in await items(http, "?namespace=mail")] == [1, 2]
    assert [one["id"] for one in await items(http, "?name=report")] == [1, 2, 3]
    assert await items(http, "?namespace=mail&name=other") == []


async def test_a_paused_schedule_stays_paused_when_its_task_is_offered_again(manager: Manager, http: httpx2.AsyncClient) -> None:
    paused = (await http.post(f"{URL}/3/pause")).json()
    assert (paused["id"], paused["next_at"], paused["paused_at"]) == (3, None, "2026-03-01T12:00:30.000000Z")
    manager.options = {"schedule": ["*/5 * * * *"], "default_args": [["x"], {}]}
    await manager.offer(report)
    now = (await http.get(f"{URL}/3")).json()
    assert (now["expression"], now["paused_at"]) == ("*/5 * * * *", paused["paused_at"])
    resumed = (await http.post(f"{URL}/3/resume")).json()
    assert (resumed["paused_at"], resumed["next_at"]) == (None, "2026-03-01T12:05:00.000000Z")


async def test_run_now_answers_a_job_that_is_there(manager: Manager, http: httpx2.AsyncClient) -> None:
    answer = await http.post(f"{URL}/1/run")
    assert answer.status_code == 202
    job_id = answer.json()["request_id"]
    assert answer.headers["location"] == f"/jobs/api/v1/jobs/{job_id}"
    job = (await http.get(answer.headers["location"])).json()
    assert (job["namespace"], job["name"], job["args"], job["kwargs"], job["status"]) == (
        "mail",
        "report",
        ["monday"],
        {"copies": 2},
        "queued",
    )
    after = (await http.get(f"{URL}/1")).json()
    assert (after["last_job_id"], after["last_tick_at"], after["next_at"]) == (job_id, None, "2026-03-02T05:30:00.000000Z")


async def test_a_tick_is_shown_with_its_job(manager: Manager, http: httpx2.AsyncClient) -> None:
    manager.clock.advance(30)
    await manager.services.scheduler.run_once()
    after = (await http.get(f"{URL}/3")).json()
    assert (after["last_tick_at"], after["next_at"]) == ("2026-03-01T12:01:00.000000Z", "2026-03-01T12:02:00.000000Z")
    job = (await http.get(f"/jobs/api/v1/jobs/{after['last_job_id']}")).json()
    assert (job["name"], job["run_at"]) == ("report", "2026-03-01T12:01:00.000000Z")


@pytest.mark.parametrize(("method", "path"), [("GET", "/99"), ("POST", "/99/pause"), ("POST", "/99/resume"), ("POST", "/99/run")])
async def test_a_schedule_that_is_not_there_is_a_problem(http: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, URL + path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "No such schedule"
    assert "no schedule 99" in answer.json()["detail"]


@pytest.mark.parametrize("id", ["x", "0", "-1", str(2**63), "1.5"])
async def test_what_is_no_id_is_refused(http: httpx2.AsyncClient, id: str) -> None:
    assert (await http.get(f"{URL}/{id}")).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "", Scope.READ),
        ("GET", "/1", Scope.READ),
        ("POST", "/1/pause", Scope.OPERATE),
        ("POST", "/1/resume", Scope.OPERATE),
        ("POST", "/1/run", Scope.OPERATE),
    ],
)
async def test_each_route_asks_for_its_scope(manager: Manager, method: str, path: str, scope: Scope) -> None:
    async with client_of(manager.app, ("203.0.113.5", 4000), "http://jobs.example") as elsewhere:
        assert (await elsewhere.request(method, URL + path)).status_code == 401
        for held in (Scope.SUBMIT, Scope.READ, Scope.OPERATE):
            token = make_token(SECRET, [held], 0, "t")
            answer = await elsewhere.request(method, URL + path, headers={"Authorization": f"Bearer {token}"})
            allowed = held is Scope.OPERATE or held is scope
            assert (answer.status_code < 300) == allowed, (held, answer.text)
