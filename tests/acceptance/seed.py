"""The programs of this suite, started as a user starts them."""

from __future__ import annotations

from pathlib import Path

from tests.processes import Processes, Served, until

PROGRAMS = Path(__file__).parent / "programs"


def start_manager(started: Processes, directory: Path, *options: str, app: str = "job_manager:server", port: int | None = None) -> Served:
    """Does not wait."""
    return started.uvicorn(app, *options, directory=PROGRAMS, name="manager", env={"TEST_DB_PATH": str(directory)}, port=port)


def start_worker(started: Processes, manager_port: int, *options: str, app: str = "job_worker:server", **env: str) -> Served:
    """Does not wait."""
    return started.uvicorn(app, *options, directory=PROGRAMS, name="worker", env={"TEST_MANAGER_PORT": str(manager_port), **env})


def until_workers(manager: Served, count: int) -> None:
    """Until so many workers of the program are connected and have offered its tasks."""

    def there() -> bool:
        return sum("DEFAULT/send_failure_email" in worker["tasks"] for worker in manager.get("/jobs/api/v1/workers")["items"]) == count

    until(f"{count} workers are connected", there, 40)


def pull(manager: Served, job_id: str, wait: int = 20) -> object:
    """The result, by the route that removes it."""
    answer = manager.call("GET", f"/job/pull/result?request_id={job_id}&wait={wait}", within_s=wait + 10)
    assert answer.status == 200, (answer.status, answer.body)
    return answer.json()
