"""Every error that easyjobs raises on purpose.

EasyJobsError
├── ConfigurationError        the program is wrong: change it, then start again
│   ├── MissingExtra          an optional dependency is not installed
│   ├── RegistrationError     a task cannot be registered as written
│   ├── StoreLocked           another manager owns the file
│   └── SchemaTooNew          the file was written by a newer easyjobs
├── SubmitError               this call was refused, nothing was queued
│   ├── InvalidArguments      422: the arguments do not fit the signature
│   ├── UnknownTask           404: no such task
│   ├── AmbiguousTask         409: several queues have it
│   ├── KeyReused             422: the Idempotency-Key belongs to another body
│   ├── PayloadTooLarge       413
│   └── Orphaned              410: the job that calls belongs to another attempt by now
├── StoreError                the store could not do it, nothing of the batch was stored
│   ├── StoreFull             507: no room
│   ├── StoreBusy             503: too many submits wait for the disk; try again in a moment
│   │   └── StoreHeld         503: another program holds the database's lock
│   └── StoreLost             the database file is gone or broken: this manager must stop
├── BrokerError               a message broker could not do it
│   ├── BrokerDown            it cannot be reached (now), or the connection was lost
│   └── BrokerRefused         it was reached, and refuses us: credentials, a queue that is declared otherwise
│       └── QueueGone         a queue that only its reader can make is not there any more
├── ConnectionFailed          the manager cannot be reached (now)
│   └── AccessRefused         it was reached, and refused us: wrong secret, wrong version
├── ProtocolError             the peer sent what no peer of ours sends
├── JobError                  a job did not give a result
│   ├── JobFailed, JobCancelled, JobExpired, ResultRemoved
├── UnknownJob                404: no job has this id
├── UnknownSchedule           404: no schedule has this id
├── UnknownMessage            404: no message of the quarantine has this id
├── NotReplayed               409: a message of the quarantine cannot become a job now
└── Signal                    raised by a task, to say how its attempt ends
    ├── Retry                 failed: try again, after this time
    ├── Snooze                not failed: run again later
    └── GiveUp                failed for good
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import timedelta

LONGEST_S = 10 * 366 * 86400  # ten years: no delay is longer


class EasyJobsError(Exception):
    """Base of all errors that easyjobs raises on purpose."""


class ConfigurationError(EasyJobsError):
    """The program or its settings are wrong; the message says what to change."""


class MissingExtra(ConfigurationError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra that is not installed: pip install 'easyjobs[{extra}]'")
        self.feature, self.extra = feature, extra


class RegistrationError(ConfigurationError):
    """A task cannot be registered as it is written."""


class StoreLocked(ConfigurationError):
    """Another process has this database file open as its manager."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} is in use by another manager process. One SQLite file has one manager: stop the other one, give this one "
            "its own DB_PATH, or start uvicorn without --workers (more work is done by more EasyJobsWorker processes, not by more managers)"
        )
        self.path = path


class SchemaTooNew(ConfigurationError):
    """The database was written by a newer easyjobs."""

    def __init__(self, store: str, found: int, known: int) -> None:
        super().__init__(f"{store} has schema version {found}, this easyjobs knows up to {known}: upgrade easyjobs, or open another file")
        self.store, self.found, self.known = store, found, known


class SubmitError(EasyJobsError):
    """A call was refused before anything was queued."""


class InvalidArguments(SubmitError):
    """The arguments do not fit the task's signature.

    `errors` is a list in FastAPI's format: `{"type", "loc", "msg", "input"}` each, `loc` starting with `"body"` or `"query"`.
    """

    def __init__(self, task: str, errors: Sequence[dict[str, Any]]) -> None:
        first = errors[0] if errors else {"loc": ("body",), "msg": "invalid"}
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{task}: {where}: {first['msg']}{more}")
        self.task, self.errors = task, list(errors)


class UnknownTask(SubmitError):
    """No task of this name is offered. `near` holds up to three names that look like it."""

    def __init__(self, queue: str | None, name: str, near: Sequence[str] = ()) -> None:
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        super().__init__(f"no task {name!r} in {f'queue {queue!r}' if queue else 'any queue'}{hint}")
        self.queue, self.name, self.near = queue, name, tuple(near)


class AmbiguousTask(SubmitError):
    """Several queues have a task of this name, and none of them is DEFAULT."""

    def __init__(self, name: str, queues: Sequence[str]) -> None:
        super().__init__(f"task {name!r} is in the queues {', '.join(sorted(queues))}: name one, as in <queue>/task/{name}")
        self.name, self.queues = name, tuple(sorted(queues))


class KeyReused(SubmitError):
    """An Idempotency-Key was sent again with another body."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Idempotency-Key {key!r} was used with another body in the last 24 h: send the same body, or a new key")
        self.key = key


class PayloadTooLarge(SubmitError):
    """Something is over its size limit."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size:,} bytes, the limit is {limit:,}: store large data elsewhere and pass a reference")
        self.what, self.size, self.limit = what, size, limit


class Orphaned(SubmitError):
    """A job called a task, but its attempt no longer owns the job: it was lost, and another attempt may run by now."""

    def __init__(self) -> None:
        super().__init__("this attempt no longer owns its job, so it calls no others: the job runs, or has run, elsewhere")


class StoreError(EasyJobsError):
    """Base for the store port. Adapters raise these and never a driver's own error."""


