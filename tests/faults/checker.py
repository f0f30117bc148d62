"""Did a run keep the delivery contract? Replays what three witnesses wrote down.

The witnesses are independent: the client notes what was acknowledged, each attempt appends a line when its body starts and ends, and the
store is asked over HTTP at the end. A fourth list holds the faults that the test itself injected, for only they excuse a second attempt.

Times are seconds of CLOCK_BOOTTIME, which all processes of a machine share and which runs on while a process is stopped.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

FINAL = ("succeeded", "failed", "cancelled", "expired")
CLOCK_SLACK_S = 0.15  # between an instant and the line that tells of it


def now() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Effect:
    """A line of the effects log. `what`: start, or how the body ended: done, raised, cancelled. `run` names this run of the body."""

    token: str
    run: str
    pid: int
    what: str
    at: float
    attempt: int = 0  # 0: unknown


@dataclass(frozen=True)
class Fault:
    """A worker process that from `at` on cannot renew its lease. `kills`: it ended then; else it was only stopped or cut off.

    `is_child`: it is a child process of a worker that lives: that one gives the job back by itself, and nobody waits for a lease.
    """

    pid: int
    at: float
    kills: bool
    is_child: bool = False


@dataclass
class History:
    """All that is known of a run. `acked`: token → the job's id. `unknown`: tokens whose submit got no answer.

    `ends`: job id → what the store says of it at the end, `{"status", "attempt", "result"}`; a job that it does not know is absent.
    A result is `{"token", "run"}` of the body that made it.
    """

    lease_s: float
    acked: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    effects: list[Effect] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ends: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class Run:
    """One run of a body, from its lines."""

    start: Effect
    end: Effect | None = None


def read_effects(path: Path) -> list[Effect]:
    """The effects log; a last line that was cut short by a kill is left out."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [Effect(**json.loads(line)) for line in whole.splitlines()]


def check(history: History) -> list[str]:
    """What the run did wrong, a sentence each; empty if it kept the contract."""
    runs = runs_by_token(history.effects)
    wrong: list[str] = []
    ids = list(history.acked.values())
    wrong += [f"job id {job_id} was acknowledged {ids.count(job_id)} times" for job_id in sorted(set(ids)) if ids.count(job_id) > 1]
    for token, job_id in history.acked.items():
        end = history.ends.get(job_id)
        if end is None:
            wrong.append(f"{token}: acknowledged, and the store does not know it")
        elif end["status"] not in FINAL:
            wrong.append(f"{token}: acknowledged, and not final but {end['status']}")
        else:
            wrong += ends_truly(token, end, runs.get(token, []))
    for token, of_token in runs.items():
        if token not in history.acked and token not in history.unknown:
            wrong.append(f"{token}: ran, and nobody had submitted it")
        wrong += attempts_follow_each_other(token, of_token, history)
    return wrong


def runs_by_token(effects: Iterable[Effect]) -> dict[str, list[Run]]:
    """The runs of each token's body, in order of their starts."""
    by_run: dict[str, Run] = {}
    grouped: dict[str, list[Run]] = defaultdict(list)
    for effect in sorted(effects, key=lambda effect: effect.at):
        if effect.what == "start":
            by_run[effect.run] = Run(effect)
            grouped[effect.token].append(by_run[effect.run])
        elif effect.run in by_run:
            by_run[effect.run].end = effect
    return grouped


def ends_truly(token: str, end: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """A success is that of a body that ran to its end, and the attempt counter covers every start."""
    wrong = []
    if end["status"] == "succeeded":
        made_by = [
            run for run in runs if run.end is not None and run.end.what == "done" and run.start.run == (end["result"] or {}).get("run")
        ]
        if not made_by:
            wrong.append(f"{token}: succeeded with a result that no finished attempt made: {end['result']}")
        elif made_by[0].start.attempt and made_by[0].start.attempt > end["attempt"]:
            wrong.append(f"{token}: its result is of attempt {made_by[0].start.attempt}, the job is at attempt {end['attempt']}")
    if len(runs) > end["attempt"]:
        wrong.append(f"{token}: started {len(runs)} times in {end['attempt']} attempts")
    return wrong


def attempts_follow_each_other(token: str, runs: Sequence[Run], history: History) -> list[str]:
    """Each further attempt has a reason, comes after the lease of the one before, and has a higher number."""
    wrong = []
    for earlier, later in pairwise(runs):
        fault = next(
            (fault for fault in history.faults if fault.pid == earlier.start.pid and fault.at > earlier.start.at - CLOCK_SLACK_S), None
        )
        ended_by_itself = earlier.end if earlier.end is not None and earlier.end.what in ("cancelled", "raised") else None
        if earlier.start.attempt and later.start.attempt <= earlier.start.attempt:
            wrong.append(f"{token}: attempt {later.start.attempt} started after attempt {earlier.start.attempt}")
        if ended_by_itself is not None and ended_by_itself.at <= later.start.at + CLOCK_SLACK_S:
            continue  # given back, or failed and tried again
        if fault is None:
            wrong.append(f"{token}: ran again, though nothing had happened to worker {earlier.start.pid}")
            continue
        if fault.is_child:
            if later.start.at < fault.at - CLOCK_SLACK_S:
                wrong.append(f"{token}: its next attempt started {fault.at - later.start.at:.2f} s before its child was killed")
            continue
        # The last renewal was at most a third of a lease before the fault, so the lease lived for two thirds after it.
        lease_end = fault.at + history.lease_s * 2 / 3
        over = min(fault.at if fault.kills else float("inf"), earlier.end.at if earlier.end else float("inf"))
        if later.start.at < lease_end - CLOCK_SLACK_S:
            overlaps = "while the one before still ran" if over > later.start.at else "too early"
            wrong.append(
                f"{token}: its next attempt started {lease_end - later.start.at:.2f} s before the lease could have ended, {overlaps}"
            )
    return wrong
