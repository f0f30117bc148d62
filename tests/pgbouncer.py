"""A PgBouncer of our own before a PostgreSQL of our own: transaction mode, few connections, and each transaction gets the next one in turn."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.postgres import Cluster, _as_user, _clean
from tests.processes import free_port, until

SETTINGS = """
[databases]
* = host={socket}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = 4
min_pool_size = 4
max_client_conn = 200
server_round_robin = 1
server_idle_timeout = 5
logfile = {directory}/log
"""


class Bouncer:
    """A PgBouncer that can be stopped and started again. `url(database)` is how to reach the server through it."""

    def __init__(self, directory: Path, program: str, port: int, cluster: Cluster) -> None:
        self.directory, self.program, self.port, self.cluster = directory, program, port, cluster
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", *, said: bool = True) -> str:
        """`said`: with what tells easyjobs that there is a pooler."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}{'?statement_cache_size=0' if said else ''}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = _as_user([self.program, "-q", str(self.directory / "ini")])
        with (self.directory / "output").open("ab") as output:
            process = self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=_clean())
        ready = [str(self.cluster.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]

        def answers() -> bool:
            assert process.poll() is None, (self.directory / "output").read_text() + (self.directory / "log").read_text()
            return subprocess.run(ready, check=False, env=_clean()).returncode == 0

        until("PgBouncer answers", answers, 20)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, at once. setpriv has become PgBouncer, so this is its own process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(20)


@contextmanager
def bouncer(cluster: Cluster) -> Iterator[Bouncer]:
    """Start a PgBouncer, and end it. Skips the test where there is none."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    with tempfile.TemporaryDirectory(prefix="easyjobs-pgbouncer-") as name:
        directory, port = Path(name), free_port()
        (directory / "users").write_text('"postgres" ""\n')
        (directory / "ini").write_text(SETTINGS.format(socket=cluster.directory, port=port, directory=directory))
        if os.geteuid() == 0:  # which it refuses, as PostgreSQL does
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, "postgres", "postgres")
        running = Bouncer(directory, program, port, cluster)
        running.start()
        try:
            yield running
        finally:
            running.stop()
