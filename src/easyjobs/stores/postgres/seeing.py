"""What jobs show of themselves: written within the writer's transaction, read as of the last commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.domain.seeing import FailedAttempt, Glance, Ledger, Line, LogLine, Look, Notes, Progress, enter
from easyjobs.stores.postgres.control import changed

if TYPE_CHECKING:
    from asyncpg import Connection

BIGGEST: Final = 2**63 - 1

# The lock of the job's row guards what is seen of it; so `seen` is read by a statement of its own, which sees what that lock waited for.
LOCK: Final = """select seq, attempt, state from easyjobs.jobs where seq = any($1::bigint[]) and session = $2 order by seq
    for no key update"""
LEDGERS: Final = "select seq, lines, bytes, dropped, last_attempt, last_number from easyjobs.seen where seq = any($1::bigint[])"
MARK: Final = """insert into easyjobs.seen(seq, progress) select * from unnest($1::bigint[], $2::bytea[])
    on conflict (seq) do update set progress = excluded.progress"""
LINE: Final = """insert into easyjobs.logs(seq, attempt, number, at, level, logger, text)
    select * from unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bytea[])"""
LEDGER: Final = """insert into easyjobs.seen(seq, lines, bytes, dropped, last_attempt, last_number)
    select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
    on conflict (seq) do update set lines = excluded.lines, bytes = excluded.bytes, dropped = excluded.dropped,
    last_attempt = excluded.last_attempt, last_number = excluded.last_number"""

SEEN: Final = """select j.seq, j.state, j.attempt, s.progress, s.lines, s.dropped
    from easyjobs.jobs j left join easyjobs.seen s on s.seq = j.seq where j.id = $1"""
LINES: Final = """select attempt, number, at, level, logger, text from easyjobs.logs
    where seq = $1 and (attempt, number) > ($2::bigint, $3::bigint) order by attempt, number limit $4"""
ATTEMPTS: Final = """select j.id, a.attempt, a.at, s.name, a.error from easyjobs.jobs j join easyjobs.attempts a on a.seq = j.seq
    left join easyjobs.sessions s on s.number = a.session where j.id = any($1::bytea[]) order by a.seq, a.attempt"""
AHEAD: Final = """select j.id, (select count(*) from (select 1 from easyjobs.jobs o where o.state = 0 and o.lane = j.lane
    and (o.rank, o.seq) < (j.rank, j.seq) limit $2) before) from easyjobs.jobs j where j.id = any($1::bytea[]) and j.state + 0 = 0"""

FORGOTTEN: Final = "select seq from easyjobs.forgotten order by seq limit 100 for update skip locked"
DROP_LINES: Final = """delete from easyjobs.logs where (seq, attempt, number) in
    (select seq, attempt, number from easyjobs.logs where seq = any($1::bigint[]) order by seq, attempt, number limit $2)"""

_pack: Final = msgspec.msgpack.Encoder().encode
_progress: Final = msgspec.msgpack.Decoder(Progress).decode


async def note(db: Connection, notes: Notes, now: int) -> tuple[int, ...]:
    """See the port's `note`."""
    lines: dict[int, list[Line]] = {}
    for line in notes.lines:
        lines.setdefault(line.seq, []).append(line)
    seqs = sorted(seq for seq in {mark.seq for mark in notes.marks} | lines.keys() if abs(seq) <= BIGGEST)
    if not seqs:
        return tuple(dict.fromkeys([*(mark.seq for mark in notes.marks), *lines]))
    ours = {seq: (attempt, JobState(state)) for seq, attempt, state in await db.fetch(LOCK, seqs, notes.session)}
    ledgers = {seq: Ledger(*rest) for seq, *rest in await db.fetch(LEDGERS, list(lines.keys() & ours.keys()))} if lines else {}
    nobody = (0, JobState.FAILED)
    stale: dict[int, None] = {}
    marks: dict[int, bytes] = {}
    new_lines: list[tuple[Any, ...]] = []
    new_ledgers: list[tuple[Any, ...]] = []
    for mark in notes.marks:
        attempt, state = ours.get(mark.seq, nobody)
        if mark.attempt == attempt and state not in FINAL:
            marks[mark.seq] = _pack(Progress(attempt, mark.done, mark.total, mark.message, now))
        else:
            stale[mark.seq] = None
    for seq, some in lines.items():
        attempt, _ = ours.get(seq, nobody)
        current = [line for line in some if seq in ours and line.attempt == attempt]
        if current:
            ledger = ledgers.get(seq) or Ledger()
            new_lines.extend(
                (seq, line.attempt, line.number, line.at, line.level, _bytes(line.logger), _bytes(line.text))
                for line in enter(ledger, current)
            )
            new_ledgers.append((seq, *msgspec.structs.astuple(ledger)))
        else:
            stale[seq] = None
    for sql, values in ((MARK, list(marks.items())), (LINE, new_lines), (LEDGER, new_ledgers)):
        if values:
            await db.execute(sql, *map(list, zip(*values, strict=True)))
    return tuple(stale)


async def prune(db: Connection, limit: int) -> int:
    """Take away some `limit` lines of deleted jobs, of which one has a few and another thousands; how many rows."""
    touched = 0
    while touched < limit:
        seqs = [seq for (seq,) in await db.fetch(FORGOTTEN)]
        if not seqs:
            break
        lines = changed(await db.execute(DROP_LINES, seqs, limit))
        touched += lines
        if lines < limit:
            touched += changed(await db.execute("delete from easyjobs.seen where seq = any($1::bigint[])", seqs))
            touched += changed(await db.execute("delete from easyjobs.forgotten where seq = any($1::bigint[])", seqs))
    return touched


async def look(db: Connection, glances: Sequence[Glance]) -> list[Look | None]:
    """See the port. The state is read before the lines: those of a job that has ended are all there."""
    return [await _look(db, glance) for glance in glances]


async def _look(db: Connection, glance: Glance) -> Look | None:
    row = await db.fetchrow(SEEN, glance.id)
    if row is None:
        return None
    seq, state, attempt, marked, count, dropped = row
    lines: list[LogLine] = []
    is_more = False
    if count:
        found = await db.fetch(LINES, seq, *glance.after, glance.limit + 1)
        lines = [
            LogLine(of, number, at, level, _text(logger), _text(text)) for of, number, at, level, logger, text in found[: glance.limit]
        ]
        is_more = len(found) > glance.limit
    progress = None if marked is None else _progress(marked)
    if progress is not None and progress.attempt != attempt:
        progress = None
    return Look(JobState(state), attempt, progress, lines, is_more, count or 0, dropped or 0)


async def attempts(db: Connection, ids: Sequence[bytes]) -> list[list[FailedAttempt]]:
    """See the port."""
    found: dict[bytes, list[FailedAttempt]] = {}
    if ids:
        for id, *rest in await db.fetch(ATTEMPTS, list(dict.fromkeys(ids))):
            found.setdefault(id, []).append(FailedAttempt(*rest))
    return [found.get(id, []) for id in ids]


async def ahead(db: Connection, ids: Sequence[bytes], limit: int) -> list[int | None]:
    """See the port."""
    found = dict(await db.fetch(AHEAD, list(dict.fromkeys(ids)), limit)) if ids else {}
    return [found.get(id) for id in ids]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
