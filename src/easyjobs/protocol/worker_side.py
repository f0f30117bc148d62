"""The worker's end of the conversation: what it holds, what it must say again, and how much it may be sent.

No I/O: frames in, `Event`s out; what is to be sent collects in `outgoing`, in order. Five things outlive a connection:

- the **held set**: attempts that came and whose report is not acked. The hello lists it, beats carry its fingerprint (`held`).
- the **outbox**: reports that are not acked. They are sent again after a reconnect, before new ones; the fence makes repeats harmless.
- **submits without an answer**: sent again too; their ids make that harmless. Of submits no more are under way than the manager takes at once. Watches likewise.
- **log lines** that are not acked: sent again before the reports, so that they are there when the result is. They are named, so a repeat does
  no harm. Of progress only the newest is kept.
- the **offers**: sent in full after each welcome.

Credit is a number of jobs since the start of the connection, not a number of free places: a repeat does no harm, and the manager
need not count along. With U attempts that came and are not reported, and room for T, the limit is ``received so far + T - U``. It does
not follow each swing of the measured prefetch, which would starve the slots (measured: 5 to 10 % of the rate). It falls when this side takes
nothing (withdrawn, frozen, no room at all), and when jobs had to be given back: or they would come again at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from easyjobs.domain.job import MAX_FRAME, Claimed, Outcome, Report, Running
from easyjobs.domain.seeing import Line, Mark, News, Place, size_of
from easyjobs.errors import AccessRefused, ProtocolError
from easyjobs.protocol.handshake import manager_proof, matches, peer_proof
from easyjobs.protocol.held import digest_of
from easyjobs.protocol.messages import (
    CLOSE_REFUSED,
    CLOSE_VERSION,
    MAX_OPEN_SUBMITS,
    PROTOCOL_VERSION,
    Acked,
    Beat,
    BeatSeen,
    Cancel,
    Challenge,
    Control,
    Controlled,
    Credit,
    Follow,
    Followed,
    Frame,
    FromManager,
    Goaway,
    Held,
    Hello,
    Log,
    NewTask,
    Offer,
    Offered,
    OfferedTask,
    Progress,
    Refused,
    Reports,
    Results,
    Run,
    Submit,
    SubmitItem,
    SubmitOptions,
    SubmitProblem,
    Submitted,
    Unfollow,
    Unwatch,
    Watch,
    WatchedResult,
    Welcome,
)

MAX_REPORTS: Final = 1000  # in one frame
MAX_REPORT_BYTES: Final = MAX_FRAME // 2  # of bodies in one frame; a single result is at most this large
MAX_UNACKED: Final = 20_000  # attempts; above it no more credit: the manager does not keep up with our reports
MAX_LINES: Final = 1000  # in one frame
MAX_LINE_BYTES: Final = 1024 * 1024  # the same
MAX_UNACKED_LINE_BYTES: Final = 16 * 1024 * 1024  # above it lines are dropped: the manager has been away for long, or does not keep up
MAX_HELD_IN_HELLO: Final = 1000  # attempts; more come after it
MAX_OPEN_SUBMIT_BYTES: Final = (
    MAX_FRAME  # of arguments under way to the manager, or one frame; more submits wait here, and what must get through does
)
ROLE: Final = "worker"


class JobsArrived(msgspec.Struct, frozen=True):
    """Start these."""

    jobs: list[Claimed]


class LanesKnown(msgspec.Struct, frozen=True):
    """The manager's numbers of our tasks; `refused`: (name, reason)."""

    tasks: list[OfferedTask]
    refused: list[tuple[str, str]]


class Lost(msgspec.Struct, frozen=True):
    """These attempts are no longer ours: stop them, and say nothing of them."""

    attempts: list[tuple[int, int]]


class StopAsked(msgspec.Struct, frozen=True):
    """Somebody cancelled these attempts: stop them, and report them released."""

    attempts: list[tuple[int, int]]


class LeaseRenewed(msgspec.Struct, frozen=True):
    """The lease runs from when the beat of this number (0: the hello) was sent. `has_others`: managers that may end it, beside this one."""

    number: int
    has_others: bool = False


class Leaving(msgspec.Struct, frozen=True):
    """The manager goes down: come back within `spread_s` of the end of the connection."""

    spread_s: float


