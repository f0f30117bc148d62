"""Faults of the disk under SQLite: fsync that fails or is slow, power loss, flipped bits, a stranger's lock."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import apsw

from faults import figures, powerloss
from faults.cluster import QUEUE, Site, reruns, site, tokens
from faults.matrix import Skipped, row
from tests.faults.cluster import LEASE_S
from tests.processes import NotInTime, processes, until


def _strace(pid: int, *options: str) -> subprocess.Popen[bytes]:
    if shutil.which("strace") is None:
        raise Skipped("strace is not installed")
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", *options, "-p", str(pid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(1.0)
    if tracer.poll() is not None:
        raise Skipped(f"strace may not attach here: {tracer.stderr.read().decode()[-200:] if tracer.stderr else ''}")
    return tracer


def _detach(tracer: subprocess.Popen[bytes]) -> None:
    if tracer.poll() is None:
        tracer.send_signal(signal.SIGINT)
    tracer.communicate(timeout=10)


@contextmanager
def _small_disk(where: Path, mib: int) -> Iterator[Path]:
    """A file system of its own, of that size."""
    if os.geteuid() != 0:
        raise Skipped("mounting a small tmpfs needs root")
    where.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(where)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise Skipped(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def _fill(file: Path) -> None:
    """Take the last byte of its file system."""
    with file.open("ab", buffering=0) as out:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(bytes(size))


@row("D1")
def disk_full(directory: Path, size: float) -> str:
    """A disk of 16 MiB is full on submits, on results and at a restart: 507, reading goes on, acked is kept, and it resumes when there is room."""
    turns = max(1, round(size))
    statuses: Counter[int] = Counter()
    waited: list[float] = []
    acked = held = 0
    restart = ""
    for turn in range(turns):  # each on a disk of its own, since what has ended stays for days
        with _small_disk(directory / f"small{turn}", 16) as small, processes() as started:
            (directory / f"turn{turn}").mkdir()
            place = Site(started, directory / f"turn{turn}")
            place.database = small / "db"
            place.start_manager()
            worker = place.start_worker(slots=10)
            place.submit_many("wait_for_gate", tokens(f"g-{'x' * 5000}-", 10), gate="go")
            for n in range(10):
                place.until_effect(f"g-{'x' * 5000}-{n}")  # no slot is free: what is submitted now stays queued
            reserve, rest = small / "reserve", small / "rest"
            used = sum(file.stat().st_size for file in place.database.iterdir())
            reserve.write_bytes(bytes(11 * 2**20 - used))  # its room is then enough for the results, which are as large as the arguments
            for n in range(1000):
                answer = _try(place, f"b-{n}-{'x' * 20_000}")
                if answer != 200:
                    break
            statuses[answer] += 1
            _fill(rest)
            for n in range(10):
                statuses[_try(place, f"s-{n}")] += 1
            place.open_gate("go")
            for n in range(10):
                place.until_effect(f"g-{'x' * 5000}-{n}", "done")
            for n in range(round(3 * LEASE_S)):  # nobody may take its jobs away meanwhile
                time.sleep(1)
                statuses[_try(place, f"l-{n}")] += 1
                assert place.manager.get("/jobs/api/v1/queues")["items"], "reading goes on"
            ends = [place.manager.job(place.history.acked[f"g-{'x' * 5000}-{n}"])["status"] for n in range(10)]
            held += ends.count("running")
            restart = _restart_on_a_full_disk(place)
            rest.unlink()
            reserve.unlink()
            began = time.monotonic()
            if not place.manager.is_running:
                place.start_manager()
            until("it takes jobs again", lambda place=place: _try(place, f"room-{time.monotonic_ns()}") == 200, 20)
            waited.append(time.monotonic() - began)
            assert place.settle(60), "what had been acknowledged does not end"
            place.manager.kill()
            place.start_manager()
            history = place.judged(60)
            assert worker.is_running
            assert reruns(history) == 0, f"{reruns(history)} reruns"
            acked += len(history.acked)
    assert set(statuses) == {507}, statuses
    assert held > 0, "each result had room: it does not bite"
    figures.took("jobs are taken again, once the disk has room", *waited)
    return (
        f"{statuses.total()} submits refused with 507; acked {acked} = kept; {held} of {10 * turns} results waited at their worker for "
        f"{3 * LEASE_S:.0f} s (three leases), 0 reruns; a restart meanwhile: {restart}; submits again {max(waited):.1f} s after there was room"
    )


def _restart_on_a_full_disk(place: Site) -> str:
    """kill -9, and start it again; what becomes of that."""
    place.manager.kill()
    try:
        place.start_manager()
    except NotInTime:
        if place.manager.is_running:
            raise
        return f"exit {place.manager.wait()}"
    return f"starts, a submit {_try(place, f'full-{time.monotonic_ns()}')}"


def _try(place: Site, token: str) -> int:
    """Submit; the status."""
    place.history.unknown.add(token)
    answer = place.manager.call("POST", f"/{QUEUE}/task/work", {"token": token})
    if answer.status == 200:
        place.history.acked[token] = answer.json()["request_id"]
        place.history.unknown.discard(token)
    return answer.status


@row("D2")
def fsync_fails(directory: Path, size: float) -> str:
    """fsync fails once, or from some moment on for ever: nothing more is acknowledged before a restart on a good disk, and what was is there."""
    told = []
    for name, when in (("once", "1"), ("for ever", "1+"), ("for ever, under load", "20+")):
        told.append(f"{name}: {_no_sync(directory / name.replace(' ', '-').replace(',', ''), when)}")
    return "; ".join(told)


def _no_sync(directory: Path, when: str) -> str:
    """`when`: which calls fail, of those from now on, as strace has it."""
    with site(directory) as place:
        place.start_worker(slots=5)
        place.submit_many("work", tokens("a", 20))
        place.settle()
        place.submit_many("wait_for_gate", tokens("held", 5), gate="go")
        for token in tokens("held", 5):
            place.until_effect(token)
        tracer = _strace(place.manager.pid, "-e", f"inject=fdatasync,fsync:error=EIO:when={when}")
        statuses: list[int] = []
        try:
            while len(statuses) < 200 and sum(status != 200 for status in statuses) < 6:
                try:
                    statuses.append(_try(place, f"b{len(statuses)}"))
                except (OSError, http.client.HTTPException):
                    statuses.append(0)
            refused = [status for status in statuses if status != 200]
            assert refused, "the error was not noticed"
            assert statuses.index(refused[0]) == len(statuses) - len(refused), f"it acknowledged again after a sync that failed: {statuses}"
            ready = place.manager.call("GET", "/jobs/readyz").status if place.manager.is_running else 0
            assert ready != 200, "it says that it is ready, on a disk that does not sync"
            place.open_gate("go")  # what ends now cannot be stored
            for token in tokens("held", 5):
                place.until_effect(token, "done")
            refused.append(_try(place, "after"))
            assert refused[-1] != 200, "it acknowledged again"
        finally:
            _detach(tracer)
        assert _try(place, "good-again") != 200, "a good sync after one that failed proves nothing"
        place.manager.kill()
        place.start_manager()
        history = place.judged()
        assert reruns(history) == 0, f"{reruns(history)} reruns: the workers hold their results"
        return (
            f"{len(statuses) + 1 - len(refused)} acked, then {len(refused)} refused ({', '.join(map(str, sorted(set(refused))))}), readyz {ready}; "
            f"{len(history.acked)} acked in all, 0 lost, 5 results kept by their worker"
        )


@row("D3")
def slow_disk(directory: Path, size: float) -> str:
    """Each fsync takes 200 ms: no false rescue."""
    with site(directory) as place:
        place.start_worker(slots=5)
        place.start_worker(slots=5)
        tracer = _strace(place.manager.pid, "-e", "inject=fdatasync,fsync:delay_enter=200000")
        try:
            waits: list[float] = []
            for n in range(20):
                began = time.monotonic()
                place.submit_many("work", tokens(f"s{n}-", 10), seconds=0.2)
                waits.append(time.monotonic() - began)
            place.settle(60)
        finally:
            _detach(tracer)
        history = place.judged()
        assert reruns(history) == 0, f"{reruns(history)} false rescues"
        return f"false rescues 0; submit p50 {sorted(waits)[10] * 1000:.0f} ms, max {max(waits) * 1000:.0f} ms"


@row("D4")
def power_loss(directory: Path, size: float) -> str:
    """Power loss at any point: `full` loses nothing that was acknowledged, `relaxed` does."""
    full = powerloss.many(range(round(60 * size)), "full")
    relaxed = powerloss.many(range(40), "relaxed")
    assert not full.broken, full.broken[:5]
    assert not relaxed.broken, relaxed.broken[:5]
    assert full.lost == 0, str(full)
    assert relaxed.lost > 0, "relaxed loses nothing: this test does not bite"
    return f"{full}; {relaxed}"


@row("D6")
def flipped_bits_on_disk(directory: Path, size: float) -> str:
    """Bits flip in the database or in its log, or the log is cut short: it is noticed, or an older state is there; never an invented job."""
    chance = Random(6)
    noticed = older = 0
    with site(directory / "original") as place:
        place.start_worker(slots=5)
        place.submit_many("work", tokens("a", 200))
        place.settle()
        place.manager.kill()
        files = {file.name: file.read_bytes() for file in place.database.iterdir() if file.name.endswith((".db", "-wal"))}
        known = {end["id"] for end in place.history.ends.values()} | set(place.history.acked.values())
    tries = round(40 * size)
    for n in range(tries):
        where = directory / f"copy{n}"
        where.mkdir()
        target = chance.choice(sorted(files))
        for name, content in files.items():
            spoiled = bytearray(content)
            if name == target and n % 4 == 3 and name.endswith("-wal"):
                del spoiled[chance.randrange(32, len(spoiled)) :]
            elif name == target:
                for _ in range(3):
                    spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
            (where / name).write_bytes(spoiled)
        verdict = _open_spoiled(where / "job_manager.db", known)
        noticed += verdict == "noticed"
        older += verdict == "older"
        shutil.rmtree(where)
    return f"{tries} spoiled copies: {noticed} refused, {older} opened with an older state, {tries - noticed - older} unharmed; 0 invented jobs"


def _open_spoiled(file: Path, known: set[str]) -> str:
    import asyncio

    from easyjobs.domain.job import JobQuery
    from easyjobs.errors import EasyJobsError
    from easyjobs.runtime.clock import SystemClock
    from easyjobs.runtime.ids import id_text
    from easyjobs.stores import open_store

    async def look() -> str:
        store = open_store(str(file), clock=SystemClock())
        try:
            await store.open()
        except EasyJobsError:
            return "noticed"
        try:
            found = {id_text(job.id) for job in await store.page(JobQuery(limit=10_000))}
        except EasyJobsError:
            return "noticed"
        finally:
            await store.close()
        assert found <= known, f"invented: {sorted(found - known)[:3]}"
        return "older" if found != known else "unharmed"

    return asyncio.run(look())


class _Knocker:
    """Submits one job after the other, and notes when each was sent and what the answer was."""

    def __init__(self, place: Site, prefix: str) -> None:
        self.place, self.prefix = place, prefix
        self.answers: list[tuple[float, float, int]] = []  # sent, answered (monotonic), status; 0: no answer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._knock)
        self._thread.start()

    def _knock(self) -> None:
        history, n = self.place.history, 0
        while not self._done.wait(0.01):
            token, sent = f"{self.prefix}{n}", time.monotonic()
            n += 1
            history.unknown.add(token)
            try:
                answer = self.place.manager.call("POST", f"/{QUEUE}/task/work", {"token": token})
            except (OSError, http.client.HTTPException):
                self.answers.append((sent, time.monotonic(), 0))
                continue
            self.answers.append((sent, time.monotonic(), answer.status))
            if answer.status == 200:
                history.acked[token] = answer.json()["request_id"]
                history.unknown.discard(token)

    def stop(self) -> None:
        self._done.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a submit got no answer"


LOCKED_S = 17.0  # three times as long as a call waits for the lock
LONGEST_S = 10.0  # until a submit is answered meanwhile, as docs/operation.md says
READY_S = 2.0  # until readyz is
SLACK_S = 1.0  # for a loaded machine


class _Prober:
    """Asks for one page again and again, and notes when it asked, when it had the answer, and which."""

    def __init__(self, place: Site, path: str) -> None:
        self.place, self.path = place, path
        self.answers: list[tuple[float, float, int]] = []  # asked, answered (monotonic), status
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._probe)
        self._thread.start()

    def _probe(self) -> None:
        while not self._done.wait(0.05):
            asked = time.monotonic()
            try:
                status = self.place.manager.call("GET", self.path).status
            except (OSError, http.client.HTTPException):
                status = 0
            self.answers.append((asked, time.monotonic(), status))

    def stop(self) -> None:
        self._done.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), f"{self.path} got no answer"


def _longest(answers: Sequence[tuple[float, float, int]]) -> float:
    return max(answered - asked for asked, answered, _ in answers)


def _under_a_lock(place: Site, stranger: apsw.Connection) -> str:
    """Submitters and probes while the lock is held. Five jobs end meanwhile: their reports have to wait too."""
    place.submit_many("wait_for_gate", tokens("held", 5), gate="go")
    for token in tokens("held", 5):
        place.until_effect(token)
    health, ready = _Prober(place, "/jobs/healthz"), _Prober(place, "/jobs/readyz")
    knockers = [_Knocker(place, f"k{n}-") for n in range(8)]
    try:
        time.sleep(1)
        stranger.execute("begin immediate")
        locked = time.monotonic()
        time.sleep(3)
        place.open_gate("go")
        time.sleep(LOCKED_S - 3)
        freed = time.monotonic()
        stranger.execute("rollback")
        until("each takes jobs again", lambda: all(each.answers[-1][0] > freed and each.answers[-1][2] == 200 for each in knockers), 20)
    finally:
        others: list[_Knocker | _Prober] = [*knockers, health, ready]
        for other in others:
            other.stop()
    submits = [answer for knocker in knockers for answer in knocker.answers if answer[1] > locked and answer[0] < freed]
    statuses = Counter(status for _, _, status in submits)
    assert set(statuses) == {200, 503}, statuses
    probes = [answer for answer in ready.answers if answer[1] > locked + LEASE_S and answer[0] < freed]
    assert {status for _, answered, status in probes if answered < freed} == {503}, "it says that it is ready, under a lock"
    assert {status for _, _, status in health.answers} == {200}
    assert _longest(submits) < LONGEST_S + SLACK_S, f"a submit was answered after {_longest(submits):.1f} s"
    assert _longest(probes) < READY_S + SLACK_S, f"readyz answered after {_longest(probes):.1f} s"
    assert _longest(health.answers) < SLACK_S, f"healthz answered after {_longest(health.answers):.1f} s"
    figures.took("a submit under a stranger's lock", *(answered - asked for asked, answered, _ in submits))
    return (
        f"{LOCKED_S:.0f} s of a lock under 8 submitters: {statuses[503]} 503, {statuses[200]} 200, the longest after {_longest(submits):.1f} s; "
        f"readyz 503, the longest after {_longest(probes):.1f} s; healthz {len(health.answers)} times 200, the longest after "
        f"{_longest(health.answers) * 1000:.0f} ms"
    )


@row("D8")
def locked_by_a_stranger(directory: Path, size: float) -> str:
    """Somebody holds the write lock under load, and later a read transaction: submits are answered within ten seconds, healthz at once, the log stays bounded."""
    with site(directory) as place:
        place.start_worker(slots=10)
        stranger = apsw.Connection(str(place.file))
        stranger.set_busy_timeout(10_000)
        told = _under_a_lock(place, stranger)
        place.settle(60)
        stranger.execute("begin")
        stranger.execute("select count(*) from jobs").fetchall()
        for n in range(20):
            place.submit_many("work", tokens(f"c{n}-", 200))
        place.settle(60)
        held = (place.database / "job_manager.db-wal").stat().st_size / 2**20
        stranger.execute("rollback")
        for n in range(10):
            place.submit_many("work", tokens(f"d{n}-", 200))
        history = place.judged(60)
        freed = (place.database / "job_manager.db-wal").stat().st_size / 2**20
        stranger.close()
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        assert place.manager.log.count("job.rescued") == 0, "a lease ended while nothing could be written"
        return f"{told}; log {held:.0f} MiB under a reader, {freed:.0f} MiB after it; 0 reruns"


FILES = ("", "-wal")  # of a database: what holds its commits


def _removed(file: Path, aside: Path) -> None:
    for end in FILES:
        Path(f"{file}{end}").unlink()


def _directory_removed(file: Path, aside: Path) -> None:
    shutil.rmtree(file.parent)


def _directory_renamed(file: Path, aside: Path) -> None:
    file.parent.rename(aside / "directory")


def _renamed(file: Path, aside: Path) -> None:
    file.rename(f"{file}.before")


def _replaced(file: Path, aside: Path) -> None:
    (aside / "copy").replace(file)


def _replaced_with_its_log(file: Path, aside: Path) -> None:
    for end in reversed(FILES):
        (aside / f"copy{end}").replace(f"{file}{end}")


def _only_the_log_removed(file: Path, aside: Path) -> None:
    Path(f"{file}-wal").unlink()


VANISHES: dict[str, Callable[[Path, Path], None]] = {
    "removed": _removed,
    "its log removed": _only_the_log_removed,
    "renamed": _renamed,
    "replaced": _replaced,
    "replaced, log and all": _replaced_with_its_log,
    "directory removed": _directory_removed,
    "directory renamed": _directory_renamed,
}


@row("D5")
def database_vanishes(directory: Path, size: float) -> str:
    """The database file, its log or its directory is removed, renamed or replaced, or made read-only, under load: no ack from then on, all before it kept."""
    told: list[str] = []
    refusals = 0
    took: list[float] = []
    with site(directory) as place:
        place.start_worker(slots=5)
        for turn in range(max(1, round(size / 2))):
            for n, (name, vanish) in enumerate(VANISHES.items()):
                refused, first_s = _vanish(place, directory / f"aside{turn}-{n}", f"v{turn}-{n}-", vanish)
                refusals += refused
                took.append(first_s)
                told.append(name)
        # Whoever has a file open may go on writing to it: what is acknowledged must be there.
        knocker = _Knocker(place, "readonly")
        time.sleep(0.5)
        for path in (place.file, Path(f"{place.file}-wal"), place.file.parent):
            path.chmod(0o500 if path.is_dir() else 0o400)
        time.sleep(1)
        knocker.stop()
        place.manager.kill()
        for path in (place.file.parent, place.file, Path(f"{place.file}-wal")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        place.start_manager()
        history = place.judged()
        readonly = sum(token.startswith("readonly") for token in history.acked)
        figures.took("a vanished database is refused", *took)
        return (
            f"{', '.join(VANISHES)}: {len(told)} times, the first refusal within {max(took) * 1000:.0f} ms, {refusals} submits refused, 0 silent acks; "
            f"read-only: {readonly} acked; of {len(history.acked)} acked in all 0 were lost, {reruns(history)} reruns"
        )


def _vanish(place: Site, aside: Path, prefix: str, vanish: Callable[[Path, Path], None]) -> tuple[int, float]:
    """Let it vanish under load, and bring it back; how many submits were refused, and seconds until the first was."""
    aside.mkdir()
    is_restore = vanish is _replaced_with_its_log
    place.submit_many("work", tokens(f"{prefix}before", 20))
    place.settle()
    for end in FILES:
        source = Path(f"{place.file}{end}")
        os.link(source, aside / f"same{end}")  # the inode, as the manager has it
        shutil.copy(source, aside / f"copy{end}")
    if not is_restore:  # else what is acknowledged after the copy would be the operator's loss
        knocker = _Knocker(place, prefix)
        time.sleep(0.5)
    vanish(place.file, aside)
    at = time.monotonic()
    if is_restore:
        knocker = _Knocker(place, prefix)
    time.sleep(1)
    knocker.stop()
    silent = [sent - at for sent, _, status in knocker.answers if status == 200 and sent > at]
    assert not silent, f"{prefix}: {len(silent)} acks of submits that were sent up to {max(silent):.2f} s after it"
    refused = [(answered - at, status) for sent, answered, status in knocker.answers if status != 200 and answered > at]
    assert refused, f"{prefix}: nothing was refused"
    assert {status for _, status in refused} == {503}, f"{prefix}: {Counter(status for _, status in refused)}"
    until("readyz says no", lambda: place.manager.call("GET", "/jobs/readyz").status == 503, 10)
    if not is_restore:
        place.file.parent.mkdir(exist_ok=True)
        for end in FILES:
            (aside / f"same{end}").replace(f"{place.file}{end}")
    place.manager.stop()
    place.start_manager()
    return len(refused), refused[0][0]
