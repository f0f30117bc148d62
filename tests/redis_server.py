"""A Redis of the test's own: on a free port, in a directory of its own, ended by its process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.processes import free_port, until
from tests.servers import program

PASSWORD = "a-password-of-the-tests"


class RedisServer:
    """A server that can be killed and started again with the same data. `fsync`: its `appendfsync`; the users are `default` and `jobs`."""

    def __init__(self, directory: Path, fsync: str = "always", tls: bool = False) -> None:
        self.directory, self.fsync, self.port, self.tls_port = directory, fsync, free_port(), free_port()
        self._tls: list[str] = []
        if tls:
            from tests import certificate  # here, as the benchmarks do without it

            self.certificate, key = certificate.make(directory)
            self._tls = [f"tls-port {self.tls_port}", f"tls-cert-file {self.certificate}", f"tls-key-file {key}", "tls-auth-clients no"]
        self.url = f"redis://jobs:{PASSWORD}@127.0.0.1:{self.port}/0"
        self.socket = directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            *self._tls,
            f"unixsocket {self.socket}",
            f"dir {self.directory}",
            "appendonly yes",
            f"appendfsync {self.fsync}",
            'save ""',
            f"user jobs on >{PASSWORD} ~* +@stream +@connection +@transaction +eval",  # what docs/redis.md says that is needed
            "user default on nopass ~* +@all",
        ]
        (self.directory / "redis.conf").write_text("\n".join(lines) + "\n")
        argv = [program("redis-server"), str(self.directory / "redis.conf")]
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(argv, env={"PATH": os.environ["PATH"]}, stdout=output, stderr=output, start_new_session=True)
        until("Redis answers", self._answers, 30, 0.02)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "output").read_text()[-3000:]
        return self.command("PING") == b"+PONG"

    def command(self, *words: str) -> bytes:
        """One command with a short answer, as the user `default`."""
        with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
            connection.settimeout(5)
            raw = "".join([f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)])
            connection.sendall(raw.encode())
            return connection.recv(65536).strip()

    def send(self, number: int) -> None:
        """A signal; after SIGSTOP the process has stopped, with all its threads."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitpid(self._process.pid, os.WUNTRACED)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait(30)
            self._process = None


@contextlib.contextmanager
def redis_server(directory: Path, fsync: str = "always", tls: bool = False) -> Iterator[RedisServer]:
    """A running server."""
    server = RedisServer(directory, fsync, tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()
