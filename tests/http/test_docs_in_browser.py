"""A person opens /docs in a browser, submits a job, and nothing leaves the machine."""

from __future__ import annotations

from pathlib import Path

from tests.browser import chromium
from tests.processes import Processes

PROGRAM = """
from fastapi import FastAPI
from pydantic import BaseModel
from easyjobs.manager import EasyJobsManager

server = FastAPI()

class Greeting(BaseModel):
    name: str
    times: int = 1

@server.on_event("startup")
async def startup():
    manager = await EasyJobsManager.create(server, server_secret="a secret that is long enough for this test", store="memory:")

    @manager.task()
    async def greet(greeting: Greeting) -> str:
        return greeting.name * greeting.times
"""


async def test_a_job_is_submitted_from_docs_without_a_request_to_another_host(started: Processes, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    manager = started.uvicorn("program:server", directory=tmp_path).until_ready()
    requests: list[str] = []
    async with chromium() as browser:
        page = await browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        await page.goto(f"{manager.url}/docs")
        operation = page.locator(".opblock", has_text="/DEFAULT/task/greet")
        await operation.locator("button.opblock-summary-control").click()
        await operation.get_by_text("Try it out").click()
        await operation.locator("textarea.body-param__text").fill('{"greeting": {"name": "ab", "times": 2}}')
        await operation.locator("button.execute").click()
        answer = await operation.locator(".live-responses-table .response-col_description .highlight-code").first.inner_text()
    request_id = answer.split('"')[3]
    assert manager.get(f"/job/pull/result?request_id={request_id}") == "abab"
    assert requests
    assert [url for url in requests if not url.startswith((manager.url, "data:"))] == []
