"""Faults in the middle of what follows from each other: chains and fan-outs."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

from easyjobs.domain.lifecycle import Back, JobState
from faults import events
from faults.cluster import QUEUE, Site, reruns, tokens
from faults.history import Effect, History
from faults.load import PROGRAMS, read_lines
from faults.matrix import row
from faults.rows.chaos import SEED
from tests.processes import Processes, Served, processes, until

SLOTS = 10
BRANCHES = 10  # of programs/flow_worker
FORKS = 10  # shortly before each kill, each with ten leaves
EVERY_S = 2.0


class FlowSite(Site):
    """A manager and two workers of `flow_worker`. `links` jobs of a chain run; a root has ten branches, and each of them `leaves`."""

    def __init__(self, started: Processes, directory: Path, *, links: int, leaves: int) -> None:
        super().__init__(started, directory, TEST_LINKS=str(links), TEST_LEAVES=str(leaves))
        self.links, self.leaves = links, leaves
        self.hands: list[Served] = []

    def hire(self) -> Served:
        """Start a worker; does not wait."""
        env = self.environment(TEST_MANAGER_PORT=str(self.port), TEST_SLOTS=str(SLOTS))
        return self.started.uvicorn("flow_worker:server", "--no-access-log", directory=PROGRAMS, name="worker", env=env)

    def is_up(self, worker: Served) -> bool:
        return any("startup complete" in line for line in worker.lines) and self.is_connected(worker)

    def told(self) -> History:
        told = super().told()
        branches = tuple(f"{QUEUE}/branch{n}" for n in range(BRANCHES))
        leaves = tuple(f"{QUEUE}/leaf{n}" for n in range(self.leaves))
        told.successors = {f"{QUEUE}/chain": (f"{QUEUE}/link",), f"{QUEUE}/link": (f"{QUEUE}/link",), f"{QUEUE}/root": branches}
        told.successors |= dict.fromkeys(branches, leaves) | {f"{QUEUE}/fork": leaves[:10]}
        return told

    def read_runs(self) -> list[Effect]:
        return read_lines(self.effects_path)

    def has_ended(self) -> bool:
        """Whether the chain has, with the link that is too deep."""
        with events.opened(self.file) as db:
            [(links,)] = db.execute("select count(*) from jobs join tasks using (lane) where tasks.name = 'link'")
        return bool(links >= self.links)


@row("R1", limit_s=900)
def kills_in_chains(directory: Path, size: float) -> str:
    """Workers and manager, at random by a seed, are killed every two seconds under a chain and a fan-out of 1,000 jobs: each successor once."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(1_000_000))
    share = min(1.0, size / 3)
    with processes() as started:
        directory.mkdir(parents=True, exist_ok=True)
        place = FlowSite(started, directory, links=round(1000 * share), leaves=round(100 * share))
        try:
            return _killed(place, random.Random(seed), 150 * size, seed)
        except Exception as why:
            raise AssertionError(f"seed {seed}: {type(why).__name__}: {why}") from why


def _killed(place: FlowSite, chance: random.Random, at_most_s: float, seed: int) -> str:
    place.start_manager()
    place.hands = [place.hire(), place.hire()]
    until("both workers are up", lambda: all(map(place.is_up, place.hands)), 60, 0.1)
    place.submit("chain", "chain")
    place.submit("root", "root")
    began = time.monotonic()
    counts: Counter[str] = Counter()
    while counts.total() < 6 or (not place.has_ended() and time.monotonic() - began < at_most_s):
        time.sleep(EVERY_S)
        counts[_kill_some(place, chance, counts.total())] += 1
    under_s = time.monotonic() - began
    done = sum(row.state == JobState.SUCCEEDED for row in place.told().rows)
    history = place.judged(180)
    expected = place.links + 1 + BRANCHES * (1 + place.leaves) + counts.total() * FORKS * 11
    ran = {effect.token for effect in history.effects if effect.what == "done"}
    too_deep = [row for row in history.rows if row.kind == "chain_too_deep"]
    succeeded = sum(row.state == JobState.SUCCEEDED for row in history.rows)
    assert succeeded == len(ran) == expected, f"{succeeded} of {expected} jobs succeeded, and {len(ran)} bodies ran to their end"
    assert len(too_deep) == len(history.rows) - expected == 1, f"{len(too_deep)} too deep, {len(history.rows)} jobs"
    kills = ", ".join(f"{number} of {name}" for name, number in sorted(counts.items()))
    rescued = sum(step.state == JobState.QUEUED and step.back == Back.RESCUED for step in history.steps)
    return (
        f"seed {seed}: a chain of {place.links}, {BRANCHES} x {place.leaves} leaves and {counts.total() * FORKS} forks of 10: each successor born once; "
        f"{done} of {expected} jobs had succeeded after {under_s:.0f} s of a kill every {EVERY_S:.0f} s ({kills}); {rescued} rescues, "
        f"{reruns(history)} runs were repeated"
    )


def _kill_some(place: FlowSite, chance: random.Random, turn: int) -> str:
    """Kill one of them or all, and start it again; who. A worker that is not yet up is spared: nothing would ever get done on a busy machine."""
    who = chance.choices(("a worker", "the manager", "all three"), (5, 3, 2))[0]
    number = chance.randrange(len(place.hands))
    if who != "the manager":
        doomed = place.hands[number : number + 1] if who == "a worker" else place.hands
        until("those to be killed are up", lambda: all(map(place.is_up, doomed)), 60, 0.1)
    place.submit_many("fork", tokens(f"fork{turn}-", FORKS))
    time.sleep(chance.uniform(0, 0.3))
    if who != "a worker":
        place.manager.kill()
    for n, hand in enumerate(place.hands):
        if who == "all three" or (who == "a worker" and n == number):
            place.kill(hand)
            place.hands[n] = place.hire()
    if who != "a worker":
        place.start_manager()
    return who
