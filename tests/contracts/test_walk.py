"""Random walks through the verbs, on both stores at once: they agree at every step, and the counters stay exact."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from easyjobs.domain.job import (
    Change,
    ErrorInfo,
    IdempotencyKey,
    JobQuery,
    JobRecord,
    NewJob,
    NewSession,
    Outcome,
    Parent,
    Report,
    Reports,
    Spec,
    Submission,
    TaskRow,
    UniqueKey,
    Want,
)
from easyjobs.domain.lifecycle import JobState
from easyjobs.ports.store import Kept, Store
from easyjobs.stores import open_store
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.contracts.test_stores import MEMORY

LANES = (1, 2, 3)
SESSIONS = (1, 2)
STEPS = 200
ERROR = msgspec.json.encode(ErrorInfo("ValueError", "no"))


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def children(seq: int) -> tuple[NewJob, ...]:
    """One for each end; the ids say whose they are."""
    return tuple(
        NewJob(an_id(1000 + seq * 10 + when), Spec(1 + seq % len(LANES)), b"[[],{}]", Parent(seq, "edge", when))
        for when in (JobState.SUCCEEDED, JobState.FAILED)
    )


def on_failure(record: JobRecord) -> tuple[NewJob, ...]:
    return children(record.seq)


class Walker:
    """Chooses steps, knowing (from the store in memory) what there is, so that most of them do something."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.last = ""

    def relatives(self, memory: MemoryStore, spec: Spec) -> dict[str, Any]:
        """What makes a job more than a plain one."""
        chance = self.chance
        kind = chance.choice(["befores", "call", "unique"])
        if kind == "befores":
            return {
                "befores": tuple(
                    NewJob(
                        an_id(chance.randrange(200, 400)),
                        Spec(chance.choice(LANES), max_retries=0),
                        b"[[],{}]",
                        Parent(0, f"run_before:q/{name}"),
                    )
                    for name in chance.sample("abc", chance.randrange(1, 3))
                )
            }
        if kind == "unique":
            states = (JobState.QUEUED, JobState.RUNNING, JobState.SCHEDULED, JobState.WAITING, *chance.choice([(), (JobState.SUCCEEDED,)]))
            return {"unique": UniqueKey(chance.choice([b"u", b"v"]), states, chance.choice([None, 30_000_000]))}
        if not memory._jobs:
            return {}
        job = chance.choice([job for job in memory._jobs.values() if job.state is JobState.RUNNING] or list(memory._jobs.values()))
        holder = (job.attempt, job.session or 1) if chance.random() < 0.9 else (9, 9)
        return {"parent": Parent(job.seq, f"call:{chance.choice('xy')}", holder=holder, max_depth=chance.choice([1, 2, 1000]))}

    def submission(self, memory: MemoryStore) -> Submission:
        chance = self.chance
        spec = Spec(
            lane=chance.choice(LANES),
            max_retries=chance.choice([-1, 0, 1, 2]),
            max_crashes=chance.choice([1, 2, 3]),
            priority=chance.choice([0, 0, 1, -1]),
            run_at=self.clock.now() + chance.choice([-1, 5, 20]) * 1_000_000 if chance.random() < 0.3 else None,
            expires_us=chance.choice([0, 10, 40]) * 1_000_000 if chance.random() < 0.2 else None,
            ttl_us=10_000_000 if chance.random() < 0.2 else None,
        )
        key = IdempotencyKey("p", "s", chance.choice("kl"), chance.choice([b"1", b"2"])) if chance.random() < 0.2 else None
        args = chance.choice([b"[[1],{}]", b"[[2],{}]"])
        return Submission(
            tuple(
                NewJob(an_id(chance.randrange(200)), spec, args, **self.relatives(memory, spec) if chance.random() < 0.4 else {})
                for _ in range(chance.randrange(1, 4))
            ),
            key,
        )

    def reports(self, memory: MemoryStore) -> list[Reports]:
        chance = self.chance
        claimed = [job for job in memory._jobs.values() if job.attempt]
        running = [job for job in claimed if job.state is JobState.RUNNING]
        by_session: dict[int, list[Report]] = {}
        for _ in range(chance.randrange(1, 4)):
            if not claimed:
                break
            job = chance.choice(running if running and chance.random() < 0.6 else claimed)
            outcome = chance.choice(
                [Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.FAILED, Outcome.RELEASED, Outcome.SNOOZED]
            )
            session = job.session or 1
            if chance.random() < 0.1:
                session = 3 - session
            attempt = job.attempt + chance.choice([0] * 8 + [1, -1])
            report = Report(
                job.seq,
                attempt,
                outcome,
                chance.randrange(9),
                ERROR if outcome is Outcome.FAILED else b"%d" % chance.randrange(9),
                chance.random() < 0.7,
                chance.choice([0, 0, 4_000_000]),
                outcome is Outcome.FAILED and chance.random() < 0.3,
            )
            by_session.setdefault(session, []).append(report)
        born = chance.random() < 0.3
        return [
            Reports(session, some, {report.seq: children(report.seq) for report in some} if born else {})
            for session, some in by_session.items()
        ]

    async def step(self, stores: list[Store], memory: MemoryStore) -> list[Any]:
        chance = self.chance
        what = chance.choices(
            [
                "submit",
                "claim",
                "finish",
                "advance",
                "renew",
                "rescue",
                "due",
                "pull",
                "prune",
                "cancel",
                "restart",
                "hasten",
                "delete",
                "expire",
                "unoffered",
                "retain",
                "pause",
                "ask",
            ],
            [5, 6, 8, 4, 4, 3, 3, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 2],
        )[0]
        self.last = what
        match what:
            case "submit":
                submission = self.submission(memory)
                return [await store.submit([submission]) for store in stores]
            case "claim":
                lanes = tuple(chance.sample(LANES, chance.randrange(1, 4)))
                want = Want(chance.choice([1, 1, 2, 2, 3]), lanes, chance.randrange(4), chance.choice([10, 1000]))
                return [await store.claim([want]) for store in stores]
            case "finish":
                reports = self.reports(memory)
                return [await store.finish(reports) for store in stores]
            case "advance":
                self.clock.advance(chance.choice([1, 5, 20, 31]))
                return []
            case "renew":
                sessions = [chance.choice([1, 2, 3]) for _ in range(2)]
                return [await store.renew(sessions) for store in stores]
            case "rescue":
                return [await store.rescue(limit=3) for store in stores]
            case "due":
                limit = chance.randrange(1, 3)
                return [await store.due(limit) for store in stores]
            case "pull":
                ids = [an_id(chance.randrange(200)) for _ in range(30)]
                return [await store.pull(ids) for store in stores]
            case "cancel" | "restart" | "hasten" | "delete":
                ids = [an_id(chance.randrange(400)) for _ in range(20 if what == "restart" else 3)]
                return [await getattr(store, what)(ids) for store in stores]
            case "expire":
                return [await store.expire(2) for store in stores]
            case "unoffered":
                unoffered = chance.sample(LANES, chance.randrange(1, 3))
                return [await store.fail_unoffered(unoffered, 40_000_000, 2) for store in stores]
            case "retain":
                kept = Kept(200_000_000, None, 100_000_000, 0)
                return [await store.retain(kept, after, 50) for after in [chance.randrange(30)] for store in stores]
            case "pause":
                queue, is_paused = chance.choice("qr"), chance.random() < 0.5
                return [(await store.pause(queue, is_paused), await store.paused()) for store in stores]
            case "ask":
                ids = [an_id(chance.randrange(400)) for _ in range(100)]
                return [(await store.children(ids), await store.stopping(SESSIONS)) for store in stores]
            case _:
                before = chance.choice([0, 10_000_000])
                return [await store.prune(before, before) for store in stores]


