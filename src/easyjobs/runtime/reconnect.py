"""How long to wait before the next try to reach the manager, and how long for the answer to a try.

Full jitter: each wait is drawn from zero to a limit that doubles, so that a thousand workers that lost the same manager do not come
back in step. The first limit is short: after a restart of the manager its workers are back within a breath.

Patience grows, too. A manager that thousands come back to at once serves them in turn: if its queue is longer than their patience, each gives
up and goes to the queue's end, the manager works for those that have left, and nobody gets in, ever.

Source: "full jitter" in "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.1
BASE_S: Final = 0.25
CAP_S: Final = 30.0
STABLE_S: Final = 10.0  # a connection that lived for so long counts as good: the next failure is a first one


def limit(failures: int) -> float:
    """Return the longest wait, in seconds, after `failures` failed tries in a row (0 = the connection was just lost)."""
    return FIRST_S if failures <= 0 else min(CAP_S, BASE_S * 2.0 ** min(failures - 1, 20))


def wait(failures: int, random: float, cap_s: float = CAP_S) -> float:
    """Return how long to wait, in seconds, and never longer than `cap_s`; `random` is in [0, 1)."""
    return min(cap_s, limit(failures)) * random


def cap(lease_s: float, refusals: int, *, holds: bool) -> float:
    """Return the longest wait of a worker, in seconds: a quarter of a lease, up to a whole one where others are to go first.

    A manager that comes back rescues after one lease; who holds attempts is to be there by then. Nothing is rescued of an idle worker. If it was
    told `refusals` times in a row that too many are at the door, it leaves the door to those, and the manager's time to those that are in.
    """
    return lease_s / 4 * (1.0 if holds else min(4.0, 2.0 ** max(0, min(refusals, 20) - 1)))


def patience(first_s: float, timeouts: int, most_s: float) -> float:
    """Return how long to wait for an answer, in seconds, after `timeouts` tries in a row that got none: doubled each time, up to `most_s`."""
    return max(first_s, min(most_s, first_s * 2.0 ** min(timeouts, 20)))
