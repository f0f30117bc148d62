"""What a job shows of itself over HTTP: its events as they come (SSE), its log, and why it does not run.

A stream begins with the present state, the progress and the stored lines, and goes on as things happen, until the job has ended, the manager
closes, or the token that opened it holds no longer. The `id` of an event is the place of the last line in the log: a browser that reconnects sends it as `Last-Event-ID`, and gets the
lines after it. After the final state its `id` ends in `.end`; who comes back with that is answered 204, and a browser stops to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.responses import StreamingResponse

from easyjobs.domain.explain import Awaited, Facts, WorkerFacts, explain
from easyjobs.domain.job import Child, JobRecord
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.seeing import Glance, LogLine, News, Place, Progress, place_of, place_text
from easyjobs.errors import StoreError, UnknownJob
from easyjobs.http import reach, schemas, views
from easyjobs.http.auth import Caller, Scope
from easyjobs.http.guard import ProblemRoute, needs
from easyjobs.http.problems import Unwelcome
from easyjobs.http.requests import admit, raw_id
from easyjobs.http.services import Services
from easyjobs.services.dispatcher import WEDGED_S

log = logging.getLogger("easyjobs.http")

MAX_LINES: Final = 1000  # of one page
END: Final = ".end"
RETRY_MS: Final = 1000
TOKEN_S: Final = 1.0  # between two looks at whether a stream's token still holds; another manager's list is a second or two old besides
_PROBLEMS: Final = {401: "A token is needed", 404: "No such job"}
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx hands on each event at once


def seeing_router(services: Services, path: str) -> APIRouter:
    """Routes below `<path>/api/v1/jobs/{id}`."""
    router = APIRouter(prefix=f"{path}/api/v1/jobs/{{id}}", tags=["easyjobs"], route_class=ProblemRoute)
    reader = needs(services.access, Scope.READ, bound=True)
    store, catalogue = services.store, services.catalogue

    @router.get(
        "/events",
        summary="What happens to a job, as it happens",
        response_class=StreamingResponse,
        responses={
            200: {"description": "Server-sent events: `state`, `progress`, `log`", "content": {"text/event-stream": _EVENTS}},
            204: {"description": "The job has ended, and the sender of this `Last-Event-ID` has seen that"},
            **schemas.problems(_PROBLEMS, 401, 404),
        },
    )
    async def events(
        request: Request,
        id: str,
        last_event_id: Annotated[str | None, Header(description="`id` of the last event that was seen")] = None,
        caller: Caller = Depends(reader),
    ) -> Response:
        """A stream of server-sent events. It ends with the job, with a final `state`; reconnecting with `Last-Event-ID` loses and repeats no line.

        It ends without one when its token was taken back or has expired.
        """
        raw, place = raw_id(id), _place(last_event_id or "", "header", "last-event-id")
        await reach.check_job(caller, store, catalogue, raw)
        [look] = await store.look([Glance(raw)])
        if look is None:
            raise UnknownJob(id)
        if look.state.is_final and last_event_id is not None and last_event_id.endswith(END):
            return Response(status_code=204)
        headers = dict(request.scope["headers"])

        def check() -> None:
            admit(services.access, request.scope, headers, Scope.READ, changes=False)

        return StreamingResponse(_stream(services, raw, place, check), media_type="text/event-stream", headers=_HEADERS)

    @router.get(
        "/logs",
        summary="A job's log",
        responses={200: schemas.content(schemas.LogPage, "A page"), **schemas.problems(_PROBLEMS, 401, 404)},
    )
    async def logs(
        id: str,
        after: Annotated[str, Query(description="`next_cursor` of the page before")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_LINES, description="at most so many lines")] = 200,
        caller: Caller = Depends(reader),
    ) -> Response:
        """The lines that the job's attempts logged, oldest first. `after` the last one gives what has come since."""
        raw, place = raw_id(id), _place(after, "query", "after")
        await reach.check_job(caller, store, catalogue, raw)
        [look] = await store.look([Glance(raw, place, limit)])
        if look is None:
            raise UnknownJob(id)
        last = place_text((look.lines[-1].attempt, look.lines[-1].number)) if look.lines else after or None
        page = {"items": [_line(line) for line in look.lines], "next_cursor": last, "is_more": look.is_more}
        return Response(views.encode(page | {"lines": look.count, "dropped": look.dropped}), media_type="application/json")

    @router.get(
        "/explain",
        summary="Why a job does not run",
        responses={200: schemas.content(schemas.Explanation, "The reasons"), **schemas.problems(_PROBLEMS, 401, 404)},
    )
    async def explain_job(id: str, caller: Caller = Depends(reader)) -> Response:
        """Not before a time, no worker, all slots busy, behind other jobs, paused …; also for a job that runs or has ended."""
        raw = raw_id(id)
        await reach.check_job(caller, store, catalogue, raw)
        [[record], [ahead]] = await asyncio.gather(store.get([raw]), store.ahead([raw]))
        if record is None:
            raise UnknownJob(id)
        [children] = await store.children([raw]) if record.state is JobState.WAITING else [[]]
        awaited = [child for child in children if child.edge.startswith("run_before:") and reach.has_lane(caller, catalogue, child.lane)]
        facts = facts_of(services, record, ahead, [_awaited(services, child) for child in awaited], caller.queues)
        return Response(views.encode(views.explanation(record, catalogue, explain(facts))), media_type="application/json")

    return router


