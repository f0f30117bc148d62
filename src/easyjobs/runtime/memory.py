"""What a process that serves for long tells the garbage collector once, at its start."""

from __future__ import annotations

import gc

_is_settled = False


def settle() -> None:
    """Take what is alive now (modules, schemas, the app) out of all later collections.

    Jobs come and go as thousands of small objects, which brings full collections on, and each of those walks through everything that
    was imported. Measured with two workers on two cores: 8 % more jobs per second. It happens once in a process, so that what dies
    later is still collected.
    """
    global _is_settled
    if not _is_settled:
        _is_settled = True
        gc.collect()
        gc.freeze()
