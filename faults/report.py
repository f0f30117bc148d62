"""docs/guarantees.md, from the results of a run."""

from __future__ import annotations

from pathlib import Path


def write(results: Path) -> None:
    """Write it."""
    raise NotImplementedError(results)
