"""Ids of jobs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from easyjobs.runtime.ids import id_bytes, id_text, new_id


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_threads_make_no_id_twice() -> None:
    made: list[list[bytes]] = [[] for _ in range(4)]
    begin = threading.Barrier(len(made))

    def make(ids: list[bytes]) -> None:
        begin.wait()
        ids.extend(new_id(1) for _ in range(20_000))

    threads = [threading.Thread(target=make, args=(ids,)) for ids in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for ids in made for id in ids}) == sum(map(len, made))


def test_an_id_is_a_uuid_of_version_7_that_sorts_by_time() -> None:
    early, late = new_id(1_700_000_000_000_000), new_id(1_700_000_000_001_000)
    assert early < late
    assert id_text(early)[14] == "7"
    assert id_bytes(id_text(early)) == early
    assert id_bytes("nonsense") is None
