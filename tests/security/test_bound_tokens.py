"""Tokens that are bound to queues: what each route does with them is in `test_access`; here, what no table of routes shows."""

from __future__ import annotations

import os
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from easyjobs.cli.main import app as command_line
from easyjobs.http.auth import MAX_QUEUES, MAX_TOKEN, Access, Scope, Verdict, make_token
from easyjobs.runtime.settings import Auth
from tests.clocks import FakeClock
from tests.postgres import Cluster
from tests.security.test_access import API, two_queues
from tests.security.world import REMOTE, SECRET, World, task_named, world

TOKENS = f"{API}/tokens"
ADMIN = {"Authorization": "Bearer " + make_token(SECRET, [Scope.ADMIN], 0)}


def bound(*queues: str, scopes: tuple[Scope, ...] = (Scope.SUBMIT, Scope.OPERATE), name: str = "") -> dict[str, str]:
    return {"Authorization": "Bearer " + make_token(SECRET, scopes, 0, name, os.urandom(8).hex(), queues)}


async def post(world: World, url: str, headers: dict[str, str], body: Any = None, **more: str) -> httpx2.Response:
    async with world.client(REMOTE) as http:
        return await http.post(
            url, json=body if body is not None else {}, headers=headers | {k.replace("_", "-"): v for k, v in more.items()}
        )


async def seen(world: World, url: str, headers: dict[str, str]) -> Any:
    async with world.client(REMOTE) as http:
        answer = await http.get(url, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()


# --- what a token says ----------------------------------------------------------------------------------------------------------

QUEUES = st.frozensets(st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True), min_size=1, max_size=MAX_QUEUES)


def judge(token: str) -> tuple[Verdict, Any]:
    access = Access(SECRET, Auth.REQUIRED, FakeClock())
    verdict, facts = access.judge({"client": REMOTE}, {b"authorization": f"Bearer {token}".encode()}, Scope.SUBMIT, changes=True)
    return verdict, facts.grant


@given(queues=QUEUES, name=st.from_regex(r"[A-Za-z0-9_-]{0,64}", fullmatch=True))
def test_a_token_is_read_with_the_queues_it_was_made_with(queues: frozenset[str], name: str) -> None:
    token = make_token(SECRET, [*set(Scope) - {Scope.ADMIN}], 2**62, name, "0" * 16, queues)
    verdict, grant = judge(token)
    assert verdict is Verdict.ALLOWED
    assert grant.queues == queues
    assert len(token) <= MAX_TOKEN


def test_the_queues_of_a_token_cannot_be_changed_or_left_out() -> None:
    token = make_token(SECRET, [Scope.SUBMIT], 0, "x", "0" * 16, ["MAIL", "a.b"])
    said, _, mac = token.rpartition(".")
    assert said.endswith(".MAIL+a~b")
    for other in (token.replace("MAIL", "BILL"), token.replace("+a~b", ""), token.replace(".MAIL+a~b", ""), token.replace("ej3", "ej2")):
        assert judge(other)[0] is Verdict.TOKEN_REFUSED
    assert judge(f"ej2.{said.removeprefix('ej3.').removesuffix('.MAIL+a~b')}.{mac}")[0] is Verdict.TOKEN_REFUSED


