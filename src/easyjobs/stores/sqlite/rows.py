"""How rows become values, and values rows."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from easyjobs.domain.job import Claimed, JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.schedule import CatchUp, NewSchedule, Overlap, Schedule

# A claim leaves SQLite as one blob, the msgpack of list[Claimed]: one row instead of thousands (each row returned costs a hand-over
# of the GIL), and msgspec builds the values without Python code. 97 = array of 7; CF, CE, C6 = 64- and 32-bit integers and bytes with
# a 32-bit length; C410 = 16 bytes. A job that was submitted within a trace has an eighth element: D9 = text with an 8-bit length.
_HEAD: Final = (
    "unhex(printf('{}CF%016XCE%08XCE%08XC410%sCE%08XCF%016XC6%08X', "
    "seq, attempt + 1, lane, hex(id), failures, coalesce(timeout_us, 0), length(args))) || args"
)
CLAIMED: Final = _HEAD.format("97")
TRACE_OF: Final = "(select traceparent from traces t where t.seq = {}.seq) as traceparent"
CLAIMED_TRACED: Final = (
    f"iif(traceparent is null, {CLAIMED}, {_HEAD.format('98')} || unhex(printf('D9%02X', length(traceparent))) || traceparent)"
)
LIST: Final = "unhex(printf('DD%08X', count(*)))"
decode_claimed = msgspec.msgpack.Decoder(list[Claimed]).decode

RECORD: Final = """j.seq, j.id, j.lane, j.state, j.attempt, j.failures, j.crashes, j.priority, j.created_at, j.run_at, j.started_at,
    j.finished_at, j.pulled_at, s.name, j.args, j.result, j.error, p.id,
    (select traceparent from traces t where t.seq = j.seq)
    from {} left join sessions s on s.number = j.session left join jobs p on p.seq = j.parent_seq"""
SCHEDULE: Final = """s.id, s.lane, s.version, s.next_at, s.paused_at, s.last_tick, j.id, s.expression, s.timezone, s.args, s.catch_up,
    s.window_us, s.overlap from schedules s left join jobs j on j.seq = s.last_seq"""
STATES: Final = tuple(JobState)


def record(row: tuple[Any, ...]) -> JobRecord:
    """Build a JobRecord from a row of RECORD."""
    seq, job_id, lane, state, *rest = row
    return JobRecord(seq, job_id, lane, STATES[state], *rest)


def schedule(row: tuple[Any, ...]) -> Schedule:
    """Build a Schedule from a row of SCHEDULE."""
    id, lane, version, next_at, paused_at, last_tick, last_job, expression, timezone, args, catch_up, window_us, overlap = row
    what = NewSchedule(expression, timezone, args, CatchUp(catch_up), window_us, Overlap(overlap))
    return Schedule(id, lane, what, version, next_at, paused_at, last_tick, last_job)
