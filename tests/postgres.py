"""A PostgreSQL of our own: a fresh cluster on a Unix socket, in memory where there is a file system for that, which ends with the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

TABLES = "jobs, attempts, managers, counters, sessions, idempotency, uniques, paused, tasks, meta, schedules, ticks, seen, logs, forgotten, quarantine, replies, outbox, tokens"


def binaries() -> Path | None:
    """The directory of the newest server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])) if os.name == "posix" else []
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


def _as_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as the user `postgres`."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command] if os.geteuid() == 0 else command


class Cluster:
    """A running server. `url(database)` is how to reach it; with a `port`, that port of 127.0.0.1 too."""

    def __init__(self, directory: Path, binaries: Path, *, options: tuple[str, ...] = (), port: int | None = None) -> None:
        self.directory, self.binaries, self.port = directory, binaries, port
        self.options = options if port is None else (f"port={port}", "listen_addresses=127.0.0.1", *options)
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        port = "" if self.port is None else f"&port={self.port}"
        return f"postgresql://postgres@/{database}?host={quote(str(self.directory), safe='')}{port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            str(self.binaries / "postgres"), "-D", str(self.directory / "data"), "-k", str(self.directory), "-c", "listen_addresses=",
            *(part for option in ("max_connections=60", *self.options) for part in ("-c", option)),
        ]  # fmt: skip
        with (self.directory / "log").open("ab") as output:
            self.process = subprocess.Popen(
                _as_user(command), stdout=output, stderr=output, start_new_session=True, cwd=self.directory, env=_clean()
            )
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.directory), "-p", str(self.port or 5432)]
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError((self.directory / "log").read_text())
            if subprocess.run(ready, check=False, env=_clean()).returncode == 0:
                return
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("PostgreSQL does not answer")

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: SIGQUIT at once, as after a power cut; SIGINT orderly. setpriv has become the server, so this is its own process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)
        self.process = None

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run something in psql."""
        command = [str(self.binaries / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", text]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=_clean()).stdout


@contextmanager
def standby_of(primary: Cluster, port: int) -> Iterator[Cluster]:
    """A second server that copies the first one, which listens on a port."""
    with tempfile.TemporaryDirectory(prefix="easyjobs-pg-", dir=primary.directory.parent) as name:
        directory = Path(name)
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        copy = [
            str(primary.binaries / "pg_basebackup"),
            "-D",
            str(directory / "data"),
            "-d",
            primary.url(),
            "-R",
            "-c",
            "fast",
            "-X",
            "stream",
        ]
        subprocess.run(_as_user(copy), check=True, stdout=subprocess.DEVNULL, cwd=directory, env=_clean())
        server = Cluster(directory, primary.binaries, port=port)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _skip(why: str) -> NoReturn:
    import pytest  # not there for benchmarks

    pytest.skip(why)


@contextmanager
def cluster(*options: str, directory: Path | None = None, port: int | None = None) -> Iterator[Cluster]:
    """Make a cluster, start it, and take everything away at the end. Skips the test where PostgreSQL is not installed."""
    bin = binaries()
    if bin is None:
        _skip("no PostgreSQL server is installed here (looked for /usr/lib/postgresql/*/bin/postgres)")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        _skip("PostgreSQL does not run as root, and there is no setpriv to become another user")
    with tempfile.TemporaryDirectory(prefix="easyjobs-pg-", dir=directory or ("/dev/shm" if Path("/dev/shm").is_dir() else None)) as name:
        directory = Path(name)
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        subprocess.run(
            _as_user([str(bin / "initdb"), "-D", str(directory / "data"), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]),
            check=True, stdout=subprocess.DEVNULL, cwd=directory, env=_clean(),
        )  # fmt: skip
        server = Cluster(directory, bin, options=options, port=port)
        server.start()
        try:
            yield server
        finally:
            server.stop()


RESTORE = f"truncate {', '.join(f'easyjobs.{table.strip()}' for table in TABLES.split(','))} restart identity"
