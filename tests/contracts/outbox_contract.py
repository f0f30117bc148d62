"""What every store must do with the ends of jobs that are told to a queue of a broker."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import Parent, Reports, Submission
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.replies import Reply
from easyjobs.ports.store import Kept, Store
from tests.clocks import FakeClock
from tests.contracts.store_contract import ERROR, LEASE_S, StoreContract, a_job, claim, failed, finish, submit, succeeded

S = JobState
REPLY = Reply("b", "answers", "c-1")


def replying(lane: int, reply: Reply = REPLY, **fields: Any) -> Any:
    return msgspec.structs.replace(a_job(lane, **fields), reply=reply)


class OutboxContract(StoreContract):
    async def test_a_success_is_to_be_told_with_its_result(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        told = asyncio.Event()
        store.on_unsent = told.set
        [id] = await submit(store, replying(lane))
        [job] = await claim(store, session, lane)
        assert await store.unsent("b") == []
        clock.advance(1)
        await finish(store, session, succeeded(job, b'{"a":1}'))
        [row] = await store.unsent("b")
        assert (row.queue, row.correlation, row.at, row.job, row.lane) == ("answers", "c-1", clock.now(), id, lane)
        assert (row.state, row.attempt, row.body) == (S.SUCCEEDED, 1, b'{"a":1}')
        async with asyncio.timeout(10):
            await told.wait()

    async def test_many_successes_of_one_batch_are_each_told_once(self, store: Store, lane: int, session: int) -> None:
        ids = await submit(store, *[replying(lane, Reply("b", "q", f"c-{n}")) for n in range(200)], a_job(lane))
        jobs = await claim(store, session, lane, room=300)
        await finish(store, session, *[succeeded(job, b"%d" % n) for n, job in enumerate(jobs)])
        await finish(store, session, *[succeeded(job) for job in jobs])  # repeats
        rows = await store.unsent("b", limit=1000)
        assert [(row.correlation, row.body, row.job) for row in rows] == [(f"c-{n}", b"%d" % n, ids[n]) for n in range(200)]

    async def test_a_failure_is_told_when_it_is_for_good(self, store: Store, lane: int, session: int) -> None:
        await submit(store, replying(lane, max_retries=1))
        for expected in (0, 1):
            [job] = await claim(store, session, lane)
            await finish(store, session, failed(job, retry=True))
            assert len(await store.unsent("b")) == expected
        [row] = await store.unsent("b")
        assert (row.state, row.attempt, row.body) == (S.FAILED, 2, ERROR)

    async def test_a_report_that_is_stale_is_told_to_nobody(self, store: Store, lane: int, session: int) -> None:
        await submit(store, replying(lane))
        [job] = await claim(store, session, lane)
        await finish(store, session + 1000, succeeded(job))
        assert await store.unsent("b") == []

    async def test_a_person_s_retry_is_told_again(self, store: Store, lane: int, session: int) -> None:
        [id] = await submit(store, replying(lane, max_retries=0))
        [job] = await claim(store, session, lane)
        await finish(store, session, failed(job))
        await store.restart([id])
        [job] = await claim(store, session, lane)
        await finish(store, session, succeeded(job))
        assert [row.state for row in await store.unsent("b")] == [S.FAILED, S.SUCCEEDED]

    async def test_cancelled_and_expired_are_told(self, store: Store, lane: int, clock: FakeClock) -> None:
        [cancelled] = await submit(store, replying(lane))
        [expired] = await submit(store, replying(lane, expires_us=1_000_000))
        await store.cancel([cancelled])
        clock.advance(2)
        await store.expire()
        assert [(row.job, row.state) for row in await store.unsent("b")] == [(cancelled, S.CANCELLED), (expired, S.EXPIRED)]

    async def test_a_job_whose_worker_died_once_too_often_is_told(self, store: Store, lane: int, session: int, clock: FakeClock) -> None:
        await submit(store, replying(lane, max_crashes=1))
        await claim(store, session, lane)
        clock.advance(LEASE_S + 1)
        await store.rescue()
        [row] = await store.unsent("b")
        assert row.state is S.FAILED
        assert b"crash" in row.body

    async def test_a_job_that_waits_for_one_that_fails_is_told(self, store: Store, lane: int, session: int) -> None:
        before = msgspec.structs.replace(a_job(lane, max_retries=0), parent=Parent(0, "run_before:Q/a"))
        [id] = await submit(store, msgspec.structs.replace(a_job(lane), befores=(before,), reply=REPLY))
        [job] = await claim(store, session, lane)
        await finish(store, session, failed(job))
        [row] = await store.unsent("b")
        assert (row.job, row.state) == (id, S.FAILED)

    async def test_a_successor_is_told_where_it_says(self, store: Store, lane: int, session: int) -> None:
        [_] = await submit(store, a_job(lane))
        [job] = await claim(store, session, lane)
        child = msgspec.structs.replace(a_job(lane, parent=Parent(job.seq, "run_after:Q/a", S.SUCCEEDED)), reply=REPLY)
        await store.finish([Reports(session, [succeeded(job)], {job.seq: (child,)})])
        assert await store.unsent("b") == []
        [job] = await claim(store, session, lane)
        await finish(store, session, succeeded(job))
        assert [row.job for row in await store.unsent("b")] == [child.id]

    async def test_a_repeated_submit_keeps_the_first_reply(self, store: Store, lane: int, session: int) -> None:
        job = replying(lane)
        await submit(store, job)
        await store.submit([Submission((msgspec.structs.replace(job, reply=Reply("b", "another")),))])
        [claimed] = await claim(store, session, lane)
        await finish(store, session, succeeded(claimed))
        assert [row.queue for row in await store.unsent("b")] == ["answers"]

    async def test_pages_go_on_behind_an_id_and_are_kept_apart_by_broker(self, store: Store, lane: int, session: int) -> None:
        await submit(store, *[replying(lane, Reply("bc"[n % 2], f"q{n}")) for n in range(6)])
        jobs = await claim(store, session, lane)
        await finish(store, session, *[succeeded(job) for job in jobs])
        first, second = await store.unsent("b", limit=2)
        rest = await store.unsent("b", second.id, 10)
        assert [row.queue for row in (first, second, *rest)] == ["q0", "q2", "q4"]
        assert [row.queue for row in await store.unsent("c")] == ["q1", "q3", "q5"]

    async def test_a_page_has_about_a_frame_s_bytes(self, store: Store, lane: int, session: int) -> None:
        await submit(store, *[replying(lane) for _ in range(4)])
        jobs = await claim(store, session, lane)
        await finish(store, session, *[succeeded(job, b'"%b"' % (b"x" * 3_900_000)) for job in jobs])
        first = await store.unsent("b")
        rest = await store.unsent("b", first[-1].id)
        assert [len(first), len(rest)] == [2, 2]

    async def test_what_was_sent_is_gone_and_what_was_deleted_is_told_still(self, store: Store, lane: int, session: int) -> None:
        ids = await submit(store, replying(lane), replying(lane))
        await finish(store, session, *[succeeded(job) for job in await claim(store, session, lane)])
        one, two = await store.unsent("b")
        assert await store.sent([one.id, 10**9]) == 1
        assert await store.sent([one.id]) == 0
        await store.delete(ids)
        await store.retain(Kept(0, 0, 0, 0))
        assert await store.unsent("b") == [two]

    @pytest.mark.parametrize("count", [1, 3])
    async def test_ids_are_never_used_again(self, store: Store, lane: int, session: int, count: int) -> None:
        last = 0
        for _ in range(2):
            await submit(store, *[replying(lane) for _ in range(count)])
            await finish(store, session, *[succeeded(job) for job in await claim(store, session, lane)])
            rows = await store.unsent("b")
            assert all(row.id > last for row in rows)
            last = rows[-1].id
            await store.sent([row.id for row in rows])
