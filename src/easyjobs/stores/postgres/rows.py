"""How rows become values."""

from __future__ import annotations

from typing import Any, Final

from easyjobs.domain.job import JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import CatchUp, NewSchedule, Overlap, Schedule

RECORD: Final = """j.seq, j.id, j.lane, j.state, j.attempt, j.failures, j.crashes, j.priority, j.created_at, j.run_at, j.started_at,
    j.finished_at, j.pulled_at, s.name, j.args, j.result, j.error, p.id, j.traceparent
    from {} left join easyjobs.sessions s on s.number = j.session left join easyjobs.jobs p on p.seq = j.parent_seq"""
SCHEDULE: Final = """s.id, s.lane, s.version, s.next_at, s.paused_at, s.last_tick, j.id, s.expression, s.timezone, s.args, s.catch_up,
    s.window_us, s.overlap from easyjobs.schedules s left join easyjobs.jobs j on j.seq = s.last_seq"""
STATES: Final = tuple(JobState)
FINAL_STATES: Final = "(2, 3, 4, 5)"


def clean(text: str | None) -> str | None:
    """Text that others wrote, as PostgreSQL can hold it: without NUL, and without halves of surrogate pairs."""
    return None if text is None else text.replace("\0", "\ufffd").encode(errors="replace").decode()


def record(row: Any) -> JobRecord:
    """Build a JobRecord from a row of RECORD."""
    seq, job_id, lane, state, *rest = row
    return JobRecord(seq, job_id, lane, STATES[state], *rest)


def schedule(row: Any) -> Schedule:
    """Build a Schedule from a row of SCHEDULE."""
    id, lane, version, next_at, paused_at, last_tick, last_job, expression, timezone, args, catch_up, window_us, overlap = row
    what = NewSchedule(expression, timezone, args, CatchUp(catch_up), window_us, Overlap(overlap))
    return Schedule(id, lane, what, version, next_at, paused_at, last_tick, last_job)
