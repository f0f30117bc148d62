"""Everything at once: a steady mixed load, and a seeded schedule that breaks something every second."""

from __future__ import annotations

import heapq
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults import figures
from faults.invariants import judge
from faults.load import Hand, Load, LoadSite, assert_no_secret, given_back, measure, said
from faults.matrix import row
from faults.proxy import FrameProxy
from tests import postgres
from tests.faults.checker import now
from tests.processes import processes, until

SEED = "FAULTS_SEED"  # the environment's: the seed to try again
JOBS = 34_000  # at size 1
RATE = 330.0
SLOTS = 60
NO_DATABASE = "easyjobs.errors.Store"  # in the last words of a manager that ends as it starts, since there is none


class Weather:
    """Breaks and heals the parts of a site, one fault a second. A part that is broken is left alone until it is whole."""

    def __init__(self, place: LoadSite, seed: int, workers: int) -> None:
        self.place, self.chance, self.workers = place, random.Random(seed), workers
        self.counts: Counter[str] = Counter()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self._busy: set[int] = set()  # managers by number, workers and proxies by id
        self._killed: set[int] = set()  # managers that are to be started again
        kinds: dict[Callable[[], bool], int] = {
            self.kill_worker: 5, self.kill_manager: 3, self.kill_both: 1, self.stop_worker_shortly: 3, self.stop_worker_for_long: 2,
            self.stop_manager_shortly: 1, self.stop_manager_for_long: 1, self.reset: 4, self.silence_up: 2, self.silence_down: 2, self.silence: 2,
            self.drain: 3, **({self.stop_database: 2} if place.server is not None else {}),
        }  # fmt: skip
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def blow(self) -> None:
        """One fault."""
        self._supervise()
        for _ in range(20):
            if self.chance.choices(self._kinds, self._weights)[0]():
                return

    def pass_time(self, until_s: float) -> None:
        """Until then (monotonic), doing what is due."""
        while True:
            moment = time.monotonic()
            if self._later and self._later[0][0] <= moment:
                heapq.heappop(self._later)[2]()
            elif moment >= until_s:
                return
            else:
                time.sleep(min(0.02, until_s - moment))

    def heal(self) -> None:
        """Do soon what was to be done later, and see that all are there."""
        while self._later:
            heapq.heappop(self._later)[2]()
            time.sleep(0.05)
        self._supervise()
        for process in [*self.place.alive, *(hand.process for hand in self.place.hands)]:
            assert process.is_running, f"{process.name} ended by itself: {process.log[-3000:]}"
        for manager in self.place.alive:
            manager.until_ready(60)

    def _supervise(self) -> None:
        """Do what an init system does: a manager that ended because it found no PostgreSQL as it started, is started again."""
        for number, manager in enumerate(self.place.alive):
            if number not in self._killed and not manager.is_running and self.place.server is not None and NO_DATABASE in manager.log:
                self.place.open_manager(number)
                self.counts["starts of a manager without a database"] += 1

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, self._n, act))

    def _hand(self) -> Hand | None:
        whole = [hand for hand in self.place.hands if id(hand) not in self._busy]
        return self.chance.choice(whole) if whole else None

    def _manager(self) -> int | None:
        whole = [number for number in range(len(self.place.ports)) if number not in self._busy]
        return self.chance.choice(whole) if whole else None

    # --- processes that die -----------------------------------------------------------------------------------------------------

    def _kill_worker(self, hand: Hand) -> None:
        self.place.fire(hand)
        self._after(self.chance.uniform(0, 2), lambda: self._replace(hand))

    def _replace(self, hand: Hand) -> None:
        self.place.hire(SLOTS, hand.proxies)

    def kill_worker(self) -> bool:
        hand = self._hand()
        if hand is None or len(self.place.hands) < 2:
            return False
        self._kill_worker(hand)
        self.counts["kills of a worker"] += 1
        return True

    def _kill_manager(self, number: int) -> None:
        self.place.alive[number].kill()
        self._busy.add(number)
        self._killed.add(number)
        self._after(self.chance.uniform(0, 1), lambda: self._restart(number))

    def _restart(self, number: int) -> None:
        self.place.open_manager(number)
        self._killed.discard(number)
        if self.chance.random() < 0.2:
            self._busy.discard(number)  # it may be killed while it starts
        else:
            self._after(0.3, lambda: self._spare(number, time.monotonic() + 60))

    def _spare(self, number: int, end: float) -> None:
        """Leave it alone until it is ready, and for a while: on a busy machine it would be killed before it began, and nothing would ever get done."""
        self._supervise()
        if self.place.is_ready(number):
            self._after(self.chance.uniform(0, 1.5) * self.place.lease_s, lambda: self._busy.discard(number))
        elif time.monotonic() > end or not self.place.alive[number].is_running:
            raise AssertionError(f"manager {number} was not ready within 60 s, or ended: {self.place.alive[number].log[-3000:]}")
        else:
            self._after(0.3, lambda: self._spare(number, end))

    def kill_manager(self) -> bool:
        number = self._manager()
        if number is None:
            return False
        self._kill_manager(number)
        self.counts["kills of a manager"] += 1
        return True

    def kill_both(self) -> bool:
        number, hand = self._manager(), self._hand()
        if number is None or hand is None:
            return False
        self._kill_manager(number)
        self._kill_worker(hand)
        self.counts["kills of both"] += 1
        return True

    def drain(self) -> bool:
        hand = self._hand()
        if hand is None or len(self.place.hands) < 2:
            return False
        hand.process.signal(signal.SIGTERM)
        self.place.hands.remove(hand)
        end = time.monotonic() + 40

        def gone() -> None:
            if not hand.process.is_running:
                self._replace(hand)
            elif time.monotonic() > end:
                raise AssertionError(f"a worker did not end within 40 s of SIGTERM: {hand.process.log[-3000:]}")
            else:
                self._after(0.3, gone)

        self._after(0.3, gone)
        self.counts["drains"] += 1
        return True

    # --- processes that stand still ---------------------------------------------------------------------------------------------

    def _stop_worker(self, leases: float) -> bool:
        hand = self._hand()
        if hand is None:
            return False
        began = now()
        hand.process.signal(signal.SIGSTOP)
        self._busy.add(id(hand))

        def thaw() -> None:
            hand.process.signal(signal.SIGCONT)
            self.place.stopped.append((str(hand.process.pid), began, now()))
            self._busy.discard(id(hand))

        self._after(self.place.lease_s * leases, thaw)
        return True

    def stop_worker_shortly(self) -> bool:
        done = self._stop_worker(self.chance.uniform(0.1, 0.5))
        self.counts["stops of a worker, short"] += done
        return done

    def stop_worker_for_long(self) -> bool:
        done = self._stop_worker(self.chance.uniform(1.2, 2.5))
        self.counts["stops of a worker, long"] += done
        return done

    def _stop_manager(self, leases: float) -> bool:
        number = self._manager()
        if number is None or not self.place.alive[number].is_running:
            return False
        manager = self.place.alive[number]
        manager.signal(signal.SIGSTOP)
        self._busy.add(number)

        def thaw() -> None:
            manager.signal(signal.SIGCONT)
            self._busy.discard(number)

        self._after(self.place.lease_s * leases, thaw)
        return True

    def stop_manager_shortly(self) -> bool:
        done = self._stop_manager(self.chance.uniform(0.1, 0.5))
        self.counts["stops of a manager, short"] += done
        return done

    def stop_manager_for_long(self) -> bool:
        done = self._stop_manager(self.chance.uniform(1.2, 2.0))
        self.counts["stops of a manager, long"] += done
        return done

    def stop_database(self) -> bool:
        assert self.place.server is not None
        self.place.server.stop()
        time.sleep(self.chance.uniform(0, 0.5))
        self.place.server.start()
        self.counts["stops of PostgreSQL at once"] += 1
        return True

    # --- the network ------------------------------------------------------------------------------------------------------------

    def _way(self) -> FrameProxy | None:
        hand = self._hand()
        whole = [way for way in hand.proxies if id(way) not in self._busy] if hand is not None else []
        return self.chance.choice(whole) if whole else None

    def reset(self) -> bool:
        way = self._way()
        if way is None:
            return False
        way.cut()
        self.counts["resets"] += 1
        return True

    def _silence(self, what: str, up: bool, down: bool) -> bool:
        way = self._way()
        if way is None:
            return False
        if up:
            way.to_manager.clear()
        if down:
            way.to_worker.clear()
        self._busy.add(id(way))
        ends_in_reset = self.chance.random() < 0.5

        def speak() -> None:
            if ends_in_reset:
                way.cut()  # what was held is lost
            way.to_manager.set()
            way.to_worker.set()
            self._busy.discard(id(way))

        self._after(self.place.lease_s * self.chance.uniform(0.2, 2.0), speak)
        self.counts[what] += 1
        return True

    def silence_up(self) -> bool:
        return self._silence("silences to the manager", up=True, down=False)

    def silence_down(self) -> bool:
        return self._silence("silences to the worker", up=False, down=True)

    def silence(self) -> bool:
        return self._silence("silences both ways", up=True, down=True)