def _awaited(services: Services, child: Child) -> Awaited:
    view = views.child_view(child, services.catalogue)
    return Awaited(id=view["id"], task=f"{view['namespace']}/{view['name']}", state=child.state)


def facts_of(
    services: Services, record: JobRecord, ahead: int | None, waits_for: Sequence[Awaited] = (), queues: Collection[str] | None = None
) -> Facts:
    """What the manager knows of a job and of those that could run it. `queues`: workers of others are not counted; None: all are."""
    task, dispatcher = services.catalogue.by_lane(record.lane), services.dispatcher
    sessions, monotonic = dispatcher.sessions(), services.clock.monotonic()
    queue = task.queue if task is not None else ""
    return Facts(
        state=record.state,
        now=services.clock.now(),
        queue=queue,
        task=task.name if task is not None else "",
        attempt=record.attempt,
        failures=record.failures,
        run_at=record.run_at,
        worker=record.worker,
        is_worker_here=any(record.seq in session.running or record.seq in session.overdue for session in sessions),
        workers=[
            WorkerFacts(
                name=session.name,
                slots=session.slots,
                running=len(session.running),
                room=session.room,
                silent_s=max(0.0, monotonic - session.beat_at),
                loop_age_s=session.loop_age_s,
                holds_lost_attempt=any(job.lane == record.lane for job in session.overdue.values()),
            )
            for session in sessions
            if record.lane in session.lanes
        ],
        connected=sum(views.lanes_shown(session, services.catalogue, queues) is not None for session in sessions),
        offered_at=task.offered_at if task is not None and not task.is_placeholder else None,
        ahead=ahead,
        waits_for=waits_for,
        is_queue_paused=queue in services.control.paused,
        is_manager_paused=dispatcher.is_paused,
        silence_s=dispatcher.silence_s,
        wedged_s=WEDGED_S,
    )


async def _stream(services: Services, id: bytes, after: Place, check: Callable[[], None]) -> AsyncIterator[bytes]:
    """The text of a stream. `check` raises Unwelcome when whoever opened it would not be let in any more."""
    place = after
    yield b"retry: %d\n\n" % RETRY_MS
    with contextlib.suppress(UnknownJob):  # deleted a moment ago
        try:
            follow = services.events.follow(id, after)
            async with contextlib.aclosing(follow) as stream, contextlib.aclosing(_while_welcome(stream, check)) as welcome:
                async for news in welcome:
                    text: list[bytes] = []
                    for one in news:
                        if isinstance(one, LogLine):
                            place = (one.attempt, one.number)
                        text.append(_event(one, place))
                    yield b"".join(text) or b": nothing new\n\n"
        except StoreError as why:
            log.warning("a stream of events ends early: %s", why)
        except Unwelcome:
            yield b": the token of this stream holds no longer\n\n"


async def _while_welcome(stream: AsyncIterator[list[News]], check: Callable[[], None]) -> AsyncGenerator[list[News], None]:
    """What comes, each time after a look at the token; while nothing comes it is looked at every `TOKEN_S`. Raises: Unwelcome."""
    while True:
        coming = asyncio.ensure_future(anext(stream, None))
        try:
            while not coming.done():
                await asyncio.wait([coming], timeout=TOKEN_S)
                if not coming.done():
                    check()
            news = coming.result()
            check()
        finally:
            if not coming.done():  # nobody waits for it any more, and the stream can be closed only when it has ended
                coming.cancel()
                await asyncio.wait([coming])
        if news is None:
            return
        yield news


def _event(news: News, place: Place) -> bytes:
    """One event. JSON has no line ends, so that its text is one `data` line."""
    mark = place_text(place)
    if isinstance(news, LogLine):
        name, data = "log", _line(news)
    elif isinstance(news, Progress):
        name, data = "progress", views.progress_view(news)
    else:
        name, data = "state", {"status": news.state, "attempt": news.attempt}
        mark += END if news.is_final else ""
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), mark.encode(), views.encode(data))


def _line(line: LogLine) -> dict[str, Any]:
    return {
        "attempt": line.attempt,
        "number": line.number,
        "at": views.instant(line.at),
        "level": logging.getLevelName(line.level),
        "logger": line.logger,
        "text": line.text,
    }


def _place(text: str, where: str, name: str) -> Place:
    place = place_of(text) if text else (0, 0)
    if place is None:
        wrong = {
            "type": "value_error",
            "loc": (where, name),
            "msg": "is no place in a log: send back what you were given",
            "input": text[:80],
        }
        raise RequestValidationError([wrong])
    return place


_EVENTS: Final = {
    "schema": {"type": "string"},
    "example": 'event: state\nid: 0.0\ndata: {"status":"running","attempt":1}\n\n'
    'event: progress\nid: 0.0\ndata: {"attempt":1,"done":3,"total":10,"message":"","at":"2026-01-01T00:00:00.000000Z"}\n\n'
    'event: log\nid: 1.1\ndata: {"attempt":1,"number":1,"at":"2026-01-01T00:00:00.000000Z","level":"INFO","logger":"app","text":"third"}\n\n',
}
