"""Much of everything, for a while."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from faults.cluster import site, tokens
from faults.matrix import row
from faults.proxy import FrameProxy

MAX_GROWTH_MIB = 40  # in the second half of the time: SQLite's cache (32 MiB) may still fill
MIN_SLOPE_S = 240.0  # of less than that it is the warm-up's, times a great number


@row("S1")
def soak(directory: Path, size: float) -> str:
    """Load, reconnects and registrations: memory, file descriptors, routes and threads stay."""
    seconds = 40 * size
    with site(directory) as place, FrameProxy(place.port) as proxy:
        place.start_worker(slots=20, through=proxy.port)
        began, n = time.monotonic(), 0
        samples: list[tuple[float, int, int]] = []
        while time.monotonic() - began < seconds:
            place.submit_many("work", tokens(f"s{n}-", 100))
            n += 1
            if n % 10 == 0:
                proxy.cut()
            if n % 5 == 0:
                for _ in range(20):
                    _connect_and_leave(place.port)
            time.sleep(0.2)
            samples.append(
                (time.monotonic() - began, _rss_kib(place.manager.pid), sum(1 for _ in Path(f"/proc/{place.manager.pid}/fd").iterdir()))
            )
        history = place.judged(240)  # a busy machine has a backlog by now, and each body syncs two lines
        half = samples[len(samples) // 2 :]
        grown = (half[-1][1] - half[0][1]) / 1024
        assert grown < MAX_GROWTH_MIB, f"{grown:.0f} MiB in {seconds / 2:.0f} s"
        last = samples[len(samples) * 3 // 4 :]
        hours = (last[-1][0] - last[0][0]) / 3600
        slope = ""
        if hours * 3600 >= MIN_SLOPE_S:
            slope = f", {(last[-1][1] - last[0][1]) / 1024 / hours:.0f} MiB/h over the last quarter"
        fds = [sample[2] for sample in half]
        assert max(fds) - min(fds) < 60, fds
        return (
            f"{len(history.acked)} jobs, {proxy.connects} connections, in {seconds:.0f} s; RSS {half[0][1] / 1024:.0f} MiB at half "
            f"time, {half[-1][1] / 1024:.0f} MiB at the end{slope} (SQLite's cache of 32 MiB fills at first); {min(fds)} to {max(fds)} descriptors"
        )


def _rss_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def _connect_and_leave(port: int) -> None:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        peer.sendall(
            b"GET /ws/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        peer.recv(1000)