@pytest.mark.parametrize(
    ("scopes", "id", "queues", "why"),
    [
        ([Scope.ADMIN], "0" * 16, ["MAIL"], "admin"),
        ([Scope.READ], "", ["MAIL"], "id"),
        ([Scope.READ], "0" * 16, [], "1 to 16"),
        ([Scope.READ], "0" * 16, [str(n) for n in range(MAX_QUEUES + 1)], "1 to 16"),
        ([Scope.READ], "0" * 16, ["a b"], "'a b'"),
        ([Scope.READ], "0" * 16, ["a+b"], "queue's name"),
        ([Scope.READ], "0" * 16, [""], "queue's name"),
    ],
)
def test_a_bond_that_cannot_be_meant_is_not_made(scopes: list[Scope], id: str, queues: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make_token(SECRET, scopes, 0, "", id, queues)


# --- made, listed, taken back ---------------------------------------------------------------------------------------------------


async def test_a_bound_token_is_made_listed_and_taken_back(store_address: str) -> None:
    async with world(store_address) as here:
        made = (await post(here, TOKENS, ADMIN, {"scopes": ["read"], "queues": ["MAIL", "BILLS", "MAIL"]})).json()
        free = (await post(here, TOKENS, ADMIN, {"scopes": ["read"]})).json()
        listed = {item["id"]: item["queues"] for item in (await seen(here, TOKENS, ADMIN))["items"]}
        assert listed == {made["id"]: ["BILLS", "MAIL"], free["id"]: None}
        await here.peer().join(task_named("task"), queue="OTHER")
        token = {"Authorization": f"Bearer {made['token']}"}
        assert (await seen(here, f"{API}/tasks", token))["items"] == []
        async with here.client(REMOTE) as http:
            await http.delete(f"{TOKENS}/{made['id']}", headers=ADMIN)
            assert (await http.get(f"{API}/tasks", headers=token)).status_code == 401
    if store_address != "memory:":
        async with world(store_address) as here:
            assert {item["id"]: item["queues"] for item in (await seen(here, TOKENS, ADMIN))["items"]} == listed


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": ["admin"], "queues": ["MAIL"]},
        {"scopes": ["read", "admin"], "queues": ["MAIL"]},
        {"scopes": ["read"], "queues": []},
        {"scopes": ["read"], "queues": ["a b"]},
        {"scopes": ["read"], "queues": "MAIL"},
        {"scopes": ["read"], "queues": [str(n) for n in range(MAX_QUEUES + 1)]},
    ],
)
async def test_a_bond_that_cannot_be_meant_is_not_made_over_http(here: World, body: object) -> None:
    answer = await post(here, TOKENS, ADMIN, body)
    assert answer.status_code == 422
    assert (await seen(here, TOKENS, ADMIN))["items"] == []


def test_the_command_line_binds_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EASYJOBS_SECRET", SECRET)
    done = CliRunner().invoke(command_line, ["token", "--scope", "submit", "--queue", "MAIL", "--queue", "a.b"])
    assert done.exit_code == 0, done.output
    assert "queues: MAIL, a.b;" in done.stderr
    assert judge(done.stdout.strip())[1].queues == {"MAIL", "a.b"}
    wrong = CliRunner().invoke(command_line, ["token", "--scope", "admin", "--queue", "MAIL"])
    assert wrong.exit_code != 0
    assert "admin" in str(wrong.exception)


# --- submits --------------------------------------------------------------------------------------------------------------------


async def test_a_bulk_request_with_one_job_of_another_queue_stores_none(there: World) -> None:
    for queue in ("MAIL", "BILLS"):
        await there.peer().join(task_named("task"), queue=queue, name=queue)
    mail, bills = ({"namespace": queue, "name": "task"} for queue in ("MAIL", "BILLS"))
    for body in ([mail, bills], [bills], bills, {"job": bills}):
        assert (await post(there, f"{API}/jobs", bound("MAIL"), body)).status_code == 403
    async with there.client(REMOTE) as http:
        lines = b'{"namespace":"MAIL","name":"task"}\n{"namespace":"BILLS","name":"task"}'
        headers = bound("MAIL") | {"Content-Type": "application/x-ndjson"}
        assert (await http.post(f"{API}/jobs", content=lines, headers=headers)).status_code == 403
    assert (await seen(there, f"{API}/jobs", ADMIN))["items"] == []
    assert (await post(there, f"{API}/jobs", bound("MAIL", "BILLS"), [mail, bills])).status_code == 202


async def test_a_task_without_its_queue_is_looked_for_in_the_queues_of_the_token(here: World) -> None:
    for queue in ("MAIL", "BILLS", "DEFAULT"):
        await here.peer().join(task_named("task"), task_named(f"only_{queue.lower()}"), queue=queue, name=queue)
    for url, body in (("/task/task", {}), (f"{API}/jobs", {"name": "task"})):
        answer = await post(here, url, bound("MAIL"), body)
        assert answer.status_code in {200, 202}, answer.text
        async with here.client() as http:
            assert (await http.get(answer.headers["Location"])).json()["namespace"] == "MAIL"
        both = await post(here, url, bound("MAIL", "BILLS"), body)
        assert both.status_code == 409
        assert both.json()["namespaces"] == ["BILLS", "MAIL"]
        unknown = await post(here, url.replace("task/task", "task/only_bills"), bound("MAIL"), {"name": "only_bills"} if body else {})
        assert unknown.status_code == 404
        assert unknown.json()["near"] == ["MAIL/only_mail"]


