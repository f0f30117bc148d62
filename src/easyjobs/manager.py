"""The manager: attaches to a FastAPI app, keeps jobs, gives them to workers. This is the one place that wires the parts together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType
from typing import Any, Final, Self

from fastapi import APIRouter, FastAPI
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from easyjobs.domain.job import UNLIMITED
from easyjobs.errors import ConfigurationError
from easyjobs.http import socket
from easyjobs.http.auth import Access
from easyjobs.http.routes import mount, unmount
from easyjobs.http.services import Services
from easyjobs.runtime.clock import SystemClock
from easyjobs.runtime.service import Service
from easyjobs.runtime.settings import ManagerSettings
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.flow import Flow
from easyjobs.services.intake import Intake
from easyjobs.services.pruner import Pruner
from easyjobs.services.reporter import Reporter
from easyjobs.services.rescuer import Rescuer
from easyjobs.services.results import Results
from easyjobs.services.scheduler import Scheduler
from easyjobs.stores import open_store

log = logging.getLogger("easyjobs.manager")

GOAWAY_SPREAD_S: Final = 2.0  # workers come back within so long, not all at once
SOCKET_PATH: Final = "/ws/jobs"

__all__ = ["UNLIMITED", "EasyJobsManager"]


class EasyJobsManager:
    """Made by `await EasyJobsManager.create(server, …)`; closed with the app, or by `await manager.close()`."""

    def __init__(self, server: FastAPI, settings: ManagerSettings) -> None:
        """Wire the parts. Use `create`, which also starts them."""
        self.server, self.settings = server, settings
        clock = self._clock = SystemClock()
        store = self._store = open_store(
            settings.address, clock=clock, lease_s=settings.lease_s, durability=settings.durability.value
        )
        self._results = Results(store)
        self._catalogue = Catalogue(store, clock)
        self._dispatcher = Dispatcher(store, clock, silence_s=settings.lease_s * 2 / 3)
        flow = Flow(self._catalogue, clock)
        self._intake = Intake(store, self._catalogue, self._dispatcher, clock)
        scheduler = Scheduler(store, self._dispatcher, clock)
        self._reporter = Reporter(store, self._dispatcher, self._results, flow.after_reports, scheduler.wake)
        rescuer = Rescuer(
            store, self._dispatcher, self._results, clock, lease_s=settings.lease_s, successors=flow.after_crash
        )
        self._background: list[Service] = [scheduler, rescuer, Pruner(store, self._catalogue)]
        self._connections: set[socket.Connection] = set()
        self._socket_side = socket.Manager(
            store=store,
            catalogue=self._catalogue,
            dispatcher=self._dispatcher,
            intake=self._intake,
            reporter=self._reporter,
            results=self._results,
            secrets=(settings.secret_text(),),
            clock=clock,
            lease_s=settings.lease_s,
            connections=self._connections,
        )
        self._closed: asyncio.Future[None] | None = None

    @classmethod
    async def create(
        cls,
        server: FastAPI,
        server_secret: str | None = None,
        *,
        broker_type: str | None = None,
        broker_path: str | None = None,
        api_router: APIRouter | None = None,
        **settings: Any,
    ) -> Self:
        """Attach a manager to `server` and start it.

        Args:
            server: the app that serves the manager's routes and its WebSocket.
            server_secret: what manager and workers share; `EASYJOBS_SECRET` if not given.
            broker_type: "easyjobs" (the embedded queue, the default).
            broker_path: the broker's URL; none for "easyjobs".
            api_router: serves the routes of tasks and `/job/…`; default: the app itself.
            settings: any field of `ManagerSettings`: store, lease_s, durability, auth, path, manager_slots, grace_s.

        Raises:
            ConfigurationError: a setting is wrong, or the app has a manager already.
            StoreLocked: another process is the manager of this database file.
        """
        if getattr(server.state, "easyjobs_manager", None) is not None:
            raise ConfigurationError("this app has a manager already: create one EasyJobsManager per app")
        if broker_type not in (None, "easyjobs"):
            raise ConfigurationError(f"broker_type={broker_type!r} is not available in this version: leave it out for the embedded queue")
        read = ManagerSettings.read(secret=server_secret, broker_type=broker_type, broker_path=broker_path, **settings)
        manager = cls(server, read)
        await manager._start(api_router)
        server.state.easyjobs_manager = manager
        return manager

    async def _start(self, router: APIRouter | None) -> None:
        await self._store.open()
        try:
            await self._catalogue.load()
            await self._dispatcher.load()
            for service in self._background:
                await service.start()
            access = Access(self.settings.secret_text(), self.settings.auth, self._clock)
            services = Services(
                store=self._store,
                catalogue=self._catalogue,
                intake=self._intake,
                dispatcher=self._dispatcher,
                results=self._results,
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

    async def _close_with_the_loop(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    async def _serve_socket(self, websocket: WebSocket) -> None:
        await socket.serve(websocket, self._socket_side)

    async def close(self) -> None:
        """Stop: no more jobs are taken, workers are told to come back, what was acknowledged is on disk. Can be called again."""
        if self._closed is None:
            self._closed = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closed)

    async def _close(self) -> None:
        self._intake.is_closed = True
        self._results.close()
        for connection in list(self._connections):
            connection.goaway("the manager is shutting down", GOAWAY_SPREAD_S)
        with contextlib.suppress(ValueError):
            self.server.router.routes.remove(self._route)
        unmount(self.server)
        await self._stop_parts()
        self._watcher.cancel()
        self.server.state.easyjobs_manager = None
        log.info("manager.stopped")

    async def _stop_parts(self) -> None:
        self._dispatcher.is_paused = True
        for service in reversed(self._background):
            await service.stop()
        await self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
