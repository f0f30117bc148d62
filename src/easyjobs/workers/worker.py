"""`EasyJobsWorker`: a process that runs jobs for a manager.

    worker = await EasyJobsWorker.create(server, manager_host="127.0.0.1", manager_port=8220, manager_secret="…")

    @worker.task()
    async def work(a: int, b: int) -> int: ...

`create()` may be called in `on_event("startup")`, in a lifespan, or in a script; the worker stops with its app, with its loop, or by `close()`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from easyjobs.errors import AccessRefused, ConfigurationError, RegistrationError
from easyjobs.protocol.messages import NewTask
from easyjobs.protocol.worker_side import WorkerSide
from easyjobs.runtime import drain, memory
from easyjobs.runtime.log import INFO, WARNING, event
from easyjobs.runtime.program import refuse_in_child
from easyjobs.runtime.settings import WorkerSettings
from easyjobs.tasks import Registry, Task, TaskMaker
from easyjobs.workers.link import FLUSH_S, Link
from easyjobs.workers.pool import Pool

log = logging.getLogger("easyjobs.worker")

FIRST_S: Final = 3.0  # `create()` waits so long for the manager


class EasyJobsWorker(TaskMaker):
    """Made by `await EasyJobsWorker.create(…)`. An async context manager."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        """Wire the parts. Use `create`, which also starts them."""
        if settings.secret is None:
            raise ConfigurationError("no secret: pass manager_secret=… or set EASYJOBS_SECRET; it is the manager's server_secret")
        self.settings, self.name, self.queue = settings, name, settings.jobs_queue
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._pool = Pool(slots=settings.max_tasks_per_worker, name=f"easyjobs-{self.queue}")
        side = WorkerSide(
            session=os.urandom(16),
            secret=settings.secret_text(),
            name=name,
            queue=self.queue,
            slots=settings.max_tasks_per_worker,
            software=_software(),
        )
        self._link = self._pool.carrier = Link(settings.urls, side, self._pool, settings.manager_ca)
        self._link.on_lanes = self._lanes_known
        self._link.on_refused = self._refused
        self._registry = Registry(self._link, self._registered, settings.files)
        self._fresh: list[Task[..., Any]] = []
        self._hurry = asyncio.Event()
        self._closing: asyncio.Task[bool] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._pool.is_ending = lambda: self._keeper is not None and self._keeper.cancelling() > 0

    @classmethod
    async def create(
        cls,
        server: Any = None,
        *,
        server_secret: str | None = None,
        manager_host: str | Sequence[str] | None = None,
        manager_port: int | None = None,
        manager_secret: str | None = None,
        jobs_queue: str | None = None,
        max_tasks_per_worker: int | None = None,
        name: str | None = None,
        manager_url: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Self:
        """Start a worker and connect it.

        Args:
            server: the FastAPI app with which the worker ends; None in a script.
            server_secret: protects what the worker itself serves.
            manager_host: where the manager is, `host` or `host:port`; `MANAGER_HOST`, else 127.0.0.1. A list, where several managers have one
                database: the worker connects to any of them, and moves to another when it loses that one.
            manager_port: the port of hosts that name none; `MANAGER_PORT`, else 8220.
            manager_secret: the manager's `server_secret`; `EASYJOBS_SECRET` if not given.
            jobs_queue: the queue of all tasks of this worker.
            max_tasks_per_worker: how many jobs run at once.
            name: for people; host and process id if not given.
            manager_url: the manager's address, `https://host/prefix`, instead of host and port: also that of a load balancer before several
                managers; or a list of addresses. `EASYJOBS_MANAGER_URL`.
            settings: any field of `WorkerSettings`: grace_s, manager_tls, manager_ca, task_dir.

        Raises:
            ConfigurationError: a setting is missing or wrong.
            AccessRefused: the manager refuses the secret or the version, or its certificate does not hold.

        A manager that is not there yet is no error: the worker keeps trying.
        """
        refuse_in_child("EasyJobsWorker.create()")
        read = WorkerSettings.read(
            secret=manager_secret,
            own_secret=server_secret,
            manager_host=manager_host,
            manager_port=manager_port,
            manager_url=manager_url,
            jobs_queue=jobs_queue,
            max_tasks_per_worker=max_tasks_per_worker,
            **settings,
        )
        worker = cls(read, name or f"{socket.gethostname()}-{os.getpid()}")
        await worker._start(server)
        return worker

    async def _start(self, server: Any) -> None:
        self._link.start()
        try:
            async with asyncio.timeout(FIRST_S):
                await asyncio.shield(self._link.first)
        except TimeoutError:
            self._link.first.cancel()
            event(log, WARNING, "worker.waits", url=" ".join(self.settings.urls), reason="no manager answers yet; trying on")
        except BaseException:
            await self._link.close(0)
            raise
        self._keeper = self._loop.create_task(self._keep(), name="easyjobs-keeper")
        drain.join(self)
        atexit.register(self._at_exit)
        handlers = getattr(getattr(server, "router", None), "on_shutdown", None)
        if isinstance(handlers, list):
            handlers.append(self.close)
        memory.settle()
        event(log, INFO, "worker.started", worker=self.name, queue=self.queue, slots=self._pool.slots)

    def toggle_workers(self, *, pause: bool) -> None:
        """Start no more jobs in this process, or go on. Running jobs run on; those that have not started go to other workers."""
        self._pool.pause(pause)

    # --- tasks ------------------------------------------------------------------------------------------------------------------

    def _queues(self, namespace: str | Sequence[str] | None) -> Sequence[str]:
        if namespace not in (None, self.queue, [self.queue]):
            raise RegistrationError(
                f"namespace={namespace!r}: a worker's tasks are in its jobs_queue, {self.queue!r}: create a second worker for another queue"
            )
        return (self.queue,)

    def _registered(self, task: Task[..., Any]) -> None:
        self._fresh.append(task)
        if len(self._fresh) == 1:
            self._loop.call_soon_threadsafe(self._offer)

    def _offer(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._link.offer([NewTask(task.name, task.signature_json, task.task_options.to_json()) for task in fresh])

    def _lanes_known(self, lanes: list[tuple[str, int]]) -> None:
        """In the link's thread, before any job of these lanes comes."""
        for name, lane in lanes:
            task = self._registry.get(self.queue, name)
            if task is not None:
                self._pool.lanes[lane] = task

    # --- the end ----------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what runs and report it, within the grace; give back the rest, and disconnect. Can be called again."""
        await self.drain()

    async def drain(self) -> bool:
        """Close, and return whether everything was acknowledged."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(self.settings.grace_s), name="easyjobs-close")
        return await asyncio.shield(self._closing)

    def withdraw(self) -> None:
        """Take no new jobs."""
        self._link.withdraw()

    def hurry(self) -> None:
        """Wait no longer, neither for running jobs nor for a manager that is away."""
        self._hurry.set()
        self._link.hurry()

    async def _close(self, grace_s: float) -> bool:
        until = self._loop.time() + grace_s
        self._link.withdraw()
        await self._pool.drain(grace_s, self._hurry)
        unacked = await self._link.close(FLUSH_S, until - self._loop.time())
        if unacked:
            reason = "the manager did not acknowledge them; these jobs run again when the lease of this worker has ended"
            event(
                log,
                WARNING,
                "reports.undelivered",
                ended=self._link.undelivered,
                given_back=unacked - self._link.undelivered,
                reason=reason,
            )
        atexit.unregister(self._at_exit)
        if self._keeper is not None and not self._keeper.cancelling():
            self._keeper.cancel()
        drain.part(self)
        event(log, INFO if not unacked else WARNING, "worker.stopped", worker=self.name, unacked=unacked)
        return unacked == 0

    async def _keep(self) -> None:
        """Ends with the loop: where nobody closes the worker (a lifespan, a script), `asyncio.run` cancels this task, and with it all others."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._closing is None:
                self._hurry.set()
                await self._close(0)

    def _at_exit(self) -> None:
        if os.getpid() == self._pid:
            self._link.close_blocking(FLUSH_S)

    def _refused(self, refused: AccessRefused) -> None:
        """The manager came back and refuses us: this process has nothing to do any more."""
        log.error("this worker ends: %s", refused)
        drain.give_up(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _software() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"easyjobs {version('easyjobs')}"
    except PackageNotFoundError:
        return "easyjobs"