async def walk(seed: int) -> None:
    walker = Walker(seed)
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        memory = MemoryStore(clock=walker.clock, lease_s=30)
        stores: list[Store] = [memory, open_store(f"{directory}/jobs.db", clock=walker.clock, lease_s=30)]
        for store in stores:
            store.successors = on_failure
            await store.open()
            await store.offer([TaskRow("q", f"t{lane}", b"", b"") for lane in LANES])
            await store.begin([NewSession(an_id(number), f"w{number}") for number in SESSIONS])
        try:
            told: list[list[Change]] = [[], []]
            for store, changes in zip(stores, told, strict=True):
                store.on_change = changes.extend
            for _ in range(STEPS):
                walker.clock.advance(0.001)  # so that no two calls share an instant
                answers = await walker.step(stores, memory)
                assert answers == answers[:1] * len(answers), walker.last
                await asyncio.sleep(0)
                assert told[0] == told[1]
            pages = [await store.page(JobQuery(limit=10_000)) for store in stores]
            assert [msgspec.structs.asdict(job) for job in pages[0]] == [msgspec.structs.asdict(job) for job in pages[1]]
            counted = dict(Counter((job.lane, job.state) for job in pages[0]))
            for store in stores:
                assert await store.counts() == counted
                assert await store.running(SESSIONS) == await memory.running(SESSIONS)
        finally:
            for store in stores:
                await store.close()


@settings(max_examples=25, deadline=None)
@example(1)
@example(2)
@example(3)
@given(st.integers(0, 2**32))
def test_both_stores_walk_the_same_way(seed: int) -> None:
    asyncio.run(walk(seed))
