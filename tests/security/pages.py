"""A manager, another site, and a real Chromium that goes to both.

The pages of the other sites come from a server of their own, on another port and under another name: `evil.test` leads to this machine, as an
attacker's DNS may say.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

import uvicorn
from playwright.async_api import BrowserContext, Page

from tests.browser import chromium
from tests.security.world import World, world

Seen = list[tuple[str, str, int]]


class Door:
    """An app, and what was answered to whom: (method, path, status); 101 and 403 for a WebSocket that was opened and that was refused."""

    def __init__(self, app: Any) -> None:
        self.app, self.seen = app, Seen()
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.seen.append((scope["method"], scope["path"], message["status"]))
            elif message["type"] in ("websocket.accept", "websocket.close") and scope["path"] not in {path for _, path, _ in self.seen}:
                self.seen.append(("WEBSOCKET", scope["path"], 101 if message["type"] == "websocket.accept" else 403))
            await send(message)

        await self.app(scope, receive, tell)


async def foreign(scope: Any, receive: Any, send: Any) -> None:
    """The other site: an empty page wherever one looks, in a sandbox at /sandbox; /redirect sends on to its query, and a WebSocket takes everybody."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    headers = [(b"content-type", b"text/html")]
    if scope["path"] == "/sandbox":
        headers.append((b"content-security-policy", b"sandbox allow-scripts allow-forms"))
    if scope["path"] == "/redirect":
        headers.append((b"location", unquote(scope["query_string"].decode()).encode()))
    await send({"type": "http.response.start", "status": 307 if scope["path"] == "/redirect" else 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"<!doctype html><title>nice</title><body></body>"})


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[Door]:
    """The app on a free port, by uvicorn, in this loop."""
    door = Door(app)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        door.port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(door, log_config=None, lifespan="off", timeout_graceful_shutdown=5))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve([listening]))
        try:
            yield door
        finally:
            server.should_exit = True
            await serving


class Scene:
    """A manager on `own` and another site on `other`, and a browser that goes to both."""

    def __init__(self, here: World, own: Door, other: Door, browser: BrowserContext) -> None:
        self.here, self.own, self.other, self.browser = here, own, other, browser

    @property
    def manager(self) -> str:
        return f"127.0.0.1:{self.own.port}"

    async def page(self, url: str) -> Page:
        page = await self.browser.new_page()
        await page.goto(url)
        return page


@contextlib.asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[Scene]:
    async with (
        world(**settings) as here,
        served(here.app) as own,
        served(foreign) as other,
        chromium("evil.test", "rebound.test") as browser,
    ):
        yield Scene(here, own, other, browser)


SITES: dict[str, Callable[[Scene], str]] = {
    "another site": lambda scene: f"http://evil.test:{scene.other.port}/",
    "another port": lambda scene: f"http://127.0.0.1:{scene.other.port}/",
    "a sandbox": lambda scene: f"http://evil.test:{scene.other.port}/sandbox",
}


class Watched:
    """A page, and what it does that it should not."""

    def __init__(self, page: Page, there: Scene) -> None:
        self.page, self.there = page, there
        self.bad: list[str] = []
        page.on("dialog", self._dialog)
        page.on("popup", self._popup)
        there.other.seen.clear()

    def _popup(self, popup: Page) -> None:
        self.bad.append(f"popup {popup.url}")

    async def _dialog(self, dialog: Any) -> None:
        self.bad.append(f"dialog {dialog.message}")
        await dialog.dismiss()

    async def is_clean(self) -> None:
        await self.page.wait_for_load_state("networkidle")
        for frame in self.page.frames:
            assert await frame.evaluate("window.__pwned") is None
        assert self.page.url.startswith(f"http://{self.there.manager}/")
        assert self.there.other.seen == [], "the other site was asked"
        assert self.bad == []
