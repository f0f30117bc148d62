"""How rows become values, and values rows."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from easyjobs.domain.job import Claimed, JobRecord
from easyjobs.domain.lifecycle import JobState

# A claim leaves SQLite as one blob, the msgpack of list[Claimed]: one row instead of thousands (each row returned costs a hand-over
# of the GIL), and msgspec builds the values without Python code. 97 = array of 7; CF, CE, C6 = 64- and 32-bit integers and bytes with
# a 32-bit length; C410 = 16 bytes; D9 = text with an 8-bit length. A job that was submitted within a trace has an eighth element.
CLAIMED: Final = (
    "unhex(printf('%sCF%016XCE%08XCE%08XC410%sCE%08XCF%016XC6%08X', "
    "iif(traceparent is null, '97', '98'), seq, attempt + 1, lane, hex(id), failures, coalesce(timeout_us, 0), length(args))) || args "
    "|| iif(traceparent is null, '', unhex(printf('D9%02X', length(traceparent))) || traceparent)"
)
LIST: Final = "unhex(printf('DD%08X', count(*)))"
decode_claimed = msgspec.msgpack.Decoder(list[Claimed]).decode

RECORD: Final = """j.seq, j.id, j.lane, j.state, j.attempt, j.failures, j.crashes, j.priority, j.created_at, j.run_at, j.started_at,
    j.finished_at, j.pulled_at, s.name, j.args, j.result, j.error, p.id, j.traceparent
    from {} left join sessions s on s.number = j.session left join jobs p on p.seq = j.parent_seq"""
STATES: Final = tuple(JobState)


def record(row: tuple[Any, ...]) -> JobRecord:
    """Build a JobRecord from a row of RECORD."""
    seq, job_id, lane, state, *rest = row
    return JobRecord(seq, job_id, lane, STATES[state], *rest)
