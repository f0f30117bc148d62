from __future__ import annotations

import itertools

import httpx2
import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Receive, Send
from starlette.types import Scope as Scope_

from easyjobs.http.auth import (
    IMPLIED,
    LOCAL_SCOPES,
    Access,
    Facts,
    Grant,
    Scope,
    Verdict,
    allowed,
    is_from_a_page,
    is_loopback,
    is_same_origin,
    make_token,
)
from easyjobs.runtime.settings import Auth
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.http.conftest import BASE, LOCAL, SECRET, Manager, build, client_of

REMOTE = ("192.0.2.7", 40001)
V = Verdict


def facts(*, local: bool = True, foreign: bool = False, cross: bool = False, changes: bool = True, **more: object) -> Facts:
    return Facts(local, foreign, cross, changes, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "scope", "protected", "required", "off"),
    [
        (facts(), Scope.SUBMIT, V.ALLOWED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(), Scope.OPERATE, V.ALLOWED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(), Scope.WORKER, V.TOKEN_NEEDED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(), Scope.ADMIN, V.TOKEN_NEEDED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(changes=False), Scope.READ, V.ALLOWED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(local=False), Scope.SUBMIT, V.TOKEN_NEEDED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(local=False, changes=False), Scope.READ, V.TOKEN_NEEDED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(foreign=True), Scope.SUBMIT, V.FOREIGN_PAGE, V.TOKEN_NEEDED, V.FOREIGN_PAGE),
        (facts(cross=True), Scope.SUBMIT, V.FOREIGN_PAGE, V.TOKEN_NEEDED, V.FOREIGN_PAGE),
        (facts(local=False, foreign=True), Scope.SUBMIT, V.TOKEN_NEEDED, V.TOKEN_NEEDED, V.FOREIGN_PAGE),
        (facts(foreign=True, changes=False), Scope.READ, V.TOKEN_NEEDED, V.TOKEN_NEEDED, V.ALLOWED),
        (facts(cross=True, changes=False), Scope.READ, V.ALLOWED, V.TOKEN_NEEDED, V.ALLOWED),  # a link to us on another site
    ],
)
def test_a_request_without_a_token(request_: Facts, scope: Scope, protected: Verdict, required: Verdict, off: Verdict) -> None:
    assert allowed(request_, scope, Auth.PROTECTED) is protected
    assert allowed(request_, scope, Auth.REQUIRED) is required
    assert allowed(request_, scope, Auth.OFF) is off


@pytest.mark.parametrize(("held", "asked"), [*itertools.product(Scope, Scope)])
def test_a_token_allows_its_scopes_from_everywhere_and_nothing_else(held: Scope, asked: Scope) -> None:
    grant = Grant(IMPLIED[held], 0, "token:x")
    expected = V.ALLOWED if asked is held or held is Scope.ADMIN or (held, asked) == (Scope.OPERATE, Scope.READ) else V.SCOPE_MISSING
    for local, foreign in itertools.product((True, False), repeat=2):
        assert allowed(facts(local=local, foreign=foreign, grant=grant), asked, Auth.PROTECTED) is expected
        assert allowed(facts(local=local, foreign=foreign, grant=grant), asked, Auth.REQUIRED) is expected


@pytest.mark.parametrize("mode", [Auth.PROTECTED, Auth.REQUIRED])
@pytest.mark.parametrize("scope", [*Scope])
def test_a_token_of_ours_that_does_not_hold_is_refused_even_where_none_is_needed(scope: Scope, mode: Auth) -> None:
    assert allowed(facts(refused="expired"), scope, mode) is V.TOKEN_REFUSED


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True), ("LOCALHOST:8220", True), ("127.0.0.1:8220", True), ("127.1.2.3", True), ("[::1]:8220", True), ("::1", True),
        ("[::1]", True), ("0.0.0.0:8220", True), ("::ffff:127.0.0.1", True),
        ("", False), ("example.com", False), ("127.0.0.1.example.com", False), ("localhost.example.com:8220", False), ("127.0.0.1:80:80", False),
        ("localhost:", False), ("localhost:x", False), ("evil@localhost", False), ("192.0.2.7", False), ("[::2]:1", False), ("[::1]x", False),
        ("1270.0.0.1", False), ("localhost ", False), ("127.0.0.1\n", False),
    ],
)  # fmt: skip
def test_what_names_this_machine(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://127.0.0.1:8220", "127.0.0.1:8220", True), ("https://jobs.example.com", "jobs.example.com", True),
        ("https://jobs.example.com", "jobs.example.com:443", True), ("http://LOCALHOST:8220", "localhost:8220", True),
        ("null", "127.0.0.1:8220", False), ("http://evil.com", "127.0.0.1:8220", False), ("http://127.0.0.1:3000", "127.0.0.1:8220", False),
        ("", "", False), ("http://", "", False), ("http://127.0.0.1:8220.evil.com", "127.0.0.1:8220", False),
    ],
)  # fmt: skip
def test_what_is_the_same_origin(origin: str, host: str, same: bool) -> None:
    assert is_same_origin(origin, host) is same


