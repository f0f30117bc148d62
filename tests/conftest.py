"""Fixtures of all suites."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.processes import Processes, processes


@pytest.fixture
def started() -> Iterator[Processes]:
    """Starts programs that end with the test; their logs are shown when it fails."""
    with processes() as group:
        yield group


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    group = getattr(item, "funcargs", {}).get("started")
    if call.when == "call" and report.failed and group is not None:
        for process in group.started:
            report.sections.append((f"log of {process.name} (pid {process.pid})", "\n".join(process.lines[-80:])))
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]  # pipes carry UTF-8
    return report
