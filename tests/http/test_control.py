"""What operators do, over HTTP."""

from __future__ import annotations

import httpx2
import pytest

from easyjobs.domain.job import ErrorInfo
from easyjobs.http.auth import Scope, make_token
from tests.http.conftest import SECRET, Manager

NOBODY = "00000000-0000-0000-0000-000000000000"


async def work(a: int = 1) -> int:
    return a


@pytest.fixture
async def job(manager: Manager, http: httpx2.AsyncClient) -> str:
    await manager.offer(work)
    return str((await http.post("/DEFAULT/task/work", json={})).json()["request_id"])


async def post(http: httpx2.AsyncClient, path: str) -> tuple[int, str | None]:
    answer = await http.post(f"/jobs/api/v1/jobs/{path}")
    return answer.status_code, answer.json().get("status")


async def test_a_queued_job_is_cancelled_and_retried(http: httpx2.AsyncClient, job: str) -> None:
    assert await post(http, f"{job}/cancel") == (200, "cancelled")
    assert await post(http, f"{job}/cancel") == (200, "cancelled")
    assert await post(http, f"{job}/retry") == (200, "queued")
    refused = await http.post(f"/jobs/api/v1/jobs/{job}/retry")
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    assert "is queued; retry takes a job that failed, was cancelled or expired" in refused.json()["detail"]


async def test_a_failed_job_is_retried_and_then_deleted(manager: Manager, http: httpx2.AsyncClient, job: str) -> None:
    assert (await http.delete(f"/jobs/api/v1/jobs/{job}")).status_code == 409
    await manager.end(job, error=ErrorInfo("E", "no"))
    assert await post(http, f"{job}/retry") == (200, "queued")
    await manager.end(job, 5)
    assert await post(http, f"{job}/retry") == (409, 409)
    assert (await http.delete(f"/jobs/api/v1/jobs/{job}")).status_code == 204
    assert (await http.get(f"/jobs/api/v1/jobs/{job}")).status_code == 404


@pytest.mark.parametrize("verb", ["cancel", "retry", "run"])
@pytest.mark.parametrize("id", [NOBODY, "nonsense"])
async def test_no_such_job(http: httpx2.AsyncClient, verb: str, id: str) -> None:
    assert (await post(http, f"{id}/{verb}"))[0] == 404


async def test_only_a_scheduled_job_is_run_now(http: httpx2.AsyncClient, job: str) -> None:
    assert await post(http, f"{job}/run") == (409, 409)


async def test_a_queue_is_paused_and_shown_so(http: httpx2.AsyncClient, job: str) -> None:
    assert (await http.post("/jobs/api/v1/queues/DEFAULT/pause")).json() == {"namespace": "DEFAULT", "paused": True}
    assert [each["paused"] for each in (await http.get("/jobs/api/v1/queues")).json()["items"]] == [True]
    assert (await http.post("/jobs/api/v1/queues/DEFAULT/resume")).json() == {"namespace": "DEFAULT", "paused": False}
    assert (await http.post("/jobs/api/v1/queues/no%20name/pause")).status_code == 422


async def test_a_queue_may_be_paused_before_anybody_offers_a_task_in_it_and_the_answer_says_so(
    manager: Manager, http: httpx2.AsyncClient
) -> None:
    paused = (await http.post("/jobs/api/v1/queues/mail/pause")).json()
    assert paused == {"namespace": "mail", "paused": True, "known": False}
    await manager.offer(work, "mail")
    assert (await http.post("/jobs/api/v1/queues/mail/pause")).json() == {"namespace": "mail", "paused": True}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", f"jobs/{NOBODY}/{verb}") for verb in ("cancel", "retry", "run")]
    + [("DELETE", f"jobs/{NOBODY}"), ("POST", "queues/Q/pause"), ("POST", "queues/Q/resume")],
)
async def test_it_takes_the_scope_operate(manager: Manager, http: httpx2.AsyncClient, method: str, path: str) -> None:
    for scope, expected in ((Scope.READ, 403), (Scope.SUBMIT, 403), (Scope.OPERATE, 404 if NOBODY in path else 200)):
        token = make_token(SECRET, [scope], 0)
        answer = await http.request(
            method, f"/jobs/api/v1/{path}", headers={"Authorization": f"Bearer {token}", "X-Forwarded-For": "9.9.9.9"}
        )
        assert answer.status_code == expected, scope
