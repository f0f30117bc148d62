"""A page of another site changes nothing at a manager, by no request that a browser sends for it: in a real Chromium.

Each way is tried from the manager's own page, too, where it does change something: else this would show nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from fastapi.middleware.cors import CORSMiddleware
from playwright.async_api import Page

from easyjobs.domain.job import ErrorInfo, Outcome, Report
from easyjobs.http.auth import Scope, make_token
from easyjobs.protocol.messages import Acked, Reports
from tests.security.pages import SITES, Scene, scene
from tests.security.world import SECRET, task_named

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

API = "/jobs/api/v1"
ADMIN = {"Authorization": "Bearer " + make_token(SECRET, [Scope.ADMIN], 0)}
PATIENCE_MS = 60_000

# Bodies that are a job: each as JSON, and as the name and value of one field of a form, which `text/plain` joins by a `=`.
SUBMIT = ('{"n": 1, "s": "', '"}')
BULK = ('{"namespace": "Q", "name": "takes", "kwargs": {"s": "', '"}}')

WAYS = """
const settled = promise => promise.then(() => "sent", () => "failed");

// A form in this page, whose answer goes to a frame: that it has come, or was refused, is known by the frame's load.
const form = (enctype, policy) => (url, [name, value]) => new Promise(done => {
    const form = document.createElement("form");
    form.method = "POST"; form.action = url; form.enctype = enctype;
    const field = document.createElement("input");
    field.name = name; field.value = value;
    form.append(field);
    const frame = document.createElement("iframe");
    frame.name = form.target = "frame" + Math.random();
    frame.referrerPolicy = policy;
    if (policy === "no-referrer") form.rel = "noreferrer";
    document.body.append(frame, form);
    frame.onload = () => { if (frame.dataset.sent) done("sent"); };
    setTimeout(() => { frame.dataset.sent = 1; form.submit(); }, 0);
    setTimeout(() => done("no answer"), 5000);
});
const send = (mode, method, body, more) => (url, parts) =>
    settled(fetch(url, {mode, method, credentials: "include", body: body(parts.join("=")), ...more}));
const text = body => body;
const json = {headers: {"Content-Type": "application/json"}};

