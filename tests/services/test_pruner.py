"""What is forgotten after its time."""

from __future__ import annotations

from easyjobs.domain.job import JobQuery
from easyjobs.ports.store import Kept
from easyjobs.services.inbox import Letter
from easyjobs.services.pruner import TICK_S, Pruner
from tests.services.conftest import Parts

FOREVER = Kept(None, None, None, None)
DAY_US = 24 * 3600 * 1_000_000


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
