"""Faults of workers: killed, stopped, named alike."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from faults.cluster import overlap_s, reruns, site, tokens
from faults.matrix import row
from tests.faults.cluster import LEASE_S, RERUN_S
from tests.processes import until


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
