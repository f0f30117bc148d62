"""The rows of the fault matrix: each breaks one thing, checks the invariants, and returns its figure.

A row that the machine cannot run raises `Skipped` with the reason. `COVERED` names the tests that show the other rows; `ABSENT` says why a row is not
there yet.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from faults import powerloss
from faults.cluster import QUEUE, Site, overlap_s, reruns, site, tokens
from faults.proxy import FrameProxy
from tests import postgres
from tests.faults.checker import read_effects
from tests.faults.cluster import LEASE_S, PROGRAMS, RERUN_S
from tests.processes import Answer, NotInTime, http_call, until


class Skipped(Exception):
    """This machine cannot run the row, for this reason."""


Row = Callable[[Path, float], str]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Register a row. It gets a directory of its own, and how much more than the short form it is to do (1.0: the short form)."""

    def register(function: Row) -> Row:
        ROWS[name] = function
        return function

    return register


# --- workers --------------------------------------------------------------------------------------------------------------------


@row("W1")
def killed_at_failpoints(directory: Path, size: float) -> str:
    """kill -9 of a worker: with jobs received and not begun, in the middle, and with reports sent and not acked."""
    took: list[float] = []
    with site(directory) as place:
        for n, failpoint in enumerate(["link.received:kill@3", "", "link.reported:kill@3"]):
            doomed = place.start_worker(slots=3, **({"EASYJOBS_FAILPOINTS": failpoint} if failpoint else {}))
            place.submit_many("work", tokens(f"w{n}-", 40), seconds=0.05)
            if failpoint:
                until("it is dead", lambda doomed=doomed: not doomed.is_running, 20)
                place.note_fault(doomed, kills=True)
            else:
                place.until_effect(f"w{n}-4")
                place.kill(doomed)
            began = time.monotonic()
            other = place.start_worker(slots=3)
            assert place.settle(RERUN_S + 20)
            took.append(time.monotonic() - began)
            other.stop()
        history = place.judged()
    return f"{reruns(history)} reruns of {len(history.acked)} jobs; all final within {max(took):.1f} s (lease {LEASE_S:.0f} s)"


@row("W3")
def stopped_longer_than_the_lease(directory: Path, size: float) -> str:
    """SIGSTOP of a worker for 2.5 leases: its late results are refused where others have the job, and overlap is short."""
    with site(directory) as place:
        stopped = place.start_worker(slots=4)
        place.submit_many("work", tokens("a", 8), seconds=LEASE_S * 1.5)
        place.until_effect("a3")
        place.start_worker(slots=4)
        place.pause_process(stopped, LEASE_S * 2.5)
        history = place.judged()
        assert reruns(history) > 0, "nothing ran again: the fault did not bite"
        return f"{reruns(history)} reruns; longest overlap {overlap_s(history):.2f} s"


@row("W4")
def stopped_shorter_than_the_lease(directory: Path, size: float) -> str:
    """SIGSTOP of a worker for half a lease, again and again: nothing runs twice."""
    with site(directory) as place:
        stopped = place.start_worker(slots=4)
        place.start_worker(slots=4)
        place.submit_many("work", tokens("a", 60), seconds=0.5)
        for _ in range(4):
            stopped.signal(signal.SIGSTOP)
            time.sleep(LEASE_S / 2)
            stopped.signal(signal.SIGCONT)
            time.sleep(LEASE_S / 2)
        history = place.judged()
        assert reruns(history) == 0, f"{reruns(history)} false rescues"
        return "false rescues 0"


@row("W9")
def same_name(directory: Path, size: float) -> str:
    """Two workers of one name on one host: two sessions, both fenced; one is killed."""
    with site(directory) as place:
        first, second = place.start_worker(slots=2), place.start_worker(slots=2)
        place.submit_many("work", tokens("a", 40), seconds=0.1)
        place.until_effect("a10")
        place.kill(first)
        history = place.judged()
        workers = {effect.worker for effect in history.effects}
        assert {str(first.pid), str(second.pid)} <= workers
        return f"both worked; {reruns(history)} reruns"


# --- managers -------------------------------------------------------------------------------------------------------------------


