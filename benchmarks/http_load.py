"""HTTP submits per second on keep-alive connections: by wrk where it is installed, else by a small asyncio client."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

BODY = b'{"n":1}'


def requests_per_s(port: int, path: str, *, connections: int, seconds: float) -> tuple[float, str]:
    """The rate, and what measured it. Raises RuntimeError if an answer was not a 2xx."""
    if shutil.which("wrk"):
        return _by_wrk(port, path, connections, seconds), "wrk"
    return asyncio.run(_by_asyncio(port, path, connections, seconds)), "asyncio"


def _by_wrk(port: int, path: str, connections: int, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch, "post.lua")
        script.write_text(f'wrk.method="POST"\nwrk.body=\'{BODY.decode()}\'\nwrk.headers["Content-Type"]="application/json"\n')
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(script), f"http://127.0.0.1:{port}{path}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 30).stdout
    if "Non-2xx" in said:
        raise RuntimeError(said)
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not found:
        raise RuntimeError(said)
    return float(found[1])


async def _by_asyncio(port: int, path: str, connections: int, seconds: float) -> float:
    request = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        + BODY
    )
    end, done = time.perf_counter() + seconds, 0

    async def ask() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 2"):
                raise RuntimeError(head.decode())
            found = re.search(rb"content-length: (\d+)", head.lower())
            await reader.readexactly(int(found[1]) if found else 0)
            done += 1
        writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return done / seconds
