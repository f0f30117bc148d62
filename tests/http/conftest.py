"""An app with a manager's routes over a memory store, and a worker that is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from easyjobs.domain.cloning import describe
from easyjobs.domain.job import ErrorInfo, NewSession, Outcome, Report, Reports, TaskRow, Want
from easyjobs.domain.lifecycle import FINAL
from easyjobs.domain.signature import encode
from easyjobs.http.auth import Access
from easyjobs.http.routes import mount, unmount
from easyjobs.http.services import Services
from easyjobs.runtime.settings import Auth, ManagerSettings
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.control import Control
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.events import Events
from easyjobs.services.flow import Flow
from easyjobs.services.inbox import Inbox
from easyjobs.services.intake import Intake
from easyjobs.services.results import Results, Watcher
from easyjobs.services.scheduler import Scheduler
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock

SECRET = "a secret of the tests, long enough to be one"
LOCAL = ("127.0.0.1", 40001)
BASE = "http://127.0.0.1:8220"


class ToldResults(Results):
    """Tells when somebody begins to wait."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.someone_waits = asyncio.Event()

    def add(self, id: bytes, watcher: Watcher) -> None:
        super().add(id, watcher)
        self.someone_waits.set()


@dataclass
class Manager:
    """The parts behind the routes, and what a worker would do to them."""

    app: FastAPI
    services: Services
    store: MemoryStore
    clock: FakeClock
    session: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    async def someone_waits(self) -> None:
        """Return when the first waiter is there."""
        results = self.services.results
        assert isinstance(results, ToldResults)
        async with asyncio.timeout(10):
            await results.someone_waits.wait()

    async def offer(self, fn: Callable[..., Any], queue: str = "DEFAULT", name: str | None = None) -> None:
        """A worker offers `fn`, and stays."""
        row = TaskRow(queue, name or fn.__name__, encode(describe(fn)), msgspec.json.encode(self.options))
        taken, refused = await self.services.catalogue.offer([row], "test")
        assert not refused
        self.services.catalogue.joined([lane for _, lane in taken])

    async def end(self, request_id: str, body: Any = None, *, error: ErrorInfo | None = None, raw: bytes | None = None) -> None:
        """The worker runs this job (and whatever waits before it) and reports it."""
        if not self.session:
            [self.session] = await self.store.begin([NewSession(b"s" * 16, "tester")])
        lanes = tuple(task.lane for task in self.services.catalogue.visible())
        [claims] = await self.store.claim([Want(self.session, lanes, 1000)])
        for job in claims.jobs:
            if job.id.hex() == request_id.replace("-", ""):
                said = raw if raw is not None else msgspec.json.encode(error if error is not None else body)
                report = Report(job.seq, job.attempt, Outcome.FAILED if error else Outcome.SUCCEEDED, body=said)
            else:
                report = Report(job.seq, job.attempt, Outcome.RELEASED)
            [[verdict]] = await self.store.finish([Reports(self.session, [report])])
            if verdict.state in FINAL and job.id in self.services.results.watched:
                self.services.results.ended(job.id, verdict.state, report.body)


def build(app: FastAPI, store: MemoryStore, clock: FakeClock, auth: Auth = Auth.PROTECTED, **where: Any) -> Manager:
    catalogue = Catalogue(store, clock)
    dispatcher = Dispatcher(store, clock, silence_s=20.0)
    results = ToldResults(store)
    events = Events(store, results)
    flow = Flow(catalogue, clock)
    store.successors = flow.after_failure
    intake = Intake(store, catalogue, dispatcher, clock, flow, lambda: None)
    services = Services(
        store=store,
        catalogue=catalogue,
        intake=intake,
        dispatcher=dispatcher,
        results=results,
        events=events,
        control=Control(store, catalogue, dispatcher, results, lambda: None, events),
        scheduler=Scheduler(store, dispatcher, clock, catalogue, flow),
        inbox=Inbox(store, intake, catalogue, clock),
        clock=clock,
        access=Access(SECRET, auth, clock),
    )
    settings = ManagerSettings(secret=SecretStr(SECRET), auth=auth)
    mount(app, services=services, settings=settings, **where)
    return Manager(app, services, store, clock)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[MemoryStore]:
    store = MemoryStore(clock=clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def manager(store: MemoryStore, clock: FakeClock) -> AsyncIterator[Manager]:
    app = FastAPI()
    manager = build(app, store, clock)
    yield manager
    unmount(app)


def client_of(app: FastAPI, client: tuple[str, int] = LOCAL, base_url: str = BASE) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app, client=client), base_url=base_url)


@pytest.fixture
async def http(manager: Manager) -> AsyncIterator[httpx2.AsyncClient]:
    """A client on the manager's own machine."""
    async with client_of(manager.app) as client:
        yield client
