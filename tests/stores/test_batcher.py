"""Group commit, with a fake database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from easyjobs.errors import StoreError, StoreFull, StoreHeld
from easyjobs.runtime import batcher as module
from easyjobs.runtime.async_batcher import AsyncBatcher
from easyjobs.runtime.batcher import Batcher, Call


class Database:
    """Remembers the batches; fails those that hold "bad", and what is tried while it is `held`; waits for `gate` where there is one."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.threads: list[int] = []
        self.gate: threading.Event | None = None
        self.error: StoreError | None = None
        self.held: StoreHeld | None = None
        self.tried: list[tuple[int, list[Any]]] = []  # while it was held: in which thread, what

    def run(self, calls: list[Call]) -> list[Any]:
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        if any(call.what == "bad" for call in calls):
            raise ValueError("bad")
        if self.held is not None:
            self.tried.append((threading.get_ident(), [call.what for call in calls]))
            raise self.held
        self.batches.append([call.what for call in calls])
        self.threads.append(threading.get_ident())
        return [call.what for call in calls]


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
async def batcher(database: Database) -> AsyncIterator[Batcher]:
    batcher = Batcher(database.run, 2, "test-writer")
    yield batcher
    await batcher.close(StoreError("closed"))


async def test_calls_of_one_turn_share_a_batch_in_the_order_of_their_kinds(batcher: Batcher, database: Database) -> None:
    answers = await asyncio.gather(batcher.call(1, "a"), batcher.call(0, "b"), batcher.call(1, "c"), batcher.call(0, "d"))
    assert answers == ["a", "b", "c", "d"]
    assert database.batches == [["b", "d", "a", "c"]]


async def test_a_small_batch_runs_on_the_loop_and_a_large_one_in_the_thread(batcher: Batcher, database: Database) -> None:
    await batcher.call(0, "small")
    await batcher.call(0, "large", rows=module.INLINE_ROWS + 1)
    assert database.threads[0] == threading.get_ident() != database.threads[1]


