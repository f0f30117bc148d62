"""The stores, held to the contract."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from easyjobs.domain.lifecycle import JobState
from easyjobs.ports.store import Store
from easyjobs.stores import open_store
from easyjobs.stores.memory import MemoryStore
from easyjobs.stores.sqlite import SqliteStore
from easyjobs.stores.sqlite.writer import OTHER
from tests.clocks import FakeClock
from tests.contracts.control_contract import ControlContract
from tests.contracts.outbox_contract import OutboxContract
from tests.contracts.quarantine_contract import QuarantineContract
from tests.contracts.schedule_contract import ScheduleContract
from tests.contracts.store_contract import LEASE_S
from tests.contracts.token_contract import TokenContract

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # on a disk most of the time would go into its fsync


class TestSqliteStore(ControlContract, OutboxContract, QuarantineContract, ScheduleContract, TokenContract):
    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[Store]:
        with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
            store = open_store(f"{directory}/jobs.db", clock=clock, lease_s=LEASE_S)
            await store.open()
            yield store
            await store.close()

    async def force(self, store: Store, seq: int, *, state: JobState | None = None, cancel_requested: bool = False) -> None:
        assert isinstance(store, SqliteStore)
        writer = store._writer

        def change() -> None:
            if cancel_requested:
                writer._db.execute("update jobs set cancel_requested = 1 where seq = ?", (seq,))
            if state is not None:
                lane, before = writer._db.execute("select lane, state from jobs where seq = ?", (seq,)).get
                writer._db.execute("update jobs set state = ? where seq = ?", (int(state), seq))
                writer._move(lane, before, state)

        await store._call(OTHER, change)

    async def lines_of(self, store: Store, seq: int) -> int:
        assert isinstance(store, SqliteStore)
        tables = "select (select count(*) from logs where seq = ?1) + (select count(*) from seen where seq = ?1)"
        count: int = await store._call(OTHER, lambda: store._writer._db.execute(tables, (seq,)).get)
        return count


class TestMemoryStore(ControlContract, OutboxContract, QuarantineContract, ScheduleContract, TokenContract):
    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[Store]:
        store = open_store("memory://", clock=clock, lease_s=LEASE_S)
        await store.open()
        yield store
        await store.close()

    async def force(self, store: Store, seq: int, *, state: JobState | None = None, cancel_requested: bool = False) -> None:
        assert isinstance(store, MemoryStore)
        job = store._jobs[seq]
        job.cancel_requested = cancel_requested
        if state is not None:
            store._put(job, state)

    async def lines_of(self, store: Store, seq: int) -> int:
        assert isinstance(store, MemoryStore)
        return int(seq in store._jobs)
