"""The README, done as it stands; also with the built wheel in a clean environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.readme import Command, Reader, commands, files, matches
from tests.postgres import cluster
from tests.processes import ROOT, Processes

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="the README's commands use curl")


@needs_curl
def test_the_readme_works_as_it_stands(started: Processes, tmp_path: Path) -> None:
    done = Reader(started, tmp_path, Path(sys.executable).parent).run()
    assert len(done) >= 6


ELSEWHERE = {"sqs"}  # `test_sqs` runs its programs, on a server of its own
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if files(page.read_text()) and page.stem not in ELSEWHERE]
ON_POSTGRES = {"transactions"}  # whose reader has one running


@needs_curl
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_with_a_program_works_as_it_stands(started: Processes, tmp_path: Path, page: Path) -> None:
    with ExitStack() as stack:
        env = {"EASYJOBS_STORE": stack.enter_context(cluster()).url()} if page.stem in ON_POSTGRES else {}
        assert len(Reader(started, tmp_path, Path(sys.executable).parent, page=page, env=env).run()) >= 2


def test_the_readmes_first_program_is_the_example() -> None:
    content = files((ROOT / "README.md").read_text())["hello.py"]
    assert content.removeprefix("# hello.py\n") == (ROOT / "examples" / "ten_lines.py").read_text()


def test_what_the_readme_says_is_compared_with_what_is_printed() -> None:
    assert matches('{"a":"…"}', '{"a":"xyz"}\n')
    assert not matches('{"a":"…"}', '{"b":"xyz"}\n')
    assert list(commands("```console\n$ one\n1\n$ two\n```\n")) == [Command("one", "1"), Command("two", "")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    made = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return out


def test_wheel_and_sdist_hold_every_file_of_the_package(built: Path) -> None:
    ours = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "easyjobs").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "easyjobs/py.typed" in ours
    assert any(name.startswith("easyjobs/http/static/") for name in ours)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        assert ours <= set(wheel.namelist())
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        assert {f"src/{name}" for name in ours} <= {name.partition("/")[2] for name in sdist.getnames()}


@needs_curl
@pytest.mark.slow
def test_the_wheel_runs_the_readme_in_a_clean_environment(built: Path, started: Processes, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=60)
    programs = tmp_path / "venv" / "bin"
    install = [
        str(programs / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        str(ROOT / "constraints.txt"),
        str(next(built.glob("*.whl"))),
    ]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=100, check=False)
    assert installed.returncode == 0, installed.stderr
    place = tmp_path / "somewhere"
    place.mkdir()
    Reader(started, place, programs, installed=True).run()
    version = subprocess.run([str(programs / "easyjobs"), "version"], capture_output=True, text=True, timeout=30, check=True)
    assert f"-{version.stdout.split()[1]}-" in next(built.glob("*.whl")).name
