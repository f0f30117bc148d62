"""How stored things look in the API: plain dicts whose arguments and results are the stored bytes, untouched."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from easyjobs.domain.explain import Reason
from easyjobs.domain.job import Child, ErrorInfo, JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import Schedule
from easyjobs.domain.seeing import FailedAttempt, Look, Progress
from easyjobs.runtime.ids import id_text
from easyjobs.services.catalogue import Catalogue, CatalogueTask
from easyjobs.services.dispatcher import Session

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_halves = msgspec.json.Decoder(tuple[msgspec.Raw, msgspec.Raw]).decode
encode = msgspec.json.Encoder().encode
decode_error = msgspec.json.Decoder(ErrorInfo).decode


def instant(us: int | None) -> str | None:
    """Microseconds since 1970 as RFC 3339, UTC."""
    if us is None:
        return None
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _raw(body: bytes | None) -> msgspec.Raw | None:
    return msgspec.Raw(body) if body else None


def is_removed(record: JobRecord) -> bool:
    """Whether the job succeeded and its result is gone."""
    return record.state is JobState.SUCCEEDED and record.result is None


def _names(record: JobRecord, catalogue: Catalogue) -> tuple[str, str]:
    task = catalogue.by_lane(record.lane)
    return (task.queue, task.name) if task is not None else ("", "")


def progress_view(progress: Progress) -> dict[str, Any]:
    """How far a job is, as `schemas.ProgressView`."""
    return {
        "attempt": progress.attempt,
        "done": progress.done,
        "total": progress.total,
        "message": progress.message,
        "at": instant(progress.at),
    }


def attempt_view(failed: FailedAttempt) -> dict[str, Any]:
    """A failed attempt, as `schemas.AttemptView`."""
    return {"attempt": failed.attempt, "failed_at": instant(failed.at), "worker": failed.worker, "error": _raw(failed.error)}


def shown(look: Look | None, attempts: Iterable[FailedAttempt]) -> dict[str, Any]:
    """What a job shows of itself, to be added to its view."""
    return {
        "progress": progress_view(look.progress) if look is not None and look.progress is not None else None,
        "log_lines": look.count if look is not None else 0,
        "log_lines_dropped": look.dropped if look is not None else 0,
        "attempts": [attempt_view(failed) for failed in attempts],
    }


def job_view(record: JobRecord, catalogue: Catalogue) -> dict[str, Any]:
    """A job as `schemas.JobView`."""
    queue, name = _names(record, catalogue)
    args, kwargs = _halves(record.args)
    return {
        "id": id_text(record.id),
        "namespace": queue,
        "name": name,
        "status": record.state.text,
        "attempt": record.attempt,
        "failures": record.failures,
        "crashes": record.crashes,
        "priority": record.priority,
        "worker": record.worker,
        "created_at": instant(record.created_at),
        "run_at": instant(record.run_at),
        "started_at": instant(record.started_at),
        "finished_at": instant(record.finished_at),
        "pulled_at": instant(record.pulled_at),
        "args": args,
        "kwargs": kwargs,
        "result": _raw(record.result),
        "result_removed": is_removed(record),
        "error": _raw(record.error),
        "parent": id_text(record.parent) if record.parent else None,
        "traceparent": record.traceparent,
    }


def explanation(record: JobRecord, catalogue: Catalogue, reasons: Iterable[Reason]) -> dict[str, Any]:
    """Why a job does not run, as `schemas.Explanation`."""
    queue, name = _names(record, catalogue)
    listed = [
        {"code": reason.code, "text": reason.text}
        | {key: instant(value) if key.endswith("_at") else value for key, value in reason.facts.items()}
        for reason in reasons
    ]
    return {"id": id_text(record.id), "namespace": queue, "name": name, "status": record.state.text, "reasons": listed}


def schedule_view(schedule: Schedule, catalogue: Catalogue) -> dict[str, Any]:
    """A schedule as `schemas.ScheduleView`."""
    what, task = schedule.what, catalogue.by_lane(schedule.lane)
    args, kwargs = _halves(what.args)
    return {
        "id": schedule.id,
        "namespace": "" if task is None else task.queue,
        "name": "" if task is None else task.name,
        "expression": what.expression,
        "timezone": what.timezone,
        "args": args,
        "kwargs": kwargs,
        "catch_up": what.catch_up.value,
        "catch_up_window_s": what.window_us / 1_000_000,
        "overlap": what.overlap.value,
        "workers": 0 if task is None else task.workers,
        "paused_at": instant(schedule.paused_at),
        "next_at": None if schedule.paused_at is not None else instant(schedule.next_at),
        "last_tick_at": instant(schedule.last_tick),
        "last_job_id": id_text(schedule.last_job) if schedule.last_job else None,
    }


def result_view(record: JobRecord, catalogue: Catalogue) -> dict[str, Any]:
    """A job as `schemas.ResultView`."""
    queue, name = _names(record, catalogue)
    text = id_text(record.id)
    return {
        "request_id": text,
        "job_id": text,
        "namespace": queue,
        "name": name,
        "status": record.state.text,
        "results": _raw(record.result),
        "error": _raw(record.error),
        "pulled_at": instant(record.pulled_at),
    }


def child_view(child: Child, catalogue: Catalogue) -> dict[str, Any]:
    """A job that descends from another one, as `schemas.ChildView`."""
    task = catalogue.by_lane(child.lane)
    queue, name = (task.queue, task.name) if task is not None else ("", "")
    return {"id": id_text(child.id), "namespace": queue, "name": name, "edge": child.edge.partition(":")[0], "status": child.state.text}


def queue_views(
    catalogue: Catalogue, counts: dict[tuple[int, JobState], int], sessions: Iterable[Session], paused: Collection[str]
) -> list[dict[str, Any]]:
    """All queues that have jobs, tasks or workers, as `schemas.QueueView`, by name."""
    queues: dict[str, dict[str, Any]] = {}

    def of(queue: str) -> dict[str, Any]:
        empty = {"namespace": queue} | {state.text: 0 for state in JobState} | {"tasks": 0, "workers": 0, "paused": queue in paused}
        return queues.setdefault(queue, empty)

    for queue in paused:
        of(queue)
    for task in catalogue.visible():
        of(task.queue)["tasks"] += 1
    for (lane, state), count in counts.items():
        task_of_lane = catalogue.by_lane(lane)
        if task_of_lane is not None:
            of(task_of_lane.queue)[state.text] += count
    for session in sessions:
        served = {task.queue for task in map(catalogue.by_lane, session.lanes) if task is not None}
        for queue in served:
            of(queue)["workers"] += 1
    return [queues[name] for name in sorted(queues)]


def worker_views(
    sessions: Iterable[Session], catalogue: Catalogue, monotonic: float, queues: Collection[str] | None
) -> list[dict[str, Any]]:
    """Connected sessions as `schemas.WorkerView`. `queues`: what is shown is of these only, and so are the sessions; None: of all."""
    shown = ((session, lanes_shown(session, catalogue, queues)) for session in sessions)
    return [_worker_view(session, catalogue, monotonic, lanes) for session, lanes in shown if lanes is not None]


def lanes_shown(session: Session, catalogue: Catalogue, queues: Collection[str] | None) -> Collection[int] | None:
    """The lanes of a session in these queues (None: in all); None for a session that has nothing to do with them."""
    if queues is None:
        return session.lanes
    lanes = {lane for lane in session.lanes if (task := catalogue.by_lane(lane)) is not None and task.queue in queues}
    return lanes if lanes or session.queue in queues else None


def _worker_view(session: Session, catalogue: Catalogue, monotonic: float, lanes: Collection[int]) -> dict[str, Any]:
    is_whole = lanes is session.lanes
    tasks = (catalogue.by_lane(lane) for lane in lanes)
    return {
        "session": session.id.hex(),
        "name": session.name,
        "namespace": session.queue,
        "slots": session.slots,
        "running": len(session.running) if is_whole else sum(job.lane in lanes for job in session.running.values()),
        "connected_at": instant(session.since),
        "silent_s": round(max(0.0, monotonic - session.beat_at), 3),
        "loop_age_s": session.loop_age_s,
        "tasks": sorted(f"{task.queue}/{task.name}" for task in tasks if task is not None),
    }


def task_view(task: CatalogueTask) -> dict[str, Any]:
    """A task as `schemas.TaskView`."""
    signature = task.signature
    return {
        "namespace": task.queue,
        "name": task.name,
        "summary": signature.summary,
        "description": signature.doc,
        "workers": task.workers,
        "offered_at": instant(task.offered_at),
        "arguments": signature.arguments,
        "returns": signature.returns,
        "options": task.options,
    }
