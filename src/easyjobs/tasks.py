"""What a decorated function becomes: a `Task`, kept in a `Registry`, called through a `Caller`.

Manager and worker are both callers, and their facades both take `.task` from `TaskMaker`; this module knows neither of them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sys
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
    Sized,
)
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, get_type_hints, overload

import msgspec

from easyjobs.domain.arguments import Arguments
from easyjobs.domain.cloning import Converter, arguments_json, describe
from easyjobs.domain.flow import fingerprint
from easyjobs.domain.job import MAX_DEPTH_OF_CHAIN, QUEUE_NAME, Claimed
from easyjobs.domain.replies import MAX_ADDRESS
from easyjobs.domain.retry import RETRY_ONCE, RetryPolicy, parse
from easyjobs.domain.seeing import OUR_LOGGER, News, Unrepeated
from easyjobs.domain.signature import adapter, decode, encode
from easyjobs.domain.timing import CatchUpWord, OverlapWord, Timing, schedules_of
from easyjobs.domain.unique import Unique
from easyjobs.errors import LONGEST_S, InvalidArguments, RegistrationError, UnknownJob, seconds
from easyjobs.protocol.messages import Calling, SubmitItem, SubmitOptions, WatchedResult
from easyjobs.protocol.options import NOTHING, submit_options
from easyjobs.protocol.problems import failure_of
from easyjobs.runtime.ids import id_text, new_id
from easyjobs.runtime.program import Program, program_of

if TYPE_CHECKING:
    from pathlib import Path

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

TASK_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MIN_MEMORY: Final = 32 * 1024 * 1024  # an interpreter with a few modules has no room to run in less


class TaskKeywords(TypedDict, total=False):
    """What `.task(…)` takes besides the function; `TaskOptions` describes each."""

    name: str
    retry_policy: str | int | RetryPolicy
    on_failure: str | None
    run_after: str | Sequence[str] | None
    max_crashes: int
    priority: int
    schedule: str | Sequence[str] | None
    timezone: str | None
    default_args: Mapping[str, Any] | Sequence[Any]
    catch_up: CatchUpWord
    catch_up_window: float | timedelta
    overlap: OverlapWord
    run_before: str | Sequence[str] | None
    unique: bool | Unique | None
    expires: float | timedelta | None
    result_ttl: float | timedelta | None
    timeout: float | timedelta | None
    subprocess: bool
    max_memory: int | str | None
    max_chain_depth: int
    results_to: str | None


OPTIONS: Final = frozenset(TaskKeywords.__annotations__) - {"name"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How the jobs of a task are treated.

    Args:
        retry_policy: `never`, `retry_once` (at once), `retry_always`/`always` (with backoff), a number of retries, or a `RetryPolicy`.
        on_failure: the name of a task that runs, once a round, when a job has failed for good (`retry_always`: with the first failed retry).
            Its first argument is the reason, a string; or a `JobFailure`, if it is annotated so.
        run_after: names of tasks that get the result: as keyword arguments if it is an object whose keys fit the parameters, else as the one
            positional argument.
        run_before: names of tasks that run in parallel first, each with those of the job's arguments that its parameters name. If one does
            not succeed, the job fails.
        unique: a submit of a job like one that has not ended gives that one; True, or a `Unique` that says what makes jobs alike.
        expires: seconds (or a timedelta) after the submit within which a job must be started; else it ends as expired.
        result_ttl: seconds (or a timedelta) for which a result is kept.
        max_chain_depth: a job with more generations of run_after, on_failure and called jobs above it fails instead of running.
        max_crashes: how many times a worker may die under a job, under every retry policy, before the job fails; at most twice as many times
            where another job is the likelier cause.
        priority: higher first; one step is worth 60 s of waiting.
        schedule: a cron expression of five fields, or six with seconds in front, or `@hourly` and the like; or a list of them. A job is
            added at each of its ticks, also while no worker is there.
        timezone: the IANA name of the schedule's zone; UTC if not given.
        default_args: the arguments of a schedule's jobs: keyword arguments (a dict) or positional ones (a list).
        catch_up: what becomes of ticks that were missed while the manager was down: `one` job for all of them, one for each of `all`, or
            `skip` them.
        catch_up_window: what was missed for longer than that (seconds or a timedelta; an hour if not given) is skipped in any case.
        overlap: `allow`, or `skip` ticks while an earlier job of the schedule is not final.
        timeout: seconds, or a timedelta, that one attempt may run; what it waits for other jobs does not count. It is a failure,
            `TimeoutError`, which the retry policy judges.
        subprocess: run in a child process: `WORKER_TASK_DIR/<name>.py` where it exists, else the function itself.
        results_to: a queue of the manager's first message broker, or `<broker>/<queue>`, to which each job's end is told.
        max_memory: of such a child process, in bytes or as "256MB" (1 MB = 1024 * 1024 bytes): its data, the interpreter's own included.
    """

    retry_policy: RetryPolicy = RETRY_ONCE
    on_failure: str | None = None
    run_after: tuple[str, ...] = ()
    run_before: tuple[str, ...] = ()
    unique: Unique | None = None
    expires_us: int | None = None
    ttl_us: int | None = None
    max_chain_depth: int = MAX_DEPTH_OF_CHAIN
    max_crashes: int = 3
    priority: int = 0
    timing: Timing | None = None  # schedule and what belongs to it
    timeout_us: int | None = None
    subprocess: bool = False
    max_memory: int | None = None
    results_to: str | None = None

    @classmethod
    def of(cls, keywords: TaskKeywords) -> TaskOptions:
        """Return the options that a decorator was given. Raises: RegistrationError."""
        given = dict(keywords)
        timing = Timing.of(given)
        unknown = given.keys() - OPTIONS
        if unknown:
            raise RegistrationError(f"unknown task option {min(unknown)!r}: known are {', '.join(sorted(OPTIONS))}")
        after, before, failure = (_references(option, given.get(option)) for option in ("run_after", "run_before", "on_failure"))
        if len(failure) > 1:
            raise RegistrationError(f"on_failure={list(failure)!r}: give one task; it may name others as its run_after")
        unique = given.get("unique")
        if unique is not None and not isinstance(unique, bool | Unique):
            raise RegistrationError(f"unique={unique!r}: give True, or a Unique(fields=…, period=…, states=…)")
        depth = given.get("max_chain_depth", MAX_DEPTH_OF_CHAIN)
        if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= 1_000_000:
            raise RegistrationError(f"max_chain_depth={depth!r}: give 1 to 1,000,000")
        crashes, priority = given.get("max_crashes", 3), given.get("priority", 0)
        if not isinstance(crashes, int) or isinstance(crashes, bool) or not 1 <= crashes <= 1000:
            raise RegistrationError(f"max_crashes={crashes!r}: give 1 to 1,000")
        if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1_000_000:
            raise RegistrationError(f"priority={priority!r}: give a whole number within ±1,000,000")
        policy = parse(cast("str | int | RetryPolicy", given.get("retry_policy", RETRY_ONCE)))
        in_child = given.get("subprocess", False)
        if not isinstance(in_child, bool):
            raise RegistrationError(f"subprocess={in_child!r}: give True or False")
        memory = given.get("max_memory")
        if memory is not None and not in_child:
            raise RegistrationError(f"max_memory={memory!r} limits a child process: give subprocess=True too")
        results_to = given.get("results_to")
        if results_to is not None and not (isinstance(results_to, str) and 0 < len(results_to) <= MAX_ADDRESS and results_to.isprintable()):
            raise RegistrationError(f"results_to={results_to!r}: give the name of a broker's queue, of at most {MAX_ADDRESS} characters")
        return cls(
            retry_policy=policy,
            on_failure=failure[0] if failure else None,
            run_after=after,
            run_before=before,
            unique=Unique() if unique is True else unique or None,
            expires_us=_duration_us("expires", given.get("expires")),
            ttl_us=_duration_us("result_ttl", given.get("result_ttl")),
            max_chain_depth=depth,
            max_crashes=crashes,
            priority=priority,
            timing=timing,
            timeout_us=_duration_us("timeout", given.get("timeout"), least_us=1, most_s=366 * 86400),
            subprocess=in_child,
            max_memory=_bytes("max_memory", memory),
            results_to=results_to,
        )

    def to_json(self) -> bytes:
        """Return the options as the manager reads them: an object; what was not asked for is left out, but for the first six."""
        policy = self.retry_policy
        options: dict[str, Any] = {
            "retry_policy": policy.name or f"{policy.max_retries} retries",
            "max_retries": policy.max_retries,
            "max_crashes": self.max_crashes,
            "priority": self.priority,
            "on_failure": self.on_failure,
            "run_after": list(self.run_after),
        }
        asked: dict[str, Any] = {
            "run_before": list(self.run_before),
            "unique": None if self.unique is None else self.unique.to_options(),
            "max_chain_depth": None if self.max_chain_depth == MAX_DEPTH_OF_CHAIN else self.max_chain_depth,
            "subprocess": self.subprocess,
            "max_memory": self.max_memory,
            "results_to": self.results_to,
        }
        options |= {name: value for name, value in asked.items() if value}
        times = {"expires_us": self.expires_us, "ttl_us": self.ttl_us, "timeout_us": self.timeout_us}
        options |= {name: value for name, value in times.items() if value is not None}  # 0 is a time
        if self.timing is not None:
            options |= self.timing.to_options()
        return msgspec.json.encode(options)


