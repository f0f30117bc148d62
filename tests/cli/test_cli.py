from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import easyjobs
from easyjobs.cli import app
from easyjobs.cli.token import parse_duration
from easyjobs.errors import ConfigurationError
from easyjobs.http.auth import Access, Scope, Verdict
from easyjobs.runtime.settings import Auth
from tests.clocks import FakeClock

SECRET = "a canary that nobody may ever print anywhere"
ROOT = Path(__file__).parents[2]


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EASYJOBS_")}
    command = [sys.executable, "-m", "easyjobs", *argv]
    return subprocess.run(
        command, env=clean | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def scopes_of(token: str) -> frozenset[Scope]:
    access = Access(SECRET, Auth.REQUIRED, FakeClock())
    headers = {b"authorization": b"Bearer " + token.encode()}
    verdict, facts = access.judge({"client": ("10.0.0.1", 1)}, headers, Scope.SUBMIT, changes=True)
    assert verdict is Verdict.ALLOWED
    assert facts.grant is not None
    return facts.grant.scopes


def test_a_printed_token_is_accepted_by_a_manager_with_that_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    for source in ({"EASYJOBS_SECRET": SECRET}, {"EASYJOBS_SECRET_FILE": str(file)}):
        done = run("token", "--scope", "submit", "--scope", "read", "--name", "billing", **source)
        assert done.returncode == 0, done.stderr
        [token] = done.stdout.splitlines()
        assert scopes_of(token) == {Scope.SUBMIT, Scope.READ}
        assert SECRET not in done.stdout + done.stderr


def test_without_a_secret_and_without_a_terminal_it_says_what_to_set() -> None:
    done = run("token", "--scope", "submit")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "EASYJOBS_SECRET_FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_secret_file_that_is_not_there_is_named() -> None:
    done = run("token", "--scope", "submit", EASYJOBS_SECRET_FILE="/nowhere/secret")
    assert done.returncode == 2
    assert "/nowhere/secret" in done.stderr


@pytest.mark.parametrize(
    "argv", [("--scope", "everything"), (), ("--scope", "submit", "--expires", "30"), ("--scope", "submit", "--name", "a b")]
)
def test_what_does_not_fit_is_refused(argv: tuple[str, ...]) -> None:
    done = run("token", *argv, EASYJOBS_SECRET=SECRET)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), ("8w", 4_838_400), ("never", None)]
)
def test_durations(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "0d", "1y", "1.5h", "999999999w"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_duration(text)


def test_the_version_is_that_of_the_package() -> None:
    done = run("version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"easyjobs {easyjobs.__version__} (Python ")


def test_the_console_script_is_this_app() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["easyjobs"] == "easyjobs.cli:app"
    assert callable(app)