def test_a_websocket_comes_from_no_page() -> None:
    host = (b"host", b"127.0.0.1:8220")
    assert not is_from_a_page([host])
    for origin in (b"http://127.0.0.1:8220", b"http://evil.com", b"null", b""):
        assert is_from_a_page([host, (b"origin", origin)])


# --- tokens ---------------------------------------------------------------------------------------------------------------------


def judge(token: str, clock: FakeClock | None = None, secret: str = SECRET) -> Verdict:
    access = Access(secret, Auth.REQUIRED, clock or FakeClock())
    return access.judge({"client": REMOTE}, {b"authorization": f"Bearer {token}".encode()}, Scope.SUBMIT, changes=True)[0]


def test_a_token_holds_until_it_expires() -> None:
    clock = FakeClock()
    token = make_token(SECRET, [Scope.SUBMIT], clock.now() // 1_000_000 + 60)
    access = Access(SECRET, Auth.REQUIRED, clock)
    for seconds, verdict in ((59, V.ALLOWED), (2, V.TOKEN_REFUSED)):
        clock.advance(seconds)
        assert access.judge({"client": REMOTE}, {b"authorization": f"Bearer {token}".encode()}, Scope.SUBMIT, changes=True)[0] is verdict


def test_no_part_of_a_token_can_be_changed() -> None:
    token = make_token(SECRET, [Scope.SUBMIT], 4_000_000_000, "x")
    assert judge(token) is V.ALLOWED
    for other in (
        token.replace("submit", "admin"),
        token.replace("4000000000", "0"),
        token.replace(".x.", ".y."),
        token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1],
        token.rpartition(".")[0] + ".",
        token + "x",
        "ej1.submit",
        "ej1.",
        "ej1." + "x" * 1000,
        "ej1.…..0..x",
    ):
        assert judge(other) is V.TOKEN_REFUSED
    assert judge(token, secret="another secret, also long enough to be one") is V.TOKEN_REFUSED
    assert judge(SECRET) is V.TOKEN_NEEDED  # the secret itself is no token


def test_a_credential_that_is_not_ours_counts_as_none(manager: Manager) -> None:
    local = {b"host": b"localhost", b"authorization": b"Bearer eyJhbGciOi.for.the-users-own-app"}
    assert manager.services.access.judge({"client": LOCAL}, local, Scope.SUBMIT, changes=True)[0] is V.ALLOWED
    assert manager.services.access.judge({"client": REMOTE}, local, Scope.SUBMIT, changes=True)[0] is V.TOKEN_NEEDED


@pytest.mark.parametrize(("scopes", "name"), [([], ""), ([Scope.READ], "a.b"), ([Scope.READ], "a b"), ([Scope.READ], "x" * 65)])
def test_a_token_that_could_not_be_read_is_not_made(scopes: list[Scope], name: str) -> None:
    with pytest.raises(ValueError, match="token"):
        make_token(SECRET, scopes, 0, name)


def test_neither_the_secret_nor_its_key_is_in_the_repr() -> None:
    assert SECRET not in repr(Access(SECRET, Auth.OFF, FakeClock()))


# --- over HTTP ------------------------------------------------------------------------------------------------------------------


def task() -> None: ...


async def ask(manager: Manager, client: tuple[str, int] = LOCAL, base: str = BASE, **headers: str) -> httpx2.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client_of(manager.app, client, base) as http:
        return await http.post("/DEFAULT/task/task", headers=sent)


