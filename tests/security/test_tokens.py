"""Tokens that are made, listed and taken back; two secrets while one is being replaced."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from easyjobs.domain.job import Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import ConfigurationError
from easyjobs.http.auth import Scope, make_token
from easyjobs.http.seeing import TOKEN_S
from easyjobs.ports.store import News
from easyjobs.protocol.messages import Reports
from easyjobs.runtime.settings import ManagerSettings
from tests.postgres import Cluster
from tests.processes import Processes, Served, clean_environment, until
from tests.security.world import REMOTE, SECRET, World, task_named, world

OLD, NEW = "the old secret of the tests, long enough", "the new secret of the tests, long enough"
TOKENS = "/jobs/api/v1/tokens"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ADMIN = bearer(make_token(SECRET, [Scope.ADMIN], 0))


async def reads(here: World, token: str) -> int:
    async with here.client(REMOTE) as http:
        return (await http.get("/jobs/api/v1/jobs", headers=bearer(token))).status_code


async def test_a_token_is_made_listed_and_taken_back_for_good(store_address: str, tmp_path: Path) -> None:
    async with world(store_address) as here, here.client(REMOTE) as http:
        made = (await http.post(TOKENS, json={"scopes": ["read"], "name": "billing", "expires_s": 60}, headers=ADMIN)).json()
        other = (await http.post(TOKENS, json={"scopes": ["operate"], "expires_s": None}, headers=ADMIN)).json()
        assert await reads(here, made["token"]) == await reads(here, other["token"]) == 200
        items = {item["id"]: item for item in (await http.get(TOKENS, headers=ADMIN)).json()["items"]}
        assert items[made["id"]]["scopes"] == ["read"]
        assert items[other["id"]]["expires_at"] is None
        assert made["token"] not in str(items)
        assert made["token"].rpartition(".")[2] not in str(items)
        for _ in range(2):
            assert (await http.delete(f"{TOKENS}/{made['id']}", headers=ADMIN)).status_code == 204
        assert await reads(here, made["token"]) == 401
        assert await reads(here, other["token"]) == 200
    if store_address != "memory:":
        async with world(store_address) as here:  # a restart forgets nothing
            assert await reads(here, made["token"]) == 401
            assert await reads(here, other["token"]) == 200


async def test_a_token_of_the_command_line_can_be_taken_back_too(here: World) -> None:
    token = make_token(SECRET, [Scope.READ], 0, "x", "0123456789abcdef")
    assert await reads(here, token) == 200
    async with here.client() as http:
        await http.delete(f"{TOKENS}/0123456789abcdef", headers=ADMIN)
    assert await reads(here, token) == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["read"], "name": "a.b"},
        {"scopes": ["read"], "expires_s": 0},
        {"scopes": ["read"], "x": 1},
    ],
)
async def test_a_token_that_cannot_be_meant_is_not_made(here: World, body: object) -> None:
    async with here.client() as http:
        assert (await http.post(TOKENS, json=body, headers=ADMIN)).status_code == 422


async def test_another_manager_of_the_database_learns_of_it(postgres_cluster: Cluster) -> None:
    postgres_cluster.sql("drop schema if exists easyjobs cascade")
    url: str = postgres_cluster.url()
    async with world(url) as one, world(url) as two:
        async with one.client() as http:
            made = (await http.post(TOKENS, json={"scopes": ["read"]}, headers=ADMIN)).json()
            assert await reads(two, made["token"]) == 200
            await http.delete(f"{TOKENS}/{made['id']}", headers=ADMIN)
        async with asyncio.timeout(10):
            while await reads(two, made["token"]) != 401:  # noqa: ASYNC110 - another manager knows, and has no way to tell us
                await asyncio.sleep(0.05)


# --- what is open when a token ends -----------------------------------------------------------------------------------------------

OPEN_S = 5  # a stream ends so long after its token, at the latest


async def events(here: World, id: str, token: str) -> httpx2.Response:
    """A stream of events, whole: this returns when the manager has ended it."""
    async with here.client(REMOTE) as http:
        return await http.get(f"/jobs/api/v1/jobs/{id}/events", headers=bearer(token))


async def until_followed(here: World, streams: int) -> None:
    followed = here.manager._events.followed.here
    async with asyncio.timeout(10):
        while sum(len(followers) for followers in followed.values()) < streams:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def a_token(here: World, **wanted: object) -> tuple[str, str]:
    """A token for reading: its id and its text."""
    async with here.client() as http:
        made = (await http.post(TOKENS, json={"scopes": ["read"], **wanted}, headers=ADMIN)).json()
        return made["id"], made["token"]


async def take_back(here: World, id: str) -> None:
    async with here.client() as http:
        assert (await http.delete(f"{TOKENS}/{id}", headers=ADMIN)).status_code == 204


async def offering(here: World) -> str:
    """A job that nobody takes: its streams go on for ever."""
    worker = await here.peer().join(task_named("work"))
    assert worker.lanes
    return await here.submit()


async def ended(stream: asyncio.Task[httpx2.Response]) -> str:
    """The text of a stream that ends within `OPEN_S`."""
    async with asyncio.timeout(OPEN_S):
        answer = await stream
    assert answer.status_code == 200
    assert answer.text.endswith(": the token of this stream holds no longer\n\n")
    return answer.text


async def test_a_stream_ends_with_its_token_and_others_go_on(there: World) -> None:
    job = await offering(there)
    id, token = await a_token(there)
    _, other = await a_token(there, queues=["Q"])
    stream, goes_on = (asyncio.create_task(events(there, job, each)) for each in (token, other))
    await until_followed(there, 2)
    await take_back(there, id)
    assert "event: state" in await ended(stream)
    await asyncio.sleep(2 * TOKEN_S)
    assert not goes_on.done()
    await there.manager._control.cancel([bytes.fromhex(job.replace("-", ""))])
    async with asyncio.timeout(10):
        assert '"cancelled"' in (await goes_on).text
    assert there.manager._events.followed.here == {}


async def test_a_stream_ends_when_its_token_expires(there: World) -> None:
    job = await offering(there)
    _, token = await a_token(there, expires_s=2)
    stream = asyncio.create_task(events(there, job, token))
    await until_followed(there, 1)
    while await reads(there, token) == 200:  # noqa: ASYNC110 - it is the clock that is waited for
        await asyncio.sleep(0.05)
    await ended(stream)


async def test_nothing_more_is_shown_on_a_stream_that_is_never_idle(there: World) -> None:
    """The look at the token comes before what is shown, not only when nothing comes."""
    job = await offering(there)
    id, token = await a_token(there)
    stream = asyncio.create_task(events(there, job, token))
    await until_followed(there, 1)
    raw = bytes.fromhex(job.replace("-", ""))
    await asyncio.sleep(0.1)  # so that the first state has been shown
    await take_back(there, id)
    for attempt in range(1, 50):
        there.manager._events.changed(raw, JobState.RUNNING, attempt)
        await asyncio.sleep(0)
    assert '"running"' not in await ended(stream)


async def test_what_was_waited_for_is_not_given_to_a_token_that_has_ended_meanwhile(there: World) -> None:
    worker = await there.peer().join(task_named("work"))
    ids = [await there.submit(), await there.submit()]
    id, token = await a_token(there, scopes=["read", "submit"])
    urls = [f"/job/pull/result?request_id={ids[0]}&wait=30", f"/jobs/api/v1/jobs/{ids[1]}"]
    async with there.client(REMOTE) as http:
        headers = {**bearer(token), "Prefer": "wait=30"}
        waiting = [asyncio.create_task(http.get(url, headers=headers)) for url in urls]
        waiting.append(asyncio.create_task(http.post("/Q/task/work", json={}, headers=headers)))
        async with asyncio.timeout(10):
            while len(there.manager._results._polls) < 3:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        await take_back(there, id)
        jobs = await worker.take(3)
        worker.say(Reports(number=1, items=[Report(job.seq, job.attempt, Outcome.SUCCEEDED, body=b"7") for job in jobs]))
        async with asyncio.timeout(20):
            pulled, looked, submitted = [await each for each in waiting]
        assert [pulled.status_code, looked.status_code, submitted.status_code] == [401, 401, 202]  # its job was taken in all the same
        assert submitted.json().keys() == {"request_id", "status"}
    async with there.client() as http:
        assert (await http.get(urls[0])).json() == 7  # it was not taken away


async def test_a_stream_ends_with_a_token_that_another_manager_has_taken_back(postgres_cluster: Cluster) -> None:
    postgres_cluster.sql("drop schema if exists easyjobs cascade")
    url: str = postgres_cluster.url()
    async with world(url) as one, world(url) as two:
        job = await offering(one)
        id, token = await a_token(one)
        stream = asyncio.create_task(events(two, job, token))
        await until_followed(two, 1)
        await take_back(one, id)
        await ended(stream)


async def test_a_stream_ends_with_its_token_although_no_hint_came_and_others_come_all_the_time(
    postgres_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NOTIFY can be lost; then it is the poll that finds what was taken back, and no hint about anything else may keep it from looking."""
    postgres_cluster.sql("drop schema if exists easyjobs cascade")
    url: str = postgres_cluster.url()

    async def busy() -> None:
        while True:
            two.manager._store.on_news(News((), has_ended=True, is_more=False))  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)

    async with world(url) as one, world(url) as two:
        job = await offering(one)
        id, token = await a_token(one)
        stream = asyncio.create_task(events(two, job, token))
        await until_followed(two, 1)
        others = asyncio.create_task(busy())
        try:
            monkeypatch.setattr(one.manager._store._writer, "told", lambda *_: None)  # type: ignore[attr-defined]
            await take_back(one, id)
            await ended(stream)
        finally:
            others.cancel()


