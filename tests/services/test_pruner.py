"""What is forgotten after its time, how fast, and when the pruner comes back."""

from __future__ import annotations

from easyjobs.domain.job import JobQuery
from easyjobs.domain.seeing import Line, Notes
from easyjobs.ports.store import Kept
from easyjobs.services import pruner as module
from easyjobs.services.inbox import Letter
from easyjobs.services.pruner import BATCH, HURRY_S, PAUSE_S, TICK_S, Pruner
from tests.contracts.store_contract import a_job, claim, finish, submit, succeeded
from tests.services.conftest import Parts

FOREVER = Kept(None, None, None, None)
DAY_US = 86_400_000_000


def letter(id: str, keep_us: int = DAY_US) -> Letter:
    return Letter("b", "Q", id, b'{"name":"work","args":[1]}', keep_us)


async def jobs(parts: Parts) -> int:
    return len(await parts.store.page(JobQuery(limit=1000)))


async def test_a_message_is_known_for_as_long_as_its_broker_may_deliver_it_again(parts: Parts) -> None:
    pruner = Pruner(parts.store, parts.catalogue, FOREVER)
    await parts.task()
    parts.catalogue.joined(parts.catalogue.lanes_of(None, None))
    await parts.inbox.take([letter("a day"), letter("a fortnight", 14 * DAY_US)])
    for days, expected in ((0.9, 2), (0.2, 3), (12, 4), (1, 5)):  # from the second day on the first is a new one, each day
        parts.clock.advance(days * 24 * 3600)
        await pruner.run_once()
        await parts.inbox.take([letter("a day"), letter("a fortnight", 14 * DAY_US)])
        assert await jobs(parts) == expected


async def test_after_a_restart_messages_come_again_before_their_keys_go(parts: Parts) -> None:
    await parts.task()
    parts.catalogue.joined(parts.catalogue.lanes_of(None, None))
    await parts.inbox.take([letter("a")])
    parts.clock.advance(3 * 24 * 3600)  # the manager was down, and the broker held the message
    pruner = Pruner(parts.store, parts.catalogue, FOREVER, settle_ticks=2)
    assert await pruner.run_once() == TICK_S
    await parts.inbox.take([letter("a")])
    assert await jobs(parts) == 1
    for _ in range(2):
        await pruner.run_once()
    await parts.inbox.take([letter("a")])
    assert await jobs(parts) == 2


async def ended(parts: Parts, count: int, *, lines: int = 0) -> None:
    task = await parts.task()
    session, _ = await parts.session(task)
    for first in range(0, count, 500):
        await submit(parts.store, *(a_job(task.lane) for _ in range(min(500, count - first))))
        jobs = await claim(parts.store, session.number, task.lane, room=500)
        if lines:
            some = [Line(job.seq, job.attempt, n, 1, 20, "app", "line") for job in jobs for n in range(1, lines + 1)]
            await parts.store.note([Notes(session.number, [], some)])
        await finish(parts.store, session.number, *(succeeded(job) for job in jobs))


def pruner_of(parts: Parts) -> Pruner:
    return Pruner(parts.store, parts.catalogue, Kept(DAY_US, None, None, None))


async def test_what_is_old_goes_in_batches_in_a_hurry_and_the_next_look_comes_soon(parts: Parts) -> None:
    await ended(parts, 2 * BATCH + 1)
    parts.clock.advance(86_400 + 1)
    await ended(parts, 1)
    pruner = pruner_of(parts)
    pauses = [await pruner.run_once() for _ in range(3)]
    assert pauses == [HURRY_S, HURRY_S, TICK_S]
    assert sum((await parts.store.counts()).values()) == 1
    parts.clock.advance(86_400 + 1)
    assert await pruner.run_once() == TICK_S  # it looks again with the next tick
    assert sum((await parts.store.counts()).values()) == 0


async def test_where_little_is_old_a_look_at_all_jobs_is_rare(parts: Parts) -> None:
    await ended(parts, 1)
    pruner = pruner_of(parts)
    assert await pruner.run_once() == TICK_S
    parts.clock.advance(86_400 + 1)
    for _ in range(module.SWEEPS - 1):
        assert await pruner.run_once() == TICK_S
    assert sum((await parts.store.counts()).values()) == 1
    assert await pruner.run_once() == TICK_S
    assert sum((await parts.store.counts()).values()) == 0


async def test_where_jobs_are_kept_for_a_moment_each_tick_looks_at_them(parts: Parts) -> None:
    pruner = Pruner(parts.store, parts.catalogue, Kept(1_000_000, None, None, None))
    for _ in range(3):
        await ended(parts, 1)
        parts.clock.advance(2)
        assert await pruner.run_once() == TICK_S
        assert sum((await parts.store.counts()).values()) == 0


async def test_what_deleted_jobs_have_logged_goes_without_a_pause_of_a_tick(parts: Parts) -> None:
    await ended(parts, 300, lines=3)
    parts.clock.advance(86_400 + 1)
    pruner = pruner_of(parts)
    pauses = [await pruner.run_once()]
    while pauses[-1] != TICK_S:
        pauses.append(await pruner.run_once())
    assert set(pauses[:-1]) <= {PAUSE_S}
    assert await parts.store.prune(0, 0) == 0
