"""What the API answers, as OpenAPI shows it. The answers themselves are written as bytes, so that results of any size pass untouched.

FastAPI does not see these models: it would rename models of the user's that are called the same. Their components are called
`EasyJobs…`, and `openapi` adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from easyjobs.http.problems import PROBLEM
from easyjobs.services.results import MAX_WAIT_S

Status: TypeAlias = Literal["scheduled", "waiting", "queued", "running", "succeeded", "failed", "cancelled", "expired"]
"""Where a job is in its life: the texts of `JobState`."""

# Any JSON value. It is given as a schema, for pydantic shows `Any` as nothing at all.
_ANY: dict[str, Any] = {"description": "any JSON value"}
PREFIX: Final = "EasyJobs"
REF: Final = "#/components/schemas/" + PREFIX


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class RequestId(_View):
    """A job was accepted and is durable."""

    request_id: str
    """The job's id; `job_id` everywhere else is the same."""


class RequestIds(_View):
    """Jobs were accepted and are durable, all of them."""

    request_ids: list[str]
    """In the order of the request."""


class ErrorView(_View):
    """A failure, as data."""

    type: str
    message: str
    traceback: str = ""
    kind: str = "exception"


class Ended(_View):
    """The job has ended while the answer waited for it."""

    request_id: str
    status: Status
    result: Any = Field(default=None, json_schema_extra=_ANY)
    """Of a job that succeeded."""
    error: ErrorView | None = None
    """Of any other."""


class Pending(_View):
    """The job has not ended yet."""

    request_id: str
    status: Status


class ProgressView(_View):
    """How far a job is."""

    attempt: int
    done: float
    total: float | None
    """null: not known."""
    message: str
    at: datetime


class AttemptView(_View):
    """An attempt that failed."""

    attempt: int
    failed_at: datetime
    worker: str | None
    error: ErrorView


class LogLineView(_View):
    """A line of a job's log."""

    attempt: int
    number: int
    """From 1 in each attempt."""
    at: datetime
    """By the worker's clock."""
    level: str
    logger: str
    text: str


class LogPage(_View):
    """A page of a job's log, oldest lines first."""

    items: list[LogLineView]
    next_cursor: str | None
    """To be sent as `after` for what follows, now or later."""
    is_more: bool
    """More lines are there already."""
    lines: int
    """How many lines the whole log has."""
    dropped: int
    """How many more there were, for which it had no room."""


class JobView(_View):
    """A job."""

    id: str
    namespace: str
    name: str
    status: Status
    attempt: int
    """How often it was started."""
    failures: int
    """Failed attempts of this round."""
    crashes: int
    """Attempts whose worker went away."""
    priority: int
    worker: str | None
    """Who ran, or runs, the last attempt."""
    created_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    pulled_at: datetime | None
    args: list[Any]
    kwargs: dict[str, Any]
    result: Any = Field(json_schema_extra=_ANY)
    result_removed: bool
    """It succeeded, and the result is gone: pulled, or past its time to live."""
    error: ErrorView | None
    parent: str | None
    """The job that brought it to life."""
    traceparent: str | None
    """The trace in which it was submitted over HTTP (W3C Trace Context)."""


class ReasonView(_View):
    """One reason why a job is where it is. Further fields depend on `code`."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")

    code: str
    """`running`, `ended`, `not_before`, `waits_for_jobs`, `queue_paused`, `manager_paused`, `no_worker`, `slots_busy`, `worker_silent`, `worker_blocked`,
    `worker_holds_lost_attempt`, `behind_others` or `any_moment`."""
    text: str
    """A sentence for a person."""


class Explanation(_View):
    """Why a job does not run."""

    id: str
    namespace: str
    name: str
    status: Status
    reasons: list[ReasonView]
    """The one that must go away first is in front; never empty."""


class ChildView(_View):
    """A job that descends from another one."""

    id: str
    namespace: str
    name: str
    edge: Literal["run_after", "run_before", "on_failure", "call"]
    status: Status


class OneJobView(JobView):
    """A job, with those that descend from it, and what it shows of itself."""

    children: list[ChildView]
    """Up to 1,000, oldest first."""
    progress: ProgressView | None
    log_lines: int
    log_lines_dropped: int
    attempts: list[AttemptView]
    """Those that failed."""


class JobStatus(_View):
    """A job's state."""

    id: str
    status: Status


class QueueStatus(_View):
    """Whether a queue gives out jobs."""

    namespace: str
    paused: bool
    known: bool = True
    """False where no task was ever offered in it; else left out."""


class JobPage(_View):
    """A page of jobs, newest first."""

    items: list[JobView]
    next_cursor: str | None
    """To be sent as `cursor` for the next page; null at the end."""


class QueueView(_View):
    """How many jobs a queue has in each state, and how many workers."""

    namespace: str
    scheduled: int
    waiting: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    tasks: int
    workers: int
    paused: bool
    """Its jobs are given to no worker."""


class QueuePage(_View):
    """All queues."""

    items: list[QueueView]


class WorkerView(_View):
    """A connected worker process."""

    session: str
    name: str
    namespace: str
    slots: int
    running: int
    connected_at: datetime
    silent_s: float
    """How long ago it was last heard of."""
    loop_age_s: float
    """How long its tasks' event loop has not turned; more than a moment means that a task blocks it."""
    tasks: list[str]


class WorkerPage(_View):
    """All connected workers."""

    items: list[WorkerView]


class TaskView(_View):
    """A task that can be called."""

    namespace: str
    name: str
    summary: str
    description: str
    workers: int
    """How many connected workers run it."""
    offered_at: datetime
    arguments: dict[str, Any]
    """JSON Schema of its arguments, as one object."""
    returns: dict[str, Any] | None
    options: dict[str, Any]


