"""What a subprocess task runs is a file of WORKER_TASK_DIR that its own program registered, whatever anybody sends."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from easyjobs.errors import EasyJobsError, RegistrationError
from easyjobs.runtime.program import program_of
from easyjobs.tasks import Registry
from tests.security.world import World, task_named

NAMES = [
    "../evil", "..", ".", "", "/etc/passwd", "a/../../evil", "evil\0", "evil.py", "~/evil", "..\\evil", "C:evil", "CON", "evil\n", "\u2025/evil", "․․/evil",
    "%2e%2e%2fevil", "a b", "$(id)", "`id`", "-c", "--help", "éviL", "x" * 65,
]  # fmt: skip


def stub() -> None: ...


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    inside = tmp_path / "tasks"
    inside.mkdir()
    return inside


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_identifier_is_no_task(name: str, task_dir: Path) -> None:
    registry = Registry(caller=None, on_register=lambda _: None, task_dir=lambda: task_dir)  # type: ignore[arg-type]
    fn = type(stub)(stub.__code__, {})
    fn.__name__ = name
    with pytest.raises(EasyJobsError):
        registry.register(fn, ("DEFAULT",), {"subprocess": True})


@pytest.mark.parametrize("name", NAMES)
async def test_no_name_in_a_request_reaches_a_file(here: World, name: str) -> None:
    await here.peer().join(task_named("work"))
    async with here.client() as http:
        for where in (f"/Q/task/{quote(name, safe='')}", f"/task/{quote(name, safe='')}"):
            assert (await http.post(where, json={})).status_code in {404, 405}
        answer = await http.post("/jobs/api/v1/jobs", json={"namespace": "Q", "name": name})
        assert answer.status_code in {404, 422}


def test_a_link_out_of_the_directory_is_refused(task_dir: Path) -> None:
    (task_dir / "work.py").symlink_to(task_dir.parent / "evil.py")
    with pytest.raises(RegistrationError, match="outside"):
        program_of(stub, "work", task_dir)


def test_a_link_within_the_directory_and_a_directory_that_is_a_link_are_fine(task_dir: Path) -> None:
    (task_dir / "real.py").write_text("")
    (task_dir / "work.py").symlink_to(task_dir / "real.py")
    (task_dir.parent / "link").symlink_to(task_dir)
    assert program_of(stub, "work", task_dir).file
    assert program_of(stub, "work", task_dir.parent / "link").file


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_everybody_may_change_is_warned_of(task_dir: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    file = task_dir / "work.py"
    file.write_text("")
    place = file if what == "file" else task_dir
    place.chmod(0o755)
    program_of(stub, "work", task_dir)
    assert not caplog.records
    place.chmod(0o777)
    program_of(stub, "work", task_dir)
    assert "everybody" in caplog.text
    assert str(place) in caplog.text


def test_a_directory_or_a_pipe_is_no_file_of_a_task(task_dir: Path) -> None:
    os.mkfifo(task_dir / "work.py")
    (task_dir / "other.py").mkdir()
    for name in ("work", "other"):
        with pytest.raises(RegistrationError):
            program_of(stub, name, task_dir)
