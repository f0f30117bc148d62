from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest

from easyjobs.domain.job import MAX_BULK_BYTES, MAX_BULK_JOBS, ErrorInfo
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import StoreError, StoreFull
from easyjobs.http import jobs as module
from easyjobs.http import views
from easyjobs.services.dispatcher import Session
from tests.http.conftest import Manager

NOBODY = "00000000-0000-0000-0000-000000000000"


async def work_a(a: int, b: int = 2, *, c: str = "x") -> dict[str, int]:
    """Add things."""
    return {"sum": a + b}


@pytest.fixture
async def manager(manager: Manager) -> Manager:
    await manager.offer(work_a)
    return manager


async def submit(http: httpx2.AsyncClient, **args: object) -> str:
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 1} | args)
    return str(answer.json()["request_id"])


# --- submit many ----------------------------------------------------------------------------------------------------------------

JOB = {"namespace": "DEFAULT", "name": "work_a", "args": [1], "kwargs": {"c": "y"}}


@pytest.mark.parametrize(
    "body", [JOB, {"job": JOB}, {"namespace": "DEFAULT", "job": {"name": "work_a", "args": [1], "kwargs": {"c": "y"}}}, [JOB]]
)
async def test_one_job_in_each_of_its_forms(manager: Manager, http: httpx2.AsyncClient, body: object) -> None:
    answer = await http.post("/jobs/api/v1/jobs", json=body)
    assert answer.status_code == 202
    [request_id] = answer.json()["request_ids"]
    assert answer.headers["location"] == f"/jobs/api/v1/jobs/{request_id}"
    job = (await http.get(answer.headers["location"])).json()
    assert (job["args"], job["kwargs"]) == ([1], {"c": "y"})


async def test_an_array_and_lines_are_stored_in_order(manager: Manager, http: httpx2.AsyncClient) -> None:
    many = [{"name": "work_a", "args": [number]} for number in range(5)]
    for content, kind in (
        (json.dumps(many), "application/json"),
        ("\n".join(map(json.dumps, many)) + "\n", "application/x-ndjson; charset=utf-8"),
    ):
        answer = await http.post("/jobs/api/v1/jobs", content=content.encode(), headers={"Content-Type": kind})
        assert answer.status_code == 202
        assert "location" not in answer.headers
        ids = answer.json()["request_ids"]
        args = [(await http.get(f"/jobs/api/v1/jobs/{one}")).json()["args"] for one in ids]
        assert args == [[number] for number in range(5)]


@pytest.mark.parametrize(
    ("body", "status", "loc"),
    [
        ([JOB, {"name": "work_a", "args": ["x"]}], 422, ["body", 1, "a"]),
        ({"name": "work_a", "args": ["x"]}, 422, ["body", "a"]),
        ([JOB, {"args": [1]}], 422, ["body", 1, "name"]),
        ([JOB, {"name": "work_a", "args": [1], "priority": "high"}], 422, ["body", 1, "priority"]),
        ({"name": "work_a", "args": [1], "priority": True}, 422, ["body", "priority"]),
        ({"name": "work_a", "args": [1], "delay": -3}, 422, ["body", "delay"]),
        ({"name": "work_a", "args": [1], "delay": "soon"}, 422, ["body", "delay"]),
        ({"name": "work_a", "args": [1], "at": "2027-01-31T09:00:00"}, 422, ["body", "at"]),
        ({"name": "work_a", "args": [1], "at": 5}, 422, ["body", "at"]),
        ({"name": "work_a", "args": [1], "at": "2027-01-31T09:00:00Z", "delay": 1}, 422, ["body", "at"]),
        ({"name": "work_a", "args": [1], "reply_to": "q"}, 422, ["body", "reply_to"]),
        ([], 422, ["body"]),
        ("text", 422, ["body"]),
        ([JOB] * (MAX_BULK_JOBS + 1), 422, ["body"]),
    ],
)  # fmt: skip
async def test_all_or_nothing_and_the_error_says_which(
    manager: Manager, http: httpx2.AsyncClient, body: object, status: int, loc: list[object]
) -> None:
    answer = await http.post("/jobs/api/v1/jobs", json=body)
    assert answer.status_code == status
    assert answer.json()["detail"][0]["loc"] == loc
    assert await manager.store.counts() == {}


