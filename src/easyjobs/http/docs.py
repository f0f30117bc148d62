"""`/docs` without a request to another host: Swagger UI from this package instead of from a content network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC: Final = Path(__file__).parent / "static"
# Authorize survives a reload; no validator badge, which would ask a server on the Internet.
PARAMETERS: Final = {"persistAuthorization": True, "validatorUrl": None}


def static_mount(path: str) -> Mount:
    """The files, below `<path>/static`."""
    return Mount(f"{path}/static", StaticFiles(directory=STATIC), name="easyjobs-static")


def replacement(app: FastAPI, path: str) -> tuple[BaseRoute, BaseRoute] | None:
    """FastAPI's own docs route and the one to take its place; None where the app has none, or one of its own making."""
    if app.docs_url is None or app.openapi_url is None:
        return None
    for route in app.router.routes:
        if isinstance(route, Route) and route.path == app.docs_url and getattr(route.endpoint, "__module__", "") == "fastapi.applications":
            return route, Route(app.docs_url, _page(app, path), include_in_schema=False)
    return None


def _page(app: FastAPI, path: str) -> Callable[[Request], Awaitable[Response]]:
    async def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        files = f"{root}{path}/static/swagger-ui"
        redirect = app.swagger_ui_oauth2_redirect_url
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{files}/swagger-ui-bundle.js",
            swagger_css_url=f"{files}/swagger-ui.css",
            swagger_favicon_url=f"{files}/favicon-32x32.png",
            oauth2_redirect_url=f"{root}{redirect}" if redirect else None,
            init_oauth=app.swagger_ui_init_oauth,
            swagger_ui_parameters=PARAMETERS | (app.swagger_ui_parameters or {}),
        )

    return docs