# --- two secrets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[NEW, OLD], (NEW, OLD), f"{NEW}\n{OLD}\n"])
async def test_while_a_secret_is_replaced_tokens_of_both_hold_and_new_ones_are_of_the_new(given: object) -> None:
    async with world(server_secret=given) as here:
        for secret in (OLD, NEW):
            assert await reads(here, make_token(secret, [Scope.READ], 0)) == 200
        assert await reads(here, make_token("another " + NEW, [Scope.READ], 0)) == 401
        async with here.client() as http:
            made = (await http.post(TOKENS, json={"scopes": ["read"]}, headers=bearer(make_token(OLD, [Scope.ADMIN], 0)))).json()
    async with world(server_secret=NEW) as here:
        assert await reads(here, made["token"]) == 200
        assert await reads(here, make_token(OLD, [Scope.READ], 0)) == 401


def test_three_secrets_are_too_many() -> None:
    with pytest.raises(ConfigurationError, match="the one before it") as caught:
        ManagerSettings.read(secret=f"{NEW}\n{OLD}\na third secret of the tests, long enough", store="memory:")
    assert NEW not in str(caught.value)


PROGRAM = """
from fastapi import FastAPI
from easyjobs.manager import EasyJobsManager

server = FastAPI()

@server.on_event("startup")
async def startup():
    await EasyJobsManager.create(server, store="jobs.db")
"""
WORKER = """
import os
from fastapi import FastAPI
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()

@server.on_event("startup")
async def startup():
    worker = await EasyJobsWorker.create(server, manager_port=int(os.environ["TEST_MANAGER_PORT"]))

    @worker.task()
    async def whose():
        return os.environ["TEST_NAME"]
"""


