"""Where the servers are that tests start, and how they come onto a machine: `python -m tests.servers` is what `make test` and `make faults` do first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests import postgres

NEEDED = (
    "chromium",
    "nats-server",
    "pgbouncer",
    "postgresql",
    "rabbitmq-server",
    "redis-server",
    "strace",
)  # Debian's packages; they are called as their programs, but …
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def is_here(package: str) -> bool:
    """Whether its program is. … PostgreSQL's are not on the path."""
    return (postgres.binaries() if package == "postgresql" else shutil.which(package, path=PATH)) is not None


def program(name: str) -> str:
    """The path of a server's program; a test that needs one which is missing is skipped, with what to install."""
    found = shutil.which(name, path=PATH)
    if found is None:
        import pytest  # here, as the benchmarks do without it

        pytest.skip(f"{name} is not installed: apt-get install {name}")
    return found


def install() -> None:
    """Install what is missing, if that can be done here; else say what to install. Starts nothing, and never fails."""
    missing = [package for package in NEEDED if not is_here(package)]
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"tests that need {', '.join(missing)} will be skipped: {' '.join(command)}", file=sys.stderr)
        return
    # RUNLEVEL=1: a package's scripts start no service in it.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for line in (["apt-get", "update"], command):
        done = subprocess.run(line, env=environment, check=False, stdout=subprocess.DEVNULL)
        if done.returncode:
            print(f"{' '.join(line)} failed: tests that need {', '.join(missing)} will be skipped", file=sys.stderr)
            return


if __name__ == "__main__":
    install()
