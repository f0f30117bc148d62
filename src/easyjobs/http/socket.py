"""The WebSocket endpoint `/ws/jobs`: carries `manager_side`, and joins each connection to the services."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from easyjobs.domain.job import MAX_FRAME, Claimed, NewSession, Outcome, Report, Running, TaskRow
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.reported import sound
from easyjobs.domain.seeing import StateChanged, cut, trimmed
from easyjobs.errors import (
    AmbiguousTask,
    EasyJobsError,
    InvalidArguments,
    KeyReused,
    Orphaned,
    PayloadTooLarge,
    ProtocolError,
    StoreBusy,
    StoreError,
    StoreFull,
    UnknownJob,
    UnknownTask,
)
from easyjobs.http.auth import is_from_a_page
from easyjobs.http.strangers import TICK_S, Strangers
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.protocol.codec import encode
from easyjobs.protocol.held import digest_of
from easyjobs.protocol.manager_side import HelloRefused, ManagerSide
from easyjobs.protocol.messages import (
    CLOSE_BAD_FRAME,
    CLOSE_BUSY,
    CLOSE_ENDED,
    CLOSE_GOING_AWAY,
    CLOSE_REPLACED,
    CLOSE_STORE_AWAY,
    HOLDS_HEADER,
    MAX_OPEN_SUBMITS,
    Acked,
    Beat,
    BeatSeen,
    Cancel,
    Control,
    Controlled,
    Credit,
    Follow,
    Followed,
    Frame,
    Goaway,
    Held,
    Hello,
    Log,
    Offer,
    Offered,
    OfferedTask,
    Progress,
    Refused,
    Reports,
    Results,
    Run,
    Submit,
    SubmitProblem,
    Submitted,
    Unfollow,
    Unwatch,
    Watch,
    WatchedResult,
)
from easyjobs.protocol.problems import GONE, REMOVED
from easyjobs.runtime import failpoints
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.log import INFO, event
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.control import Control as ControlService
from easyjobs.services.dispatcher import WEDGED_S, Dispatcher, Session
from easyjobs.services.events import Events
from easyjobs.services.intake import Intake, ItemRefused, ShuttingDown
from easyjobs.services.reporter import Reporter
from easyjobs.services.results import End
from easyjobs.services.results import Results as ResultService

log = logging.getLogger("easyjobs.socket")

HELLO_S: Final = 10.0  # a peer that has not said hello by then is closed
UNREAD_S: Final = 5.0  # for a peer that does not read to take the close
MAX_OPEN_FRAMES: Final = (
    64  # frames of one connection that may wait for the store at once; more are left in the socket. Submits are counted
)
# apart, and a worker has no more than `MAX_OPEN_SUBMITS` under way: however long these wait, its beats and reports are read.
MAX_OUTGOING: Final = 64 * 1024 * 1024  # bytes a peer may leave unread before it is closed
MAX_WATCHED: Final = 100_000  # jobs that one connection may wait for
MAX_AGE_S: Final = 366 * 86_400.0  # of what a beat says of its loop
MAX_OFFERED: Final = 1000  # tasks of one worker
MAX_FOLLOWED: Final = 1000  # streams of news that one connection may have
ID_BYTES: Final = 16
HOLDS: Final = HOLDS_HEADER.lower().encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """What a connection needs of the manager."""

    store: Store
    catalogue: Catalogue
    dispatcher: Dispatcher
    intake: Intake
    reporter: Reporter
    results: ResultService
    events: Events
    control: ControlService
    secrets: Sequence[str]
    clock: Clock
    lease_s: float
    connections: set[Connection]
    newest: dict[bytes, Connection] = field(default_factory=dict)  # session → its connection that said hello last
    strangers: Strangers = field(default_factory=Strangers)

    @property
    def has_others(self) -> bool:
        """Whether other managers have this store too: any of them may end a lease."""
        return bool(getattr(self.store, "has_others", False))


class Connection:
    """One peer: a reader that takes frames in turn, and a writer that sends what the services want sent."""

    def __init__(self, socket: WebSocket, manager: Manager) -> None:
        self._socket, self._manager = socket, manager
        self._side = ManagerSide(manager.secrets, os.urandom(32))
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._out_ready = asyncio.Event()
        self._closing: tuple[int, str] | None = None
        self._room, self._submit_room = asyncio.Semaphore(MAX_OPEN_FRAMES), asyncio.Semaphore(MAX_OPEN_SUBMITS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: set[bytes] = set()
        self._ends: list[WatchedResult] = []
        self._follows: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._serving: asyncio.Task[None] | None = None
        self._is_given_up = False
        self.session: Session | None = None

    # --- Peer: what the dispatcher calls ----------------------------------------------------------------------------------------

    def run(self, jobs: list[Claimed]) -> None:
        """Send jobs to the worker."""
        self.send(Run(jobs=jobs))

    def cancel(self, jobs: list[tuple[int, int]]) -> None:
        """Ask the worker to stop attempts."""
        self.send(Cancel(jobs=jobs))

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close."""
        if self._closing is None:
            self._closing = (code, reason)
            self._out_ready.set()

    def goaway(self, reason: str, spread_s: float) -> None:
        """Tell the peer to come back in a moment, and close."""
        self.send(Goaway(reason=reason, spread_s=spread_s))
        self.close(CLOSE_GOING_AWAY, reason)

    def send(self, frame: Frame) -> None:
        """Queue a frame."""
        if self._is_given_up:
            return
        data = encode(frame)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > MAX_OUTGOING:
            log.warning("%s does not read what it is sent (%d MiB wait): closed", self._name, self._out_bytes >> 20)
            self._give_up("too slow")
        self._out_ready.set()

    def _give_up(self, reason: str) -> None:
        """End the conversation, whether the peer takes the close or not: the writer may wait for it for ever."""
        self._out.clear()
        self._out_bytes = 0
        self.close(CLOSE_BUSY, reason)
        self._is_given_up = True
        if self._serving is not None:
            self._serving.cancel()

    def crowded_out(self) -> None:
        """Others want to say hello, and this one has not for a while."""
        self._warn("gives its place to another: it has not said hello, and all places are taken")
        self.close(CLOSE_BUSY, "no hello, and others wait")
        if self._serving is not None:
            self._serving.cancel()
        self._is_given_up = True

    # --- the conversation -------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        hello = self._side.hello
        client = self._socket.client
        where = f"{client.host}:{client.port}" if client else "a peer"
        return f"{hello.role} {hello.name or where}" if hello else where

    async def serve(self) -> None:
        """The whole life of the connection."""
        await self._socket.accept()
        self._serving = asyncio.current_task()
        writer = asyncio.create_task(self._write(), name="easyjobs-socket-writer")
        self._manager.connections.add(self)
        has_ended = False
        try:
            await self._greet()
            while True:
                await self._take(await self._receive())
        except WebSocketDisconnect as gone:
            has_ended = gone.code == CLOSE_ENDED and self._closing is None
        except HelloRefused as why:
            self._warn(f"was refused: {why}")
            self.send(Refused(code=why.code, reason=str(why)))
            self.close(why.code, str(why))
        except ProtocolError as why:
            self._warn(f"is closed: {why}")
            self.send(Refused(code=why.code, reason=str(why)))
            self.close(why.code, str(why))
        except TimeoutError:
            self.close(CLOSE_BUSY, f"no hello within {HELLO_S:.0f} s")
        except asyncio.CancelledError:
            if not self._is_given_up:
                raise
            assert self._serving is not None
            self._serving.uncancel()
        except StoreError as why:
            log.error("%s is closed: %s", self._name, why)
            self.close(CLOSE_STORE_AWAY, "the store is not available")
        finally:
            self._serving = None
            self._manager.strangers.leave(self)
            self._manager.connections.discard(self)
            self._leave()
            if has_ended:
                await self._bury()
            self.close(1000, "")
            for task in [*self._tasks, *(task for task, _ in self._follows.values())]:
                task.cancel()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(UNREAD_S):
                    await writer
            writer.cancel()

    def _warn(self, what: str) -> None:
        """A line in the log; of strangers there are not more than so many."""
        untold = self._manager.strangers.may_log(self._manager.clock.monotonic()) if self._side.hello is None else 0
        if untold is not None:
            log.warning("%s %s%s", self._name, what, f" ({untold:,} more such lines were left out)" if untold else "")

    async def _write(self) -> None:
        out = self._out
        try:
            while True:
                await self._out_ready.wait()
                self._out_ready.clear()
                while out:
                    data = out.popleft()
                    self._out_bytes -= len(data)
                    await self._socket.send_bytes(data)
                if self._closing is not None:
                    code, reason = self._closing
                    await self._socket.close(code, reason.encode()[:120].decode(errors="ignore"))
                    return
        except (WebSocketDisconnect, RuntimeError, OSError):
            return  # the peer is gone; the reader notices

    async def _receive(self) -> bytes:
        """The next message. Raises: WebSocketDisconnect when there is none left, ProtocolError for a text.

        Not Starlette's `receive_bytes`: once the writer has met a closed socket that one refuses to read, and what the peer said last,
        how it closed included, would be lost.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        if self._closing is not None and self._socket.application_state is WebSocketState.DISCONNECTED:
            raise WebSocketDisconnect(self._closing[0])  # we have closed: the rest comes again on the next connection
        data: bytes | None = message.get("bytes")
        if data is None:
            raise ProtocolError("a text message: frames are binary", CLOSE_BAD_FRAME)
        return data

    async def _greet(self) -> None:
        self._out.append(self._side.challenge())
        self._out_ready.set()
        async with asyncio.timeout(HELLO_S):
            hello = self._side.greet(await self._receive())
            self._manager.strangers.leave(self)
            if hello.held_later:
                hello = self._side.complete(await self._receive())
        drop: list[Running] = []
        if hello.role == "worker":
            drop = await self._join(hello)
        lease_s, has_others = self._manager.lease_s, self._manager.has_others
        self._out.append(self._side.welcome(lease_s=lease_s, beat_s=lease_s / 3, drop=drop, has_others=has_others))
        self._out_ready.set()
        if self.session is not None:
            self._manager.dispatcher.attach(self.session)
            if self.session.running:
                await self._manager.control.remind(self.session)

    async def _join(self, hello: Hello) -> list[Running]:
        """Give the worker its session, compare what it holds with the store. Returns what it must stop."""
        manager = self._manager
        said_at = manager.clock.now()
        manager.newest[hello.session] = self
        [number] = await manager.store.begin([NewSession(id=hello.session, name=hello.name or self._name)])
        self._check_newest(hello)
        before = manager.dispatcher.by_number(number)
        if before is not None:
            before.peer.close(CLOSE_REPLACED, "a newer connection of this session took over")
            manager.catalogue.left(before.lanes)
            before.lanes = set()
            manager.dispatcher.detach(before)
        session = Session(number, hello.session, hello.name, hello.queue, hello.slots, self, manager.clock.now())
        [stored] = await manager.store.running([number])
        held = {_named(job): job for job in hello.held}
        unknown = [job for job in stored if _named(job) not in held]
        if unknown:
            claimed = await manager.store.get([job.id for job in unknown])
            self._check_newest(hello)
            # Claimed before it said hello, and never delivered. What was claimed later went out on another connection, at another manager: if
            # this hello is the newer one, the worker never gets it, and the beats will tell.
            lost = [job for job, record in zip(unknown, claimed, strict=True) if record is None or (record.started_at or 0) < said_at]
            session.running.update({job.seq: job for job in unknown if job not in lost})
            if lost:
                released = [Report(seq=job.seq, attempt=job.attempt, outcome=Outcome.RELEASED) for job in lost]
                await manager.reporter.report(session, released)
                session.remember(lost)
                manager.dispatcher.mark_all({job.lane for job in lost})
        ours = {_named(job) for job in stored}
        # From here on the store's word counts: a worker that lists a job under another one's id or lane does not speak for that one.
        drop = []
        others = [job for key, job in held.items() if key not in ours]
        records = await manager.store.get([job.id for job in others]) if others else []
        for job, record in zip(others, records, strict=True):
            is_it = record is not None and (record.seq, record.attempt) == (job.seq, job.attempt)
            if record is not None and is_it and record.state is JobState.QUEUED:
                # Put back, not claimed since: its report still counts.
                session.overdue[record.seq] = Running(record.seq, record.attempt, record.lane, record.id)
            elif record is None or not is_it or record.state is not JobState.RUNNING:
                drop.append(job)
        session.running.update((job.seq, job) for job in stored if _named(job) in held)
        self._check_newest(hello)
        self.session = session
        event(log, INFO, "worker.connected", worker=hello.name, queue=hello.queue, slots=hello.slots, held=len(held), dropped=len(drop))
        return drop

    def _check_newest(self, hello: Hello) -> None:
        """The store may take longer than a worker waits: then it has said hello again, and this one must change nothing."""
        if self._manager.newest.get(hello.session) is not self:
            raise HelloRefused("a newer connection of this session took over", CLOSE_REPLACED)

    def _leave(self) -> None:
        session, hello = self.session, self._side.hello
        if hello is not None and self._manager.newest.get(hello.session) is self:
            del self._manager.newest[hello.session]
        if session is not None and session.is_open:
            self._manager.catalogue.left(session.lanes)
            self._manager.dispatcher.detach(session)
            event(log, INFO, "worker.disconnected", worker=session.name, running=len(session.running))
        self._manager.results.unwatch(list(self._watching), self._ended)
        self._watching.clear()

    async def _bury(self) -> None:
        """The worker has ended on purpose, with all acked: what it holds in our eyes was on its way to it, and need not wait for the lease."""
        if self.session is None:
            return
        with contextlib.suppress(StoreError):  # then the rescuer does it
            [left] = await self._manager.store.running([self.session.number])
            released = [Report(seq=job.seq, attempt=job.attempt, outcome=Outcome.RELEASED) for job in left]
            if released:
                await self._manager.reporter.report(self.session, released)

    def _spawn(self, work: Coroutine[Any, Any, None], room: asyncio.Semaphore | None = None) -> None:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except ProtocolError as why:
                self.send(Refused(code=why.code, reason=str(why)))
                self.close(why.code, str(why))
            except StoreError as why:
                log.error("%s: %s", self._name, why)
                self.close(CLOSE_STORE_AWAY, "the store is not available")  # nothing is acked: the peer repeats it after its reconnect
            except Exception:
                log.exception("%s: a frame failed", self._name)
                self.close(1011, "internal error")
            finally:
                (room or self._room).release()

        task = asyncio.create_task(guarded(), name="easyjobs-socket-frame")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # it has not begun where the peer left in the same turn

    async def _take(self, data: bytes) -> None:
        frame = self._side.receive(data)
        manager, session = self._manager, self.session
        if isinstance(frame, Reports) and session is not None:
            await self._room.acquire()
            items = [sound(report) for report in frame.items]
            self._spawn(self._ack(frame.number, manager.reporter.report(session, items)))
            if frame.limit:
                manager.dispatcher.credit(session, frame.limit)  # after the report: the claim joins its transaction
        elif isinstance(frame, Log) and session is not None:
            await self._room.acquire()
            self._spawn(self._keep(frame.number, manager.events.note(session, (), [cut(line) for line in frame.lines])))
        elif isinstance(frame, Progress) and session is not None:
            await self._room.acquire()
            self._spawn(manager.events.note(session, [trimmed(mark) for mark in frame.items], ()))
        elif isinstance(frame, Credit) and session is not None:
            manager.dispatcher.credit(session, frame.limit)
        elif isinstance(frame, Submit):
            await self._submit_room.acquire()
            self._spawn(self._submit(frame), self._submit_room)
        elif isinstance(frame, Control):
            await self._room.acquire()
            self._spawn(self._control(frame))
        elif isinstance(frame, Watch):
            await self._room.acquire()
            self._spawn(self._watch(frame.ids))
        elif isinstance(frame, Unwatch):
            for id in frame.ids:
                if id in self._watching:
                    self._watching.discard(id)
                    manager.results.unwatch([id], self._ended)
        elif isinstance(frame, Follow):
            self._follow(frame)
        elif isinstance(frame, Unfollow):
            if frame.number in self._follows:
                self._follows[frame.number][0].cancel()
        elif isinstance(frame, Beat) and session is not None:
            await self._room.acquire()
            self._spawn(self._beat(frame, session))
        elif isinstance(frame, Held) and session is not None:
            await self._room.acquire()
            self._spawn(self._compare(frame.items, session))
        elif isinstance(frame, Offer) and session is not None:
            await self._room.acquire()
            self._spawn(self._offer(frame, session))

    async def _ack(self, number: int, reported: Coroutine[Any, Any, list[int]]) -> None:
        stale = await reported
        if failpoints.ARMED:
            failpoints.reach("socket.reported")
        self.send(Acked(number=number, stale=stale))

    async def _keep(self, number: int, noted: Coroutine[Any, Any, None]) -> None:
        await noted
        self.send(Acked(number=number))

    async def _offer(self, frame: Offer, session: Session) -> None:
        rows = [TaskRow(queue=session.queue, name=task.name, signature=task.signature, options=task.options) for task in frame.tasks]
        catalogue = self._manager.catalogue
        offered = {task.name for lane in session.lanes if (task := catalogue.by_lane(lane)) is not None}
        new_names = list(dict.fromkeys(row.name for row in rows if row.name not in offered))
        over = set(new_names[max(0, MAX_OFFERED - len(offered)) :])
        taken, refused = await catalogue.offer([row for row in rows if row.name not in over], self._name)
        refused += [(row, f"one worker offers at most {MAX_OFFERED:,} tasks") for row in rows if row.name in over]
        if not session.is_open:
            return
        new = {lane for _, lane in taken} - session.lanes
        self._manager.catalogue.joined(new)
        self.send(
            Offered(
                number=frame.number,
                tasks=[OfferedTask(row.name, lane) for row, lane in taken],
                refused=[(row.name, why) for row, why in refused],
            )
        )
        self._manager.dispatcher.offered(session, new)

    async def _revise(self, session: Session) -> None:
        """A worker of a shared store is back after a silence: another manager may have ended its lease, and given its jobs to others."""
        manager = self._manager
        [stored] = await manager.store.running([session.number])
        ours = {(job.seq, job.attempt) for job in stored}
        missing = [job for job in session.running.values() if (job.seq, job.attempt) not in ours]
        lost: list[tuple[int, int]] = []
        for job, record in zip(missing, await manager.store.get([job.id for job in missing]) if missing else (), strict=True):
            if record is None or record.attempt != job.attempt:
                session.running.pop(job.seq, None)
                lost.append((job.seq, job.attempt))
            elif record.state is JobState.QUEUED:
                manager.dispatcher.lapse(session, job.seq)
        if lost:
            log.warning("%s was silent: %d of its jobs were given to others", self._name, len(lost))
            self.cancel(lost)

    async def _beat(self, frame: Beat, session: Session) -> None:
        if self._manager.has_others and self._manager.dispatcher.is_silent(session):
            await self._revise(session)
        age_s = frame.loop_age_s if 0 <= frame.loop_age_s < MAX_AGE_S else MAX_AGE_S  # NaN, too
        if age_s < WEDGED_S:
            await self._manager.store.renew([session.number])
        self._manager.dispatcher.beaten(session, age_s)
        held = session.running | session.overdue if session.overdue else session.running
        differs = frame.count != len(held) or frame.digest != digest_of((job.seq, job.attempt) for job in held.values())
        if not differs:
            session.suspects.clear()
        self.send(BeatSeen(number=frame.number, send_held=differs, has_others=self._manager.has_others))

    async def _compare(self, items: list[Running], session: Session) -> None:
        """The worker listed what it holds: release what it never got, stop what it has lost.

        Frames on their way make the two lists differ at any moment; only what has been missing for about a beat is released. (Beats that
        queued up while this manager, or the network, stood still are answered, and their lists come, all at once.)
        """
        held = {job.seq: job for job in items}
        now = self._manager.clock.monotonic()
        before = session.suspects
        missing = {key: before.get(key, now) for seq, job in session.running.items() if seq not in held for key in [(seq, job.attempt)]}
        lost = {key for key, since in missing.items() if now - since >= self._manager.lease_s / 6}
        session.suspects = {key: since for key, since in missing.items() if key not in lost}
        if lost:
            log.warning("%s never got %d jobs: they are given back", self._name, len(lost))
            jobs = [session.running[seq] for seq, _ in lost]
            released = [Report(seq=job.seq, attempt=job.attempt, outcome=Outcome.RELEASED) for job in jobs]
            await self._manager.reporter.report(session, released)
            session.remember(jobs)  # they may have been on their way for that long
        for seq in session.overdue.keys() - held.keys():
            session.overdue.pop(seq, None)
        foreign = [job for job in items if job.seq not in session.running and job.seq not in session.overdue]
        records = await self._manager.store.get([job.id for job in foreign]) if foreign else []
        stop = [
            (job.seq, job.attempt)
            for job, record in zip(foreign, records, strict=True)
            if record is None or (record.seq, record.attempt) != (job.seq, job.attempt) or record.state is JobState.CANCELLED
        ]
        if stop:
            self.cancel(stop)

    async def _submit(self, frame: Submit) -> None:
        try:
            session = self.session.number if self.session is not None else 0
            is_patient = self.session is not None  # a worker's own: it has so many under way, and a job is not to fail for that
            ids = await self._manager.intake.submit_frame(frame.jobs, frame.options, session, is_patient=is_patient)
        except EasyJobsError as why:
            self.send(Submitted(number=frame.number, problem=problem_of(why)))
            return
        sent = [item.id for item in frame.jobs]
        self.send(Submitted(number=frame.number, ids=[] if sent == list(ids) else list(ids)))

    async def _control(self, frame: Control) -> None:
        peer = self._socket.client
        first = id_text(frame.ids[0]) if frame.ids and len(frame.ids[0]) == ID_BYTES else None
        event(
            log,
            INFO,
            "operator.acted",
            by="secret",
            peer=peer.host if peer else None,
            did=frame.verb[:40],
            jobs=len(frame.ids),
            first=first,
        )
        try:
            items = await self._manager.control.frame(frame.verb, frame.ids)
        except StoreError as why:
            self.send(Controlled(number=frame.number, items=[], problem=str(why)))
            return
        self.send(Controlled(number=frame.number, items=items))

    async def _watch(self, ids: list[bytes]) -> None:
        fresh = [id for id in dict.fromkeys(ids) if len(id) == ID_BYTES and id not in self._watching]
        if len(self._watching) + len(fresh) > MAX_WATCHED:
            raise ProtocolError(f"more than {MAX_WATCHED:,} jobs watched on one connection")
        self._watching.update(fresh)
        await self._manager.results.watch(fresh, self._ended)

    def _ended(self, end: End) -> None:
        if end.id not in self._watching:
            return
        self._watching.discard(end.id)
        if end.state is None:
            item = WatchedResult(end.id, GONE)
        elif end.body is None and end.state is JobState.SUCCEEDED:
            item = WatchedResult(end.id, REMOVED)
        else:
            item = WatchedResult(end.id, end.state, end.body or b"")
        if not self._ends:  # one frame for all that end in this turn
            asyncio.get_running_loop().call_soon(self._send_ends)
        self._ends.append(item)

    def _send_ends(self) -> None:
        ends, self._ends = self._ends, []
        size = 0
        part: list[WatchedResult] = []
        for item in ends:
            if part and size + len(item.body) > MAX_FRAME // 2:
                self.send(Results(items=part))
                part, size = [], 0
            part.append(item)
            size += len(item.body) + 40
        if part:
            self.send(Results(items=part))

    def _follow(self, frame: Follow) -> None:
        """Begin a stream of news, or let one that waits for this go on."""
        known = self._follows.get(frame.number)
        if known is not None:
            known[1].set()
            return
        if len(self._follows) >= MAX_FOLLOWED:
            raise ProtocolError(f"more than {MAX_FOLLOWED:,} jobs followed on one connection")
        asked = asyncio.Event()
        task = asyncio.create_task(self._tell_news(frame, asked), name="easyjobs-socket-follow")
        self._follows[frame.number] = (task, asked)
        task.add_done_callback(lambda _: self._follows.pop(frame.number, None))

    async def _tell_news(self, frame: Follow, asked: asyncio.Event) -> None:
        """One batch for each `Follow` of this number, until the last."""
        asked.set()
        try:
            async with contextlib.aclosing(self._manager.events.follow(frame.id, frame.after)) as stream:
                async for news in stream:
                    if not news:
                        continue
                    await asked.wait()
                    asked.clear()
                    is_last = isinstance(news[-1], StateChanged) and news[-1].is_final
                    self.send(Followed(number=frame.number, news=news, is_last=is_last))
                    if is_last:
                        return
        except UnknownJob:
            pass
        except StoreError as why:
            log.error("%s: %s", self._name, why)
            self.close(CLOSE_STORE_AWAY, "the store is not available")  # the peer asks again after its reconnect
            return
        if not self._manager.events.is_closed:  # else the peer asks again, when there is a manager
            self.send(Followed(number=frame.number, news=[], is_last=True))


def problem_of(why: EasyJobsError) -> SubmitProblem:
    """An error as the wire has it."""
    index = -1
    if isinstance(why, ItemRefused):
        index, why = why.index, why.why
    errors = msgspec.json.encode(why.errors) if isinstance(why, InvalidArguments) else b""
    status = {
        InvalidArguments: 422,
        KeyReused: 422,
        UnknownTask: 404,
        AmbiguousTask: 409,
        Orphaned: 410,
        PayloadTooLarge: 413,
        StoreFull: 507,
    }.get(type(why), 503 if isinstance(why, StoreError | ShuttingDown) else 500)
    return SubmitProblem(status=status, detail=str(why), index=index, errors=errors, is_busy=isinstance(why, StoreBusy))


async def serve(socket: WebSocket, manager: Manager) -> None:
    """Serve one WebSocket; one that a web page opens is refused before it is accepted."""
    if is_from_a_page(socket.scope["headers"]):
        await socket.close(4403)
        return
    connection = Connection(socket, manager)
    if not manager.strangers.enter(connection, holds=any(name == HOLDS for name, _ in socket.scope["headers"])):
        await _turn_away(socket)
        return
    if not manager.strangers.is_counting:
        manager.strangers.is_counting = True
        _count_turns(manager, manager.clock.monotonic())
    try:
        await connection.serve()
    finally:
        manager.strangers.leave(connection)
        if socket.application_state is not WebSocketState.DISCONNECTED:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError, TimeoutError):
                async with asyncio.timeout(UNREAD_S):
                    await socket.close()


def _count_turns(manager: Manager, since: float) -> None:
    """Tell the strangers of each turn of the loop, as long as there are any."""

    def turned() -> None:
        now = manager.clock.monotonic()
        manager.strangers.turned(now - since)
        if manager.strangers:
            _count_turns(manager, now)
        else:
            manager.strangers.is_counting = False

    asyncio.get_running_loop().call_later(TICK_S, turned)


async def _turn_away(socket: WebSocket) -> None:
    """Too many strangers: no socket is opened, so none has to be closed. Workers and clients try again."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(
            PlainTextResponse("too many connections have not said hello yet: try again\n", 503, {"Retry-After": "1"})
        )
    else:
        await socket.close(CLOSE_BUSY)


def _named(job: Running) -> tuple[int, int, bytes]:
    """By what hello and store are compared: where an older database was put back its numbers are given again, and a job's id never is."""
    return job.seq, job.attempt, job.id
