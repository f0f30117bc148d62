"""A RabbitMQ of the test's own: on free ports, in a directory of its own, ended by its process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.processes import free_port, until

BINARIES = ("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")


def program() -> str:
    """The server itself: the wrapper in /usr/sbin would change the user."""
    for path in sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server")):
        return str(path)
    found = next(filter(None, map(shutil.which, BINARIES)), None)
    if found is None:
        import pytest  # here: benchmarks use this module too, and have none

        pytest.skip("rabbitmq-server is not installed: apt-get install rabbitmq-server")
    return found


class Rabbit:
    """A server that can be killed and started again with the same data."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory, self.port, self._dist = directory, port or free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"easyjobs-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self) -> None:
        (self.directory / "enabled_plugins").write_text("[].")
        (self.directory / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users.guest = true\n")
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen([program()], env=self._environment, stdout=output, stderr=output, start_new_session=True)
        until("RabbitMQ listens", self._listens, 90, 0.1)

    def ctl(self, *words: str) -> str:
        """Run rabbitmqctl with this server; what it printed. Raises: CalledProcessError."""
        command = [str(Path(program()).with_name("rabbitmqctl")), "-q", *words]
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True, timeout=60).stdout

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "output").read_text()[-3000:]
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(2)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))

    def until_registered(self) -> None:
        """Until the names of all quorum queues are on the disk.

        RabbitMQ 3.10 holds them in memory for up to three seconds (a dets file's delayed writes): when it is killed before, the queue is there
        after the restart and has neither a leader nor its messages.
        """
        [quorum] = (self.directory / "mnesia").glob("*/quorum/*")

        def are_there() -> bool:
            names = (quorum / "names.dets").read_bytes()
            queues = [entry.name.encode() for entry in quorum.iterdir() if entry.is_dir()]
            return bool(queues) and all(queue in names for queue in queues)

        until("the queues' names are on the disk", are_there, 30, 0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def rabbit(directory: Path, port: int | None = None) -> Iterator[Rabbit]:
    """A running server."""
    server = Rabbit(directory, port)
    try:
        server.start()
        yield server
    finally:
        server.kill()