async def test_a_job_may_ask_for_a_priority_and_a_time(manager: Manager, http: httpx2.AsyncClient) -> None:
    at = views.instant(manager.clock.now() + 7_200_000_000)
    asked = [{"priority": 3, "delay": 60}, {"at": at}, {"priority": 0, "delay": 0}, {"at": "2020-01-01T00:00:00+01:00"}]
    answer = await http.post("/jobs/api/v1/jobs", json=[JOB | options for options in asked])
    assert answer.status_code == 202
    jobs = [(await http.get(f"/jobs/api/v1/jobs/{id}")).json() for id in answer.json()["request_ids"]]
    assert [(job["status"], job["priority"]) for job in jobs] == [("scheduled", 3), ("scheduled", 0), ("queued", 0), ("queued", 0)]
    assert jobs[0]["run_at"] == views.instant(manager.clock.now() + 60_000_000)
    assert jobs[1]["run_at"] == at


async def test_a_bad_line_is_named_by_its_number(manager: Manager, http: httpx2.AsyncClient) -> None:
    for number in (0, 1):
        lines = ['{"name": "work_a", "args": [1]}'] * 2
        lines[number] = '{"name": "work_a", "args": ["x"]}'
        answer = await http.post("/jobs/api/v1/jobs", content="\n".join(lines).encode(), headers={"Content-Type": "application/x-ndjson"})
        assert answer.json()["detail"][0]["loc"] == ["body", number, "a"]


async def test_an_unknown_task_among_many_gets_404(manager: Manager, http: httpx2.AsyncClient) -> None:
    answer = await http.post("/jobs/api/v1/jobs", json=[JOB, {"name": "work_b", "args": []}])
    assert answer.status_code == 404
    assert answer.json()["near"] == ["DEFAULT/work_a"]
    assert await manager.store.counts() == {}


async def test_a_bulk_request_over_its_limit_gets_413(manager: Manager, http: httpx2.AsyncClient) -> None:
    answer = await http.post("/jobs/api/v1/jobs", content=b" " * (MAX_BULK_BYTES + 1))
    assert answer.status_code == 413


async def test_a_key_covers_the_whole_body(manager: Manager, http: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "batch-1"}
    first = await http.post("/jobs/api/v1/jobs", json=[JOB, JOB], headers=headers)
    again = await http.post("/jobs/api/v1/jobs", json=[JOB, JOB], headers=headers)
    assert first.json() == again.json()
    assert (await http.post("/jobs/api/v1/jobs", json=[JOB], headers=headers)).status_code == 422
    assert sum((await manager.store.counts()).values()) == 2


# --- look ----------------------------------------------------------------------------------------------------------------------


