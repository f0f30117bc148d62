"""The table of `docs/security.md` names tests that there are, for every control of the threat model."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "security.md").read_text().splitlines()
    if re.match(r"\| [A-Z]\d ", line)
]
CONTROLS = [
    "A1",
    "A2",
    "A3",
    "A4",
    "A5",
    "A6",
    "A7",
    "S1",
    "S2",
    "S3",
    "S4",
    "R1",
    "R2",
    "R3",
    "R4",
    "P1",
    "D1",
    "D2",
    "D3",
    "D4",
    "F1",
    "F2",
    "F3",
    "E1",
    "E2",
    "L1",
    "V1",
    "V2",
    "V3",
    "V4",
    "V5",
]


def test_every_control_has_its_line() -> None:
    assert [row[0] for row in ROWS] == CONTROLS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_line_has_a_test_or_a_reason(row: list[str]) -> None:
    _, _, shown = row
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", shown)
    targets = re.findall(r"`make ([\w-]+)`", shown)
    assert named or targets or re.search(r"Not yet|There (is|are) none|Not refused", shown)
    for path, name in named:
        text = (ROOT / path).read_text()
        assert re.search(rf"def {name}\b" if name else r"def test_|class Test", text), f"{path}::{name}"
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_no_module_unpickles_or_evaluates() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "yaml"}
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            assert not forbidden & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and file.name != "cloning.py":  # a program's own annotations
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, f"{file}:{node.lineno}"


def test_no_module_takes_a_path_from_the_host() -> None:
    """`request.url` is made of the `Host` header, which anybody can write; the server's own word is `scope["path"]`."""
    for file in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"\b(request|websocket|socket|conn)\.(url|base_url)\b", file.read_text()), file


def test_no_version_with_a_known_hole_is_allowed() -> None:
    """Starlette before 1.0.1 takes the path from the Host; FastAPI allows it, so we say it ourselves."""
    wanted = {"starlette": (1, 0, 1)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = dict(re.match(r"([\w-]+)[^>]*>=([\d.]+)", each).groups() for each in project["dependencies"])  # type: ignore[union-attr]
    for name, least in wanted.items():
        assert tuple(int(part) for part in floors[name].split(".")) >= least
