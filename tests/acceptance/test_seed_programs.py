"""The programs that users already have: a manager without a broker, and a worker with five processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.seed import PROGRAMS, pull, start_manager, start_worker, until_workers
from tests.processes import Processes, Served, clean_environment, processes, until


class Pair(NamedTuple):
    manager: Served
    worker: Served
    directory: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """`uvicorn job_manager:server` and `uvicorn job_worker:server --workers=5`."""
    directory = tmp_path_factory.mktemp("seed")
    with processes() as group:
        manager = start_manager(group, directory / "jobs_database").until_ready()
        worker = start_worker(group, manager.port, "--workers=5")
        until_workers(manager, 5)
        yield Pair(manager, worker, directory)
        code = worker.stop(40)
        assert code == 0, worker.log[-3000:]
        code = manager.stop(40)
        assert code == 0, manager.log[-3000:]


def test_every_task_of_manager_and_worker_is_an_operation(pair: Pair) -> None:
    document = pair.manager.get("/openapi.json")
    for path in (
        "/DEFAULT/task/basic_job",
        "/general/task/general_work",
        "/DEFAULT/task/work_a",
        "/DEFAULT/task/bare_decorator",
        "/DEFAULT/task/plain",
    ):
        assert "post" in document["paths"][path], path
    assert "do finance work" in str(document["paths"]["/DEFAULT/task/finance_work"])
    page = pair.manager.call("GET", "/docs")
    assert page.status == 200
    assert b"//cdn" not in page.body


def test_db_path_is_a_directory_that_is_made(pair: Pair) -> None:
    assert (pair.directory / "jobs_database" / "job_manager.db").is_file()


def test_jobs_of_the_managers_and_of_the_workers_tasks_give_results(pair: Pair) -> None:
    slow = pair.manager.submit("DEFAULT", "work_a", {"a": 1, "b": "two", "c": [3]})
    own = pair.manager.submit("DEFAULT", "basic_job", {"arg1": 1, "arg2": 2, "arg3": 3, "args": [4, 5]})
    assert pull(pair.manager, own) == [1, 2, 3]
    assert pull(pair.manager, slow) == {"result": [1, "two", [3]]}
    pair.manager.wait_for_line("basic_job: 1 2 3 - args (4, 5)")


def test_five_processes_share_the_work(pair: Pair) -> None:
    jobs = [{"namespace": "DEFAULT", "name": "bare_decorator", "args": [n], "kwargs": {}} for n in range(300)]
    ids = pair.manager.call("POST", "/jobs/api/v1/jobs", jobs).json()["request_ids"]
    results = [pull(pair.manager, job_id) for job_id in ids]
    assert [result[0] for result in results] == list(range(300))  # type: ignore[index]
    assert len({result[1] for result in results}) > 1  # type: ignore[index]


def test_a_task_without_a_queue_in_its_path_is_found(pair: Pair) -> None:
    answer = pair.manager.call("POST", "/task/plain", {"text": "abc"})
    assert pull(pair.manager, answer.json()["request_id"]) == "ABC"


def test_query_parameters_are_converted_as_the_signature_says(pair: Pair) -> None:
    answer = pair.manager.call("POST", "/DEFAULT/task/bare_decorator?x=41")
    assert answer.status == 200, answer
    assert pull(pair.manager, answer.json()["request_id"])[0] == 41  # type: ignore[index]


@pytest.mark.parametrize("body", [{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3, "d": 4}, [1, 2, 3]], ids=["missing", "unknown", "no object"])
def test_arguments_that_do_not_fit_are_refused_before_anything_is_queued(pair: Pair, body: object) -> None:
    before = pair.manager.get("/job/view/results?name=work_a")
    answer = pair.manager.call("POST", "/DEFAULT/task/work_a", body)
    assert answer.status == 422, answer
    assert {"type", "loc", "msg"} <= set(answer.json()["detail"][0])
    assert pair.manager.get("/job/view/results?name=work_a") == before


def test_a_wrong_type_is_refused_where_the_signature_names_one(pair: Pair) -> None:
    answer = pair.manager.call("POST", "/DEFAULT/task/bare_decorator", {"x": "many"})
    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "x"]


def test_an_unknown_task_is_404_with_names_that_are_near(pair: Pair) -> None:
    answer = pair.manager.call("POST", "/DEFAULT/task/work_b", {})
    assert answer.status == 404
    assert "work_a" in answer.body.decode()


def test_view_keeps_and_pull_removes(pair: Pair) -> None:
    job = pair.manager.submit("DEFAULT", "plain", {"text": "abc"})
    pair.manager.until_status(job, "succeeded")
    for _ in range(2):
        view = pair.manager.get(f"/job/view/result?request_id={job}")
        assert (view["results"], view["status"], view["request_id"], view["job_id"]) == ("ABC", "succeeded", job, job)
    assert pair.manager.get(f"/job/pull/result?job_id={job}") == "ABC"
    assert pair.manager.get(f"/job/view/result?request_id={job}")["pulled_at"]


def test_run_after_gets_the_result_and_on_failure_the_reason(pair: Pair) -> None:
    first = pair.manager.submit("general", "general_work", {"general_data": {"b": 1, "a": 2}})
    failed = pair.manager.submit("DEFAULT", "finance_work", {"employee_id": "e7", "employee_data": {}})

    def child_of(parent: str, name: str) -> object:
        jobs = pair.manager.get(f"/jobs/api/v1/jobs?name={name}")["items"]
        return next((job["result"] for job in jobs if job["parent"] == parent and job["status"] == "succeeded"), None)

    assert until("the successor has run", lambda: child_of(first, "more_general_work"), 15) == "more ['a', 'b']"
    assert "no such employee e7" in str(until("the failure's job has run", lambda: child_of(failed, "send_failure_email"), 15))
    answer = pair.manager.call("GET", f"/job/pull/result?request_id={failed}")
    assert answer.status == 409
    assert "no such employee e7" in answer.body.decode()


def test_tasks_of_a_worker_that_comes_later_appear_without_a_restart_in_less_than_a_second(pair: Pair, started: Processes) -> None:
    assert pair.manager.call("POST", "/later/task/newcomer", {"n": 4}).status == 404
    worker = start_worker(started, pair.manager.port, app="late_worker:server")
    worker.wait_for_line("worker is set up")
    began = time.monotonic()
    pair.manager.until_offered("/later/task/newcomer")
    assert time.monotonic() - began < 1
    assert pull(pair.manager, pair.manager.submit("later", "newcomer", {"n": 4})) == 8
    assert worker.stop() == 0
    worker.wait_for_line("worker says goodbye", 1)


def test_a_worker_in_a_bare_script_works_and_leaves_on_sigterm(pair: Pair, started: Processes) -> None:
    env = {"TEST_MANAGER_PORT": str(pair.manager.port)}
    script = started.program([sys.executable, str(PROGRAMS / "script_worker.py")], name="script", env=env)
    pair.manager.until_offered("/scripts/task/from_a_script")
    assert pull(pair.manager, pair.manager.submit("scripts", "from_a_script", {"n": 4})) == 5
    running = pair.manager.submit("scripts", "from_a_script", {"n": 5, "seconds": 1})
    pair.manager.until_status(running, "running")
    assert script.stop() == 0
    assert pull(pair.manager, running) == 6, "it had time to finish"


def test_clean_environment_hides_what_the_developer_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EASYJOBS_AUTH", "off")
    monkeypatch.setenv("DB_PATH", "/nowhere")
    assert not {"EASYJOBS_AUTH", "DB_PATH"} & set(clean_environment())