async def test_a_job_is_shown_with_all_that_is_known(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    job = (await http.get(f"/jobs/api/v1/jobs/{request_id}")).json()
    assert job["created_at"] == "2023-11-14T22:13:20.000000Z"
    assert (job["id"], job["namespace"], job["name"], job["status"], job["attempt"]) == (request_id, "DEFAULT", "work_a", "queued", 0)
    assert (job["args"], job["kwargs"], job["result"], job["error"], job["worker"]) == ([], {"a": 1}, None, None, None)
    await manager.end(request_id, {"sum": 3})
    job = (await http.get(f"/jobs/api/v1/jobs/{request_id}")).json()
    assert (job["status"], job["attempt"], job["worker"], job["result"], job["result_removed"]) == (
        "succeeded",
        1,
        "tester",
        {"sum": 3},
        False,
    )
    assert job["started_at"] is not None
    assert job["finished_at"] is not None


async def test_a_failure_is_shown_as_data(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    await manager.end(request_id, error=ErrorInfo("builtins.ValueError", "no", "Traceback …"))
    job = (await http.get(f"/jobs/api/v1/jobs/{request_id}")).json()
    assert job["status"] == "failed"
    assert job["error"] == {"type": "builtins.ValueError", "message": "no", "traceback": "Traceback …", "kind": "exception"}


@pytest.mark.parametrize("result", [None, 0, False, "", "failed", [], {}, {"a": [1, {"b": None}]}, "ü \u2028 \x00 😀"])
async def test_results_of_every_kind_are_shown_as_they_are(manager: Manager, http: httpx2.AsyncClient, result: object) -> None:
    request_id = await submit(http)
    await manager.end(request_id, result)
    assert (await http.get(f"/jobs/api/v1/jobs/{request_id}")).json()["result"] == result
    assert (await http.get("/job/view/result", params={"job_id": request_id})).json()["results"] == result
    pulled = await http.get("/job/pull/result", params={"request_id": request_id})
    assert (pulled.status_code, pulled.json()) == (200, result)


@pytest.mark.parametrize("id", [NOBODY, "nonsense", "x" * 5000])
async def test_an_unknown_job_gets_404(manager: Manager, http: httpx2.AsyncClient, id: str) -> None:
    for url in (f"/jobs/api/v1/jobs/{id}", f"/job/view/result?request_id={id}", f"/job/pull/result?job_id={id}"):
        answer = await http.get(url)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.content) < 1000


async def test_looking_with_prefer_waits_for_the_end(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    looking = asyncio.ensure_future(http.get(f"/jobs/api/v1/jobs/{request_id}", headers={"Prefer": "wait=30"}))
    await manager.someone_waits()
    await manager.end(request_id, 7)
    answer = await looking
    assert answer.json()["result"] == 7
    assert answer.headers["preference-applied"] == "wait=30"


async def test_jobs_come_in_pages_newest_first(manager: Manager, http: httpx2.AsyncClient) -> None:
    ids = [await submit(http, b=number) for number in range(7)]
    seen, cursor, pages = [], None, 0
    while pages < 10:
        page = (await http.get("/jobs/api/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [job["id"] for job in page["items"]]
        pages, cursor = pages + 1, page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert pages == 3


async def test_jobs_are_filtered(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a, "other")
    done = await submit(http)
    await manager.end(done, 1)
    waiting = (await http.post("/other/task/work_a", json={"a": 1})).json()["request_id"]

    async def ids(**params: object) -> list[str]:
        answer = await http.get("/jobs/api/v1/jobs", params=params)  # type: ignore[arg-type]
        return [job["id"] for job in answer.json()["items"]]

    assert await ids() == [waiting, done]
    assert await ids(namespace="other") == [waiting]
    assert await ids(namespace="other", name="work_a") == [waiting]
    assert await ids(namespace="nowhere") == []
    assert await ids(name="work_b") == []
    assert await ids(status="succeeded") == [done]
    assert await ids(status=["succeeded", "queued"]) == [waiting, done]
    assert await ids(status="failed") == []


@pytest.mark.parametrize(
    "query", ["status=done", "limit=0", "limit=501", "limit=x", "cursor=x", "cursor=-1", "cursor=99999999999999999999"]
)
async def test_a_filter_that_does_not_fit_gets_422(manager: Manager, http: httpx2.AsyncClient, query: str) -> None:
    answer = await http.get(f"/jobs/api/v1/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["query", query.partition("=")[0]]


async def test_a_page_of_large_results_is_cut_short_and_loses_none(
    manager: Manager, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAGE_BYTES", 2500)
    ids = [await submit(http) for _ in range(6)]
    for one in ids:
        await manager.end(one, "x" * 1000)
    seen, cursor, sizes = [], None, []
    for _ in range(10):
        page = (await http.get("/jobs/api/v1/jobs", params={"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["items"]]
        sizes.append(len(page["items"]))
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert max(sizes) == 3


# --- the seed's routes ----------------------------------------------------------------------------------------------------------


async def test_view_removes_nothing(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    expected = {"request_id": request_id, "job_id": request_id, "namespace": "DEFAULT", "name": "work_a", "error": None, "pulled_at": None}
    assert (await http.get("/job/view/result", params={"request_id": request_id})).json() == expected | {
        "status": "queued",
        "results": None,
    }
    await manager.end(request_id, [1])
    for _ in range(2):
        assert (await http.get("/job/view/result", params={"job_id": request_id})).json() == expected | {
            "status": "succeeded",
            "results": [1],
        }


async def test_pull_waits_for_the_result(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    pulling = asyncio.ensure_future(http.get("/job/pull/result", params={"request_id": request_id}))
    await manager.someone_waits()
    await manager.end(request_id, {"sum": 3})
    answer = await pulling
    assert (answer.status_code, answer.content) == (200, b'{"sum":3}')
    view = (await http.get("/job/view/result", params={"request_id": request_id})).json()
    assert view["pulled_at"] is not None


async def test_a_pull_can_be_repeated_until_the_result_is_removed(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    await manager.end(request_id, 5)
    for _ in range(2):
        assert (await http.get("/job/pull/result", params={"request_id": request_id})).json() == 5
    manager.clock.advance(601)
    await manager.store.prune(600_000_000, 10**15)
    answer = await http.get("/job/pull/result", params={"request_id": request_id})
    assert answer.status_code == 410
    assert answer.json()["status"] == 410
    assert (await http.get(f"/jobs/api/v1/jobs/{request_id}")).json()["result_removed"] is True
    assert (await http.get("/job/view/result", params={"request_id": request_id})).json()["status"] == "succeeded"


async def test_a_pull_of_a_job_that_has_not_ended_gets_202(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    answer = await http.get("/job/pull/result", params={"request_id": request_id, "wait": 0.01})
    assert answer.status_code == 202
    assert answer.json() == {"request_id": request_id, "status": "queued"}
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_pull_of_a_failed_job_gets_409_with_the_error(manager: Manager, http: httpx2.AsyncClient) -> None:
    request_id = await submit(http)
    await manager.end(request_id, error=ErrorInfo("ValueError", "no", "Traceback …"))
    answer = await http.get("/job/pull/result", params={"request_id": request_id})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["error"] == {"type": "ValueError", "message": "no", "traceback": "Traceback …"}
    assert (body["request_id"], body["status"], body["job_status"]) == (request_id, 409, "failed")


@pytest.mark.parametrize(("state", "words"), [(JobState.CANCELLED, "cancelled"), (JobState.EXPIRED, "expired")])
def test_other_ends_are_problems_too(state: JobState, words: str) -> None:
    from easyjobs.http.problems import answer

    response = answer(module.job_error(b"x" * 16, state, None))
    assert response.status_code == 409
    assert words in json.loads(bytes(response.body))["detail"]


@pytest.mark.parametrize("path", ["/job/pull/result", "/job/view/result"])
@pytest.mark.parametrize("query", ["", "?request_id=", f"?request_id={NOBODY}&job_id=other"])
async def test_a_request_without_one_id_gets_422(http: httpx2.AsyncClient, path: str, query: str) -> None:
    assert (await http.get(path + query)).status_code == 422


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan", "inf"])
async def test_the_wait_has_limits(http: httpx2.AsyncClient, wait: str) -> None:
    assert (await http.get("/job/pull/result", params={"request_id": NOBODY, "wait": wait})).status_code == 422


async def test_the_lists_show_their_states_only(manager: Manager, http: httpx2.AsyncClient) -> None:
    done, failed = await submit(http), await submit(http)
    await manager.end(done, 1)
    await manager.end(failed, error=ErrorInfo("E", "no"))
    queued = await submit(http)

    async def ids(path: str) -> list[str]:
        answer = await http.get(path)
        assert answer.status_code == 200
        assert all(
            set(one) == {"request_id", "job_id", "namespace", "name", "status", "results", "error", "pulled_at"} for one in answer.json()
        )
        return [one["job_id"] for one in answer.json()]

    assert await ids("/job/view/results") == [failed, done]
    assert await ids("/job/view/results?status=failed") == [failed]
    assert await ids("/job/view/queued?namespace=DEFAULT&name=work_a") == [queued]
    assert await ids("/job/view/queued?namespace=NOPE") == []
    assert await ids("/job/view/running") == []
    assert (await http.get("/job/view/running?status=failed")).status_code == 422


async def test_the_lists_link_to_their_next_page(manager: Manager, http: httpx2.AsyncClient) -> None:
    ids = [await submit(http) for _ in range(5)]
    seen, url = [], "/job/view/queued?limit=2&name=work_a"
    for _ in range(3):
        answer = await http.get(url)
        seen += [one["job_id"] for one in answer.json()]
        if "next" not in answer.links:
            break
        url = urljoin(str(answer.url), answer.links["next"]["url"])
        assert "name=work_a" in url
    assert seen == ids[::-1]
    assert "next" not in answer.links


# --- queues, workers, tasks, health ---------------------------------------------------------------------------------------------


class Peer:
    def run(self, jobs: object) -> None: ...

    def cancel(self, jobs: object) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


async def test_queues_are_counted(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a, "other")
    done = await submit(http)
    await manager.end(done, 1)
    await submit(http)
    default, other = (await http.get("/jobs/api/v1/queues")).json()["items"]
    assert (default["namespace"], default["queued"], default["succeeded"], default["failed"], default["tasks"]) == ("DEFAULT", 1, 1, 0, 1)
    assert (other["namespace"], other["queued"], other["tasks"], other["workers"]) == ("other", 0, 1, 0)


async def test_workers_are_shown(manager: Manager, http: httpx2.AsyncClient) -> None:
    session = Session(1, b"\x01" * 16, "host-1", "DEFAULT", 3, Peer(), manager.clock.now())
    session.lanes.add(1)
    manager.services.dispatcher.attach(session)
    manager.clock.advance(2)
    [worker] = (await http.get("/jobs/api/v1/workers")).json()["items"]
    assert worker == {
        "session": "01" * 16, "name": "host-1", "namespace": "DEFAULT", "slots": 3, "running": 0, "connected_at": "2023-11-14T22:13:20.000000Z",
        "silent_s": 2.0, "loop_age_s": 0.0, "tasks": ["DEFAULT/work_a"],
    }  # fmt: skip
    assert (await http.get("/jobs/api/v1/queues")).json()["items"][0]["workers"] == 1


async def test_tasks_are_shown(manager: Manager, http: httpx2.AsyncClient) -> None:
    [task] = (await http.get("/jobs/api/v1/tasks")).json()["items"]
    assert (task["namespace"], task["name"], task["summary"], task["workers"]) == ("DEFAULT", "work_a", "Add things.", 1)
    assert task["arguments"]["required"] == ["a"]


async def test_health_and_readiness(manager: Manager, http: httpx2.AsyncClient) -> None:
    assert (await http.get("/jobs/healthz")).json() == {"status": "ok"}
    assert (await http.get("/jobs/readyz")).json() == {"status": "ready"}
    for path in ("/jobs/healthz", "/jobs/readyz"):
        assert (await http.head(path)).status_code == 200


async def test_a_store_that_cannot_is_not_ready_and_not_asked_by_everyone(
    manager: Manager, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1
        raise StoreFull("jobs.db")

    monkeypatch.setattr(manager.store, "check", check)
    answers = await asyncio.gather(*(http.get("/jobs/readyz") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {507}
    assert asked == 1
    assert (await http.get("/jobs/healthz")).status_code == 200


async def test_a_store_that_hangs_is_not_ready(manager: Manager, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.01)
    hung = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(manager.store, "check", lambda: hung)
    waits: list[float] = []
    wait = asyncio.wait

    async def spy(futures: Any, *, timeout: float) -> Any:
        waits.append(timeout)
        return await wait(futures, timeout=timeout)

    monkeypatch.setattr(asyncio, "wait", spy)
    for _ in range(2):
        assert (await http.get("/jobs/readyz")).status_code == 503
    assert waits[0] > 0
    assert waits[1] == 0, "it has waited for long enough already"
    hung.set_exception(StoreError("late"))


async def test_a_manager_that_goes_down_is_alive_and_not_ready(manager: Manager, http: httpx2.AsyncClient) -> None:
    manager.services.results.close()
    assert (await http.get("/jobs/healthz")).status_code == 200
    assert (await http.get("/jobs/readyz")).status_code == 503
    assert (await http.head("/jobs/readyz")).status_code == 503


@pytest.mark.parametrize("name", ["metrics", "dashboard"])
async def test_what_is_not_there_yet_says_so(http: httpx2.AsyncClient, name: str) -> None:
    answer = await http.get(f"/jobs/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (501, "application/problem+json")
    assert f"easyjobs has no {name} yet" in answer.json()["detail"]
