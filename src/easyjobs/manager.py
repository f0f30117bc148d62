"""The manager: attaches to a FastAPI app, keeps jobs, gives them to workers. This is the one place that wires the parts together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self, cast

from fastapi import APIRouter, FastAPI
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from easyjobs.brokers import open_broker, type_of
from easyjobs.domain.job import TaskRow
from easyjobs.domain.replies import address
from easyjobs.errors import ConfigurationError
from easyjobs.http import socket
from easyjobs.http.auth import Access
from easyjobs.http.routes import mount, unmount
from easyjobs.http.services import Services
from easyjobs.ports.broker import Broker
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Kept, SharedStore, Store
from easyjobs.protocol.address import SOCKET_PATH
from easyjobs.runtime import drain, memory
from easyjobs.runtime.clock import SystemClock
from easyjobs.runtime.program import refuse_in_child
from easyjobs.runtime.sealing import KeyRing
from easyjobs.runtime.service import Service
from easyjobs.runtime.settings import ManagerSettings, lines_of
from easyjobs.services.catalogue import DEFAULT_QUEUE, Catalogue
from easyjobs.services.consumer import Consumer
from easyjobs.services.control import Control
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.events import Events
from easyjobs.services.expirer import Expirer
from easyjobs.services.flow import Flow
from easyjobs.services.inbox import Inbox
from easyjobs.services.intake import Intake
from easyjobs.services.own import OwnSession
from easyjobs.services.peers import Peers
from easyjobs.services.pruner import SETTLE_TICKS, Pruner
from easyjobs.services.reporter import Reporter
from easyjobs.services.rescuer import Rescuer
from easyjobs.services.results import Results
from easyjobs.services.scheduler import Scheduler
from easyjobs.stores import has_room, open_store
from easyjobs.stores.sealed import SealedStore
from easyjobs.tasks import Registry, Task, TaskMaker
from easyjobs.workers.loopback import Loopback
from easyjobs.workers.pool import Pool

log = logging.getLogger("easyjobs.manager")

GOAWAY_SPREAD_S: Final = 2.0  # workers come back within so long, not all at once
FLUSH_S: Final = 3.0  # for the reports of the manager's own jobs


def kept_of(settings: ManagerSettings) -> Kept:
    """How long jobs are kept after their end, by state."""
    times = (settings.keep_succeeded_s, settings.keep_failed_s, settings.keep_cancelled_s, settings.keep_expired_s)
    return Kept(*(None if time is None else round(time * 1_000_000) for time in times))


def _open_brokers(settings: ManagerSettings) -> list[Broker]:
    brokers: list[Broker] = []
    numbers: Counter[str] = Counter()
    for type, url in settings.broker_urls:
        kind = type_of(url, type)
        numbers[kind] += 1
        brokers.append(open_broker(url, kind, number=numbers[kind]))
    return brokers


def _sealed(store: Store, settings: ManagerSettings) -> Store:
    """The store, with its payloads sealed or at least opened, if there are keys. Raises: ConfigurationError, MissingExtra."""
    if settings.encryption_keys is None and not settings.encryption_enabled:
        return store
    keys = lines_of(settings.encryption_keys) if settings.encryption_keys is not None else ()
    return cast("Store", SealedStore(store, KeyRing(keys, seals=settings.encryption_enabled)))


def _check_address(results_to: str, brokers: tuple[str, ...]) -> None:
    try:
        address(results_to, brokers)
    except ValueError as why:
        raise ConfigurationError(f"results_to: {why}") from None


class EasyJobsManager(TaskMaker):
    """Made by `await EasyJobsManager.create(server, …)`; closed with the app, or by `await manager.close()`."""

    def __init__(self, server: FastAPI, settings: ManagerSettings) -> None:
        """Wire the parts. Use `create`, which also starts them."""
        self.server, self.settings = server, settings
        clock: Clock = SystemClock()
        store = open_store(
            settings.address,
            clock=clock,
            lease_s=settings.lease_s,
            durability=settings.durability.value,
            listen_url=settings.store_listen,
        )
        is_shared = isinstance(store, SharedStore)
        if isinstance(store, SharedStore):
            clock = store.clock
        self._store = store = _sealed(store, settings)
        self._clock = clock
        self._results = Results(store)
        brokers = _open_brokers(settings)
        names = tuple(broker.name for broker in brokers)
        if settings.results_to is not None:
            _check_address(settings.results_to, names)
        self._catalogue = Catalogue(store, clock, names, settings.results_to)
        self._dispatcher = Dispatcher(store, clock, silence_s=settings.lease_s * 2 / 3)
        flow = Flow(self._catalogue, clock)
        events = self._events = Events(store, self._results)
        self._dispatcher.followed, self._dispatcher.on_claimed = events.followed, events.claimed
        store.successors = flow.after_failure
        scheduler = self._scheduler = Scheduler(store, self._dispatcher, clock, self._catalogue, flow)
        self._catalogue.on_schedules = scheduler.wake
        scheduler.on_due = events.look_again
        expirer = Expirer(store, self._catalogue, clock)

        def wake_timers() -> None:
            scheduler.wake()
            expirer.wake()

        self._control = Control(store, self._catalogue, self._dispatcher, self._results, wake_timers, events)
        self._intake = Intake(store, self._catalogue, self._dispatcher, clock, flow, wake_timers)
        self._reporter = Reporter(store, self._dispatcher, self._results, flow.after_reports, wake_timers, events)
        rescuer = Rescuer(store, self._dispatcher, self._results, clock, lease_s=settings.lease_s, on_rescued=events.look_again)
        self._own = OwnSession(
            store=store,
            catalogue=self._catalogue,
            dispatcher=self._dispatcher,
            intake=self._intake,
            reporter=self._reporter,
            results=self._results,
            events=events,
            control=self._control,
            clock=clock,
            beat_s=settings.lease_s / 3,
        )
        self._pool = Pool(slots=settings.manager_slots, name="easyjobs-manager")
        self._loopback = self._pool.carrier = Loopback(self._pool, self._own)
        self._registry = Registry(self._loopback, self._registered, settings.files)
        self._fresh: list[Task[..., Any]] = []
        self._offering: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._inbox = Inbox(store, self._intake, self._catalogue, clock)
        self._consumers = [
            Consumer(
                broker,
                store=store,
                inbox=self._inbox,
                catalogue=self._catalogue,
                clock=clock,
                has_room=lambda: has_room(settings.address),
                backlog=settings.broker_backlog,
            )
            for broker in brokers
        ]
        store.on_unsent = self._unsent
        self._catalogue.on_offers = self._offered
        pruner = Pruner(store, self._catalogue, kept_of(settings), settle_ticks=SETTLE_TICKS if brokers else 0)
        self._background: list[Service] = [scheduler, expirer, rescuer, pruner, self._own, self._inbox]
        if is_shared:
            shared = cast("SharedStore", store)
            self._background.append(
                Peers(
                    shared, clock, self._catalogue, self._dispatcher, self._results, self._control, events, wake_timers, self._read_tokens
                )
            )
        self._access = Access(settings.secrets(), settings.auth, clock)
        self._connections: set[socket.Connection] = set()
        self._socket_side = socket.Manager(
            store=store,
            catalogue=self._catalogue,
            dispatcher=self._dispatcher,
            intake=self._intake,
            reporter=self._reporter,
            results=self._results,
            events=events,
            control=self._control,
            secrets=settings.secrets(),
            clock=clock,
            lease_s=settings.lease_s,
            connections=self._connections,
        )
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] | None = None

    @classmethod
    async def create(
        cls,
        server: FastAPI,
        server_secret: str | Sequence[str] | None = None,
        *,
        broker_type: str | None = None,
        broker_path: str | None = None,
        brokers: Sequence[str] | None = None,
        api_router: APIRouter | None = None,
        **settings: Any,
    ) -> Self:
        """Attach a manager to `server` and start it.

        Args:
            server: the app that serves the manager's routes and its WebSocket.
            server_secret: what manager and workers share; `EASYJOBS_SECRET` if not given. While it is being replaced: [new, old].
            broker_type: "rabbitmq", "redis", "nats", "sqs"; "easyjobs" (the default without a URL) is the embedded queue. None: as the URL's
                scheme says.
            broker_path: the broker's URL, for instance `amqp://guest:guest@127.0.0.1/`; none for "easyjobs". A broker that cannot be
                reached is tried again for ever, and stops nothing else.
            brokers: URLs of further brokers to take messages from.
            api_router: serves the routes of tasks and `/job/…`; default: the app itself.
            settings: any field of `ManagerSettings`: store, lease_s, durability, auth, path, manager_slots, grace_s, results_to.

        Raises:
            ConfigurationError: a setting is wrong, or the app has a manager already.
            MissingExtra: the broker's client is not installed.
            StoreLocked: another process is the manager of this database file.
        """
        refuse_in_child("EasyJobsManager.create()")
        if getattr(server.state, "easyjobs_manager", None) is not None:
            raise ConfigurationError("this app has a manager already: create one EasyJobsManager per app")
        given = {"broker_type": broker_type, "broker_path": broker_path, "brokers": brokers}
        read = ManagerSettings.read(secret=server_secret, **given, **settings)
        manager = cls(server, read)
        await manager._start(api_router)
        server.state.easyjobs_manager = manager
        return manager

    async def _read_tokens(self) -> None:
        """Learn which tokens were taken back."""
        self._access.revoked.update(token.id for token in await self._store.tokens() if token.revoked_at is not None)

    def _unsent(self) -> None:
        for consumer in self._consumers:
            consumer.sender.wake()

    def _offered(self) -> None:
        self._inbox.wake()
        for consumer in self._consumers:
            consumer.wake()

    async def _start(self, router: APIRouter | None) -> None:
        await self._store.open()
        try:
            await self._catalogue.load()
            await self._dispatcher.load()
            await self._control.load()
            await self._own.join(f"manager-{os.getpid()}", self.settings.manager_slots, self._loopback)
            self._loopback.nudge()
            for service in self._background:
                await service.start()
            for consumer in self._consumers:
                await consumer.start()
            access = self._access
            await self._read_tokens()
            services = Services(
                store=self._store,
                catalogue=self._catalogue,
                intake=self._intake,
                dispatcher=self._dispatcher,
                results=self._results,
                events=self._events,
                control=self._control,
                scheduler=self._scheduler,
                inbox=self._inbox,
                consumers=self._consumers,
                clock=self._clock,
                access=access,
            )
            mount(self.server, router=router, path=self.settings.path, services=services, settings=self.settings)
            self._route = WebSocketRoute(SOCKET_PATH, self._serve_socket, name="easyjobs-socket")
            self.server.router.routes.insert(0, self._route)
        except BaseException:
            await self._stop_parts()
            raise
        # An app with `on_event` handlers, or with none, runs this list at its end. One with `lifespan=` does not look at it again: there
        # the watcher closes the manager when the loop ends.
        self.server.router.on_shutdown.append(self.close)
        self._watcher = asyncio.create_task(self._close_with_the_loop(), name="easyjobs-manager")
        drain.join(self)
        memory.settle()

    async def _close_with_the_loop(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    async def _serve_socket(self, websocket: WebSocket) -> None:
        await socket.serve(websocket, self._socket_side)

    def toggle_workers(self, *, pause: bool) -> None:
        """Give out no more jobs, to no worker, or go on. Running jobs run on; submits are taken. A restart forgets it."""
        self._control.pause_all(pause)

    # --- tasks ------------------------------------------------------------------------------------------------------------------

    def _queues(self, namespace: str | Sequence[str] | None) -> Sequence[str]:
        if namespace is None:
            return (DEFAULT_QUEUE,)
        return (namespace,) if isinstance(namespace, str) else namespace

    def _registered(self, task: Task[..., Any]) -> None:
        self._fresh.append(task)
        if self._offering is None:  # one offer for all tasks that are registered in this turn
            self._offering = asyncio.ensure_future(self._offer())

    async def _offer(self) -> None:
        fresh, self._fresh, self._offering = self._fresh, [], None
        rows = [
            TaskRow(queue=task.queue, name=task.name, signature=task.signature_json, options=task.task_options.to_json()) for task in fresh
        ]
        lanes = []
        for row, lane in await self._own.offer(rows):
            task = self._registry.get(row.queue, row.name)
            if task is not None:
                self._pool.lanes[lane] = task
                lanes.append(lane)
        self._own.serve(lanes)

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """The process is about to end: take no new jobs for the manager's own tasks. From a signal handler."""
        self._loop.call_soon_threadsafe(self._own.leave)

    def hurry(self) -> None:
        """Do not wait for running jobs any longer."""
        self._hurry.set()

    async def drain(self) -> bool:
        """Close because the process ends; the routes stay, and answer 503 until the server is gone."""
        await self._close_once(keep_routes=True)
        return True

    async def close(self) -> None:
        """Stop: the manager's own jobs end or go back, workers are told to come back, what was acknowledged is on disk.

        Can be called again.
        """
        await self._close_once(keep_routes=False)

    async def _close_once(self, *, keep_routes: bool) -> None:
        if self._closed is None:
            self._closed = asyncio.ensure_future(self._close(keep_routes=keep_routes))
        await asyncio.shield(self._closed)

    async def _close(self, *, keep_routes: bool) -> None:
        self._results.close()  # long polls end at once
        self._events.close()  # and so do streams
        self._own.leave()
        await self._pool.drain(self.settings.grace_s, self._hurry)
        await self._loopback.close_reports(FLUSH_S)
        for consumer in self._consumers:
            await consumer.stop()
        self._intake.is_closed = True
        for connection in list(self._connections):
            connection.goaway("the manager is shutting down", GOAWAY_SPREAD_S)
        if not keep_routes:
            with contextlib.suppress(ValueError):
                self.server.router.routes.remove(self._route)
            unmount(self.server)
        await self._stop_parts()
        self._watcher.cancel()
        drain.part(self)
        self.server.state.easyjobs_manager = None
        log.info("manager.stopped")

    async def _stop_parts(self) -> None:
        self._dispatcher.is_paused = True
        for consumer in self._consumers:
            await consumer.stop()
        for service in reversed(self._background):
            await service.stop()
        await self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
