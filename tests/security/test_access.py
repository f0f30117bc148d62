"""Who may do what: each route of the app against each token, and against pages of other sites."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from easyjobs.domain.job import Outcome, Report
from easyjobs.http.auth import IMPLIED, Scope, make_token
from easyjobs.manager import EasyJobsManager
from easyjobs.protocol.messages import Acked, Challenge, Reports
from tests.security.world import HOST, LOCAL, REMOTE, SECRET, UUID, World, task_named, world

OPEN = "open to all"
APP = "the app's own"
READ, OPERATE, SUBMIT = Scope.READ, Scope.OPERATE, Scope.SUBMIT
API = "/jobs/api/v1"
RULES: dict[tuple[str, str], Scope | str] = {
    ("GET", "/openapi.json"): APP, ("GET", "/docs"): APP, ("GET", "/docs/oauth2-redirect"): APP, ("GET", "/redoc"): APP,
    ("GET", "/jobs/healthz"): OPEN, ("GET", "/jobs/readyz"): OPEN, ("GET", "/jobs/metrics"): OPEN, ("GET", "/jobs/dashboard"): OPEN, ("HEAD", "/jobs/healthz"): OPEN, ("HEAD", "/jobs/readyz"): OPEN,
    ("GET", "/jobs/static"): OPEN, ("WEBSOCKET", "/ws/jobs"): "the secret",
    ("POST", "/{namespace}/task/{name}"): SUBMIT, ("POST", "/task/{name}"): SUBMIT, ("POST", f"{API}/jobs"): SUBMIT,
    ("GET", "/job/pull/result"): READ, ("GET", "/job/view/result"): READ, ("GET", "/job/view/results"): READ, ("GET", "/job/view/queued"): READ,
    ("GET", "/job/view/running"): READ, ("GET", f"{API}/jobs"): READ, ("GET", f"{API}/jobs/{{id}}"): READ, ("GET", f"{API}/queues"): READ,
    ("GET", f"{API}/workers"): READ, ("GET", f"{API}/tasks"): READ, ("GET", f"{API}/jobs/{{id}}/events"): READ, ("GET", f"{API}/jobs/{{id}}/logs"): READ,
    ("GET", f"{API}/jobs/{{id}}/explain"): READ, ("GET", f"{API}/schedules"): READ, ("GET", f"{API}/schedules/{{id}}"): READ,
    ("GET", f"{API}/quarantine"): READ,
    ("POST", f"{API}/jobs/{{id}}/cancel"): OPERATE, ("POST", f"{API}/jobs/{{id}}/retry"): OPERATE, ("POST", f"{API}/jobs/{{id}}/run"): OPERATE,
    ("DELETE", f"{API}/jobs/{{id}}"): OPERATE, ("POST", f"{API}/queues/{{queue}}/pause"): OPERATE, ("POST", f"{API}/queues/{{queue}}/resume"): OPERATE,
    ("POST", f"{API}/schedules/{{id}}/pause"): OPERATE, ("POST", f"{API}/schedules/{{id}}/resume"): OPERATE, ("POST", f"{API}/schedules/{{id}}/run"): OPERATE,
    ("POST", f"{API}/quarantine/{{id}}/replay"): OPERATE, ("DELETE", f"{API}/quarantine/{{id}}"): OPERATE,
    ("GET", f"{API}/tokens"): Scope.ADMIN, ("POST", f"{API}/tokens"): Scope.ADMIN, ("DELETE", f"{API}/tokens/{{id}}"): Scope.ADMIN,
}  # fmt: skip
NAMED, BY_ID, LISTED, WHOLE = (
    "names a queue: 403 for another",
    "an id: 404 in another queue",
    "a list of what is reached",
    "403 for who is bound",
)
REACH: dict[tuple[str, str], str] = {  # what each route that needs a scope does with a token that is bound to queues
    ("POST", "/{namespace}/task/{name}"): NAMED, ("POST", "/task/{name}"): BY_ID, ("POST", f"{API}/jobs"): NAMED,
    ("GET", "/job/pull/result"): BY_ID, ("GET", "/job/view/result"): BY_ID, ("GET", "/job/view/results"): LISTED, ("GET", "/job/view/queued"): LISTED,
    ("GET", "/job/view/running"): LISTED, ("GET", f"{API}/jobs"): LISTED, ("GET", f"{API}/jobs/{{id}}"): BY_ID, ("GET", f"{API}/queues"): LISTED,
    ("GET", f"{API}/workers"): LISTED, ("GET", f"{API}/tasks"): LISTED, ("GET", f"{API}/jobs/{{id}}/events"): BY_ID, ("GET", f"{API}/jobs/{{id}}/logs"): BY_ID,
    ("GET", f"{API}/jobs/{{id}}/explain"): BY_ID, ("GET", f"{API}/schedules"): LISTED, ("GET", f"{API}/schedules/{{id}}"): BY_ID,
    ("GET", f"{API}/quarantine"): WHOLE,
    ("POST", f"{API}/jobs/{{id}}/cancel"): BY_ID, ("POST", f"{API}/jobs/{{id}}/retry"): BY_ID, ("POST", f"{API}/jobs/{{id}}/run"): BY_ID,
    ("DELETE", f"{API}/jobs/{{id}}"): BY_ID, ("POST", f"{API}/queues/{{queue}}/pause"): NAMED, ("POST", f"{API}/queues/{{queue}}/resume"): NAMED,
    ("POST", f"{API}/schedules/{{id}}/pause"): BY_ID, ("POST", f"{API}/schedules/{{id}}/resume"): BY_ID, ("POST", f"{API}/schedules/{{id}}/run"): BY_ID,
    ("POST", f"{API}/quarantine/{{id}}/replay"): WHOLE, ("DELETE", f"{API}/quarantine/{{id}}"): WHOLE,
    ("GET", f"{API}/tokens"): WHOLE, ("POST", f"{API}/tokens"): WHOLE, ("DELETE", f"{API}/tokens/{{id}}"): WHOLE,
}  # fmt: skip
CHANGING = [
    rule
    for rule, scope in RULES.items()
    if isinstance(scope, Scope) and scope is not Scope.ADMIN and (rule[0] != "GET" or "pull" in rule[1])
]


def operations(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each (method, path) that the app answers, whatever kind of route it is."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:  # FastAPI's included router
            yield from operations(inner.routes, prefix)
        elif isinstance(route, WebSocketRoute):
            yield "WEBSOCKET", prefix + route.path
        elif isinstance(route, Mount):
            yield "GET", prefix + route.path
        elif isinstance(route, Route):
            for method in route.methods or ():
                if method != "HEAD" or route.methods == {"HEAD"}:
                    yield method, prefix + route.path
        else:
            raise AssertionError(f"a route of a kind that this test does not know: {route!r}")


def url_of(path: str) -> str:
    for name, value in (("{id}", UUID), ("{queue}", "Q"), ("{namespace}", "Q"), ("{name}", "task")):
        path = path.replace(name, value)
    if not (path.startswith("/job/") and path.endswith("result")):
        return path
    return f"{path}?request_id={UUID}" + ("&wait=0" if "pull" in path else "")


async def ask(world: World, method: str, path: str, client: tuple[str, int] = REMOTE, **headers: str) -> int:
    async with world.client(client) as http:
        answer = await http.request(method, url_of(path), headers={name.replace("_", "-"): value for name, value in headers.items()})
        return answer.status_code


async def test_every_route_of_the_app_has_a_rule(here: World) -> None:
    assert set(operations(here.app.routes)) == set(RULES)


@pytest.mark.parametrize("auth", ["protected", "required"])
async def test_each_route_takes_each_token_that_has_its_scope_and_no_other(auth: str) -> None:
    tokens: dict[str, frozenset[Scope]] = {make_token(SECRET, [scope], 0): IMPLIED[scope] for scope in Scope}
    async with world(auth=auth) as here:
        await here.peer().join(task_named("task"))
        for (method, path), rule in RULES.items():
            if method == "WEBSOCKET" or rule in (OPEN, APP):
                continue
            assert await ask(here, method, path) == 401, (method, path)
            assert await ask(here, method, path, Authorization="Bearer " + SECRET) == 401, (method, path)
            for token, scopes in tokens.items():
                status = await ask(here, method, path, Authorization=f"Bearer {token}")
                assert (status == 403) is (rule not in scopes), (method, path, scopes, status)
                assert status not in {401, 500}, (method, path, scopes)


# --- tokens that are bound to queues --------------------------------------------------------------------------------------------

QUEUES = ("mail", "bills")


@contextlib.asynccontextmanager
async def two_queues(**settings: Any) -> AsyncIterator[World]:
    """Two queues, each with a worker, a scheduled task and three jobs: one has ended, one runs, one is queued. All their names tell the queue."""
    async with world(**settings) as here:
        for queue in QUEUES:
            task = task_named(f"{queue}_task", options=b'{"schedule":["0 0 1 1 *"]}')
            peer = await here.peer().join(task, queue=queue, name=f"{queue}-worker")
            for _ in range(3):
                await here.submit(f"{queue}_task", queue=queue)
            first, _ = await peer.take(2)
            peer.say(
                Reports(number=2, items=[Report(first.seq, first.attempt, Outcome.SUCCEEDED, body=b'"of %s"' % queue.encode())], limit=2)
            )
            await peer.hear(Acked)
        yield here


async def request_of(here: World, method: str, path: str, queue: str) -> tuple[dict[str, Any], str]:
    """A request of this route that concerns this queue, as httpx takes it; and the id in it, or ""."""
    url, id = path.replace("{queue}", queue).replace("{namespace}", queue).replace("{name}", f"{queue}_task"), ""
    async with here.client() as http:
        if "schedules/{id}" in path:
            id = str((await http.get(f"{API}/schedules", params={"namespace": queue})).json()["items"][0]["id"])
        elif REACH[method, path] is BY_ID and "{name}" not in path:
            id = await here.submit(f"{queue}_task", queue=queue)
            if path.endswith("/events"):  # of a job that goes on the stream does too
                await http.post(f"{API}/jobs/{id}/cancel")
    url = url.replace("{id}", id or "0000000000000001") + (f"?request_id={id}" if path.endswith("/result") else "")
    url += "&wait=0" if path.endswith("/pull/result") else ""
    body = {"namespace": queue, "name": f"{queue}_task"} if url == f"{API}/jobs" else {}
    return {"method": method, "url": url, "json": body if method == "POST" else None}, id


def bound(scope: Scope, *queues: str) -> dict[str, str]:
    return {"Authorization": "Bearer " + make_token(SECRET, [scope], 0, "", os.urandom(8).hex(), queues)}


async def test_every_route_that_needs_a_scope_says_what_it_does_with_a_token_that_is_bound_to_queues(here: World) -> None:
    assert {rule for rule in operations(here.app.routes) if isinstance(RULES.get(rule, READ), Scope)} == set(REACH)


@pytest.mark.parametrize(("own", "other"), [QUEUES, QUEUES[::-1]])
async def test_each_route_opens_the_queues_of_a_token_and_no_other(own: str, other: str) -> None:
    async with two_queues() as here, here.client(REMOTE) as http:
        for ((method, path), reach), held in itertools.product(REACH.items(), set(Scope) - {Scope.ADMIN}):
            ours, _ = await request_of(here, method, path, own)
            theirs, id = await request_of(here, method, path, other)
            token = bound(held, own)
            refused, taken = await http.request(**theirs, headers=token), await http.request(**ours, headers=token)
            why = (method, path, held, refused.status_code, refused.text, taken.status_code, taken.text)
            if RULES[method, path] not in IMPLIED[held] or reach is WHOLE:
                assert refused.status_code == taken.status_code == 403, why
                continue
            assert taken.status_code not in {401, 403, 404, 422, 500}, why
            if reach is LISTED:
                assert refused.status_code == taken.status_code == 200, why
                assert own in taken.text, why
                assert other not in taken.text, why
                continue
            assert refused.status_code == (403 if reach is NAMED else 404), why
            if id:
                unknown = str(10**15) if id.isdigit() else UUID
                of_id = re.compile(rf"\b{id}\b")
                theirs["url"] = of_id.sub(unknown, theirs["url"])
                assert (await http.request(**theirs, headers=token)).text == of_id.sub(unknown, refused.text), why


async def test_what_is_open_tells_nothing_of_jobs(here: World) -> None:
    for (method, path), rule in RULES.items():
        if rule == OPEN and method != "WEBSOCKET":
            async with here.client(REMOTE) as http:
                answer = await http.request(method, path)
            assert len(answer.content) < 100, path


async def test_no_verb_but_those_in_the_table_reaches_a_route(here: World) -> None:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
    for method, path in itertools.product(methods, {path for _, path in RULES} - {"/ws/jobs", "/jobs/static"}):
        known = {verb for verb, there in RULES if there == path}
        if method not in known and not (method == "HEAD" and RULES.get(("GET", path)) == APP):
            assert await ask(here, method, path, LOCAL) in {404, 405}, (method, path)


# --- browsers -------------------------------------------------------------------------------------------------------------------

FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://localhost:8220"},  # another name for this machine, but another origin
    {"Origin": f"http://{HOST}.evil.example"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this machine
]


@pytest.mark.parametrize(("method", "path"), CHANGING)
@pytest.mark.parametrize("auth", ["protected", "off"])
async def test_a_page_of_another_site_changes_nothing(method: str, path: str, auth: str) -> None:
    async with world(auth=auth) as here:
        await here.peer().join(task_named("task"))
        for headers in FOREIGN:
            for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
                assert await ask(here, method, path, LOCAL, **headers, content_type=kind) == 403, headers
        assert await ask(here, method, path, LOCAL, Origin=f"http://{HOST}", Sec_Fetch_Site="same-origin") != 403


@pytest.mark.parametrize(
    "name", ["rebound.example", "rebound.example:8220", "127.0.0.1.evil.example", "[::1].evil.example", "localhost.", "", "x" * 500]
)
async def test_a_name_that_was_rebound_to_this_machine_is_not_this_machine(here: World, name: str) -> None:
    for (method, path), rule in RULES.items():
        if isinstance(rule, Scope):
            assert await ask(here, method, path, LOCAL, Host=name, Origin=f"http://{name}", Sec_Fetch_Site="same-origin") == 401, path


async def test_no_get_but_pull_changes_a_job(here: World) -> None:
    await here.peer().join(task_named("task"))
    id = await here.submit("task")
    before = await here.job(id)
    for (method, path), rule in RULES.items():
        if method == "GET" and rule is READ and not path.endswith("/events"):
            async with here.client() as http:
                assert (await http.get(url_of(path).replace(UUID, id))).status_code < 500
    assert await here.job(id) == before


@pytest.mark.parametrize("origin", [b"http://evil.example", b"null", b"", b"http://127.0.0.1:3000", b"http://rebound.example:8220"])
async def test_a_page_of_another_site_opens_no_websocket(here: World, origin: bytes) -> None:
    page = here.peer(headers=[(b"origin", origin)])
    async with asyncio.timeout(5):
        message = await page.sent.get()
    assert message["type"] == "websocket.close"  # before an accept, so the handshake is answered 403


async def test_a_page_whose_name_was_rebound_opens_no_websocket(here: World) -> None:
    """Its Origin and its Host agree; but a worker sends no Origin at all, and our pages open no socket."""
    name = b"rebound.example:8220"
    page = here.peer(host=name, headers=[(b"origin", b"http://" + name)])
    async with asyncio.timeout(5):
        message = await page.sent.get()
    assert message["type"] == "websocket.close"


async def test_a_worker_needs_no_origin(here: World) -> None:
    assert await here.peer().hear(Challenge)


async def test_routes_below_a_prefix_of_the_user_have_the_same_rules() -> None:
    app, router = FastAPI(), APIRouter(prefix="/api")
    async with await EasyJobsManager.create(app, SECRET, store="memory:", manager_slots=0, api_router=router) as manager:
        app.include_router(router)
        here = World(app, manager)
        peer = await here.peer().join(task_named("task"))
        for method, path in operations(app.routes):
            if path.startswith("/api/"):
                assert isinstance(RULES[method, path.removeprefix("/api")], Scope)
                assert await ask(here, method, path) == 401
                assert await ask(here, method, path, LOCAL, Origin="http://evil.example") in {401, 403}
        await peer.leave()
