"""The API for jobs in general: submit many, look at them, see queues, workers and tasks; and the seed's `/job/…` routes.

Answers are written as bytes, with arguments and results as they are stored; the response models are for OpenAPI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from easyjobs import errors
from easyjobs.domain import message
from easyjobs.domain.job import MAX_BULK_BYTES, ErrorInfo, JobQuery, JobRecord
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.domain.seeing import Glance
from easyjobs.http import reach, schemas, views
from easyjobs.http.auth import Caller, Scope
from easyjobs.http.guard import AnyQueryRoute, ProblemRoute, needs
from easyjobs.http.problems import PROBLEM, answer, problem
from easyjobs.http.requests import Disconnected, admit, idempotency_key, preferred_wait, raw_id, read_body, status_of, traceparent
from easyjobs.http.services import Services
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.settings import NOT_YET
from easyjobs.services.results import MAX_WAIT_S

PULL_WAIT_S: Final = 5.0
MAX_PAGE: Final = 500
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024  # of arguments and results; a page ends early rather than hold more
PROBE_S: Final = 2.0  # after that the store counts as not ready
PROBE_AGAIN_S: Final = 1.0  # /readyz is open to all, and each probe is a commit

NDJSON: Final = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"})
NO_BODY: Final = 499  # the client has gone: nobody reads the answer
_STATES: Final = {state.text: state for state in JobState}
_PROBLEMS: Final = {
    401: "A token is needed",
    403: "Not allowed",
    404: "No such job",
    409: "It failed, was cancelled or expired",
    410: "The result was removed",
    413: "Too large",
    415: "The body is compressed",
    503: "Not now",
}

Namespace = Annotated[str | None, Query(description="only of this queue")]
Name = Annotated[str | None, Query(description="only of this task")]
StatusFilter = Annotated[list[schemas.Status] | None, Query(description="only in these states; may be repeated")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="at most so many; fewer where they are large")]
Cursor = Annotated[str | None, Query(pattern=r"^\d{1,19}$", description="`next_cursor` of the page before")]
RequestIdParam = Annotated[str | None, Query(description="the id that the submit answered")]
JobIdParam = Annotated[str | None, Query(description="the same id, by its other name")]


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(views.encode(value), status, headers, "application/json")


def _one_id(request_id: str | None, job_id: str | None) -> bytes:
    text = request_id or job_id
    if not text:
        raise RequestValidationError([{"type": "missing", "loc": ("query", "request_id"), "msg": "Field required", "input": None}])
    if request_id and job_id and request_id != job_id:
        wrong = {
            "type": "value_error",
            "loc": ("query", "job_id"),
            "msg": "names another job than request_id: send one of them",
            "input": job_id,
        }
        raise RequestValidationError([wrong])
    return raw_id(text)


def job_error(id: bytes, state: JobState | None, body: bytes | None) -> errors.JobError:
    """A job's end, other than success with a result, as the error it is."""
    text = id_text(id)
    if state is JobState.CANCELLED:
        return errors.JobCancelled(text)
    if state is JobState.EXPIRED:
        return errors.JobExpired(text)
    if state is JobState.SUCCEEDED:
        return errors.ResultRemoved(text)
    error = views.decode_error(body) if body else ErrorInfo("Unknown", "the error is not known any more")
    return errors.JobFailed(text, error.type, error.message, error.traceback)


def parse_calls(body: bytes, *, is_lines: bool) -> list[message.Call]:
    """The jobs of a bulk request. NDJSON goes by its Content-Type; everything else is one JSON value, whatever it is called.

    Raises: InvalidArguments, PayloadTooLarge.
    """
    return message.parse_lines(body) if is_lines else message.parse(body)


async def read_page(
    services: Services,
    caller: Caller,
    namespace: str | None,
    name: str | None,
    states: Sequence[JobState] | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[JobRecord], str | None]:
    """Return up to `limit` jobs that the caller may know of, newest first, and the next page's cursor.

    Read in growing pieces, so that a page of large results is cut short and not held in memory.
    """
    lanes = reach.lanes_of(caller, services.catalogue, namespace, name)
    if lanes is not None and not lanes:
        return [], None
    before = int(cursor) if cursor else None
    page: list[JobRecord] = []
    size, piece = 0, 20
    while True:
        wanted = min(piece, limit + 1 - len(page))
        query = JobQuery(
            lanes=None if lanes is None else tuple(lanes), states=tuple(states) if states else None, limit=wanted, before_seq=before
        )
        records = await services.store.page(query)
        for record in records:
            if len(page) == limit or size > MAX_PAGE_BYTES:
                return page, str(page[-1].seq)
            page.append(record)
            size += len(record.args) + len(record.result or b"")
        if len(records) < wanted:
            return page, None
        before, piece = records[-1].seq, piece * 4


