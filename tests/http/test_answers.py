"""What the OpenAPI document says of the routes that submit is what they do: each status, header and query parameter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRouter

from easyjobs.domain.job import MAX_ARGUMENTS, MAX_BULK_BYTES
from easyjobs.errors import StoreFull
from easyjobs.http.auth import Scope, make_token
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.http.conftest import SECRET, Manager, build, client_of

ONE, BULK = "/DEFAULT/task/work", "/jobs/api/v1/jobs"


async def work(a: int, b: int = 2) -> int:
    return a + b


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    ref = node.get("$ref")
    if ref is None:
        return node
    found: Any = document
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    answer: dict[str, Any] = found
    return answer


async def slowly() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


async def answers(manager: Manager, url: str, monkeypatch: pytest.MonkeyPatch) -> list[httpx2.Response]:
    """An answer of each kind, as far as this route has it."""
    good: Any = {"a": 1} if url == ONE else {"namespace": "DEFAULT", "name": "work", "kwargs": {"a": 1}}
    other: Any = {"a": 2} if url == ONE else {**good, "kwargs": {"a": 2}}
    limit = MAX_ARGUMENTS if url == ONE else MAX_BULK_BYTES
    bound = make_token(SECRET, [Scope.SUBMIT], 0, id="0123456789abcdef", queues=["mail"])
    found = []
    async with client_of(manager.app) as http, client_of(manager.app, ("203.0.113.5", 1)) as stranger:
        found.append(await http.post(url, json=good))
        found.append(await http.post(url, json=good, headers={"Prefer": "respond-async, wait=0"}))
        found.append(await http.post(url, json={"a": "x"}))
        found.append(await http.post(url, json=good, headers={"Idempotency-Key": "k"}))
        found.append(await http.post(url, json=other, headers={"Idempotency-Key": "k"}))
        found.append(await http.post(url, json=good, headers={"Content-Encoding": "gzip"}))
        found.append(await http.post(url, json=good, headers={"Content-Length": str(limit + 1)}))
        found.append(await stranger.post(url, json=good))
        found.append(await stranger.post(url, json=good, headers={"Authorization": f"Bearer {bound}"}))
        if url == BULK:
            found.append(await http.post(url, json={"name": "shared"}))
            found.append(await http.post(url, json={"name": "unheard_of"}))
        with monkeypatch.context() as patch:
            patch.setattr("easyjobs.http.requests.BODY_S", -1.0)
            found.append(await http.post(url, content=slowly()))  # type: ignore[arg-type]
        with monkeypatch.context() as patch:

            async def full(*_: object) -> object:
                raise StoreFull("jobs.db")

            patch.setattr(manager.store, "submit", full)
            found.append(await http.post(url, json=good))
        manager.services.intake.is_closed = True
        found.append(await http.post(url, json=good))
        if url == ONE:
            manager.services.catalogue.left([task.lane for task in manager.services.catalogue.visible()])
            manager.clock.advance(3600)
            found.append(await http.post(url, json=good))
    return found


@pytest.mark.parametrize("url", [ONE, BULK])
async def test_each_answer_of_a_submit_is_in_the_document_and_each_of_the_document_is_given(
    manager: Manager, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    await manager.offer(work)
    for queue in ("mail", "post"):
        await manager.offer(work, queue, "shared")
    document = (await http.get("/openapi.json")).json()
    operation = document["paths"][url]["post"]
    given = {(str(answer.status_code), answer.headers["content-type"]) for answer in await answers(manager, url, monkeypatch)}
    shown = {(code, kind) for code, response in operation["responses"].items() for kind in resolve(document, response)["content"]}
    assert given == shown


async def test_a_submit_shows_the_headers_that_it_reads(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work)
    document = (await http.get("/openapi.json")).json()

    def headers_of(path: str, method: str = "post") -> set[str]:
        shown = [resolve(document, parameter) for parameter in document["paths"][path][method]["parameters"]]
        return {parameter["name"] for parameter in shown if parameter["in"] == "header"}

    assert headers_of(ONE) == {"Prefer", "Idempotency-Key"}
    assert headers_of(BULK) == {"Idempotency-Key"}
    assert headers_of(BULK + "/{id}", "get") == {"Prefer"}


async def test_what_all_tasks_have_in_common_is_in_the_document_once(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work)
    before = len((await http.get("/openapi.json")).content)
    await manager.offer(work, name="work_2")
    assert len((await http.get("/openapi.json")).content) - before < 1700


async def test_a_wait_that_is_no_number_is_ignored_and_the_answer_says_what_was_applied(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work)
    answer = await http.post(ONE, json={"a": 1}, headers={"Prefer": "wait=abc"})
    assert (answer.status_code, "preference-applied" in answer.headers) == (200, False)
    answer = await http.post(ONE, json={"a": 1}, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")


async def test_a_body_that_is_written_otherwise_is_another_one_for_a_key(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work)
    said = [
        (await http.post(ONE, content=body, headers={"Idempotency-Key": "k"})).status_code
        for body in (b'{"a":1,"b":2}', b'{"a":1,"b":2}', b'{"b":2,"a":1}', b'{"a": 1, "b": 2}')
    ]
    assert said == [200, 200, 422, 422]


# --- query parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "known"),
    [
        ("GET", "/jobs/api/v1/jobs?limt=1&limit=2", "namespace, name, status, limit, cursor"),
        ("GET", "/job/view/results?limt=1", "namespace, name, status, limit, cursor"),
        ("GET", "/jobs/api/v1/queues?limt=1", "none"),
        ("POST", "/jobs/api/v1/jobs?limt=1", "none"),
        ("POST", "/jobs/api/v1/queues/DEFAULT/pause?limt=1", "none"),
    ],
)
async def test_an_unknown_query_parameter_is_refused_by_name(http: httpx2.AsyncClient, method: str, path: str, known: str) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == 422
    [wrong] = answer.json()["detail"]
    assert wrong["loc"] == ["query", "limt"]
    assert wrong["msg"].endswith(f"this takes {known}")


async def test_who_is_not_let_in_does_not_hear_of_parameters(manager: Manager) -> None:
    async with client_of(manager.app, ("203.0.113.5", 1)) as stranger:
        assert (await stranger.get("/jobs/api/v1/jobs?limt=1")).status_code == 401


async def test_a_probe_may_have_any_query(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/jobs/healthz?now=1")).status_code == 200


async def test_every_route_of_ours_shows_the_422(http: httpx2.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    shown = {path for path, item in paths.items() if all("422" in operation["responses"] for operation in item.values())}
    assert paths.keys() - shown == {"/jobs/healthz", "/jobs/readyz"}


async def test_the_query_of_a_submit_is_the_jobs_arguments(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work)
    assert (await http.post(f"{ONE}?a=3")).status_code == 200
    answer = await http.post(f"{ONE}?a=3&limt=1")
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "limt"])


@pytest.mark.parametrize("is_on_the_app", [True, False])
async def test_what_a_login_of_the_apps_own_reads_is_not_refused(store: MemoryStore, clock: FakeClock, is_on_the_app: bool) -> None:
    async def login(request: Request) -> None:
        assert request.query_params["api_key"] == "mine"

    mine = [Depends(login)]
    app, router = FastAPI(dependencies=mine if is_on_the_app else None), APIRouter()
    build(app, store, clock, router=None if is_on_the_app else router)
    if not is_on_the_app:
        app.include_router(router, dependencies=mine)
    async with client_of(app) as http:
        assert (await http.get("/job/view/queued?api_key=mine")).status_code == 200
        if is_on_the_app:
            assert (await http.get("/jobs/api/v1/jobs?api_key=mine")).status_code == 200
