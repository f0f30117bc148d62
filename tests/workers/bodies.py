"""What children run in the tests: functions at the top of a module, as `subprocess=True` asks for."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from easyjobs.tasks import JobContext, current_job


class Order(BaseModel):
    number: int
    day: date

    @field_validator("number")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("an even number")
        return value


@dataclass
class Point:
    x: int
    y: int = 0


class OddError(ValueError):
    """Of this module's own."""


def add(a: int, b: int = 1) -> dict[str, int]:
    return {"sum": a + b, "pid": os.getpid()}


def untyped(a, b=2, *args, **kwargs):  # type: ignore[no-untyped-def]
    return [a, b, args, kwargs]


def convert(order: Order, point: Point, when: timedelta) -> dict[str, Any]:
    assert isinstance(order, Order)
    assert isinstance(point, Point)
    return {"day": order.day + when, "point": point, "order": order}


async def in_a_loop(n: int) -> int:
    await asyncio.sleep(0)
    return n * 2


def about(context: JobContext) -> dict[str, Any]:
    assert current_job() is context
    return {
        "job_id": context.job_id,
        "attempt": context.attempt,
        "failures": context.failures,
        "name": f"{context.queue}/{context.task}",
        "main": sys.modules["__main__"].__name__,
    }


def fail(message: str = "no") -> None:
    raise OddError(message)


def leave(code: int) -> None:
    sys.exit(code)


def leave_at_once(code: int) -> None:
    print("last words", file=sys.stderr)
    os._exit(code)


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def crash() -> None:
    ctypes.string_at(0)


def returns_a_socket() -> object:
    return object()


def returns_nan() -> float:
    return float("nan")


def large(size: int) -> str:
    return "x" * size


def speak(n: int, text: str = "line") -> int:
    for number in range(n):
        print(f"{text} {number}")
        print(f"error {number}", file=sys.stderr)
    return n


def flood(size: int) -> int:
    os.write(1, b"x" * size)
    return size


def garbage() -> int:
    for descriptor in range(3, 1000):  # pipes keep the numbers that they have in the parent
        try:
            os.write(descriptor, b"garbage")
        except OSError:
            continue
    return 1


def close_all() -> int:
    os.closerange(3, 1000)
    return 1


def grow(megabytes: int) -> int:
    return len([bytearray(1 << 20) for _ in range(megabytes)])


def spin(started: str) -> None:
    """Never comes back to the interpreter's loop, as a long computation in C."""
    Path(started).write_text(str(os.getpid()))
    sum(range(10**15))


def with_a_grandchild(pids: str) -> None:
    """Starts a process that does not end by itself, and that SIGTERM does not end."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; exec sleep 600"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    write_whole(pids, f"{os.getpid()} {child.pid}")
    time.sleep(600)


def write_whole(path: str, text: str) -> None:
    Path(path + ".new").write_text(text)
    Path(path + ".new").rename(path)


def cleans_up(started: str, cleaned: str) -> None:
    try:
        write_whole(started, "started")
        time.sleep(600)
    finally:
        write_whole(cleaned, "cleaned")


async def cleans_up_async(started: str, cleaned: str) -> None:
    try:
        write_whole(started, "started")
        await asyncio.sleep(600)
    finally:
        write_whole(cleaned, "cleaned")


def ignores_sigterm(started: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_whole(started, str(os.getpid()))
    time.sleep(600)


def environment() -> list[str]:
    return sorted(os.environ)


def descriptors() -> list[str]:
    found = []
    for descriptor in range(3, 256):
        try:
            found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        except OSError:
            continue
    return found


def stub(a: int, b: int) -> None:
    """A docstring is no body."""


async def async_stub(a: int) -> None: ...


def passes(a: int) -> None:
    pass


def returns_five() -> int:
    return 5
