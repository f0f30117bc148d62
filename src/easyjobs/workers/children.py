"""Attempts that run in child processes: which child runs one, and what its end means for the job.

The file of a file task gets a process of its own each time. Functions go to warm children: processes that have run such a function before,
imported its module, and wait. Children of different `max_memory` are kept apart. There are never more than there are slots: a new one takes
the place of the one that has been idle for longest. An idle one ends after `IDLE_S`; one that crashed, was stopped or ran out of memory is not
used again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from easyjobs.domain import payload
from easyjobs.domain.job import Claimed, ErrorInfo, Outcome, Report
from easyjobs.runtime.clock import SystemClock, stopwatch
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.log import INFO, event
from easyjobs.runtime.program import Program
from easyjobs.workers.child import Child, Ended, How, Output, death, environment, interpreter
from easyjobs.workers.executor import arguments, ended_badly, ended_late, final, refused, released
from easyjobs.workers.task import RESULT

if TYPE_CHECKING:
    from easyjobs.workers.pool import Attempt

log = logging.getLogger("easyjobs.child")

IDLE_S: Final = 300.0
TOLD_S: Final = 1.0  # within so long the worker knows that it is to end too
MAIN: Final = "from easyjobs.workers.task_subprocess import main; main()"

OnOutput = Callable[["Attempt", str, str], None]
"""Called with an attempt, "stdout" or "stderr", and whole lines of text, in the attempt's thread. A megabyte of each attempt, at most."""


def log_output(attempt: Attempt, stream: str, text: str) -> None:
    """Write what a child printed to the job's log, and to the log `easyjobs.child`, line by line."""
    now = SystemClock().now()
    for line in text.splitlines():
        attempt.write_line(INFO, stream, line, now)
        event(log, INFO, "child.printed", job_id=id_text(attempt._claimed.id), stream=stream, text=line)