class TaskPage(_View):
    """All tasks that can be called."""

    items: list[TaskView]


class ScheduleView(_View):
    """A schedule of a task. Times are UTC; `timezone` is the zone that the expression is read in."""

    id: int
    namespace: str
    name: str
    expression: str
    timezone: str
    args: list[Any]
    kwargs: dict[str, Any]
    catch_up: Literal["one", "all", "skip"]
    """What becomes of ticks that were missed."""
    catch_up_window_s: float
    """What was missed for longer is skipped."""
    overlap: Literal["allow", "skip"]
    """What becomes of a tick while an earlier job is not final."""
    workers: int
    """How many connected workers run the task. With none, jobs wait."""
    paused_at: datetime | None
    next_at: datetime | None
    """The next tick; null while it is paused, and if there are no more."""
    last_tick_at: datetime | None
    last_job_id: str | None


class SchedulePage(_View):
    """All schedules."""

    items: list[ScheduleView]


class ResultView(_View):
    """A job, as the first version of easyjobs showed it."""

    request_id: str
    job_id: str
    namespace: str
    name: str
    status: Status
    results: Any = Field(json_schema_extra=_ANY)
    error: ErrorView | None
    pulled_at: datetime | None


class Problem(_View):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Health(_View):
    """How the manager is."""

    status: str
    brokers: dict[str, Literal["up", "down"]] | None = None
    """By name; left out where there are none."""


class MessageView(_View):
    """A message of a broker that could not become a job."""

    id: int
    broker: str
    namespace: str
    """The queue it came from."""
    message_id: str | None
    """The broker's, the same in each redelivery."""
    reason: Literal["bad_json", "bad_format", "too_large", "unknown_task", "invalid_arguments", "key_reused", "refused"]
    detail: str
    body: str
    """The first 64 KiB; bytes that are no UTF-8 are replaced here, and kept as they are for a replay."""
    size: int
    """Bytes of the whole message."""
    at: datetime
    waits_until: datetime | None
    """It becomes a job by itself if its task is offered until then."""


class MessagePage(_View):
    """Messages, newest first."""

    items: list[MessageView]
    next_cursor: str | None


class NewToken(_View):
    """A token that was made."""

    id: str
    token: str
    """To be sent as `Authorization: Bearer …`."""


class TokenView(_View):
    """A token as it is remembered."""

    id: str
    name: str
    scopes: list[str]
    """Empty for one that was made elsewhere and taken back here."""
    queues: list[str] | None
    """Those that it reaches. Null: all of them, or it was made elsewhere."""
    expires_at: datetime | None
    created_at: datetime
    revoked_at: datetime | None


class TokenPage(_View):
    """Tokens, newest first."""

    items: list[TokenView]


_MODELS: Final[tuple[type[BaseModel], ...]] = (
    RequestId, RequestIds, Ended, Pending, ErrorView, ProgressView, AttemptView, LogLineView, LogPage, JobView, ReasonView, Explanation, JobPage, QueueView, QueuePage, WorkerView, WorkerPage, TaskView, TaskPage, ResultView,
    ScheduleView, SchedulePage, Problem, Health, ChildView, OneJobView, JobStatus, QueueStatus, MessageView,
    MessagePage, NewToken, TokenView, TokenPage,
)  # fmt: skip


@cache
def components() -> dict[str, Any]:
    """The models as OpenAPI components, by name."""
    _, schema = models_json_schema([(model, "serialization") for model in _MODELS], ref_template=REF + "{model}")
    return {PREFIX + name: definition for name, definition in schema["$defs"].items()}


def parameter(name: str, description: str) -> dict[str, Any]:
    """An OpenAPI parameter: a header that may be left out."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


PREFER: Final = parameter(
    "Prefer",
    f"`wait=10` waits for the job to end, for ten seconds ({MAX_WAIT_S:.0f} at most); `Preference-Applied` in the answer says for how long. "
    "What else stands here is ignored, as RFC 7240 has it.",
)
KEY: Final = parameter(
    "Idempotency-Key",
    "1 to 255 printable characters. Within 24 hours a repeat of the request makes no second job, and is answered with the first one's id. "
    "With another body the key is refused. Bytes are compared: the same JSON with its members in another order, or with other spaces, is another body.",
)


SUBMIT_PROBLEMS: Final = {
    401: "A token is needed",
    403: "The token does not allow this, or a page of another site sends it",
    404: "No such task: it is not offered any more",
    408: "The body did not come in time",
    413: "Too large",
    415: "The body is compressed",
    503: "The store cannot take it now, or the manager shuts down: try again after `Retry-After`, with the same Idempotency-Key",
    507: "No room in the store: nothing is queued",
}
"""What every submit may be answered with, other than 422."""


def problems(texts: Mapping[int, str], *codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for the problems that a route may answer with, each with its sentence."""
    return {code: content(Problem, texts[code], media_type=PROBLEM) for code in codes}


def unfit(description: str) -> dict[str, Any]:
    """The OpenAPI response 422 in FastAPI's format."""
    return {"description": description, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/HTTPValidationError"}}}}


def content(model: type[BaseModel], description: str, *, is_list: bool = False, media_type: str = "application/json") -> dict[str, Any]:
    """An OpenAPI response with one of the models as its body."""
    schema: dict[str, Any] = {"$ref": REF + model.__name__}
    if is_list:
        schema = {"type": "array", "items": schema}
    return {"description": description, "content": {media_type: {"schema": schema}}}
