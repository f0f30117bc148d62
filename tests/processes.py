"""Starts real managers and workers on free ports, waits for them, and ends exactly what it started.

Only the standard library: the benchmarks use it too. Everything here has a deadline, in seconds. A process gets a session of its own, so
that whatever it forks ends with it; its output is read by a thread, kept as lines, and can be waited for.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a-secret-that-only-the-tests-know-0123456789"
T = TypeVar("T")


class NotInTime(AssertionError):
    """What was waited for did not happen before its deadline."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would every program that it starts: programs that are to be sent one must not inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now, and that no outgoing connection will be given: those begin at 32768, and 49152 elsewhere."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # a test's seed must not give two processes the same ports
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(what: str, condition: Callable[[], T | None], within_s: float = 20.0, every_s: float = 0.02) -> T:
    """Ask `condition` until it answers something true, and return that.

    For states that only another process knows, and that it has no way to tell us of. A refused connection counts as "not yet".
    """
    end = time.monotonic() + within_s
    last: BaseException | None = None
    while True:
        try:
            answer = condition()
        except (OSError, http.client.HTTPException) as error:
            answer, last = None, error
        if answer:
            return answer
        if time.monotonic() > end:
            raise NotInTime(f"not within {within_s} s: {what}") from last
        time.sleep(every_s)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def http_call(method: str, url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, within_s: float = 20.0) -> Answer:
    """One request on a connection of its own. `body`: bytes as they are, anything else as JSON."""
    parts = urlsplit(url)
    assert parts.hostname, url
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json"} if raw is not None else {}
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=within_s)
    try:
        connection.request(method, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), raw, {**sent, **(headers or {})})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def clean_environment(extra: Mapping[str, str] | None = None, *, paths: Sequence[Path] = ()) -> dict[str, str]:
    """Our environment without easyjobs' own variables, with `paths` and this checkout importable, and `extra`."""
    names = ("DB_PATH", "MANAGER_HOST", "MANAGER_PORT", "WORKER_TASK_DIR", "PYTHONWARNINGS", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASYJOBS_") and name not in names}
    importable = os.pathsep.join(str(path) for path in (*paths, ROOT / "src"))
    return {**kept, "PYTHONPATH": importable, "PYTHONUNBUFFERED": "1", **(extra or {})}


@dataclass
class Process:
    """A program that we started. `name` is for messages."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path | None = None
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._ended = False
        self.popen = subprocess.Popen(
            self.argv,
            env=dict(self.env),
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {self.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self.popen.stdout:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def wait_for_line(self, text: str, within_s: float = 20.0, *, after: int = 0) -> str:
        """The first line from number `after` on that contains `text`. Fails at once when the program has ended without it."""
        end = time.monotonic() + within_s
        with self._news:
            while True:
                for line in self.lines[after:]:
                    if text in line:
                        return line
                left = end - time.monotonic()
                if left <= 0 or self._ended:
                    why = "it has ended" if self._ended else f"not within {within_s} s"
                    raise NotInTime(f"{self.name} did not say {text!r}: {why}\n--- its log ---\n{self.log[-6000:]}")
                self._news.wait(left)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the program and everything it forked, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(10)
        self._finish_reading()

    def wait(self, within_s: float = 20.0) -> int:
        """The exit code (negative: the signal)."""
        try:
            code = self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise NotInTime(f"{self.name} still runs after {within_s} s\n--- its log ---\n{self.log[-6000:]}") from None
        self._finish_reading()
        return code

    def stop(self, within_s: float = 20.0) -> int:
        """SIGTERM, and wait; the exit code. Killed if it takes longer, and that is an error."""
        if self.is_running:
            self.signal(signal.SIGTERM)
        try:
            return self.wait(within_s)
        finally:
            self.kill()

    def close(self) -> None:
        """Make sure that nothing is left: for the end of a test, whatever happened in it."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGCONT)
        self.kill()

    def _finish_reading(self) -> None:
        self._reader.join(5)
        if not self._reader.is_alive() and self.popen.stdout is not None:
            self.popen.stdout.close()


@dataclass
class Served(Process):
    """A program that serves HTTP on `port` of 127.0.0.1."""

    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        return http_call(method, self.url + path, body, **more)

    def get(self, path: str, **more: Any) -> Any:
        """The JSON of a 200."""
        answer = self.call("GET", path, **more)
        assert answer.status == 200, f"GET {path}: {answer.status} {answer.body[:500]!r}\n--- log of {self.name} ---\n{self.log[-3000:]}"
        return answer.json()

    def submit(self, namespace: str, name: str, body: Any) -> str:
        """Submit over HTTP; the job's id, once it is durable."""
        answer = self.call("POST", f"/{namespace}/task/{name}", body)
        assert answer.status == 200, f"{namespace}/{name}: {answer.status} {answer.body[:500]!r}"
        return str(answer.json()["request_id"])

    def job(self, job_id: str) -> Any:
        return self.get(f"/jobs/api/v1/jobs/{job_id}")

    def until_status(self, job_id: str, status: str, within_s: float = 20.0) -> Any:
        """The job, once it has this status."""

        def arrived() -> Any:
            job = self.job(job_id)
            return job if job["status"] == status else None

        try:
            return until(f"job {job_id} is {status}", arrived, within_s)
        except NotInTime as error:
            raise NotInTime(f"{error}; it is {self.job(job_id)}\n--- log of {self.name} ---\n{self.log[-3000:]}") from None

    def until_offered(self, *paths: str, within_s: float = 10.0) -> None:
        """Until every one of these paths is an operation of /openapi.json."""
        until(f"{paths} in /openapi.json", lambda: set(paths) <= set(self.get("/openapi.json")["paths"]), within_s)

    def until_ready(self, within_s: float = 20.0) -> Self:
        def ready() -> bool:
            if not self.is_running:
                raise NotInTime(f"{self.name} ended with {self.popen.returncode}\n--- its log ---\n{self.log[-6000:]}")
            return self.call("GET", "/jobs/readyz").status == 200

        until(f"{self.name} is ready\n{self.log[-3000:]}", ready, within_s)
        return self


class Processes:
    """Starts programs, and ends all of them at the end, newest first."""

    def __init__(self) -> None:
        self.started: list[Process] = []

    def program(
        self, argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None, paths: Sequence[Path] = (), cwd: Path | None = None
    ) -> Process:
        """Any program; `paths` become importable."""
        process = Process(name, argv, clean_environment(env, paths=paths), cwd)
        self.started.append(process)
        return process

    def uvicorn(
        self,
        app: str,
        *options: str,
        directory: Path,
        name: str = "",
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        cwd: Path | None = None,
    ) -> Served:
        """`uvicorn app options` with `directory` importable, on a free port unless one is given. Does not wait."""
        port = port or free_port()
        argv = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), *options, app]
        process = Served(name or app, argv, clean_environment(env, paths=[directory]), cwd, port=port)
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self.started):
            process.close()
        self.started.clear()


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """All that is started inside ends with the block; a SIGTERM to us ends it too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    group = Processes()
    before = signal.signal(signal.SIGTERM, leave) if threading.current_thread() is threading.main_thread() else None
    try:
        yield group
    finally:
        group.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
