"""A thundering herd: all that was put off for the same second."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from faults import figures
from faults.cluster import QUEUE
from faults.figures import quantile
from faults.invariants import judge
from faults.load import API, LoadSite, given_back
from faults.matrix import row
from tests.faults.checker import now
from tests.processes import processes, until

JOBS, MOST = 33_400, 100_000  # at size 1, and at any size
AT_ONCE = 1_000
URGENT = 5  # of the jobs that come meanwhile


class Urgent:
    """Submits a job of the highest priority every 0.2 s, and notes when, by token (CLOCK_BOOTTIME)."""

    def __init__(self, place: LoadSite) -> None:
        self.place = place
        self.at: dict[str, float] = {}
        self.took: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._submit)

    def _submit(self) -> None:
        while not self._done.wait(0.2):
            token = f"urgent-{len(self.at)}"
            self.at[token] = began = now()
            _submit(self.place, [token], priority=URGENT)
            self.took.append(now() - began)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _submit(place: LoadSite, tokens: list[str], **more: object) -> None:
    place.history.unknown.update(tokens)
    jobs = [{"namespace": QUEUE, "name": "work", "args": [], "kwargs": {"token": token}, **more} for token in tokens]
    answer = place.alive[0].call("POST", f"{API}/jobs", jobs)
    assert answer.status == 202, answer
    place.history.acked.update(zip(tokens, answer.json()["request_ids"], strict=True))
    place.history.unknown.difference_update(tokens)


@row("R3", limit_s=900)
def thundering_herd(directory: Path, size: float) -> str:
    """100,000 jobs of two priorities are due at the same second (a third of that at size 1): the higher one first, what comes meanwhile is taken and runs, nothing is lost or runs twice."""
    count = 2 * AT_ONCE * round(min(MOST, JOBS * size) / (2 * AT_ONCE))
    with processes() as started:
        place = LoadSite(started, directory)
        place.open(workers=1, slots=100)
        wall_to_boottime = now() - time.time()
        due = round(time.time() + 5 + count / 2_000)
        at = datetime.fromtimestamp(due, UTC).isoformat()
        for first in range(0, count, 2 * AT_ONCE):
            for name, priority in (("low", 0), ("high", 1)):  # what is to run last comes first
                _submit(place, [f"{name}-{n}" for n in range(first // 2, first // 2 + AT_ONCE)], at=at, priority=priority)
        stored_s = due - time.time()  # before they are due
        time.sleep(max(0.0, stored_s))
        with Urgent(place) as urgent:
            until("all have ended", lambda: place.count("j.state = 2 and t.name = 'work'") >= count, 600, 0.5)
        place.end_ticks()
        place.settle(60)
        history = place.told()
        wrong = judge(history)
        assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])
        begun = {effect.token: effect.at for effect in history.effects if effect.what == "start"}
        waits = {name: [at - due - wall_to_boottime for token, at in begun.items() if token.startswith(name)] for name in ("high", "low")}
        meanwhile = [begun[token] - at for token, at in urgent.at.items()]
        early = min(map(min, waits.values()))
        assert early > -0.1, f"a job began {-early:.2f} s before it was due"
        last_high = max(waits["high"])
        before = sum(wait < last_high for wait in waits["low"]) / len(waits["low"])
        repeated = given_back(history)
        figures.took("an urgent job amid a herd", *meanwhile)
        figures.judged(history, repeated)
        took = max(map(max, waits.values()))
        told = (
            f"{count} jobs due at once ran in {took:.1f} s, {count / took:.0f}/s; wait of the higher priority p50 {quantile(waits['high'], 0.5):.1f} s, "
            f"p99 {quantile(waits['high'], 0.99):.1f} s, of the lower one p50 {quantile(waits['low'], 0.5):.1f} s, p99 {quantile(waits['low'], 0.99):.1f} s; "
            f"{before:.1%} of the lower ones ran before the last higher one; {len(meanwhile)} urgent jobs meanwhile: submitted within "
            f"{quantile(urgent.took, 0.99):.2f} s, began after p50 {quantile(meanwhile, 0.5):.2f} s, p99 {quantile(meanwhile, 0.99):.2f} s; "
            f"0 lost, {repeated} repeated"
        )
        assert quantile(waits["high"], 0.5) < quantile(waits["low"], 0.5), told
        assert before < 0.5, told
        assert repeated == 0, told
        place.close_ways()
        return told
