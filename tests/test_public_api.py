"""What users import keeps working, and importing the package costs nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import easyjobs
from tests.processes import clean_environment

PUBLIC = [
    ("easyjobs.manager", "EasyJobsManager"),
    ("easyjobs.workers.worker", "EasyJobsWorker"),
    ("easyjobs.client", "EasyJobsClient"),
    ("easyjobs.tasks", "Task"),
    ("easyjobs.tasks", "JobContext"),
    ("easyjobs.tasks", "current_job"),
    ("easyjobs.domain.retry", "RetryPolicy"),
    ("easyjobs.errors", "EasyJobsError"),
    ("easyjobs.errors", "JobFailed"),
    ("easyjobs.cli", "app"),
]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_a_public_name_is_where_users_import_it_from(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", easyjobs.__all__)
def test_everything_in_all_is_there(name: str) -> None:
    assert getattr(easyjobs, name)
    assert name in dir(easyjobs)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_this"):
        easyjobs.nothing_like_this  # noqa: B018


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `code`."""
    command = [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"]
    said = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=30, check=True).stdout
    return {name.partition(".")[0] for name in json.loads(said)}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"apsw", "asyncio", "fastapi", "jsonschema_rs", "msgspec", "pydantic", "starlette", "typer", "uvicorn", "websockets"}
    assert not loaded_by("import easyjobs") & heavy


def test_a_client_needs_no_web_framework_and_no_database() -> None:
    assert not loaded_by("from easyjobs import EasyJobsClient") & {"apsw", "fastapi", "starlette", "uvicorn"}
