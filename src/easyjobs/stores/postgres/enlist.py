"""What is said to the server, and what it answers, when a job becomes part of somebody else's transaction: texts in, texts out, no driver.

`LOOK` and `TASKS` read the catalogue; `SUBMIT` calls the function of the schema (migrations/0004_submit.sql), which stores the job with all
that belongs to it. Values stand where `{0}`, `{1}` do, however the driver writes that.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from easyjobs.domain.job import NewJob, Submission, Submitted, SubmitVerdict, TaskRow
from easyjobs.errors import ConfigurationError, EasyJobsError
from easyjobs.stores.postgres.hints import news_of_nobody
from easyjobs.stores.postgres.writer import lock_number

# The time, the transaction's start, when a manager was last seen, and the task, if there is one. A transaction that is repeatable shows
# the catalogue as it was at its start.
LOOK: Final = """select cast(extract(epoch from clock_timestamp()) * 1000000 as bigint), cast(extract(epoch from transaction_timestamp()) as text),
        (select max(seen_at) from easyjobs.managers), t.queue, t.name, t.signature, t.options, t.lane, t.offered_at
    from (select 1) one left join easyjobs.tasks t on t.queue = {0} and t.name = {1}"""
TASKS: Final = "select queue, name, signature, options, lane, offered_at from easyjobs.tasks order by lane"
SUBMIT: Final = "select easyjobs.submit({0})"

NO_TABLES: Final = frozenset({"3F000", "42P01", "42883", "42703"})  # no such schema, table, function, column
NO_RIGHT: Final = "42501"


class Looked(msgspec.Struct, frozen=True):
    """The answer to LOOK. `began` names the transaction. `task` None: there is none of this name."""

    now: int
    began: str
    manager_seen_at: int | None
    task: TaskRow | None


def looked(row: Sequence[Any]) -> Looked:
    """Read the one row of LOOK."""
    now, began, seen_at, queue, *rest = row
    return Looked(now, began, seen_at, None if queue is None else task_row((queue, *rest)))


def task_row(row: Sequence[Any]) -> TaskRow:
    """Read a row of TASKS."""
    queue, name, signature, options, lane, offered_at = row
    return TaskRow(queue, name, bytes(signature), bytes(options), lane, offered_at)


def request(submission: Submission, began: str, lanes: set[int], *, is_timed: bool) -> str:
    """The value of SUBMIT, for a submission of one job that has no parent."""
    [job], key = submission.jobs, submission.key
    asked: dict[str, Any] = {
        "began": began,
        "locks": sorted(_locks(job)),
        "job": _job(job),
        "key": None
        if key is None
        else {"principal": key.principal, "scope": key.scope, "key": key.key.replace("\0", "\ufffd"), "body": _text(key.body)},
        "hint": news_of_nobody(lanes, is_more=is_timed),
    }
    return msgspec.json.encode(asked).decode()


def answer(text: str) -> Submitted:
    """Read the answer to SUBMIT. Raises: ConfigurationError, if there was no transaction."""
    found = msgspec.json.decode(text, type=_Answer)
    if found.verdict < 0:
        raise ConfigurationError(
            "submit_in needs an open transaction, and this connection commits each statement by itself: begin one, as in "
            "`async with connection.transaction():`, or use submit()"
        )
    return Submitted(SubmitVerdict(found.verdict), (base64.b64decode(found.id),) if found.id else ())


def translate(error: Exception) -> EasyJobsError | None:
    """Our error for a driver's that says that the tables are missing, or must not be used; None: it is for the owner of the transaction."""
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state in NO_TABLES:
        return ConfigurationError(
            f"this database has no tables of easyjobs, or those of an earlier version ({_first_line(original)}): run `easyjobs db migrate`, or "
            "start a manager on it, and check that the connection leads to the managers' database"
        )
    if state == NO_RIGHT:
        return ConfigurationError(
            f"this database user may not submit jobs ({_first_line(original)}): grant usage on schema easyjobs, select on easyjobs.tasks and "
            "easyjobs.managers, and execute on function easyjobs.submit(text) to it"
        )
    return None


class _Answer(msgspec.Struct):
    verdict: int
    id: str = ""


def _locks(job: NewJob) -> set[int]:
    own = set() if job.unique is None else {lock_number(b"unique", job.unique.key)}
    return own.union(*(_locks(before) for before in job.befores))


def _job(job: NewJob) -> dict[str, Any]:
    spec = job.spec
    asked: dict[str, Any] = {
        "id": _text(job.id),
        "lane": spec.lane,
        "max_retries": spec.max_retries,
        "max_crashes": spec.max_crashes,
        "priority": spec.priority,
        "run_at": spec.run_at,
        "timeout_us": spec.timeout_us,
        "expires_us": spec.expires_us,
        "ttl_us": spec.ttl_us,
        "args": _text(job.args),
        "befores": [_job(before) for before in job.befores],
    }
    if job.parent is not None:
        asked["edge"] = job.parent.edge
    if job.unique is not None:
        asked["unique_key"] = _text(job.unique.key)
        asked["unique_states"] = sum(1 << state for state in job.unique.states)
        asked["unique_us"] = job.unique.period_us
    return asked


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0]
