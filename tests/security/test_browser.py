"""What pages of other sites cannot open of a manager, what its own pages still can, and what workers' texts do to those: in a real Chromium."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from playwright.async_api import Locator, Page

from easyjobs.protocol.messages import NewTask
from tests.security.pages import SITES, Scene, Watched, scene
from tests.security.test_hostile_results import hostile_jobs
from tests.security.world import task_named

pytestmark = pytest.mark.slow

API = "/jobs/api/v1"
REFUSED_SOCKET = ("WEBSOCKET", "/ws/jobs", 403)
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


BITE = """() => document.querySelectorAll("a[href^=javascript], a.bait, svg a").forEach(
    bait => bait.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true})))"""
PATIENCE_MS = 120_000  # for a page that is slow; one that hangs never comes
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
            await page.wait_for_function(SHOWS, arg=f"/Q/task/task{n}", timeout=PATIENCE_MS)
        await watched.is_clean()
        await page.evaluate(BITE)
        await asyncio.sleep(1)  # nothing is what has to happen: a refresh or a script would come by now
        await watched.is_clean()


async def open_operation(page: Page, name: str) -> tuple[Locator, str]:
    """Open a task's operation in /docs, with every part of its schema: the operation, and the schema's text."""
    operation = page.locator(".opblock", has=page.locator(f"[data-path='/Q/task/{name}']"))
    await operation.locator("button.opblock-summary-control").click()
    await operation.locator(".opblock-body .responses-wrapper").wait_for()
    body = operation.locator(".opblock-section-request-body")
    await body.locator(".highlight-code").first.wait_for()  # the example
    await body.locator(".tabitem", has_text="Schema").locator("button").click()
    await body.locator(".json-schema-2020-12-expand-deep-button").first.click()
    return operation, await body.inner_text()


async def send_operation(operation: Locator) -> str:
    """Send what is in the form of an operation, by default the example: the answer that is shown."""
    await operation.get_by_role("button", name="Try it out").click()
    await operation.locator("textarea.body-param__text").wait_for()
    await operation.locator("button.execute").click()
    return await operation.locator(".live-responses-table .response-col_description .highlight-code").first.inner_text()


@pytest.mark.timeout(900)
async def test_no_text_of_a_task_does_anything_in_an_operation_that_is_opened() -> None:
    async with scene() as there:
        texts = [text.replace("PORT", str(there.other.port)) for text in CORPUS]
        await there.here.peer().join(*(poisoned(f"task{n}", text, there.other.port) for n, text in enumerate(texts)))
        watched = Watched(await there.browser.new_page(), there)
        page = watched.page
        page.set_default_timeout(PATIENCE_MS)
        await page.goto(f"http://{there.manager}/docs")
        for n, text in enumerate(texts):
            operation, schema = await open_operation(page, f"task{n}")
            assert text[:20] in schema, "it is there, as text"
            answer = await send_operation(operation)
            assert "request_id" in answer or text[:10] in answer
        await watched.is_clean()
        await page.evaluate(BITE)
        await asyncio.sleep(1)  # as above
        await watched.is_clean()


def doubling(levels: int) -> dict[str, Any]:
    names = [f"M{n}" for n in range(levels + 1)]
    return {
        one: {"type": "object", "properties": {side: {"$ref": f"#/$defs/{other}"} for side in "ab"}} for one, other in pairwise(names)
    } | {names[-1]: {"type": "string"}}


def deep(keyword: str, least: int, levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, keyword: least}
    return schema


def task_with(name: str, field: dict[str, Any], **more: Any) -> NewTask:
    """A task whose parameter `a` has this schema. `more`: its `$defs` and the rest of the signature."""
    arguments = {"type": "object", "properties": {"a": field}, "additionalProperties": False, "$defs": more.pop("defs", {})}
    parameters = [{"name": "a", "kind": "positional_or_keyword", "required": False}]
    return NewTask(name, msgspec.json.encode({"parameters": parameters, "arguments": arguments, **more}), b"{}")


KINDS = {"oneOf": [{"$ref": "#/$defs/" + "a" * 60}], "discriminator": {"propertyName": "kind", "mapping": {"x": "(((a|a)+)+)+$"}}}
ENDLESS = {  # each is taken, as it is small and quickly validated. Shown whole, most kept a page busy for ever; the last four are here so that they never do
    "doubling": task_with("doubling", {"$ref": "#/$defs/M0"}, defs=doubling(40)),
    "items": task_with("items", deep("minItems", 10**9, 1)),
    "nested": task_with("nested", deep("minItems", 50, 6)),
    "contains": task_with("contains", {"type": "array", "contains": {"type": "string"}, "minContains": 10**9}),
    "properties": task_with("properties", {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 10**9}),
    "length": task_with("length", {"type": "string", "minLength": 10**9}),
    "stars": task_with("stars", {"type": "string", "pattern": "((((((a*)*)*)*)*)*)*"}),
    "returning": task_with("returning", {"type": "string"}, returns={"$ref": "#/$defs/M0", "$defs": doubling(40)}),
    "searching": task_with("searching", KINDS, defs={"a" * 60: {"type": "object", "properties": {"kind": {"type": "string"}}}}),
    "values": task_with("values", {"enum": [str(n) for n in range(4000)]}),
    "brackets": task_with("brackets", {"type": "string", "description": "[" * 20_000}, doc="![a](" * 1600),
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ENDLESS)
async def test_no_schema_of_a_task_keeps_docs_busy_for_ever(name: str) -> None:
    async with scene() as there:
        await there.here.peer().join(ENDLESS[name])
        page = await there.page(f"http://{there.manager}/docs")
        page.set_default_timeout(PATIENCE_MS)
        operation, _ = await open_operation(page, name)
        assert await send_operation(operation)


@pytest.mark.timeout(900)
async def test_no_schema_of_a_task_keeps_redoc_busy_for_ever() -> None:
    async with scene() as there:
        await there.here.peer().join(*ENDLESS.values())
        page = await there.page(f"http://{there.manager}/redoc")
        for name in ENDLESS:
            await page.wait_for_function(SHOWS, arg=f"/Q/task/{name}", timeout=PATIENCE_MS)
        assert await page.evaluate("1 + 1") == 2


# --- what results and errors do to who reads them ---------------------------------------------------------------------------


async def test_no_result_is_a_page_wherever_it_is_opened() -> None:
    """By its address, as from a link in somebody's mail, and in /docs."""
    async with scene() as there:
        good, bad, _, _ = await hostile_jobs(there.here)
        addresses = [f"/job/{how}/result?request_id={id}" for how in ("view", "pull") for id in (good, bad)]
        addresses += [f"{API}/jobs/{id}{part}" for part in ("", "/logs", "/explain", "/events") for id in (good, bad)]
        addresses += ["/job/view/results", f"{API}/jobs", f"{API}/workers", "/job/pull/result?request_id=<script>alert(1)</script>"]
        watched = Watched(await there.browser.new_page(), there)
        for address in addresses:
            await watched.page.goto(f"http://{there.manager}{address}")
            assert await watched.page.evaluate("document.contentType") in {
                "application/json",
                "application/problem+json",
                "text/plain",
                "text/event-stream",
            }
            assert await watched.page.evaluate("document.scripts.length") == 0
            await watched.is_clean()
        await watched.page.goto(f"http://{there.manager}/docs")
        for path, id in (("/job/view/result", good), ("/job/view/result", bad), ("/job/pull/result", bad)):
            operation = watched.page.locator(".opblock", has=watched.page.locator(f"[data-path='{path}']"))
            if not await operation.locator(".opblock-body").count():
                await operation.locator("button.opblock-summary-control").click()
                await operation.get_by_role("button", name="Try it out").click()
            await operation.locator("tr[data-param-name=request_id] input").fill(id)
            await operation.locator("button.execute").click()
            shown = operation.locator(".live-responses-table .response-col_description .highlight-code")
            await shown.filter(has_text="onerror").first.wait_for()
        await watched.is_clean()


# --- a rebound name ---------------------------------------------------------------------

FETCH = """([url, options]) => fetch(url, {credentials: "include", ...options}).then(
    answer => answer.type === "opaque" ? "sent" : answer.status, () => "failed")"""


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