window.ways = {
    "form urlencoded": form("application/x-www-form-urlencoded", ""),
    "form multipart": form("multipart/form-data", ""),
    "form text": form("text/plain", ""),
    "form without referrer": form("text/plain", "no-referrer"),
    "no-cors text": send("no-cors", "POST", text),
    "no-cors fields": send("no-cors", "POST", body => new URLSearchParams({body})),
    "no-cors form": send("no-cors", "POST", body => { const data = new FormData(); data.append("body", body); return data; }),
    "no-cors json": send("no-cors", "POST", body => new Blob([body], {type: "application/json"})),
    "no-cors nothing": send("no-cors", "POST", () => undefined),
    "no-cors without referrer": send("no-cors", "POST", text, {referrerPolicy: "no-referrer"}),
    "no-cors keepalive": send("no-cors", "POST", text, {keepalive: true}),
    "cors json": send("cors", "POST", text, json),
    "cors text": send("cors", "POST", text),
    "put": send("cors", "PUT", text, json),
    "patch": send("cors", "PATCH", text, json),
    "delete": send("cors", "DELETE", () => undefined),
    "beacon text": async (url, parts) => navigator.sendBeacon(url, parts.join("=")) ? "sent" : "failed",
    "beacon json": async (url, parts) => navigator.sendBeacon(url, new Blob([parts.join("=")], {type: "application/json"})) ? "sent" : "failed",
    "xhr": (url, parts) => new Promise(done => {
        const request = new XMLHttpRequest();
        request.open("POST", url);
        request.onloadend = () => done("sent");
        request.send(parts.join("="));
    }),
};
"""
WALK = """async ([targets, names]) => {
    const all = [];
    for (const name of names ?? Object.keys(window.ways))
        for (const [url, parts] of targets) all.push(await window.ways[name](url, parts));
    return all.length;
}"""
# Each loads the address in the way of its own kind, and none can read it: a pull would take the result away all the same.
LOOK = """async urls => {
    const seen = kind => url => new Promise(done => {
        const element = document.createElement(kind);
        element.onload = element.onerror = () => done();
        if (kind === "link") { element.rel = "stylesheet"; element.href = url; } else element.src = url;
        document.body.append(element);
        setTimeout(done, 5000);
    });
    for (const url of urls) {
        for (const kind of ["img", "script", "link", "iframe"]) await seen(kind)(url);
        for (const mode of ["no-cors", "cors"]) await fetch(url, {mode, credentials: "include"}).catch(() => 0);
    }
}"""


async def fill(there: Scene) -> dict[str, str]:
    """A job in each state that somebody could want to change."""

    def takes(n: int = 0, s: str = "", body: str = "") -> str:
        return s + body

    worker = await there.here.peer().join(task_named("takes", takes, options=b'{"schedule":["0 0 1 1 *"]}'))
    ids = [await there.here.submit("takes") for _ in range(4)]
    good, bad, _ = await worker.take(3)
    error = msgspec.json.encode(ErrorInfo("E", "it failed"))
    done = [
        Report(good.seq, good.attempt, Outcome.SUCCEEDED, body=b'"done"'),
        Report(bad.seq, bad.attempt, Outcome.FAILED, body=error),
    ]
    worker.say(Reports(number=1, items=done, limit=3))
    await worker.hear(Acked)
    return dict(zip(("succeeded", "failed", "running", "queued"), ids, strict=True))


async def state(there: Scene, ids: dict[str, str]) -> Any:
    """Everything that could have been changed."""
    async with there.here.client() as http:
        lists = [(await http.get(f"{API}/{what}")).json()["items"] for what in ("jobs", "queues", "schedules", "quarantine")]
        jobs = [(await http.get(f"{API}/jobs/{id}")).json() for id in ids.values()]
        return [*lists, *jobs, (await http.get(f"{API}/tokens", headers=ADMIN)).json()]


def changing(base: str, ids: dict[str, str]) -> list[tuple[str, tuple[str, str]]]:
    """Addresses that change something, with what is sent there."""
    [schedule] = [ids["schedule"]]
    targets = [
        ("/Q/task/takes", SUBMIT), ("/task/takes", SUBMIT), ("/Q/task/takes?n=1", SUBMIT), (f"{API}/jobs", BULK), (f"{API}/queues/Q/pause", SUBMIT),
        (f"{API}/jobs/{ids['failed']}/retry", SUBMIT), (f"{API}/jobs/{ids['running']}/cancel", SUBMIT), (f"{API}/jobs/{ids['queued']}/cancel", SUBMIT),
        (f"{API}/jobs/{ids['succeeded']}", SUBMIT), (f"{API}/schedules/{schedule}/run", SUBMIT), (f"{API}/schedules/{schedule}/pause", SUBMIT),
        (f"{API}/tokens", ('{"scopes": ["admin"], "name": "', '"}')), (f"{API}/tokens/0123456789abcdef", SUBMIT),
    ]  # fmt: skip
    return [(base + path, parts) for path, parts in targets]


async def schedule_of(there: Scene) -> str:
    async with there.here.client() as http:
        return str((await http.get(f"{API}/schedules")).json()["items"][0]["id"])


async def ready(page: Page) -> Page:
    page.set_default_timeout(PATIENCE_MS)
    await page.evaluate(WAYS)
    return page


@pytest.mark.parametrize("cors", [False, True], ids=["as it is", "an app that lets all origins in"])
@pytest.mark.parametrize("auth", ["protected", "off"])
async def test_no_request_of_another_sites_page_changes_anything(auth: str, cors: bool) -> None:
    async with scene(auth=auth) as there:
        if cors:
            there.here.app.add_middleware(
                CORSMiddleware, allow_origin_regex=".*", allow_methods=["*"], allow_headers=["*"], allow_credentials=True
            )
        ids = await fill(there)
        targets = changing(f"http://{there.manager}", ids | {"schedule": await schedule_of(there)})
        before = await state(there, ids)
        pulls = [f"http://{there.manager}/job/pull/result?wait=0&request_id={ids['succeeded']}"]
        for where, site in SITES.items():
            page = await ready(await there.page(site(there)))
            there.own.seen.clear()
            assert await page.evaluate(WALK, [targets, None])
            if where != "a sandbox":
                redirected = [(f"http://evil.test:{there.other.port}/redirect?{url}", parts) for url, parts in targets]
                await page.evaluate(WALK, [redirected, ["form text", "no-cors text"]])
            await page.evaluate(LOOK, pulls)
            await page.wait_for_load_state("networkidle")
            asked = [(method, status) for method, path, status in there.own.seen if method != "OPTIONS"]
            assert len([status for method, status in asked if method == "POST"]) > 10 * len(targets), "the browser did send them"
            assert [status for method, status in asked if method == "GET"], "and asked for the result"
            assert {status for _, status in asked} <= {401, 403, 404, 405}, (where, asked)
            assert {method for method, _ in asked} >= ({"PUT", "DELETE", "PATCH"} if cors else {"POST"})
            assert await state(there, ids) == before, where
        # By a link: the browser says whose it is.
        page = await there.page(SITES["another site"](there))
        await page.evaluate("url => { location = url; }", pulls[0])
        await page.wait_for_url(pulls[0])
        assert await state(there, ids) == before


@pytest.mark.parametrize("auth", ["protected", "off"])
async def test_the_same_requests_of_the_managers_own_page_do(auth: str) -> None:
    async with scene(auth=auth) as there:
        ids = await fill(there)
        base = f"http://{there.manager}"
        page = await ready(await there.page(f"{base}/docs"))
        born = 0
        for way in ("form text", "no-cors text", "no-cors json", "no-cors keepalive", "cors json", "xhr", "beacon text", "beacon json"):
            await page.evaluate(WALK, [[(f"{base}/Q/task/takes", SUBMIT), (f"{API}/jobs", BULK)], [way]])
            born += 2
            async with asyncio.timeout(60), there.here.client() as http:
                while len((await http.get(f"{API}/jobs")).json()["items"]) < len(ids) + born:  # noqa: ASYNC110 - a beacon tells nothing of its end
                    await asyncio.sleep(0.02)
        pull = f"{base}/job/pull/result?wait=0&request_id={ids['succeeded']}"
        before = await there.here.job(ids["succeeded"])
        await page.evaluate(LOOK, [pull])
        assert await there.here.job(ids["succeeded"]) != before
