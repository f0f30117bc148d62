from __future__ import annotations

from pathlib import Path

import pytest


def test_tasks_are_typed_as_their_functions_are() -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is a tool of `make check`")
    root = Path(__file__).resolve().parent.parent.parent
    options = ["--config-file", str(root / "pyproject.toml"), "--strict", "--cache-dir", str(root / ".mypy_cache")]
    out, err, code = api.run([*options, str(Path(__file__).parent / "tasks.py")])
    assert code == 0, out + err
