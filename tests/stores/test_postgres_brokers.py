"""What several managers that take messages from one broker do to one PostgreSQL."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from easyjobs.domain.job import IdempotencyKey, NewSession, Submission, SubmitVerdict
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.quarantine import BadMessage, QuarantineQuery
from easyjobs.domain.replies import Reply
from easyjobs.stores.postgres import PostgresStore
from easyjobs.stores.postgres.outbox import RESERVED_US
from tests.clocks import FakeClock
from tests.contracts.store_contract import a_job, assert_counts_are_exact, claim, finish, submit, succeeded
from tests.stores.test_postgres import clock, lane, server, stores

__all__ = ["clock", "lane", "server", "stores"]
DAY_US = 24 * 3600 * 1_000_000


async def test_an_end_is_one_manager_s_to_send_until_it_must_have_died(stores: list[PostgresStore], lane: int, clock: FakeClock) -> None:
    one, two = stores
    [session] = await two.begin([NewSession(b"s" * 16, "w")])
    await submit(one, *[msgspec.structs.replace(a_job(lane), reply=Reply("b", "answers")) for _ in range(5)])
    told = asyncio.Event()
    two.on_unsent = told.set
    await finish(two, session, *[succeeded(job) for job in await claim(two, session, lane)])  # that has seen none of these replies
    await asyncio.wait_for(told.wait(), 10)
    first = await one.unsent("b", limit=2)
    second = await two.unsent("b", limit=10)
    assert [len(first), len(second)] == [2, 3]
    assert not {row.id for row in first} & {row.id for row in second}
    assert await one.unsent("b") == first, "its own, again"
    await one.sent([row.id for row in first])
    assert await one.unsent("b") == []
    clock.advance(RESERVED_US / 1_000_000 + 1)
    assert await one.unsent("b") == second


async def test_a_message_that_two_managers_get_makes_one_job(stores: list[PostgresStore], lane: int) -> None:
    """A broker hands it to the second when the first has been silent for too long, whatever the first does then."""
    for round in range(20):
        keys = [IdempotencyKey("broker:b", "Q", f"{round}-{n}", b"body", DAY_US) for n in range(10)]
        answers = await asyncio.gather(
            *[
                store.submit([Submission((a_job(lane),), key) for key in (keys if store is stores[0] else reversed(keys))])
                for store in stores
            ]
        )
        verdicts = [each.verdict for answer in answers for each in answer]
        assert verdicts.count(SubmitVerdict.ACCEPTED) == verdicts.count(SubmitVerdict.REPEATED) == 10
    await assert_counts_are_exact(stores[0])
    assert (await stores[0].counts())[lane, JobState.QUEUED] == 200


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
async def test_text_that_postgresql_cannot_hold_is_put_aside_all_the_same(stores: list[PostgresStore], text: str) -> None:
    bad = BadMessage("b", "Q", text, "unknown_task", text, b"\0", 1, DAY_US, ("Q", text))
    [id] = await stores[0].quarantine([bad])
    assert await stores[1].quarantine([bad]) == [id]
    [kept] = await stores[1].quarantined(QuarantineQuery(task=("Q", text)))
    assert (kept.id, kept.body) == (id, b"\0")