def _references(option: str, value: Any) -> tuple[str, ...]:
    """The tasks that an option names, each once."""
    names = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    for name in names:
        if not isinstance(name, str) or not _is_reference(name):
            raise RegistrationError(f"{option}={name!r} is no task's name: write the name, or <queue>/<name>")
    return tuple(dict.fromkeys(names))


def _duration_us(option: str, value: Any, *, least_us: int = 0, most_s: int = LONGEST_S) -> int | None:
    """Seconds or a timedelta as microseconds. Raises: RegistrationError."""
    if value is None:
        return None
    try:
        microseconds = -1 if isinstance(value, bool) else round(seconds(value, option) * 1_000_000)
    except (ValueError, AttributeError, TypeError):
        microseconds = -1
    if not least_us <= microseconds <= most_s * 1_000_000:
        least, most = "more than 0" if least_us else "0", "a year" if most_s < LONGEST_S else "ten years"
        raise RegistrationError(f"{option}={value!r}: give seconds or a timedelta, {least} to {most}")
    return microseconds


def _is_reference(name: str) -> bool:
    queue, slash, task = name.rpartition("/")
    return bool(TASK_NAME.fullmatch(task)) and (not slash or bool(QUEUE_NAME.fullmatch(queue)))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """What an `on_failure` task gets whose first parameter is annotated so: the job that failed, its arguments, and why.

    `type` is the exception's qualified name, `message` its text, `traceback` the formatted traceback or "".
    """

    job_id: str
    namespace: str
    name: str
    type: str
    message: str
    traceback: str
    attempt: int
    args: list[Any]
    kwargs: dict[str, Any]


