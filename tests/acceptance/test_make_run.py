"""`make run`, less the make: what it starts, shows and stops."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, Processes, free_port, http_call


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_make_run_shows_a_job_serves_and_stops_cleanly(started: Processes, tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    env = {"PORT": str(port), "DB_PATH": str(tmp_path)}
    run = started.program([sys.executable, str(ROOT / "examples" / "run.py")], name="make run", env=env)
    run.wait_for_line("Ctrl-C stops it", 40)
    assert "\n  42\n" in run.log
    url = f"http://127.0.0.1:{port}"
    order = {"order": {"number": 7, "items": ["tea"], "express": True}, "ordered_on": "2026-03-01"}
    for path, body, result in (
        ("/DEFAULT/task/ship", order, {"number": 7, "on": "2026-03-02"}),
        ("/DEFAULT/task/thumbnail", {"path": "a.png", "shape": "wide"}, "a.png as wide"),
        ("/reports/task/count_words", {"text": "to be or not to be"}, {"to": 2, "be": 2, "or": 1, "not": 1}),
    ):
        answer = http_call("POST", url + path, body, headers={"Prefer": "wait=20"}, within_s=30)
        assert answer.json().get("result") == result, answer
    run.signal(number)
    assert run.wait(20) == 0
    assert run.lines[-1] == "Stopped."
    with pytest.raises(OSError, match="refused"):
        http_call("GET", url + "/jobs/healthz")


def test_make_run_says_what_to_do_when_its_port_is_taken(started: Processes, tmp_path: Path) -> None:
    taken = started.program(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port := free_port())], name="somebody else", cwd=tmp_path
    )
    taken.wait_for_line("Serving HTTP", 10)
    run = started.program(
        [sys.executable, str(ROOT / "examples" / "run.py")], name="make run", env={"PORT": str(port), "DB_PATH": str(tmp_path / "db")}
    )
    assert run.wait(30) != 0
    assert "PORT=8230 make run takes another" in run.log
