"""A cluster under a steady mixed load, which something breaks meanwhile, and witnesses cheap enough for 100,000 jobs.

One manager over SQLite, or several over a PostgreSQL; each worker reaches each manager through a `FrameProxy` of its own. The load goes on until
`Load.stop`, and what it could not submit it repeats under the same key until it is told that it is there.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from easyjobs.domain.lifecycle import FINAL, Back, JobState
from faults import events, figures
from faults.cluster import QUEUE, Site
from faults.history import Effect, History
from faults.proxy import FrameProxy
from tests import postgres
from tests.faults.checker import Fault, now
from tests.faults.cluster import PROGRAMS as MANAGER_PROGRAMS
from tests.processes import SECRET, NotInTime, Processes, Served, free_port, http_call, until

PROGRAMS = Path(__file__).parent / "programs"
API = "/jobs/api/v1"
TICKS = {f"{QUEUE}/each_second": 1, f"{QUEUE}/each_third": 3}
SECOND = 1_000_000
NOT_DONE = (OSError, http.client.HTTPException)
FINAL_NUMBERS = ", ".join(str(int(state)) for state in FINAL)


@dataclass
class Hand:
    """A worker, with its proxies in the order of the managers. `until` when it stands still, or its links are spoiled."""

    process: Served
    proxies: list[FrameProxy]


class LoadSite(Site):
    """See the module's docstring. `ports` are those of the managers; `alive[n]` is the process there, also while it is down."""

    app, programs = "fault_manager:server", MANAGER_PROGRAMS

    def __init__(
        self, started: Processes, directory: Path, *, server: postgres.Cluster | None = None, count: int = 1, lease_s: float = 3.0
    ) -> None:
        super().__init__(started, directory, server=server)
        self.lease_s = self.history.lease_s = lease_s
        self.ports = [free_port() for _ in range(count)]
        self.alive: list[Served] = []
        self.hands: list[Hand] = []
        self.starts: list[float] = []  # of managers, wall clock
        self.kills: list[tuple[int, float, float]] = []  # of workers: pid, CLOCK_BOOTTIME, wall clock
        self.first_tick = self.last_tick = 0

    def environment(self, **more: str) -> dict[str, str]:
        return {**super().environment(), "EASYJOBS_LEASE_S": str(self.lease_s), **more}

    # --- processes --------------------------------------------------------------------------------------------------------------

    def open_manager(self, number: int) -> None:
        """Start the manager with this number; does not wait."""
        options = ("--log-level", "warning", "--no-access-log")
        self.starts.append(time.time())
        process = self.started.uvicorn(
            self.app,
            *options,
            directory=self.programs,
            name=f"manager {number}",
            env=self.environment(),
            port=self.ports[number],
        )
        if number < len(self.alive):
            self.alive[number] = process
        else:
            self.alive.append(process)
        self.manager = self.alive[0]

    def is_ready(self, number: int) -> bool:
        """Whether this manager says so, within half a second."""
        try:
            return http_call("GET", f"http://127.0.0.1:{self.ports[number]}/jobs/readyz", within_s=0.5).status == 200
        except NOT_DONE:
            return False

    def open(self, workers: int, slots: int) -> None:
        """Managers, triggers, workers, and the schedules' ticks."""
        self.open_manager(0)
        self.alive[0].until_ready(60)
        self.install_witness()
        for number in range(1, len(self.ports)):
            self.open_manager(number)
        for _ in range(workers):
            self.hire(slots)
        until("the schedules are known", lambda: len(self.alive[0].get(f"{API}/schedules")["items"]) == len(TICKS), 60, 0.2)
        self.first_tick = int(time.time()) + 1

    def install_witness(self) -> None:
        if self.server is None:
            events.install_sqlite(self.file)
        else:
            self.server.sql(events.POSTGRES_TRIGGERS, self.of_server)

    def hire(self, slots: int, proxies: list[FrameProxy] | None = None) -> Hand:
        """Start a worker; does not wait."""
        ways = proxies or [FrameProxy(port) for port in self.ports]
        env = self.environment(
            TEST_MANAGER_HOSTS=",".join(f"127.0.0.1:{way.port}" for way in ways), TEST_SLOTS=str(slots), EASYJOBS_GRACE_S="5"
        )
        hand = Hand(
            self.started.uvicorn(
                "chaos_worker:server", "--log-level", "warning", "--no-access-log", directory=PROGRAMS, name="worker", env=env
            ),
            ways,
        )
        self.hands.append(hand)
        return hand

    def fire(self, hand: Hand) -> None:
        """kill -9."""
        self.kills.append((hand.process.pid, now(), time.time()))
        self.history.faults.append(Fault(hand.process.pid, now(), kills=True))
        hand.process.kill()
        self.hands.remove(hand)

    def close_ways(self) -> None:
        for hand in self.hands:
            for way in hand.proxies:
                way.__exit__(None, None, None)

    def call(self, method: str, path: str, body: Any = None, *, turn: int = 0, within_s: float = 5.0, **more: Any) -> Any:
        """Ask the managers, beginning with number `turn`, until one answers; the answer. Raises: OSError if none does."""
        why: Exception = OSError("no manager")
        for number in range(len(self.ports)):
            port = self.ports[(turn + number) % len(self.ports)]
            try:
                return http_call(method, f"http://127.0.0.1:{port}{path}", body, within_s=within_s, **more)
            except NOT_DONE as error:
                why = error
        raise OSError(str(why))

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def count(self, condition: str) -> int:
        """How many jobs are so, by the store itself."""
        if self.server is not None:
            return int(
                self.server.sql(
                    f"select count(*) from easyjobs.jobs j join easyjobs.tasks t using (lane) where {condition}", self.of_server
                )
            )
        db = apsw.Connection(str(self.file), flags=apsw.SQLITE_OPEN_READWRITE)
        db.set_busy_timeout(10_000)
        try:
            [(found,)] = db.execute(f"select count(*) from jobs j join tasks t using (lane) where {condition}")
            return int(found)
        finally:
            db.close()

    def end_ticks(self) -> None:
        """Pause the schedules: the last tick that must be there is the one before."""
        for item in self.alive[0].get(f"{API}/schedules")["items"]:
            name = item["name"]
            expected = sum(1 for _ in range(self.first_tick, int(time.time())) if _ % TICKS[f"{QUEUE}/{name}"] == 0)
            until(f"{name} has caught up", lambda name=name, expected=expected: self.count(f"t.name = '{name}'") >= expected, 60, 0.3)
        self.last_tick = int(time.time()) - 1
        for item in self.alive[0].get(f"{API}/schedules")["items"]:
            assert self.alive[0].call("POST", f"{API}/schedules/{item['id']}/pause").status == 200

    def settle(self, within_s: float = 40.0) -> bool:
        """Until all jobs are final."""
        try:
            until("all are final", lambda: self.count(f"j.state not in ({FINAL_NUMBERS})") == 0, within_s, every_s=0.5)
        except NotInTime:
            return False
        return True

    def told(self) -> History:
        told = History(lease_s=self.lease_s, acked=dict(self.history.acked), unknown=set(self.history.unknown), stopped=self.stopped)
        told.keyed = set(self.keyed)
        told.max_overlap_s = self.lease_s
        told.successors = {f"{QUEUE}/first": (f"{QUEUE}/second",), f"{QUEUE}/second": (f"{QUEUE}/third", f"{QUEUE}/fourth")}
        told.helpers = {f"{QUEUE}/flaky": f"{QUEUE}/told"}
        may = [*range(self.first_tick - 60, self.first_tick), *range(self.last_tick + 1, self.last_tick + 60)]
        for task, every in TICKS.items():
            told.ticks[task] = [at * SECOND for at in range(self.first_tick, self.last_tick + 1) if at % every == 0]
            told.optional_ticks[task] = {at * SECOND for at in may if at % every == 0}
        told.effects = read_lines(self.effects_path)
        self.read_store(told)
        return told


