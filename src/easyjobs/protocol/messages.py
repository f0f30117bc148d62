"""The frames of the wire, version 1.

Binary WebSocket messages, msgpack, one frame each, a map with a `type` tag. Unknown fields are ignored, so a later version may add
fields with defaults; a changed meaning is a new frame or a new version. Every frame ever shipped has a golden file in
`tests/protocol/v1/`.

The conversation: the manager sends `Challenge`; the peer answers `Hello`, with its proof; the manager answers `Welcome`, with its
own. Then a worker sends `Offer`, `Credit`, `Reports`, `Progress`, `Log`, `Beat`, `Held`; the manager `Offered`, `Run`, `Acked`, `BeatSeen`,
`Cancel`, `Goaway`. A client, and a worker on behalf of its tasks, sends `Submit`, `Watch`, `Follow` and `Control`; the manager `Submitted`, `Results`,
`Followed` and `Controlled`.
Either side may send `Refused` and close.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from easyjobs.domain.job import AttemptNumber, Claimed, Number, Report, Running
from easyjobs.domain.seeing import Line, Mark, News

PROTOCOL_VERSION: Final = 1
HOLDS_HEADER: Final = (
    "Easyjobs-Holds"  # of the HTTP request of a worker that holds attempts: how many. They shall not wait behind idle workers
)
MAX_OPEN_SUBMITS: Final = 64  # frames of one connection that wait for the store at once

CLOSE_REFUSED: Final = 4401  # wrong proof: do not try again
CLOSE_VERSION: Final = 4426  # no common version: do not try again
CLOSE_BAD_FRAME: Final = 4400  # a frame that cannot be read, or is out of place
CLOSE_TOO_LARGE: Final = 1009
CLOSE_BUSY: Final = 1013  # too slow, or one of too many: try again
CLOSE_REPLACED: Final = 4409  # a newer connection of the same session took over
CLOSE_GOING_AWAY: Final = 1001
CLOSE_STORE_AWAY: Final = 4503  # the manager has no store for now: it can neither grant nor end a lease; try again
CLOSE_ENDED: Final = 4410  # a worker process ends, with all acked: jobs still on their way to it may run elsewhere at once


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    """Base of all frames."""


# --- manager → peer -------------------------------------------------------------------------------------------------------------


class Challenge(Frame, frozen=True, kw_only=True):
    """First frame. `nonce`: 32 random bytes, used once."""

    version: int
    nonce: bytes


class Welcome(Frame, frozen=True, kw_only=True):
    """The peer is in. `proof` shows that the manager knows the secret too. `drop`: attempts of the hello that are lost: stop them.

    `has_others`: other managers have the same store, and any of them may end the lease.
    """

    proof: bytes
    lease_s: float
    beat_s: float
    drop: list[Running] = []
    has_others: bool = False


class OfferedTask(msgspec.Struct, frozen=True, array_like=True):
    """The manager's number for a task that the worker offered."""

    name: str
    lane: int


class Offered(Frame, frozen=True, kw_only=True):
    """Answers `Offer` of that number: each task with its lane. `refused` says why others were not taken: [name, reason]."""

    number: int
    tasks: list[OfferedTask]
    refused: list[tuple[str, str]] = []


class Run(Frame, frozen=True, kw_only=True):
    """Jobs to run now; they count against the credit."""

    jobs: list[Claimed]


class Acked(Frame, frozen=True, kw_only=True):
    """`Reports` or `Log` of that number are committed; `stale` lists the seqs whose report came too late and changed nothing."""

    number: int
    stale: list[int] = []


class BeatSeen(Frame, frozen=True, kw_only=True):
    """Answers `Beat` of that number; the lease runs from when that beat was sent. `send_held`: the sets differ, send `Held`.

    `has_others`: as in `Welcome`, as of now.
    """

    number: int
    send_held: bool = False
    has_others: bool = False


class Cancel(Frame, frozen=True, kw_only=True):
    """Stop these attempts: (seq, attempt)."""

    jobs: list[tuple[int, int]]


class Goaway(Frame, frozen=True, kw_only=True):
    """The manager is going down: reconnect after a random time within `spread_s`."""

    reason: str
    spread_s: float


class SubmitProblem(msgspec.Struct, frozen=True):
    """Why a `Submit` was refused: `status` as HTTP has it (404, 409, 413, 422, 503, 507), `detail` a sentence, `errors` FastAPI's list as JSON.

    `index` is the job of the frame that is to blame, or -1. `is_busy`: nobody is; too much waits, and the same frame may do in a moment.
    """

    status: int
    detail: str
    index: int = -1
    errors: bytes = b""
    is_busy: bool = False


class Submitted(Frame, frozen=True, kw_only=True):
    """Answers `Submit` of that number, after the commit; with a `problem`, nothing of that frame was stored.

    `ids` are those of its jobs, in order, where they are not as submitted: a job that was there already was found instead.
    """

    number: int
    problem: SubmitProblem | None = None
    ids: list[bytes] = []


class WatchedResult(msgspec.Struct, frozen=True, array_like=True):
    """A job's end. `state`: 2 succeeded, 3 failed, 4 cancelled, 5 expired; -1: no such job; -2: succeeded, result removed. `body`: result or error JSON."""

    id: bytes
    state: int
    body: bytes = b""


class Results(Frame, frozen=True, kw_only=True):
    """Ends of watched jobs, each sent once."""

    items: list[WatchedResult]