def api_router(services: Services, path: str) -> APIRouter:
    """Routes below `<path>/api/v1`. `path` is needed for `Location`."""
    router = APIRouter(prefix=f"{path}/api/v1", tags=["easyjobs"], route_class=ProblemRoute)
    reader = needs(services.access, Scope.READ, bound=True)
    submitter = needs(services.access, Scope.SUBMIT, bound=True)
    store, catalogue = services.store, services.catalogue

    @router.post(
        "/jobs",
        status_code=202,
        summary="Submit jobs",
        openapi_extra=_BULK_BODY,
        responses={
            202: schemas.content(schemas.RequestIds, "Queued, and durable"),
            422: _UNFIT,
            **schemas.problems(schemas.SUBMIT_PROBLEMS, *schemas.SUBMIT_PROBLEMS),
            **schemas.problems({409: "Several queues have this task"}, 409),
        },
    )
    async def submit_jobs(request: Request, caller: Caller = Depends(submitter)) -> Response:
        """One job, an array of jobs, or a line for each (NDJSON): all are stored, or none. A job may also be wrapped as `{"job": {…}}`."""
        headers = dict(request.scope["headers"])
        try:
            body = await read_body(headers, request.receive, MAX_BULK_BYTES, "the request")
        except Disconnected:
            return Response(status_code=NO_BODY)
        is_lines = headers.get(b"content-type", b"").partition(b";")[0].strip().lower() in NDJSON
        is_one = not is_lines and body.lstrip()[:1] == b"{"  # one job, not an array of one
        try:
            calls = parse_calls(body, is_lines=is_lines)
            for call in calls:
                if call.queue is not None:
                    reach.check_queue(caller, call.queue)
            key = idempotency_key(headers, caller.principal, "", body)
            submitting = services.intake.submit_calls(calls, key, traceparent(headers), caller.queues)
            del body, calls  # they would stay for as long as the store takes, beside the jobs
            ids = await submitting
        except errors.InvalidArguments as why:
            if is_one:  # it has no index
                raise errors.InvalidArguments(why.task, [{**error, "loc": _without_index(error["loc"])} for error in why.errors]) from why
            raise
        location = {"Location": f"{request.scope.get('root_path', '')}{path}/api/v1/jobs/{ids[0]}"} if len(ids) == 1 else None
        return _json({"request_ids": ids}, 202, location)

    @router.get("/jobs", summary="Jobs, newest first", responses=_ok(schemas.JobPage, 401))
    async def list_jobs(
        namespace: Namespace = None,
        name: Name = None,
        status: StatusFilter = None,
        limit: Limit = 50,
        cursor: Cursor = None,
        caller: Caller = Depends(reader),
    ) -> Response:
        states = [_STATES[word] for word in status] if status else None
        page, after = await read_page(services, caller, namespace, name, states, limit, cursor)
        return _json({"items": [views.job_view(record, catalogue) for record in page], "next_cursor": after})

    @router.get("/jobs/{id}", summary="A job", responses=_ok(schemas.OneJobView, 401, 404), openapi_extra={"parameters": [schemas.PREFER]})
    async def get_job(request: Request, id: str, caller: Caller = Depends(reader)) -> Response:
        """`Prefer: wait=10` waits up to ten seconds (60 at most) for the job to end."""
        raw = raw_id(id)
        await reach.check_job(caller, store, catalogue, raw)
        wait_s = preferred_wait(dict(request.scope["headers"]))
        if wait_s is not None:
            await services.results.wait(raw, wait_s)
            admit(services.access, request.scope, dict(request.scope["headers"]), Scope.READ, changes=False)  # its token may have ended
        [record] = await store.get([raw])
        if record is None:
            raise errors.UnknownJob(id)
        [[children], [look], [failed]] = await asyncio.gather(store.children([raw]), store.look([Glance(raw)]), store.attempts([raw]))
        known = [views.child_view(child, catalogue) for child in children if reach.has_lane(caller, catalogue, child.lane)]
        view = views.job_view(record, catalogue) | {"children": known}
        view |= views.shown(look, failed)
        return _json(view, 200, None if wait_s is None else {"Preference-Applied": f"wait={wait_s}"})

    @router.get("/queues", summary="Queues", responses=_ok(schemas.QueuePage, 401))
    async def list_queues(caller: Caller = Depends(reader)) -> Response:
        found = views.queue_views(catalogue, await store.counts(), services.dispatcher.sessions(), services.control.paused)
        return _json({"items": [queue for queue in found if caller.reaches(queue["namespace"])]})

    @router.get("/workers", summary="Connected workers", responses=_ok(schemas.WorkerPage, 401))
    async def list_workers(caller: Caller = Depends(reader)) -> Response:
        """For a token that is bound to queues: those that have tasks of these queues, and of what they have and run what belongs there."""
        now = services.clock.monotonic()
        return _json({"items": views.worker_views(services.dispatcher.sessions(), catalogue, now, caller.queues)})

    @router.get("/tasks", summary="Tasks that can be called", responses=_ok(schemas.TaskPage, 401))
    async def list_tasks(caller: Caller = Depends(reader)) -> Response:
        return _json({"items": [views.task_view(task) for task in catalogue.visible() if caller.reaches(task.queue)]})

    return router