def read_lines(path: Path) -> list[Effect]:
    """The effects log of `programs/chaos_worker`."""
    found = []
    for line in path.read_text().splitlines():
        token, run, pid, what, at, attempt, job = line.split(" ")
        found.append(Effect(token, run, pid, what, float(at), int(attempt), job))
    return found


@dataclass
class Load:
    """Submits of each kind, about `rate` jobs a second (with successors), by two threads; and users who cancel and retry. `total`: then it ends."""

    place: LoadSite
    rate: float
    total: int
    seed: int
    made: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._recent: list[str] = []
        self._began = time.monotonic()
        self._batch = 0
        targets = (self._submit, self._submit, self._submit_singles, self._meddle)
        self._threads = [threading.Thread(target=self._guarded, args=(target, n), name=f"load {n}") for n, target in enumerate(targets)]
        for thread in self._threads:
            thread.start()

    @property
    def is_over(self) -> bool:
        return self.made >= self.total

    def stop(self) -> None:
        """No more; what is under way is repeated until it is known to be there."""
        self._done.set()
        for thread in self._threads:
            thread.join(120)
            if thread.is_alive():
                self.wrong.append(f"{thread.name} did not end: a submit got no answer for two minutes")

    def _guarded(self, target: Any, n: int) -> None:
        try:
            target(n, random.Random(self.seed * 10 + n))
        except Exception as why:
            self.wrong.append(f"{threading.current_thread().name}: {type(why).__name__}: {why}")

    def _wait(self) -> bool:
        """Keep the pace; whether to go on."""
        ahead = self.made / self.rate - (time.monotonic() - self._began)
        if ahead < -5:  # do not make up for what a long fault held up
            self._began -= ahead + 5
        return not self._done.wait(max(0.0, ahead)) and not self.is_over

    def _submit(self, n: int, chance: random.Random) -> None:
        while self._wait():
            with self._lock:
                self._batch += 1
                batch = self._batch
            kind, size, jobs = self._kind(batch, chance)
            tokens = [f"b{batch}-{m}" for m in range(size)]
            body = [{"namespace": QUEUE, "name": kind, "args": [], **jobs(token)} for token in tokens]
            has_key = chance.random() < 0.8
            with self._lock:
                self.place.history.unknown.update(tokens)
                self.made += size * {"first": 4, "flaky": 1}.get(kind, 1)
            key = {"Idempotency-Key": f"batch-{batch}"} if has_key else {}
            answer = self._until_taken("POST", f"{API}/jobs", body, key, 202, n)
            if answer is not None:
                self._note(tokens, answer["request_ids"], has_key)
                if has_key and chance.random() < 0.1:
                    again = self._until_taken("POST", f"{API}/jobs", body, key, 202, n + 1)
                    self.counts["repeats"] += 1
                    if again is not None and again["request_ids"] != answer["request_ids"]:
                        self.wrong.append(f"batch {batch}: its repeat has other ids")

    def _kind(self, batch: int, chance: random.Random) -> tuple[str, int, Any]:
        kind = chance.choices(("work", "slow", "later", "first", "flaky"), (50, 10, 12, 16, 12))[0]
        if kind == "slow":
            return "work", 5, lambda token: {"kwargs": {"token": token, "seconds": chance.uniform(0.5, 5)}}
        if kind == "later":
            return (
                "work",
                40,
                lambda token: {"kwargs": {"token": token}, "delay": round(chance.uniform(0.2, 8), 2), "priority": chance.randrange(-3, 4)},
            )
        if kind == "flaky":
            return "flaky", 25, lambda token: {"kwargs": {"token": token, "failures": chance.choice((0, 1, 1, 2, 3, 4))}}
        if kind == "first":
            return "first", 20, lambda token: {"kwargs": {"token": token}}
        return "work", 80, lambda token: {"kwargs": {"token": token, "seconds": 0.0 if chance.random() < 0.7 else 0.05}}

    def _submit_singles(self, n: int, chance: random.Random) -> None:
        number = 0
        while not self._done.wait(0.05) and not self.is_over:
            number += 1
            token = f"s{number}"
            has_key = chance.random() < 0.8
            with self._lock:
                self.place.history.unknown.add(token)
                self.made += 1
            answer = self._until_taken(
                "POST", f"/{QUEUE}/task/work", {"token": token}, {"Idempotency-Key": token} if has_key else {}, 200, number
            )
            if answer is not None:
                self._note([token], [answer["request_id"]], has_key)

    def _until_taken(self, method: str, path: str, body: Any, key: dict[str, str], status: int, turn: int) -> Any:
        """The answer; None if it has no key, and nobody knows."""
        for tries in range(400):
            why = ""
            try:
                port = self.place.ports[(turn + tries) % len(self.place.ports)]
                answer = http_call(method, f"http://127.0.0.1:{port}{path}", body, headers=key, within_s=6)
                if answer.status == status:
                    return answer.json()
                why = f"{answer.status} {answer.body[:300]!r}"
                if answer.status not in (404, 409, 500, 503):
                    self.wrong.append(f"{path}: {why}")
                    return None
                self.counts[f"answers {answer.status}"] += 1
                if answer.status == 500:
                    self.wrong.append(f"{path}: {why}")
            except NOT_DONE:
                self.counts["no answer"] += 1
            if not key:
                return None
            time.sleep(0.2)
        self.wrong.append(f"{path}, key {key}: not taken: {why}")
        return None

    def _note(self, tokens: list[str], ids: list[str], has_key: bool) -> None:
        with self._lock:
            self.place.history.acked.update(zip(tokens, ids, strict=True))
            self.place.history.unknown.difference_update(tokens)
            if has_key:
                self.place.keyed.update(tokens)
            self._recent = [*self._recent[-400:], *ids]

    def _meddle(self, n: int, chance: random.Random) -> None:
        """Users who cancel, retry, and run now."""
        while not self._done.wait(0.1):
            with self._lock:
                job = chance.choice(self._recent) if self._recent else None
            if job is None:
                continue
            verb = chance.choices(("cancel", "retry", "run"), (3, 5, 1))[0]
            with contextlib.suppress(OSError):
                answer = self.place.call("POST", f"{API}/jobs/{job}/{verb}", turn=chance.randrange(3))
                self.counts[f"{verb} {answer.status}"] += 1
                if answer.status == 500:
                    self.wrong.append(f"{verb} of {job}: {answer.body[:300]!r}")


