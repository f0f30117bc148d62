"""Subprocess tasks, as the README has them, and functions of a module without a file."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tests.acceptance.seed import PROGRAMS, pull, start_manager, start_worker
from tests.processes import ROOT, SECRET, Process, Processes, Served, until

# As it stands in the README, but for the time that it sleeps, and the f of the text.
TEMPLATE = '''
import time
from easyjobs.workers.task import subprocess

@subprocess
def work(a, b, c):
    """
    insert blocking / non-blocking work here
    """
    time.sleep(0.2) # Blocking
    return {'result': f'I slept for 5 seconds - blocking with {a} {b} {c}'}

if __name__ == '__main__':
    work()
'''


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def start_functions(started: Processes, manager: Served, how: str) -> Process:
    """The worker of `functions.py`, started in one of the ways in which users start theirs."""
    env = {"TEST_MANAGER_PORT": str(manager.port)}
    if how == "uvicorn":
        process: Process = start_worker(started, manager.port, app="functions:server")
    elif how == "script":
        process = started.program([sys.executable, str(PROGRAMS / "functions.py")], name="worker", env=env)
    else:
        process = started.program([sys.executable, "-m", "functions"], name="worker", env=env, paths=[PROGRAMS])
    manager.until_offered("/functions/task/ship", within_s=20)
    return process


def test_the_programs_of_the_readme_run_their_files(started: Processes, tmp_path: Path) -> None:
    funcs = tmp_path / "blocking_funcs"
    funcs.mkdir()
    for name in ("basic_blocking", "advanced_blocking"):
        (funcs / f"{name}.py").write_text(TEMPLATE)
    env = {"TEST_TASK_DIR": str(funcs), "TEST_DB_PATH": str(tmp_path)}
    manager = started.uvicorn("subprocess_manager:server", directory=PROGRAMS, name="manager", env=env).until_ready()
    worker = start_worker(started, manager.port, app="subprocess_worker:server", TEST_TASK_DIR=str(funcs))
    manager.until_offered("/DEFAULT/task/basic_blocking", "/DEFAULT/task/advanced_blocking")
    expected = {"result": "I slept for 5 seconds - blocking with 1 2 3"}
    for name in ("basic_blocking", "advanced_blocking"):
        answer = manager.call("POST", f"/DEFAULT/task/{name}?a=1&b=2&c=3")
        assert pull(manager, answer.json()["request_id"]) == expected
        assert pull(manager, manager.submit("DEFAULT", name, {"a": 1, "b": 2, "c": 3})) == expected
        assert manager.call("POST", f"/DEFAULT/task/{name}?a=1&b=2").status == 422, "the stub's signature is that of the task"
    assert worker.stop() == 0
    assert manager.stop() == 0


@pytest.mark.parametrize("how", ["uvicorn", "script", "module"])
def test_a_function_of_a_module_runs_in_a_warm_child(started: Processes, tmp_path: Path, how: str) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    worker = start_functions(started, manager, how)
    arguments = {"order": {"number": 7, "day": "2026-11-24"}, "parts": [1, 2, 3]}
    results = [pull(manager, manager.submit("functions", "ship", arguments)) for _ in range(2)]
    assert isinstance(results[0], dict)
    assert (results[0]["day"], results[0]["total"]) == ("2026-11-24", 6)
    assert results[0]["main"] == ("__mp_main__" if how == "script" else "functions")
    assert results[0]["pid"] != worker.pid
    assert results[0] == results[1], "the same child"
    assert manager.call("POST", "/functions/task/ship", {"order": {"number": "x", "day": "2026-11-24"}}).status == 422
    assert worker.stop() == 0
    assert is_gone(results[0]["pid"])
    assert manager.stop() == 0


def test_the_example_works(started: Processes, tmp_path: Path) -> None:
    env = {"JOBS_SECRET": SECRET, "DB_PATH": str(tmp_path)}
    manager = started.uvicorn("job_manager:server", directory=ROOT / "examples", name="manager", env=env).until_ready()
    env["MANAGER_PORT"] = str(manager.port)
    started.uvicorn("blocking_worker:server", directory=ROOT / "examples", name="worker", env=env)
    manager.until_offered("/blocking/task/count_primes", "/blocking/task/checksum")
    assert pull(manager, manager.submit("blocking", "count_primes", {"below": 100_000})) == 9592
    text = tmp_path / "text"
    text.write_bytes(b"abc")
    assert pull(manager, manager.submit("blocking", "checksum", {"path": str(text)})) == hashlib.sha256(b"abc").hexdigest()


def test_a_timeout_of_a_child_is_a_failure_that_ends_its_process(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    start_functions(started, manager, "uvicorn")
    job = manager.until_status(manager.submit("functions", "hang", {"pid_file": str(tmp_path / "pid")}), "failed")
    assert (job["error"]["type"], job["error"]["kind"], job["attempt"]) == ("TimeoutError", "timeout", 1)
    assert is_gone(int((tmp_path / "pid").read_text()))
    [told] = until("on_failure ran", lambda: manager.get("/jobs/api/v1/jobs?name=tell&status=succeeded")["items"])
    assert "timeout, 1 s" in manager.job(told["id"])["result"]
    assert pull(manager, manager.submit("functions", "wait_for", {"seconds": 0})) == "in time"
    late = manager.until_status(manager.submit("functions", "wait_for", {"seconds": 60}), "failed")
    assert late["error"]["kind"] == "timeout"


def test_more_memory_than_allowed_is_a_failure_that_says_so(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    start_functions(started, manager, "uvicorn")
    job = manager.until_status(manager.submit("functions", "eat", {"megabytes": 500}), "failed")
    assert job["error"]["type"] == "MemoryError"
    assert "256 MB" in job["error"]["message"]
    assert pull(manager, manager.submit("functions", "eat", {"megabytes": 5})) == 5


def test_a_stub_without_its_file_stops_the_program_and_says_what_to_write(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    worker = start_worker(started, manager.port, app="functions:server", TEST_STUB="1", WORKER_TASK_DIR=str(tmp_path))
    assert worker.wait() != 0
    assert f"{tmp_path / 'no_such_file.py'} is not there" in worker.log
    assert "from easyjobs.workers.task import subprocess" in worker.log


def test_a_manager_that_is_killed_takes_its_own_children_with_it(started: Processes, tmp_path: Path) -> None:
    (tmp_path / "advanced_blocking.py").write_text(
        TEMPLATE.replace("time.sleep(0.2)", "__import__('pathlib').Path(a).write_text(str(__import__('os').getpid())); time.sleep(600)")
    )
    env = {"TEST_TASK_DIR": str(tmp_path), "TEST_DB_PATH": str(tmp_path)}
    manager = started.uvicorn("subprocess_manager:server", directory=PROGRAMS, name="manager", env=env).until_ready()
    manager.submit("DEFAULT", "advanced_blocking", {"a": str(tmp_path / "pid"), "b": 0, "c": 0})
    pid = int(until("it runs", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    manager.kill()
    until("its child is gone", lambda: is_gone(pid), 5)


def test_a_program_that_starts_itself_when_it_is_imported_is_told_so_and_does_not_start_again(started: Processes, tmp_path: Path) -> None:
    manager = start_manager(started, tmp_path).until_ready()
    env = {"TEST_MANAGER_PORT": str(manager.port)}
    started.program([sys.executable, str(PROGRAMS / "unguarded_worker.py")], name="worker", env=env)
    manager.until_offered("/unguarded/task/square")
    job = manager.until_status(manager.submit("unguarded", "square", {"n": 3}), "failed")
    assert "if __name__ == '__main__'" in job["error"]["message"]
    assert len(manager.get("/jobs/api/v1/workers")["items"]) == 2, "the manager's own, and the one that we started"