def seed_router(services: Services, route_class: type[ProblemRoute] = ProblemRoute) -> APIRouter:
    """The `/job/…` routes that users of the first version know."""
    router = APIRouter(prefix="/job", tags=["results"], route_class=route_class)
    reader = needs(services.access, Scope.READ, bound=True)
    puller = needs(services.access, Scope.READ, changes=True, bound=True)
    store, catalogue, results = services.store, services.catalogue, services.results

    @router.get(
        "/pull/result",
        summary="Pull a job's result",
        responses={
            200: {"description": "The result itself: any JSON value"},
            202: schemas.content(schemas.Pending, "Not ended yet: ask again"),
            **schemas.problems(_PROBLEMS, 401, 403, 404, 409, 410),
        },
    )
    async def pull_result(
        request: Request,
        request_id: RequestIdParam = None,
        job_id: JobIdParam = None,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for the job to end")] = PULL_WAIT_S,
        caller: Caller = Depends(puller),
    ) -> Response:
        """Wait for a job and take its result. For ten minutes it can be pulled again (a lost answer loses nothing), then it is removed."""
        raw = _one_id(request_id, job_id)
        await reach.check_job(caller, store, catalogue, raw)
        end = await results.wait(raw, wait)
        admit(services.access, request.scope, dict(request.scope["headers"]), Scope.READ, changes=True)  # its token may have ended
        if end is None:
            return _json({"request_id": id_text(raw), "status": await status_of(store, raw)}, 202, {"Retry-After": "1"})
        if end.state is not JobState.SUCCEEDED or end.body is None:
            raise job_error(*end)
        [record] = await store.pull([raw])
        if record is None or record.result is None:
            raise errors.ResultRemoved(id_text(raw))
        return Response(record.result, media_type="application/json")

    @router.get("/view/result", summary="View a job's result", responses=_ok(schemas.ResultView, 401, 404))
    async def view_result(request_id: RequestIdParam = None, job_id: JobIdParam = None, caller: Caller = Depends(reader)) -> Response:
        """Look at a job and its result. Nothing is removed, and nothing waited for."""
        raw = _one_id(request_id, job_id)
        await reach.check_job(caller, store, catalogue, raw)
        [record] = await store.get([raw])
        if record is None:
            raise errors.UnknownJob(id_text(raw))
        return _json(views.result_view(record, catalogue))

    def list_of(path: str, summary: str, states: frozenset[JobState]) -> None:
        words = " or ".join(sorted(state.text for state in states))

        @router.get(
            path,
            summary=summary,
            responses={
                200: schemas.content(schemas.ResultView, "A page", is_list=True)
                | {"headers": {"Link": {"schema": {"type": "string"}, "description": "the next page, `rel=next`"}}},
                **schemas.problems(_PROBLEMS, 401),
            },
            description=f"Jobs that are {words}, newest first.",
            operation_id=f"easyjobs_view_{path.rsplit('/', 1)[-1]}",
        )
        async def view_many(
            namespace: Namespace = None,
            name: Name = None,
            status: StatusFilter = None,
            limit: Limit = 50,
            cursor: Cursor = None,
            caller: Caller = Depends(reader),
        ) -> Response:
            wanted = {_STATES[word] for word in status} if status else states
            if not wanted <= states:
                wrong = {"type": "enum", "loc": ("query", "status"), "msg": f"Input should be {words} here", "input": status}
                raise RequestValidationError([wrong])
            page, after = await read_page(services, caller, namespace, name, sorted(wanted), limit, cursor)
            kept: list[tuple[str, Any]] = [
                ("namespace", namespace),
                ("name", name),
                *(("status", word) for word in status or ()),
                ("limit", limit),
            ]
            query = urlencode([(key, value) for key, value in [*kept, ("cursor", after)] if value is not None])
            # Relative to the request's own address: right behind any proxy and below any prefix.
            link = None if after is None else {"Link": f'<?{query}>; rel="next"'}
            return _json([views.result_view(record, catalogue) for record in page], 200, link)

    list_of("/view/results", "View results", FINAL)
    list_of("/view/queued", "View queued jobs", frozenset({JobState.QUEUED, JobState.SCHEDULED, JobState.WAITING}))
    list_of("/view/running", "View running jobs", frozenset({JobState.RUNNING}))
    return router


