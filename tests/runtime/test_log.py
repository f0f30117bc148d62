from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import easyjobs
from easyjobs.runtime.events import EVENTS
from easyjobs.runtime.log import INFO, event, line

log = logging.getLogger("tests.log")


def test_a_line_reads_name_then_fields() -> None:
    assert (
        line("job.succeeded", {"job_id": "01", "attempt": 2, "worker": None, "ran_ms": 1.5})
        == "job.succeeded job_id=01 attempt=2 ran_ms=1.5"
    )


@pytest.mark.parametrize("value", ["a b", "a\nb", 'a"b', "a=b", "", "\x1b[31m", "a\u2028b"])
def test_no_value_can_write_a_line_or_a_field_of_its_own(value: str) -> None:
    text = line("x.done", {"value": value})
    assert text.startswith('x.done value="')
    assert text.isprintable()


def test_a_long_value_is_cut_in_the_text_and_whole_in_the_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(INFO):
        event(log, INFO, "x.done", name="a" * 5000)
    [record] = caplog.records
    assert len(record.getMessage()) < 2100
    assert getattr(record, "fields")["name"] == "a" * 5000  # noqa: B009
    assert record.filename == "test_log.py"


def test_percent_signs_are_no_formats(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(INFO):
        event(log, INFO, "x.done", path="100%s")
    assert caplog.messages == ["x.done path=100%s"]


def test_every_event_in_the_code_is_listed_and_every_listed_one_is_in_the_code() -> None:
    used: set[str] = set()
    texts: set[str] = set()
    for file in Path(easyjobs.__path__[0]).rglob("*.py"):
        if file.name == "events.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "event" and len(node.args) >= 3:
                used |= {str(part.value) for part in ast.walk(node.args[2]) if isinstance(part, ast.Constant)}
    assert used - EVENTS.keys() == set()
    assert EVENTS.keys() - texts == set()
