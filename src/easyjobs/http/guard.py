"""How our FastAPI routes ask who is there, how they answer our errors, and what they log of those who change something."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from easyjobs.errors import EasyJobsError, InvalidArguments
from easyjobs.http import auth, schemas
from easyjobs.http.problems import NOSNIFF, answer
from easyjobs.http.reach import out_of_reach
from easyjobs.http.requests import admit
from easyjobs.runtime.log import INFO, event

log = logging.getLogger("easyjobs.http")

SCHEME: Final = "easyjobs"
SCHEME_TEXT: Final = (
    "A token, as `easyjobs token --scope submit` prints it. Requests from the manager's own machine need none, unless auth is `required`."
)
# Only for OpenAPI and its Authorize button; the header itself is read by `admit`.
_bearer: Final = HTTPBearer(scheme_name=SCHEME, description=SCHEME_TEXT, auto_error=False)


_ACTS: Final = "easyjobs.acts"  # in an ASGI scope: who was let in to change something that is not theirs
_MADE: Final = "easyjobs.made"  # and what has come of it, where the path does not say
_TAKES: Final = "easyjobs.takes"  # and the query parameters of the route; None: whatever comes
_OPERATING: Final = frozenset({auth.Scope.OPERATE, auth.Scope.ADMIN})


class ProblemRoute(APIRoute):
    """A route whose handlers may raise our errors: each gets the answer of `problems`, whatever handlers the app has.

    No answer is taken for something else than it says it is. What somebody does with the scope operate or admin is logged with who it was.

    A query parameter that the route does not take is refused, once the caller is let in (`needs`), for `?limt=1` would be passed over in silence.
    Where the app has dependencies of its own (a login, for instance) it is not, as these may read what they like; nor where all are let in.
    """

    takes_any_query = False

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """As FastAPI's own, which does not show the 422 of a route without parameters."""
        if not self.takes_any_query:
            options["responses"] = {422: schemas.unfit("A parameter does not fit"), **(options.get("responses") or {})}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        inner = super().get_route_handler()
        known = None if self.takes_any_query else _query_names(self.dependant)

        async def handle(request: Request) -> Response:
            response: Response | None = None
            request.scope[_TAKES] = known
            try:
                response = await inner(request)
            except EasyJobsError as error:
                response = answer(error)
            finally:
                if _ACTS in request.scope:
                    _log_act(request, None if response is None else response.status_code)
            response.headers.update(NOSNIFF)
            return response

        return handle


class AnyQueryRoute(ProblemRoute):
    """The same for a route whose query is a job's arguments; where dependencies of the user's may hold that are not known here; or for probes."""

    takes_any_query = True


def _query_names(dependant: Dependant) -> list[str]:
    """The query parameters that a route takes, and what it depends on."""
    return [param.alias for param in dependant.query_params] + [name for part in dependant.dependencies for name in _query_names(part)]


def _refuse_unknown(request: Request) -> None:
    known = request.scope.get(_TAKES)
    if known is None or not request.scope["query_string"] or request.app.router.dependencies:
        return
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        msg = f"Unknown query parameter: this takes {', '.join(known) or 'none'}"
        wrong = [{"type": "extra_forbidden", "loc": ["query", name[:80]], "msg": msg, "input": None} for name in unknown[:10]]
        raise InvalidArguments("the query", wrong)


def needs(access: auth.Access, scope: auth.Scope, *, changes: bool = False, bound: bool = False) -> Callable[..., Awaitable[auth.Caller]]:
    """A dependency that lets in who has `scope` and returns who it is. `changes`: also check where a GET comes from.

    `bound`: the route takes tokens that are bound to queues, and keeps to the queues of the caller that it is given. A route that does not say
    so refuses them.
    """

    async def check(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> auth.Caller:
        is_unsafe = changes or request.method not in auth.SAFE_METHODS
        caller = admit(access, request.scope, dict(request.scope["headers"]), scope, changes=is_unsafe)
        if caller.queues is not None and not bound:
            raise out_of_reach(caller, "this concerns all queues")
        _refuse_unknown(request)
        if is_unsafe and scope in _OPERATING:
            request.scope[_ACTS] = caller.principal
        return caller

    return check


def made(request: Request, id: str) -> None:
    """Say what a request has made, for the log."""
    request.scope[_MADE] = id


def _log_act(request: Request, status: int | None) -> None:
    """`status` None: it was not answered, and whether it was done is not known here."""
    scope = request.scope
    peer = scope.get("client")
    event(
        log,
        INFO,
        "operator.acted",
        by=scope[_ACTS],
        peer=peer[0] if peer else None,
        did=f"{scope['method']} {scope['path']}",
        made=scope.get(_MADE),
        status=status if status is not None else "unknown",
    )