async def test_a_slow_disk_moves_small_batches_to_the_thread(batcher: Batcher, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(module, "stopwatch", lambda: float(next(now)))  # each batch takes a second
    for _ in range(3):
        await batcher.call(0, "small")
    assert database.threads[0] == threading.get_ident()
    assert threading.get_ident() not in database.threads[1:]


async def test_what_comes_while_a_batch_runs_waits_for_the_next(batcher: Batcher, database: Database) -> None:
    database.gate = threading.Event()
    first = batcher.call(0, 0, rows=100)
    await asyncio.sleep(0)  # it is on its way
    rest = [batcher.call(0, number) for number in range(1, 50)]
    database.gate.set()
    assert await asyncio.gather(first, *rest) == list(range(50))
    assert [len(batch) for batch in database.batches] == [1, 49]


async def test_a_batch_is_bounded_by_rows_and_bytes_and_a_call_is_never_split(batcher: Batcher, database: Database) -> None:
    await asyncio.gather(*(batcher.call(0, number, rows=module.MAX_ROWS // 2) for number in range(5)))
    await asyncio.gather(*(batcher.call(0, number, size=module.MAX_BYTES) for number in range(2)))
    await batcher.call(0, "huge", rows=module.MAX_ROWS * 10)
    assert [len(batch) for batch in database.batches] == [2, 2, 1, 1, 1, 1]


async def test_no_kind_starves_another(batcher: Batcher, database: Database) -> None:
    bulk = [batcher.call(1, "bulk", rows=module.MAX_ROWS) for _ in range(5)]
    await batcher.call(0, "report")
    assert database.batches[0] == ["report", "bulk"]
    await asyncio.gather(*bulk)


@pytest.mark.parametrize("rows", [1, 50])
async def test_a_bad_call_fails_alone(batcher: Batcher, database: Database, rows: int) -> None:
    answers = await asyncio.gather(
        *(batcher.call(0, "bad" if number in {3, 7} else number, rows=rows) for number in range(10)), return_exceptions=True
    )
    assert [answer for answer in answers if not isinstance(answer, StoreError)] == [0, 1, 2, 4, 5, 6, 8, 9]
    assert isinstance(answers[3], StoreError)
    assert isinstance(answers[3].__cause__, ValueError)


async def test_a_store_that_is_full_fails_the_whole_batch_at_once(batcher: Batcher, database: Database) -> None:
    database.error = StoreFull("x")
    answers = await asyncio.gather(*(batcher.call(0, number) for number in range(4)), return_exceptions=True)
    assert answers == [database.error] * 4
    database.error = None
    assert await batcher.call(0, "again") == "again"


async def test_a_call_that_was_given_up_before_its_batch_is_not_run(batcher: Batcher, database: Database) -> None:
    gone, stays = batcher.call(0, "gone"), batcher.call(0, "stays")
    gone.cancel()
    assert await stays == "stays"
    assert database.batches == [["stays"]]


@pytest.mark.parametrize("rows", [1, 100])
async def test_close_finishes_what_was_called_and_refuses_the_rest(batcher: Batcher, database: Database, rows: int) -> None:
    called = [batcher.call(0, number, rows=rows) for number in range(3)]
    await batcher.close(StoreError("closed"))
    assert [await each for each in called] == [0, 1, 2]
    with pytest.raises(StoreError, match="closed"):
        await batcher.call(0, "late")


async def test_work_for_the_thread_is_answered_and_its_errors_are_raised(batcher: Batcher) -> None:
    assert await batcher.in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await batcher.in_thread(lambda: 1 / 0)


# --- a lock that another program holds -------------------------------------------------------------------------------------------


async def turns(until: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    async with asyncio.timeout(30):
        while not until():  # noqa: ASYNC110 (that it turns is what is tested)
            await asyncio.sleep(0)


@pytest.mark.parametrize("rows", [1, 50])
async def test_a_lock_of_others_is_waited_for_in_the_thread_by_the_batch_as_a_whole(
    batcher: Batcher, database: Database, rows: int
) -> None:
    database.held = StoreHeld("x")
    called = [batcher.call(0, number, rows=rows) for number in range(3)]
    await turns(lambda: len(database.tried) > 4)
    assert not any(call.done() for call in called)
    database.held = None
    assert await asyncio.gather(*called) == [0, 1, 2]
    assert all(tried == [0, 1, 2] for _, tried in database.tried)
    on_the_loop = [thread == threading.get_ident() for thread, _ in database.tried]
    assert on_the_loop == [rows == 1, *[False] * (len(on_the_loop) - 1)]


async def test_what_waits_for_a_lock_and_what_waits_behind_it_fails_together(
    batcher: Batcher, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_S", 0.05)
    database.held = StoreHeld("x")
    called = [batcher.call(0, number) for number in range(4)]
    await turns(lambda: len(database.tried) > 1)
    behind = [batcher.call(kind, "behind", rows=module.MAX_ROWS) for kind in (0, 0, 1)]
    assert await asyncio.gather(*called, *behind, return_exceptions=True) == [database.held] * 7
    assert all(tried == [0, 1, 2, 3] for _, tried in database.tried)
    database.held = None
    assert await batcher.call(0, "again") == "again"


async def test_of_a_batch_that_is_halved_only_what_meets_the_lock_waits_for_it(batcher: Batcher, database: Database) -> None:
    database.held = StoreHeld("x")
    bad, good = batcher.call(0, "bad"), batcher.call(0, "good")
    with pytest.raises(StoreError, match="bad"):
        await bad
    await turns(lambda: len(database.tried) > 2)
    assert not good.done()
    database.held = None
    assert await good == "good"


async def test_close_waits_no_longer_for_a_lock_than_a_call_does(
    batcher: Batcher, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_S", 0.05)
    database.held = StoreHeld("x")
    called = batcher.call(0, "called")
    await batcher.close(StoreError("closed"))
    assert called.exception() is database.held


# --- how much may wait ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(module.MAX_WAITING_ROWS // 2, 0), (1, module.MAX_WAITING_BYTES // 2)])
async def test_a_kind_is_full_when_many_rows_or_bytes_of_it_wait_and_what_comes_all_the_same_is_run(
    batcher: Batcher, database: Database, rows: int, size: int
) -> None:
    database.gate = threading.Event()
    running = batcher.call(1, "running", rows=100)
    await asyncio.sleep(0)
    called = [batcher.call(1, "a", rows, size)]
    assert not batcher.is_full(1)
    called.append(batcher.call(1, "b", rows, size))
    assert batcher.is_full(1)
    assert not batcher.is_full(0)  # reports and renewals are another kind
    called.append(batcher.call(1, "c", rows, size))
    called[0].cancel()
    database.gate.set()
    assert await asyncio.gather(running, *called[1:]) == ["running", "b", "c"]
    assert not batcher.is_full(1)
    assert batcher._queues._rows == batcher._queues._bytes == [0, 0]


async def test_the_same_holds_behind_a_network() -> None:
    gate = asyncio.Event()

    async def run(calls: list[Call]) -> list[Any]:
        await gate.wait()
        return [call.what for call in calls]

    batcher = AsyncBatcher(run, 2)
    running = batcher.call(1, "running")
    await asyncio.sleep(0)
    called = [batcher.call(1, number, 1, module.MAX_WAITING_BYTES // 2) for number in range(2)]
    assert batcher.is_full(1)
    gate.set()
    assert await asyncio.gather(running, *called) == ["running", 0, 1]
    assert not batcher.is_full(1)
    await batcher.close(StoreError("closed"))