def _bytes(what: str, value: Any) -> int | None:
    """A number of bytes, or text such as "256MB". Raises: RegistrationError."""
    if value is None:
        return None
    size = value
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])i?B?", value.strip(), re.IGNORECASE)):
        size = int(float(found[1]) * 1024 ** (1 + "KMGT".index(found[2].upper())))
    if isinstance(size, bool) or not isinstance(size, int) or not MIN_MEMORY <= size < 2**60:
        raise RegistrationError(f'{what}={value!r}: give bytes or text such as "256MB", {MIN_MEMORY >> 20}MB or more')
    return size


# --- the running job ------------------------------------------------------------------------------------------------------------


class JobContext:
    """The job that runs here and now. A parameter annotated `JobContext` gets it, and `current_job()` returns it."""

    cancel_requested = False
    """Whether this attempt should stop: it was cancelled, lost, has run into its timeout, or its worker is going down. A plain `def` task may look at it."""
    _claimed: Claimed
    _task: Task[..., Any]
    _calls: Counter[str] | None = None

    def _calling(self, queue: str, name: str, args: bytes) -> Calling:
        """Name a call of a task among all calls of this job, the same in each of its attempts: what is called, and the how-manieth time."""
        if self._calls is None:
            self._calls = Counter()
        call = fingerprint(queue, name, args)
        self._calls[call] += 1
        return Calling(self._claimed.seq, self._claimed.attempt, f"{call}:{self._calls[call]}")

    @property
    def job_id(self) -> str:
        """The id that `submit` and the HTTP API gave."""
        return id_text(self._claimed.id)

    @property
    def attempt(self) -> int:
        """1 for the first run of this job, one more at each next."""
        return self._claimed.attempt

    @property
    def failures(self) -> int:
        """Failed attempts of this round before this one."""
        return self._claimed.failures

    @property
    def queue(self) -> str:
        """The queue of the task."""
        return self._task.queue

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._task.name

    @property
    def traceparent(self) -> str | None:
        """The `traceparent` header with which the job was submitted over HTTP (W3C Trace Context); None if there was none."""
        return self._claimed.traceparent or None

    @property
    def idempotency_key(self) -> str:
        """The same text in every attempt of this job: pass it to a service that drops repeats, since a job may run more than once."""
        return f"easyjobs-{self.job_id}"

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Show how far the job is. From any thread, as often as you like: the newest is sent, about five times a second.

        Args:
            done: how much is done, in units of your own.
            total: how much there is to do; None if that is not known.
            message: what is going on, for a person; at most 500 characters are kept.

        Raises: TypeError, ValueError for what is no finite number.
        """

    @overload
    def track(self, items: Iterable[T], total: float | None = None) -> Track[T]: ...
    @overload
    def track(self, items: AsyncIterable[T], total: float | None = None) -> AsyncTrack[T]: ...
    def track(self, items: Iterable[T] | AsyncIterable[T], total: float | None = None) -> Track[T] | AsyncTrack[T]:
        """Go through `items` and show the progress: `async for x in ctx.track(items)`, or a plain `for`.

        `async for` lets other jobs run, and a cancellation come, at each item. `total`: how many there are, where `len(items)` does not say it.
        """
        return Track(self, items, total) if isinstance(items, Iterable) else AsyncTrack(self, items, total)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines are kept with the job, from any thread. They go to the handlers of your program as well, under `easyjobs.job`."""
        if self._log is None:
            self._log = JobLogger(self)
        return self._log

    _log: JobLogger | None = None

    def _logged(self, record: logging.LogRecord) -> None:
        """A record was made in this job. The worker's pool keeps it."""

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """While inside, the job waits for another one, and its slot is free for that. The worker's pool makes this so."""
        yield


