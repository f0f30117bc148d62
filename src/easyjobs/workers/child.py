"""One child process, as its worker sees it: started, given a job, listened to, ended with all that it has started.

Every child leads a process group (and session) of its own. Ending it is SIGTERM to the group, and SIGKILL after `KILL_AFTER_S`; whatever of
the group is left when the child has ended is killed before the child is reaped, while its process id, which is the group's, cannot be
given to anybody else.

A child is used by one thread, which waits here for the answer; `stop` may be called from any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from easyjobs.domain.job import MAX_RESULT
from easyjobs.runtime.clock import stopwatch
from easyjobs.workers.task import BEGUN, ERROR, HEAD, JOB, MAGIC, RESULT, VARIABLE, frame

KILL_AFTER_S: Final = 2.0  # between SIGTERM and SIGKILL
LINGER_S: Final = 2.0  # a process that has given its result may take so long to end
START_S: Final = 60.0  # with a timeout, a function that has not begun by then does not begin
MAX_WAIT_S: Final = 3600.0  # poll() counts milliseconds in 31 bits
POLL_S: Final = 0.1  # how often to look whether a child has ended, where the system does not tell
MAX_OUTPUT: Final = 1024 * 1024  # characters of one attempt that are handed on
MAX_LINE: Final = 8 * 1024
MAX_ERROR: Final = 1024 * 1024  # bytes
TAIL: Final = 2000  # characters of stderr that a message about a dead child quotes
# What a child needs no part of: secrets, tokens, and addresses that may contain a password.
_PRIVATE: Final = re.compile(r"EASYJOBS_(.*(SECRET|TOKEN|PASSWORD).*|STORE|BROKER_PATH)(_FILE)?", re.IGNORECASE)


class How(Enum):
    """How a run of a child ended."""

    ANSWERED = "answered"
    DIED = "died"  # without an answer
    LATE = "late"  # its timeout passed: it was ended
    STOPPED = "stopped"  # `stop` was called: it was ended
    TOO_LARGE = "too large"  # its answer was: it was ended
    GARBAGE = "garbage"  # its answer is none: it was ended


class Ended(NamedTuple):
    """What came of a run. `code`: as `Popen.returncode`, or the size of an answer that was too large. `tail`: the end of stderr."""

    how: How
    kind: bytes = b""
    body: bytes = b""
    code: int = 0
    ran_us: int = 0
    began: bool = False
    tail: str = ""


class Output:
    """What a child prints during one attempt, as text, in whole lines. `tell(stream, text)` gets it, up to `MAX_OUTPUT` characters."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._decoders = {name: getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._begun: dict[str, str] = {"stdout": "", "stderr": ""}  # lines that have no end yet
        self._left = MAX_OUTPUT
        self.tail = ""

    def feed(self, stream: str, data: bytes, *, final: bool = False) -> None:
        """Take some bytes of "stdout" or "stderr"."""
        text = self._begun[stream] + self._decoders[stream].decode(data, final)
        end = len(text) if final or len(text) > MAX_LINE else text.rfind("\n") + 1
        self._begun[stream] = text[end:]
        self._hand_on(stream, text[:end])

    def close(self) -> None:
        """No more comes."""
        for stream in ("stdout", "stderr"):
            self.feed(stream, b"", final=True)

    def _hand_on(self, stream: str, text: str) -> None:
        if stream == "stderr":
            self.tail = (self.tail + text)[-TAIL:]
        if not text or self._left < 0:
            return
        left, self._left = self._left, self._left - len(text)
        if self._left < 0:  # now, and never again
            text = f"{text[:left]}\n… what it printed after its first {MAX_OUTPUT:,} characters is left out …\n"
        self._tell(stream, text)


