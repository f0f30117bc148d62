"""What hostile workers and submitters say is data in every answer: never a page, a script or a header."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import msgspec
import pytest

from easyjobs.domain.job import ErrorInfo, Outcome, Report
from easyjobs.domain.seeing import Line, Mark
from easyjobs.protocol.messages import Acked, Log, Progress, Reports
from tests.security.test_access import APP, READ, RULES
from tests.security.world import World, task_named

HOSTILE = "<!doctype html><html><script>window.__pwned = 1; alert(1)</script><img src=x onerror='window.__pwned = 1'>\r\nX-Injected: 1"
DATA = {"application/json", "application/problem+json", "text/event-stream"}


def takes(text: str = "") -> str:
    """What the tests' workers offer."""
    return text


async def hostile_jobs(here: World) -> list[str]:
    """A worker whose name, log, progress, results and errors are pages; the ids of a job that succeeded, one that failed, one that runs and one that waits."""
    worker = await here.peer().join(task_named("takes", takes), name=HOSTILE[:60].replace("\r\n", " "))
    ids = [await here.submit("takes", {"text": HOSTILE}) for _ in range(4)]
    good, bad, runs = await worker.take(3)
    worker.say(Log(number=1, lines=[Line(job.seq, job.attempt, 1, 1, 20, HOSTILE, HOSTILE) for job in (good, bad, runs)]))
    await worker.hear(Acked)
    worker.say(Progress(items=[Mark(job.seq, job.attempt, 1, 2, HOSTILE) for job in (good, bad, runs)]))
    error = msgspec.json.encode(ErrorInfo(HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    done = [
        Report(good.seq, good.attempt, Outcome.SUCCEEDED, body=msgspec.json.encode(HOSTILE)),
        Report(bad.seq, bad.attempt, Outcome.FAILED, body=error),
    ]
    worker.say(Reports(number=2, items=done, limit=3))
    await worker.hear(Acked)
    return ids


def is_data(answer: httpx2.Response) -> None:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert kind in DATA, (answer.url, kind)
    assert answer.headers["x-content-type-options"] == "nosniff", answer.url
    assert "x-injected" not in answer.headers
    assert "\r" not in answer.text
    if kind != "text/event-stream":
        msgspec.json.decode(answer.content)
    else:
        assert all(line == "" or line.partition(":")[0] in {"", "event", "id", "data", "retry"} for line in answer.text.split("\n"))


def urls_of(path: str, id: str) -> str:
    for name, value in (("{id}", id), ("{queue}", "Q")):
        path = path.replace(name, value)
    if path.endswith("/result"):
        path += f"?request_id={id}" + ("&wait=0" if "pull" in path else "")
    return path


READING = [path for (method, path), rule in RULES.items() if method == "GET" and rule is READ]
WITHOUT_TEXTS = ("/queued", "/running", "/queues", "/tasks", "/schedules", "/schedules/{id}", "/quarantine", "/explain")


@pytest.mark.parametrize("path", READING)
async def test_whatever_a_worker_says_is_shown_as_data(here: World, path: str) -> None:
    ids = await hostile_jobs(here) if "schedules" not in path else ["1"]
    if path.endswith("/events"):  # of a job that goes on the stream does too
        ids = ids[:2]
    shown = ""
    async with here.client() as http, asyncio.timeout(30):
        for id in ids if "{id}" in path or path.endswith("/result") else ids[:1]:
            answer = await http.get(urls_of(path, id), headers={"Accept": "text/html"})
            is_data(answer)
            shown += answer.text
    if not path.endswith(WITHOUT_TEXTS):
        assert "<script>" in shown, "else this shows nothing"


async def test_what_a_submitter_sends_comes_back_as_data(here: World) -> None:
    await here.peer().join(task_named("takes", takes))
    wrong: list[tuple[str, Any]] = [
        ("/Q/task/takes", {HOSTILE: 1}), ("/Q/task/takes", {"text": {HOSTILE: HOSTILE}}), ("/jobs/api/v1/jobs", [{"name": HOSTILE, "namespace": HOSTILE}]),
        ("/jobs/api/v1/jobs", {HOSTILE: HOSTILE}), ("/Q/task/<script>alert(1)", {}), ("/task/<script>", {}), ("/<script>/task/takes", {}),
    ]  # fmt: skip
    async with here.client() as http:
        for path, body in wrong:
            answer = await http.post(path, json=body, headers={"Accept": "text/html"})
            assert 400 <= answer.status_code < 500, answer.text
            is_data(answer)
        is_data(await http.post("/Q/task/takes", json={"text": HOSTILE}))
        is_data(await http.post("/Q/task/takes", json={"text": HOSTILE}, headers={"Prefer": "wait=0"}))
        for query in ("request_id=<script>", "request_id=<script>&job_id=<img>", "wait=<script>"):
            answer = await http.get(f"/job/pull/result?{query}")
            assert answer.headers["content-type"].partition(";")[0] in DATA


async def test_nothing_but_the_apps_own_pages_is_a_page(here: World) -> None:
    async with here.client() as http:
        for (method, path), rule in RULES.items():
            if rule == APP or method == "WEBSOCKET":
                continue
            answer = await http.request(method, urls_of(path, "<script>alert(1)<%2fscript>"), headers={"Accept": "text/html"})
            kind = answer.headers.get("content-type", "").partition(";")[0]
            assert not answer.content or kind in DATA | {"text/plain"}, (method, path, kind)