class Children:
    """The warm children of one pool. `run` may be called from many threads at once."""

    def __init__(self, most: int, idle_s: float = IDLE_S) -> None:
        self._most, self._idle_s = most, idle_s
        self._busy = 0  # runs, also those whose child is not there yet
        self._lock = threading.Lock()
        self._idle: list[tuple[float, int | None, Child]] = []  # since when, its max_memory; the one that was used last stands last
        self._running: set[Child] = set()
        self._sweeper: threading.Timer | None = None
        self._is_closed = False

    def run(
        self,
        program: Program,
        job: bytes,
        *,
        max_memory: int | None,
        timeout_s: float | None,
        output: Output,
        started: Callable[[Child], None],
    ) -> Ended:
        """Run a job in a child. `started` is told which, before it gets the job. Raises: OSError, if no process can be started."""
        with self._lock:
            self._busy += 1
        try:
            child = None if program.file is not None else self._take(max_memory)
            if child is None:
                self._make_room()
                argv = [interpreter(), str(program.file)] if program.file is not None else [interpreter(), "-c", MAIN]
                child = Child(argv, environment())
            return self._run(child, job, max_memory, timeout_s, output, started, is_file=program.file is not None)
        finally:
            with self._lock:
                self._busy -= 1

    def _run(
        self,
        child: Child,
        job: bytes,
        max_memory: int | None,
        timeout_s: float | None,
        output: Output,
        started: Callable[[Child], None],
        *,
        is_file: bool,
    ) -> Ended:
        with self._lock:
            self._running.add(child)
            is_closed = self._is_closed
        keep = False
        try:
            if is_closed:
                child.stop()
            started(child)
            ended = child.run(job, timeout_s, output, once=is_file)
            keep = ended.how is How.ANSWERED and not is_file and b'"MemoryError"' not in ended.body[:1000]
        finally:
            with self._lock:
                self._running.discard(child)
                keep = keep and not self._is_closed and child.is_alive
                if keep:
                    self._idle.append((stopwatch(), max_memory, child))
                    self._plan_sweep()
            if not keep:
                child.end()
        return ended

    def _take(self, max_memory: int | None) -> Child | None:
        """A warm child of this limit that is alive."""
        while True:
            with self._lock:
                found = next((one for one in reversed(self._idle) if one[1] == max_memory), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if found[2].is_alive:
                return found[2]
            found[2].end()

    def _make_room(self) -> None:
        """End the child that has been idle for longest, if one more would be too many."""
        with self._lock:
            old = self._idle.pop(0)[2] if self._idle and self._busy + len(self._idle) > self._most else None
        if old is not None:
            old.end()

    def _plan_sweep(self) -> None:
        if self._sweeper is None and self._idle and not self._is_closed:
            self._sweeper = threading.Timer(max(0.01, self._idle[0][0] + self._idle_s - stopwatch()), self._sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep(self) -> None:
        """In a thread of its own: end the children that have been idle for long."""
        with self._lock:
            self._sweeper = None
            now = stopwatch()
            old = [one for one in self._idle if now - one[0] >= self._idle_s]
            self._idle = [one for one in self._idle if now - one[0] < self._idle_s]
            self._plan_sweep()
        for _, _, child in old:
            child.leave()

    def close(self) -> None:
        """Kill all children. The idle ones are reaped here, the others by the threads that use them."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            running = list(self._running)
            if self._sweeper is not None:
                self._sweeper.cancel()
        for child in running:
            child.kill()
        for _, _, child in idle:
            child.kill()
        for _, _, child in idle:
            child.end()

    @property
    def idle(self) -> list[int]:
        """The process ids of the children that wait for a job."""
        with self._lock:
            return [child.pid for _, _, child in self._idle]


# --- an attempt -----------------------------------------------------------------------------------------------------------------


def run_in_child(attempt: Attempt, children: Children, on_output: OnOutput) -> Report:
    """Run an attempt in a child process, and return its report. In a thread of its own."""
    attempt.began = True
    claimed, task = attempt._claimed, attempt._task
    if attempt.stop is not None:
        return released(claimed)
    try:
        arguments(task, claimed, attempt)  # the child converts them once more; here it shows that they fit
    except Exception as error:  # noqa: BLE001 - converters run users' validators
        return refused(claimed, error)
    program = task.program
    assert program is not None

    def tell(stream: str, text: str) -> None:
        try:
            on_output(attempt, stream, text)
        except Exception:
            log.exception("what a child printed is lost")

    def started(child: Child) -> None:
        attempt.child = child
        if attempt.stop is not None:  # it came meanwhile
            child.stop()

    attempt.started = begun = stopwatch()
    try:
        ended = children.run(
            program,
            request(claimed, program, task.queue, task.name, task.task_options.max_memory),
            max_memory=task.task_options.max_memory,
            timeout_s=claimed.timeout_us / 1_000_000 if claimed.timeout_us else None,
            output=Output(tell),
            started=started,
        )
        return report_of(attempt, ended)
    except OSError as error:  # no process can be started
        return ended_badly(attempt, error, round((stopwatch() - begun) * 1_000_000))
    except Exception as error:  # ours; the slot must not be lost for it
        log.exception("an attempt in a child process is lost")
        return ended_badly(attempt, error, round((stopwatch() - begun) * 1_000_000))


def request(claimed: Claimed, program: Program, queue: str, name: str, max_memory: int | None) -> bytes:
    """Return what a child is told of an attempt, as JSON."""
    told: dict[str, Any] = {
        "call": msgspec.Raw(claimed.args),
        "task": name,
        "queue": queue,
        "seq": claimed.seq,
        "attempt": claimed.attempt,
        "lane": claimed.lane,
        "id": claimed.id.hex(),
        "failures": claimed.failures,
        "timeout_us": claimed.timeout_us,
        "max_memory": max_memory,
    }
    if program.file is None:
        told["program"] = {"module": program.module, "function": program.function, "main": str(program.main) if program.main else None}
        told["path"] = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - it is text
    return msgspec.json.encode(told)


class Told(msgspec.Struct, frozen=True):
    """What a child says of an exception. `types`: the names of its class and those that this one inherits from."""

    types: list[str]
    message: str
    traceback: str = ""
    kind: str = "exception"
    facts: dict[str, Any] = {}


def report_of(attempt: Attempt, ended: Ended) -> Report:
    """Return the report that a child's run amounts to."""
    claimed, options = attempt._claimed, attempt._task.task_options
    ran_us = ended.ran_us
    if attempt.stop is not None and ended.how is not How.ANSWERED:
        return released(claimed, ran_us)
    if ended.how is How.LATE:
        attempt.timed_out = True
        if ended.began:
            return ended_late(attempt, ran_us)
        return ended_late(attempt, ran_us, text=f"its child process had not begun after {ran_us / 1_000_000:.0f} s")
    if ended.how is How.STOPPED:
        return released(claimed, ran_us)
    if ended.how is How.DIED:
        return _died(attempt, ended)
    if ended.how is How.TOO_LARGE:
        text = f"the result has {ended.code:,} bytes of JSON, more than the limit: store large data elsewhere and return a reference"
        return final(claimed, "too_large", "ValueError", text, ran_us)
    if ended.how is How.GARBAGE:
        return _garbage(attempt, ran_us)
    if ended.kind == RESULT:
        try:
            payload.decode(ended.body)
        except payload.BadJson as error:
            return final(claimed, "unserialisable", "ValueError", f"the result cannot be kept: {error}", ran_us)
        return Report(claimed.seq, claimed.attempt, Outcome.SUCCEEDED, ran_us, ended.body)
    try:
        told = msgspec.json.decode(ended.body, type=Told)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _garbage(attempt, ran_us)
    if not told.types:
        return _garbage(attempt, ran_us)
    if told.kind != "exception":
        return final(claimed, told.kind, told.types[0], told.message, ran_us)
    program = attempt._task.program
    is_script = program is not None and program.file is not None
    if "MemoryError" in told.types and not told.message:
        limit = f"max_memory, {options.max_memory / 2**20:,.0f} MB" if options.max_memory else "there is"
        told = msgspec.structs.replace(told, message=f"the task needed more memory than {limit}")
    return ended_badly(
        attempt,
        rebuilt(told, is_script=is_script),
        ran_us,
        info=ErrorInfo(type=told.types[0], message=told.message, traceback=told.traceback),
    )


def _died(attempt: Attempt, ended: Ended) -> Report:
    text = death(ended.code, ended.tail)
    program = attempt._task.program
    if ended.code == -signal.SIGTERM and attempt.is_worker_ending(TOLD_S):
        return released(attempt._claimed, ended.ran_us)  # a supervisor tells all processes of a service to end, systemd for one
    if ended.code < 0:
        return _lost(attempt, ended.ran_us, "crashed", text)
    if not ended.began and program is not None and program.file is not None:
        text += f". (Does {program.file} end with: if __name__ == '__main__': work()?)"
    return _lost(attempt, ended.ran_us, "exited", text)


def _garbage(attempt: Attempt, ran_us: int) -> Report:
    text = "its child process wrote something else than a result to the pipe of the results: leave file descriptors alone that the task has not opened"
    return _lost(attempt, ran_us, "garbage", text)


def _lost(attempt: Attempt, ran_us: int, kind: str, text: str) -> Report:
    info = ErrorInfo(type="ChildDied", message=text, kind=kind)
    return ended_badly(attempt, ChildDied(text), ran_us, info=info, crashed=kind == "crashed")


class ChildDied(RuntimeError):
    """A child process has ended without an answer."""


def rebuilt(told: Told, *, is_script: bool = False) -> BaseException:
    """Return an exception for the retry policy to judge: of the class that was raised, or of the nearest one of its bases that this process has.

    No code is imported for it, and no constructor is called.
    """
    for name in told.types:
        if is_script and name.startswith("__main__."):
            continue  # it is not this process's `__main__`
        module, _, qualname = name.rpartition(".")
        found: Any = sys.modules.get(module or "builtins")
        if found is None and "." in module:  # a class inside of a class
            outer, _, rest = module.rpartition(".")
            found, qualname = sys.modules.get(outer), f"{rest}.{qualname}"
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            try:
                error: BaseException = found.__new__(found)
            except Exception:  # noqa: BLE001, S112 - a class of the user's, with ideas of its own: one of its bases will do
                continue
            error.args = (told.message,)
            for key, value in told.facts.items():
                with contextlib.suppress(Exception):
                    setattr(error, key, value)
            return error
    return Exception(told.message)
