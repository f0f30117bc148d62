"""Who follows a job gets all that is new, once, and in order; and nothing is done for jobs that nobody follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from easyjobs.domain.job import Outcome, Report, Reports
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.seeing import Line, LogLine, Look, Mark, News, Progress, StateChanged
from easyjobs.errors import StoreError, UnknownJob
from easyjobs.runtime.ids import id_bytes, new_id
from easyjobs.services import events as module
from easyjobs.services.dispatcher import Session
from easyjobs.services.events import Events, Reading
from tests.services.conftest import Parts

S = JobState
RETRIES = b'{"max_retries":5}'


async def a_job(parts: Parts, options: bytes = RETRIES) -> bytes:
    id = id_bytes(await parts.intake.submit_one(await parts.task(options=options), b"[[1],{}]"))
    assert id is not None
    return id


def line(seq: int, number: int, attempt: int = 1) -> Line:
    return Line(seq, attempt, number, 7, 20, "app", f"line {number}")


def failed(seq: int, attempt: int, delay_us: int = 0) -> Report:
    return Report(seq, attempt, Outcome.FAILED, 0, b"{}", True, delay_us)


async def next_of(stream: AsyncGenerator[list[News], None]) -> list[News]:
    async with asyncio.timeout(10):
        return await anext(stream)


async def rest_of(stream: AsyncGenerator[list[News], None]) -> list[News]:
    async with asyncio.timeout(10):
        return [one async for news in stream for one in news]


def short(news: list[News]) -> list[Any]:
    words: list[Any] = []
    for one in news:
        if isinstance(one, StateChanged):
            words.append(f"{one.state} {one.attempt}")
        elif isinstance(one, Progress):
            words.append(one.done)
        else:
            words.append((one.attempt, one.number))
    return words


async def work(parts: Parts) -> Session:
    session, _ = await parts.session(await parts.task(options=RETRIES), room=100)
    await parts.settle()
    return session


async def test_a_job_is_followed_from_its_present_state_to_its_end(parts: Parts) -> None:
    id = await a_job(parts)
    async with aclosing(parts.events.follow(id)) as stream:
        assert short(await next_of(stream)) == ["queued 0"]
        session = await work(parts)
        assert short(await next_of(stream)) == ["running 1"]
        await parts.events.note(session, [Mark(1, 1, 5, 10)], [line(1, 1), line(1, 2)])
        assert short(await next_of(stream)) == [(1, 1), (1, 2), 5]
        noted = parts.events.note(session, [Mark(1, 1, 10, 10)], [line(1, 3)])
        reported = parts.reporter.report(session, [Report(1, 1, Outcome.SUCCEEDED, body=b"1")])
        await asyncio.gather(noted, reported)
        assert short(await rest_of(stream)) == [(1, 3), 10, "succeeded 1"]
    assert parts.events.followed.here == {}
    assert parts.results.watched == {}


async def test_one_who_comes_late_gets_what_is_stored_and_the_end(parts: Parts) -> None:
    id = await a_job(parts)
    session = await work(parts)
    await parts.events.note(session, [Mark(1, 1, 5)], [line(1, n) for n in range(1, 6)])
    async with aclosing(parts.events.follow(id, (1, 3))) as stream:
        assert short(await next_of(stream)) == ["running 1", 5, (1, 4), (1, 5)]
    await parts.reporter.report(session, [Report(1, 1, Outcome.SUCCEEDED, body=b"1")])
    assert short(await rest_of(parts.events.follow(id, (1, 4)))) == [(1, 5), 5, "succeeded 1"]


async def test_states_that_come_and_go_before_anybody_looks_are_told_too(parts: Parts) -> None:
    id = await a_job(parts)
    session = await work(parts)
    async with aclosing(parts.events.follow(id)) as stream:
        assert short(await next_of(stream)) == ["running 1"]
        await asyncio.gather(parts.events.note(session, (), [line(1, 1)]), parts.reporter.report(session, [failed(1, 1)]))
        await parts.settle()
        await parts.events.note(session, (), [line(1, 1, attempt=2)])
        assert short(await next_of(stream)) == [(1, 1), "queued 1", "running 2", (2, 1)]
        await parts.reporter.report(session, [failed(1, 2, delay_us=5_000_000)])
        assert short(await next_of(stream)) == ["scheduled 2"]
        parts.clock.advance(6)
        parts.dispatcher.is_paused = True
        await parts.scheduler.run_once()
        assert short(await next_of(stream)) == ["queued 2"]


async def test_many_lines_come_in_pieces_without_gaps_and_the_end_comes_last(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    id = await a_job(parts)
    session = await work(parts)
    await parts.events.note(session, (), [line(1, n) for n in range(1, 11)])
    await parts.reporter.report(session, [Report(1, 1, Outcome.SUCCEEDED, body=b"1")])
    batches = [short(news) async for news in parts.events.follow(id)]
    assert [len(batch) for batch in batches] == [3, 3, 3, 2]
    assert [one for batch in batches for one in batch] == [*((1, n) for n in range(1, 11)), "succeeded 1"]


async def test_the_end_is_heard_of_whoever_tells_it(parts: Parts) -> None:
    """A cancelled or expired job is told to `Results` only."""
    id = await a_job(parts)
    session = await work(parts)
    async with aclosing(parts.events.follow(id)) as stream:
        await next_of(stream)
        await parts.store.finish([Reports(session.number, [Report(1, 1, Outcome.SUCCEEDED, body=b"1")])])
        parts.results.ended(id, S.SUCCEEDED, b"1")
        assert short(await rest_of(stream)) == ["succeeded 1"]


async def test_what_people_do_is_told(parts: Parts) -> None:
    id = await a_job(parts)
    session = await work(parts)
    await parts.reporter.report(session, [failed(1, 1, delay_us=60_000_000)])
    async with aclosing(parts.events.follow(id)) as stream:
        assert short(await next_of(stream)) == ["scheduled 1"]
        parts.dispatcher.is_paused = True
        await parts.control.run_now([id])
        assert short(await next_of(stream)) == ["queued 1"]
        await parts.control.cancel([id])
        assert short(await rest_of(stream)) == ["cancelled 1"]


async def test_a_rescue_is_told(parts: Parts) -> None:
    id = await a_job(parts)
    await work(parts)
    async with aclosing(parts.events.follow(id)) as stream:
        assert short(await next_of(stream)) == ["running 1"]
        for _ in range(20):
            parts.clock.advance(5)
            await parts.rescuer.run_once()
        assert short(await next_of(stream)) == ["queued 1"]


async def test_when_nothing_comes_that_is_said(parts: Parts) -> None:
    id = await a_job(parts)
    async with aclosing(parts.events.follow(id, idle_s=0.01)) as stream:
        assert short(await next_of(stream)) == ["queued 0"]
        assert await next_of(stream) == []
        assert await next_of(stream) == []


async def test_closing_ends_every_stream_at_once(parts: Parts) -> None:
    id = await a_job(parts)
    streams = [parts.events.follow(id) for _ in range(3)]
    for stream in streams:
        await next_of(stream)
    waiting = [asyncio.ensure_future(rest_of(stream)) for stream in streams]
    await parts.settle()
    parts.events.close()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [[], [], []]
    assert short(await rest_of(parts.events.follow(id))) == ["queued 0"], "one that comes later gets the present state"
    assert parts.events.followed.here == {}


async def test_no_such_job_and_no_store(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownJob):
        await rest_of(parts.events.follow(new_id()))
    id = await a_job(parts)

    async def fail(_: object) -> object:
        raise StoreError("no")

    monkeypatch.setattr(parts.store, "look", fail)
    with pytest.raises(StoreError):
        await rest_of(parts.events.follow(id))
    assert parts.events.followed.here == {}
    assert parts.results.watched == {}


async def test_a_follower_that_goes_away_leaves_the_others(parts: Parts) -> None:
    id = await a_job(parts)
    stays, goes = parts.events.follow(id), parts.events.follow(id)
    await next_of(stays)
    waiting = asyncio.ensure_future(rest_of(goes))
    await parts.settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(parts.events.followed.here[id]) == 1
    await work(parts)
    assert short(await next_of(stays)) == ["running 1"]
    await stays.aclose()


async def test_one_who_does_not_read_holds_a_bounded_number_of_states(parts: Parts) -> None:
    id = await a_job(parts)
    async with aclosing(parts.events.follow(id)) as stream:
        await next_of(stream)
        for attempt in range(1, 1000):
            parts.events.changed(id, S.RUNNING, attempt)
        assert len(parts.events.followed.here[id][0].states) == module.MAX_STATES


async def test_nothing_is_done_for_jobs_that_nobody_follows(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Events, "changed", None)
    monkeypatch.setattr(Events, "wake", None)
    await a_job(parts)
    session = await work(parts)
    await parts.events.note(session, [Mark(1, 1, 5)], [line(1, 1)])
    await parts.reporter.report(session, [Report(1, 1, Outcome.SUCCEEDED, body=b"1")])


# --- what is new to a reader


def look(state: JobState, attempt: int, *numbers: int, progress: Progress | None = None, is_more: bool = False) -> Look:
    lines = [LogLine(attempt, number, 0, 20, "app", "") for number in numbers]
    return Look(state, attempt, progress, lines, is_more, 0, 0)


def test_the_same_look_twice_is_news_once() -> None:
    reading = Reading()
    progress = Progress(1, 1, 2, "", 5)
    assert short(reading.news(look(S.RUNNING, 1, progress=progress))) == ["running 1", 1]
    assert reading.news(look(S.RUNNING, 1, progress=progress)) == []


def test_a_state_that_was_seen_is_not_told_again_by_one_who_speaks_late() -> None:
    reading = Reading()
    reading.news(look(S.RUNNING, 2))
    reading.told.extend([(S.RUNNING, 1), (S.QUEUED, 1), (S.RUNNING, 2)])
    assert reading.news(look(S.RUNNING, 2)) == []
    reading.told.append((S.SUCCEEDED, 2))
    assert short(reading.news(look(S.SUCCEEDED, 2))) == ["succeeded 2"]


def test_the_place_is_that_of_the_last_line() -> None:
    reading = Reading((1, 5))
    reading.news(look(S.QUEUED, 1))
    assert reading.place == (1, 5)
    reading.news(look(S.RUNNING, 2, 1, 2))
    assert reading.place == (2, 2)


def test_what_the_store_says_counts_even_if_it_looks_older() -> None:
    reading = Reading()
    reading.news(look(S.QUEUED, 1))  # rescued
    assert short(reading.news(look(S.SCHEDULED, 1))) == ["scheduled 1"], "the late report of a failure"


def test_a_final_state_waits_for_the_lines_before_it() -> None:
    reading = Reading()
    assert short(reading.news(look(S.FAILED, 1, 1, 2, is_more=True))) == [(1, 1), (1, 2)]
    assert short(reading.news(look(S.FAILED, 1, 3))) == [(1, 3), "failed 1"]