@row("M1")
def killed_at_places(directory: Path, size: float) -> str:
    """kill -9 of the manager at each failpoint of its way, under load."""
    places = [
        "store.before_commit:kill@12", "store.committed:kill@12", "intake.stored:kill@4", "dispatcher.claimed:kill@4", "socket.reported:kill@4",
        "rescuer.rescued:kill@1",
    ]  # fmt: skip
    took: list[float] = []
    with site(directory) as place:
        doomed = place.start_worker(slots=5)
        keeper = place.start_worker(slots=5)
        for n, failpoint in enumerate(places):
            place.manager.stop()
            with contextlib.suppress(NotInTime):  # it may die before it is ready
                place.start_manager(EASYJOBS_FAILPOINTS=failpoint)
            for m in range(30):
                with contextlib.suppress(OSError, AssertionError, Exception):
                    place.submit("work", f"p{n}-{m}", seconds=0.02)
                if not place.manager.is_running:
                    break
            if "rescuer" in failpoint and doomed.is_running:
                with contextlib.suppress(OSError, AssertionError):
                    place.submit("work", f"p{n}-long", seconds=60)
                    place.submit_many("work", tokens(f"p{n}-l", 9), seconds=3)
                    time.sleep(0.5)
                place.kill(doomed)
            place.wait_for_death(30)
            began = time.monotonic()
            place.start_manager()
            took.append(time.monotonic() - began)
        for token in [token for token in place.history.acked if token.endswith("-long")]:
            place.manager.call("POST", f"/jobs/api/v1/jobs/{place.history.acked[token]}/cancel")
        history = place.judged(60)
        assert keeper.is_running
        return f"{len(places)} places; {len(history.acked)} acked, {len(history.unknown)} unknown, 0 lost; ready again within {max(took):.1f} s"


@row("M3")
def one_of_two_managers_stands_still(directory: Path, size: float) -> str:
    """Two managers over one PostgreSQL: one is stopped for two leases, then the one with the worker is killed for good."""
    with postgres.cluster() as server, site(directory, server=server) as place:
        first = place.manager
        place.port = other_port = _free()
        second = place.start_manager()
        place.port, place.manager = first.port, first
        at_first = place.start_worker(slots=4)
        place.submit_many("work", tokens("a", 30), seconds=0.2)
        place.port, place.manager = other_port, second
        place.start_worker(slots=4)
        first.signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 2)
        first.signal(signal.SIGCONT)
        place.submit_many("work", tokens("b", 10), seconds=LEASE_S * 4)
        until("the worker of the first has some", lambda: str(at_first.pid) in _workers_of(place, "b"), 30)
        first.kill()  # its port refuses: its worker must stop, since the other manager gives its jobs away
        history = place.judged(60)
        return f"{reruns(history)} reruns; longest overlap {overlap_s(history):.2f} s"


def _workers_of(place: Site, prefix: str) -> set[str]:
    return {str(effect.pid) for effect in read_effects(place.effects_path) if effect.token.startswith(prefix)}


def _free() -> int:
    from tests.processes import free_port

    return free_port()


@row("M4")
def crash_loop(directory: Path, size: float) -> str:
    """The manager is killed every three seconds under load."""
    kills = max(4, round(4 * size))
    with site(directory) as place:
        workers = [place.start_worker(slots=20) for _ in range(2)]
        done = threading.Event()
        count = 0

        def submit() -> None:
            nonlocal count
            while not done.is_set():
                batch = tokens(f"s{count}-", 25)
                count += 1
                try:
                    place.submit_many(
                        *(("first", batch) if count % 5 == 0 else ("work", batch)), **({} if count % 5 == 0 else {"seconds": 0.01})
                    )
                except (OSError, AssertionError, Exception):
                    done.wait(0.1)
                done.wait(0.05)

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            for _ in range(kills):
                time.sleep(3)
                place.manager.kill()
                place.start_manager()
        finally:
            done.set()
            thread.join()
        history = place.judged(90)
        assert all(worker.is_running for worker in workers)
        ran = len([effect for effect in history.effects if effect.what == "start"])
        return f"{kills} kills; {len(history.rows)} jobs, {len(history.acked)} acked, 0 lost; {reruns(history)} of {ran} runs were repeated"


@row("M7")
def killed_while_migrating(directory: Path, size: float) -> str:
    """kill -9 in each step of the schema: the next start completes it."""
    from tests.faults.cluster import Cluster
    from tests.processes import processes

    for step in range(1, 6):
        with processes() as started:
            where = directory / str(step)
            where.mkdir()
            place = Cluster(started, where)
            env = place.environment(EASYJOBS_FAILPOINTS=f"store.migrating:kill@{step}")
            dead = started.uvicorn("fault_manager:server", directory=PROGRAMS, name="manager", env=env, port=place.port)
            assert dead.wait(20) == -signal.SIGKILL
            place.start_manager()
            place.start_worker()
            place.end_of(place.submit("work", "a"))
            place.check()
    return "5 steps, each killed once; complete at the next start"


# --- the network ----------------------------------------------------------------------------------------------------------------


