"""What the manager's answers to a submit or a watch stand for: an error to raise, or a result."""

from __future__ import annotations

from typing import Final

import msgspec

from easyjobs.domain.job import ErrorInfo
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import (
    AmbiguousTask,
    EasyJobsError,
    InvalidArguments,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    KeyReused,
    Orphaned,
    PayloadTooLarge,
    ResultRemoved,
    StoreBusy,
    StoreError,
    SubmitError,
    UnknownJob,
    UnknownTask,
)
from easyjobs.protocol.messages import SubmitProblem, WatchedResult

GONE: Final = -1  # no such job
REMOVED: Final = -2  # succeeded, the result was removed

_KINDS: Final[dict[int, type[EasyJobsError]]] = {
    404: UnknownTask,
    409: AmbiguousTask,
    410: Orphaned,
    413: PayloadTooLarge,
    422: KeyReused,
    503: StoreError,
    507: StoreError,
}


def error_of(problem: SubmitProblem) -> EasyJobsError:
    """Return the error that a refused submit stands for; its text is the manager's sentence."""
    if problem.status == 422 and problem.errors:
        return InvalidArguments(problem.detail.split(":", 1)[0], msgspec.json.decode(problem.errors))
    if problem.is_busy:
        return StoreBusy(problem.detail)
    kind = _KINDS.get(problem.status, SubmitError)
    error = kind.__new__(kind)  # its facts did not cross the wire, the sentence made of them did
    Exception.__init__(error, problem.detail)
    return error


def failure_of(end: WatchedResult, job_id: str) -> JobError | UnknownJob | None:
    """Return the error that a job's end stands for, or None if it succeeded and `end.body` is its result."""
    if end.state == JobState.SUCCEEDED:
        return None
    if end.state == JobState.FAILED:
        error = msgspec.json.decode(end.body, type=ErrorInfo) if end.body else ErrorInfo(type="Unknown", message="no error was recorded")
        return JobFailed(job_id, error.type, error.message, error.traceback)
    if end.state == JobState.CANCELLED:
        return JobCancelled(job_id)
    if end.state == JobState.EXPIRED:
        return JobExpired(job_id)
    if end.state == REMOVED:
        return ResultRemoved(job_id)
    return UnknownJob(job_id)