class Track(Generic[T]):
    """What `JobContext.track` returns for a list, a generator and the like."""

    def __init__(self, context: JobContext, items: Iterable[T], total: float | None) -> None:
        self._context, self._items = context, items
        self._total = len(items) if total is None and isinstance(items, Sized) else total

    def __iter__(self) -> Iterator[T]:
        done = 0
        for item in self._items:
            self._context.progress(done, self._total)
            yield item
            done += 1
        self._context.progress(done, done if self._total is None else self._total)

    async def __aiter__(self) -> AsyncIterator[T]:
        for item in self:
            yield item
            await asyncio.sleep(0)


class AsyncTrack(Generic[T]):
    """What `JobContext.track` returns for an asynchronous generator and the like."""

    def __init__(self, context: JobContext, items: AsyncIterable[T], total: float | None) -> None:
        self._context, self._items, self._total = context, items, total

    async def __aiter__(self) -> AsyncIterator[T]:
        done = 0
        async for item in self._items:
            self._context.progress(done, self._total)
            yield item
            done += 1
        self._context.progress(done, done if self._total is None else self._total)


_job_logger: Final = logging.getLogger(OUR_LOGGER)


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """`JobContext.log`. Records carry `job_id`, `task` and `attempt`, for the handlers of the program."""

    def __init__(self, context: JobContext) -> None:
        if _job_logger.level == logging.NOTSET:  # else it would have the root's, WARNING where nobody set up logging
            _job_logger.setLevel(logging.INFO)
        super().__init__(_job_logger, {"job_id": context.job_id, "task": f"{context.queue}/{context.task}", "attempt": context.attempt})
        self._context = context

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add our fields to those of the call."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log in the name of the job, wherever this is called."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        token = _current.set(self._context)
        try:
            super().log(level, msg, *args, **kwargs)
        finally:
            _current.reset(token)


