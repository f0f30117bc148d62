"""Named places at which a test lets this process die, stop, fail or wait: `EASYJOBS_FAILPOINTS="store.committed:kill@3"`.

The variable is read once, at import. Unset, `ARMED` is False, and a place costs one look at it: no call (`python -m faults.failpoints`
measures it). A place stands where a batch passes, never where a single job does:

    if failpoints.ARMED:
        failpoints.reach("store.committed")

The variable holds `name:action`, several with commas between them. `@n` lets it happen at the n-th time only (else each time);
`action` is one of

    kill          SIGKILL to this process
    stop          SIGSTOP: the process stands still until somebody sends SIGCONT
    error         raise StoreError
    sleep=0.5     stand still for so many seconds, with the thread that came here
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Final, NamedTuple

from easyjobs.errors import ConfigurationError, StoreError

log = logging.getLogger("easyjobs.failpoints")

NAME: Final = "EASYJOBS_FAILPOINTS"
PLACES: Final = frozenset({
    "store.before_commit",  # a batch is written, and not committed
    "store.committed",  # committed, and nobody knows yet
    "store.migrating",  # a step of the schema is written, and not committed
    "intake.stored",  # a submit is durable, its answer is not sent
    "dispatcher.claimed",  # jobs are claimed, and not sent to their worker
    "socket.reported",  # reports are durable, the ack is not sent
    "scheduler.fired",  # ticks are durable
    "consumer.stored",  # messages are durable, and not acknowledged to their broker
    "sender.published",  # a broker has confirmed ends of jobs, and they are not forgotten
    "rescuer.rescued",  # jobs are put back, and nobody is told
    "link.received",  # jobs have arrived at their worker, and not begun
    "link.reported",  # reports are sent, and not acked
})  # fmt: skip


class Action(NamedTuple):
    """What happens at a place. `nth`: at that time only; 0: each time."""

    what: str
    seconds: float = 0.0
    nth: int = 0


def parse(text: str) -> Mapping[str, Action]:
    """Read the variable. Raises: ConfigurationError, naming what is wrong."""
    actions: dict[str, Action] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition(":")
        rest, at, nth = rest.partition("@")
        what, equals, seconds = rest.partition("=")
        if name not in PLACES:
            raise ConfigurationError(f"{NAME}: there is no place {name!r}: choose one of {', '.join(sorted(PLACES))}")
        if what not in ("kill", "stop", "error", "sleep") or bool(equals) != (what == "sleep"):
            raise ConfigurationError(f"{NAME}: {part!r}: the action is kill, stop, error or sleep=<seconds>")
        try:
            actions[name] = Action(what, float(seconds or 0), int(nth) if at else 0)
        except ValueError as error:
            raise ConfigurationError(f"{NAME}: {part!r}: {error}") from error
    return actions


_actions: Final = parse(os.environ.get(NAME, ""))
_times: Final[dict[str, int]] = {}
ARMED: Final = bool(_actions)

if ARMED:
    log.warning("%s is set: this process fails on purpose (%s)", NAME, os.environ[NAME])


def reach(name: str) -> None:
    """A place is reached; only called while `ARMED`."""
    action = _actions.get(name)
    if action is None:
        return
    _times[name] = times = _times.get(name, 0) + 1
    if action.nth not in (0, times):
        return
    if action.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action.what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.what == "sleep":
        threading.Event().wait(action.seconds)
    else:
        raise StoreError(f"{name}: failed on purpose, as {NAME} says")
