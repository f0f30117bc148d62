"""`/docs` and `/redoc` without a request to another host: Swagger UI and ReDoc from this package instead of from a content network.

What they show comes from workers too, and Markdown may have images and HTML in it. So the pages say what a browser may do for them: run their
own scripts and no others, and load from this host and from those that the app's own document or settings name (a logo, a server), which
no worker can add to.
"""

from __future__ import annotations

import html
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC: Final = Path(__file__).parent / "static"
# Authorize survives a reload; no validator badge, which would ask a server on the Internet.
PARAMETERS: Final = {"persistAuthorization": True, "validatorUrl": None}
_ORIGIN: Final = re.compile(r"(https?)://([\w.:{}-]+)", re.ASCII)
# `sanitize` needs its value: ReDoc takes an empty one for no. A policy does not stop `<meta http-equiv=refresh>`, only that does.
_REDOC: Final = """<!DOCTYPE html>
<html>
<head>
<title>{title} - ReDoc</title>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="shortcut icon" href="{root}{path}/static/swagger-ui/favicon-32x32.png">
<style>body {{ margin: 0; padding: 0; }}</style>
</head>
<body>
<noscript>ReDoc needs JavaScript.</noscript>
<redoc spec-url="{root}{openapi}" sanitize="true"></redoc>
<script src="{root}{path}/static/redoc/redoc.standalone.js"></script>
</body>
</html>
"""

Page = Callable[[Request], Awaitable[Response]]


def static_mount(path: str) -> Mount:
    """The files, below `<path>/static`."""
    return Mount(f"{path}/static", StaticFiles(directory=STATIC), name="easyjobs-static")


def replacements(app: FastAPI, path: str, own: Callable[[], Mapping[str, Any]]) -> list[tuple[BaseRoute, BaseRoute]]:
    """FastAPI's own pages and those to take their places; none for one that the app has not, or has made itself. `own`: the app's document without tasks."""
    pages: list[tuple[str | None, Page]] = [(app.docs_url, _swagger(app, path, own)), (app.redoc_url, _redoc(app, path, own))]
    return [
        (route, Route(url, page, include_in_schema=False))
        for url, page in pages
        if url is not None and app.openapi_url is not None
        for route in app.router.routes
        if isinstance(route, Route) and route.path == url and getattr(route.endpoint, "__module__", "") == "fastapi.applications"
    ]


def _swagger(app: FastAPI, path: str, own: Callable[[], Mapping[str, Any]]) -> Page:
    async def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        files = f"{root}{path}/static/swagger-ui"
        redirect = app.swagger_ui_oauth2_redirect_url
        parameters = PARAMETERS | (app.swagger_ui_parameters or {})
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{files}/swagger-ui-bundle.js",
            swagger_css_url=f"{files}/swagger-ui.css",
            swagger_favicon_url=f"{files}/favicon-32x32.png",
            oauth2_redirect_url=f"{root}{redirect}" if redirect else None,
            init_oauth=app.swagger_ui_init_oauth,
            swagger_ui_parameters=parameters,
        )
        return _guarded(bytes(page.body).decode(), own(), parameters)

    return docs


def _redoc(app: FastAPI, path: str, own: Callable[[], Mapping[str, Any]]) -> Page:
    async def redoc(request: Request) -> Response:
        root = html.escape(request.scope.get("root_path", "").rstrip("/"))
        page = _REDOC.format(title=html.escape(app.title), root=root, path=path, openapi=html.escape(app.openapi_url or ""))
        return _guarded(page, own(), {})

    return redoc


def _guarded(page: str, document: Mapping[str, Any], parameters: Mapping[str, Any]) -> Response:
    """The page with a Content-Security-Policy that lets its own scripts run."""
    nonce = secrets.token_urlsafe(16)
    hosts = " ".join(["'self'", *_origins(json.dumps([document, parameters], default=str))])
    rules = [
        f"default-src {hosts}",
        f"script-src 'nonce-{nonce}'",
        "worker-src 'self' blob:",  # ReDoc's search
        f"style-src {hosts} 'unsafe-inline'",
        f"img-src {hosts} data:",
        f"font-src {hosts} data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",  # nobody's click on another page submits a job here
    ]
    headers = {"Content-Security-Policy": "; ".join(rules), "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(page.replace("<script", f'<script nonce="{nonce}"'), headers=headers)


def _origins(text: str) -> list[str]:
    """The hosts whose addresses stand in `text`, as sources of a policy. `https://{region}.example.com` may be any host."""
    found = {f"{scheme}:" if "{" in host else f"{scheme}://{host.rstrip('.:-')}" for scheme, host in _ORIGIN.findall(text)}
    return sorted(found)
