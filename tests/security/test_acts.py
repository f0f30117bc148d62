"""Who changes something of others is in the log: each route that does, whoever it is, however it ends."""

from __future__ import annotations

import logging

import pytest

from easyjobs.http.auth import Scope, make_token
from easyjobs.protocol.messages import Control, Controlled, Welcome
from tests.security.test_access import RULES
from tests.security.world import REMOTE, SECRET, UUID, World, task_named

API = "/jobs/api/v1"
ID = "0123456789abcdef"
TOKEN = make_token(SECRET, [Scope.ADMIN], 0, "ops", ID)
ACTS = [(method, path) for (method, path), rule in RULES.items() if rule in (Scope.OPERATE, Scope.ADMIN) and method != "GET"]


def acts(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.fields for record in caplog.records if getattr(record, "event", "") == "operator.acted"]  # type: ignore[attr-defined]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "easyjobs")
    return caplog


@pytest.mark.parametrize(("method", "path"), ACTS)
async def test_each_route_that_changes_something_of_others_says_who_did_what(
    here: World, logged: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    await here.peer().join(task_named("work"))
    job = await here.submit()
    id = job if "/jobs/{id}" in path else ID if "/tokens/" in path else "1"
    url = path.replace("{id}", id).replace("{queue}", "Q")
    async with here.client(REMOTE) as http:
        body = {"scopes": ["read"]} if url.endswith("/tokens") else None
        answer = await http.request(method, url, json=body, headers={"Authorization": f"Bearer {TOKEN}"})
    [act] = acts(logged)
    made = answer.json()["id"] if answer.status_code == 201 else None
    assert act == {"by": f"token:{ID}", "peer": REMOTE[0], "did": f"{method} {url}", "made": made, "status": answer.status_code}
    assert TOKEN not in logged.text
    assert answer.status_code != 201 or answer.json()["token"] not in logged.text


async def test_this_machine_is_named_as_such_and_who_is_refused_or_only_looks_is_not_logged(
    here: World, logged: pytest.LogCaptureFixture
) -> None:
    async with here.client() as http:
        await http.post(f"{API}/queues/Q/pause")
        await http.get(f"{API}/queues")
        await http.post(f"{API}/queues/Q/resume", headers={"Origin": "http://evil.example"})
    async with here.client(REMOTE) as http:
        await http.post(f"{API}/queues/Q/resume")
    assert [(act["by"], act["did"]) for act in acts(logged)] == [("local", f"POST {API}/queues/Q/pause")]


async def test_a_client_of_the_socket_is_in_the_log_too(here: World, logged: pytest.LogCaptureFixture) -> None:
    await here.peer().join(task_named("work"))
    id = await here.submit()
    client = here.peer()
    await client.hello(role="client")
    await client.hear(Welcome)
    client.say(Control(number=1, verb="cancel", ids=[bytes.fromhex(id.replace("-", "")), bytes.fromhex(UUID.replace("-", ""))]))
    await client.hear(Controlled)
    [act] = acts(logged)
    assert act == {"by": "secret", "peer": "127.0.0.1", "did": "cancel", "jobs": 2, "first": id}
