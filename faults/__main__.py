"""Run the suite, or a part of it; see the package's docstring."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults.matrix import ABSENT, COVERED, ROWS, Skipped


def run_row(name: str, size: float) -> tuple[str, str]:
    """Outcome and figure."""
    with tempfile.TemporaryDirectory(prefix=f"easyjobs-{name}-") as directory:
        try:
            return "held", ROWS[name](Path(directory), size)
        except Skipped as why:
            return "could not run", str(why)
        except Exception as why:
            return "FAILED", f"{type(why).__name__}: {why}"[:3000]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--long", action="store_true", help="ten times as much of everything")
    parser.add_argument("--size", type=float, help="how much of each row; 1 is the short form")
    parser.add_argument("--row", action="append", help="only this row; may be given again")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seeds", type=int, help="of the simulation")
    options = parser.parse_args()
    if options.list:
        for name, function in ROWS.items():
            print(f"{name:4} {(function.__doc__ or '').splitlines()[0]}")
        for name, tests in COVERED.items():
            print(f"{name:4} shown by {tests}")
        for name, why in ABSENT.items():
            print(f"{name:4} absent: {why}")
        return 0
    size = options.size or (30.0 if options.long else 3.0)
    failed = 0
    for name in options.row or list(ROWS):
        began = time.monotonic()
        outcome, figure = run_row(name, 1.0 if options.row and not options.size else size)
        failed += outcome == "FAILED"
        print(f"{name:4} {outcome} ({time.monotonic() - began:.0f} s): {figure}", flush=True)
    if not options.row:
        for name, tests in COVERED.items():
            run = subprocess.run([sys.executable, "-m", "pytest", "-q", *shlex.split(tests)], capture_output=True, text=True, check=False)
            failed += run.returncode != 0
            print(f"{name:4} {'held' if run.returncode == 0 else 'FAILED'}: {tests}: {run.stdout.strip().splitlines()[-1]}", flush=True)
        for name, why in ABSENT.items():
            print(f"{name:4} absent: {why}")
        seeds = options.seeds or (20_000 if options.long else 1000)
        failed += subprocess.run([sys.executable, "-m", "faults.sim", "--seeds", f"0:{seeds}"], check=False).returncode != 0
        power = 10_000 if options.long else 1000
        failed += subprocess.run([sys.executable, "-m", "faults.powerloss", "--seeds", f"0:{power}"], check=False).returncode != 0
        failed += subprocess.run([sys.executable, "-m", "faults.mutants"], check=False).returncode != 0
    print("all held" if not failed else f"{failed} failed")
    return bool(failed)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
