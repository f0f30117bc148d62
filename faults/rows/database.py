"""Faults of PostgreSQL and of the way to it."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from faults.cluster import reruns, site, tokens
from faults.matrix import row
from tests import postgres


@row("P1")
def server_killed(directory: Path, size: float) -> str:
    """PostgreSQL is stopped at once, as by a power cut, every few seconds, under load."""
    with postgres.cluster() as server, site(directory, server=server) as place:
        place.start_worker(slots=10)
        errors = n = 0
        done = threading.Event()

        def submit() -> None:
            nonlocal errors, n
            while not done.is_set():
                n += 1
                try:
                    place.submit_many("first" if n % 3 == 0 else "work", tokens(f"k{n}-", 5))
                except (OSError, AssertionError):
                    errors += 1
                    done.wait(0.1)

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            for _ in range(round(4 * size)):
                time.sleep(1.5 + random.random())
                server.stop()
                server.start()
            time.sleep(1)
        finally:
            done.set()
            thread.join()
        history = place.judged(60)
        return f"{len(history.acked)} acked, {len(history.unknown)} unknown, 0 lost; {errors} submits failed; {reruns(history)} reruns"
