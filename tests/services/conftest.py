"""The manager's parts, wired without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from easyjobs.domain.cloning import describe
from easyjobs.domain.job import Claimed, NewSession, TaskRow
from easyjobs.domain.signature import encode
from easyjobs.ports.store import Store
from easyjobs.services.catalogue import Catalogue, CatalogueTask
from easyjobs.services.control import Control
from easyjobs.services.dispatcher import Dispatcher, Session
from easyjobs.services.events import Events
from easyjobs.services.expirer import Expirer
from easyjobs.services.flow import Flow
from easyjobs.services.inbox import Inbox
from easyjobs.services.intake import Intake
from easyjobs.services.reporter import Reporter
from easyjobs.services.rescuer import Rescuer
from easyjobs.services.results import Results
from easyjobs.services.scheduler import Scheduler
from easyjobs.stores import open_store
from tests.clocks import FakeClock

LEASE_S = 30.0


def takes_a_number(n: int) -> int:
    return n


def row(name: str = "work", queue: str = "Q", options: bytes = b"{}", fn: object = takes_a_number) -> TaskRow:
    return TaskRow(queue=queue, name=name, signature=encode(describe(fn)), options=options)  # type: ignore[arg-type]


@dataclass
class FakePeer:
    """Remembers what it was sent."""

    got: list[Claimed] = field(default_factory=list)
    cancelled: list[tuple[int, int]] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    def run(self, jobs: list[Claimed]) -> None:
        self.got.extend(jobs)

    def cancel(self, jobs: list[tuple[int, int]]) -> None:
        self.cancelled.extend(jobs)

    def close(self, code: int, reason: str) -> None:
        self.closed.append(code)


class Parts:
    """A manager without a network."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store, self.clock = store, clock
        self.results = Results(store)
        self.catalogue = Catalogue(store, clock)
        self.dispatcher = Dispatcher(store, clock, silence_s=LEASE_S * 2 / 3)
        self.flow = Flow(self.catalogue, clock)
        self.events = Events(store, self.results)
        self.dispatcher.followed, self.dispatcher.on_claimed = self.events.followed, self.events.claimed
        store.successors = self.flow.after_failure
        self.scheduler = Scheduler(store, self.dispatcher, clock, self.catalogue, self.flow)
        self.scheduler.on_due = self.events.look_again
        self.expirer = Expirer(store, self.catalogue, clock)
        self.control = Control(store, self.catalogue, self.dispatcher, self.results, self.scheduler.wake, self.events)
        self.intake = Intake(store, self.catalogue, self.dispatcher, clock, self.flow, self.scheduler.wake)
        self.inbox = Inbox(store, self.intake, self.catalogue, clock)
        self.reporter = Reporter(store, self.dispatcher, self.results, self.flow.after_reports, self.scheduler.wake, self.events)
        self.rescuer = Rescuer(store, self.dispatcher, self.results, clock, lease_s=LEASE_S, on_rescued=self.events.look_again)

    async def task(self, name: str = "work", queue: str = "Q", options: bytes = b"{}", fn: object = takes_a_number) -> CatalogueTask:
        """A task that is offered."""
        await self.catalogue.offer([row(name, queue, options, fn)], "a test")
        return self.catalogue.find(queue, name)

    async def session(self, *tasks: CatalogueTask, name: str = "w", room: int = 0, slots: int = 3) -> tuple[Session, FakePeer]:
        """A connected worker that offers these tasks."""
        [number] = await self.store.begin([NewSession(id=name.encode().ljust(16, b"."), name=name)])
        peer = FakePeer()
        session = Session(number, b"", name, "Q", slots, peer, 0)
        self.dispatcher.attach(session)
        lanes = [task.lane for task in tasks]
        self.catalogue.joined(lanes)
        self.dispatcher.offered(session, lanes)
        if room:
            self.dispatcher.credit(session, room)
        return session, peer

    async def settle(self) -> None:
        """Let everything that is under way come to rest: the store answers in the order of the calls."""
        for _ in range(5):
            await self.store.counts()


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    clock = FakeClock()
    store = open_store("memory://", clock=clock, lease_s=LEASE_S)
    await store.open()
    yield Parts(store, clock)
    await store.close()
