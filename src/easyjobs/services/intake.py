"""How calls become stored jobs: found in the catalogue, validated, given an id, committed, and only then acknowledged.

When more waits for the store than may (`StoreBusy`), submits are refused: a slow disk shall not fill the memory. Only who would wait
anyway, and has no more than so much under way, is queued all the same: a broker's consumer, and workers, whose jobs are not to fail for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from easyjobs.domain.complaints import MAX_ERRORS, shorten
from easyjobs.domain.job import (
    CALL,
    MAX_BULK_JOBS,
    IdempotencyKey,
    NewJob,
    Parent,
    Spec,
    Submission,
    Submitted,
    SubmitVerdict,
    lanes_of,
)
from easyjobs.domain.message import Call
from easyjobs.errors import EasyJobsError, InvalidArguments, KeyReused, Orphaned, PayloadTooLarge, StoreBusy, SubmitError
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.protocol.messages import SubmitItem, SubmitOptions
from easyjobs.protocol.options import MAX_KEY, instant
from easyjobs.runtime import failpoints
from easyjobs.runtime.ids import id_text, new_id
from easyjobs.services.catalogue import Catalogue, CatalogueTask
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.flow import Flow

JOB_OPTIONS: Final = ("priority", "delay", "at")  # of a job in the job format
MAX_CALL: Final = 64  # characters of a call's fingerprint
MAX_PRIORITY: Final = 1_000_000
MAX_DELAY_US: Final = 10 * 366 * 24 * 3600 * 1_000_000  # ten years


class ShuttingDown(EasyJobsError):
    """The manager is going down and takes no more jobs; try again in a moment, at another one or at the same."""

    def __init__(self) -> None:
        super().__init__("the manager is shutting down and takes no more jobs: submit again in a moment")


class Intake:
    """The one way in, for HTTP, sockets and the manager's own code."""

    def __init__(
        self, store: Store, catalogue: Catalogue, dispatcher: Dispatcher, clock: Clock, flow: Flow, wake_timers: Callable[[], None]
    ) -> None:
        self._flow, self._wake_timers = flow, wake_timers
        self._store, self._catalogue, self._dispatcher, self._clock = store, catalogue, dispatcher, clock
        self.is_closed = False

    def check_room(self) -> None:
        """Raises: StoreBusy if no more jobs should come now."""
        if self._store.is_busy:
            raise StoreBusy

    async def submit_one(self, task: CatalogueTask, args: bytes, key: IdempotencyKey | None = None, traceparent: str | None = None) -> str:
        """Store one job of `task` with validated arguments in the stored form. Returns its id's text, after the commit.

        `traceparent`: of the trace within which it is submitted.

        Raises: KeyReused, ShuttingDown, StoreBusy, StoreError.
        """
        self.check_room()
        spec = None if traceparent is None else msgspec.structs.replace(task.spec, traceparent=traceparent)
        job = self._flow.job(task, new_id(self._clock.now()), args, spec=spec)
        lanes = lanes_of([job]) if job.befores else {task.lane}
        [submitted] = await self._store_all((Submission((job,), key),), lanes, timed=task.spec.expires_us is not None)
        if submitted.verdict is SubmitVerdict.CONFLICT and key is not None:
            raise KeyReused(key.key)
        return id_text(submitted.ids[0])

    async def submit_calls(
        self,
        calls: Sequence[Call],
        key: IdempotencyKey | None = None,
        traceparent: str | None = None,
        within: Collection[str] | None = None,
    ) -> list[str]:
        """Validate and store calls, all or none. `within`: of tasks in these queues only. Returns the ids' texts, in order, after the commit.

        Raises: InvalidArguments (with `["body", index, …]`), UnknownTask, AmbiguousTask, PayloadTooLarge, KeyReused, ShuttingDown, StoreBusy,
        StoreError.
        """
        self.check_room()
        if len(calls) > MAX_BULK_JOBS:
            raise PayloadTooLarge(f"a request of {len(calls):,} jobs", len(calls), MAX_BULK_JOBS)
        now = self._clock.now()
        jobs: list[NewJob] = []
        errors: list[dict[str, object]] = []
        lanes: set[int] = set()
        timed = False
        for index, call in enumerate(calls):
            task = self._catalogue.find(call.queue, call.name, within)
            try:
                args = task.arguments.from_call(call.args, call.kwargs)
                spec = _asked(task.spec, *self._options(call.options, now)) if call.options else task.spec
                if traceparent is not None:
                    spec = msgspec.structs.replace(spec, traceparent=traceparent)
                job = self._flow.job(task, new_id(now), args, spec=spec)
            except InvalidArguments as why:
                errors.extend({**error, "loc": ["body", index, *error["loc"][1:]]} for error in why.errors)
                if len(errors) >= MAX_ERRORS:  # nobody reads more, and each costs time
                    break
                continue
            timed = timed or spec.run_at is not None
            jobs.append(job)
            lanes.add(task.lane)
            timed = timed or task.spec.expires_us is not None
            if job.befores:
                lanes |= lanes_of(job.befores)
        del calls  # several times as large as the jobs made of them, which may wait
        if errors:
            raise InvalidArguments("the request", errors[:MAX_ERRORS])
        if not jobs:
            return []
        [submitted] = await self._store_all((Submission(tuple(jobs), key),), lanes, timed=timed)
        if submitted.verdict is SubmitVerdict.CONFLICT and key is not None:
            raise KeyReused(key.key)
        return [id_text(raw) for raw in submitted.ids]

    def prepare(self, call: Call, queue: str, now: int) -> tuple[NewJob, set[int], bool]:
        """One call as a job that can be stored, with the lanes of it and its predecessors, and whether time has to do with it.

        `queue`: where the call names none. Raises: InvalidArguments, UnknownTask, PayloadTooLarge.
        """
        task = self._catalogue.find(call.queue or queue, call.name)
        args = task.arguments.from_call(call.args, call.kwargs)
        spec = _asked(task.spec, *self._options(call.options, now)) if call.options else task.spec
        job = self._flow.job(task, new_id(now), args, spec=spec)
        lanes = {task.lane, *lanes_of(job.befores)} if job.befores else {task.lane}
        return job, lanes, spec.run_at is not None or spec.expires_us is not None

    async def submit_prepared(self, submissions: Sequence[Submission], lanes: set[int], *, timed: bool) -> list[Submitted]:
        """Store what `prepare` has made, however much waits. Raises: ShuttingDown, StoreError."""
        return await self._store_all(submissions, lanes, timed=timed)

    @staticmethod
    def _options(given: Mapping[str, Any], now: int) -> tuple[int | None, int | None]:
        """The options of a job in the job format: its priority and run_at, where they are given. Raises: InvalidArguments."""
        wrong = [
            _option_error(name, "This option is not available in this version", given[name], "extra_forbidden")
            for name in sorted(given.keys() - set(JOB_OPTIONS))
        ]
        priority, delay, at = (given.get(name) for name in JOB_OPTIONS)
        if priority is not None and (type(priority) is not int or abs(priority) > MAX_PRIORITY):
            wrong.append(_option_error("priority", f"Input should be a whole number within ±{MAX_PRIORITY:,}", priority))
        run_at = None
        if delay is not None and at is not None:
            wrong.append(_option_error("at", "Give a delay or an instant, not both", at))
        elif delay is not None:
            if type(delay) not in (int, float) or not 0 <= delay * 1_000_000 <= MAX_DELAY_US:
                wrong.append(_option_error("delay", "Input should be seconds, from 0 to ten years", delay))
            else:
                run_at = now + round(delay * 1_000_000) if delay else None
        elif at is not None:
            try:
                run_at = instant(datetime.fromisoformat(at))
            except (ValueError, TypeError, OverflowError):
                run_at = -1
            if not 0 < run_at <= now + MAX_DELAY_US:
                wrong.append(
                    _option_error("at", "Input should be an instant with a time zone, as 2027-01-31T09:00:00+01:00, within ten years", at)
                )
            run_at = run_at if run_at > now else None
        if wrong:
            raise InvalidArguments("options", wrong)
        return priority, run_at

    async def submit_frame(
        self, items: Sequence[SubmitItem], options: SubmitOptions | None, session: int = 0, *, is_patient: bool = False
    ) -> tuple[bytes, ...]:
        """Store the jobs of a `Submit` frame, all or none. `session`: whose frame it is. `is_patient`: however much waits.

        A repeat of the same ids with the same content answers the same and stores nothing. Returns the ids, after the commit: where a
        call or a unique key finds a job that is there, that one's.

        Raises: as `plan`, ShuttingDown, StoreBusy, StoreError; KeyReused also for an id that another job has; Orphaned for a call by an attempt that
        does not own its job.
        """
        if not is_patient:
            self.check_room()
        planned = plan(self._catalogue, self._flow, self._clock.now(), items, options, session=session)
        [submitted] = await self._store_all((planned.submission,), planned.lanes, timed=planned.is_timed)
        return ids_of(submitted, planned.submission.key)

    async def _store_all(self, submissions: Sequence[Submission], lanes: set[int], *, timed: bool) -> list[Submitted]:
        """`lanes`: of the jobs and their predecessors. `timed`: whether one of them is to be queued, or to expire, at some time."""
        if self.is_closed:
            raise ShuttingDown
        future = self._store.submit(submissions)
        for lane in lanes:  # in this turn: the claim joins the transaction of the submit
            self._dispatcher.mark(lane)
        answers = await future
        if failpoints.ARMED:
            failpoints.reach("intake.stored")
        if timed:
            self._wake_timers()  # they may sleep longer than that
        return answers


