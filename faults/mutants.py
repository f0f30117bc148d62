"""Does the suite see what it is there to see? Twelve changed copies of the product, each with one promise broken: all of them must be caught.

The copies are made in a temporary directory; the product itself is not touched. Where the delivery contract's own list (drop the attempt, drop the
lease, …) names something that this design does not have, another one of the same weight stands in its place, and says so.

    python -m faults.mutants            all: prints "12/12"
    python -m faults.mutants 3 9        some
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from faults.sim.__main__ import seeds

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Edit:
    """In `file` (below src/easyjobs) `old`, which is there once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """`seeds`: of the simulation, first:last:step; "power": power losses. `instead_of`: what it stands for."""

    name: str
    edits: tuple[Edit, ...]
    seeds: tuple[int, int, int] | str = (0, 60, 1)
    instead_of: str = ""


WRITER = "stores/sqlite/writer.py"
VERDICTS = "stores/verdicts.py"
HOSTILE = (7, 1507, 10)  # seeds in which frames are repeated and replayed

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "reports are accepted whatever their attempt",
        (
            Edit(WRITER, "    and +jobs.attempt = cast(substr(r.value, 23, 18) as integer) and +jobs.session", "    and +jobs.session"),
            Edit(VERDICTS, "if standing.attempt != report.attempt or standing.session != session:", "if standing.session != session:"),
            Edit(WRITER, "and +jobs.state = f->>1 and +jobs.attempt = f->>2 and", "and +jobs.state = f->>1 and"),
        ),
        HOSTILE,
    ),
    Mutant(
        "reports are accepted whatever the job's state",
        (
            Edit(VERDICTS, "after = advance(standing.state, event_of(", "after = advance(JobState.RUNNING, event_of("),
            Edit(VERDICTS, "if after is None or not fenced:", "if after is None:"),
        ),
        HOSTILE,
        instead_of="drop the lease id: here attempts are never used twice, so the session alone adds no fence",
    ),
    Mutant(
        "a rescue decides by an older look, and compares nothing",
        (
            Edit(
                WRITER,
                "rows: list[tuple[Any, ...]] = self._db.execute(EXPIRED, (_text(ended), limit)).fetchall()",
                "rows, self._rows_before = getattr(self, '_rows_before', []), self._db.execute(EXPIRED, (_text(ended), limit)).fetchall()",
            ),
            Edit(WRITER, "where jobs.seq = r.value->>0 and +jobs.state = 1 and +jobs.attempt = r.value->>1 and +jobs.session = r.value->>5", "where jobs.seq = r.value->>0"),
            Edit(WRITER, "if len(rows) < limit:\n            self._on_commit.append(lambda: self._end_leases(leases))", "if False:\n            pass"),
        ),
    ),
    Mutant(
        "submits are acknowledged before the commit",
        (
            Edit(
                "services/intake.py",
                "answers = await future\n",
                "asyncio.ensure_future(future).add_done_callback(lambda done: done.cancelled() or done.exception())\n"
                "        answers = [Submitted(SubmitVerdict.ACCEPTED, tuple(job.id for job in each.jobs)) for each in submissions]\n",
            ),
            Edit("services/intake.py", "import hashlib\n", "import asyncio\nimport hashlib\n"),
        ),
    ),
    Mutant(
        "successors are stored in a second transaction",
        (
            Edit("services/reporter.py", "items=items, successors=successors),))", "items=items),))"),
            Edit(
                "services/reporter.py",
                "return self._settled(session, items, stored, timed=timed)",
                "return self._second(session, items, stored, successors)",
            ),
            Edit(
                "services/reporter.py",
                "    def _settle(self,",
                "    async def _second(self, session, items, stored, successors):\n"
                "        from easyjobs.domain.job import Submission\n"
                "        [verdicts] = await stored\n"
                "        for report, verdict in zip(items, verdicts):\n"
                "            if verdict.answer is Answer.ACCEPTED and verdict.state is JobState.SUCCEEDED:\n"
                "                for job in successors.get(report.seq, ()):\n"
                "                    await self._store.submit([Submission((job,))])\n"
                "                    self._dispatcher.mark(job.spec.lane)\n"
                "        return self._settle(session, items, verdicts)\n\n"
                "    def _settle(self,",
            ),
        ),
        (0, 120, 1),
    ),
    Mutant(
        "idempotency keys are forgotten",
        (
            Edit(WRITER, "            if stored is not None:\n                if stored[0] != key.body:", "            if False:\n                if stored[0] != key.body:"),
            Edit(WRITER, '            "insert into idempotency(principal, scope, key, body, ids, at, until) values', '            "insert or replace into idempotency(principal, scope, key, body, ids, at, until) values'),
            Edit(WRITER, 'KEEP_KEYS = """insert into', 'KEEP_KEYS = """insert or replace into'),
        ),
    ),
    Mutant(
        "a beat revives what was rescued",
        (
            Edit(
                WRITER,
                "        known = [session in self._leases for session in sessions]\n",
                "        known = [session in self._leases for session in sessions]\n"
                '        self._db.execute("update jobs set state = 1, back = 0 where state = 0 and back = 1 and session in (select value from json_each(?))",'
                " (_text(list(sessions)),))\n",
            ),
        ),
        (0, 120, 1),
    ),
    Mutant(
        "each manager fires a tick, whoever else has",
        (
            Edit("stores/sqlite/schedules.py", "        if db.total_changes() == before:\n            return [Fired.STALE] * len(firing.ticks)\n        answers = []", "        answers = []"),
            Edit("stores/sqlite/schedules.py", "            if db.total_changes() == before:\n                answers.append(Fired.REPEATED)\n            elif", "            if"),
        ),
        instead_of="cron from the local clock: here no manager's clock decides about ticks, a row does",
    ),
    Mutant("nothing is synced", (Edit("stores/sqlite/connection.py", '"full" if durability == "full" else "normal"', '"off"'),), "power"),
    Mutant(
        "a broker's messages are acknowledged before they are stored",
        (
            Edit(
                "services/consumer.py",
                "            for some in _by_size(deliveries):\n                await self._take(queue, some)\n",
                "            await self._broker.ack(queue, deliveries)\n            for some in _by_size(deliveries):\n                await self._take(queue, some)\n",
            ),
            Edit("services/consumer.py", '                failpoints.reach("consumer.stored")\n            await self._broker.ack(queue, deliveries)\n', '                failpoints.reach("consumer.stored")\n'),
        ),
        (0, 150, 1),
    ),
    Mutant(
        "a late result overwrites",
        (
            Edit(
                VERDICTS,
                "    outcome = report.outcome\n    if standing.attempt",
                "    outcome = report.outcome\n    if outcome is Outcome.SUCCEEDED:\n        standing.state = JobState.SUCCEEDED\n"
                "        return VERDICTS[Answer.ACCEPTED, JobState.SUCCEEDED]\n    if standing.attempt",
            ),
            Edit(WRITER, "where jobs.seq = f->>0 and +jobs.state = f->>1 and +jobs.attempt = f->>2 and +jobs.session = f->>3", "where jobs.seq = f->>0"),
        ),
    ),
    Mutant("a session is named after its host", (Edit("workers/worker.py", "session=os.urandom(16)", "session=socket.gethostname().encode().ljust(16)[:16]"),)),
)  # fmt: skip


