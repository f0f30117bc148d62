"""A pooler between managers and PostgreSQL, which gives each transaction another connection."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from faults import figures
from faults.invariants import judge
from faults.load import Load, LoadSite, given_back, measure, said
from faults.matrix import row
from tests import postgres
from tests.pgbouncer import bouncer
from tests.processes import processes, until

JOBS, RATE = 4_000, 150.0  # at size 1; jobs/s
SLOTS = 40


@row("P6", limit_s=900)
def behind_a_pooler(directory: Path, size: float) -> str:
    """Two managers behind a PgBouncer in transaction mode, under a mixed load; workers are killed, the pooler is killed and comes back: all invariants hold."""
    with postgres.cluster() as server, bouncer(server) as pooler, processes() as started:
        place = LoadSite(started, directory, server=server, count=2)
        place.more = {"EASYJOBS_STORE": pooler.url(), "EASYJOBS_STORE_LISTEN": server.url()}
        try:
            place.open(2, SLOTS)
            kills = restarts = 0
            load = Load(place, RATE, round(JOBS * size), seed=6)
            try:
                while not load.is_over and not load.wrong:
                    time.sleep(2)
                    if kills % 4 == 3:
                        pooler.stop(signal.SIGKILL)
                        pooler.start()
                        restarts += 1
                    hand = place.hands[0]
                    place.fire(hand)
                    kills += 1
                    place.hire(SLOTS, hand.proxies)
            finally:
                load.stop()
            assert not load.wrong, "\n".join(load.wrong[:10])
            until("workers are connected", lambda: _connected(place) >= 2, 60, 0.5)
            place.end_ticks()
            place.settle(120)
            history = place.told()
            wrong = judge(history)
            assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])
            measure(place, history)
            repeated = given_back(history)
            figures.judged(history, repeated)
            return (
                f"{kills} kills of a worker, {restarts} of the pooler; {len(history.rows)} jobs, {len(history.acked)} acked, {len(history.unknown)} unanswered, "
                f"0 lost, 0 ended twice, {repeated} runs were repeated; users: {said(load.counts)}"
            )
        finally:
            place.close_ways()


def _connected(place: LoadSite) -> int:
    return sum(1 for manager in place.alive for worker in manager.get("/jobs/api/v1/workers")["items"] if worker["tasks"])
