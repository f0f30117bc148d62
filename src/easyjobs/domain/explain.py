"""Why a job does not run: a pure function over what the manager knows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from easyjobs.domain.lifecycle import JobState

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MANY: Final = 10_000  # jobs ahead, above which they are not counted


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A connected worker that offers the task. `room`: how many more jobs it takes now; `silent_s`: since it was last heard of."""

    name: str
    slots: int
    running: int
    room: int
    silent_s: float = 0.0
    loop_age_s: float = 0.0
    holds_lost_attempt: bool = False


class Awaited(msgspec.Struct, frozen=True, kw_only=True):
    """A job that must have succeeded before. `task` is `queue/name`."""

    id: str
    task: str
    state: JobState


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the manager knows of a job and of those that could run it. Instants in microseconds.

    `worker` has the job, or had it last; `is_worker_here`: it is connected to this manager. `workers` are the connected ones that offer its task, `connected` counts all. `offered_at`: when anybody last offered the task; None: never.
    `ahead`: queued jobs that are claimed before it; None if it is not queued. `silence_s` and `wedged_s`: a worker that has not been heard of, or
    whose loop has not turned, for so long gets no jobs.
    """

    state: JobState
    now: int
    queue: str
    task: str
    attempt: int = 0
    failures: int = 0
    run_at: int | None = None
    worker: str | None = None
    is_worker_here: bool = True
    workers: Sequence[WorkerFacts] = ()
    connected: int = 0
    offered_at: int | None = None
    ahead: int | None = None
    waits_for: Sequence[Awaited] = ()
    is_queue_paused: bool = False
    is_manager_paused: bool = False
    silence_s: float = 20.0
    wedged_s: float = 120.0


class Reason(msgspec.Struct, frozen=True):
    """One reason. `code` is for programs, `text` a sentence for people; `facts` are numbers, names and instants (`…_at`) behind it."""

    code: str
    text: str
    facts: dict[str, Any] = {}


def explain(facts: Facts) -> list[Reason]:
    """Why the job is where it is, the reason that must go away first in front. Never empty."""
    state, task = facts.state, f"{facts.queue}/{facts.task}"
    if state is JobState.RUNNING:
        text = f"attempt {facts.attempt} runs on {facts.worker or 'a worker'}"
        more: dict[str, Any] = {}
        if not facts.is_worker_here:
            more = {"connected": False}
            text = (
                f"attempt {facts.attempt} was begun by {facts.worker or 'a worker'}, which is not connected to this manager: it may come back, or be "
                "with another one; else the job runs again when the lease has ended"
            )
        return [Reason("running", text, {"attempt": facts.attempt, "worker": facts.worker, **more})]
    if state.is_final:
        return [Reason("ended", f"it has ended: {state.text}")]
    reasons: list[Reason] = []
    if state is JobState.SCHEDULED and facts.run_at is not None:
        reasons.append(_not_before(facts, facts.run_at))
    elif state is JobState.WAITING:
        reasons.append(_waits(facts))
    if facts.is_queue_paused:
        reasons.append(Reason("queue_paused", f"the queue {facts.queue} is paused: resume it", {"queue": facts.queue}))
    if facts.is_manager_paused:
        reasons.append(Reason("manager_paused", "the manager gives out no jobs: it is paused, or going down"))
    if not facts.workers:
        reasons.append(_no_worker(facts, task))
    elif state is JobState.QUEUED:
        reasons.extend(_no_room(facts, task))
        if facts.ahead:
            count = f"{facts.ahead:,}" if facts.ahead < MANY else f"{MANY:,} or more"
            text = f"{count} jobs of {task} are before it" if facts.ahead > 1 else f"one job of {task} is before it"
            reasons.append(Reason("behind_others", text, {"ahead": facts.ahead}))
    if not reasons:
        reasons.append(Reason("any_moment", "nothing is in its way: it is claimed at any moment"))
    return reasons


def _not_before(facts: Facts, run_at: int) -> Reason:
    why = f", after {facts.failures} failed attempts" if facts.failures > 1 else ", after a failed attempt" if facts.failures else ""
    left_s = (run_at - facts.now) / 1_000_000
    if left_s <= 0:
        return Reason("not_before", f"it is due since {_when(run_at)} and will be queued at any moment", {"run_at": run_at})
    return Reason("not_before", f"not before {_when(run_at)}, in {_duration(left_s)}{why}", {"run_at": run_at, "failures": facts.failures})


def _waits(facts: Facts) -> Reason:
    open_ones = [job for job in facts.waits_for if job.state is not JobState.SUCCEEDED]
    jobs = [{"id": job.id, "task": job.task, "status": job.state.text} for job in open_ones]
    names = ", ".join(f"{job.task} ({job.state.text})" for job in open_ones[:5])
    more = f" and {len(open_ones) - 5} more" if len(open_ones) > 5 else ""
    text = f"it waits for {names}{more}" if names else "it waits for the jobs that run before it"
    return Reason("waits_for_jobs", text, {"jobs": jobs})


def _no_worker(facts: Facts, task: str) -> Reason:
    connected = "no worker is connected" if facts.connected == 0 else f"none of {facts.connected} connected workers offers {task}"
    if facts.offered_at is None:
        return Reason("no_worker", f"{connected}, and nobody ever offered {task}: start a worker that has this task")
    ago = _duration(max(0.0, (facts.now - facts.offered_at) / 1_000_000))
    text = f"{connected}; {task} was last offered {ago} ago: start a worker that has this task"
    return Reason("no_worker", text, {"last_offered_at": facts.offered_at})


def _no_room(facts: Facts, task: str) -> list[Reason]:
    """What keeps each of the workers from taking a job; nothing if one of them would."""
    silent = [one for one in facts.workers if one.silent_s > facts.silence_s]
    blocked = [one for one in facts.workers if one not in silent and one.loop_age_s >= facts.wedged_s]
    holding = [one for one in facts.workers if one not in silent and one not in blocked and one.holds_lost_attempt]
    busy = [one for one in facts.workers if one not in silent and one not in blocked and one not in holding and one.room <= 0]
    if len(silent) + len(blocked) + len(holding) + len(busy) < len(facts.workers):
        return []
    reasons: list[Reason] = []
    if busy:
        running, slots = sum(one.running for one in busy), sum(one.slots for one in busy)
        whose = f"the {len(busy)} workers that offer {task}" if len(busy) > 1 else f"{busy[0].name}, the only worker that offers {task},"
        if len(facts.workers) > len(busy):
            whose = f"{len(busy)} of {len(facts.workers)} workers that offer {task}"
        text = f"all slots of {whose} are taken: {running:,} jobs on {slots:,} slots"
        reasons.append(Reason("slots_busy", text, {"running": running, "slots": slots, "workers": [one.name for one in busy]}))
    for one in silent:
        text = f"{one.name} has not been heard of for {_duration(one.silent_s)}: it gets no new jobs until it is"
        reasons.append(Reason("worker_silent", text, {"worker": one.name, "silent_s": round(one.silent_s, 1)}))
    for one in blocked:
        text = f"a task blocks the event loop of {one.name} since {_duration(one.loop_age_s)}: it gets no new jobs until that ends"
        reasons.append(Reason("worker_blocked", text, {"worker": one.name, "loop_age_s": round(one.loop_age_s, 1)}))
    for one in holding:
        text = f"{one.name} still holds an attempt of {task} whose lease had ended: it gets no other until it has let go"
        reasons.append(Reason("worker_holds_lost_attempt", text, {"worker": one.name}))
    return reasons


def _when(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(seconds: float) -> str:
    """A duration in the two largest units that it has: "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
