"""What a subprocess task runs: a file of WORKER_TASK_DIR, or a function that a child process can import."""

from __future__ import annotations

import dis
import logging
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Final

from easyjobs.errors import ConfigurationError, RegistrationError
from easyjobs.runtime.log import WARNING, event

log = logging.getLogger("easyjobs.settings")

# All that the compiler makes of a body that is a docstring, `pass` or `…`; an `async def` has the second line too.
_NOTHING: Final = frozenset({"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "CACHE"}) | frozenset(
    {"RETURN_GENERATOR", "POP_TOP", "CALL_INTRINSIC_1", "RERAISE"}
)
_MAINS: Final = ("__main__", "__mp_main__")

is_child = False
"""Whether this process is a child that runs functions of a program: it has imported the program to find them, not to start it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Either `file`, a script with an `@subprocess` function; or `function` of `module`.

    A module that was itself started as a script, `python jobs.py`, has no name to import it by: then `module` is "__main__", and `main` its
    file.
    """

    file: Path | None = None
    module: str = ""
    function: str = ""
    main: Path | None = None


def program_of(fn: Callable[..., Any], name: str, task_dir: Path | None) -> Program:
    """Return what the subprocess task `name` runs: its file where there is one, else `fn` itself.

    Raises:
        RegistrationError: there is no file, and `fn` has no body, or cannot be imported by a child process; the message says what to do.
    """
    file = None if task_dir is None else Path(task_dir).absolute() / f"{name}.py"
    if file is not None and file.is_file():
        _check_place(name, file)
        return Program(file=file)
    where = "WORKER_TASK_DIR is not set" if file is None else f"{file} is not there"
    place = "WORKER_TASK_DIR" if file is None else str(file.parent)
    if is_stub(fn):
        raise RegistrationError(
            f"task {name}: subprocess=True, and its function has no body, so it runs {place}/{name}.py; but {where}. "
            f"{'Set it to the directory of that file before the task is registered' if file is None else 'Write that file'} "
            "(from easyjobs.workers.task import subprocess; @subprocess above a function work; work() under if __name__ == '__main__'), "
            "or give the function a body"
        )
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or not hasattr(fn, "__code__") or "." in qualname or "<" in qualname:
        raise RegistrationError(
            f"task {name}: subprocess=True needs a function at the top of a module, where a child process finds it by its name; "
            f"{qualname or fn!r} is not one. Move it to the top of its module and register it with .task({name}, subprocess=True), "
            f"or write {place}/{name}.py"
        )
    if module not in _MAINS:
        return Program(module=module, function=qualname)
    main = sys.modules.get(module)
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if module == "__main__" and spec is not None and spec.name not in _MAINS:  # python -m jobs
        return Program(module=spec.name, function=qualname)
    if path is None or not Path(path).is_file():
        raise RegistrationError(
            f"task {name}: subprocess=True needs a function of a file; this one was typed in or given with -c. Write it into a module"
        )
    return Program(module="__main__", function=qualname, main=Path(path).absolute())


def _check_place(name: str, file: Path) -> None:
    """Refuse a link that leads out of the directory; warn of a file that everybody may replace. Raises: RegistrationError."""
    directory, real = file.parent.resolve(), file.resolve()
    if not real.is_relative_to(directory):
        raise RegistrationError(f"task {name}: {file} leads to {real}, outside of {directory}: put the file itself into WORKER_TASK_DIR")
    for place in (real, directory):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            event(
                log,
                WARNING,
                "setting.doubted",
                name="task_dir",
                value=str(place),
                reason="everybody on this machine may change what it runs",
                remedy="chmod o-w",
            )


def refuse_in_child(what: str) -> None:
    """Raises: ConfigurationError, in a child process: a program that starts itself when it is imported would start there again and again."""
    if is_child:
        raise ConfigurationError(
            f"{what} was called while a child process imports this program to run a subprocess task: call it in a startup handler, in a "
            "lifespan, or under if __name__ == '__main__'"
        )


def is_stub(fn: Callable[..., Any]) -> bool:
    """Whether the function's body is nothing but a docstring, `pass` or `…`."""
    code = getattr(fn, "__code__", None)
    if not isinstance(code, CodeType):
        return False
    return all(
        step.opname in _NOTHING and (step.opname not in ("LOAD_CONST", "RETURN_CONST") or step.argval is None)
        for step in dis.get_instructions(code)
    )
