from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.processes import Processes


@pytest.fixture
def cluster(started: Processes, tmp_path: Path) -> Cluster:
    """A manager that is up; workers are started by the test."""
    cluster = Cluster(started, tmp_path)
    cluster.start_manager()
    return cluster