class Planned(NamedTuple):
    """What is to be stored, the lanes of its jobs and their predecessors, and whether one of them is to be queued, or to expire, at some time."""

    submission: Submission
    lanes: set[int]
    is_timed: bool


def plan(
    catalogue: Catalogue, flow: Flow, now: int, items: Sequence[SubmitItem], options: SubmitOptions | None, *, session: int = 0
) -> Planned:
    """Make jobs of items, whose ids their caller has made. `session`: which the callers among them belong to. No I/O.

    Raises: InvalidArguments, UnknownTask, AmbiguousTask, PayloadTooLarge; `ItemRefused` names the item.
    """
    priority, delay_us, at, key = None, 0, 0, None
    if options is not None:
        priority, delay_us, at = options.priority, options.delay_us, options.run_at
        key = _key(items, options.key) if options.key else None
    if len(items) > MAX_BULK_JOBS:
        raise PayloadTooLarge(f"a frame of {len(items):,} jobs", len(items), MAX_BULK_JOBS)
    if priority is not None and abs(priority) > MAX_PRIORITY:
        raise InvalidArguments("options", [_option_error("priority", f"must be within ±{MAX_PRIORITY:,}", priority)])
    if not 0 <= delay_us <= MAX_DELAY_US:
        raise InvalidArguments("options", [_option_error("delay_us", "must be 0 to ten years", delay_us)])
    if not 0 <= at <= now + MAX_DELAY_US or (at and delay_us):
        raise InvalidArguments("options", [_option_error("run_at", "must be within ten years, and without delay_us", at)])
    run_at = now + delay_us if delay_us else at if at > now else None  # an instant that has passed is no better than now
    jobs: list[NewJob] = []
    lanes: set[int] = set()
    tasks: dict[tuple[str, str], tuple[CatalogueTask, Spec]] = {}
    index = 0
    try:
        for index, item in enumerate(items):
            queue, name, args = item.queue, item.name, item.args
            known = tasks.get((queue, name))
            if known is None:
                task = catalogue.find(queue or None, name)
                known = tasks[queue, name] = (task, _asked(task.spec, priority, run_at))
            known[0].arguments.check_call(args)
            if len(item.id) != 16:
                raise InvalidArguments(
                    "id", [{"type": "value_error", "loc": ["body", index, "id"], "msg": "an id has 16 bytes", "input": None}]
                )
            task, spec = known
            caller = item.caller
            if caller is None and task.is_plain:
                jobs.append(NewJob(item.id, spec, args))
                continue
            parent = None
            if caller is not None:
                parent = Parent(caller.seq, CALL + caller.call[:MAX_CALL], None, (caller.attempt, session), task.max_depth)
            job = flow.job(task, item.id, args, spec=spec, parent=parent)
            jobs.append(job)
            if job.befores:
                lanes |= lanes_of(job.befores)
    except SubmitError as why:
        raise ItemRefused(index, why) from why
    lanes.update(task.lane for task, _ in tasks.values())
    is_timed = any(spec.run_at is not None or spec.expires_us is not None for _, spec in tasks.values())
    return Planned(Submission(tuple(jobs), key), lanes, is_timed)