# --- what is seen ---------------------------------------------------------------------------------------------------------------


async def test_what_another_queue_has_to_do_with_a_job_is_not_shown(here: World) -> None:
    await here.peer().join(task_named("before"), queue="BILLS", name="bills-worker")
    await here.peer().join(task_named("task", options=b'{"run_before":["BILLS/before"]}'), queue="MAIL", name="mail-worker")
    id = await here.submit("task", queue="MAIL")
    whole = await seen(here, f"{API}/jobs/{id}", ADMIN)
    assert [child["namespace"] for child in whole["children"]] == ["BILLS"]
    assert (await seen(here, f"{API}/jobs/{id}", bound("MAIL")))["children"] == []
    assert "BILLS" in str(await seen(here, f"{API}/jobs/{id}/explain", ADMIN))
    [reason] = (await seen(here, f"{API}/jobs/{id}/explain", bound("MAIL")))["reasons"]
    assert reason["text"] == "it waits for the jobs that run before it"
    before = whole["children"][0]["id"]
    async with here.client(REMOTE) as http:
        assert (await http.get(f"{API}/jobs/{before}", headers=bound("MAIL"))).status_code == 404


async def test_of_a_worker_with_tasks_of_several_queues_only_what_is_reached_is_shown() -> None:
    async with two_queues() as here:

        @here.manager.task(namespace="mail")
        async def own_mail() -> None: ...

        @here.manager.task(namespace="bills")
        async def own_bills() -> None: ...

        await here.manager._offering
        items = (await seen(here, f"{API}/workers", bound("mail")))["items"]
        assert sorted((item["tasks"], item["running"]) for item in items) == [(["mail/mail_task"], 1), (["mail/own_mail"], 0)]
        [queue] = (await seen(here, f"{API}/queues", bound("mail")))["items"]
        assert (queue["namespace"], queue["queued"], queue["running"], queue["succeeded"]) == ("mail", 1, 1, 1)


async def test_a_job_of_a_task_that_another_manager_was_just_offered_is_found(postgres_cluster: Cluster) -> None:
    postgres_cluster.sql("drop schema if exists easyjobs cascade")
    url: str = postgres_cluster.url()
    async with world(url) as one, world(url) as two:
        await one.peer().join(task_named("task"), queue="MAIL")
        id = await one.submit("task", queue="MAIL")
        assert (await seen(two, f"{API}/jobs/{id}", bound("MAIL")))["id"] == id
        async with two.client(REMOTE) as http:
            assert (await http.get(f"{API}/jobs/{id}", headers=bound("BILLS"))).status_code == 404


# --- Idempotency-Keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/MAIL/task/task", f"{API}/jobs"])
async def test_two_tokens_share_no_keys_whatever_they_have_in_common(there: World, url: str) -> None:
    await there.peer().join(task_named("task"), queue="MAIL")
    body = {"namespace": "MAIL", "name": "task"} if "api" in url else {"n": 1}
    other = {"namespace": "MAIL", "name": "task", "args": [2]} if "api" in url else {"n": 2}
    tokens = [
        *(bound("MAIL", scopes=(Scope.SUBMIT,)) for _ in range(2)),
        *(bound("MAIL", scopes=(Scope.SUBMIT,), name="billing") for _ in range(2)),
        *({"Authorization": "Bearer " + make_token(SECRET, [Scope.SUBMIT], 0, "billing", os.urandom(8).hex())} for _ in range(2)),
        *({"Authorization": "Bearer " + make_token(SECRET, [Scope.SUBMIT], expiry)} for expiry in (2**40, 2**40 + 1)),
    ]
    answers = [await post(there, url, token, body, Idempotency_Key="k") for token in tokens]
    ids = [answer.json().get("request_id") or answer.json()["request_ids"][0] for answer in answers]
    assert len(set(ids)) == len(tokens)
    assert [(await post(there, url, token, body, Idempotency_Key="k")).json() for token in tokens] == [answer.json() for answer in answers]
    for token in tokens:  # nor does a key say whether somebody else has used it
        assert (await post(there, url, token, other, Idempotency_Key="k")).status_code == 422
        assert (await post(there, url, bound("MAIL"), other, Idempotency_Key="k")).status_code in {200, 202}
