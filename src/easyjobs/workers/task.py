"""`@subprocess`, for the files in WORKER_TASK_DIR, and the child's end of the pipes between a worker and its child process.

    from easyjobs.workers.task import subprocess

    @subprocess
    def work(a, b, c): ...

    if __name__ == "__main__":
        work()

Only the standard library: such a file must start fast.

The worker names two descriptors in EASYJOBS_CHILD: one to read jobs from, one to write answers to. stdin, stdout and stderr stay the
task's own, so whatever it prints is no answer. Both pipes carry frames: `b"EJ1"`, one byte that says what it is, four bytes of length
(big-endian), so many bytes of JSON. The worker sends JOB; the child answers BEGUN when the function starts, then RESULT or ERROR.

**No child outlives its worker.** While a job runs, nothing is sent to the child, so anything that happens to the pipe of the jobs is its
end: the worker is gone. On Linux the kernel is asked to send SIGKILL to the child's process group then, which works although the child
may be in a computation that never comes back to the interpreter, and takes what the task itself has started along. Elsewhere a thread
waits for it. An idle child reads the end of the file, and ends.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys

TYPE_CHECKING = False  # `typing` itself would be the slowest import of this module

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, TypeAlias

    Run: TypeAlias = Callable[[dict[str, Any], Callable[[], None]], bytes]

VARIABLE = "EASYJOBS_CHILD"
MAGIC = b"EJ1"
HEAD = 8  # bytes of a frame's head
JOB, BEGUN, RESULT, ERROR = b"J", b"B", b"R", b"E"
MAX_TEXT = 64 * 1024  # characters of a traceback


def frame(kind: bytes, body: bytes) -> bytes:
    """Return a frame of this kind."""
    return MAGIC + kind + len(body).to_bytes(4, "big") + body


class Fault(Exception):
    """What is wrong with a job, where it is not what the function raised. `kind`: as in `ErrorInfo`."""

    def __init__(self, kind: str, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.kind, self.cause = kind, cause


class Pipes:
    """The child's ends."""

    def __init__(self, jobs: int, answers: int) -> None:
        self._jobs, self._answers = jobs, answers
        self._tied: object = None
        for descriptor in (jobs, answers):  # not for what the task starts
            os.set_inheritable(descriptor, False)

    def read(self) -> bytes | None:
        """The next job's JSON; None: the worker is gone."""
        head = self._read(HEAD)
        if head is None or head[:4] != MAGIC + JOB:
            return None
        return self._read(int.from_bytes(head[4:], "big"))

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            more = os.read(self._jobs, min(size - len(data), 1 << 20))
            if not more:
                return None
            data += more
        return data

    def write(self, kind: bytes, body: bytes = b"") -> None:
        """Answer."""
        data = memoryview(frame(kind, body))
        while data:
            data = data[os.write(self._answers, data) :]

    def tie(self) -> None:
        """From now on this process, and its group, ends when the worker does."""
        import select

        try:
            import fcntl

            # The owner is a process group: it is the group that gets the signal.
            fcntl.fcntl(self._jobs, fcntl.F_SETOWN, -os.getpgrp() if os.getpgrp() == os.getpid() else os.getpid())
            fcntl.fcntl(self._jobs, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(self._jobs, fcntl.F_SETFL, fcntl.fcntl(self._jobs, fcntl.F_GETFL) | os.O_ASYNC)
        except (ImportError, AttributeError, OSError):  # not on Linux
            import threading

            self._tied = mine = object()

            def watch() -> None:
                while self._tied is mine:
                    if select.select([self._jobs], [], [], 1.0)[0] and self._tied is mine:
                        end_group()

            threading.Thread(target=watch, name="easyjobs-worker-gone", daemon=True).start()
        if select.select([self._jobs], [], [], 0)[0]:  # it was gone before
            end_group()

    def untie(self) -> None:
        """The job is done: the next one may come."""
        if self._tied is not None:
            self._tied = None
            return
        import fcntl

        fcntl.fcntl(self._jobs, fcntl.F_SETFL, fcntl.fcntl(self._jobs, fcntl.F_GETFL) & ~os.O_ASYNC)


def end_group() -> None:
    """Kill this process and what it has started."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _take() -> Pipes | None:
    """The pipes of a process that a worker has started. Their numbers leave the environment: they mean nothing to what the task starts."""
    found = os.environ.pop(VARIABLE, "")
    try:
        jobs, answers = (int(number) for number in found.split(","))
        return Pipes(jobs, answers)
    except (ValueError, OSError):
        return None


pipes = _take()


# --- running a job --------------------------------------------------------------------------------------------------------------


class _Ended(SystemExit):
    """SIGTERM came: the worker ends this job (a timeout, a cancel, a shutdown). `finally` blocks run."""


_ending = False


def _end(number: int, stack: FrameType | None) -> None:  # noqa: ARG001
    global _ending
    _ending = True
    raise _Ended(128 + number)


def serve(pipes: Pipes, raw: bytes, run: Run) -> bool:
    """Run one job, given as JSON, and answer. `run(job, begin)` returns the result's JSON, and calls `begin` before the function.

    Returns whether it went well. Ends the process when a signal has asked for it.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a thread of the worker may have blocked it, and children inherit that
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # so that the worker sees lines when they are printed
    pipes.tie()
    restore: Callable[[], None] | None = None
    try:
        try:
            job = json.loads(raw)
            restore = limit_memory(job.get("max_memory"))
            answer = RESULT, run(job, lambda: pipes.write(BEGUN))
        finally:
            if restore is not None:
                restore()  # there is room again to say what went wrong
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
        if _ending:
            _leave()
        answer = ERROR, describe(error)
    try:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue
        pipes.untie()
        pipes.write(*answer)
    except OSError as error:  # the worker reads this at the end of stderr
        os.write(2, f"easyjobs: the pipe of the results is gone ({error}): has the task closed file descriptors?\n".encode())
        os._exit(1)
    except BaseException:
        if _ending:
            _leave()
        raise
    return answer[0] is RESULT


def _leave() -> None:
    """End as if SIGTERM had not been caught."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(128 + signal.SIGTERM)


def limit_memory(size: int | None) -> Callable[[], None] | None:
    """Let this process have no more than `size` bytes of data; the answer takes the limit away again."""
    if not size:
        return None
    import resource

    # On Linux RLIMIT_DATA counts what can be written to, however it was allocated. RLIMIT_AS would count addresses that are only reserved.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    before = resource.getrlimit(kind)
    hard = before[1]
    resource.setrlimit(kind, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
    return lambda: resource.setrlimit(kind, before)


def finish(value: Any) -> Any:
    """Return what a function has returned, awaited if need be."""
    if not hasattr(value, "__await__"):
        return value
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def describe(error: BaseException) -> bytes:
    """Return an exception as JSON: type, message, traceback; the names of its classes; its attributes if it is one of easyjobs' own."""
    import traceback

    kind = "exception"
    if isinstance(error, Fault):
        kind = error.kind
        cause = error.cause if error.cause is not None else error
        names, message, trace = [name_of(type(cause))], str(error), ""
    else:
        names = [name_of(cls) for cls in type(error).__mro__ if cls is not object]
        try:
            message = f"the task called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        except Exception as other:  # noqa: BLE001 - an exception's own __str__ may raise
            message = f"<{type(error).__name__} whose text raises {type(other).__name__}>"
        try:
            trace = "".join(traceback.format_exception(type(error), error, _theirs(error.__traceback__)))
        except Exception as other:  # noqa: BLE001 - the same
            trace = f"<a traceback that raises {type(other).__name__}>"
    if len(trace) > MAX_TEXT:
        trace = f"{trace[: MAX_TEXT // 4]}\n… {len(trace) - MAX_TEXT:,} characters left out …\n{trace[-MAX_TEXT * 3 // 4 :]}"
    facts: dict[str, Any] = {}
    if any(cls.__module__.startswith("easyjobs.") for cls in type(error).__mro__):
        facts = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)}
    told = {"kind": kind, "types": names, "message": message[:MAX_TEXT], "traceback": trace, "facts": facts}
    return json.dumps(told).encode()


