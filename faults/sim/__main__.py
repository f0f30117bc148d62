"""Run seeds: `python -m faults.sim --seeds 0:200`; one of them again, with its faults and steps: `python -m faults.sim --replay 15 --job 42`."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any


def run_here(first: int, last: int, step: int) -> None:
    """One line of JSON a seed."""
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
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faults.sim", "--here", f"{first + n * step}:{last}:{processes * step}"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(processes)
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None
            for line in child.stdout:
                yield json.loads(line)
            if child.wait(within_s) != 0:
                assert child.stderr is not None
                yield {
                    "seed": -1,
                    "wrong": [f"the simulation itself failed: {child.stderr.read()[-2000:]}"],
                    "crashes": [],
                    "jobs": 0,
                    "runs": 0,
                }
    finally:
        for child in children:
            child.kill()
            child.communicate()


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
    options = parser.parse_args()
    if options.here:
        first, last, step = map(int, options.here.split(":"))
        run_here(first, last, step)
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, "-W", "ignore", "-m", "faults.sim", *sys.argv[1:]], environment())
    if options.replay is not None:
        replay(options.replay, options.job)
    first, last = map(int, options.seeds.split(":"))
    began, count, failed = time.monotonic(), 0, 0
    for told in seeds(first, last, options.processes):
        count += 1
        if told["wrong"] or told["crashes"]:
            failed += 1
            print(f"seed {told['seed']}: {len(told['wrong'])} wrong; again with: python -m faults.sim --replay {told['seed']}")
            print(*[f"    {line}" for line in (told["wrong"] + told["crashes"])[:8]], sep="\n", flush=True)
    took = time.monotonic() - began
    print(f"{count} seeds, {failed} failed, {count / took * 60:.0f} seeds a minute")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
