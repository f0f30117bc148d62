"""Run the suite, or a part of it; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from faults import report
from faults.matrix import ABSENT, COVERED, ROWS
from faults.run import RESULTS, ROOT, keep_run, parts, run, run_here

PAGE = ROOT / "docs" / "guarantees.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--long", action="store_true", help="ten times as much of everything: all night")
    parser.add_argument("--size", type=float, help="how much of each row; 1 is the short form, and what --row does")
    parser.add_argument("--row", action="append", help="only this row or part; may be given again")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--report", action="store_true", help="write docs/guarantees.md of the results that are there, and run nothing")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # the row runs in this process, and its result goes to this file
    options = parser.parse_args()
    size = options.size or (30.0 if options.long else 1.0 if options.row else 3.0)
    if options.here:
        options.here.write_text(json.dumps(run_here(options.row[0], size)))
        return 0
    if options.list:
        return show()
    if options.report:
        report.write(RESULTS, PAGE, [part.name for part in parts(size)])
        return 0
    known = parts(size)
    unknown = set(options.row or []) - {part.name for part in known} - set(ABSENT)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}: --list shows them all")
    if not options.row:
        shutil.rmtree(RESULTS, ignore_errors=True)  # a whole run has no results of another one
    began = time.monotonic()
    failed = [result["name"] for result in run([part for part in known if not options.row or part.name in options.row]) if _told(result)]
    if not options.row:
        keep_run(time.monotonic() - began)
        report.write(RESULTS, PAGE, [part.name for part in parts(size)])
    print(f"{len(failed)} failed: {' '.join(failed)}" if failed else "all held")
    return bool(failed)


def _told(result: dict[str, Any]) -> bool:
    """Whether it failed, once that was said."""
    print(f"{result['name']:8} {result['outcome']} ({result['took_s']:.0f} s): {result['figure']}", flush=True)
    return bool(result["outcome"] == "FAILED")


def show() -> int:
    """Print every row, with what it breaks."""
    for row in ROWS.values():
        print(f"{row.name:8} {row.what}")
    for name, covered in COVERED.items():
        print(f"{name:8} {covered.what} ({covered.tests})")
    for part in parts(1.0):
        if part.name not in ROWS and part.name not in COVERED:
            print(f"{part.name:8} {part.what}")
    for name, why in ABSENT.items():
        print(f"{name:8} absent: {why}")
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a thread that a failed row has left must not hold it up
