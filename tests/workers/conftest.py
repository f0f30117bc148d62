from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from easyjobs.workers.worker import EasyJobsWorker
from tests.workers.fake import SECRET, FakeManager


@pytest.fixture
async def manager() -> AsyncIterator[FakeManager]:
    async with FakeManager() as fake:
        yield fake


@pytest.fixture
async def start(manager: FakeManager) -> AsyncIterator[Callable[..., Awaitable[EasyJobsWorker]]]:
    """Starts workers of the fake manager; they are closed with the test."""
    async with AsyncExitStack() as stack:

        async def start(slots: int = 3, **settings: Any) -> EasyJobsWorker:
            settings = {"manager_port": manager.port, "manager_secret": SECRET, "grace_s": 1.0, **settings}
            worker = await EasyJobsWorker.create(max_tasks_per_worker=slots, **settings)
            return await stack.enter_async_context(worker)

        yield start
