"""The file of the task `from_file`: it stamps the time."""

import mmap
import os
import struct
import time
from pathlib import Path

from easyjobs.workers.task import subprocess


@subprocess
def work(n: int) -> int:
    """Stamp slot n with CLOCK_MONOTONIC nanoseconds."""
    with Path(os.environ["BENCH_STAMPS"]).open("r+b") as file:
        struct.pack_into("<q", mmap.mmap(file.fileno(), 0), n * 8, time.monotonic_ns())
    return n + 1


if __name__ == "__main__":
    work()