def make(mutant: Mutant, directory: Path) -> Path:
    """A copy of the product with the edits; what to put in front of PYTHONPATH."""
    copy = directory / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in mutant.edits:
        file = copy / "easyjobs" / edit.file
        text = file.read_text()
        if text.count(edit.old) != 1:
            raise SystemExit(
                f"mutant {mutant.name!r}: {edit.file} has {text.count(edit.old)} times {edit.old!r}: the product has changed, change the mutant"
            )
        file.write_text(text.replace(edit.old, edit.new))
    return copy


def caught(mutant: Mutant) -> str | None:
    """What caught it; None: nothing did."""
    with tempfile.TemporaryDirectory(prefix="easyjobs-mutant-") as name:
        copy = make(mutant, Path(name))
        paths = os.pathsep.join([str(copy), str(ROOT)])
        if isinstance(mutant.seeds, str):
            command = [sys.executable, "-W", "ignore", "-m", "faults.powerloss", "--seeds", "0:40", "--durability", "full"]
            run = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, cwd=ROOT)
            return run.stdout.strip() if run.returncode == 1 and " 0 lost" not in run.stdout else None
        first, last, step = mutant.seeds
        for told in seeds(first, last, step=step, processes=1, paths=paths):
            if told["wrong"]:
                return f"seed {told['seed']}: {told['wrong'][0]}"
    return None


def main() -> int:
    wanted = [int(number) for number in sys.argv[1:]] or range(1, len(MUTANTS) + 1)
    count = 0
    for number in wanted:
        mutant, began = MUTANTS[number - 1], time.monotonic()
        why = caught(mutant)
        count += why is not None
        print(
            f"{number:2} {mutant.name}: {'CAUGHT by ' + why[:150] if why else 'NOT CAUGHT'} ({time.monotonic() - began:.0f} s)", flush=True
        )
        if mutant.instead_of:
            print(f"   (in place of: {mutant.instead_of})")
    print(f"{count}/{len(wanted)}")
    return count != len(wanted)


if __name__ == "__main__":
    sys.exit(main())
