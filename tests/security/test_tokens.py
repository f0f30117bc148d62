"""Tokens that are made, listed and taken back; two secrets while one is being replaced."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from easyjobs.errors import ConfigurationError
from easyjobs.http.auth import Scope, make_token
from easyjobs.runtime.settings import ManagerSettings
from tests.postgres import Cluster
from tests.processes import Processes, Served, clean_environment, until
from tests.security.world import REMOTE, SECRET, World, world

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
