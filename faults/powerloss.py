"""A disk that forgets: power loss at any point of SQLite's writing, by a VFS that knows what was synced.

All writes go to real files, so that SQLite reads what it wrote. Beside them it is remembered what each file had at its last sync, and what was written
since. At the crash the disk keeps of the latter what a seed chooses: any subset, each write torn at sectors of 512 bytes. From these
images the store is opened anew, and must have everything that it had acknowledged. (The method of SQLite's own `test6.c`.)

    python -m faults.powerloss --seeds 0:1000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw

from easyjobs.domain.job import Claimed, JobQuery, NewJob, NewSession, Outcome, Parent, Report, Reports, Spec, Submission, TaskRow, Want
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import StoreError
from easyjobs.stores.sqlite import writer as sqlite_writer
from faults.sim.store import InlineSqliteStore
from tests.clocks import FakeClock

SECTOR = 512
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass
class OnDisk:
    """A file: what it has for sure, and what was written since the last sync, as (offset, bytes) or (size,) of a truncation."""

    durable: bytearray
    pending: list[tuple[int, bytes] | tuple[int]] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def image(self, chance: Random) -> bytes:
        """What is there after the crash."""
        content = bytearray(self.durable)
        keeps = chance.choice([0.0, 0.5, 0.9, 1.0])
        for change in self.pending:
            if len(change) == 1:
                if chance.random() < keeps:
                    _apply(content, change)
                continue
            offset, data = change
            if chance.random() < 0.2:  # torn
                for at in range(0, len(data), SECTOR):
                    if chance.random() < keeps:
                        _apply(content, (offset + at, data[at : at + SECTOR]))
            elif chance.random() < keeps:
                _apply(content, change)
        return bytes(content)


def _apply(content: bytearray, change: tuple[int, bytes] | tuple[int]) -> None:
    if len(change) == 1:
        del content[change[0] :]
        return
    offset, data = change
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class Disk(apsw.VFS):
    """The default VFS of this process. While `is_watching`, it remembers; after `crash_after` more operations it calls `on_crash`."""

    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__("forgetful", self.base, makedefault=True)
        self.is_watching = False
        self.files: dict[str, OnDisk] = {}
        self.operations = 0
        self.crash_after = 0
        self.on_crash: Callable[[], object] = lambda: None

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> File:  # noqa: N802
        return File(self, name, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(name, syncdir)
        self.files.pop(name, None)

    def happened(self) -> None:
        self.operations += 1
        if self.operations == self.crash_after:
            self.on_crash()


class File(apsw.VFSFile):
    """Passes everything on, but for syncs, which cost time and prove nothing here."""

    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(disk.base, name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._state: OnDisk | None = None
        if disk.is_watching and path:
            self._state = disk.files.setdefault(path, OnDisk(bytearray(Path(path).read_bytes())))

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        if self._state is not None:
            self._state.pending.append((offset, bytes(data)))
            self._disk.happened()

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        if self._state is not None:
            self._state.pending.append((size,))
            self._disk.happened()

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._state is not None:
            self._state.sync()
            self._disk.happened()


@dataclass
class Facts:
    """What the store has said so far. `issued`: all ids that were ever given to it."""

    submitted: set[bytes] = field(default_factory=set)
    results: dict[bytes, bytes] = field(default_factory=dict)
    issued: set[bytes] = field(default_factory=set)

    def copy(self) -> Facts:
        return Facts(set(self.submitted), dict(self.results), set(self.issued))


@dataclass
class Loss:
    """What a seed came to. `lost`: acknowledged and not there; `broken`: what must never be."""

    seed: int
    acked: int
    lost: int
    broken: list[str]


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def _work(path: str, seed: int, durability: str, disk: Disk, facts: Facts, crashed: list[Facts]) -> None:
    """Jobs are submitted, claimed and finished until the crash."""
    chance = Random(seed)
    clock = FakeClock()
    store = InlineSqliteStore(path, clock=clock, lease_s=30, durability=durability)
    await store.open()
    await store.offer([TaskRow("q", "a", b"", b""), TaskRow("q", "b", b"", b"")])
    [session] = await store.begin([NewSession(an_id(1), "w")])
    if not disk.crash_after:
        disk.crash_after = disk.operations + Random(f"crash {seed}").randrange(1, 1200)
    held: list[Claimed] = []
    number = 1000
    for _ in range(100):
        clock.advance(0.01)
        what = chance.random()
        if what < 0.4:
            ids = [an_id(number := number + 1) for _ in range(chance.randrange(1, 8))]
            facts.issued.update(ids)
            size = chance.choice([10, 10, 10, 10, 10, 3000, 20_000])
            await store.submit([Submission(tuple(NewJob(id, Spec(chance.choice((1, 2))), b'[["%s"],{}]' % (b"x" * size)) for id in ids))])
            if not crashed:
                facts.submitted.update(ids)
        elif what < 0.65:
            [claims] = await store.claim([Want(session, (1, 2), chance.randrange(1, 10))])
            held += claims.jobs
        elif held:
            done = [held.pop() for _ in range(min(len(held), chance.randrange(1, 6)))]
            number += 1
            child = an_id(number)
            facts.issued.add(child)
            reports = [Report(job.seq, job.attempt, Outcome.SUCCEEDED, 1, b'"%d"' % job.seq) for job in done]
            born = {done[0].seq: (NewJob(child, Spec(2), b"[[],{}]", Parent(done[0].seq, "run_after:q/b", JobState.SUCCEEDED)),)}
            await store.finish([Reports(session, reports, born)])
            if not crashed:
                facts.results |= {job.id: b'"%d"' % job.seq for job in done}
                facts.submitted.add(child)
        if crashed:
            break
    disk.is_watching = False
    assert store._reader is not None
    store._reader.close()
    store._writer._db.close()
    store._file.release()


async def _look(path: str, facts: Facts, loss: Loss) -> None:
    """Open what is left, and compare."""
    store = InlineSqliteStore(path, clock=FakeClock(), lease_s=30)
    try:
        await store.open()
    except StoreError as error:
        loss.broken.append(f"it does not open: {error}")
        return
    rows = {record.id: record for record in await store.page(JobQuery(limit=100_000))}
    loss.lost += len(facts.submitted - rows.keys())
    loss.lost += sum(1 for id, result in facts.results.items() if id in rows and rows[id].result != result)
    if rows.keys() - facts.issued:
        loss.broken.append(f"{len(rows.keys() - facts.issued)} jobs that nobody had submitted")
    counted = Counter((row.lane, row.state) for row in rows.values())
    if dict(counted) != await store.counts():
        loss.broken.append("the counters do not agree with the jobs")
    verdict = store._writer._db.pragma("integrity_check")
    if verdict != "ok":
        loss.broken.append(f"integrity_check: {verdict}")
    assert store._reader is not None
    store._reader.close()
    store._writer._db.close()
    store._file.release()


_disk: list[Disk] = []


def lose_power(seed: int, durability: str = "full") -> Loss:
    """One crash."""
    if not _disk:
        _disk.append(Disk())
    disk = _disk[0]
    chance = Random(f"power {seed}")
    pages, sqlite_writer.CHECKPOINT_PAGES = sqlite_writer.CHECKPOINT_PAGES, chance.choice([25, 200, 1000])
    with tempfile.TemporaryDirectory(prefix="easyjobs-power-", dir=MEMORY) as name:
        directory = Path(name)
        path = str(directory / "jobs.db")
        facts, crashed = Facts(), list[Facts]()
        images: dict[str, bytes] = {}

        def crash() -> None:
            crashed.append(facts.copy())
            images.update({path: state.image(chance) for path, state in disk.files.items()})

        disk.files, disk.operations, disk.is_watching, disk.on_crash = {}, 0, True, crash
        disk.crash_after = chance.randrange(1, 240) if chance.random() < 0.1 else 0  # while it makes its schema
        try:
            asyncio.run(_work(path, seed, durability, disk, facts, crashed))
        finally:
            disk.is_watching = False
        if not crashed:
            crash()
        after = directory / "after"
        after.mkdir()
        for file, content in images.items():
            (after / Path(file).name).write_bytes(content)
        loss = Loss(seed, len(crashed[0].submitted) + len(crashed[0].results), 0, [])
        asyncio.run(_look(str(after / "jobs.db"), crashed[0], loss))
        sqlite_writer.CHECKPOINT_PAGES = pages
        return loss


@dataclass
class Total:
    """Of many seeds."""

    durability: str
    seeds: int = 0
    acked: int = 0
    lost: int = 0
    losing_seeds: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, loss: Loss) -> None:
        self.seeds += 1
        self.acked += loss.acked
        self.lost += loss.lost
        self.losing_seeds += loss.lost > 0
        self.broken += [f"seed {loss.seed}: {each}" for each in loss.broken]

    def __str__(self) -> str:
        return (
            f"{self.durability}: {self.seeds} power losses, {self.acked:,} acknowledged facts, {self.lost:,} lost in {self.losing_seeds} of them, "
            f"{len(self.broken)} broken databases"
        )


def many(seeds: range, durability: str) -> Total:
    total = Total(durability)
    for seed in seeds:
        total.add(lose_power(seed, durability))
    return total


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.powerloss")
    parser.add_argument("--seeds", default="0:1000", help="first:last")
    parser.add_argument("--durability", choices=["full", "relaxed"], help="default: both")
    options = parser.parse_args()
    seeds = range(*map(int, options.seeds.split(":")))
    failed = False
    for durability in [options.durability] if options.durability else ["full", "relaxed"]:
        began = time.monotonic()
        total = many(seeds, durability)
        print(f"{total} ({time.monotonic() - began:.0f} s)", *total.broken[:5], sep="\n    ", flush=True)
        failed = (
            failed or bool(total.broken) or (total.lost > 0) == (durability == "full")
        )  # where `relaxed` loses nothing, this shows nothing
    return failed


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
