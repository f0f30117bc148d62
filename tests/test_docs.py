"""The documentation says what is: its links lead somewhere, its code is code, its names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from easyjobs.runtime.settings import ManagerSettings, WorkerSettings
from tests.acceptance.readme import blocks
from tests.processes import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
names = [str(document.relative_to(ROOT)) for document in DOCUMENTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_links_inside_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_python_blocks_are_python(document: Path) -> None:
    for language, content in blocks(document.read_text()):
        if language == "python":
            ast.parse(content)


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_paths_and_tests_that_are_named_exist(document: Path) -> None:
    for path, test in re.findall(r"`((?:src|tests|docs|examples|benchmarks)/[\w./-]*)(?:::(\w+))?`", document.read_text()):
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_settings_that_are_named_exist(document: Path) -> None:
    known = {f"EASYJOBS_{name.upper()}" for settings in (ManagerSettings, WorkerSettings) for name in settings.model_fields}
    known |= {"EASYJOBS_SECRET_FILE", "EASYJOBS_STORE_FILE", "EASYJOBS_STORE_LISTEN_FILE"}
    assert set(re.findall(r"EASYJOBS_[A-Z_]*[A-Z]", document.read_text())) <= known


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)\b", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
