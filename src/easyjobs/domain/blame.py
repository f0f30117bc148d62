"""Which jobs end when a worker dies: on whom its death is blamed.

Nobody can know which of its jobs killed it, so the death counts against each of them, up to their `max_crashes`. From there on a job has its
last chance, alone among its kind: a worker gets a second such job only when the first has run for a while without harm (`services.last_chances`).
So when it dies, the one that began last is the one that had not shown yet that it is harmless. That one ends; those that began before it
are put back, and their next crash is judged in the same way.

The order of their beginnings is all that this needs. When a worker died is not known well enough to say who was still young then: a beat is up to a third of
a lease old, and a manager that comes back, perhaps after it died with its own worker, gives each session a lease that says nothing of it.

A job that kills late, after another one began its last chance, is spared by mistake. So nobody is spared for ever: at twice its
`max_crashes` a job ends whoever was beside it. One that is alone, or that kills before another one can begin, ends at `max_crashes`.
With a `max_crashes` of 1 a job is not to run again after a crash: it is never spared, and excuses nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

SPARED_UNTIL = 2  # times `max_crashes`


def is_suspect(crashes: int, max_crashes: int) -> bool:
    """Whether a running job that crashed so often has its last chance, alone among its kind."""
    return crashes > 0 and crashes + 1 >= max_crashes


def is_blamed(crashes: int, max_crashes: int, began_at: int, session: int, last_began: Mapping[int, int]) -> bool:
    """Return whether a job ends with the death of its worker.

    Args:
        crashes: of the job, without this one.
        max_crashes: how many it may have.
        began_at: when its attempt began.
        session: the worker.
        last_began: session → when the last of its suspects began, of all that it still holds.
    """
    if crashes + 1 < max_crashes:
        return False
    if not is_suspect(crashes, max_crashes) or crashes + 1 >= SPARED_UNTIL * max_crashes:
        return True
    return began_at >= last_began.get(session, began_at)
