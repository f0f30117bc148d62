from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.routing import APIRouter

from easyjobs.domain.job import MAX_ARGUMENTS, ErrorInfo
from easyjobs.errors import StoreBusy, StoreError, StoreFull, StoreHeld
from easyjobs.runtime.ids import id_bytes
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.http.conftest import Manager, build, client_of


async def work_a(a: int, b: int = 2, *, c: str = "x") -> dict[str, int]:
    """Add things.

    With care.
    """
    return {"sum": a + b}


async def test_a_submit_answers_the_id_of_a_durable_job(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 1})
    assert answer.status_code == 200
    assert list(answer.json()) == ["request_id"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"/jobs/api/v1/jobs/{answer.json()['request_id']}"
    [record] = await manager.store.get([id_bytes(answer.json()["request_id"])])  # type: ignore[list-item]
    assert record is not None
    assert json.loads(record.args) == [[], {"a": 1}]


async def test_the_queue_may_be_left_out_where_the_name_is_unique_or_in_the_default_queue(
    manager: Manager, http: httpx2.AsyncClient
) -> None:
    await manager.offer(work_a, "other")
    assert (await http.post("/task/work_a", json={"a": 1})).status_code == 200
    await manager.offer(work_a, "another")
    answer = await http.post("/task/work_a", json={"a": 1})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["namespaces"] == ["another", "other"]
    await manager.offer(work_a)
    assert (await http.post("/task/work_a", json={"a": 1})).status_code == 200


async def test_query_parameters_are_converted_by_the_signature(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/work_a?a=1&c=2", json={"b": 7})
    assert answer.status_code == 200
    [record] = await manager.store.get([id_bytes(answer.json()["request_id"])])  # type: ignore[list-item]
    assert record is not None
    assert json.loads(record.args) == [[], {"a": 1, "b": 7, "c": "2"}]


@pytest.mark.parametrize(
    ("query", "body", "type", "loc"),
    [
        ("", {"a": "one"}, "int_type", ["body", "a"]),
        ("", {}, "missing", ["body", "a"]),
        ("", {"a": 1, "z": 1}, "extra_forbidden", ["body", "z"]),
        ("?a=one", None, "int_parsing", ["query", "a"]),
        ("?a=1", {"a": 1}, "multiple_argument_values", ["query", "a"]),
        ("", [1], "dict_type", ["body"]),
    ],
)
async def test_arguments_that_do_not_fit_get_fastapis_422_and_nothing_is_queued(
    manager: Manager, http: httpx2.AsyncClient, query: str, body: object, type: str, loc: list[str]
) -> None:
    await manager.offer(work_a)
    answer = await http.post(f"/DEFAULT/task/work_a{query}", **({} if body is None else {"json": body}))  # type: ignore[arg-type]
    assert answer.status_code == 422
    [error] = answer.json()["detail"]
    assert (error["type"], error["loc"]) == (type, loc)
    assert {"msg", "input"} <= error.keys()
    assert await manager.store.counts() == {}


@pytest.mark.parametrize("body", [b'{"a": 1', b'{"a": NaN}', b"\xff\xfe", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"])
async def test_what_is_no_json_gets_422(manager: Manager, http: httpx2.AsyncClient, body: bytes) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/work_a", content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"
    assert await manager.store.counts() == {}


async def test_an_unknown_task_gets_404_with_near_names(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/wrok_a", json={})
    assert answer.status_code == 404
    assert answer.json()["near"] == ["DEFAULT/work_a"]
    assert "DEFAULT/work_a" in answer.json()["detail"]


async def test_a_task_is_gone_ten_minutes_after_its_last_offer(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    manager.services.catalogue.left([task.lane for task in manager.services.catalogue.visible()])
    manager.clock.advance(599)
    assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 200
    assert "/DEFAULT/task/work_a" in (await http.get("/openapi.json")).json()["paths"]
    manager.clock.advance(2)
    assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 404
    assert "/DEFAULT/task/work_a" not in (await http.get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize("says_its_length", [True, False])
async def test_a_body_over_the_limit_gets_413_whatever_its_header_says(
    manager: Manager, http: httpx2.AsyncClient, says_its_length: bool
) -> None:
    await manager.offer(work_a)

    async def chunks() -> object:
        for _ in range(3):
            yield b" " * (MAX_ARGUMENTS // 2)

    content = b" " * (MAX_ARGUMENTS + 1) if says_its_length else chunks()
    answer = await http.post("/DEFAULT/task/work_a", content=content)  # type: ignore[arg-type]
    assert answer.status_code == 413
    assert f"{MAX_ARGUMENTS:,}" in answer.json()["detail"]


async def test_a_body_of_many_chunks_is_read_whole(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)

    async def chunks() -> object:
        for part in (b'{"a"', b": 1,", b'"c": "y"}', b""):
            yield part

    answer = await http.post("/DEFAULT/task/work_a", content=chunks())  # type: ignore[arg-type]
    [record] = await manager.store.get([id_bytes(answer.json()["request_id"])])  # type: ignore[list-item]
    assert record is not None
    assert json.loads(record.args) == [[], {"a": 1, "c": "y"}]


async def test_a_compressed_body_is_refused(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/work_a", content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", None])
async def test_the_body_is_read_as_json_whatever_its_type_is_called(
    manager: Manager, http: httpx2.AsyncClient, content_type: str | None
) -> None:
    await manager.offer(work_a)
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await http.post("/DEFAULT/task/work_a", content=b'{"a":1}', headers=headers)).status_code == 200


async def test_a_refusal_shows_even_what_json_libraries_find_hard(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    for value in ("[" + str(10**60) + "]", '"\\u0000"', '{"x": 1e300}', '"' + "x" * 100_000 + '"'):
        answer = await http.post("/DEFAULT/task/work_a", content=f'{{"a": {value}}}'.encode())
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "a"]


@pytest.mark.parametrize("query", ["a=%ff", "a=1&" + "&".join(f"x{number}=1" for number in range(1001)), "a=1&a=2", "=1", "a"])
async def test_a_query_that_cannot_be_read_gets_422(manager: Manager, http: httpx2.AsyncClient, query: str) -> None:
    await manager.offer(work_a)
    answer = await http.post(f"/DEFAULT/task/work_a?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "query"


async def test_other_methods_get_405(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    assert (await http.get("/DEFAULT/task/work_a")).status_code == 405


async def test_integers_of_any_size_round_trip(manager: Manager, http: httpx2.AsyncClient) -> None:
    def echo(n: int) -> int:
        return n

    big = 10**60 + 7
    await manager.offer(echo)
    request_id = (await http.post("/DEFAULT/task/echo", content=b'{"n":%d}' % big)).json()["request_id"]
    await manager.end(request_id, raw=b"%d" % big)
    job = await http.get(f"/jobs/api/v1/jobs/{request_id}")
    assert job.json()["kwargs"] == {"n": big}
    assert job.json()["result"] == big
    assert (await http.get("/job/pull/result", params={"request_id": request_id})).content == b"%d" % big


# --- Idempotency-Key ------------------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_answer_the_same_job(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    headers = {"Idempotency-Key": "order-17"}
    first = await http.post("/DEFAULT/task/work_a", json={"a": 1}, headers=headers)
    again = await http.post("/DEFAULT/task/work_a", content=b'{"a":1}', headers={"Idempotency-Key": '"order-17"'})
    assert first.json() == again.json()
    assert sum((await manager.store.counts()).values()) == 1


async def test_the_same_key_with_another_body_gets_422(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    headers = {"Idempotency-Key": "order-17"}
    await http.post("/DEFAULT/task/work_a", json={"a": 1}, headers=headers)
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 2}, headers=headers)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "order-17" in answer.json()["detail"]


async def test_a_key_belongs_to_one_task(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    await manager.offer(work_a, name="work_b")
    headers = {"Idempotency-Key": "k"}
    first = await http.post("/DEFAULT/task/work_a", json={"a": 1}, headers=headers)
    other = await http.post("/DEFAULT/task/work_b", json={"a": 1}, headers=headers)
    assert first.json() != other.json()


@pytest.mark.parametrize("key", ["", " ", "k" * 256])
async def test_an_unfit_key_is_refused(manager: Manager, http: httpx2.AsyncClient, key: str) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 1}, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "idempotency-key"]


# --- Prefer: wait ---------------------------------------------------------------------------------------------------------------


async def submit_and_end(manager: Manager, http: httpx2.AsyncClient, **how: object) -> httpx2.Response:
    answering = asyncio.ensure_future(http.post("/DEFAULT/task/work_a", json={"a": 1}, headers={"Prefer": "respond-async, wait=10"}))
    await manager.someone_waits()
    [waited] = manager.services.results.watched
    await manager.end(waited.hex(), **how)  # type: ignore[arg-type]
    return await answering


async def test_a_submit_that_waits_gets_the_result(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await submit_and_end(manager, http, body={"sum": 3})
    assert answer.status_code == 200
    assert answer.json() == {"request_id": answer.json()["request_id"], "status": "succeeded", "result": {"sum": 3}}
    assert answer.headers["preference-applied"] == "wait=10"
    assert manager.services.results.watched == {}


async def test_a_submit_that_waits_gets_the_error(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await submit_and_end(manager, http, error=ErrorInfo("ValueError", "no"))
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"]["message"] == "no"


async def test_a_submit_whose_wait_is_over_gets_202(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 1}, headers={"Prefer": "wait=0"})
    assert answer.status_code == 202
    assert answer.json() == {"request_id": answer.json()["request_id"], "status": "queued"}
    assert answer.headers["location"].endswith(answer.json()["request_id"])


async def test_waiting_ends_at_once_when_the_manager_closes(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    answering = asyncio.ensure_future(http.post("/DEFAULT/task/work_a", json={"a": 1}, headers={"Prefer": "wait=60"}))
    await manager.someone_waits()
    manager.services.results.close()
    async with asyncio.timeout(5):
        assert (await answering).status_code == 202


# --- the store ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"), [(StoreFull("jobs.db"), 507), (StoreBusy(), 503), (StoreHeld("jobs.db"), 503), (StoreError("broken"), 503)]
)
async def test_a_store_that_cannot_gets_a_problem_with_retry_after(
    manager: Manager, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: StoreError, status: int
) -> None:
    await manager.offer(work_a)

    async def fail(*_: object) -> object:
        raise error

    monkeypatch.setattr(manager.store, "submit", fail)
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 1})
    assert answer.status_code == status
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["detail"] == str(error)


async def test_when_too_much_waits_for_the_store_a_submit_is_told_to_come_again(
    manager: Manager, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.offer(work_a)
    with monkeypatch.context() as busy:
        busy.setattr(type(manager.store), "is_busy", True)
        for answer in (
            await http.post("/DEFAULT/task/work_a", json={"a": 1}),
            await http.post("/jobs/api/v1/jobs", json=[{"namespace": "DEFAULT", "name": "work_a", "args": [1]}]),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["title"] == "Too many submits wait"
    assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 200


async def test_a_manager_that_goes_down_takes_no_more(manager: Manager, http: httpx2.AsyncClient) -> None:
    await manager.offer(work_a)
    manager.services.intake.is_closed = True
    answer = await http.post("/DEFAULT/task/work_a", json={"a": 1})
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


# --- where the route stands -----------------------------------------------------------------------------------------------------


async def test_a_catch_all_of_the_app_does_not_swallow_it(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI()

    @app.get("/own")
    async def own() -> str:
        return "own"

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def everything(path: str) -> str:
        return path

    manager = build(app, store, clock)
    await manager.offer(work_a)
    async with client_of(app) as http:
        assert "request_id" in (await http.post("/DEFAULT/task/work_a", json={"a": 1})).json()
        assert (await http.get("/jobs/healthz")).json() == {"status": "ok"}
        assert (await http.get("/job/view/queued")).status_code == 200
        assert (await http.get("/own")).json() == "own"
        assert (await http.get("/other/page")).json() == "other/page"


async def test_it_works_on_an_app_that_serves_already(store: MemoryStore, clock: FakeClock) -> None:
    app = FastAPI()
    async with client_of(app) as http:
        assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 404
        manager = build(app, store, clock)
        await manager.offer(work_a)
        assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 200


@pytest.mark.parametrize("is_included_first", [True, False])
async def test_it_goes_on_a_given_router_below_its_prefix(store: MemoryStore, clock: FakeClock, is_included_first: bool) -> None:
    app, router = FastAPI(), APIRouter()
    if is_included_first:
        app.include_router(router, prefix="/v2")
    manager = build(app, store, clock, router=router)
    if not is_included_first:
        app.include_router(router, prefix="/v2")
    await manager.offer(work_a)
    async with client_of(app) as http:
        assert (await http.post("/v2/DEFAULT/task/work_a", json={"a": 1})).status_code == 200
        assert (await http.post("/v2/DEFAULT/task/work_a", json={"a": "x"})).status_code == 422
        assert (await http.get("/v2/job/view/queued")).json()[0]["name"] == "work_a"
        assert (await http.get("/jobs/api/v1/jobs")).status_code == 200
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert "/v2/DEFAULT/task/work_a" in paths
        assert not [path for path in paths if "{namespace}" in path]


async def test_the_apps_own_dependencies_hold_for_submits(store: MemoryStore, clock: FakeClock) -> None:
    async def login() -> None:
        raise HTTPException(418)

    app = FastAPI(dependencies=[Depends(login)])
    manager = build(app, store, clock)
    await manager.offer(work_a)
    async with client_of(app) as http:
        assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 418
        assert (await http.get("/job/view/queued")).status_code == 418


async def test_unmounting_leaves_the_app_as_it_was(store: MemoryStore, clock: FakeClock) -> None:
    from easyjobs.http.routes import unmount

    app = FastAPI()
    routes, document = list(app.router.routes), app.openapi()
    manager = build(app, store, clock)
    await manager.offer(work_a)
    assert app.openapi() != document
    unmount(app)
    assert app.router.routes == routes
    assert app.openapi() == document
    async with client_of(app) as http:
        assert (await http.post("/DEFAULT/task/work_a", json={"a": 1})).status_code == 404
