"""Processes whose wall clock is off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from faults.matrix import Skipped

SOURCE = Path(__file__).parent / "programs" / "other_clock.c"


class OtherClock:
    """A library for this machine, in `directory`. Raises: Skipped without a C compiler."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Skipped("there is no C compiler (Debian: gcc, libc6-dev), and no process can have another clock without one")
        self._library = directory / "other_clock.so"
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library), str(SOURCE), "-ldl"], check=True, capture_output=True
        )

    def environment(self, offset_s: int) -> dict[str, str]:
        """What a process is started with whose clock is so many seconds ahead (below 0: behind)."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_S": str(offset_s)} if offset_s else {}


__all__ = ["OtherClock"]
