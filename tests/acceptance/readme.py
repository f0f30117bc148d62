"""Takes the README or a page of the docs apart, and runs it as it stands there.

A `python` block whose first line is `# name.py` is a file. A `console` block has commands, after `$`, and what they print; `…` in it stands
for anything. A command that starts a server (`SERVERS`) runs until the end. The ports in `PORTS` become free ones; nothing else is changed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.processes import ROOT, NotInTime, Process, Processes, clean_environment, free_port, until
from tests.servers import program

PORTS = ("8220", "8221", "6379", "4222")
SERVERS = {  # and what they say when they are ready
    "uvicorn": "Application startup complete",
    "redis-server": "Ready to accept connections",
    "nats-server": "Server is ready",
}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command line and what it prints."""

    line: str
    prints: str


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block, in order."""
    return [(found[1], found[2]) for found in _FENCE.finditer(text)]


def files(text: str) -> dict[str, str]:
    """The python blocks that begin with their name."""
    found = {}
    for language, content in blocks(text):
        name = re.match(r"# (\w+\.py)\n", content)
        if language == "python" and name:
            found[name[1]] = content
    return found


def commands(text: str) -> Iterator[Command]:
    """The commands of all console blocks, in order."""
    for language, content in blocks(text):
        if language == "console":
            for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                line, _, prints = part.partition("\n")
                yield Command(line, prints.strip())


def matches(expected: str, printed: str) -> bool:
    """Whether it is what the README says, `…` standing for anything."""
    return re.fullmatch(".*".join(re.escape(part) for part in expected.split("…")), printed.strip(), re.DOTALL) is not None


class Reader:
    """Somebody who does what a page says, in an empty directory. `programs`: where python and uvicorn are found."""

    def __init__(
        self,
        started: Processes,
        directory: Path,
        programs: Path,
        *,
        installed: bool = False,
        page: Path = ROOT / "README.md",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.started, self.directory = started, directory
        ports = {port: str(free_port()) for port in PORTS}
        self.text = re.sub("|".join(PORTS), lambda found: ports[found[0]], page.read_text())
        self.environment = clean_environment({"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **(env or {})})
        if installed:
            del self.environment["PYTHONPATH"]
        for name, content in files(self.text).items():
            (directory / name).write_text(content)

    def run(self) -> list[Command]:
        """Do everything, in order; what was done. Fails where something else is printed than the README says."""
        done = []
        for command in commands(self.text):
            server_name = command.line.partition(" ")[0]
            if server_name in SERVERS:
                if server_name != "uvicorn":
                    program(server_name)
                server = Process(command.line, ["bash", "-c", f"exec {command.line}"], self.environment, self.directory)
                self.started.started.append(server)
                server.wait_for_line(SERVERS[server_name], 30)
            else:
                self._follow(command)
            done.append(command)
        return done

    def _follow(self, command: Command) -> None:
        said = ""

        def prints() -> bool:
            nonlocal said
            ran = subprocess.run(
                ["bash", "-c", command.line],
                env=self.environment,
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            said = ran.stdout + ran.stderr
            if said.startswith('{"request_id"'):
                self.environment["REQUEST_ID"] = json.loads(said)["request_id"]
            return matches(command.prints, said)

        try:
            until("", prints, 15, every_s=0.3)  # a reader is slower than a worker that connects
        except NotInTime:
            raise AssertionError(f"{command.line}\n--- should print ---\n{command.prints}\n--- printed ---\n{said}") from None
