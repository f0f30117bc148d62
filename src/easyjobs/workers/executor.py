"""One attempt, from arguments to report. This is the edge that runs users' code: whatever it raises becomes a report, and the worker lives on."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from easyjobs.domain import payload
from easyjobs.domain.job import MAX_RESULT, Claimed, ErrorInfo, Outcome, Report
from easyjobs.errors import GiveUp, InvalidArguments, Retry, Snooze
from easyjobs.runtime.clock import stopwatch
from easyjobs.tasks import JobContext, Task, _current

if TYPE_CHECKING:
    from easyjobs.workers.pool import Attempt

MAX_TRACEBACK: Final = 64 * 1024  # characters
MAX_MESSAGE: Final = 8 * 1024
_HERE: Final = str(Path(__file__).resolve().parent.parent)
_decode: Final = msgspec.json.Decoder(tuple[list[Any], dict[str, Any]]).decode


Ended = Callable[["Attempt", Report], None]


async def run_async(attempt: Attempt, ended: Ended) -> None:
    """Run an attempt of an `async def` task here, and call `ended` with its report.

    Raises: GeneratorExit, when the loop is torn down; else nothing.
    """
    attempt.began = True
    claimed, task = attempt._claimed, attempt._task
    if attempt.stop is not None:
        return ended(attempt, released(claimed))
    try:
        args, kwargs = arguments(task, claimed, attempt)
    except Exception as error:  # noqa: BLE001 - converters run users' validators
        return ended(attempt, refused(claimed, error))
    _current.set(attempt)
    if claimed.timeout_us:
        attempt.count_down()
    attempt.started = started = stopwatch()
    try:
        value = await task.fn(*args, **kwargs)
    except BaseException as error:
        if isinstance(error, GeneratorExit) and not attempt.is_loop_running():
            raise
        report = ended_badly(attempt, error, _since(started))
    else:
        report = ended_well(claimed, value, _since(started))
    return ended(attempt, report)


def run_plain(attempt: Attempt) -> Report | Any:
    """Run an attempt of a plain `def` task in this thread, in a context of its own. Returns its report, or the awaitable that the function returned."""
    attempt.began = True
    claimed, task = attempt._claimed, attempt._task
    if attempt.stop is not None:
        return released(claimed)
    try:
        args, kwargs = arguments(task, claimed, attempt)
    except Exception as error:  # noqa: BLE001 - converters run users' validators
        return refused(claimed, error)
    _current.set(attempt)
    attempt.started = started = stopwatch()
    try:
        value = task.fn(*args, **kwargs)
        if hasattr(value, "__await__"):
            return value
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's: the worker lives on
        return ended_badly(attempt, error, _since(started))
    return ended_well(claimed, value, _since(started))


async def run_awaitable(attempt: Attempt, awaitable: Any, ended: Ended) -> None:
    """Await what a plain function returned."""
    _current.set(attempt)
    started = stopwatch()
    try:
        value = await awaitable
    except BaseException as error:
        if isinstance(error, GeneratorExit) and not attempt.is_loop_running():
            raise
        report = ended_badly(attempt, error, _since(started))
    else:
        report = ended_well(attempt._claimed, value, _since(started))
    return ended(attempt, report)


def _since(started: float) -> int:
    return int((stopwatch() - started) * 1_000_000)


def arguments(task: Task[..., Any], claimed: Claimed, context: JobContext) -> tuple[Any, dict[str, Any]]:
    """Return what to call the function with. Raises: InvalidArguments, msgspec.MsgspecError, and what a validator of the user's raises."""
    args, kwargs = _decode(claimed.args)
    if not kwargs and len(args) in task.plain_arity:
        return args, kwargs
    converter = task.converter
    args, kwargs = converter.convert(args, kwargs)
    if converter.injected:
        args, kwargs = converter.inject(args, kwargs, dict.fromkeys(converter.injected, context))
    return args, kwargs


def ended_well(claimed: Claimed, value: Any, ran_us: int) -> Report:
    """Return the report of a result; one that JSON cannot carry, or that is too large, fails the job for good."""
    try:
        body = payload.encode(value)
    except Exception as error:  # noqa: BLE001 - users' serialisers run in there
        return final(claimed, "unserialisable", type(error), f"the result cannot be written as JSON: {_text(error)}", ran_us)
    if len(body) > MAX_RESULT:
        text = f"the result has {len(body):,} bytes of JSON, the limit is {MAX_RESULT:,}: store large data elsewhere and return a reference"
        return final(claimed, "too_large", ValueError, text, ran_us)
    return Report(claimed.seq, claimed.attempt, Outcome.SUCCEEDED, ran_us, body)


