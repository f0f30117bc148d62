"""Small requests that want to cost much: size, depth, numbers, decompression, patience."""

from __future__ import annotations

import contextlib
import gzip
import resource
import socket
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import MAX_ARGUMENTS, MAX_BULK_BYTES
from easyjobs.http.auth import Scope, make_token
from tests.processes import SECRET as PROCESS_SECRET
from tests.processes import Processes, Served, until
from tests.security.world import REMOTE, World, task_named, world

JSON = {"content-type": "application/json"}


def anything(value: Any = None) -> None: ...


def strict(
    numbers: list[int] | None = None,
    distinct: set[int] | None = None,
    words: dict[str, list[int]] | None = None,
    either: int | list[int | str] = 0,
) -> None: ...


@pytest.fixture
async def offered() -> AsyncIterator[World]:
    async with world() as here:
        await here.peer().join(task_named("anything", anything), task_named("strict", strict))
        yield here


def cpu_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


async def post(here: World, body: bytes, path: str = "/Q/task/anything", **headers: str) -> tuple[int, bytes]:
    async with here.client() as http:
        answer = await http.post(path, content=body, headers={**JSON, **{name.replace("_", "-"): text for name, text in headers.items()}})
    return answer.status_code, answer.content


MIB = 1024 * 1024
BOMBS = {
    "arrays in arrays": b'{"value":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects in objects": b'{"value":' * 50_000 + b"1" + b"}" * 50_000,
    "not closed": b'{"value":' + b"[" * 500_000,
    "33 levels": b'{"value":' + b"[" * 33 + b"]" * 33 + b"}",
    "a number of a million digits": b'{"value":' + b"9" * (MIB - 100) + b"}",
    "a number of 5,000 digits": b'{"value":' + b"9" * 5000 + b"}",
    "a float of a million digits": b'{"value":0.' + b"9" * (MIB - 100) + b"}",
    "an exponent": b'{"value":1e999999999}',
    "a small exponent": b'{"value":1e-999999999}',
    "NaN": b'{"value":NaN}',
    "a body that is too large": b'{"value":"' + b"x" * MAX_ARGUMENTS + b'"}',
    "one key a hundred thousand times": b"{" + b",".join([b'"value":1'] * 90_000) + b"}",
    "a lone surrogate": b'{"value":"\\ud800"}',
    "no UTF-8": b'{"value":"\xff\xfe"}',
    "UTF-16": '{"value":1}'.encode("utf-16"),
    "a BOM": b'\xef\xbb\xbf{"value":1}',
    "nothing but spaces": b" " * (MIB - 10),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
async def test_a_bomb_is_refused_or_kept_and_costs_little(offered: World, body: bytes) -> None:
    before = cpu_s()
    for path, sent in (("/Q/task/anything", body), ("/jobs/api/v1/jobs", b'{"namespace":"Q","name":"anything","args":[' + body + b"]}")):
        status, answer = await post(offered, sent, path)
        assert status in {200, 202, 413, 422}, answer[:200]
        assert len(answer) < 20_000
        msgspec.json.decode(answer)
    async with offered.client() as http:
        listed = await http.get("/jobs/api/v1/jobs")
    msgspec.json.decode(listed.content)
    assert cpu_s() - before < 10


WRONG = {
    "numbers": b'{"numbers":[' + b",".join([b'""'] * 200_000) + b"]}",
    "distinct": b'{"distinct":[' + b",".join(b"%d" % n for n in range(140_000)) + b",0]}",
    "words": b'{"words":{' + b",".join(b'"%d":[""]' % n for n in range(60_000)) + b"}}",
    "either": b'{"either":[' + b",".join([b"null"] * 150_000) + b"]}",
    "unknown names": b"{" + b",".join(b'"x%d":1' % n for n in range(60_000)) + b"}",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
async def test_many_faults_make_no_large_answer_and_no_long_wait(offered: World, body: bytes) -> None:
    assert len(body) < MAX_ARGUMENTS
    before = cpu_s()
    status, answer = await post(offered, body, "/Q/task/strict")
    assert status == 422
    assert len(answer) < 200_000
    assert len(msgspec.json.decode(answer)["detail"]) <= 100
    assert cpu_s() - before < 2  # it was ten seconds, for all


async def test_a_fault_far_behind_is_found_though_it_is_not_shown(offered: World) -> None:
    body = b'{"numbers":[' + b"1," * 50_000 + b'"x"]}'
    status, answer = await post(offered, body, "/Q/task/strict")
    assert status == 422
    [fault] = msgspec.json.decode(answer)["detail"]
    assert "after its first 2,000 items" in fault["msg"]


async def test_the_limits_count_bytes_and_not_what_the_header_says(offered: World) -> None:
    async def chunks(n: int) -> AsyncIterator[bytes]:
        for _ in range(n):
            yield b" " * 65_536

    async with offered.client() as http:
        for path, limit in (("/Q/task/anything", MAX_ARGUMENTS), ("/jobs/api/v1/jobs", MAX_BULK_BYTES)):
            answer = await http.post(path, content=chunks(limit // 65_536 + 2))
            assert answer.status_code == 413
            assert (await http.post(path, content=b"{}", headers={"Content-Length": "9" * 15})).status_code == 413


async def test_no_route_reads_the_body_of_a_stranger(offered: World) -> None:
    """Whoever sends it: FastAPI would read a body parameter whole before it asks who is there."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(2000):
            read += 65_536
            yield b" " * 65_536

    for path, item in offered.app.openapi()["paths"].items():
        for method in {"post", "put", "patch", "delete"} & item.keys():
            read = 0
            url = path.replace("{id}", "0" * 16).replace("{queue}", "Q")
            async with offered.client(REMOTE) as http:
                answer = await http.request(method, url, content=endless(), headers=JSON)
            assert answer.status_code == 401
            assert read < MIB, (method, path)


async def test_too_many_jobs_in_one_request_are_refused(offered: World) -> None:
    one = b'{"namespace":"Q","name":"anything"}'
    status, _ = await post(offered, b"[" + b",".join([one] * 10_001) + b"]", "/jobs/api/v1/jobs")
    assert status == 422
    status, _ = await post(offered, b"\n".join([one] * 10_001), "/jobs/api/v1/jobs", content_type="application/x-ndjson")
    assert status == 422


async def test_many_bad_jobs_in_one_request_make_no_large_answer(offered: World) -> None:
    one = b'{"namespace":"Q","name":"strict","kwargs":{"numbers":[' + b",".join([b'""'] * 200) + b"]}}"
    before = cpu_s()
    status, answer = await post(offered, b"[" + b",".join([one] * 9000) + b"]", "/jobs/api/v1/jobs")
    assert status == 422
    assert len(msgspec.json.decode(answer)["detail"]) == 100
    assert cpu_s() - before < 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"])
async def test_a_compressed_body_is_not_unpacked(offered: World, encoding: str) -> None:
    bomb = gzip.compress(b" " * (64 * MIB)) if "gzip" in encoding else zlib.compress(b" " * (64 * MIB))
    for path in ("/Q/task/anything", "/jobs/api/v1/jobs"):
        status, _ = await post(offered, bomb, path, content_encoding=encoding)
        assert status == 415


@pytest.mark.parametrize("query", ["&".join(["value=1"] * 1001), "value=" + "x" * 60_000, "%00=%00", "value=%ff", "=", "&" * 1000, "%"])
async def test_a_strange_query_is_refused_or_taken(offered: World, query: str) -> None:
    status, answer = await post(offered, b"", f"/Q/task/anything?{query}")
    assert status in {200, 422}
    assert len(answer) < 20_000


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/static/../../../../etc/passwd", "/jobs/static/%2e%2e/%2e%2e/auth.py", "/jobs/static/swagger-ui/..%2f..%2f..%2fauth.py",
        "/jobs/static/%00", "/jobs/static//etc/passwd", "/jobs/static/swagger-ui/", "/jobs/static/..\\..\\auth.py",
        "/jobs/static/swagger-ui/%252e%252e/%252e%252e/docs.py",
    ],
)  # fmt: skip
async def test_static_files_are_those_of_their_directory(offered: World, path: str) -> None:
    """As raw paths, which a client that tidies them up would not send."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": path.replace("%2e", ".").replace("%2f", "/").replace("%00", "\0"),
        "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"", "headers": [(b"host", b"127.0.0.1:8220")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8220), "asgi": {"version": "3.0"}, "state": {},
    }  # fmt: skip
    await offered.app(scope, receive, send)
    assert sent[0]["status"] in {404, 405}


# --- over a real socket ---------------------------------------------------------------------------------------------------------

PROGRAM = """
from fastapi import FastAPI
from easyjobs.manager import EasyJobsManager

server = FastAPI()

@server.on_event("startup")
async def startup():
    manager = await EasyJobsManager.create(server, store="memory:", auth="required")

    @manager.task()
    async def anything(value: object = None):
        return None
"""
TOKEN = make_token(PROCESS_SECRET, [Scope.ADMIN], 0)


@pytest.fixture
def served(started: Processes, tmp_path: Path) -> Served:
    (tmp_path / "program.py").write_text(PROGRAM)
    return started.uvicorn("program:server", directory=tmp_path, env={"EASYJOBS_SECRET": PROCESS_SECRET}).until_ready()


@contextlib.contextmanager
def wire(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
        yield line


def read_head(line: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = line.recv(65_536)
        if not part:
            break
        data += part
    return data


def rss(served: Served) -> int:
    return int(Path(f"/proc/{served.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_stranger_who_sends_slowly_is_answered_before_his_body_comes(served: Served) -> None:
    with wire(served) as line:
        line.sendall(b"POST /DEFAULT/task/anything HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{")
        assert read_head(line).startswith(b"HTTP/1.1 401")


def test_a_body_that_does_not_come_ends_after_a_while(started: Processes, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("from easyjobs.http import requests\nrequests.BODY_S = 0.3\n" + PROGRAM)
    served = started.uvicorn("program:server", directory=tmp_path, env={"EASYJOBS_SECRET": PROCESS_SECRET}).until_ready()
    for path in ("/DEFAULT/task/anything", "/jobs/api/v1/jobs"):
        with wire(served) as line:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000000\r\n\r\n{{"
            line.sendall(head.encode())
            assert read_head(line).startswith(b"HTTP/1.1 408")


def test_many_slow_strangers_keep_nobody_out(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(wire(served)) for _ in range(200)]
        for line in lines:
            line.sendall(b"GET /ws/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # and never its end
        assert served.call("GET", "/jobs/api/v1/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


def test_headers_without_an_end_cost_little_memory(served: Served) -> None:
    before = rss(served)
    with wire(served) as line, contextlib.suppress(OSError):
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        for _ in range(2000):
            line.sendall(b"X-Filler: " + b"x" * 16_000 + b"\r\n")
    assert served.get("/jobs/healthz") == {"status": "ok"}
    assert rss(served) - before < 100 * MIB


def _read_all(peer: Any) -> None:
    while True:
        peer.recv(10)


def test_a_compressed_message_does_not_unpack_to_more_than_a_frame(served: Served) -> None:
    """permessage-deflate: 16 MiB of zeros in 16 KiB, from a stranger. The server's own limit ends it, before memory does."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    before = rss(served)
    for _ in range(5):
        with connect(f"ws://127.0.0.1:{served.port}/ws/jobs", max_size=None) as peer:
            peer.recv(10)
            with contextlib.suppress(ConnectionClosed):
                peer.send(b"\0" * (64 * MIB))
            with pytest.raises(ConnectionClosed):
                _read_all(peer)
    assert served.get("/jobs/healthz") == {"status": "ok"}
    until("memory is given back", lambda: rss(served) - before < 150 * MIB)