def health_router(services: Services, path: str) -> APIRouter:
    """`healthz` (the process answers) and `readyz` (it takes jobs), both open to all."""
    router = APIRouter(prefix=path, tags=["easyjobs"], route_class=AnyQueryRoute)
    probe = _Probe(services)

    @router.get("/healthz", summary="The process is alive", responses=_ok(schemas.Health))
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @router.get("/readyz", summary="Jobs are taken", responses=_ok(schemas.Health, 503))
    async def readyz() -> Response:
        """The store takes a commit, and the manager is not shutting down. A broker that is down is named, and does not make it unready."""
        await probe.check()
        brokers = {consumer.name: consumer.state for consumer in services.consumers}
        return _json({"status": "ready", "brokers": brokers} if brokers else {"status": "ready"})

    async def head(request: Request) -> Response:
        """What `wget --spider` and some load balancers ask."""
        if request.scope["path"].endswith("/readyz"):
            try:
                await probe.check()
            except errors.StoreError as error:
                return answer(error)
        return Response()

    async def not_yet(request: Request) -> Response:
        name = request.scope["path"].rpartition("/")[2]
        return problem(501, "Not yet", NOT_YET[name])

    for name in NOT_YET:
        router.add_api_route(f"/{name}", not_yet, methods=["GET"], include_in_schema=False)
    for name in ("healthz", "readyz"):
        router.add_route(f"{path}/{name}", head, methods=["HEAD"], include_in_schema=False)  # takes no prefix of the router
    return router


class _Probe:
    """Asks the store at most once a second, whoever asks us how often."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._check: asyncio.Future[None] | None = None
        self._asked_at = 0.0

    async def check(self) -> None:
        if self._services.results.is_closed:
            raise errors.StoreError("the manager is shutting down")
        loop = asyncio.get_running_loop()
        if self._check is None or (self._check.done() and loop.time() >= self._asked_at + PROBE_AGAIN_S):
            self._check = asyncio.ensure_future(self._services.store.check())
            self._check.add_done_callback(self._note)
            self._asked_at = loop.time()
        done, _ = await asyncio.wait([self._check], timeout=max(0.0, self._asked_at + PROBE_S - loop.time()))
        if not done:
            raise errors.StoreError(f"the store has not answered for {PROBE_S:.0f} s")
        self._check.result()

    @staticmethod
    def _note(check: asyncio.Future[None]) -> None:
        if not check.cancelled():
            check.exception()  # seen: whoever asks gets it from `result()`


def _without_index(loc: Sequence[Any]) -> list[Any]:
    return [loc[0], *loc[2:]] if len(loc) > 1 and loc[1] == 0 else list(loc)


def _ok(model: type[BaseModel], *problems: int) -> dict[int | str, dict[str, Any]]:
    return {200: schemas.content(model, "As asked"), **schemas.problems(_PROBLEMS, *problems)}


_JOB_SCHEMA: Final = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "namespace": {"type": "string", "description": "the queue; may be left out where the name is unique"},
        "name": {"type": "string"},
        "args": {"type": "array", "items": {}},
        "kwargs": {"type": "object"},
        "priority": {"type": "integer", "description": "instead of the task's own"},
        "delay": {"type": "number", "description": "seconds before the job may start"},
        "at": {"type": "string", "format": "date-time", "description": "the instant before which the job may not start"},
    },
    "example": {"namespace": "DEFAULT", "name": "basic_job", "args": [1, 2, 3], "kwargs": {}},
}
_UNFIT: Final = {
    "description": "A job does not fit, or its Idempotency-Key was used with another body: nothing is queued",
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/HTTPValidationError"}},
        PROBLEM: {"schema": {"$ref": schemas.REF + schemas.Problem.__name__}},
    },
}
_BULK_BODY: Final = {
    "parameters": [schemas.KEY],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [_JOB_SCHEMA, {"type": "array", "items": _JOB_SCHEMA, "minItems": 1, "maxItems": 10_000}]}
            },
            "application/x-ndjson": {"schema": {"type": "string", "description": "one job a line"}},
        },
    },
}
