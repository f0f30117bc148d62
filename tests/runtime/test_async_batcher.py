"""Group commit behind a network: who is to blame, and how long the others wait to find out."""

from __future__ import annotations

import asyncio

import pytest

from easyjobs.errors import StoreError
from easyjobs.runtime import async_batcher
from easyjobs.runtime.async_batcher import AsyncBatcher
from easyjobs.runtime.batcher import Call


class Blaming:
    """Fails every batch in which something is wrong, and counts its tries."""

    def __init__(self) -> None:
        self.tries = 0

    async def run(self, calls: list[Call]) -> list[str]:
        self.tries += 1
        await asyncio.sleep(0)
        if any(call.what == "wrong" for call in calls):
            raise ValueError("wrong")
        return [call.what for call in calls]


async def test_a_batch_is_halved_until_the_call_that_is_to_blame_fails_alone() -> None:
    batcher = AsyncBatcher(Blaming().run, 1)
    answers = await asyncio.gather(*(batcher.call(0, what) for what in ("a", "b", "wrong", "c")), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["a", "b", "ValueError: wrong", "c"]


async def test_a_batch_is_not_halved_for_ever_when_each_try_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_batcher, "HALVE_S", -1.0)
    blaming = Blaming()
    batcher = AsyncBatcher(blaming.run, 1)
    answers = await asyncio.gather(*(batcher.call(0, what) for what in ("a", "b", "wrong", "c")), return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreError}
    assert "not stored" in str(answers[0])
    assert blaming.tries == 1
    assert await batcher.call(0, "d") == "d"