def name_of(cls: type) -> str:
    """`module.Class`, or `Class` of a builtin; a script's own classes are of `__main__`."""
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames at its top."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would cost milliseconds
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((here, "<frozen", "<string>")):
        trace = trace.tb_next
    return trace


# --- files in WORKER_TASK_DIR ---------------------------------------------------------------------------------------------------


def subprocess(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function, async or not, the body of a subprocess task: the file calls it without arguments under `if __name__ == "__main__"`.

    Called with arguments, it is the function itself. Started by hand, the file takes arguments from the command line, each as JSON or as
    plain text, and prints the result: `python basic_blocking.py 1 2 3`.
    """

    @functools.wraps(fn)
    def work(*args: Any, **kwargs: Any) -> Any:
        global pipes
        if args or kwargs:
            return fn(*args, **kwargs)
        mine, pipes = pipes, None
        if mine is not None:
            raw = mine.read()
            if raw is not None and not serve(mine, raw, functools.partial(_call, fn)):
                sys.exit(1)
            return None
        given = [_from_text(text) for text in sys.argv[1:]] if fn.__module__ == "__main__" else []
        if not given:
            return fn()
        print(encode(finish(fn(*given))).decode())  # noqa: T201 - for the person who has started it
        return None

    return work


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _call(fn: Callable[..., Any], job: dict[str, Any], begin: Callable[[], None]) -> bytes:
    args, kwargs = job["call"]
    begin()
    return encode(finish(fn(*args, **kwargs)))


def encode(value: Any) -> bytes:
    """Write a result as JSON, as tasks in threads do: what plain JSON does not have goes through pydantic. Raises: Fault."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        from easyjobs.domain import payload

        try:
            return payload.encode(value)
        except Exception as error:
            raise Fault("unserialisable", f"the result cannot be written as JSON: {error}", error) from error
