"""The values that travel between the store, the services and the wire.

These are msgspec structs, not dataclasses: tens of thousands of them are made per second, and a frozen dataclass costs several
times as much to build. They are frozen all the same.

Instants are integers of microseconds since 1970 (UTC), named `…_at`; durations name their unit. Arguments and results are JSON
bytes from end to end. Arguments are always the array `[args, kwargs]`, for instance `b'[[1,2],{"c":3}]'`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import msgspec

from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.replies import Reply
from easyjobs.errors import LONGEST_S

QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_ARGUMENTS: Final = 1024 * 1024  # bytes
MAX_RESULT: Final = 4 * 1024 * 1024
MAX_FRAME: Final = 8 * 1024 * 1024
MAX_BULK_BYTES: Final = 8 * 1024 * 1024
MAX_BULK_JOBS: Final = 10_000
MAX_DEPTH: Final = 32
UNLIMITED: Final = -1  # for `max_retries`

# Checked where frames are decoded, so that no number of a worker's leaves what every store, and a date, can hold.
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
AttemptNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Span: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=LONGEST_S * 1_000_000)]
"""Microseconds, up to ten years."""


class Spec(msgspec.Struct, frozen=True):
    """What a job carries besides its id and arguments. Plain jobs of one task share one Spec, so the store can insert them as one set.

    `lane` is the store's number of the (queue, task). `max_retries` of -1 has no end. `run_at` in the future makes the job scheduled.
    `priority`: higher first; one step is worth 60 s of waiting. `timeout_us`: of each attempt; `expires_us`: from the submit, for the
    job to be started; `ttl_us`: how long a result is kept after the end; each None for none. `traceparent`: of whoever submitted the job, as
    W3C Trace Context has it: ASCII, 55 characters.
    """

    lane: int
    max_retries: int = 1
    max_crashes: int = 3
    priority: int = 0
    run_at: int | None = None
    timeout_us: int | None = None
    expires_us: int | None = None
    ttl_us: int | None = None
    traceparent: str | None = None


CALL: Final = "call:"  # edges of children that a running job called and may wait for, each with a fingerprint of the call
BEFORE: Final = "run_before:"  # edges of jobs that must succeed before their parent is queued
MAX_DEPTH_OF_CHAIN: Final = 1000


class Parent(msgspec.Struct, frozen=True):
    """Who a job descends from: unique by (`seq`, `edge`, the parent's round), so that it is born once.

    `edge`: "run_after:<queue>/<task>", "on_failure:<queue>/<task>", "run_before:<queue>/<task>", or "call:<fingerprint>". `when`: the
    parent's new state that brings it to life; None: any. `holder`, of a call: the (attempt, session) that calls; the call is refused
    unless that attempt owns the parent. A job with more than `max_depth` generations above it is born failed.

    A call is found again by the parent's next attempts: while the child lives, or has succeeded, it is that child; else a new one.
    """

    seq: int
    edge: str
    when: JobState | None = None
    holder: tuple[int, int] | None = None
    max_depth: int = MAX_DEPTH_OF_CHAIN


class UniqueKey(msgspec.Struct, frozen=True):
    """While a job of this key is in one of `states`, and no longer than `period_us` after its submit, another submit gives that job."""

    key: bytes
    states: tuple[JobState, ...]
    period_us: int | None = None


class NewJob(msgspec.Struct, frozen=True):
    """A job to be. `id` is a UUIDv7, 16 bytes; `args` is JSON `[args, kwargs]`.

    `befores` are stored with it, and it waits until all of them have succeeded; their parent is this job, whatever `seq` they name.
    `reply`: where each of its ends is told.
    """

    id: bytes
    spec: Spec
    args: bytes
    parent: Parent | None = None
    befores: tuple[NewJob, ...] = ()
    unique: UniqueKey | None = None
    reply: Reply | None = None


def with_predecessors(jobs: Iterable[NewJob]) -> Iterator[NewJob]:
    """Yield jobs, each followed by its predecessors, and theirs."""
    for job in jobs:
        yield job
        yield from with_predecessors(job.befores)


def lanes_of(jobs: Iterable[NewJob]) -> set[int]:
    """The lanes of jobs and of their predecessors."""
    return {job.spec.lane for job in with_predecessors(jobs)}


class IdempotencyKey(msgspec.Struct, frozen=True):
    """Makes a submit repeatable: unique by (`principal`, `scope`, `key`); `body` is a hash of what was sent.

    `keep_us`: for so long; None: for as long as all keys of people and programs are kept (24 h).
    """

    principal: str
    scope: str  # "queue/task", or "" for a bulk request
    key: str
    body: bytes
    keep_us: int | None = None


class Submission(msgspec.Struct, frozen=True):
    """Jobs that are stored all or none."""

    jobs: tuple[NewJob, ...]
    key: IdempotencyKey | None = None


class SubmitVerdict(IntEnum):
    """What became of a submission."""

    ACCEPTED = 0
    REPEATED = 1  # all of it was there: the same key, ids, calls or unique keys; the ids are those of the first time
    CONFLICT = 2  # the same key, or an id, with another body: nothing was stored
    ORPHANED = 3  # the attempt that calls no longer owns its job: nothing was stored


class Submitted(msgspec.Struct, frozen=True):
    """The store's answer to a submission, after the commit."""

    verdict: SubmitVerdict
    ids: tuple[bytes, ...]


class Want(msgspec.Struct, frozen=True):
    """A session asks for up to `room` jobs (and about `max_bytes` of arguments) of these lanes."""

    session: int
    lanes: tuple[int, ...]
    room: int
    max_bytes: int = MAX_FRAME // 2


class Claimed(msgspec.Struct, frozen=True, array_like=True):
    """A job that is now running, as it goes to its worker. `failures` counts earlier failed attempts of this round."""

    seq: int
    attempt: int
    lane: int
    id: bytes
    failures: int
    timeout_us: int  # 0: none
    args: bytes
    traceparent: str = ""  # "": none


class Claims(msgspec.Struct, frozen=True):
    """The answer to a Want: the jobs, best first, and the lanes that had no more to give."""

    jobs: list[Claimed]
    empty: tuple[int, ...]


class Outcome(IntEnum):
    """How an attempt ended, in the words of its worker."""

    SUCCEEDED = 0
    FAILED = 1
    RELEASED = 2
    SNOOZED = 3  # not failed, to run again after `delay_us`


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says of an attempt.

    `body` is the result's JSON (succeeded), the error's JSON (failed: an `ErrorInfo`), or empty (released, snoozed). `retry` says whether the
    task's policy would try this failure again, `delay_us` after how long; whether the budget allows it is for the store to say.
    `ran_us` is how long the body ran. `crashed` (of a failure) says that the body's process died under it: that counts under `max_crashes`
    instead of the retries.
    """

    seq: Number
    attempt: AttemptNumber
    outcome: Outcome
    ran_us: Span = 0
    body: bytes = b""
    retry: bool = False
    delay_us: Span = 0
    crashed: bool = False


class ErrorInfo(msgspec.Struct, frozen=True):
    """A failure as data. `kind`: "exception", "timeout", "crashed", "exited", "invalid_arguments", "unserialisable", "too_large", "unknown_task", …"""

    type: str
    message: str
    traceback: str = ""
    kind: str = "exception"


class Reports(msgspec.Struct, frozen=True):
    """Reports of one session. `successors` maps a job's seq to the jobs that its end brings to life, each `when` its parent's state fits."""

    session: int
    items: list[Report]
    successors: Mapping[int, tuple[NewJob, ...]] = {}


class Answer(IntEnum):
    """What a report was worth."""

    ACCEPTED = 0
    DUPLICATE = 1  # this very report was accepted before
    STALE = 2  # the attempt no longer owns the job: nothing was changed


class Verdict(msgspec.Struct, frozen=True):
    """The store's answer to a report; `state` is the job's state after it (None if the job is not there)."""

    answer: Answer
    state: JobState | None


class Running(msgspec.Struct, frozen=True, array_like=True):
    """A running attempt, as a session and the store compare them."""

    seq: Number
    attempt: AttemptNumber
    lane: Number
    id: bytes


class Rescued(msgspec.Struct, frozen=True):
    """A job whose lease had ended, and its state now: queued, failed (it is blamed: see `domain.blame`) or cancelled.

    `is_last_chance`: it is queued, and the next crash may fail it.
    """

    job: Running
    session: int
    state: JobState
    is_last_chance: bool = False


class Changed(msgspec.Struct, frozen=True):
    """The answer to a person's wish for a job: whether it was done, and the job's state after it (None: no such job)."""

    done: bool
    state: JobState | None


class Change(msgspec.Struct, frozen=True):
    """A job that changed otherwise than by its own report, as of the last commit.

    It was queued, or has ended (`body`: its error's JSON), or was asked to stop (RUNNING: then `attempt` and `session` say who runs it).
    """

    seq: int
    id: bytes
    lane: int
    state: JobState
    attempt: int = 0
    session: int = 0
    body: bytes = b""


class Child(msgspec.Struct, frozen=True):
    """A job that descends from another one, as it is shown with it."""

    id: bytes
    lane: int
    edge: str
    state: JobState


class Due(msgspec.Struct, frozen=True):
    """What became due: the lanes that got jobs, and when the next one is due (None: nothing is scheduled)."""

    lanes: tuple[int, ...]
    next_at: int | None


class NewSession(msgspec.Struct, frozen=True):
    """One incarnation of a worker process. `id` is 16 random bytes made at its start."""

    id: bytes
    name: str


class TaskRow(msgspec.Struct, frozen=True):
    """A task of the durable catalogue. `signature` and `options` are JSON; `offered_at` is when a worker last offered it.

    `lane` is 0 in a row that is offered, and the store's number in a row that the store returns.
    """

    queue: str
    name: str
    signature: bytes
    options: bytes
    lane: int = 0
    offered_at: int = 0


class JobRecord(msgspec.Struct, frozen=True):
    """A job as it is read back. `args` is JSON `[args, kwargs]`; `error` an `ErrorInfo` as JSON; `worker` the name of its last worker."""

    seq: int
    id: bytes
    lane: int
    state: JobState
    attempt: int
    failures: int
    crashes: int
    priority: int
    created_at: int
    run_at: int | None
    started_at: int | None
    finished_at: int | None
    pulled_at: int | None
    worker: str | None
    args: bytes
    result: bytes | None
    error: bytes | None
    parent: bytes | None = None
    traceparent: str | None = None


class JobQuery(msgspec.Struct, frozen=True):
    """A page of jobs, newest first. `lanes` None: of all. `before_seq` is the cursor: the last seq of the page before."""

    lanes: tuple[int, ...] | None = None
    states: tuple[JobState, ...] | None = None
    limit: int = 50
    before_seq: int | None = None
