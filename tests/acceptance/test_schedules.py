"""Time, as a user of the public API has it: real processes, HTTP, and nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tests.acceptance.seed import PROGRAMS
from tests.processes import Processes, Served, until

SCHEDULES = "/jobs/api/v1/schedules"
EVERY_SECOND = "* * * * * *"


def start(started: Processes, directory: Path, schedule: str = "", whom: str = "everybody") -> Served:
    env = {"DB_PATH": str(directory), "TEST_SCHEDULE": schedule, "TEST_WHOM": whom}
    served = started.uvicorn("timed_manager:server", "--no-access-log", directory=PROGRAMS, name="manager", env=env).until_ready()
    served.until_offered("/DEFAULT/task/remind")
    return served


def schedules(manager: Served) -> list[Any]:
    found: list[Any] = manager.get(SCHEDULES)["items"]
    return found


def results(manager: Served) -> list[Any]:
    return [job["results"] for job in manager.get("/job/view/results?name=remind&status=succeeded&limit=500")]


def test_a_job_for_an_instant_waits_for_it_also_through_a_restart(started: Processes, tmp_path: Path) -> None:
    manager = start(started, tmp_path)
    soon = manager.call("POST", "/remind?whom=Ada&seconds=1").json()
    later = manager.call("POST", "/remind?whom=Bob&seconds=4").json()
    assert manager.job(later["id"])["status"] == "scheduled"
    job = manager.until_status(soon["id"], "succeeded")
    assert job["result"] == "remember, Ada"
    assert datetime.fromisoformat(job["started_at"]) >= datetime.fromisoformat(soon["at"])
    manager.kill()
    manager = start(started, tmp_path)
    job = manager.until_status(later["id"], "succeeded")
    assert datetime.fromisoformat(job["started_at"]) >= datetime.fromisoformat(later["at"])
    assert "has no time zone" in manager.call("POST", "/remind/badly").json()


def test_a_schedule_runs_by_itself_and_survives_a_restart(started: Processes, tmp_path: Path) -> None:
    manager = start(started, tmp_path, EVERY_SECOND)
    until("it has run twice", lambda: results(manager)[:2] == ["remember, everybody"] * 2)
    [before] = schedules(manager)
    assert manager.stop() == 0
    manager = start(started, tmp_path, EVERY_SECOND, whom="Ada")
    until("it runs with what the code says now", lambda: results(manager)[0] == "remember, Ada")
    [after] = schedules(manager)
    assert (after["id"], after["kwargs"]) == (before["id"], {"whom": "Ada"})
    runs = [job["run_at"] for job in manager.get("/jobs/api/v1/jobs?name=remind&limit=500")["items"]]
    assert len(set(runs)) == len(runs)


def test_a_paused_schedule_stays_so_through_a_restart_and_a_change_of_the_code(started: Processes, tmp_path: Path) -> None:
    manager = start(started, tmp_path, EVERY_SECOND)
    [schedule] = schedules(manager)
    url = f"{SCHEDULES}/{schedule['id']}"
    paused_at = manager.call("POST", f"{url}/pause").json()["paused_at"]
    manager.kill()
    manager = start(started, tmp_path, "30 9 * * *")
    [now] = schedules(manager)
    assert (now["id"], now["expression"], now["paused_at"], now["next_at"]) == (schedule["id"], "30 9 * * *", paused_at, None)

    job_id = manager.call("POST", f"{url}/run").json()["request_id"]
    assert manager.until_status(job_id, "succeeded")["result"] == "remember, everybody"
    resumed = manager.call("POST", f"{url}/resume").json()
    next_at = datetime.fromisoformat(resumed["next_at"])
    assert f"{next_at.astimezone(ZoneInfo('Asia/Kolkata')):%H:%M:%S}" == "09:30:00"
    assert timedelta(0) < next_at - datetime.now(next_at.tzinfo) <= timedelta(days=1)

    manager.kill()
    manager = start(started, tmp_path)
    assert schedules(manager) == [], "the code has none any more"
    assert manager.call("POST", f"{url}/run").status == 404