class StoreFull(StoreError):
    """The disk or the database has no room: nothing of the batch was stored; try again when there is."""

    def __init__(self, store: str) -> None:
        super().__init__(f"{store}: no room left; nothing was stored: free space, then submit again")
        self.store = store


class StoreBusy(StoreError):
    """The store cannot take it now, whoever asks: nothing was stored. The same call may do in a moment."""

    def __init__(
        self, why: str = "more jobs are submitted than the store can take now; nothing was stored: submit again in a moment"
    ) -> None:
        super().__init__(why)


class StoreHeld(StoreBusy):
    """Another program holds the database's lock: nothing was stored."""

    def __init__(self, store: str) -> None:
        super().__init__(f"{store} is locked by another program; nothing was stored: end its transaction, or try again in a moment")
        self.store = store


class StoreLost(StoreError):
    """The database file was removed, replaced or failed to sync: what is written to it now would be lost, so nothing is acknowledged."""

    def __init__(self, store: str, why: str) -> None:
        super().__init__(f"{store}: {why}; nothing is acknowledged any more: restore the file, then restart the manager")
        self.store, self.why = store, why


class BrokerError(EasyJobsError):
    """Base for the broker port and for producers. Adapters raise these and never a driver's own error.

    `failed`: the numbers of the messages that were not confirmed, counted from 0, where the broker tells which; empty where it does not.
    """

    def __init__(self, message: str, *, failed: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.failed = tuple(failed)


class BrokerDown(BrokerError):
    """The broker cannot be reached, or the connection was lost: what was not confirmed may or may not be there."""


class BrokerRefused(BrokerError):
    """The broker was reached and refuses: trying again helps only after something was changed there, or here."""


class QueueGone(BrokerRefused):
    """A queue that only its reader can make is not there any more, and the reader with it: nobody waits for what is sent there."""


class ConnectionFailed(EasyJobsError):
    """The manager cannot be reached."""


class AccessRefused(ConnectionFailed):
    """The manager refused the connection for good: trying again will not help."""


class ProtocolError(EasyJobsError):
    """The peer sent a frame that cannot be read or does not belong here. `code` is the WebSocket close code."""

    def __init__(self, message: str, code: int = 4400) -> None:
        super().__init__(message)
        self.code = code


class UnknownJob(EasyJobsError):
    """No job has this id, or it is past its retention."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id}")
        self.job_id = job_id


class UnknownSchedule(EasyJobsError):
    """No schedule has this id, or the code of its task has it no more."""

    def __init__(self, id: int) -> None:
        super().__init__(f"no schedule {id}: GET /jobs/api/v1/schedules lists those that there are")
        self.id = id


class UnknownMessage(EasyJobsError):
    """No message of the quarantine has this id."""

    def __init__(self, id: int) -> None:
        super().__init__(f"no message {id} in quarantine: GET /jobs/api/v1/quarantine lists those that there are")
        self.id = id


class NotReplayed(EasyJobsError):
    """A message of the quarantine still cannot become a job; it stays there. `reason` is as in the list."""

    def __init__(self, id: int, reason: str, why: str) -> None:
        super().__init__(f"message {id} stays in quarantine: {why}")
        self.id, self.reason = id, reason


class JobError(EasyJobsError):
    """A job ended, or stands, without a result to give."""

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """The job failed for good. The remote exception is described, never rebuilt.

    `type` is the exception's qualified name, `message` its text, `remote_traceback` the formatted traceback or "".
    """

    def __init__(self, job_id: str, type: str, message: str, remote_traceback: str = "", attempt: int = 0) -> None:
        super().__init__(job_id, f"job {job_id} failed: {type}: {message}")
        self.type, self.message, self.remote_traceback, self.attempt = type, message, remote_traceback, attempt


class JobCancelled(JobError):
    """The job was cancelled."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, f"job {job_id} was cancelled")


class JobExpired(JobError):
    """The job was not started in time."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, f"job {job_id} expired before it was started")


class ResultRemoved(JobError):
    """The job succeeded, and its result was pulled or has passed its time to live."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, f"the result of job {job_id} was removed (pulled, or past its time to live)")


class Signal(EasyJobsError):
    """Raised inside a task, to say how this attempt ends."""


class Retry(Signal):
    """This attempt failed; try again after `in_` seconds, as long as the task's retry policy has retries left.

    Args:
        in_: seconds, or a timedelta; None: as the policy's backoff says.
        reason: what the attempt's error says.

    Raises:
        ValueError: `in_` is negative, or longer than ten years.
    """

    def __init__(self, reason: str = "the task asked for a retry", *, in_: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.in_s = None if in_ is None else seconds(in_, "in_")


class Snooze(Signal):
    """This attempt has not failed: run the job again after `in_` seconds (or a timedelta). It uses up no retry.

    Raises:
        ValueError: `in_` is negative, or longer than ten years.
    """

    def __init__(self, in_: float | timedelta) -> None:
        super().__init__("the task asked to be run later")
        self.in_s = seconds(in_, "in_")


class GiveUp(Signal):
    """This attempt failed, and no other one will do better: the job fails, whatever its retry policy."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


def seconds(duration: float | timedelta, what: str) -> float:
    """Return a duration in seconds. Raises: ValueError, naming `what`, if it is negative or longer than ten years."""
    value = float(duration) if isinstance(duration, int | float) else duration.total_seconds()
    if not 0 <= value <= LONGEST_S:
        raise ValueError(f"{what}={duration!r}: seconds, from 0 to ten years")
    return value
