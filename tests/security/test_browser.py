"""What pages of other sites cannot do to a manager, and what its own pages still can: in a real Chromium.

The pages of the other sites come from a server of their own, on another port and under another name: `evil.test` leads to this machine, as an
attacker's DNS may say.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from playwright.async_api import BrowserContext, Page

from tests.browser import chromium
from tests.security.world import World, world

pytestmark = pytest.mark.slow

Seen = list[tuple[str, str, int]]
REFUSED_SOCKET = ("WEBSOCKET", "/ws/jobs", 403)


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
    """The other site: an empty page wherever one looks, in a sandbox at /sandbox, and a WebSocket that takes everybody."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    headers = [(b"content-type", b"text/html")]
    if scope["path"] == "/sandbox":
        headers.append((b"content-security-policy", b"sandbox allow-scripts allow-forms"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
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
        chromium("evil.test") as browser,
    ):
        yield Scene(here, own, other, browser)


SITES: dict[str, Callable[[Scene], str]] = {
    "another site": lambda scene: f"http://evil.test:{scene.other.port}/",
    "another port": lambda scene: f"http://127.0.0.1:{scene.other.port}/",
    "a sandbox": lambda scene: f"http://evil.test:{scene.other.port}/sandbox",
}
SOCKET = """url => new Promise(done => {
    const socket = new WebSocket(url);
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
})"""


async def websocket(page: Page, url: str) -> str:
    return str(await page.evaluate(SOCKET, url))


# --- the WebSocket ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["protected", "off"])
async def test_no_page_of_another_site_opens_the_websocket(auth: str) -> None:
    async with scene(auth=auth) as there:
        for where, site in SITES.items():
            page = await there.page(site(there))
            there.own.seen.clear()
            assert await websocket(page, f"ws://{there.manager}/ws/jobs") == "refused", where
            assert there.own.seen == [REFUSED_SOCKET], "the browser asked, and the manager said no"
        assert await websocket(page, f"ws://evil.test:{there.other.port}/any") == "open", "the same script opens one that takes everybody"


async def test_no_page_of_another_site_has_our_pages_in_a_frame() -> None:
    """Else what looks like a button of theirs could be the one that submits a job."""
    async with scene() as there:
        page = await there.page(SITES["another site"](there))
        for url in ("/docs", "/redoc"):
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            await page.evaluate(
                """url => new Promise(done => {
                    const frame = document.body.appendChild(document.createElement("iframe"));
                    frame.onload = () => done();
                    frame.src = url;
                })""",
                f"http://{there.manager}{url}",
            )
            assert [text for text in said if "frame-ancestors" in text], said


@pytest.mark.parametrize("url", ["/docs", "/redoc"])
async def test_what_the_app_itself_names_is_loaded_and_no_policy_is_in_the_way(url: str) -> None:
    async with scene() as there:
        there.here.app.description = f"![logo](http://evil.test:{there.other.port}/logo)"
        page = await there.browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        await page.goto(f"http://{there.manager}{url}")
        await page.get_by_text("/jobs/api/v1/tokens", exact=False).first.wait_for(state="attached")
        await page.wait_for_load_state("networkidle")
        assert [path for _, path, _ in there.other.seen] == ["/logo"]
        # ReDoc would like a picture of its makers from their host, and does without.
        assert [text for text in said if "Content Security Policy" in text and "logo-mini.svg" not in text] == []