@row("N1")
def reset_in_a_frame(directory: Path, size: float) -> str:
    """The connection is reset after any number of bytes, in each direction."""
    chance = Random(1)
    with site(directory) as place, FrameProxy(place.port, 1) as proxy:
        place.start_worker(slots=10, through=proxy.port)
        cuts = round(12 * size)
        for n in range(cuts):
            place.submit_many("work", tokens(f"n{n}-", 20), seconds=0.01)
            (proxy.up if n % 2 else proxy.down).cut_at = chance.randrange(1, 1500)
            place.until_effect(f"n{n}-19", "done", within_s=30)
        proxy.heal()
        history = place.judged()
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        return f"{proxy.connects} connections; 0 reruns"


@row("N2")
def half_open(directory: Path, size: float) -> str:
    """Silence without an end, in one direction and in both: the worker finds out, and jobs run elsewhere after the lease."""
    found: list[str] = []
    for name, up, down in (("to the manager", True, False), ("to the worker", False, True), ("both", True, True)):
        with site(directory / name.replace(" ", "_")) as place, FrameProxy(place.port) as proxy:
            cut_off = place.start_worker(slots=2, through=proxy.port)
            job = place.submit("wait_for_gate", "a", gate="go")
            place.until_effect("a")
            began = place.note_fault(cut_off, kills=False)
            (proxy.to_manager.clear() if up else None, proxy.to_worker.clear() if down else None)
            place.start_worker(slots=2)
            again = place.until_effect("a", times=2, within_s=RERUN_S + 4)
            rerun_s = again.at - began
            place.open_gate("go")
            place.end_of(job)
            proxy.heal()
            history = place.judged()
            found.append(f"{name}: ran elsewhere after {rerun_s:.1f} s, overlap {overlap_s(history):.2f} s")
    return "; ".join(found)


@row("N4")
def flapping(directory: Path, size: float) -> str:
    """The link is up for a second and down for a second."""
    with site(directory) as place, FrameProxy(place.port) as proxy:
        place.start_worker(slots=10, through=proxy.port)
        place.submit_many("work", tokens("f", round(300 * size)), seconds=0.05)
        began = time.monotonic()
        while time.monotonic() - began < 12 * size:
            time.sleep(1)
            proxy.to_manager.clear()
            proxy.to_worker.clear()
            time.sleep(0.5)
            proxy.cut()
            time.sleep(0.5)
            proxy.to_manager.set()
            proxy.to_worker.set()
        history = place.judged(60)
        return f"{len(history.acked)} jobs through {proxy.connects} connections, {reruns(history)} reruns, 0 duplicate results"


@row("N5")
def slow_link(directory: Path, size: float) -> str:
    """300 ms of round trip and 64 kB/s: no false rescue."""
    with site(directory) as place, FrameProxy(place.port) as proxy:
        proxy.up.delay_s = proxy.down.delay_s = 0.15
        proxy.up.bytes_per_s = proxy.down.bytes_per_s = 64_000
        place.start_worker(slots=10, through=proxy.port)
        place.start_worker(slots=1)
        place.submit_many("work", tokens("s", 300), seconds=0.05)
        history = place.judged(90)
        assert reruns(history) == 0, f"{reruns(history)} false rescues"
        return "false rescues 0"


@row("N6")
def frames_again(directory: Path, size: float) -> str:
    """Frames come twice, late, or again after others: nothing is stored twice."""
    with site(directory) as place, FrameProxy(place.port, 6) as proxy:
        place.duplicate_frames = True
        place.start_worker(slots=10, through=proxy.port)
        for rules in (proxy.up, proxy.down):
            rules.duplicate = rules.replay = rules.reorder = 0.05
        for n in range(round(10 * size)):
            place.submit_many("work" if n % 2 else "first", tokens(f"d{n}-", 20))
            time.sleep(0.5)
        proxy.heal()
        proxy.cut()
        history = place.judged(60)
        assert proxy.up.spoiled + proxy.down.spoiled > 20
        return f"{proxy.up.spoiled + proxy.down.spoiled} of {proxy.up.frames + proxy.down.frames} frames spoiled; {reruns(history)} reruns"


