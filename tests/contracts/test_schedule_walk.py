"""Random walks through the verbs of schedules, on both stores at once: they agree at every step, and no tick is born twice."""

from __future__ import annotations

import asyncio
import random
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from easyjobs.domain.cron import Cron
from easyjobs.domain.job import JobQuery, NewJob, NewSession, Report, Spec, TaskRow, Want
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.domain.schedule import CatchUp, Fired, Firing, NewSchedule, TaskSchedules, Tick, decide
from easyjobs.ports.store import Store
from easyjobs.stores import open_store
from tests.clocks import FakeClock
from tests.contracts.store_contract import finish, succeeded
from tests.contracts.test_stores import MEMORY

EXPRESSIONS = ("* * * * * *", "*/7 * * * * *", "* * * * *", "0 4 * * *")
STEPS = 120


class Walker:
    """Chooses steps; remembers which ticks were born, and which firings were decided on, to send some of them late or again."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.born: list[tuple[int, int]] = []
        self.by_hand = 0
        self.firings: list[Firing] = []
        self.ids = 0

    def job(self, lane: int) -> NewJob:
        self.ids += 1
        return NewJob(self.ids.to_bytes(16, "big"), Spec(lane), b"[[],{}]")

    async def decide(self, store: Store) -> None:
        due = await store.due_schedules(self.chance.choice([1, 100]))
        for schedule in due.schedules:
            assert schedule.next_at is not None
            cron = Cron(schedule.what.expression, schedule.what.timezone)
            decision = decide(cron, schedule.next_at, due.now, schedule.what.catch_up, schedule.what.window_us, 5)
            ticks = tuple(Tick(at, self.job(schedule.lane)) for at in decision.ticks)
            alone = self.chance.random() < 0.3
            self.firings.append(Firing(schedule.id, schedule.version, schedule.next_at, decision.next_at, ticks, alone))

    async def step(self, stores: list[Store]) -> list[Any]:
        chance = self.chance
        ids = [chance.randrange(1, 6) for _ in range(chance.randrange(1, 3))]
        what = chance.choices(["schedule", "advance", "decide", "fire", "again", "pause", "resume", "run", "work", "prune"], [2, 6, 6, 6, 2, 1, 2, 1, 4, 1])[0]  # fmt: skip
        match what:
            case "schedule":
                some = chance.sample(EXPRESSIONS, chance.randrange(4))
                new = tuple(
                    NewSchedule(one, catch_up=chance.choice(list(CatchUp)), window_us=chance.choice([0, 60_000_000])) for one in some
                )
                task = TaskSchedules("Q", chance.choice(["a", "b", "unknown"]), new)
                return [await store.schedule([task]) for store in stores]
            case "advance":
                self.clock.advance(chance.choice([0.3, 1, 1, 5, 61]))
            case "decide":
                await self.decide(stores[0])
            case "fire" | "again" if self.firings:
                firings = [self.firings.pop(0) if what == "fire" else chance.choice(self.firings)]
                answers = [await store.fire(firings) for store in stores]
                for firing, verdicts in zip(firings, answers[0], strict=True):
                    self.born += [
                        (firing.schedule, tick.at) for tick, said in zip(firing.ticks, verdicts, strict=True) if said is Fired.BORN
                    ]
                return answers
            case "pause":
                return [await store.pause_schedules(ids) for store in stores]
            case "resume":
                return [await store.resume_schedules(ids) for store in stores]
            case "run":
                jobs = [(id, self.job(1)) for id in ids]
                answers = [await store.run_now(jobs) for store in stores]
                self.by_hand += sum(answers[0])
                return answers
            case "work":
                return [await self.work(store) for store in stores]
            case "prune":
                return [await store.prune_ticks(100_000_000, 3) for store in stores]
        return [None, None]

    async def work(self, store: Store) -> list[Any]:
        await store.renew([1])
        [claims] = await store.claim([Want(1, (1, 2), 3)])
        reports: list[Report] = [succeeded(job) for job in claims.jobs]
        return [*claims.jobs, *await finish(store, 1, *reports)]


async def walk(seed: int) -> None:
    walker = Walker(seed)
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        stores: list[Store] = [open_store(where, clock=walker.clock) for where in ("memory://", f"{directory}/jobs.db")]
        for store in stores:
            await store.open()
            await store.offer([TaskRow("Q", name, b"{}", b"{}") for name in "ab"])
            await store.begin([NewSession(b"s" * 16, "w")])
        for _ in range(STEPS):
            memory, sqlite = await walker.step(stores)
            assert memory == sqlite
            first, second = [await store.schedules() for store in stores]
            assert first == second
            assert await stores[0].due_schedules() == await stores[1].due_schedules()
        assert len(set(walker.born)) == len(walker.born), "a tick was born twice"
        for store in stores:
            jobs = await store.page(JobQuery(limit=10_000))
            assert len(jobs) == len(walker.born) + walker.by_hand
            assert {job.state for job in jobs} <= {JobState.QUEUED} | FINAL
            await store.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_both_stores_agree_on_every_walk_and_no_tick_is_born_twice(seed: int) -> None:
    asyncio.run(walk(seed))