async def test_this_machine_needs_no_token_unless_something_looks_forwarded_or_foreign(manager: Manager) -> None:
    await manager.offer(task)
    assert (await ask(manager)).status_code == 200
    assert (await ask(manager, client=("::1", 1), base="http://[::1]:8220")).status_code == 200
    assert (await ask(manager, Origin=BASE, Sec_Fetch_Site="same-origin")).status_code == 200
    assert (await ask(manager, client=REMOTE)).status_code == 401
    assert (await ask(manager, base="http://rebound.example.com")).status_code == 401
    for header in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via", "X-Forwarded-Host", "CF-Connecting-IP"):
        assert (await ask(manager, LOCAL, BASE, **{header: "127.0.0.1"})).status_code == 401, header
    assert (await ask(manager, Origin="http://evil.com")).status_code == 403
    assert (await ask(manager, Origin="null")).status_code == 403
    assert (await ask(manager, Sec_Fetch_Site="cross-site")).status_code == 403


async def test_the_401_names_the_command_and_the_challenge(manager: Manager) -> None:
    await manager.offer(task)
    answer = await ask(manager, client=REMOTE)
    assert answer.headers["www-authenticate"] == 'Bearer realm="easyjobs"'
    assert answer.headers["content-type"] == "application/problem+json"
    assert "easyjobs token --scope submit" in answer.json()["detail"]
    bad = await ask(manager, client=REMOTE, Authorization="Bearer ej1.submit.0..x")
    assert bad.status_code == 401
    assert "invalid_token" in bad.headers["www-authenticate"]


async def test_a_token_opens_the_door_from_elsewhere_and_for_its_scope_only(manager: Manager) -> None:
    await manager.offer(task)
    token = make_token(SECRET, [Scope.SUBMIT], 0)
    assert (await ask(manager, client=REMOTE, Authorization=f"Bearer {token}", Origin="https://app.example.com")).status_code == 200
    async with client_of(manager.app, REMOTE) as http:
        answer = await http.get("/jobs/api/v1/jobs", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 403
        assert "scope read" in answer.json()["detail"]


async def test_a_key_belongs_to_a_principal(manager: Manager) -> None:
    await manager.offer(task)
    ids = []
    for name in ("a", "b", "a"):
        token = make_token(SECRET, [Scope.SUBMIT], 0, name)
        ids.append((await ask(manager, Authorization=f"Bearer {token}", Idempotency_Key="k")).json()["request_id"])
    assert ids[0] == ids[2] != ids[1]


async def test_every_route_but_health_and_files_is_closed_to_strangers(manager: Manager) -> None:
    """Generated from the app's routes: a new route without a rule fails here."""
    await manager.offer(task)
    document = manager.app.openapi()
    opened = set()
    async with client_of(manager.app, REMOTE) as http:
        for path, item in document["paths"].items():
            for method in item:
                url = path.replace("{id}", "00000000-0000-0000-0000-000000000000")
                answer = await http.request(method, url, params={"request_id": "x"})
                if answer.status_code != 401:
                    opened.add((method, path))
    assert opened == {("get", "/jobs/healthz"), ("get", "/jobs/readyz")}
    assert len(document["paths"]) >= 12


@pytest.mark.parametrize(("path", "foreign"), [("/job/pull/result?request_id=x", 403), ("/job/view/result?request_id=x", 404)])
async def test_pull_is_checked_like_an_unsafe_method(http: httpx2.AsyncClient, path: str, foreign: int) -> None:
    assert (await http.get(path)).status_code == 404
    assert (await http.get(path, headers={"Sec-Fetch-Site": "cross-site"})).status_code == foreign


@pytest.mark.parametrize(("mode", "local", "remote", "foreign"), [(Auth.REQUIRED, 401, 401, 401), (Auth.OFF, 200, 200, 403)])
async def test_the_other_modes(store: MemoryStore, clock: FakeClock, mode: Auth, local: int, remote: int, foreign: int) -> None:
    manager = build(FastAPI(), store, clock, mode)
    await manager.offer(task)
    assert (await ask(manager)).status_code == local
    assert (await ask(manager, client=REMOTE)).status_code == remote
    assert (await ask(manager, client=REMOTE, Origin="http://evil.com")).status_code == foreign


def test_starlettes_test_client_counts_as_this_machine() -> None:
    seen = []

    async def app(scope: Scope_, receive: Receive, send: Send) -> None:
        seen.append(Access(SECRET, Auth.PROTECTED, FakeClock()).judge(scope, dict(scope["headers"]), Scope.SUBMIT, changes=True)[0])
        await Response()(scope, receive, send)

    TestClient(app).post("/")
    assert seen == [V.ALLOWED]


def test_the_scopes_of_this_machine_are_those_that_the_design_names() -> None:
    assert {Scope.SUBMIT, Scope.READ, Scope.OPERATE} == LOCAL_SCOPES
