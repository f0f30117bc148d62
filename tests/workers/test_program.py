"""What `subprocess=True` runs, and what is refused when the task is registered."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from easyjobs.errors import RegistrationError
from easyjobs.runtime.program import Program, is_stub, program_of
from tests.workers import bodies


@pytest.mark.parametrize("fn", [bodies.stub, bodies.async_stub, bodies.passes])
def test_a_body_of_a_docstring_pass_or_dots_is_a_stub(fn: Callable[..., Any]) -> None:
    assert is_stub(fn)

    async def nested(a: int, *rest: int, b: str = "", **more: Any) -> None:
        """Nested, as in the startup function of a program."""

    assert is_stub(nested)


@pytest.mark.parametrize("fn", [bodies.returns_five, bodies.add, bodies.in_a_loop, bodies.fail, len, functools.partial(bodies.passes, 1)])
def test_anything_more_is_a_body(fn: Callable[..., Any]) -> None:
    assert not is_stub(fn)


def test_a_file_of_the_tasks_name_comes_before_the_function(tmp_path: Path) -> None:
    (tmp_path / "add.py").write_text("")
    assert program_of(bodies.add, "add", tmp_path) == Program(file=tmp_path / "add.py")
    assert program_of(bodies.add, "other", tmp_path) == Program(module="tests.workers.bodies", function="add")
    assert program_of(bodies.add, "add", None) == Program(module="tests.workers.bodies", function="add")


def test_a_stub_without_a_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match="WORKER_TASK_DIR is not set") as caught:
        program_of(bodies.stub, "basic_blocking", None)
    assert "basic_blocking.py" in str(caught.value)
    with pytest.raises(RegistrationError, match=str(tmp_path / "basic_blocking.py")) as caught:
        program_of(bodies.stub, "basic_blocking", tmp_path)
    assert "from easyjobs.workers.task import subprocess" in str(caught.value)


def test_what_a_child_cannot_import_is_refused_with_a_way_out() -> None:
    def nested(a: int) -> int:
        return a + 1

    class Maker:
        def method(self) -> int:
            return 1

    for fn in (nested, lambda: 1, Maker().method, functools.partial(bodies.add, 1), len):
        with pytest.raises(RegistrationError, match=r"top of (a|its) module"):
            program_of(fn, "work", None)


def test_a_script_is_known_by_its_file_and_a_module_that_was_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    source = compile("def work(): return 1", "jobs.py", "exec")
    exec(source, main.__dict__)
    fn = main.__dict__["work"]
    with pytest.raises(RegistrationError, match="typed in"):
        program_of(fn, "work", None)
    (tmp_path / "jobs.py").write_text("")
    main.__file__ = str(tmp_path / "jobs.py")
    assert program_of(fn, "work", None) == Program(module="__main__", function="work", main=tmp_path / "jobs.py")
    main.__spec__ = type("Spec", (), {"name": "package.jobs"})()  # type: ignore[assignment]
    assert program_of(fn, "work", None) == Program(module="package.jobs", function="work")
