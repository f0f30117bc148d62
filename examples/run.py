"""`make run`: a manager on http://127.0.0.1:8220, a worker, one job over HTTP; then it serves until Ctrl-C or SIGTERM.

Jobs are kept in .run/ (or DB_PATH) and are still there the next time. PORT=… takes another port.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("DB_PATH", HERE.parent / ".run"))
PORT = int(os.environ.get("PORT", "8220"))
URL = f"http://127.0.0.1:{PORT}"

stop = threading.Event()


def ask(method: str, path: str, body: object = None) -> Any:
    """The JSON of an HTTP answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=35) as answer:
        return json.load(answer)


def serve(app: str, port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """An app under uvicorn, in a process group of its own: Ctrl-C comes to us, and we stop worker and manager in order."""
    options = ["--app-dir", str(HERE), "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    return subprocess.Popen([sys.executable, "-m", "uvicorn", *options, app], env=environment, process_group=0)


def wait_until(what: str, is_so: Callable[[], bool], processes: list[subprocess.Popen[bytes]], seconds: float = 30) -> None:
    """Ask again and again; leave with a sentence when a process has ended or time is up."""
    for _ in range(int(seconds / 0.1)):
        if any(process.poll() is not None for process in processes):
            sys.exit(f"A process ended before {what}: see above. Is something else using port {PORT}? PORT=8230 make run takes another.")
        with contextlib.suppress(urllib.error.URLError, OSError):
            if is_so():
                return
        if stop.wait(0.1):
            sys.exit(0)
    sys.exit(f"Not within {seconds:.0f} s: {what}")


def main() -> int:
    """Start, show, serve, stop: the worker first, so that its last results still find the manager."""

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    DATA.mkdir(exist_ok=True)
    environment = {**os.environ, "DB_PATH": str(DATA), "JOBS_SECRET": secrets.token_urlsafe(32), "MANAGER_PORT": str(PORT)}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(serve("job_manager:server", PORT, environment))
        wait_until("the manager was ready", lambda: bool(ask("GET", "/jobs/readyz")), processes)
        processes.append(serve("job_worker:server", 0, environment))
        wait_until(
            "the worker offered its tasks", lambda: "add" in {task["name"] for task in ask("GET", "/jobs/api/v1/tasks")["items"]}, processes
        )
        print(f"The manager serves on {URL}, a worker is connected.\n")

        arguments = {"a": 40, "b": 2}
        print(f"POST {URL}/DEFAULT/task/add {json.dumps(arguments)}")
        job_id = ask("POST", "/DEFAULT/task/add", arguments)["request_id"]
        print(f'  {{"request_id": "{job_id}"}}')
        print(f"GET {URL}/job/pull/result?request_id={job_id}&wait=30")
        print(f"  {json.dumps(ask('GET', f'/job/pull/result?request_id={job_id}&wait=30'))}\n")
        print(f"Every task with its arguments: {URL}/docs\nCtrl-C stops it.", flush=True)
        while not stop.wait(0.5):
            for process in processes:
                if process.poll() is not None:
                    print(f"A process ended by itself with code {process.returncode}.", file=sys.stderr)
                    return 1
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(35)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    print("\nStopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