class Followed(Frame, frozen=True, kw_only=True):
    """Answers `Follow` of that number: what is new of the job. `is_last`: it has ended, or (with no `news`) there is no such job."""

    number: int
    news: list[News]
    is_last: bool = False


class Controlled(Frame, frozen=True, kw_only=True):
    """Answers `Control` of that number: for each job whether it was done, and its state after it (-1: no such job).

    `problem` is a sentence if the store could not do it; then nothing was done.
    """

    number: int
    items: list[tuple[bool, int]]
    problem: str = ""


class Refused(Frame, frozen=True, kw_only=True):
    """Sent before closing with `code`: a sentence for a person."""

    code: int
    reason: str


# --- peer → manager -------------------------------------------------------------------------------------------------------------


class Hello(Frame, frozen=True, kw_only=True):
    """Answers the challenge. `role`: "worker" or "client". `session`: 16 random bytes, made at the process's start. `nonce`: 32 random bytes.

    `proof` is described in `handshake`. `held` lists what the worker has: running attempts and finished ones not yet acked. Where they are many
    it is empty, and `held_later` set: they come in a `Held` that follows at once. A stranger has no use for a large hello.
    """

    version: int
    role: str
    session: bytes
    nonce: bytes
    proof: bytes
    name: str = ""
    queue: str = ""
    slots: int = 0
    software: str = ""
    held: list[Running] = []
    held_later: bool = False


class NewTask(msgspec.Struct, frozen=True, array_like=True):
    """A task that a worker offers. `signature` and `options` are JSON."""

    name: str
    signature: bytes
    options: bytes


class Offer(Frame, frozen=True, kw_only=True):
    """Tasks added or changed, in the queue of the hello."""

    number: int
    tasks: list[NewTask]


class Credit(Frame, frozen=True, kw_only=True):
    """The manager may have sent up to `limit` jobs in all on this connection: absolute, so that a repeat does no harm.

    The newest counts. It may be lower than the one before; what is on its way already is taken or given back.
    """

    limit: int


class Reports(Frame, frozen=True, kw_only=True):
    """Outcomes; acked as a whole by `number`, and sent again after a reconnect until then. `limit` as in `Credit`; 0: not said.

    An attempt that is reported makes room, so mostly its report says the credit too.
    """

    number: int
    items: list[Report]
    limit: int = 0


class Progress(Frame, frozen=True, kw_only=True):
    """How far attempts are, the newest of each. Not acked, and not sent again: the next one says it better."""

    items: list[Mark]


class Log(Frame, frozen=True, kw_only=True):
    """Log lines of attempts, in their order; acked by `number`, and sent again after a reconnect until then, before the reports."""

    number: int
    lines: list[Line]


class Beat(Frame, frozen=True, kw_only=True):
    """I am alive. `count` and `digest` describe the held set (see `worker_side`); `loop_age_s` is how long the tasks' loop has not turned."""

    number: int
    count: int
    digest: int
    loop_age_s: float = 0.0


class Held(Frame, frozen=True, kw_only=True):
    """The held set in full."""

    items: list[Running]


class Calling(msgspec.Struct, frozen=True, array_like=True):
    """The running attempt that calls a task. `call` names the call among all of that job: a fingerprint of it and a count."""

    seq: Number
    attempt: AttemptNumber
    call: str


class SubmitItem(msgspec.Struct, frozen=True, array_like=True):
    """A job to submit. `id`: UUIDv7 made by the caller, so that a repeated submit is no second job. `args`: JSON `[args, kwargs]`."""

    id: bytes
    queue: str
    name: str
    args: bytes
    caller: Calling | None = None


class SubmitOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Options that all jobs of a `Submit` share. `delay_us` from the manager's now; or `run_at`, microseconds since 1970 (0: at once).

    `priority` None: the task's own.
    """

    priority: int | None = None
    delay_us: int = 0
    key: str = ""
    run_at: int = 0


class Submit(Frame, frozen=True, kw_only=True):
    """Jobs that are stored all or none."""

    number: int
    jobs: list[SubmitItem]
    options: SubmitOptions | None = None


class Control(Frame, frozen=True, kw_only=True):
    """What a person, or a program for one, wants of jobs. `verb`: "cancel", "retry", "run_now", "delete"."""

    number: int
    verb: str
    ids: list[bytes]


class Watch(Frame, frozen=True, kw_only=True):
    """Tell me how these jobs end; those that have ended are answered at once."""

    ids: list[bytes]


class Unwatch(Frame, frozen=True, kw_only=True):
    """No longer."""

    ids: list[bytes]


class Follow(Frame, frozen=True, kw_only=True):
    """Tell me what is new of this job; answered by one `Followed` as soon as there is something.

    `number` is chosen by the peer, once for each stream of news. The first answer of a number has the present state and progress, and the
    lines after `after`; a later `Follow` of the same number asks to go on. So no more is sent than is read.
    """

    number: int
    id: bytes
    after: tuple[Number, Number] = (0, 0)


class Unfollow(Frame, frozen=True, kw_only=True):
    """No longer."""

    number: int


FromManager: TypeAlias = (
    Challenge | Welcome | Offered | Run | Acked | BeatSeen | Cancel | Goaway | Submitted | Controlled | Results | Followed | Refused
)
FromPeer: TypeAlias = (
    Hello | Offer | Credit | Reports | Progress | Log | Beat | Held | Submit | Control | Watch | Unwatch | Follow | Unfollow
)