@row("N7")
def flipped_bits(directory: Path, size: float) -> str:
    """Bits of frames flip on their way (TCP would have to miss it): the manager and the worker live, and all ends."""
    with site(directory) as place, FrameProxy(place.port, 7) as proxy:
        worker = place.start_worker(slots=10, through=proxy.port)
        place.duplicate_frames = True
        proxy.up.flip = proxy.down.flip = 0.02
        for n in range(round(10 * size)):
            place.submit_many("work", tokens(f"x{n}-", 20))
            time.sleep(0.5)
        spoiled = proxy.up.spoiled + proxy.down.spoiled
        proxy.heal()
        proxy.cut()
        assert place.manager.is_running
        alive = worker.is_running
        if not alive:
            worker = place.start_worker(slots=10)
        place.settle(40)
        history = place.told()
        left = [row for row in history.rows if row.state in (0, 1, 6, 7)]
        assert not left, left
        assert place.manager.get("/jobs/readyz") is not None
        return f"{spoiled} flipped frames, {proxy.connects} connections; manager alive, worker {'alive' if alive else 'ended: ' + worker.log[-200:]}"


# --- the disk -------------------------------------------------------------------------------------------------------------------


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


@row("D2")
def fsync_fails(directory: Path, size: float) -> str:
    """fsync fails once: what was acknowledged is there after a restart, and nothing more is acknowledged before it."""
    with site(directory) as place:
        place.start_worker(slots=5)
        place.submit_many("work", tokens("a", 20))
        place.settle()
        tracer = _strace(place.manager.pid, "-e", "inject=fdatasync,fsync:error=EIO:when=1")
        refused: list[int] = []
        try:
            for n in range(6):
                try:
                    answer = place.manager.call("POST", f"/{QUEUE}/task/work", {"token": f"b{n}"}, within_s=10)
                except OSError:
                    refused.append(0)
                    continue
                if answer.status == 200:
                    place.history.acked[f"b{n}"] = answer.json()["request_id"]
                else:
                    place.history.unknown.add(f"b{n}")
                    refused.append(answer.status)
        finally:
            _detach(tracer)
        assert refused, "the error was not noticed"
        ready = place.manager.call("GET", "/jobs/readyz").status if place.manager.is_running else 0
        assert ready != 200, "it says that it is ready, on a disk that does not sync"
        place.manager.kill()
        place.start_manager()
        history = place.judged()
        return f"{len(refused)} of 6 refused ({sorted(set(refused))}), readyz {ready}; {len(history.acked)} acked, 0 lost"


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


@row("D8")
def locked_by_a_stranger(directory: Path, size: float) -> str:
    """Somebody holds the write lock for eight seconds, and a read transaction under load: submits are refused or wait, and the log stays bounded."""
    import apsw

    with site(directory) as place:
        place.start_worker(slots=10)
        place.submit_many("work", tokens("a", 50))
        stranger = apsw.Connection(str(place.file))
        stranger.execute("begin immediate")
        began = time.monotonic()
        holder = threading.Timer(8.0, lambda: stranger.execute("rollback"))
        holder.start()
        answer = place.manager.call("POST", f"/{QUEUE}/task/work", {"token": "b"})
        waited = time.monotonic() - began
        assert answer.status in (200, 503), answer
        (place.history.acked.__setitem__("b", answer.json()["request_id"]) if answer.status == 200 else place.history.unknown.add("b"))
        holder.join()
        until("it takes jobs again", lambda: place.manager.call("GET", "/jobs/readyz").status == 200, 20)
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
        return f"submit under a lock: {answer.status} after {waited:.1f} s; log {held:.0f} MiB under a reader, {freed:.0f} MiB after it; 0 reruns"


# --- PostgreSQL -----------------------------------------------------------------------------------------------------------------


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


# --- users ----------------------------------------------------------------------------------------------------------------------


@row("R2")
def cancel_races(directory: Path, size: float) -> str:
    """Cancelling while jobs end, and retrying while they are being cancelled: one end a round."""
    with site(directory) as place:
        place.start_worker(slots=20)
        ids = place.submit_many("work", tokens("r", round(200 * size)), seconds=0.05)
        chance = Random(2)
        done = threading.Event()

        def wish(verb: str) -> None:
            while not done.is_set():
                place.manager.call("POST", f"/jobs/api/v1/jobs/{chance.choice(ids)}/{verb}")

        threads = [threading.Thread(target=wish, args=(verb,)) for verb in ("cancel", "cancel", "retry")]
        for thread in threads:
            thread.start()
        time.sleep(4 * size)
        done.set()
        for thread in threads:
            thread.join()
        history = place.judged()
        states = [row.state for row in history.rows]
        return f"{states.count(2)} succeeded, {states.count(4)} cancelled, {max(row.round for row in history.rows)} rounds at most"


