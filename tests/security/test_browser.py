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

import msgspec
import pytest
import uvicorn
from playwright.async_api import BrowserContext, Page

from easyjobs.protocol.messages import NewTask
from tests.browser import chromium
from tests.security.world import World, task_named, world

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
        chromium("evil.test", "rebound.test") as browser,
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


# --- what a worker's texts do to who reads them -----------------------------------------------------------------------------

BEACON = "http://evil.test:PORT"  # the other site, which must never be asked
CORPUS = (
    "<script>window.__pwned = 1; alert(1)</script>",
    "<img src=x onerror='window.__pwned = 1; alert(1)'>",
    f"<img src='{BEACON}/image'><img srcset='{BEACON}/set 1x'><video src='{BEACON}/video' autoplay></video><audio src='{BEACON}/audio' autoplay></audio>",
    f'![image]({BEACON}/markdown.png) ![x](x "onerror=alert(1)") [click](javascript:window.__pwned=1) <javascript:window.__pwned=1>',
    "<a href='javascript:window.__pwned=1' class=bait>click</a><a href='&#106;avascript:window.__pwned=1' class=bait>click</a>",
    "<svg onload='window.__pwned=1'><animate onbegin='window.__pwned=1' attributeName=x dur=1s></svg><svg><a xlink:href='javascript:window.__pwned=1'><text y=9>t</text></a></svg>",
    f"<iframe srcdoc='<script>parent.__pwned=1</script>'></iframe><iframe src='{BEACON}/frame'></iframe><object data='{BEACON}/object'></object><embed src='{BEACON}/embed'>",
    f"<link rel=stylesheet href='{BEACON}/style'><style>@import '{BEACON}/import'; body {{ background: url({BEACON}/background) }}</style>",
    f"<p style=\"background: url({BEACON}/inline)\">x</p><base href='{BEACON}/'><meta http-equiv=refresh content='0;url={BEACON}/refresh'>",
    f"<form action='{BEACON}/form'><button autofocus onfocus='window.__pwned=1'>x</button></form><details open ontoggle='window.__pwned=1'>x</details>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.__pwned=1&gt;'>",
    "</textarea></title></script><script>window.__pwned=1</script>\"'><script>window.__pwned=1</script>",
    "{{constructor.constructor('window.__pwned=1')()}} ${window.__pwned=1} <%= window.__pwned=1 %>",
)  # fmt: skip


def poisoned(name: str, text: str, port: int) -> NewTask:
    """A task with `text` in every place of its signature that may have one."""
    field = {
        "title": text, "description": text, "type": "string", "default": text, "examples": [text], "example": text, "enum": [text, "a"],
        "externalDocs": {"url": "javascript:window.__pwned=1", "description": text}, "x-text": {"$ref": f"{BEACON}/reference"}, "format": text[:60],
        "deprecated": True, "xml": {"name": text}, "const": text,
    }  # fmt: skip
    model = {
        "type": "object",
        "title": text,
        "description": text,
        "properties": {text: field, "next": {"$ref": "#/$defs/M"}},
        "required": [text],
    }
    arguments = {
        "type": "object", "title": text, "description": text, "properties": {"constructor": field, "__proto__": {"$ref": "#/$defs/M"}},
        "additionalProperties": False, "$defs": {"M": model},
    }  # fmt: skip
    signature = {
        "parameters": [{"name": each, "kind": "positional_or_keyword", "required": False} for each in arguments["properties"]],  # type: ignore[attr-defined]
        "arguments": arguments, "returns": {"description": text, "title": text}, "summary": text[:200], "doc": f"{text}\n\n{text}",
    }  # fmt: skip
    return NewTask(name, msgspec.json.encode(signature).replace(b"PORT", b"%d" % port), b"{}")


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


SHOWS = "path => document.body.textContent.replaceAll('\\u200b', '').includes(path)"  # Swagger UI breaks paths by spaces of no width


@pytest.mark.parametrize("url", ["/docs", "/redoc"])
async def test_no_text_of_a_task_runs_or_loads_anything_or_leads_away(url: str) -> None:
    """Each task of the corpus is shown, so what is left out is the text's effect and not the text."""
    async with scene() as there:
        texts = [text.replace("PORT", str(there.other.port)) for text in CORPUS]
        await there.here.peer().join(*(poisoned(f"task{n}", text, there.other.port) for n, text in enumerate(texts)))
        watched = Watched(await there.browser.new_page(), there)
        page = watched.page
        await page.goto(f"http://{there.manager}{url}")
        for n in range(len(texts)):
            await page.wait_for_function(SHOWS, arg=f"/Q/task/task{n}", timeout=120_000)
        await watched.is_clean()
        await page.evaluate("""() => document.querySelectorAll("a[href^=javascript], a.bait, svg a").forEach(
            bait => bait.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true})))""")
        await asyncio.sleep(1)  # nothing is what has to happen: a refresh or a script would come by now
        await watched.is_clean()


# --- a rebound name ---------------------------------------------------------------------

FETCH = """([url, options]) => fetch(url, {credentials: "include", ...options}).then(
    answer => answer.type === "opaque" ? "sent" : answer.status, () => "failed")"""
API = "/jobs/api/v1"


async def fetched(page: Page, url: str, **options: Any) -> Any:
    return await page.evaluate(FETCH, [url, options])


async def state(there: Scene) -> Any:
    async with there.here.client() as http:
        return [(await http.get(f"{API}/{what}")).json()["items"] for what in ("jobs", "queues")]


@pytest.mark.parametrize(("auth", "status"), [("protected", 401), ("off", 200)])
async def test_a_rebound_name_gets_in_with_auth_off_only_and_never_to_the_websocket(auth: str, status: int) -> None:
    """To a browser it is the manager's own page."""
    async with scene(auth=auth) as there:
        await there.here.peer().join(task_named("work"))
        id = await there.here.submit()
        before = await state(there)
        page = await there.page(f"http://rebound.test:{there.own.port}/docs")
        assert await fetched(page, f"{API}/jobs") == status
        assert await fetched(page, f"{API}/jobs/{id}") == status
        assert await fetched(page, "/Q/task/work", method="POST", body="{}") == status
        assert await fetched(page, f"{API}/queues/Q/pause", method="POST") == status
        assert await fetched(page, f"{API}/jobs/{id}/cancel", method="POST") == status
        assert (await state(there) == before) == (auth == "protected")
        there.own.seen.clear()
        assert await websocket(page, f"ws://rebound.test:{there.own.port}/ws/jobs") == "refused"
        assert there.own.seen == [REFUSED_SOCKET]
