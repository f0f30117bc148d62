"""What a process used, and what the machine itself can do."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int, *, peak: bool = False) -> float:
    """Resident memory of one process, MiB."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    raise LookupError(wanted)


def cpu_s(pid: int) -> float:
    """User and system time that a process has used, seconds; hundredths."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS_PER_S


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(nanoseconds)
    return {f"p{p}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] / 1e6, 3) for p in (50, 95, 99)}


def fsync_ms(directory: Path, times: int = 200) -> dict[str, float]:
    """How long it takes to append 4 KiB to a file and sync it: the price of one commit."""
    took = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(times):
            began = time.monotonic_ns()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            took.append(time.monotonic_ns() - began)
    return percentiles(took)


def loop_mturns(seconds: float = 0.2) -> float:
    """An empty Python loop's million turns per second: how fast a shared machine happens to be just now."""
    samples = []
    for _ in range(3):
        turns, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds / 3:
            for _ in range(1000):
                pass
            turns += 1000
        samples.append(turns / (time.perf_counter() - began) / 1e6)
    return round(statistics.median(samples), 1)


def describe(directory: Path) -> dict[str, Any]:
    """The machine in a few words."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite_of_python": sqlite3.sqlite_version,
        "fdatasync": fsync_ms(directory),
        "loop_mturns": loop_mturns(),
    }