@row("R4")
def odd_values(directory: Path, size: float) -> str:
    """Arguments that are too large, too deep, no JSON, NaN, half of a surrogate pair: refused, and nothing is queued."""
    with site(directory) as place:
        place.start_worker()
        bodies: dict[str, bytes] = {
            "too large": b'{"token": "' + b"x" * (1024 * 1024 + 1) + b'"}',
            "too deep": b'{"token": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            "NaN": b'{"token": NaN}',
            "no JSON": b'{"token": ',
            "half a pair": b'{"token": "\\ud800"}',
            "no UTF-8": b'{"token": "\xff"}',
            "a huge number": b'{"token": "n", "seconds": ' + b"9" * 5000 + b"}",
            "a huge exponent": b'{"token": "n", "seconds": 1e999}',
        }
        answers: dict[str, Answer] = {}
        for name, body in bodies.items():
            answers[name] = http_call("POST", f"{place.manager.url}/{QUEUE}/task/work", body)
        wrong = {name: answer.status for name, answer in answers.items() if not 400 <= answer.status < 500}
        assert not wrong, f"not refused: {wrong}"
        place.submit("work", "after")
        place.judged()
        return ", ".join(f"{name} {answer.status}" for name, answer in answers.items())


@row("S1")
def soak(directory: Path, size: float) -> str:
    """Load, reconnects and registrations: memory, file descriptors, routes and threads stay."""
    seconds = 40 * size
    with site(directory) as place, FrameProxy(place.port) as proxy:
        place.start_worker(slots=20, through=proxy.port)
        began, n = time.monotonic(), 0
        samples: list[tuple[float, int, int]] = []
        while time.monotonic() - began < seconds:
            place.submit_many("work", tokens(f"s{n}-", 100))
            n += 1
            if n % 10 == 0:
                proxy.cut()
            if n % 5 == 0:
                for _ in range(20):
                    _connect_and_leave(place.port)
            time.sleep(0.2)
            samples.append(
                (time.monotonic() - began, _rss_kib(place.manager.pid), sum(1 for _ in Path(f"/proc/{place.manager.pid}/fd").iterdir()))
            )
        history = place.judged(60)
        half = samples[len(samples) // 2 :]
        hours = (half[-1][0] - half[0][0]) / 3600
        slope = (half[-1][1] - half[0][1]) / 1024 / hours if hours else 0.0
        fds = [sample[2] for sample in half]
        assert max(fds) - min(fds) < 60, fds
        return (
            f"{len(history.acked)} jobs, {proxy.connects} connections, in {seconds:.0f} s; RSS {half[-1][1] / 1024:.0f} MiB, "
            f"{slope:.0f} MiB/h over the second half; {min(fds)} to {max(fds)} descriptors"
        )


def _rss_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def _connect_and_leave(port: int) -> None:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(
            b"GET /ws/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        peer.recv(1000)


# --- rows that other tests show, and rows that are not there ------------------------------------------------------------------------

COVERED: dict[str, str] = {
    "W2": "tests/faults/test_children.py",
    "W5": "tests/faults/test_worker_faults.py -k blocked",
    "W8": "tests/faults/test_worker_faults.py -k sigterm",
    "M2": "tests/faults/test_manager_faults.py -k longer_than_the_lease",
    "D1": "tests/faults/test_manager_faults.py -k full_disk",
    "D5": "tests/faults/test_manager_faults.py -k database_file",
    "D7": "tests/stores/test_sqlite.py -k lock",
    "N3": "tests/workers/test_link.py -k 'renew or down'",
    "P2": "tests/stores/test_postgres.py -k commit",
    "B1": "tests/acceptance/test_brokers.py",
    "C2": "tests/faults/test_schedule_faults.py",
    "R1": "tests/faults/test_flow_faults.py",
    "R5": "tests/workers/test_executor.py",
}
ABSENT: dict[str, str] = {
    "W6": "needs a loop that is blocked for 120 s: `make faults-long`, not written yet",
    "W7": "needs cgroup v1 with a memory controller that this user may write",
    "W10": "workers' clocks are in no decision: nothing to move but the log lines",
    "M5": "500 workers need more memory than a test machine has; a smaller one is not written yet",
    "M6": "not written yet (D3 shows the queue of a slow disk)",
    "N8": "belongs to the security suite",
    "N9": "10,000 sockets need a higher limit of descriptors; not written yet",
    "N10": "belongs to the security suite",
    "N11": "needs a TLS proxy; not written yet",
    "P3": "needs a standby; not written yet",
    "P4": "not written yet", "P5": "not written yet", "P6": "PgBouncer is not installed",
    "B2": "there is no Redis adapter yet", "B6": "there are no SQS and NATS adapters yet",
    "C1": "the property tests of tests/domain/test_cron.py",
    "S2": "not written yet",
}  # fmt: skip

__all__ = ["ABSENT", "COVERED", "ROWS", "Any", "Skipped", "row"]
