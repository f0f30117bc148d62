"""Runs the seed's broker program and a producer on the ports that they name: in a network of its own, where these are free.

unshare -rn python -m tests.acceptance.seed_broker DIRECTORY
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.acceptance.seed import PROGRAMS
from tests.processes import ROOT, processes, until
from tests.rabbit import rabbit

PORT = 5672
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40


def raise_loopback() -> None:
    """A new network has a loopback that is down."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING) + bytes(22))


def main(directory: Path) -> None:
    """Start all, send, look."""
    raise_loopback()
    with rabbit(directory, PORT), processes() as started:
        produce = [sys.executable, str(PROGRAMS / "seed_producer.py")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run(produce, check=True, timeout=60, env=environment)  # first: the manager consumes later
        env = {"DB_PATH": str(directory / "database")}
        manager = started.uvicorn("seed_broker_manager:server", directory=PROGRAMS, name="manager", env=env).until_ready()
        manager.wait_for_line("basic_job: 1 2 3 - args (4,)")
        subprocess.run(produce, check=True, timeout=60, env=environment)
        until("all jobs have run", lambda: len(manager.get("/jobs/api/v1/jobs?status=succeeded&limit=100")["items"]) == 22, 60)
        printed = re.findall(r"basic_job: .*", manager.log)
        assert len(printed) == 22, printed
    print("as written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
