"""The sealed store, held to the contract like any other."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from easyjobs.domain.lifecycle import JobState
from easyjobs.runtime.sealing import KeyRing
from easyjobs.stores import open_store
from easyjobs.stores.sealed import SealedStore
from tests.clocks import FakeClock
from tests.contracts import test_stores
from tests.contracts.store_contract import LEASE_S

KEY = base64.b64encode(b"k" * 32).decode()


class TestSealedMemoryStore(test_stores.TestMemoryStore):
    # Ciphertext is a third larger: how many jobs fit into so many bytes is another number here.
    test_a_claim_stops_near_its_bytes_and_gives_at_least_one = None
    test_a_page_has_about_a_frame_s_bytes = None

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[Any]:
        store = SealedStore(open_store("memory://", clock=clock, lease_s=LEASE_S), KeyRing([KEY]))
        await store.open()
        yield store
        await store.close()

    async def force(self, store: Any, seq: int, *, state: JobState | None = None, cancel_requested: bool = False) -> None:
        await super().force(store._inner, seq, state=state, cancel_requested=cancel_requested)

    async def lines_of(self, store: Any, seq: int) -> int:
        return await super().lines_of(store._inner, seq)


class TestSealedSqliteStore(test_stores.TestSqliteStore):
    test_a_claim_stops_near_its_bytes_and_gives_at_least_one = None
    test_a_page_has_about_a_frame_s_bytes = None

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[Any]:
        with tempfile.TemporaryDirectory(dir=test_stores.MEMORY) as directory:
            store = SealedStore(open_store(f"{directory}/jobs.db", clock=clock, lease_s=LEASE_S), KeyRing([KEY]))
            await store.open()
            yield store
            await store.close()

    async def force(self, store: Any, seq: int, *, state: JobState | None = None, cancel_requested: bool = False) -> None:
        await super().force(store._inner, seq, state=state, cancel_requested=cancel_requested)

    async def lines_of(self, store: Any, seq: int) -> int:
        return await super().lines_of(store._inner, seq)


@pytest.mark.parametrize("name", ["on_news", "on_followed", "on_failed_over", "on_unsent"])
def test_what_the_inner_store_tells_is_heard(name: str) -> None:
    inner, told = type("Inner", (), {})(), list[str]()
    setattr(SealedStore(inner, KeyRing([KEY])), name, told.append)
    getattr(inner, name)("it")
    assert told == ["it"]
