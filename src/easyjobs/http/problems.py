"""Which HTTP answer each error gets: one table. 422 speaks FastAPI's format, all else problem details (RFC 9457)."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import Response

from easyjobs import errors
from easyjobs.services.intake import ShuttingDown

PROBLEM: Final = "application/problem+json"
NOSNIFF: Final = {
    "X-Content-Type-Options": "nosniff"
}  # what workers and submitters say is never a page or a script, whatever it looks like
_encode = msgspec.json.Encoder(enc_hook=str).encode


class Unwelcome(errors.EasyJobsError):
    """A request that HTTP itself has a status for (401, 403, 415 …). `title` is short, the message a sentence with the way out."""

    def __init__(self, status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.title, self.headers = status, title, headers or {}


# The first class that fits, in this order. Seconds: for `Retry-After`, where trying again may help.
TABLE: Final[tuple[tuple[type[errors.EasyJobsError], int, str, int | None], ...]] = (
    (errors.UnknownTask, 404, "No such task", None),
    (errors.AmbiguousTask, 409, "Several queues have this task", None),
    (errors.KeyReused, 422, "Idempotency-Key was used with another body", None),
    (errors.PayloadTooLarge, 413, "Too large", None),
    (errors.StoreFull, 507, "No room in the store", 10),
    (errors.StoreHeld, 503, "Another program holds the database", 1),
    (errors.StoreBusy, 503, "Too many submits wait", 1),
    (errors.StoreLost, 503, "The store is lost", 30),
    (errors.StoreError, 503, "The store cannot do this now", 1),
    (ShuttingDown, 503, "Shutting down", 1),
    (errors.UnknownJob, 404, "No such job", None),
    (errors.UnknownSchedule, 404, "No such schedule", None),
    (errors.UnknownMessage, 404, "No such message", None),
    (errors.NotReplayed, 409, "It cannot become a job", None),
    (errors.ResultRemoved, 410, "The result was removed", None),
    (errors.JobFailed, 409, "The job failed", None),
    (errors.JobCancelled, 409, "The job was cancelled", None),
    (errors.JobExpired, 409, "The job expired", None),
    (errors.SubmitError, 422, "Refused", None),
)


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem details document; what is None is left out."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    content = _encode({name: value for name, value in body.items() if value is not None})
    return Response(content, status, {**(headers or {}), **NOSNIFF}, PROBLEM)


def answer(error: errors.EasyJobsError) -> Response:
    """The answer that an error gets. What the table does not know is a fault of ours, and is raised again."""
    if isinstance(error, errors.InvalidArguments):
        return Response(_encode({"detail": error.errors}), 422, NOSNIFF, "application/json")
    if isinstance(error, Unwelcome):
        return problem(error.status, error.title, str(error), error.headers)
    for kind, status, title, retry_s in TABLE:
        if isinstance(error, kind):
            headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
            return problem(status, title, str(error), headers, **_facts(error))
    raise error


def _facts(error: errors.EasyJobsError) -> dict[str, Any]:
    if isinstance(error, errors.UnknownTask):
        return {"near": list(error.near)}
    if isinstance(error, errors.AmbiguousTask):
        return {"namespaces": list(error.queues)}
    if isinstance(error, errors.JobFailed):
        said = {"type": error.type, "message": error.message, "traceback": error.remote_traceback}
        return {"request_id": error.job_id, "job_id": error.job_id, "job_status": "failed", "error": said}
    if isinstance(error, errors.JobError):
        words = {errors.JobCancelled: "cancelled", errors.JobExpired: "expired", errors.ResultRemoved: "succeeded"}
        return {"request_id": error.job_id, "job_id": error.job_id, "job_status": words.get(type(error))}
    return {}
