"""Messages that could not become jobs, over HTTP."""

from __future__ import annotations

import httpx2
import pytest

from easyjobs.http.auth import Scope, make_token
from easyjobs.services.inbox import Letter
from tests.http.conftest import SECRET, Manager

PATH = "/jobs/api/v1/quarantine"


async def work(a: int = 1) -> int:
    return a


async def put(manager: Manager, *bodies: bytes) -> None:
    await manager.services.inbox.take([Letter("b", "DEFAULT", f"m{body!r}", body) for body in bodies])


async def test_it_is_listed_in_pages_with_its_reason(manager: Manager, http: httpx2.AsyncClient) -> None:
    await put(manager, b"{", b'{"name":"later"}', b"\xff")
    first = (await http.get(f"{PATH}?limit=2")).json()
    rest = (await http.get(f"{PATH}?limit=2&cursor={first['next_cursor']}")).json()
    items = first["items"] + rest["items"]
    assert [item["reason"] for item in items] == ["bad_json", "unknown_task", "bad_json"]
    assert (items[2]["body"], items[2]["size"], items[2]["namespace"], items[2]["broker"]) == ("{", 1, "DEFAULT", "b")
    assert items[1]["waits_until"] is not None
    assert rest["next_cursor"] is None
    assert len((await http.get(f"{PATH}?reason=unknown_task")).json()["items"]) == 1


async def test_it_is_replayed_once_its_task_is_there(manager: Manager, http: httpx2.AsyncClient) -> None:
    await put(manager, b'{"name":"work","args":[7]}')
    [item] = (await http.get(PATH)).json()["items"]
    refused = await http.post(f"{PATH}/{item['id']}/replay")
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    await manager.offer(work)
    [id] = (await http.post(f"{PATH}/{item['id']}/replay")).json()["request_ids"]
    assert (await http.get(f"/jobs/api/v1/jobs/{id}")).json()["args"] == [7]
    assert (await http.post(f"{PATH}/{item['id']}/replay")).status_code == 404


async def test_it_is_deleted(manager: Manager, http: httpx2.AsyncClient) -> None:
    await put(manager, b"{")
    [item] = (await http.get(PATH)).json()["items"]
    assert (await http.delete(f"{PATH}/{item['id']}")).status_code == 204
    assert (await http.delete(f"{PATH}/{item['id']}")).status_code == 404
    assert (await http.get(PATH)).json()["items"] == []


@pytest.mark.parametrize(("method", "path"), [("POST", f"{PATH}/99/replay"), ("DELETE", f"{PATH}/99")])
async def test_it_takes_the_scope_operate(http: httpx2.AsyncClient, method: str, path: str) -> None:
    for scope, expected in ((Scope.READ, 403), (Scope.SUBMIT, 403), (Scope.OPERATE, 404)):
        headers = {"Authorization": f"Bearer {make_token(SECRET, [scope], 0)}", "X-Forwarded-For": "9.9.9.9"}
        assert (await http.request(method, path, headers=headers)).status_code == expected
