"""Whatever the OpenAPI document allows, and much that it does not: each answer is as the document says, and none is a 5xx.

Schemathesis runs as users run it, over a real socket. `SCHEMATHESIS_EXAMPLES=400 make test TESTS=tests/security/test_schemathesis.py` makes 400 examples
for each operation, which is more than 10,000 cases in all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from easyjobs.http.auth import Scope, make_token
from tests.processes import SECRET, Processes

pytest.importorskip("schemathesis", reason="schemathesis is not installed: python -m pip install --group security")
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")
# We refuse a little more than JSON schema can say (an empty request_id, a status that a list never has): that is no hole. And Starlette's 405
# names the verbs of the first route of a path only.
EXCLUDED = ["--exclude-checks", "positive_data_acceptance,allow_header_conformance"]

PROGRAM = """
import datetime as dt
import uuid
from enum import Enum
from fastapi import FastAPI
from pydantic import BaseModel
from easyjobs.manager import EasyJobsManager

server = FastAPI()

class Colour(Enum):
    RED = "red"
    BLUE = "blue"

class Order(BaseModel):
    id: uuid.UUID
    lines: list[int]
    colour: Colour = Colour.RED
    note: str | None = None

@server.on_event("startup")
async def startup():
    manager = await EasyJobsManager.create(server, store="memory:", auth="required")

    @manager.task()
    async def plain(a: int, b: str = "x", *rest: float):
        return a

    @manager.task()
    async def rich(order: Order, when: dt.datetime, table: dict[str, list[int]] | None = None):
        return order

    @manager.task(schedule="0 0 1 1 *")
    async def anything(*args, **kwargs):
        return args
"""


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_answer_is_as_the_document_says(started: Processes, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    manager = started.uvicorn("program:server", directory=tmp_path, env={"EASYJOBS_SECRET": SECRET}).until_ready()
    token = make_token(SECRET, [Scope.ADMIN], 0)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{manager.url}/openapi.json", "--checks", "all", "--max-examples", EXAMPLES,
        "--header", f"Authorization: Bearer {token}", "--exclude-path-regex", "/events$", "--seed", "1", "--request-timeout", "20",
        "--suppress-health-check", "all", "--no-color", *EXCLUDED,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = done.stdout[-20_000:] + done.stderr[-2000:]
    assert "Internal Server Error" not in manager.log, said
    assert not re.search(r'" 5\d\d ', manager.log), said
    assert done.returncode == 0, said
    print("\n".join(line.strip() for line in done.stdout.splitlines() if "generated" in line))  # how many cases, with -s
    assert manager.is_running