def ids_of(submitted: Submitted, key: IdempotencyKey | None) -> tuple[bytes, ...]:
    """The ids of what was planned. Raises: KeyReused, Orphaned."""
    if submitted.verdict is SubmitVerdict.CONFLICT:
        raise KeyReused(key.key if key is not None else "(job id)")
    if submitted.verdict is SubmitVerdict.ORPHANED:
        raise Orphaned
    return submitted.ids


def _key(items: Sequence[SubmitItem], key: str) -> IdempotencyKey:
    if len(key) > MAX_KEY:
        raise InvalidArguments("options", [_option_error("key", f"has at most {MAX_KEY} characters", len(key))])
    names = {f"{item.queue}/{item.name}" for item in items}
    body = hashlib.sha256(msgspec.msgpack.encode([(item.queue, item.name, item.args) for item in items])).digest()
    return IdempotencyKey(principal="secret", scope=names.pop() if len(names) == 1 else "", key=key, body=body)


class ItemRefused(SubmitError):
    """One item of many was refused, and so all were. `index` says which, `why` is its error."""

    def __init__(self, index: int, why: SubmitError) -> None:
        super().__init__(f"job {index}: {why}")
        self.index, self.why = index, why


def _option_error(name: str, message: str, value: object, type: str = "value_error") -> dict[str, object]:
    return {"type": type, "loc": ["body", name], "msg": message, "input": shorten(value)}


def _asked(spec: Spec, priority: int | None, run_at: int | None) -> Spec:
    """What a submit asks for, on top of its task's own."""
    if priority is None and run_at is None:
        return spec
    return msgspec.structs.replace(spec, priority=spec.priority if priority is None else priority, run_at=run_at)