def easyjobs(*argv: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "easyjobs", *argv],
        env=clean_environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_secret_is_replaced_without_a_moment_in_which_nobody_works(started: Processes, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "worker.py").write_text(WORKER)
    file = tmp_path / "secret"

    def manager(port: int | None = None) -> Served:
        return started.uvicorn(
            "program:server", directory=tmp_path, env={"EASYJOBS_SECRET_FILE": str(file)}, cwd=tmp_path, port=port
        ).until_ready()

    def worker(name: str, secret: str) -> Served:
        env = {"EASYJOBS_SECRET": secret, "TEST_MANAGER_PORT": str(first.port), "TEST_NAME": name}
        return started.uvicorn("worker:server", directory=tmp_path, env=env, name=name)

    def runs() -> bool:
        answer = first.call("POST", "/DEFAULT/task/whose", {}, headers={"Prefer": "wait=20"})
        return answer.status == 200 and answer.json()["result"] in {"old", "new"}

    file.write_text(OLD)
    first = manager()
    old = worker("old", OLD)
    old.wait_for_line("Application startup complete")
    first.until_offered("/DEFAULT/task/whose")
    assert runs()
    file.write_text(f"{NEW}\n{OLD}\n")  # 1: the manager takes both
    first.stop()
    second = manager(first.port)
    assert runs()
    new = worker("new", NEW)  # 2: workers, one after the other
    new.wait_for_line("Application startup complete")
    until("two workers", lambda: len(second.get("/jobs/api/v1/workers")["items"]) == 3)
    old.stop()
    assert runs()
    file.write_text(NEW)  # 3: the old one ends
    second.stop()
    manager(first.port)
    assert runs()


@pytest.mark.slow
def test_the_command_line_makes_lists_and_takes_back(started: Processes, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    manager = started.uvicorn(
        "program:server", directory=tmp_path, env={"EASYJOBS_SECRET": NEW, "EASYJOBS_AUTH": "required"}, cwd=tmp_path
    ).until_ready()
    env = {"EASYJOBS_SECRET": NEW, "EASYJOBS_MANAGER_URL": manager.url}
    made = easyjobs("token", "create", "--scope", "read", "--name", "billing", **env)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert manager.call("GET", "/jobs/api/v1/jobs", headers=bearer(token)).status == 200
    listed = easyjobs("token", "list", **env)
    id = token.split(".")[1]
    assert listed.stdout.split()[:2] == [id, "read"]
    assert token not in listed.stdout
    offline = easyjobs("token", "--scope", "read", **env).stdout.strip()
    assert easyjobs("token", "revoke", id, **env).returncode == 0
    assert easyjobs("token", "revoke", "-", stdin=offline + "\n", **env).returncode == 0
    for gone in (token, offline):
        answer = manager.call("GET", "/jobs/api/v1/jobs", headers=bearer(gone))
        assert answer.status == 401
        assert "taken back" in answer.json()["detail"]
    assert "revoked" in easyjobs("token", "list", **env).stdout
    wrong = easyjobs("token", "list", **{**env, "EASYJOBS_SECRET": OLD})
    assert wrong.returncode == 2
    assert "another secret" in wrong.stderr
    nobody = easyjobs("token", "list", **{**env, "EASYJOBS_MANAGER_URL": "http://127.0.0.1:1"})
    assert nobody.returncode == 2
    assert "EASYJOBS_MANAGER_URL" in nobody.stderr
    assert NEW not in "".join(done.stdout + done.stderr for done in (made, listed, wrong, nobody)) + manager.log
    assert os.environ.get("EASYJOBS_SECRET") is None