class SubmitAnswered(msgspec.Struct, frozen=True):
    """The jobs of that submit are stored, or there is a problem and none is."""

    number: int
    problem: SubmitProblem | None
    ids: list[bytes] = []


class WishAnswered(msgspec.Struct, frozen=True):
    """What became of a `Control` of that number: (done, state) for each job, or a sentence why nothing did."""

    number: int
    items: list[tuple[bool, int]]
    problem: str


class JobsEnded(msgspec.Struct, frozen=True):
    """Watched jobs that have ended."""

    items: list[WatchedResult]


class NewsArrived(msgspec.Struct, frozen=True):
    """What is new of a job that is followed by that number; `is_last`: nothing more will come."""

    number: int
    news: list[News]
    is_last: bool


class Welcomed(msgspec.Struct, frozen=True):
    """The connection is up."""

    lease_s: float
    beat_s: float


Event: TypeAlias = (
    Welcomed
    | JobsArrived
    | LanesKnown
    | Lost
    | StopAsked
    | LeaseRenewed
    | Leaving
    | SubmitAnswered
    | WishAnswered
    | JobsEnded
    | NewsArrived
)


class WorkerSide:
    """The state of one session. Calls come from one thread."""

    def __init__(self, *, session: bytes, secret: str, name: str, queue: str, slots: int, software: str = "") -> None:
        self._session, self._secret, self._name, self._queue, self._slots, self._software = session, secret, name, queue, slots, software
        self.outgoing: list[Frame] = []
        self.is_up = False
        self._hello: Hello | None = None
        self._manager_nonce = b""
        self._offers: dict[str, NewTask] = {}
        self._held: dict[int, Claimed | Running] = {}
        self._outbox: dict[int, Reports] = {}
        self._submits: dict[int, Submit | Control] = {}  # not answered
        self._unsent: deque[Submit] = deque()  # of these, not on this connection yet
        self._open_submits: dict[int, int] = {}  # of these, on their way → their bytes
        self._watched: set[bytes] = set()
        self._logs: dict[int, Log] = {}
        self._log_bytes = 0
        self._marks: dict[tuple[int, int], Mark] = {}  # the newest, while there is no connection
        self._follows: dict[int, Follow] = {}  # those that wait for an answer
        self.dropped_lines = 0  # for want of room, since the start
        self._numbers = 0
        self._beats = 0
        self._room = 0
        self._received = 0  # attempts, over all connections
        self._finished = 0  # of these, reported (or dropped without a report)
        self._received_before = 0  # by earlier connections
        self._limit = 0
        self._is_frozen = False
        self._is_withdrawn = False

    # --- what the owner asks ----------------------------------------------------------------------------------------------------

    @property
    def held_count(self) -> int:
        """How many attempts came and are not acked."""
        return len(self._held)

    @property
    def unacked(self) -> int:
        """How many reports are not acked."""
        return sum(len(frame.items) for frame in self._outbox.values())

    @property
    def finished(self) -> int:
        """How many of these tell of an attempt that has ended, and not of one that is given back."""
        return sum(report.outcome is not Outcome.RELEASED for frame in self._outbox.values() for report in frame.items)

    def unreported(self) -> list[Claimed | Running]:
        """Return the attempts of which nothing was reported yet."""
        reported = {(report.seq, report.attempt) for frame in self._outbox.values() for report in frame.items}
        return [job for job in self._held.values() if (job.seq, job.attempt) not in reported]

    @property
    def waits_for_answers(self) -> bool:
        """Whether submits are not answered, or log lines not acked."""
        return bool(self._submits or self._logs)

    # --- a connection begins, and ends ------------------------------------------------------------------------------------------

    def challenged(self, frame: FromManager, nonce: bytes) -> list[Frame]:
        """Return the answer to the manager's first frame: a hello, and what it has no room for. `nonce`: 32 fresh random bytes.

        Raises: AccessRefused (another protocol version), ProtocolError.
        """
        if isinstance(frame, Refused):
            raise _refusal(frame.code, frame.reason)
        if not isinstance(frame, Challenge):
            raise ProtocolError(f"the manager began with {type(frame).__name__.lower()} instead of a challenge")
        if frame.version != PROTOCOL_VERSION:
            raise AccessRefused(
                f"the manager speaks version {frame.version} of the protocol, this worker version {PROTOCOL_VERSION}: "
                "use the same easyjobs release on both sides"
            )
        self._manager_nonce = frame.nonce
        proof = peer_proof(
            self._secret, role=ROLE, session=self._session, manager_nonce=frame.nonce, peer_nonce=nonce, version=PROTOCOL_VERSION
        )
        held = [Running(job.seq, job.attempt, job.lane, job.id) for job in self._held.values()]
        is_large = len(held) > MAX_HELD_IN_HELLO
        self._hello = Hello(
            version=PROTOCOL_VERSION,
            role=ROLE,
            session=self._session,
            nonce=nonce,
            proof=proof,
            name=self._name,
            queue=self._queue,
            slots=self._slots,
            software=self._software,
            held=[] if is_large else held,
            held_later=is_large,
        )
        return [self._hello, Held(items=held)] if is_large else [self._hello]

    def welcomed(self, frame: FromManager) -> list[Event]:
        """Take the manager's answer to the hello, and fill `outgoing` with all that must be said (again).

        Raises: AccessRefused (wrong secret, on either side), ProtocolError.
        """
        if isinstance(frame, Refused):
            raise _refusal(frame.code, frame.reason)
        hello = self._hello
        if not isinstance(frame, Welcome) or hello is None:
            raise ProtocolError(f"the manager answered the hello with {type(frame).__name__.lower()}")
        ours = manager_proof(
            self._secret,
            role=ROLE,
            session=self._session,
            manager_nonce=self._manager_nonce,
            peer_nonce=hello.nonce,
            version=PROTOCOL_VERSION,
        )
        if not matches(ours, frame.proof):
            raise AccessRefused("what answers at the manager's address does not know the secret: nothing was sent to it")
        events: list[Event] = [Welcomed(frame.lease_s, frame.beat_s), LeaseRenewed(0, frame.has_others)]
        if frame.drop:
            events.append(Lost(self._forget([(job.seq, job.attempt) for job in frame.drop])))
        self.is_up = True
        self._is_frozen = False
        self._received_before = self._received
        self._limit = 0
        self.outgoing.clear()
        if self._offers:
            self._offer(list(self._offers.values()))
        self.outgoing.extend(self._logs.values())
        marks = [mark for (seq, attempt), mark in self._marks.items() if self._holds(seq, attempt)]
        self._marks.clear()
        if marks:
            self.outgoing.append(Progress(items=marks))
        for number, reports in self._outbox.items():
            self._outbox[number] = again = msgspec.structs.replace(reports, limit=0)
            self.outgoing.append(again)
        self._open_submits.clear()
        self._unsent.clear()
        for asked in self._submits.values():
            if isinstance(asked, Submit):
                self._unsent.append(asked)
            else:
                self.outgoing.append(asked)
        self._send_submits()
        if self._watched:
            self.outgoing.append(Watch(ids=list(self._watched)))
        self.outgoing.extend(self._follows.values())
        self.credit(self._room)
        return events

    def disconnected(self) -> None:
        """The connection is gone; all that must outlive it is kept."""
        self.is_up = False
        self.outgoing.clear()

    # --- what the worker says ---------------------------------------------------------------------------------------------------

    def offer(self, tasks: Sequence[NewTask]) -> None:
        """Offer tasks, new or changed."""
        for task in tasks:
            self._offers[task.name] = task
        if self.is_up:
            self._offer(tasks)

    def _offer(self, tasks: Sequence[NewTask]) -> None:
        size, part = 0, list[NewTask]()
        for task in tasks:
            if part and size > MAX_FRAME // 4:
                self.outgoing.append(Offer(number=self._next(), tasks=part))
                size, part = 0, []
            part.append(task)
            size += len(task.signature) + len(task.options)
        self.outgoing.append(Offer(number=self._next(), tasks=part))

    def withdraw(self) -> None:
        """Take no new jobs any more, and offer nothing after the next reconnect."""
        self._is_withdrawn = True
        self._offers.clear()
        self.credit(self._room)

    def credit(self, room: int) -> None:
        """There is room for `room` attempts, those included that came and are not reported yet."""
        self._room = room
        limit = self._new_limit()
        if limit != self._limit and self.is_up:
            self._limit = limit
            self.outgoing.append(Credit(limit=limit))

    def freeze(self) -> None:
        """Take no new jobs for now: the limit falls to what has come."""
        self._is_frozen = True
        self.credit(self._room)

    def thaw(self) -> None:
        """Take new jobs again."""
        if self._is_frozen:
            self._is_frozen = False
            self.credit(self._room)

    def _new_limit(self, *, falls: bool = False) -> int:
        if self._is_frozen or self._is_withdrawn or len(self._held) > MAX_UNACKED + self._room:
            return self._received - self._received_before
        limit = self._finished - self._received_before + self._room
        return limit if falls or not self._room else max(self._limit, limit)

    def report(self, items: Iterable[Report], room: int, *, falls: bool = False) -> None:
        """Attempts have ended; reports of attempts that are not held any more are dropped. `room` as for `credit`; `falls`: and no more."""
        self._room = room
        held = self._held
        part: list[Report] = []
        frames: list[list[Report]] = []
        size = 0
        for report in items:
            self._finished += 1
            job = held.get(report.seq)
            if job is None or job.attempt != report.attempt:
                continue
            body = len(report.body)
            if part and (size + body > MAX_REPORT_BYTES or len(part) >= MAX_REPORTS):
                frames.append(part)
                part, size = [], 0
            part.append(report)
            size += body
        if part:
            frames.append(part)
        if not frames:
            self.credit(room)
            return
        if self.is_up:
            self._limit = self._new_limit(falls=falls)
        for items_of_frame in frames:
            number = self._next()
            frame = self._outbox[number] = Reports(number=number, items=items_of_frame, limit=self._limit if self.is_up else 0)
            if self.is_up:
                self.outgoing.append(frame)

    def note(self, marks: Sequence[Mark], lines: Sequence[Line]) -> None:
        """Attempts show how far they are, and what they log. To be called before their reports; those not held are passed over."""
        part: list[Line] = []
        size = 0
        for line in lines:
            if not self._holds(line.seq, line.attempt):
                continue
            of_line = size_of(line)
            if self._log_bytes + size + of_line > MAX_UNACKED_LINE_BYTES:
                self.dropped_lines += 1
                continue
            if part and (len(part) >= MAX_LINES or size + of_line > MAX_LINE_BYTES):
                self._send_log(part, size)
                part, size = [], 0
            part.append(line)
            size += of_line
        if part:
            self._send_log(part, size)
        marks = [mark for mark in marks if self._holds(mark.seq, mark.attempt)]
        if marks and self.is_up:
            self.outgoing.append(Progress(items=list(marks)))
        elif marks:
            self._marks.update({(mark.seq, mark.attempt): mark for mark in marks})

    def _send_log(self, lines: list[Line], size: int) -> None:
        number = self._next()
        frame = self._logs[number] = Log(number=number, lines=lines)
        self._log_bytes += size
        if self.is_up:
            self.outgoing.append(frame)

    def beat(self, loop_age_s: float) -> int:
        """Say that we are alive. Returns the beat's number."""
        self._beats += 1
        held = self._held
        digest = digest_of((job.seq, job.attempt) for job in held.values())
        self.outgoing.append(Beat(number=self._beats, count=len(held), digest=digest, loop_age_s=loop_age_s))
        return self._beats

    def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> int:
        """Submit jobs. Returns the number that the answer will have."""
        number = self._next()
        frame = self._submits[number] = Submit(number=number, jobs=list(items), options=options)
        if self.is_up:
            self._unsent.append(frame)
            self._send_submits()
        return number

    def _send_submits(self) -> None:
        """As many as the manager takes at once: a store that is slow must not have it leave our beats in the socket, behind submits."""
        while self._unsent and len(self._open_submits) < MAX_OPEN_SUBMITS:
            frame = self._unsent[0]
            size = sum([len(item.args) for item in frame.jobs])
            if self._open_submits and sum(self._open_submits.values()) + size > MAX_OPEN_SUBMIT_BYTES:
                return
            self._open_submits[frame.number] = size
            self.outgoing.append(self._unsent.popleft())

    def control(self, verb: str, ids: Sequence[bytes]) -> int:
        """Ask for something to be done to jobs; repeated after a reconnect, which does no harm. Returns the number that the answer will have."""
        number = self._next()
        frame = self._submits[number] = Control(number=number, verb=verb, ids=list(ids))
        if self.is_up:
            self.outgoing.append(frame)
        return number

    def watch(self, ids: Sequence[bytes]) -> None:
        """Ask how jobs end."""
        self._watched.update(ids)
        if self.is_up:
            self.outgoing.append(Watch(ids=list(ids)))

    def unwatch(self, ids: Sequence[bytes]) -> None:
        """No longer."""
        self._watched.difference_update(ids)
        if self.is_up:
            self.outgoing.append(Unwatch(ids=list(ids)))

    def follow(self, id: bytes, after: Place, number: int | None = None) -> int:
        """Ask what is new of a job. Returns the number of the stream; give it to ask for more of it, with the last line that came."""
        number = self._next() if number is None else number
        frame = self._follows[number] = Follow(number=number, id=id, after=after)
        if self.is_up:
            self.outgoing.append(frame)
        return number

    def unfollow(self, number: int) -> None:
        """No longer."""
        self._follows.pop(number, None)
        if self.is_up:
            self.outgoing.append(Unfollow(number=number))

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    # --- what the manager says --------------------------------------------------------------------------------------------------

    def receive(self, frame: FromManager) -> Event | None:
        """Take a frame of a connection that is up. Raises: AccessRefused, ProtocolError."""
        if isinstance(frame, Run):
            self._received += len(frame.jobs)
            held = self._held
            for job in frame.jobs:
                held[job.seq] = job
            return JobsArrived(frame.jobs)
        if isinstance(frame, Acked):
            acked = self._outbox.pop(frame.number, None)
            if acked is not None:
                self._let_go(acked.items)
            elif (log := self._logs.pop(frame.number, None)) is not None:
                self._log_bytes -= sum([size_of(line) for line in log.lines])
            return None
        if isinstance(frame, BeatSeen):
            if frame.send_held:
                self.outgoing.append(Held(items=[Running(job.seq, job.attempt, job.lane, job.id) for job in self._held.values()]))
            return LeaseRenewed(frame.number, frame.has_others)
        if isinstance(frame, Submitted):
            self._open_submits.pop(frame.number, None)
            self._send_submits()
            return SubmitAnswered(frame.number, frame.problem, frame.ids) if self._submits.pop(frame.number, None) is not None else None
        if isinstance(frame, Controlled):
            known = self._submits.pop(frame.number, None) is not None
            return WishAnswered(frame.number, frame.items, frame.problem) if known else None
        if isinstance(frame, Results):
            self._watched.difference_update(item.id for item in frame.items)
            return JobsEnded(frame.items)
        if isinstance(frame, Followed):
            known = self._follows.pop(frame.number, None) is not None
            return NewsArrived(frame.number, frame.news, frame.is_last) if known else None
        if isinstance(frame, Cancel):
            return StopAsked([(seq, attempt) for seq, attempt in frame.jobs if self._holds(seq, attempt)])
        if isinstance(frame, Offered):
            for name, _ in frame.refused:
                self._offers.pop(name, None)
            return LanesKnown(frame.tasks, frame.refused)
        if isinstance(frame, Goaway):
            return Leaving(frame.spread_s)
        if isinstance(frame, Refused):
            raise _refusal(frame.code, frame.reason)
        raise ProtocolError(f"the manager sent {type(frame).__name__.lower()} in the middle of a conversation")

    def _let_go(self, reports: Iterable[Report]) -> None:
        held = self._held
        for report in reports:
            job = held.get(report.seq)
            if job is not None and job.attempt == report.attempt:
                del held[report.seq]

    def _holds(self, seq: int, attempt: int) -> bool:
        job = self._held.get(seq)
        return job is not None and job.attempt == attempt

    def _forget(self, attempts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Drop attempts from the held set; returns those that were in it. The room they take is regained when they are reported."""
        ours = [(seq, attempt) for seq, attempt in attempts if self._holds(seq, attempt)]
        for seq, _ in ours:
            del self._held[seq]
        return ours


def _refusal(code: int, reason: str) -> ProtocolError | AccessRefused:
    if code in (CLOSE_REFUSED, CLOSE_VERSION):
        return AccessRefused(f"the manager refuses this worker: {reason}")
    return ProtocolError(f"the manager ended the connection: {reason}", code)
