"""The one route that submits a job of any task: `POST /{namespace}/task/{name}`, and `POST /task/{name}`.

It is looked up in the catalogue at each request, so no task ever adds a route. It speaks ASGI itself: nothing of FastAPI is solved,
built or serialised for a submit.

The body is read as JSON whatever its Content-Type says (`curl -d` sends none that fits); a page of another site cannot use that, for
its `Origin` gives it away. An empty body is an empty object.

`Prefer: wait=10` waits for the job to end: 200 with `{"request_id", "status", "result" or "error"}` if it has, 202 with
`{"request_id", "status"}` if it has not, both with `Preference-Applied`. Without it the answer is 200 with `{"request_id"}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from easyjobs.domain.job import MAX_ARGUMENTS
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import EasyJobsError, InvalidArguments
from easyjobs.http import auth
from easyjobs.http.problems import NOSNIFF, Unwelcome, answer
from easyjobs.http.reach import check_queue
from easyjobs.http.requests import Disconnected, Headers, admit, idempotency_key, preferred_wait, read_body, status_of, traceparent
from easyjobs.http.services import Services
from easyjobs.runtime.ids import id_bytes

MAX_QUERY_FIELDS: Final = 1000
_encode = msgspec.json.Encoder().encode
_JSON: Final = (b"content-type", b"application/json")
_NOSNIFF: Final = tuple((name.lower().encode(), value.encode()) for name, value in NOSNIFF.items())
_LENGTH: Final = (b"content-length", b"%d" % len(b'{"request_id":"00000000-0000-0000-0000-000000000000"}'))


class SubmitRoute:
    """The ASGI endpoint. `jobs_path` is where a job can be looked at, for `Location`: `/jobs/api/v1/jobs/`."""

    def __init__(self, services: Services, jobs_path: str) -> None:
        self._services = services
        self._jobs_path = jobs_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit, and answer."""
        headers: Headers = dict(scope["headers"])
        try:
            wait_s = preferred_wait(headers)
            request_id = await self.submit(scope, headers, receive)
            location = self._location(scope, request_id)
            if wait_s is not None:
                response = await self._wait(request_id, wait_s, location, lambda: self._is_welcome(scope, headers))
                await response(scope, receive, send)
                return
        except EasyJobsError as error:
            await answer(error)(scope, receive, send)
            return
        except Disconnected:
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [_JSON, _LENGTH, *_NOSNIFF, (b"location", location.encode("latin-1"))],
            }
        )
        await send({"type": "http.response.body", "body": b'{"request_id":"%s"}' % request_id.encode()})

    async def endpoint(self, request: Request) -> Response:
        """The same for a FastAPI route, where the app's own dependencies are to run first."""
        return _Relay(self, request.receive)

    async def submit(self, scope: Scope, headers: Headers, receive: Receive) -> str:
        """Return the new job's id, after the commit. Raises: EasyJobsError, Disconnected."""
        services = self._services
        caller = admit(services.access, scope, headers, auth.Scope.SUBMIT, changes=True)
        where = scope["path_params"]
        queue = where.get("namespace")
        if queue is not None:
            check_queue(caller, queue)
        task = services.catalogue.find(queue, where["name"], caller.queues)
        body = await read_body(headers, receive, MAX_ARGUMENTS, "the request")
        query = scope["query_string"]
        args = task.arguments.from_query(_pairs(query), body or None) if query else task.arguments.from_body(body or b"{}")
        del body  # it would stay for as long as the store takes, beside the arguments
        key = None
        if b"idempotency-key" in headers:
            key = idempotency_key(headers, caller.principal, f"{task.queue}/{task.name}", args)
        trace = traceparent(headers) if b"traceparent" in headers else None
        return await services.intake.submit_one(task, args, key, trace)

    def _is_welcome(self, scope: Scope, headers: Headers) -> bool:
        """Whether the sender would still be let in."""
        try:
            admit(self._services.access, scope, headers, auth.Scope.SUBMIT, changes=True)
        except Unwelcome:
            return False
        return True

    async def _wait(self, request_id: str, wait_s: int, location: str, is_welcome: Callable[[], bool]) -> Response:
        """The answer to a submit that waits: 200 with the job's end, or 202 where it has not come.

        Also 202 where the token has ended meanwhile: the job was taken in, so a 401 would have it submitted again.
        """
        headers = {"Preference-Applied": f"wait={wait_s}", "Location": location} | NOSNIFF
        raw = id_bytes(request_id)
        assert raw is not None
        end = await self._services.results.wait(raw, wait_s)
        if end is None or end.state is None or not is_welcome():
            status = await status_of(self._services.store, raw)
            return Response(_encode({"request_id": request_id, "status": status}), 202, headers | {"Retry-After": "1"}, "application/json")
        what = "result" if end.state is JobState.SUCCEEDED else "error"
        body = {"request_id": request_id, "status": end.state.text, what: msgspec.Raw(end.body or b"null")}
        return Response(_encode(body), 200, headers, "application/json")

    def _location(self, scope: Scope, request_id: str) -> str:
        return f"{scope.get('root_path', '')}{self._jobs_path}{request_id}"


class _Relay(Response):
    """A response that lets the ASGI endpoint answer."""

    def __init__(self, route: SubmitRoute, receive: Receive) -> None:
        super().__init__()
        self._route, self._receive = route, receive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await self._route(scope, self._receive, send)


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict")
    except ValueError as why:  # UnicodeDecodeError, too
        raise InvalidArguments("query", [{"type": "value_error", "loc": ["query"], "msg": str(why), "input": None}]) from why