def storm(place: LoadSite, size: float) -> str:
    """The load under the faults; then all is healed, comes to its end, and is judged."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(1_000_000))
    try:
        return _storm(place, size, seed)
    except Exception as why:
        raise AssertionError(f"seed {seed}: {type(why).__name__}: {why}") from why


def _storm(place: LoadSite, size: float, seed: int) -> str:
    workers = 4
    place.open(workers, SLOTS)
    weather = Weather(place, seed, workers)
    began = time.monotonic()
    load = Load(place, RATE, round(JOBS * size), seed)
    try:
        while not load.is_over and not load.wrong:
            weather.pass_time(time.monotonic() + weather.chance.uniform(0.5, 1.5))
            weather.blow()
        weather.pass_time(time.monotonic() + 1)
        took = time.monotonic() - began
    finally:
        weather.heal()
        load.stop()
    assert not load.wrong, "\n".join(load.wrong[:10])
    until("all workers are connected", lambda: _connected(place) >= workers, 60, 0.5)
    place.end_ticks()
    place.settle(180)
    quiet = time.monotonic() - began - took
    history = place.told()
    wrong = judge(history)
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])
    assert_no_secret(place.started)
    repeated = given_back(history)
    figures.judged(history, repeated)
    figures.count("chaos jobs", len(history.rows))
    figures.count("ticks", sum(map(len, history.ticks.values())))
    for name, number in weather.counts.items():
        figures.count(f"chaos: {name}", number)
    measure(place, history)
    times = figures.taken()["seconds"].get("rescue under chaos", [])
    slowest = f"rescue at worst {max(times):.1f} s" if times else "no worker was killed in the middle of a job"
    return (
        f"seed {seed}: {len(history.rows)} jobs in {took:.0f} s ({len(history.acked)} acked, {len(history.unknown)} unanswered), "
        f"{sum(map(len, history.ticks.values()))} ticks, {weather.counts.total()} faults ({said(weather.counts)}); 0 lost, 0 ended twice; "
        f"{repeated} runs were repeated; {slowest} (lease {place.lease_s:.0f} s; from the kill on, so with the "
        f"time for which a manager was away too, and the whole lease that it waits for afterwards); all final {quiet:.0f} s after; "
        f"users: {said(load.counts)}"
    )


def _connected(place: LoadSite) -> int:
    return sum(1 for manager in place.alive for worker in manager.get("/jobs/api/v1/workers")["items"] if worker["tasks"])


@row("X1", limit_s=900)
def chaos(directory: Path, size: float) -> str:
    """Kills, stops, silences, resets, drains and users, one a second by a seed, under 330 mixed jobs/s: SQLite.

    The slowest rescue may take many leases. A manager that comes up, or goes on after it stood still, gives each worker a whole lease to speak,
    since it could not hear them meanwhile (P9); the only manager over SQLite rescues nothing until it has lived that long in one piece, and its
    weather breaks it about every ten seconds. X2, where two others are there, says how long a rescue takes otherwise.
    """
    with processes() as started:
        place = LoadSite(started, directory)
        try:
            return storm(place, size)
        finally:
            place.close_ways()


@row("X2", limit_s=900)
def chaos_of_several(directory: Path, size: float) -> str:
    """The same with three managers over a PostgreSQL, which is stopped at once too."""
    with postgres.cluster() as server, processes() as started:
        place = LoadSite(started, directory, server=server, count=3)
        try:
            return storm(place, size)
        finally:
            place.close_ways()