class Child:
    """A running program that answers jobs. Raises: OSError, if it cannot be started."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        jobs, self._jobs = os.pipe()
        try:
            self._answers, answers = os.pipe()
        except OSError:
            os.close(jobs)
            os.close(self._jobs)
            raise
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, on a file of the operator or on our own module
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                close_fds=True,
                pass_fds=(jobs, answers),
                start_new_session=True,
                env={**environment, VARIABLE: f"{jobs},{answers}"},
            )
        except BaseException:
            os.close(self._jobs)
            os.close(self._answers)
            raise
        finally:
            os.close(jobs)
            os.close(answers)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._streams = {self._process.stdout.fileno(): "stdout", self._process.stderr.fileno(): "stderr"}
        self._has_answers = True
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not on Linux
            self._pidfd = -1
        for descriptor in (self._jobs, self._answers, *self._streams):
            os.set_blocking(descriptor, False)
        self._lock = threading.Lock()  # around signals: none is sent to a process that was reaped
        self._killer: threading.Timer | None = None
        self._unsent = memoryview(b"")
        self._got = bytearray()
        self.is_stopped = False
        self.is_reaped = False

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    # --- a run ------------------------------------------------------------------------------------------------------------------

    def run(self, job: bytes, timeout_s: float | None, output: Output, *, once: bool = False) -> Ended:
        """Give the child a job, and wait for the answer or its end.

        Args:
            job: JSON.
            timeout_s: how long the function may run, from when the child says that it has begun.
            output: gets what is printed meanwhile.
            once: the child ends after this job: wait for that too.
        """
        self._unsent = memoryview(frame(JOB, job))
        self._got.clear()
        given = stopwatch()
        began: float | None = None
        deadline = given + max(timeout_s, START_S) if timeout_s is not None else None
        ended: Ended | None = None
        late = is_dead = False
        while ended is None and not is_dead:
            is_dead = self._wait(deadline, output)
            answers, fault = self._take()
            for kind, body in answers:
                if kind == BEGUN:
                    began = stopwatch()
                    deadline = began + timeout_s if timeout_s is not None and not late else deadline
                elif kind in (RESULT, ERROR) and ended is None:
                    ended = Ended(How.ANSWERED, kind, body)
                else:
                    fault = Ended(How.GARBAGE)
            if fault is not None and ended is None:
                ended = fault
            if ended is None and deadline is not None and stopwatch() >= deadline:
                late, deadline = True, None
                self.stop()
        ran_us = round((stopwatch() - (began or given)) * 1_000_000)
        if late or self.is_stopped:
            ended = Ended(How.LATE if late else How.STOPPED)
            if not is_dead:
                self._await_end(KILL_AFTER_S + 1, output)
        elif ended is None:
            ended = Ended(How.DIED)
        elif once and ended.how is How.ANSWERED and not is_dead:
            self._await_end(LINGER_S, output)
        self._drain(output)
        output.close()
        if once or is_dead or ended.how is not How.ANSWERED:
            self.end()
            if ended.how is How.DIED:
                ended = ended._replace(code=self._process.returncode)
        return ended._replace(ran_us=ran_us, began=began is not None, tail=output.tail)

    def _wait(self, deadline: float | None, output: Output) -> bool:
        """Wait until something happens, and take in what there is. Returns whether the process has ended."""
        poll = select.poll()
        if self._unsent:
            poll.register(self._jobs, select.POLLOUT)
        if self._has_answers:
            poll.register(self._answers, select.POLLIN)
        for descriptor in self._streams:
            poll.register(descriptor, select.POLLIN)
        wait_s = None if deadline is None else min(MAX_WAIT_S, max(0.0, deadline - stopwatch()))
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        else:
            wait_s = POLL_S if wait_s is None else min(wait_s, POLL_S)
        ready = {descriptor for descriptor, _ in poll.poll(None if wait_s is None else round(wait_s * 1000 + 0.5))}
        is_dead = self._pidfd in ready if self._pidfd >= 0 else self._has_ended()
        if self._jobs in ready:
            self._send()
        if self._answers in ready or is_dead:
            self._receive()
        for descriptor in [one for one in self._streams if one in ready]:
            self._listen(descriptor, output)
        return is_dead

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._jobs, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more: the process ends, or has lost its pipe and will answer nothing
            self._unsent = memoryview(b"")

    def _receive(self) -> None:
        while self._has_answers and len(self._got) <= MAX_RESULT + MAX_ERROR:
            try:
                data = os.read(self._answers, 1 << 20)
            except BlockingIOError:
                return
            if not data:
                self._has_answers = False
            self._got += data

    def _take(self) -> tuple[list[tuple[bytes, bytes]], Ended | None]:
        """The whole frames that have come, and why nothing more can be taken."""
        frames: list[tuple[bytes, bytes]] = []
        got = self._got
        while len(got) >= HEAD or (got and not MAGIC.startswith(got[: len(MAGIC)])):
            kind, size = bytes(got[len(MAGIC) : HEAD - 4]), int.from_bytes(got[HEAD - 4 : HEAD], "big")
            if got[: len(MAGIC)] != MAGIC or kind not in (BEGUN, RESULT, ERROR):
                return frames, Ended(How.GARBAGE)
            if size > (MAX_RESULT if kind == RESULT else MAX_ERROR):
                return frames, Ended(How.TOO_LARGE, kind, code=size)
            if len(got) < HEAD + size:
                break
            frames.append((kind, bytes(got[HEAD : HEAD + size])))
            del got[: HEAD + size]
        return frames, None

    def _listen(self, descriptor: int, output: Output, most: int = 1 << 16) -> int:
        try:
            data = os.read(descriptor, most)
        except BlockingIOError:
            return 0
        if data:
            output.feed(self._streams[descriptor], data)
        else:
            del self._streams[descriptor]
        return len(data)

    def _drain(self, output: Output) -> None:
        """Take in what was printed before the answer. (A thread of the task may print on for ever.)"""
        for descriptor in list(self._streams):
            for _ in range(64):
                if not self._listen(descriptor, output):
                    break

    def _await_end(self, within_s: float, output: Output) -> None:
        end = stopwatch() + within_s
        while not self._wait(end, output):
            self._got.clear()
            if stopwatch() >= end:
                return

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        """Whether the process is dead. It is not reaped by looking, where the system lets us look only."""
        if self.is_reaped:
            return True
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._process.poll() is not None

    @property
    def is_alive(self) -> bool:
        """Whether it can take a job."""
        return not self.is_stopped and self._has_answers and not self._has_ended()

    def stop(self) -> None:
        """Have the child end soon: SIGTERM to its group, later SIGKILL. From any thread; can be called again."""
        with self._lock:
            if self.is_reaped or self.is_stopped:
                return
            self.is_stopped = True
            self._signal(signal.SIGTERM)
            self._killer = threading.Timer(KILL_AFTER_S, self.kill)
            self._killer.daemon = True
            self._killer.start()

    def kill(self) -> None:
        """SIGKILL to the child's group, now. From any thread."""
        with self._lock:
            self.is_stopped = True
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if not self.is_reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: a group of which only the dead leader is left
                os.killpg(self.pid, number)

    def leave(self) -> None:
        """Let an idle child end by itself, and see to it."""
        os.close(self._jobs)
        self._jobs = -1
        self._await_end(LINGER_S, Output(lambda _stream, _text: None))
        self.end()

    def end(self) -> None:
        """Kill what is left of the group, reap the child, let go of the pipes. Can be called again, by the thread that uses the child."""
        if self.is_reaped:
            return
        with self._lock:
            self._signal(signal.SIGKILL)
            self.is_reaped = True  # no signal from now on
            if self._killer is not None:
                self._killer.cancel()
        self._process.wait()  # without the lock: a process that hangs in the kernel must not hold up who wants to stop it
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()
        for descriptor in (self._jobs, self._answers, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)


def environment() -> dict[str, str]:
    """What children get: this process's environment, without what is private to easyjobs."""
    kept = {name: value for name, value in os.environ.items() if not _PRIVATE.fullmatch(name)}
    return {"PYTHONIOENCODING": "utf-8:backslashreplace", **kept}


def interpreter() -> str:
    """The Python that children run. Raises: OSError where nobody knows."""
    if not sys.executable:
        raise OSError("sys.executable is empty: this program does not know the Python that runs it")
    return sys.executable


def death(code: int, tail: Any) -> str:
    """How a process without an answer has ended, for people. `code`: as `Popen.returncode`."""
    if code >= 0:
        text = f"its child process ended with exit code {code} and gave no result"
    else:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        text = f"its child process was killed by {name}"
        if -code == signal.SIGKILL:
            text += " (which the kernel does when memory runs out)"
    return f"{text}; the end of its stderr: {tail.strip()}" if tail.strip() else text
