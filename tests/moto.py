"""Amazon SQS as moto plays it: a server of the test's own, on a free port, with its queues in memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.processes import ROOT, free_port, http_call, until

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_SESSION_TOKEN": "a-session-token"}
AWS = {
    **CREDENTIALS,
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""The environment of a program that uses the server, whatever this machine has of AWS."""


class Moto:
    """A server, `module` its program. Its queues are gone when it has ended."""

    def __init__(self, directory: Path, env: Mapping[str, str], module: str = "tests.moto_server") -> None:
        self.directory, self.port, self.module = directory, free_port(), module
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, port: int | None = None, *, wait: int = 1, visibility: int = 5, **more: str) -> str:
        """For `open_broker`, or a producer. `port`: of a proxy."""
        options = "".join(f"&{name}={value}" for name, value in more.items())
        return f"sqs+http://127.0.0.1:{port or self.port}?wait={wait}&visibility={visibility}{options}"

    def start(self) -> None:
        argv = [sys.executable, "-m", self.module, "-H", "127.0.0.1", "-p", str(self.port)]
        with (self.directory / "output").open("ab") as output:
            env = {**os.environ, **AWS, "PYTHONWARNINGS": "ignore", **self._env}
            self._process = subprocess.Popen(argv, env=env, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
        until("moto listens", self._listens, 60, 0.1)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "output").read_text()[-3000:]
        return http_call("GET", f"{self.endpoint}/moto-api/").status == 200

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def moto(directory: Path, *, module: str = "tests.moto_server", **env: str) -> Iterator[Moto]:
    """A running server; `env`: further variables of its process."""
    server = Moto(directory, env, module)
    try:
        server.start()
        yield server
    finally:
        server.kill()
