"""How everything is put on the user's app, and taken off again.

Routes go to the end of the app's, and work at once, also on an app that is serving already. Only where a route of the user's would
swallow ours (`/{path:path}`, files mounted at `/`) do they go in front of that one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Match, Route

from easyjobs.http import docs
from easyjobs.http.control import control_router
from easyjobs.http.guard import AnyQueryRoute, ProblemRoute
from easyjobs.http.jobs import api_router, health_router, seed_router
from easyjobs.http.openapi import LONG, MARK, SHORT, OpenApi
from easyjobs.http.quarantine import quarantine_router
from easyjobs.http.schedules import schedules_router
from easyjobs.http.seeing import seeing_router
from easyjobs.http.services import Services
from easyjobs.http.tasks import SubmitRoute
from easyjobs.http.tokens import tokens_router
from easyjobs.runtime.log import INFO, event
from easyjobs.runtime.settings import Auth, ManagerSettings

log = logging.getLogger("easyjobs.http")

_STATE: Final = "easyjobs_unmount"


def mount(app: FastAPI, *, services: Services, settings: ManagerSettings, router: APIRouter | None = None, path: str = "/jobs") -> None:
    """Put our routes on `app`; `unmount` takes them off again. What was mounted before is taken off first.

    Args:
        app: the user's app, serving already or not.
        services: the manager's parts.
        settings: those in force; the log says which access they give.
        router: where the seed's paths (`/{namespace}/task/{name}`, `/job/…`) go, if not to the app's root. Its own dependencies, and
            those of the app, hold for them.
        path: where everything else goes, always below the app's root.
    """
    unmount(app)
    undo: list[Callable[[], None]] = []
    submit = SubmitRoute(services, f"{path}/api/v1/jobs/")

    def add_seed(to: APIRouter) -> None:
        # FastAPI's dependencies of the app or the router (a user's own login, for instance) hold for API routes only.
        if to is app.router and not to.dependencies:
            to.routes.extend(Route(where, submit, methods=["POST"], include_in_schema=False) for where in (LONG, SHORT))
        for where in (LONG, SHORT):
            to.add_api_route(
                where,
                submit.endpoint,
                methods=["POST"],
                response_model=None,
                openapi_extra={MARK: where},
                route_class_override=AnyQueryRoute,
                operation_id=f"easyjobs_submit_{'long' if where is LONG else 'short'}",
            )
        to.include_router(seed_router(services, ProblemRoute if to is app.router else AnyQueryRoute))

    def add_rest(to: APIRouter) -> None:
        to.include_router(health_router(services, path))
        to.include_router(api_router(services, path))
        to.include_router(seeing_router(services, path))
        to.include_router(control_router(services, path))
        to.include_router(schedules_router(services, path))
        to.include_router(quarantine_router(services, path))
        to.include_router(tokens_router(services, path))
        to.routes.append(docs.static_mount(path))

    seed_probes = [("POST", "/easyjobs-probe/task/easyjobs_probe"), ("GET", "/job/pull/result")]
    rest_probes = [("GET", f"{path}/healthz"), ("GET", f"{path}/api/v1/jobs"), ("GET", f"{path}/static/easyjobs-probe")]
    undo.append(_add(router or app.router, add_seed, seed_probes))
    undo.append(_add(app.router, add_rest, rest_probes))

    inner = app.openapi
    undo.extend(_swap(app.router, *swap) for swap in docs.replacements(app, path, inner))
    merged = OpenApi(inner, services.catalogue)
    app.openapi = merged  # type: ignore[method-assign]
    app.openapi_schema = None

    def restore() -> None:
        if app.openapi is merged:  # else somebody chained on it: then it goes on to show the app's own
            app.openapi = inner  # type: ignore[method-assign]
        merged.close()
        app.openapi_schema = None

    undo.append(restore)
    setattr(app.state, _STATE, undo)
    hint = None
    if settings.auth is Auth.PROTECTED:
        hint = "requests from this machine need no token; if a proxy runs here and sends no forwarding header, set EASYJOBS_AUTH=required"
    event(log, INFO, "http.mounted", path=path, auth=settings.auth.value, hint=hint)


def unmount(app: FastAPI) -> None:
    """Take off what `mount` put on. Does nothing if there is nothing."""
    undo: list[Callable[[], None]] = getattr(app.state, _STATE, [])
    while undo:
        undo.pop()()


def _add(router: APIRouter, add: Callable[[APIRouter], None], probes: Sequence[tuple[str, str]]) -> Callable[[], None]:
    """Let `add` add routes at the end; move them in front of the first route that would swallow one of `probes`."""
    routes = router.routes
    before = len(routes)
    swallowing = next((index for index, route in enumerate(routes) if any(_takes(route, *probe) for probe in probes)), before)
    add(router)
    added = routes[before:]
    if swallowing < before:
        del routes[before:]
        routes[swallowing:swallowing] = added
    _changed(router)

    def remove() -> None:
        ours = {id(route) for route in added}
        routes[:] = [route for route in routes if id(route) not in ours]
        _changed(router)

    return remove


def _swap(router: APIRouter, old: BaseRoute, new: BaseRoute) -> Callable[[], None]:
    def exchange(out: BaseRoute, into: BaseRoute) -> None:
        router.routes[:] = [into if route is out else route for route in router.routes]
        _changed(router)

    exchange(old, new)
    return lambda: exchange(new, old)


def _takes(route: BaseRoute, method: str, path: str) -> bool:
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "headers": [],
        "query_string": b"",
        "path_params": {},
    }
    return route.matches(scope)[0] is Match.FULL


def _changed(router: APIRouter) -> None:
    """FastAPI (since 0.137) remembers what an included router had; there is no public way to tell it of a removal."""
    mark = getattr(router, "_mark_routes_changed", None)
    if mark is not None:
        mark()
