"""Progress, logs and changes of state of running jobs, as a user's programs see them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from easyjobs.client import EasyJobsClient
from easyjobs.domain.seeing import LogLine, News, Progress, StateChanged
from easyjobs.errors import UnknownJob
from tests.acceptance.readme import Reader
from tests.acceptance.seed import start_manager, start_worker
from tests.processes import ROOT, Process, Processes, Served, processes, until

SECRET = "abcd1234"
PATH = "/jobs/api/v1/jobs"


@dataclass
class Running:
    manager: Served
    worker: Process
    gates: Path

    def open(self, name: str) -> None:
        (self.gates / name).touch()


def start(group: Processes, directory: Path) -> Running:
    gates = directory / "gates"
    gates.mkdir()
    manager = start_manager(group, directory).until_ready()
    worker = start_worker(group, manager.port, app="seen_worker:server", TEST_GATES=str(gates))
    manager.until_offered("/DEFAULT/task/looks_on", within_s=40)
    return Running(manager, worker, gates)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with processes() as group:
        yield start(group, tmp_path_factory.mktemp("seeing"))


async def sse(url: str, last: str | None = None) -> AsyncIterator[tuple[str, str, Any]]:
    """(event, id, data) as they come, until the server ends the stream."""
    headers = {"Last-Event-ID": last} if last else {}
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http, http.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                yield fields["event"], fields["id"], json.loads(fields["data"])
                fields = {}


def short(event: tuple[str, str, Any]) -> str:
    name, _, data = event
    return data["text"] if name == "log" else data["status"] if name == "state" else f"{data['done']}/{data['total']}"


async def test_what_a_running_job_shows_arrives_at_once_and_resumes_where_it_was(running: Running) -> None:
    id = await asyncio.to_thread(running.manager.submit, "DEFAULT", "steps", {"names": ["a1", "a2"]})
    url = f"{running.manager.url}{PATH}/{id}/events"
    seen: list[str] = []
    last = ""
    async with asyncio.timeout(30):
        stream = sse(url)
        async for event in stream:
            seen.append(short(event))
            last = event[1]
            if seen[-1] == "waits for a1":
                running.open("a1")
            if seen[-1] == "got a1":
                break
        await stream.aclose()  # type: ignore[attr-defined]
    assert (await asyncio.to_thread(running.manager.job, id))["status"] == "running"
    assert [one for one in seen if one not in ("queued", "0/2", "1/2")] == ["running", "waits for a1", "got a1"]
    running.open("a2")
    await asyncio.to_thread(running.manager.until_status, id, "succeeded")
    async with asyncio.timeout(30):
        rest = [event async for event in sse(url, last)]
    assert [short(event) for event in rest] == ["waits for a2", "got a2", "2/2", "succeeded"], "the lines after the last that was seen"
    assert [event[1] for event in rest if event[0] == "log"] == ["1.3", "1.4"]
    log = await asyncio.to_thread(running.manager.get, f"{PATH}/{id}/logs")
    assert [line["text"] for line in log["items"]] == ["waits for a1", "got a1", "waits for a2", "got a2"]
    assert [line["logger"] for line in log["items"]] == ["easyjobs.job", "app"] * 2
    job = await asyncio.to_thread(running.manager.job, id)
    assert (job["progress"]["done"], job["progress"]["total"], job["log_lines"]) == (2, 2, 4)


async def test_the_log_is_there_when_the_result_is(running: Running) -> None:
    async with EasyJobsClient(running.manager.url, SECRET) as client:
        jobs = [await client.submit("DEFAULT", "in_a_thread", 3) for _ in range(30)]
        for job in jobs:
            assert await job.result(timeout=20) == 3
            log = await asyncio.to_thread(running.manager.get, f"{PATH}/{job.id}/logs")
            assert [line["text"] for line in log["items"]] == ["item 0", "item 1", "item 2"]


async def test_each_failed_attempt_is_kept_and_shown(running: Running) -> None:
    async with EasyJobsClient(running.manager.url, SECRET) as client:
        job = await client.submit("DEFAULT", "third_time")
        events = [event async for event in job.events()]
        assert events[-1] == StateChanged("succeeded", 3)
        assert [event.text for event in events if isinstance(event, LogLine)] == ["attempt 1", "attempt 2", "attempt 3"]
    shown = await asyncio.to_thread(running.manager.job, job.id)
    assert [(one["attempt"], one["error"]["message"]) for one in shown["attempts"]] == [(1, "attempt 1 fails"), (2, "attempt 2 fails")]
    assert all(one["worker"] == shown["worker"] for one in shown["attempts"])


async def test_the_client_follows_jobs_side_by_side(running: Running) -> None:
    async with EasyJobsClient(running.manager.url, SECRET) as client, asyncio.timeout(40):

        async def follow(gate: str) -> list[News]:
            job = await client.submit("DEFAULT", "steps", [gate])
            events = []
            async for event in job.events():
                events.append(event)
                if isinstance(event, LogLine) and event.text == f"waits for {gate}":
                    running.open(gate)
            return events

        for gate, events in zip("bcd", await asyncio.gather(*map(follow, "bcd")), strict=True):
            assert [event.text for event in events if isinstance(event, LogLine)] == [f"waits for {gate}", f"got {gate}"]
            assert [event.done for event in events if isinstance(event, Progress)][-1] == 1
            assert [event.state for event in events if isinstance(event, StateChanged)][-2:] == ["running", "succeeded"]
        with pytest.raises(UnknownJob):
            async for _ in client.job("01a20bb1-4283-76f8-85ff-c81f8ba26ee4").events():
                pass


async def test_a_job_follows_another(running: Running) -> None:
    async with EasyJobsClient(running.manager.url, SECRET) as client:
        events = await (await client.submit("DEFAULT", "looks_on", 2)).result(timeout=30)
    assert [event for event in events if event.startswith("LogLine")][1].endswith("text='item 1')")
    assert events[-1] == "StateChanged(state='succeeded', attempt=1)"


async def test_a_job_behind_busy_slots_explains_itself(started: Processes, tmp_path: Path) -> None:
    running = await asyncio.to_thread(start, started, tmp_path)
    async with EasyJobsClient(running.manager.url, SECRET) as client:
        jobs = [await client.submit("DEFAULT", "steps", ["busy"]) for _ in range(5)]
        for job in jobs:
            await asyncio.to_thread(running.manager.until_status, job.id, "running")
        last = await client.submit("DEFAULT", "steps", ["busy"])
        explained = await asyncio.to_thread(running.manager.get, f"{PATH}/{last.id}/explain")
        assert explained["status"] == "queued"
        assert "5 jobs on 5 slots" in explained["reasons"][0]["text"]
        running.open("busy")
        assert [await job.result(timeout=20) for job in [*jobs, last]] == ["done"] * 6
        ended = await asyncio.to_thread(running.manager.get, f"{PATH}/{last.id}/explain")
        assert [reason["code"] for reason in ended["reasons"]] == ["ended"]


async def test_a_manager_that_is_killed_and_comes_back_costs_no_line(started: Processes, tmp_path: Path) -> None:
    running = await asyncio.to_thread(start, started, tmp_path)
    first = running.manager
    seen: list[str] = []
    second: Served | None = None
    async with EasyJobsClient(first.url, SECRET) as client, asyncio.timeout(90):
        job = await client.submit("DEFAULT", "steps", ["one", "two"])
        async for event in job.events():
            if isinstance(event, LogLine):
                seen.append(event.text)
            if isinstance(event, LogLine) and event.text == "waits for one":
                await asyncio.to_thread(first.kill)
                running.open("one")
                running.worker.wait_for_line("got one")
                second = await asyncio.to_thread(lambda: start_manager(started, tmp_path, port=first.port).until_ready())
            if isinstance(event, LogLine) and event.text == "got one":
                running.open("two")
        assert event == StateChanged("succeeded", 1)
    assert second is not None
    assert seen == ["waits for one", "got one", "waits for two", "got two"]


async def test_open_streams_do_not_keep_a_manager_from_ending(started: Processes, tmp_path: Path) -> None:
    manager = await asyncio.to_thread(lambda: start_manager(started, tmp_path).until_ready())
    id = await asyncio.to_thread(manager.submit, "general", "more_general_work", {"general_results": 1})
    await asyncio.to_thread(manager.until_status, id, "succeeded")
    id = await asyncio.to_thread(manager.submit, "DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3})
    stream = sse(f"{manager.url}{PATH}/{id}/events")
    async with asyncio.timeout(30):
        await anext(stream)
        ending = asyncio.create_task(asyncio.to_thread(manager.stop, 20))
        rest = [event async for event in stream]
        assert await ending == 0
    assert "Traceback" not in manager.log
    assert len(rest) < 10


@pytest.mark.skipif(not shutil.which("curl"), reason="the page's commands use curl")
def test_the_page_about_seeing_works_as_it_stands(started: Processes, tmp_path: Path) -> None:
    done = Reader(started, tmp_path, Path(sys.executable).parent, page=ROOT / "docs" / "seeing.md").run()
    assert len(done) >= 5
    until("the server's log has the job's line", lambda: "sent to" in started.started[0].log, 5)
