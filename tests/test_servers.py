"""What `make test` does about servers that are missing."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests import servers


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No server is there; the commands that are run."""
    ran: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(servers.shutil, "which", lambda name, path=None: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(servers.postgres, "binaries", lambda: None)
    monkeypatch.setattr(servers.subprocess, "run", run)
    return ran


def test_root_installs_them(missing: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.os, "geteuid", lambda: 0)
    servers.install()
    assert [command[1] for command in missing] == ["update", "install"]
    assert set(servers.NEEDED) <= set(missing[1])


def test_others_are_told_what_to_install(
    missing: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(servers.os, "geteuid", lambda: 1000)
    servers.install()
    assert missing == []
    assert f"apt-get install --yes --no-install-recommends {' '.join(servers.NEEDED)}" in capsys.readouterr().err


def test_a_test_without_its_server_is_skipped_and_says_so(missing: list[list[str]]) -> None:
    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        servers.program("redis-server")
