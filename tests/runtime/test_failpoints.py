from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from easyjobs.errors import ConfigurationError
from easyjobs.runtime import failpoints
from easyjobs.runtime.failpoints import NAME, PLACES, Action, parse
from easyjobs.runtime.settings import unknown_names

SOURCE = Path(failpoints.__file__).parent.parent


def test_what_the_variable_says_is_read() -> None:
    read = parse("store.committed:kill@3, intake.stored:sleep=0.5,socket.reported:error")
    assert read == {"store.committed": Action("kill", 0.0, 3), "intake.stored": Action("sleep", 0.5), "socket.reported": Action("error")}
    assert parse("") == {}
    assert list(unknown_names({NAME: "x"})) == []


@pytest.mark.parametrize(
    "text",
    [
        "nowhere:kill",
        "store.committed",
        "store.committed:burn",
        "store.committed:sleep",
        "store.committed:kill=2",
        "store.committed:kill@x",
    ],
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=NAME):
        parse(text)


def test_each_place_is_in_the_code_and_stands_behind_the_look_that_costs_no_call() -> None:
    found: list[str] = []
    for file in SOURCE.rglob("*.py"):
        lines = file.read_text().splitlines()
        for before, line in pairwise(lines):
            if place := re.search(r'failpoints\.reach\("([a-z_.]+)"\)', line):
                if file.name == "failpoints.py":
                    continue
                assert before.strip().startswith("if failpoints.ARMED"), f"{file}: {line}"
                found.append(place[1])
    assert set(found) == PLACES


def test_the_nth_time_is_the_one() -> None:
    code = "from easyjobs.runtime import failpoints as f\nfor n in (1, 2, 3): print(n, flush=True); f.reach('store.committed')"
    env = {**os.environ, NAME: "store.committed:kill@2", "PYTHONPATH": str(SOURCE.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == -signal.SIGKILL
    assert run.stdout.split() == ["1", "2"]
    assert "fails on purpose" in run.stderr
