"""A child process for tasks that are functions: reads jobs, imports the function's module once, runs it.

As with `multiprocessing`'s spawn, importing the module runs its top level: that must not start servers or register tasks. What stands in a
startup handler, in `main()` or under `if __name__ == "__main__"` does not run.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import copy_context
from types import ModuleType
from typing import Any

import msgspec

from easyjobs.domain import payload
from easyjobs.domain.job import Claimed
from easyjobs.domain.seeing import News
from easyjobs.errors import ConfigurationError, InvalidArguments
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, WatchedResult
from easyjobs.runtime import program
from easyjobs.tasks import JobContext, Task, TaskOptions, _current
from easyjobs.workers import task as template
from easyjobs.workers.executor import arguments
from easyjobs.workers.task import Fault, finish, serve


class Nobody:
    """The `Caller` of tasks in a child."""

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:  # noqa: ARG002
        """Raises: ConfigurationError."""
        raise ConfigurationError("a task that runs in a child process cannot call tasks: return what is to be done, and use run_after")

    def follow(self, id: bytes) -> AsyncGenerator[list[News], None]:  # noqa: ARG002
        """Raises: ConfigurationError."""
        raise ConfigurationError("a task that runs in a child process cannot follow jobs")

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:  # noqa: ARG002
        """Raises: ConfigurationError."""
        raise ConfigurationError("a task that runs in a child process cannot do anything to jobs")

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:  # noqa: ARG002
        """Raises: ConfigurationError."""
        raise ConfigurationError("a task that runs in a child process cannot wait for jobs")


def main() -> None:
    """Run jobs until the worker closes the pipe."""
    program.is_child = True
    pipes = template.pipes
    if pipes is None:
        sys.exit("this program is started by an easyjobs worker")
    while (raw := pipes.read()) is not None:
        serve(pipes, raw, _run)


def _run(job: dict[str, Any], begin: Callable[[], None]) -> bytes:
    task = _task(msgspec.json.encode(job["program"]), tuple(job["path"]), job["queue"], job["task"])
    call = msgspec.json.encode(job["call"])
    claimed = Claimed(job["seq"], job["attempt"], job["lane"], bytes.fromhex(job["id"]), job["failures"], job["timeout_us"], call)
    context = JobContext()
    context._claimed, context._task = claimed, task
    return copy_context().run(_call, task, claimed, context, begin)


def _call(task: Task[..., Any], claimed: Claimed, context: JobContext, begin: Callable[[], None]) -> bytes:
    try:
        args, kwargs = arguments(task, claimed, context)
    except InvalidArguments as error:
        raise Fault("invalid_arguments", str(error), error) from error
    except Exception as error:
        raise Fault("invalid_arguments", f"the arguments cannot be converted: {error}", error) from error
    _current.set(context)
    begin()
    value = finish(task.fn(*args, **kwargs))
    try:
        return payload.encode(value)
    except Exception as error:
        raise Fault("unserialisable", f"the result cannot be written as JSON: {error}", error) from error


@functools.cache
def _task(where: bytes, path: tuple[str, ...], queue: str, name: str) -> Task[..., Any]:
    """The function, imported with the worker's `sys.path`."""
    place = msgspec.json.decode(where)
    sys.path[:] = path
    module = _main(place["main"]) if place["main"] else importlib.import_module(place["module"])
    fn = getattr(module, place["function"], None)
    if isinstance(fn, Task):  # the name was bound to what the decorator made of it
        fn = fn.fn
    if not callable(fn):
        raise Fault(
            "unknown_function",
            f"the child process has imported {module.__name__} and found no function {place['function']} in it: define it at the top of "
            "the module, under no condition",
        )
    return Task(fn, queue=queue, name=name, options=TaskOptions(), caller=Nobody(), is_async=inspect.iscoroutinefunction(fn), names={})


@functools.cache
def _main(file: str) -> ModuleType:
    """The script that the worker itself runs, under the name that `multiprocessing` gives it, so that `__name__ == "__main__"` is false."""
    spec = importlib.util.spec_from_file_location("__mp_main__", file)
    if spec is None or spec.loader is None:
        raise Fault("unknown_function", f"{file} cannot be imported: give the script a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["__mp_main__"] = sys.modules["__main__"] = module
    spec.loader.exec_module(module)
    return module
