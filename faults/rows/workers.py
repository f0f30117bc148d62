"""Faults of workers: killed, stopped, blocked, out of memory, named alike, of another version, with another clock."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from easyjobs.domain.lifecycle import Back
from faults import figures
from faults.clocks import OtherClock
from faults.cluster import Site, overlap_s, reruns, rescues, site, tokens
from faults.figures import quantile
from faults.matrix import Skipped, row
from tests.faults.cluster import LEASE_S, RERUN_S
from tests.processes import Served, until

DEFAULT_LEASE_S = 30.0
GOAL_S = 40.0  # from the death of a worker until its jobs run again, with the default lease
EVERYTHING = 500  # slots of a worker that shall never be full


@row("W1")
def killed_at_failpoints(directory: Path, size: float) -> str:
    """kill -9 of a worker: with jobs received and not begun, in the middle, and with reports sent and not acked."""
    with site(directory) as place:
        for n, failpoint in enumerate(["link.received:kill@3", "", "link.reported:kill@3"]):
            doomed = place.start_worker(slots=3, EASYJOBS_FAILPOINTS=failpoint)
            place.submit_many("work", tokens(f"w{n}-", 40), seconds=0.05)
            if failpoint:
                until("it is dead", lambda doomed=doomed: not doomed.is_running, 20)
                place.note_fault(doomed, kills=True)
            else:
                place.until_effect(f"w{n}-4")
                place.kill(doomed)
            other = place.start_worker(slots=3)
            assert place.settle(RERUN_S + 20)
            other.stop()
        history = place.judged()
        found = rescues(history, place.killed)
    assert found, "no job was rescued: the fault did not bite"
    back, again = ([each[n] for each in found] for n in (0, 1))
    return (
        f"{reruns(history)} reruns of {len(history.acked)} jobs; put back after {quantile(back, 0.5):.1f} s (p50), {max(back):.1f} s (max), "
        f"ran again after {quantile(again, 0.5):.1f} s, {max(again):.1f} s (lease {LEASE_S:.0f} s)"
    )


@row("W1L")
def killed_with_the_default_lease(directory: Path, size: float) -> str:
    """kill -9 of workers with the default lease of 30 s: one after the other under a manager that lives, and together with it."""
    per_worker = 5
    with (
        site(directory / "alive", lease_s=DEFAULT_LEASE_S) as alive,
        site(directory / "restarted", lease_s=DEFAULT_LEASE_S) as restarted,
    ):
        doomed = [(place, _with_jobs(place, n, per_worker)) for place in (alive, restarted) for n in range(round(4 * min(size, 3)))]
        for place, worker in doomed:
            if place is alive:
                place.kill(worker)
                time.sleep(1.7)
        for place, worker in doomed:
            if place is restarted:
                place.kill(worker)
        restarted.manager.kill()
        restarted.start_manager()
        restarted.killed = dict.fromkeys(restarted.killed, time.clock_gettime(time.CLOCK_BOOTTIME))
        for place in (alive, restarted):
            place.start_worker(slots=EVERYTHING)
        for place in (alive, restarted):
            for token in place.history.acked:
                place.until_effect(token, times=2, within_s=GOAL_S + 30)
            place.open_gate("go")
        found = [[each.runs_again_s for each in rescues(place.judged(), place.killed)] for place in (alive, restarted)]
    figures.took("rescue, manager alive", *found[0])
    figures.took("rescue, after the manager's start", *found[1])
    for place, times in zip((alive, restarted), found, strict=True):
        assert len(times) == len(place.history.acked), f"{len(times)} of {len(place.history.acked)} jobs were rescued"
        assert quantile(times, 0.99) <= GOAL_S, f"{sorted(times)[-5:]}"
    return "; ".join(
        f"{what}: {len(times)} jobs ran again after {quantile(times, 0.5):.1f} s (p50), {quantile(times, 0.99):.1f} s (p99)"
        for what, times in zip(("from the kill, manager alive", "from the manager's start"), found, strict=True)
    )


def _with_jobs(place: Site, number: int, count: int) -> Served:
    """A worker that is full, of jobs that wait for a gate."""
    worker = place.start_worker(slots=count)
    its = tokens(f"d{number}-", count)
    place.submit_many("wait_for_gate", its, gate="go")
    for token in its:
        place.until_effect(token)
    return worker


@row("W2")
def child_killed(directory: Path, size: float) -> str:
    """kill -9 of a subprocess task in the middle, of its own child, and of their worker: the job runs again, no process is left."""
    took: list[float] = []
    with site(directory) as place:
        worker = place.start_worker(slots=4, app="child_worker:server")
        seen: set[int] = set()
        for n in range(round(5 * size)):
            token = f"c{n}"
            job = place.submit("hold", token, gate=token)
            seen |= {(child := place.until_effect(token).pid), _grandchild(place, token)}
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            os.kill(child, signal.SIGKILL)
            took.append(place.until_effect(token, times=2).at - began)
            seen |= {place.effects(token, "start")[-1].pid, _grandchild(place, token)}
            place.open_gate(token)
            place.end_of(job)
        place.submit("hold", "g", gate="g")  # its own child dies: that is its own affair
        seen |= {place.until_effect("g").pid, (grandchild := _grandchild(place, "g"))}
        os.kill(grandchild, signal.SIGKILL)
        place.open_gate("g")
        place.submit_many("hold", ["w0", "w1"], gate="w")
        for token in ("w0", "w1"):
            seen |= {place.until_effect(token).pid, _grandchild(place, token)}
        place.kill(worker)
        began = time.monotonic()
        until("no process of it is left", lambda: not [pid for pid in seen if _runs(pid)], 10)
        gone_s = time.monotonic() - began
        place.open_gate("w")
        place.start_worker(slots=4, app="child_worker:server")
        history = place.judged()
        assert reruns(history) == len(took) + 2, f"{reruns(history)} reruns"
    figures.took("a killed child's job runs again", *took)
    return f"{len(took)} children killed: each ran again within {max(took):.2f} s; a worker's processes are gone {gone_s:.2f} s after it; 0 orphans"


def _grandchild(place: Site, token: str) -> int:
    return place.until_effect(token, "grandchild").pid


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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


@row("W5")
def blocked(directory: Path, size: float) -> str:
    """A task blocks its worker: the loop for 2.5 leases and, in C with the GIL held, half a lease: nothing runs twice. 2.5 leases of GIL: as if stopped."""
    with site(directory) as place:
        worker = place.start_worker(slots=8)
        place.submit_many("wait_for_gate", tokens("w", 4), gate="go")
        place.until_effect("w3")
        place.start_worker(
            slots=EVERYTHING, app="partial_worker:server", TEST_VERSION="gates"
        )  # would take the waiting ones if they were rescued
        place.submit("block_the_loop", "loop", seconds=LEASE_S * 2.5)
        place.until_effect("loop", "done", within_s=LEASE_S * 2.5 + 10)
        false = sum(step.back == Back.RESCUED for step in place.told().steps)
        assert false == 0, f"{false} false rescues under a blocked loop"
        assert "loop.blocked" in worker.log, "the worker did not say that its loop was blocked"
        for n in range(3):
            place.submit("hold_the_gil", f"gil{n}", seconds=LEASE_S / 2)
            place.until_effect(f"gil{n}", "done")
            time.sleep(LEASE_S / 2)  # it renews its lease
        false = sum(step.back == Back.RESCUED for step in place.told().steps)
        figures.count("false rescues", false)
        assert false == 0, f"{false} false rescues under a held GIL"
        place.submit("hold_the_gil", "long", seconds=LEASE_S * 2.5)
        since = place.until_effect("long").at
        place.until_effect("long", "done", within_s=LEASE_S * 2.5 + 15)
        place.stopped.append((str(worker.pid), since, since + LEASE_S * 2.5))  # no thread of it could go on
        place.open_gate("go")
        history = place.judged()
        return (
            f"false rescues 0 (loop blocked for {LEASE_S * 2.5:.0f} s, GIL held for {LEASE_S / 2:.0f} s, lease {LEASE_S:.0f} s); "
            f"GIL held for {LEASE_S * 2.5:.0f} s: {reruns(history)} jobs ran again, longest overlap {overlap_s(history):.2f} s"
        )


@row("W6")
def wedged(directory: Path, size: float) -> str:
    """A loop is blocked for longer than a manager takes for alive: its jobs are rescued, and it gets no new ones until it turns again."""
    limit_s = 120.0 if size >= 10 else 4.0
    with site(directory, **({} if size >= 10 else {"TEST_WEDGED_S": str(limit_s)})) as place:
        worker = place.start_worker(slots=8)
        place.submit_many("wait_for_gate", tokens("w", 3), gate="go")
        place.until_effect("w2")
        place.submit("block_the_loop", "blocker", seconds=limit_s + 4 * LEASE_S)
        since = place.until_effect("blocker").at
        other = place.start_worker(
            slots=EVERYTHING, app="partial_worker:server", TEST_VERSION="gates"
        )  # the blocker shall not block it too
        again = [place.until_effect(f"w{n}", times=2, within_s=limit_s + RERUN_S) for n in range(3)]
        took = [each.at - since for each in again]
        assert min(took) >= limit_s, f"rescued after {min(took):.1f} s: the worker was blocked for less than {limit_s} s"
        place.open_gate("open")
        place.submit_many("wait_for_gate", tokens("n", 40), gate="open")
        for n in range(40):
            place.until_effect(f"n{n}", "done", within_s=RERUN_S)
        assert {place.effects(f"n{n}")[0].pid for n in range(40)} == {other.pid}, "the wedged worker was given jobs"
        place.open_gate("go")
        place.until_effect("blocker", "done", within_s=60)
        place.stopped.append((str(worker.pid), since, time.clock_gettime(time.CLOCK_BOOTTIME)))
        history = place.judged(60)
    figures.took("a wedged worker is found", *took)
    how = "" if size >= 10 else ", a limit that the test has shortened from 120 s"
    return f"rescued {max(took):.1f} s after the loop's last turn (limit {limit_s:.0f} s{how}); 0 of 40 jobs went to the wedged worker; {reruns(history)} reruns"


@contextlib.contextmanager
def memory_group(mib: int) -> Iterator[Path]:
    """A cgroup whose processes may have so much memory. Raises: Skipped."""
    root = next((each for each in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if (each / "cgroup.procs").exists()), None)
    if root is None:
        raise Skipped("there are no control groups: /sys/fs/cgroup has no cgroup.procs")
    group = root / f"easyjobs-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        limit = next((group / each for each in ("memory.limit_in_bytes", "memory.max") if (group / each).exists()), None)
        if limit is None:
            group.rmdir()
            raise Skipped(f"{root} has no memory controller")
        limit.write_text(str(mib * 2**20))
    except OSError as why:
        raise Skipped(f"no control group can be made here: {why}") from None
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            until("it is empty", lambda: not (group / "cgroup.procs").read_text(), 10)
            group.rmdir()


@row("W7")
def out_of_memory(directory: Path, size: float) -> str:
    """A job needs more memory than its worker may have: it fails as crashed when its budget is used up, and the jobs beside it end well."""
    with memory_group(160) as group, site(directory) as place:

        def start() -> Served:
            worker = place.start_worker(slots=10)
            (group / "cgroup.procs").write_text(str(worker.pid))  # what it has by now does not count
            return worker

        worker = start()
        place.submit_many("work", tokens("h", 30), seconds=0.3)
        place.until_effect("h3")
        glutton = place.submit("eat", "glutton", mib=400)
        place.submit_many("work", tokens("i", 120), seconds=0.3)
        deaths = 0
        while place.manager.job(glutton)["status"] not in ("failed", "succeeded"):
            if not worker.is_running:
                assert worker.popen.returncode == -signal.SIGKILL, worker.log[-2000:]
                place.note_fault(worker, kills=True)
                deaths += 1
                assert deaths <= 5, "it is tried for ever"
                worker = start()
            time.sleep(0.05)
        end = place.manager.job(glutton)
        assert (end["status"], end["error"]["kind"], end["crashes"]) == ("failed", "crashed", deaths), end
        history = place.judged()
    innocent = [row for row in history.rows if row.token != "glutton"]
    harmed = [row for row in innocent if row.state != 2]
    assert not harmed, f"{len(harmed)} of {len(innocent)} innocent jobs failed as crashed too"
    return (
        f"failed as crashed after {deaths} deaths of its worker (control group of 160 MiB); of {len(innocent)} innocent jobs "
        f"{sum(row.crashes > 0 for row in innocent)} ran again, at most {max(row.crashes for row in innocent)} crashes each, 0 lost"
    )


@row("W8")
def told_to_end(directory: Path, size: float) -> str:
    """SIGTERM of a worker under load, twice, and without a manager: what runs ends or is given back, nothing counts as a failure."""
    took: list[float] = []

    def drained(worker: Served, *, again_after_s: float | None = None) -> None:
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        if again_after_s is not None:
            time.sleep(again_after_s)
            worker.signal(signal.SIGTERM)
        assert worker.wait(30) == 0, worker.log[-2000:]
        took.append(time.monotonic() - began)

    with site(directory) as place:
        for n in range(round(4 * size)):
            leaving = place.start_worker(slots=10 + n, EASYJOBS_GRACE_S="1")  # those of before wait at the gate in n of them
            place.submit_many("work", tokens(f"s{n}-", 300), seconds=0.02)
            place.submit("wait_for_gate", f"l{n}", gate="go")
            place.until_effect(f"s{n}-20", "done")
            drained(leaving)
        twice = place.start_worker(slots=50, EASYJOBS_GRACE_S="60")
        place.submit("wait_for_gate", "twice", gate="go")
        place.until_effect("twice")
        drained(twice, again_after_s=1.0)
        ends = list(took)
        place.open_gate("go")
        helper = place.start_worker(slots=EVERYTHING)
        assert place.settle()
        helper.stop()
        alone = place.start_worker(slots=50, EASYJOBS_GRACE_S="1")
        place.submit_many("work", tokens("alone", 20), seconds=0.5)
        place.until_effect("alone19")
        place.manager.kill()
        alone.signal(signal.SIGTERM)
        alone_s = time.monotonic()
        code = alone.wait(30)
        alone_s = time.monotonic() - alone_s
        place.start_manager()
        place.start_worker(slots=EVERYTHING)
        history = place.judged()
    failures = sum(row.failures for row in history.rows)
    crashes = sum(row.crashes for row in history.rows if not row.token.startswith("alone"))
    assert failures == 0, f"{failures} failures were counted"
    assert crashes == 0, f"{crashes} crashes were counted"
    figures.took("drain", *ends)
    return (
        f"{len(ends)} drains of {max(ends):.1f} s at most (grace 1 s), exit 0; without a manager {alone_s:.1f} s, exit {code}; "
        f"0 lost, {reruns(history)} reruns, 0 failures and crashes counted"
    )


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


@row("W10")
def other_clocks(directory: Path, size: float) -> str:
    """Workers whose clocks are an hour and thirty days off, to either side: nothing changes."""
    clocks = OtherClock(directory / "clock")
    offsets = {"+1 h": 3600, "-1 h": -3600, "+30 d": 30 * 86_400, "-30 d": -30 * 86_400}
    with site(directory) as place:
        workers = [place.start_worker(slots=4, TEST_TELLS_TIME="1", **clocks.environment(offset)) for offset in offsets.values()]  # type: ignore[arg-type]
        for n in range(round(4 * size)):
            place.submit_many("work", tokens(f"a{n}-", 40), seconds=0.3)
            place.submit_many("first", tokens(f"c{n}-", 10))
            time.sleep(LEASE_S / 2)
        history = place.judged()
        for worker, offset in zip(workers, offsets.values(), strict=True):
            said = float(worker.wait_for_line("the time is ", 1).rpartition(" ")[2])
            assert abs(said - time.time() - offset) < 600, f"{offset:+d} s: its clock is at {said - time.time():+.0f} s"
        ran = {effect.worker for effect in history.effects}
        assert ran == {str(worker.pid) for worker in workers}, "not all of them worked"
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        return f"clocks at {', '.join(offsets)}: {len(history.rows)} jobs, 0 reruns"


@row("W11")
def other_versions(directory: Path, size: float) -> str:
    """Workers without the task, and with an older one: jobs wait for who offers it; an older one that cannot take the arguments says so."""
    with site(directory) as place:
        place.start_worker().stop()  # its tasks are known from now on
        place.submit_many("work", tokens("a", 20), seconds=0.01)
        place.submit_many("first", tokens("c", 5))
        without = place.start_worker(slots=10, app="partial_worker:server")
        place.submit_many("other", tokens("o", 20))
        for n in range(20):
            place.until_effect(f"o{n}", "done")
        time.sleep(LEASE_S)
        assert not place.effects("a0"), "a worker without the task ran it"
        assert {place.manager.job(place.history.acked[f"a{n}"])["status"] for n in range(20)} == {"queued"}
        began = time.monotonic()
        complete = place.start_worker(slots=10)
        place.until_effect("a19", "done")
        waited_s = time.monotonic() - began
        place.submit_many("work", tokens("m", 40), seconds=0.01)
        for n in range(40):
            place.until_effect(f"m{n}", "done")
        assert without.is_running
        assert {effect.worker for effect in place.told().effects if effect.token[0] in "amc"} == {str(complete.pid)}
        complete.stop()
        without.stop()
        old = place.start_worker(slots=10, app="partial_worker:server", TEST_VERSION="old")
        place.submit_many("work", tokens("p", 10))  # it can do these
        refused = place.manager.call("POST", "/FAULTS/task/work", {"token": "q", "seconds": 0.01}).status
        assert refused == 422, refused
        place.start_worker(slots=10)
        history = place.judged()
        assert {effect.worker for effect in history.effects if effect.token.startswith("p")} >= {str(old.pid)}
        failed = [row for row in history.rows if row.state != 2]
        assert not failed, failed
        return f"20 jobs waited and ran {waited_s:.1f} s after a worker that has the task was started; an argument that the version on offer does not have: {refused}"
