"""Run the parts of the suite, each in a process of its own with a limit of time, and keep what it came to as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import faults.rows  # noqa: F401 (registers the rows)
from faults import figures
from faults.matrix import ABSENT, COVERED, ROWS, Skipped

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "faults"


@dataclass(frozen=True, slots=True)
class Part:
    """Something to run: a row of the matrix, or a proof of its own. `command`: of a child process; it prints its figure as its last line."""

    name: str
    what: str
    command: tuple[str, ...]
    limit_s: float
    is_row: bool = False
    computes: bool = False  # all the time, while a row mostly waits: it runs beside them, and yields the processors to them


def parts(size: float) -> list[Part]:
    """All there is to run, in order: the rows, what tests show, then the proofs that take long."""
    found = [
        Part(row.name, row.what, ("-m", "faults", "--row", row.name, "--size", str(size)), row.limit_s * max(1.0, size / 3), is_row=True)
        for row in ROWS.values()
    ]
    found += [Part(name, covered.what, ("-m", "pytest", "-q", *shlex.split(covered.tests)), 900) for name, covered in COVERED.items()]
    seeds, losses, execs_s = (20_000, 10_000, 600) if size > 3 else (round(1000 * size / 3), round(1000 * size / 3), round(20 * size))
    found += [
        Part("POWER", "Power loss at any point of the life of a store, torn writes included", ("-m", "faults.powerloss", "--seeds", f"0:{losses}", "--durability", "full"), 1800 * size, computes=True),
        Part("RELAXED", 'The same with durability="relaxed", which must lose something', ("-m", "faults.powerloss", "--seeds", "0:60", "--durability", "relaxed"), 1800, computes=True),
        Part("SIM", "Managers, workers and clients on a virtual clock, under faults", ("-m", "faults.sim", "--seeds", f"0:{seeds}", "--processes", "1"), 1800 * size, computes=True),
        Part("MUTANTS", "Twelve broken versions of the code: each must be caught", ("-m", "faults.mutants"), 3600, computes=True),
        Part("FUZZ", "Bytes that a fuzzer makes, for each decoder", ("-m", "faults.fuzz", "--seconds", str(execs_s)), 60 + 20 * execs_s, computes=True),
    ]  # fmt: skip
    return found


def run(some: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Run these, one at a time, and one of those that compute beside it; the results as they come."""
    told: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def lane(ours: Sequence[Part]) -> None:
        try:
            for part in ours:
                told.put(run_part(part))
        finally:
            told.put(None)

    lanes = [[part for part in some if part.computes == computes] for computes in (False, True)]
    for ours in lanes:
        threading.Thread(target=lane, args=(ours,), daemon=True).start()
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for _ in lanes:
            while (result := told.get()) is not None:
                yield result
    finally:
        signal.signal(signal.SIGTERM, before)
        for child in list(_RUNNING):  # those of a run that was broken off
            child.terminate()
        for child in list(_RUNNING):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(30)


_RUNNING: set[subprocess.Popen[str]] = set()


def keep_run(took_s: float) -> None:
    """Note for the report what the whole run was."""
    (RESULTS / "_run.json").write_text(json.dumps({"took_s": took_s, "machine": machine()}))


def run_here(name: str, size: float) -> dict[str, Any]:
    """Run a row in this process: outcome, figure, and what was measured."""
    with tempfile.TemporaryDirectory(prefix=f"easyjobs-{name}-") as directory:
        try:
            told = ("held", ROWS[name].run(Path(directory), size))
        except (Skipped, pytest.skip.Exception) as why:  # the second: a server of the tests is not installed
            told = ("could not run", str(why))
        except Exception as why:
            told = ("FAILED", f"{type(why).__name__}: {why}"[:3000])
    return {"outcome": told[0], "figure": told[1], **figures.taken()}


def run_part(part: Part) -> dict[str, Any]:
    """Run it in a child process, and keep the result in `RESULTS`. What does not end in time, or ends without a word, has failed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    told = RESULTS / f"{part.name}.json"
    told.unlink(missing_ok=True)
    began = time.monotonic()
    nice = ["nice", "-n", "19"] if part.computes and shutil.which("nice") else []
    command = [*nice, sys.executable, "-W", "ignore", *part.command, *(("--here", str(told)) if part.is_row else ())]
    output, code = _finish(command, part.limit_s)
    if part.is_row and told.exists():
        result: dict[str, Any] = json.loads(told.read_text())
    elif code is None:
        result = {"outcome": "FAILED", "figure": f"it did not end within {part.limit_s:.0f} s: {output[-1000:]}"}
    elif part.is_row:
        result = {"outcome": "FAILED", "figure": f"it ended with {code}: {output[-3000:]}"}
    else:
        lines = output.strip().splitlines() or [""]
        outcome = {0: "held", SKIPPED: "could not run"}.get(code, "FAILED")
        result = {"outcome": outcome, "figure": lines[-1].strip("= ") if outcome != "FAILED" else output[-3000:]}
    result |= {
        "name": part.name,
        "what": part.what,
        "took_s": time.monotonic() - began,
        "commit": commit(),
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    told.write_text(json.dumps(result))
    return result


SKIPPED = 77  # what a proof exits with that cannot run here, after the reason: as automake has it


def _finish(command: list[str], limit_s: float) -> tuple[str, int | None]:
    """Output and exit code; None: it was ended after `limit_s`."""
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            command,
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": "140"},
        )
        _RUNNING.add(child)
        code: int | None
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:  # it ends what it has started
                child.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(30)
                child.kill()
                child.wait()
            _RUNNING.discard(child)
        output.seek(0)
        return output.read(), code


def commit() -> str:
    """The commit that is checked out, with a + if files differ from it; `unknown` outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = [
            line for line in git("status", "--porcelain", "--untracked-files=no").splitlines() if not line.endswith("docs/guarantees.md")
        ]
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """A line about this machine: what figures depend on."""
    import apsw

    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {platform.system()} {platform.release()}, Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}"


__all__ = ["ABSENT", "RESULTS", "ROOT", "SKIPPED", "Part", "commit", "keep_run", "machine", "parts", "run", "run_here", "run_part"]
