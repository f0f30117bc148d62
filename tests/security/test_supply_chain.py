"""What is installed is pinned, with hashes, from no address in particular."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[\s>=<;\[]", each)[0]) for each in requirements if "easyjobs[" not in each}


@pytest.mark.parametrize("text", [(ROOT / "constraints.txt").read_text(), LOCK], ids=["constraints.txt", "requirements.lock"])
def test_no_address_stands_in_it(text: str) -> None:
    assert not re.search(r"https?:|file:|index-url|find-links|trusted-host|@ ", text)


def test_every_locked_package_has_a_version_and_a_hash() -> None:
    blocks = re.findall(r"^([\w.-]+)==([^\s;]+)([^\n]*\n(?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", LOCK, re.MULTILINE)
    assert len(blocks) > 30
    for name, version, rest in blocks:
        assert "--hash=sha256:" in rest, name
        pinned = {canonical(one): text for one, text in PINS.items()}.get(canonical(name), version)
        assert pinned == version, name


def test_what_the_project_needs_is_locked() -> None:
    locked = {canonical(name) for name in re.findall(r"^([\w.-]+)==", LOCK, re.MULTILINE)}
    project = PROJECT["project"]
    wanted = named(project["dependencies"]).union(*(named(extra) for extra in project["optional-dependencies"].values()))
    assert wanted <= locked


def test_what_the_tests_need_is_pinned() -> None:
    pinned = {canonical(name) for name in PINS}
    groups = PROJECT["dependency-groups"]
    assert named(groups["test"]) | named(groups["check"]) <= pinned
