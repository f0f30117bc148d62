"""Run seeds: `python -m faults.sim --seeds 0:200`, with `--json FILE` for a report; one of them again, with its faults and steps: `python -m faults.sim --replay 15 --job 42`."""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _end_with_parent() -> None:
    """The parent holds the other end of our standard input, and says nothing: that it ends means that the parent has, in whatever way."""
    sys.stdin.buffer.read()
    os._exit(1)


def run_here(first: int, last: int, step: int) -> None:
    """One line of JSON a seed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from faults.sim.world import Plan, simulate

    gc.collect()
    gc.freeze()  # what is here now stays: the collection after each seed need not look at it again
    for seed in range(first, last, step):
        outcome = simulate(Plan.of(seed))
        history = outcome.history
        told = {
            "seed": seed,
            "wrong": outcome.wrong,
            "crashes": outcome.crashes,
            "fingerprint": outcome.fingerprint,
            "jobs": len(history.rows),
            "runs": sum(effect.what == "start" for effect in history.effects),
            "virtual_s": round(outcome.virtual_s),
        }
        print(json.dumps(told), flush=True)
    sys.stdout.flush()
    os._exit(0)  # what the last run has left suspended needs no tidying up


def environment() -> dict[str, str]:
    """For replays: sets and dicts of text go the same way in each run."""
    return {**os.environ, "PYTHONHASHSEED": "0"}


def seeds(first: int, last: int, processes: int = 2, *, step: int = 1, paths: str = "", within_s: float = 3600) -> Iterator[dict[str, Any]]:
    """Run seeds in child processes; yields what each came to. `paths`: put in front of PYTHONPATH, for a changed product."""
    env = environment()
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [paths, env.get("PYTHONPATH", "")]))
    lines: queue.SimpleQueue[str | subprocess.Popen[str]] = queue.SimpleQueue()

    def listen(child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(child)

    with tempfile.TemporaryFile("w+") as errors:
        children = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "faults.sim", "--here", f"{first + n * step}:{last}:{processes * step}"],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )
            for n in range(processes)
        ]  # fmt: skip
        listeners = [threading.Thread(target=listen, args=(child,), daemon=True) for child in children]
        try:
            for listener in listeners:
                listener.start()
            running = len(children)
            while running:
                told = lines.get()
                if isinstance(told, str):
                    yield json.loads(told)
                    continue
                running -= 1
                if told.wait(within_s) != 0:
                    errors.seek(0)
                    why = f"the simulation itself failed: {errors.read()[-2000:]}"
                    yield {"seed": -1, "wrong": [why], "crashes": [], "jobs": 0, "runs": 0, "virtual_s": 0}
        finally:
            for child in children:
                child.kill()
            for child, listener in zip(children, listeners, strict=True):
                child.wait()
                if listener.ident is not None:
                    listener.join()
                for pipe in (child.stdin, child.stdout):
                    assert pipe is not None
                    pipe.close()


def replay(seed: int, job: int | None) -> None:
    from faults.sim.world import Plan, simulate

    outcome = simulate(Plan.of(seed))
    print(*outcome.trace, sep="\n")
    print(f"seed {seed}: {Plan.of(seed)}\nfingerprint {outcome.fingerprint}")
    print(*(outcome.wrong or ["nothing is wrong"]), sep="\n")
    print(*outcome.crashes, sep="\n")
    if job is not None:
        for step in outcome.history.steps:
            if step.seq == job:
                print(f"{step.at / 1e6 - 1_700_000_000:9.3f} {step}")
        ids = {row.id for row in outcome.history.rows if row.seq == job}
        for effect in outcome.history.effects:
            if effect.job in ids:
                print(f"{effect.at:9.3f} {effect}")
        for row in outcome.history.rows:
            if row.seq == job:
                print(row)
    sys.stdout.flush()
    os._exit(bool(outcome.wrong))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.sim")
    parser.add_argument("--seeds", default="0:200", help="first:last")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=int)
    parser.add_argument("--job", type=int, help="with --replay: show this job (its seq)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, help="write {seeds, failed (-1: the simulation itself), jobs, runs, virtual_s, seconds, seeds_per_minute}"
    )
    options = parser.parse_args()
    if options.here:
        first, last, step = map(int, options.here.split(":"))
        run_here(first, last, step)
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, "-W", "ignore", "-m", "faults.sim", *sys.argv[1:]], environment())
    if options.replay is not None:
        replay(options.replay, options.job)
    first, last = map(int, options.seeds.split(":"))
    return run(first, last, options.processes, options.json)


def run(first: int, last: int, processes: int, report: Path | None) -> int:
    """Say what fails; also when it is told to end, write into `report` what has been run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    began, count, totals = time.monotonic(), 0, dict.fromkeys(["jobs", "runs", "virtual_s"], 0)
    failed: list[int] = []
    try:
        for told in seeds(first, last, processes):
            count += told["seed"] >= 0
            for what in totals:
                totals[what] += told[what]
            if told["wrong"] or told["crashes"]:
                failed.append(told["seed"])
                print(f"seed {told['seed']}: {len(told['wrong'])} wrong; again with: python -m faults.sim --replay {told['seed']}")
                print(*[f"    {line}" for line in (told["wrong"] + told["crashes"])[:8]], sep="\n", flush=True)
    finally:
        took = time.monotonic() - began
        pace = round(count / took * 60)
        print(f"{count} seeds, {len(failed)} failed, {pace} seeds a minute")
        if report is not None:
            told = {"seeds": count, "failed": sorted(failed), **totals, "seconds": round(took, 1), "seeds_per_minute": pace}
            report.write_text(json.dumps(told) + "\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
