"""Fuzz every target for a while: `python -m faults.fuzz --seconds 60`. What is found lies in `build/fuzz`, with the inputs that reached new code."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from faults.fuzz.targets import TARGETS
from faults.run import ROOT, SKIPPED


def fuzz(target: str, seconds: int) -> tuple[int, str]:
    """Executions, and what was found: empty if nothing was. libFuzzer ends at the first thing that it finds."""
    corpus = ROOT / "build" / "fuzz" / target
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=20", f"-artifact_prefix={corpus}-", "-print_final_stats=1"]
    command = [sys.executable, "-W", "ignore", "-m", "faults.fuzz.targets", target, *limits, str(corpus)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=seconds * 3 + 120)
    executions = re.search(r"number_of_executed_units:\s*(\d+)", run.stderr)
    return int(executions[1]) if executions else 0, "" if run.returncode == 0 else run.stderr[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=f"default: all of {', '.join(TARGETS)}")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install --group faults")
        return SKIPPED
    total, failed = 0, []
    for target in options.targets:
        count, found = fuzz(target, options.seconds)
        total += count
        print(f"{target}: {count:,} inputs{': ' + found if found else ''}", flush=True)
        failed += [target] if found or not count else []
    print(f"{total:,} inputs for {len(options.targets)} decoders, {len(failed)} stumbled{': ' + ', '.join(failed) if failed else ''}")
    return bool(failed)


if __name__ == "__main__":
    Path(ROOT / "build").mkdir(exist_ok=True)
    sys.exit(main())
