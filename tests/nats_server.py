"""A NATS server of the test's own: on a free port, in a directory of its own, ended by its process."""

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


class NatsServer:
    """A server that can be killed and started again with the same data."""

    def __init__(self, directory: Path, jetstream: bool = True, tls: bool = False) -> None:
        self.directory, self.jetstream, self.port = directory, jetstream, free_port()
        self._tls = ""
        if tls:
            from tests import certificate  # here, as the benchmarks do without it

            self.certificate, key = certificate.make(directory)
            self._tls = f'tls {{ cert_file: "{self.certificate}", key_file: "{key}" }}'
        self.url = f"nats://jobs:{PASSWORD}@127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        lines = [
            f"listen: 127.0.0.1:{self.port}",
            f'jetstream {{ store_dir: "{self.directory / "store"}" }}' if self.jetstream else "",
            "max_payload: 4MB",
            self._tls,
            "authorization { users: [",
            f'  {{ user: jobs, password: "{PASSWORD}" }},',
            # What docs/nats.md says that is needed, for a namespace.
            "  { user: limited, password: limited, permissions: {",
            '    publish: ["LIMITED", "LIMITED.dead", "$JS.API.>", "$JS.ACK.>"], subscribe: "_INBOX.>" } },',
            '  { user: guest, password: guest, permissions: { publish: ["_INBOX.>", "$JS.API.INFO"], subscribe: "_INBOX.>" } },',
            "] }",
        ]
        (self.directory / "nats.conf").write_text("\n".join(lines) + "\n")
        argv = [program("nats-server"), "-c", str(self.directory / "nats.conf")]
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(argv, env={"PATH": os.environ["PATH"]}, stdout=output, stderr=output, start_new_session=True)
        until("NATS listens", self._listens, 30, 0.02)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "output").read_text()[-3000:]
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(2)
            return connection.recv(64).startswith(b"INFO")

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
def nats_server(directory: Path, jetstream: bool = True, tls: bool = False) -> Iterator[NatsServer]:
    """A running server."""
    server = NatsServer(directory, jetstream, tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()
