"""`@subprocess`, for the files in WORKER_TASK_DIR. Only the standard library: such a file must start fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def subprocess(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function the body of a subprocess task. Raises: NotImplementedError, in this version."""
    raise NotImplementedError(
        f"subprocess tasks ({fn.__name__}) are not available in this version of easyjobs: register a plain def, which runs in a thread"
    )
