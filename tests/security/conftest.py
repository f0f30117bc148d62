from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.postgres import Cluster, cluster
from tests.processes import Processes, processes
from tests.security.world import World, world


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of store, empty."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    if request.param == "postgres":
        server: Cluster = request.getfixturevalue("postgres_cluster")
        server.sql("drop schema if exists easyjobs cascade")
        return server.url()
    return "memory:"


@pytest.fixture
async def there(store_address: str) -> AsyncIterator[World]:
    """A manager on each kind of store."""
    async with world(store_address) as here:
        yield here


@pytest.fixture
async def here() -> AsyncIterator[World]:
    """A manager on the memory store, for what no store has a part in."""
    async with world() as one:
        yield one


@pytest.fixture
def started() -> Iterator[Processes]:
    with processes() as group:
        yield group
