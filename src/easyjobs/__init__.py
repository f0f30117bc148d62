"""A jobs framework for Python: durable jobs from FastAPI, typed tasks on any number of workers, nothing to install beside it.

Importing this costs almost nothing: each public name loads its module when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers take for true; importing typing would take most of the time

__version__ = "1.0.0a1"

if TYPE_CHECKING:
    from typing import Any

    from easyjobs.client import EasyJobsClient as EasyJobsClient
    from easyjobs.domain.retry import RetryPolicy as RetryPolicy
    from easyjobs.domain.unique import Unique as Unique
    from easyjobs.errors import EasyJobsError as EasyJobsError
    from easyjobs.errors import GiveUp as GiveUp
    from easyjobs.errors import JobCancelled as JobCancelled
    from easyjobs.errors import JobExpired as JobExpired
    from easyjobs.errors import JobFailed as JobFailed
    from easyjobs.errors import ResultRemoved as ResultRemoved
    from easyjobs.errors import Retry as Retry
    from easyjobs.errors import Snooze as Snooze
    from easyjobs.manager import EasyJobsManager as EasyJobsManager
    from easyjobs.tasks import JobContext as JobContext
    from easyjobs.tasks import JobFailure as JobFailure
    from easyjobs.tasks import Task as Task
    from easyjobs.tasks import current_job as current_job
    from easyjobs.workers.worker import EasyJobsWorker as EasyJobsWorker

_HOMES = {
    "EasyJobsClient": "easyjobs.client",
    "EasyJobsError": "easyjobs.errors",
    "EasyJobsManager": "easyjobs.manager",
    "EasyJobsWorker": "easyjobs.workers.worker",
    "GiveUp": "easyjobs.errors",
    "JobCancelled": "easyjobs.errors",
    "JobContext": "easyjobs.tasks",
    "JobExpired": "easyjobs.errors",
    "JobFailed": "easyjobs.errors",
    "JobFailure": "easyjobs.tasks",
    "ResultRemoved": "easyjobs.errors",
    "Retry": "easyjobs.errors",
    "RetryPolicy": "easyjobs.domain.retry",
    "Snooze": "easyjobs.errors",
    "Task": "easyjobs.tasks",
    "Unique": "easyjobs.domain.unique",
    "current_job": "easyjobs.tasks",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