def measure(place: LoadSite, history: History) -> None:
    """Times of rescue and recovery, from what the triggers wrote."""
    final = sorted(step.at / 1e6 for step in history.steps if step.state in {int(state) for state in FINAL})
    for start in place.starts if len(place.ports) == 1 else []:
        after = bisect_left(final, start)
        if after < len(final):
            figures.took("recovery", final[after] - start)
    figures.took("rescue under chaos", *rescues(place, history))


def rescues(place: LoadSite, history: History) -> list[float]:
    """For each worker that was killed with jobs: seconds until the store had put the last of them back."""
    rows = {row.id: row.seq for row in history.rows}
    ended = {effect.run for effect in history.effects if effect.what != "start"}
    open_of: dict[str, list[Effect]] = defaultdict(list)
    for effect in history.effects:
        if effect.what == "start" and effect.run not in ended and effect.job in rows:
            open_of[effect.worker].append(effect)
    back: dict[tuple[int, int], float] = {}
    for step in history.steps:
        if step.old_state == JobState.RUNNING and step.state != JobState.RUNNING and step.back == Back.RESCUED:
            back[step.seq, step.attempt] = step.at / 1e6
    found = []
    for pid, _, at in place.kills:
        times = [back[rows[effect.job], effect.attempt] - at for effect in open_of[str(pid)] if (rows[effect.job], effect.attempt) in back]
        if times:
            found.append(max(0.0, *times))
    return found


def given_back(history: History) -> int:
    """How often a body that had begun ran again for another reason than its own failure, or a person's wish."""
    rows = {row.id: row.seq for row in history.rows}
    began = {(rows.get(effect.job), effect.attempt) for effect in history.effects if effect.what == "start"}
    lost = (Back.RESCUED, Back.RELEASED)
    return sum(
        step.old_state == JobState.RUNNING and step.state == JobState.QUEUED and step.back in lost and (step.seq, step.attempt) in began
        for step in history.steps
    )


def assert_no_secret(started: Processes) -> None:
    """No process has said the cluster's secret."""
    for process in started.started:
        assert SECRET not in process.log, f"the log of {process.name} has the secret"
    figures.count("logs without a secret", len(started.started))


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
