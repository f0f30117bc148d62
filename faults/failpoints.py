"""What a failpoint costs while it is not set: `python -m faults.failpoints`."""

from __future__ import annotations

import timeit

from easyjobs.runtime import failpoints


def cost_ns(times: int = 2_000_000) -> float:
    """Nanoseconds of one unset place, beyond those of an empty loop."""
    assert not failpoints.ARMED
    space = {"failpoints": failpoints}
    empty = min(timeit.repeat("pass", globals=space, number=times, repeat=5))
    place = min(timeit.repeat('if failpoints.ARMED:\n    failpoints.reach("store.committed")', globals=space, number=times, repeat=5))
    return (place - empty) / times * 1e9


if __name__ == "__main__":
    print(f"an unset failpoint costs {cost_ns():.0f} ns, once a batch")