def refused(claimed: Claimed, error: Exception) -> Report:
    """Return the report of arguments that this version of the task does not take: another attempt would not either."""
    text = _text(error)
    if not isinstance(error, InvalidArguments):
        text = f"the arguments cannot be converted: {text}"
    return final(claimed, "invalid_arguments", type(error), text, 0)


def unknown(claimed: Claimed) -> Report:
    """Return the report of a job of a task that this worker does not have."""
    return final(claimed, "unknown_task", LookupError, f"this worker has no task of lane {claimed.lane}", 0)


def released(claimed: Claimed, ran_us: int = 0) -> Report:
    """Return the report that gives a job back."""
    return Report(claimed.seq, claimed.attempt, Outcome.RELEASED, ran_us)


def ended_late(attempt: Attempt, ran_us: int, trace: TracebackType | None = None, text: str = "") -> Report:
    """Return the report of an attempt whose timeout has passed. `trace`: where the body stood, as far as that is known."""
    error = TimeoutError(text or f"the attempt took longer than its timeout, {attempt._claimed.timeout_us / 1_000_000:g} s")
    return ended_badly(attempt, error.with_traceback(trace), ran_us, kind="timeout")


def ended_badly(
    attempt: Attempt, error: BaseException, ran_us: int, *, kind: str = "exception", info: ErrorInfo | None = None, crashed: bool = False
) -> Report:
    """Return the report of an exception that left the body. `info`: how it is told, where it was raised in another process."""
    claimed, policy = attempt._claimed, attempt._task.task_options.retry_policy
    if isinstance(error, asyncio.CancelledError) and attempt.is_being_stopped():
        return released(claimed, ran_us)
    if attempt.timed_out and kind != "timeout":  # that is why it was cancelled, whatever became of the CancelledError
        return ended_late(attempt, ran_us, error.__traceback__)
    if isinstance(error, Snooze):
        return Report(claimed.seq, claimed.attempt, Outcome.SNOOZED, ran_us, delay_us=round(error.in_s * 1_000_000))
    retry = policy.max_retries != 0 if isinstance(error, Retry) else policy.retries(error)
    delay = policy.delay(claimed.failures + 1, random.random()) if retry else 0.0
    if isinstance(error, Retry) and error.in_s is not None:
        delay = error.in_s
    elif isinstance(error, GiveUp):
        retry, delay, kind = False, 0.0, "gave_up"
    if info is None:
        info = ErrorInfo(type=_type_name(type(error)), message=_text(error), traceback=_traceback(error), kind=kind)
    elif isinstance(error, GiveUp):
        info = msgspec.structs.replace(info, kind=kind)
    attempt.error = info
    return Report(claimed.seq, claimed.attempt, Outcome.FAILED, ran_us, msgspec.json.encode(info), retry, round(delay * 1_000_000), crashed)


def final(claimed: Claimed, kind: str, type: type[BaseException] | str, message: str, ran_us: int) -> Report:
    """Return the report of a failure that another attempt would only repeat. `type`: an exception class, or its name."""
    name = type if isinstance(type, str) else _type_name(type)
    info = ErrorInfo(type=name, message=message[:MAX_MESSAGE], kind=kind)
    return Report(claimed.seq, claimed.attempt, Outcome.FAILED, ran_us, msgspec.json.encode(info))


def _type_name(kind: type[BaseException]) -> str:
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _clean(text: str) -> str:
    """Text that UTF-8 can carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def _guarded(make: Callable[[], str], error: BaseException) -> str:
    try:
        return make()
    except Exception as other:  # noqa: BLE001 - an exception's own __str__ may raise
        return f"<{type(error).__name__} whose text raises {type(other).__name__}>"


def _text(error: BaseException) -> str:
    return _clean(_guarded(lambda: str(error), error)[:MAX_MESSAGE])


def _traceback(error: BaseException) -> str:
    """The formatted traceback, without our own frames at its top, and its middle left out if it is too long."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HERE):
        trace = trace.tb_next
    text = _guarded(lambda: "".join(traceback.format_exception(type(error), error, trace)), error)
    if len(text) > MAX_TRACEBACK:
        head = MAX_TRACEBACK // 4
        text = f"{text[:head]}\n… {len(text) - MAX_TRACEBACK:,} characters left out …\n{text[head - MAX_TRACEBACK :]}"
    return _clean(text)
