"""What a run of a row has measured: counts that are added up over all rows, and times of which the report gives the median and the worst."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from faults.history import History

_counts: Counter[str] = Counter()
_seconds: dict[str, list[float]] = defaultdict(list)


def count(name: str, number: int = 1) -> None:
    """Add to a count: `jobs`, `runs`, `false_rescues`, …"""
    _counts[name] += number


def judged(history: History, repeated: int) -> None:
    """Count what was held against the invariants. `repeated`: runs beyond the first of each job."""
    count("jobs", len(history.rows))
    count("acknowledged", len(history.acked))
    count("unanswered", len(history.unknown))
    count("runs", sum(effect.what == "start" for effect in history.effects))
    count("runs that were repeated", repeated)


def took(name: str, *seconds: float) -> None:
    """Note how long something took each time: `rescue`, `recovery`, `drain`, …"""
    _seconds[name].extend(seconds)


def taken() -> dict[str, Any]:
    """What was noted in this process, as JSON can have it."""
    return {"counts": dict(_counts), "seconds": {name: [round(each, 4) for each in several] for name, several in _seconds.items()}}


def merged(several: Sequence[Mapping[str, Any]]) -> tuple[Counter[str], dict[str, list[float]]]:
    """Counts and times of several rows together."""
    counts: Counter[str] = Counter()
    seconds: dict[str, list[float]] = defaultdict(list)
    for each in several:
        counts.update(each.get("counts", {}))
        for name, some in each.get("seconds", {}).items():
            seconds[name].extend(some)
    return counts, seconds


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed: the nearest rank. Raises: ValueError if there is none."""
    if not values:
        raise ValueError("no value was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
