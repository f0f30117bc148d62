"""Where the result of a job is sent to, and what waits to be sent."""

from __future__ import annotations

from typing import Final

import msgspec

from easyjobs.domain.lifecycle import JobState

MAX_ADDRESS: Final = 255  # characters of the name of a broker's queue


class Reply(msgspec.Struct, frozen=True):
    """Where a job's end is told: a queue of a broker. `correlation`: what the message answers to; None: the job's id."""

    broker: str
    queue: str
    correlation: str | None = None


class Unsent(msgspec.Struct, frozen=True):
    """The end of a job at `at`, to be sent. `job` is its id; `body` the JSON of its result, or of its error, or b"" where there is neither."""

    id: int
    queue: str
    correlation: str | None
    at: int
    job: bytes
    lane: int
    state: JobState
    attempt: int
    body: bytes


def address(text: str, brokers: tuple[str, ...]) -> tuple[str, str]:
    """Read `queue` (of the first broker) or `broker/queue`: (broker, queue).

    Raises: ValueError; also for a slash after what is no broker's name: a mistyped one would send results where nobody looks.
    """
    if not text or len(text) > MAX_ADDRESS or not text.isprintable():
        raise ValueError(f"a queue has 1 to {MAX_ADDRESS} printable characters, not {text[:80]!r}")
    if not brokers:
        raise ValueError(f"{text!r} is a queue of a message broker, and this manager has none: pass broker_path=…")
    broker, slash, queue = text.partition("/")
    if not slash:
        return brokers[0], text
    if broker not in brokers or not queue:
        known = ", ".join(repr(name) for name in brokers)
        raise ValueError(f"{text!r}: no broker is called {broker!r}, there is {known}; write {brokers[0]}/{text} for a queue of this name")
    return broker, queue


class _Told(msgspec.Struct, frozen=True):
    job_id: str
    namespace: str
    name: str
    status: str
    result: msgspec.Raw
    error: msgspec.Raw
    attempt: int
    finished_at: str
    correlation_id: str


def message(unsent: Unsent, *, job_id: str, namespace: str, name: str, finished_at: str) -> bytes:
    """The JSON that tells the end of a job. `result` is null unless it succeeded, `error` unless it failed."""
    nothing = msgspec.Raw(b"null")
    body = msgspec.Raw(unsent.body) if unsent.body else nothing
    is_good = unsent.state is JobState.SUCCEEDED
    return msgspec.json.encode(
        _Told(
            job_id=job_id,
            namespace=namespace,
            name=name,
            status=unsent.state.name.lower(),
            result=body if is_good else nothing,
            error=nothing if is_good else body,
            attempt=unsent.attempt,
            finished_at=finished_at,
            correlation_id=unsent.correlation or job_id,
        )
    )