_current: ContextVar[JobContext | None] = ContextVar("easyjobs_current_job", default=None)


def current_job() -> JobContext:
    """Return the job that runs here. Raises: LookupError outside of a job."""
    context = _current.get()
    if context is None:
        raise LookupError("current_job() was called outside of a job")
    return context


# --- tasks ----------------------------------------------------------------------------------------------------------------------


class Caller(Protocol):
    """What a task needs to be called as a job: the worker's link, or the manager's services."""

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        """Return the jobs' ids when they are stored, all or none: where a job is found that is there already, that one's.

        Raises: SubmitError, StoreError, ConnectionFailed.
        """
        ...

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        """Do something to jobs ("cancel", "retry", "run_now", "delete"): for each whether it was done, and its state (-1: no such job).

        Raises: StoreError, ConnectionFailed.
        """
        ...

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        """Return how the job ended. Raises: TimeoutError, ConnectionFailed."""
        ...

    def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:
        """What is new of a job, in batches, until its end; after a lost connection some may be repeated. Raises: UnknownJob, ConnectionFailed."""
        ...


class Job(Generic[R]):
    """A submitted job."""

    __slots__ = ("_raw", "_task", "id")

    def __init__(self, task: Task[..., R], raw: bytes) -> None:
        self._task, self._raw, self.id = task, raw, id_text(raw)

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the job's end and return its result, of the type that the function's annotation says.

        Args:
            timeout: seconds; None waits for ever. The job goes on after a timeout.

        Raises:
            TimeoutError, JobFailed, JobCancelled, JobExpired, ResultRemoved, UnknownJob.
        """
        context = _current.get()
        if context is None:
            end = await self._task.caller.result(self._raw, timeout)
        else:
            async with context.waiting():
                end = await self._task.caller.result(self._raw, timeout)
        failure = failure_of(end, self.id)
        if failure is not None:
            raise failure
        return self._task.returned(end.body)

    async def events(self) -> AsyncGenerator[News, None]:
        """What happens to the job, as it happens: `StateChanged`, `Progress`, `LogLine` (see `easyjobs.domain.seeing`).

        First its present state, its progress and the log as far as it is stored; the last one is its final state. No line is lost or comes
        twice, whatever becomes of the connection. A job that waits for the next one has given its slot back.

        Raises: UnknownJob, ConnectionFailed.
        """
        unrepeated, context = Unrepeated(), _current.get()
        async with aclosing(self._task.caller.follow(self._raw)) as stream:
            while True:
                if context is None:
                    batch = await anext(stream, None)
                else:
                    async with context.waiting():
                        batch = await anext(stream, None)
                if batch is None:
                    return
                for news in unrepeated.of(batch):
                    yield news

    async def cancel(self) -> bool:
        """Cancel the job, and the unfinished jobs that it called: at once if it does not run, else its worker is asked to stop it.

        Returns: whether it is cancelled, or was asked to stop; False if it had ended otherwise. Raises: UnknownJob, StoreError, ConnectionFailed.
        """
        [(done, state)] = await self._task.caller.control("cancel", [self._raw])
        if state < 0:
            raise UnknownJob(self.id)
        return done

    def __repr__(self) -> str:
        return f"<Job {self.id} of {self._task.queue}/{self._task.name}>"


class Task(Generic[P, R]):
    """A registered function.

    `await task(*a, **k)` runs it as a job and returns the result; `await task.submit(*a, **k)` queues it and returns a `Job`;
    `task.options(priority=5).submit(*a, **k)` does so with options; `task.submit_in(connection, *a, **k)` within a database transaction of yours;
    `task.fn(*a, **k)` is the plain function, here and now.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        queue: str,
        name: str,
        options: TaskOptions,
        caller: Caller,
        is_async: bool,
        names: Mapping[str, Any],
        program: Program | None = None,
    ) -> None:
        self.fn = fn
        self.program = program
        self.queue, self.name, self.task_options, self.caller, self.is_async = queue, name, options, caller, is_async
        self.converter = Converter(fn, injected=(JobContext,), task=name, names=names)
        self.signature_json = encode(describe(fn, injected=(JobContext,), task=name, names=names))
        if options.timing is not None:
            self._check_timing(options.timing)
        self.plain_arity = _plain_arity(fn) if self.converter.trivial and not self.converter.injected else range(0)
        self._names = names
        self._submit_options = NOTHING
        self._result_adapter: Any = None
        self.__doc__ = fn.__doc__
        self.__name__ = name

    def _check_timing(self, timing: Timing) -> None:
        """As the manager does, and by the function's own types. Raises: RegistrationError."""
        try:
            schedules_of(msgspec.json.decode(self.task_options.to_json()), Arguments(decode(self.signature_json), self.name))
            self.converter.convert(*msgspec.json.decode(timing.default_args))
        except InvalidArguments as why:
            raise RegistrationError(f"task {self.name}: default_args do not fit: {why}") from why
        except RegistrationError as why:
            raise RegistrationError(f"task {self.name}: {why}") from why

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function as a job and return its result. Errors: those of `submit` and of `Job.result`."""
        job = await self.submit(*args, **kwargs)
        return await job.result()

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Queue a job; returns after the manager has stored it.

        Inside a job this is a durable call: when that job runs again after a failure or a crash, the same call (task, arguments, how-manieth
        time) gives the same job, unless that one did not succeed.

        Raises:
            InvalidArguments, UnknownTask, PayloadTooLarge, KeyReused, Orphaned, StoreError, ConnectionFailed.
        """
        stored = arguments_json(args, kwargs)
        context = _current.get()
        calling = None
        if context is not None and context._task.caller is self.caller:
            calling = context._calling(self.queue, self.name, stored)
        item = SubmitItem(new_id(), self.queue, self.name, stored, calling)
        [raw] = await self.caller.submit([item], self._submit_options if self._submit_options is not NOTHING else None)
        return Job(self, raw)

    async def submit_in(self, connection: Any, /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Make a job part of the transaction that is open on `connection`: it exists when that commits, and never if it is rolled back.

        `connection` is of asyncpg or psycopg, or SQLAlchemy's AsyncSession or AsyncConnection, on the PostgreSQL database in which the
        managers have their jobs; no manager is asked. Inside a job, this is no durable call: the job has no parent.

        Raises:
            InvalidArguments, UnknownTask, PayloadTooLarge, KeyReused: refused; the transaction can go on.
            ConfigurationError: no such connection, no transaction, no tables of easyjobs there, or no right to them.
            What the driver raises: the transaction is over.
        """
        from easyjobs import transactions

        item = SubmitItem(new_id(), self.queue, self.name, arguments_json(args, kwargs))
        return Job(self, await transactions.submit_in(connection, item, self._submit_options))

    def submit_in_sync(self, connection: Any, /, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """As `submit_in`, for a connection that is not asynchronous: of psycopg, or SQLAlchemy's Session or Connection."""
        from easyjobs import transactions

        item = SubmitItem(new_id(), self.queue, self.name, arguments_json(args, kwargs))
        return Job(self, transactions.submit_in_sync(connection, item, self._submit_options))

    def options(
        self,
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
    ) -> Task[P, R]:
        """Return this task with options for the jobs that are submitted through what is returned.

        Args:
            priority: instead of the task's own.
            delay: seconds, or a timedelta, before the job may start.
            at: the instant before which the job may not start: a datetime with a time zone. One that has passed is now.
            key: an idempotency key: the same key and arguments give the same job for 24 h.

        Raises:
            ValueError: the delay is negative, `at` has no time zone, both are given, or the key is empty or has more than 255 characters.
        """
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound._submit_options = submit_options(self._submit_options, priority=priority, delay=delay, at=at, key=key)
        return bound

    def returned(self, body: bytes) -> R:
        """Return a result's JSON as what the function's annotation says; where it says nothing, as plain JSON values."""
        if self._result_adapter is None:
            self._result_adapter = _result_adapter(self.fn, self._names)
        value = msgspec.json.decode(body)
        return cast("R", value if self._result_adapter is Any else self._result_adapter.validate_python(value))

    def __repr__(self) -> str:
        return f"<Task {self.queue}/{self.name}>"


def _plain_arity(fn: Callable[..., Any]) -> range:
    """With how many positional arguments, and nothing else, the function may be called."""
    lowest = highest = 0
    for parameter in inspect.signature(fn).parameters.values():
        required = parameter.default is parameter.empty
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            highest += 1
            lowest += required
        elif parameter.kind is parameter.VAR_POSITIONAL:
            highest += 1_000_000
        elif parameter.kind is parameter.KEYWORD_ONLY and required:
            return range(0)
    return range(lowest, highest + 1)


def _result_adapter(fn: Callable[..., Any], names: Mapping[str, Any]) -> Any:
    """A pydantic adapter for the annotated result, or Any where there is none to convert to."""
    try:
        kind = get_type_hints(fn, localns=dict(names), include_extras=True).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any
    if kind is Any or kind is inspect.Signature.empty:
        return Any
    try:
        return adapter(kind)
    except (TypeError, ValueError, RuntimeError):
        return Any


class TaskDecorator(Protocol):
    """What `.task()` returns."""

    @overload
    def __call__(self, fn: Task[P, R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


class Registry:
    """The tasks of one worker or manager. `on_register` is told of each; `task_dir` says where the files of subprocess tasks are."""

    def __init__(
        self, caller: Caller, on_register: Callable[[Task[..., Any]], None], task_dir: Callable[[], Path | None] = lambda: None
    ) -> None:
        self._caller, self._on_register, self._task_dir = caller, on_register, task_dir
        self._tasks: dict[tuple[str, str], Task[..., Any]] = {}

    def register(
        self, fn: Callable[..., Any] | Task[..., Any], queues: Sequence[str], keywords: TaskKeywords, names: Mapping[str, Any] | None = None
    ) -> Task[..., Any]:
        """Register a function in each queue and return the task of the first. All or none. `names`: more names that annotations may use.

        Raises:
            RegistrationError: a name, an option or the function does not do, or a queue has a task of this name already.
        """
        plain = fn.fn if isinstance(fn, Task) else fn
        if not callable(plain):
            raise RegistrationError(f"{plain!r} is no function: write @worker.task() above one")
        given = dict(keywords)
        name = given.pop("name", None) or getattr(plain, "__name__", None)
        if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
            raise RegistrationError(
                f"{name!r} is no task name: letters, digits and _ (64 at most, no digit first); pass name=… to choose one"
            )
        if not queues:
            raise RegistrationError(f"task {name}: namespace is an empty list")
        for queue in queues:
            if not isinstance(queue, str) or not QUEUE_NAME.fullmatch(queue):
                raise RegistrationError(f"{queue!r} is no queue name: letters, digits, '_', '.' and '-' (64 at most)")
            if (queue, name) in self._tasks:
                raise RegistrationError(f"queue {queue!r} has a task {name!r} already: rename one of the two functions, or pass name=…")
        options = TaskOptions.of(cast("TaskKeywords", given))
        is_async = _is_async(plain, name)
        program = program_of(plain, name, self._task_dir()) if options.subprocess else None
        try:
            made: list[Task[..., Any]] = [
                Task(
                    plain,
                    queue=queue,
                    name=name,
                    options=options,
                    caller=self._caller,
                    is_async=is_async,
                    names=names or {},
                    program=program,
                )
                for queue in queues
            ]
        except RegistrationError:
            raise
        except (TypeError, ValueError, NameError) as error:
            raise RegistrationError(f"task {name}: {error}") from error
        for task in made:
            self._tasks[task.queue, name] = task
            self._on_register(task)
        return made[0]

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(list(self._tasks.values()))

    def get(self, queue: str, name: str) -> Task[..., Any] | None:
        """Return the task of this name in this queue."""
        return self._tasks.get((queue, name))


def _is_async(fn: Callable[..., Any], name: str) -> bool:
    target = inspect.unwrap(fn)
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    candidates = (fn, target, getattr(type(fn), "__call__", None))  # noqa: B004
    if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in candidates[:2]):
        raise RegistrationError(f"task {name} is a generator: a task returns one value")
    return any(inspect.iscoroutinefunction(one) for one in candidates)


class TaskMaker:
    """The `.task` of both facades: `@x.task`, `@x.task()`, `@x.task(retry_policy="never")`, `x.task(fn)`, stacked or not."""

    _registry: Registry

    def _queues(self, namespace: str | Sequence[str] | None) -> Sequence[str]:
        raise NotImplementedError

    @overload
    def task(self, fn: Task[P, R], /, *, namespace: str | Sequence[str] | None = None, **options: Unpack[TaskKeywords]) -> Task[P, R]: ...
    @overload
    def task(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *, namespace: str | Sequence[str] | None = None, **options: Unpack[TaskKeywords]
    ) -> Task[P, R]: ...
    @overload
    def task(
        self, fn: Callable[P, R], /, *, namespace: str | Sequence[str] | None = None, **options: Unpack[TaskKeywords]
    ) -> Task[P, R]: ...
    @overload
    def task(
        self, fn: None = None, /, *, namespace: str | Sequence[str] | None = None, **options: Unpack[TaskKeywords]
    ) -> TaskDecorator: ...
    def task(
        self,
        fn: Callable[..., Any] | Task[..., Any] | None = None,
        /,
        *,
        namespace: str | Sequence[str] | None = None,
        **options: Unpack[TaskKeywords],
    ) -> Any:
        """Register a function as a task; see `TaskOptions`. Raises: RegistrationError."""
        queues = self._queues(namespace)

        def decorate(function: Callable[..., Any] | Task[..., Any], /) -> Task[..., Any]:
            # Annotations that are text may name classes of the function around the task.
            text = any(isinstance(kind, str) for kind in getattr(function, "__annotations__", {}).values())
            names = dict(sys._getframe(2 if fn is not None else 1).f_locals) if text else None
            return self._registry.register(function, queues, options, names)

        return decorate if fn is None else decorate(fn)
