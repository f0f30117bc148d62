"""One run: managers, workers, clients, a broker and a schedule under faults, from a seed to a history."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import hashlib
import json
import logging
import os
import random
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

import apsw
import msgspec

import easyjobs.domain.arguments as arguments_module
import easyjobs.manager as manager_module
import easyjobs.services.catalogue as catalogue_module
import easyjobs.tasks as tasks_module
import easyjobs.workers.link as link_module
from easyjobs.brokers.memory import MemoryBroker
from easyjobs.domain.job import IdempotencyKey
from easyjobs.domain.lifecycle import FINAL, JobState
from easyjobs.domain.message import Call
from easyjobs.domain.retry import RetryPolicy
from easyjobs.errors import EasyJobsError
from easyjobs.http import socket as endpoint
from easyjobs.manager import EasyJobsManager
from easyjobs.ports.store import SharedStore
from easyjobs.runtime import ids
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.settings import ManagerSettings, WorkerSettings
from easyjobs.tasks import current_job
from easyjobs.workers.worker import EasyJobsWorker
from faults.events import steps_in
from faults.history import Effect, History, Row
from faults.sim.loop import PROCESS, Clock, Loop, Process
from faults.sim.network import ManagerEnd, Network, WorkerEnd
from faults.sim.store import MemorySqliteStore, Server, View, in_memory

SECRET = "a-secret-that-only-the-simulation-knows-0123456789"
QUEUE = "SIM"
LEASE_S = 30.0
EVERY_S = 10  # of the schedule
END_S = 900.0  # virtual seconds within which all must be final after the last fault


@dataclass(frozen=True)
class Plan:
    """What a seed makes of a run."""

    seed: int
    managers: int = 3
    workers: int = 5
    jobs: int = 200
    store: str = "sqlite"
    has_faults: bool = True
    spoils: float = 0.0  # how often a frame is repeated or replayed
    resets_at_the_end: bool = True  # all connections, after the last fault: else those that lived through it go on
    through_balancer: bool = True  # a worker finds any manager at its address; else always the same one
    faults: tuple[str, ...] = (
        "kill_worker", "kill_manager", "freeze_worker", "freeze_manager", "reset", "hold_to_manager", "hold_to_worker", "cut_off", "refuse", "drain_worker",
        "cancel", "retry", "broker_down", "kill_fetcher",
    )  # fmt: skip

    @classmethod
    def of(cls, seed: int) -> Plan:
        chance = Random(seed)
        return cls(
            seed=seed,
            spoils=0.02 if seed % 10 == 7 else 0.0,
            has_faults=seed % 10 != 3,
            through_balancer=chance.random() < 0.7,
            resets_at_the_end=chance.random() < 0.3,
        )


class BrokerView:
    """`MemoryBroker` as one manager has it: what it held goes back when it dies."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        self.name, self.keep_us, self.watch_s = "memory", MemoryBroker.keep_us, 5.0
        self._held: list[tuple[str, bytes]] = []
        self._is_up = False
        world.broker_views.append(self)

    def _up(self) -> None:
        from easyjobs.errors import BrokerDown

        if self._world.broker_is_down or not self._is_up:
            self._is_up = False
            raise BrokerDown("the broker is down")

    async def connect(self) -> None:
        self._is_up = not self._world.broker_is_down
        self._up()

    async def consume(self, queue: str) -> None:
        self._up()

    async def fetch(self, queue: str, limit: int) -> list[Any]:
        from easyjobs.ports.broker import Delivery

        while True:
            self._up()
            if self._world.messages:
                break
            self._world.news_of_broker.clear()
            await self._world.news_of_broker.wait()
            await asyncio.sleep(self._world.chance.random() * 0.5)  # who comes first, and how many messages there are by then
        some = [self._world.messages.pop(0) for _ in range(min(limit, len(self._world.messages), 7))]
        self._held += some
        self._world.fetched(self._process)
        return [Delivery(body, id, id) for id, body in some]

    async def ack(self, queue: str, deliveries: Any) -> None:
        await asyncio.sleep(self._world.chance.random() * 0.02)
        self._up()
        done = {delivery.tag for delivery in deliveries}
        self._held = [message for message in self._held if message[0] not in done]

    async def publish(self, queue: str, messages: Any) -> None:
        self._up()

    async def check(self) -> None:
        self._up()

    async def close(self) -> None:
        self.give_back()

    def give_back(self) -> None:
        self._is_up = False
        self._world.messages[:0] = self._held
        self._held = []
        self._world.news_of_broker.set()


class Manager:
    """One incarnation of a manager process."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.process = Process(f"manager-{number}-{world.next_name()}")
        self.view = View(world.server, self.process)
        self.broker = BrokerView(world, self.process)
        self.is_up = False
        self.process.spawn(self._start())

    async def _start(self) -> None:
        self.world.opening = self
        assert isinstance(self.view, SharedStore), "a manager that takes its store for its own shows nothing"
        self.manager = manager = EasyJobsManager(None, self.world.manager_settings)  # type: ignore[arg-type]
        await manager._catalogue.load()
        await manager._dispatcher.load()
        await manager._control.load()
        await manager._own.join(self.process.name, 0, manager._loopback)
        for service in manager._background:
            await service.start()
        for consumer in manager._consumers:
            await consumer.start()
        self.is_up = True

    async def serve(self, end: ManagerEnd) -> None:
        await endpoint.serve(end, self.manager._socket_side)  # type: ignore[arg-type]


class Worker:
    """One incarnation of a worker process."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.process = Process(f"worker-{number}-{world.next_name()}")
        world.by_process[self.process.name] = self
        self.process.spawn(self._start())

    async def _start(self) -> None:
        settings = self.world.worker_settings.model_copy(update={"manager_host": (f"host-{self.number}",)})
        self.worker = worker = EasyJobsWorker(settings, f"worker-{self.number}")
        for fn, options in TASKS:
            worker.task(fn, **options)
        link = worker._link
        link._loop = asyncio.get_running_loop()
        link._up.set()
        self.link = asyncio.get_running_loop().create_task(link._live())

    async def drain(self) -> None:
        """As on SIGTERM."""
        worker, loop = self.worker, asyncio.get_running_loop()
        until = loop.time() + 5.0
        worker.withdraw()
        await worker._pool.drain(5.0, worker._hurry)
        link = worker._link
        link._hand_over()
        link._begin_end(3.0, until - loop.time())
        while not link._is_over:
            await asyncio.sleep(0.1)


# --- tasks ----------------------------------------------------------------------------------------------------------------------


class _Run:
    """Writes the start and the end of a body."""

    def __init__(self, token: str) -> None:
        self.world = World.current
        process = PROCESS.get()
        assert process is not None
        self.process, self.token = process, token
        job = current_job()
        self.job, self.attempt = job.job_id, job.attempt
        self.name = f"r{self.world.next_name()}"

    def _write(self, what: str) -> None:
        at = self.world.loop.time()
        self.world.history.effects.append(Effect(self.token, self.name, self.process.name, what, at, self.attempt, self.job))

    def __enter__(self) -> Self:
        self._write("start")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._write("done" if kind is None else "cancelled" if kind is asyncio.CancelledError else "raised")

    @property
    def result(self) -> dict[str, str]:
        return {"token": self.token, "run": self.name}


async def short(token: str) -> dict[str, str]:
    with _Run(token) as run:
        await asyncio.sleep(run.world.chance.random())
    return run.result


async def long(token: str) -> dict[str, str]:
    with _Run(token) as run:
        await asyncio.sleep(run.world.chance.random() * 60)
    return run.result


async def flaky(token: str) -> dict[str, str]:
    with _Run(token) as run:
        await asyncio.sleep(run.world.chance.random() * 2)
        if run.world.chance.random() < 0.5:
            raise ValueError("flaky")
    return run.result


async def first(token: str) -> dict[str, str]:
    with _Run(token) as run:
        await asyncio.sleep(run.world.chance.random())
        if run.world.chance.random() < 0.2:
            raise ValueError("no")
    return run.result


async def second(before: dict[str, str]) -> dict[str, str]:
    with _Run(before["token"] + "+2") as run:
        await asyncio.sleep(run.world.chance.random() * 3)
    return run.result


async def helper(reason: str) -> dict[str, str]:
    with _Run("helper") as run:
        await asyncio.sleep(0.1)
    return run.result


async def left(token: str) -> dict[str, str]:
    with _Run(token + "+left") as run:
        await asyncio.sleep(run.world.chance.random() * 2)
    return run.result


async def joined(token: str) -> dict[str, str]:
    with _Run(token) as run:
        await asyncio.sleep(0.5)
    return run.result


async def parent(token: str) -> dict[str, str]:
    """Calls two jobs one after the other."""
    with _Run(token) as run:
        process = PROCESS.get()
        assert process is not None
        registry = run.world.by_process[process.name].worker._registry
        child = registry.get(QUEUE, "called")
        assert child is not None
        await child(token + "+a")
        await child(token + "+b")
    return run.result


async def called(token: str) -> dict[str, str]:
    with _Run(token) as run:
        await asyncio.sleep(run.world.chance.random() * 4)
    return run.result


async def ticked() -> dict[str, str]:
    with _Run("tick") as run:
        await asyncio.sleep(0.2)
    return run.result


TASKS: list[tuple[Any, dict[str, Any]]] = [
    (short, {}),
    (long, {"max_crashes": 10}),
    (flaky, {"retry_policy": RetryPolicy(max_retries=2, base=1.0, cap=5.0)}),
    (first, {"run_after": "second", "on_failure": "helper", "retry_policy": "never"}),
    (second, {}),
    (helper, {}),
    (left, {}),
    (joined, {"run_before": ["left"]}),
    (parent, {"max_crashes": 10}),
    (called, {"max_crashes": 10}),
    (ticked, {"schedule": f"*/{EVERY_S} * * * * *", "catch_up": "all", "catch_up_window": 3600, "max_crashes": 10}),
]
MIX = ["short"] * 8 + ["long"] * 2 + ["flaky"] * 3 + ["first"] * 3 + ["joined"] * 2 + ["parent"] * 2


# --- the world ------------------------------------------------------------------------------------------------------------------


class World:
    """See the module's docstring."""

    current: World

    def __init__(self, plan: Plan) -> None:
        World.current = self
        self.plan = plan
        self.chance, self.bytes = Random(plan.seed), Random(f"bytes {plan.seed}")
        ids._forget()  # what a run before this one had in stock
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        self.loop = loop
        self.clock = Clock(self.loop)
        self.history = History(lease_s=LEASE_S, has_faults=plan.has_faults, duplicate_frames=plan.spoils > 0)
        self.history.successors = {f"{QUEUE}/first": (f"{QUEUE}/second",)}
        self.history.helpers = {f"{QUEUE}/first": f"{QUEUE}/helper"}
        self.network = Network(self.loop, self.chance, latency_s=0.005, spoils=plan.spoils)
        self.messages: list[tuple[str, bytes]] = []
        self.news_of_broker = asyncio.Event()  # there may be messages, or it went down
        self.broker_is_down = False
        self.kills_fetcher = False
        self.broker_views: list[BrokerView] = []
        self.by_process: dict[str, Worker] = {}
        self.frozen: dict[Process, float] = {}
        self.names = 0
        self.opening: Manager
        self.managers: list[Manager] = []
        self.workers: list[Worker] = []
        self.trace: list[str] = []
        self.manager_settings = _manager_settings()
        self.worker_settings = _worker_settings()

    def next_name(self) -> int:
        self.names += 1
        return self.names

    def note(self, what: str) -> None:
        self.trace.append(f"{self.loop.time():9.3f} {what}")

    async def run(self) -> History:
        store = MemorySqliteStore(clock=self.clock, lease_s=LEASE_S)
        await store.open()
        self.store = store
        self.server = Server(store, self.loop, self.chance, self.clock, latency_s=0.01)
        self.managers = [Manager(self, number) for number in range(self.plan.managers)]
        await self.until(lambda: all(manager.is_up for manager in self.managers), 60)
        self.workers = [Worker(self, number) for number in range(self.plan.workers)]
        await self.until(self._known, 60)
        first_tick = self.clock.now()
        clients = [asyncio.create_task(self._client(number)) for number in range(4)]
        faults = asyncio.create_task(self._inject())
        await asyncio.wait([*clients, faults])
        for task in (*clients, faults):
            task.result()
        await self._heal()
        await self._settle()
        self._collect(first_tick)
        return self.history

    def _known(self) -> bool:
        return all(manager.manager._catalogue.known(QUEUE, "ticked") is not None for manager in self.managers if manager.is_up)

    async def until(self, condition: Callable[[], bool], within_s: float) -> bool:
        end = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > end:
                return False
            await asyncio.sleep(0.25)
        return True

    # --- who uses it

    def _live(self) -> list[Manager]:
        return [manager for manager in self.managers if manager.is_up and not manager.process.is_dead]

    async def ask(self, make: Callable[[Manager], Any], within_s: float = 5.0) -> Any:
        """Ask one of the managers, as over HTTP: what it raises is raised, and no answer is a TimeoutError."""
        live = self._live()
        if not live:
            await asyncio.sleep(0.5)
            raise TimeoutError
        manager = self.chance.choice(live)
        await asyncio.sleep(self.chance.random() * 0.01)
        asked = manager.process.spawn(make(manager))
        done, _ = await asyncio.wait([asked], timeout=within_s)
        if not done:
            raise TimeoutError
        return asked.result()

    async def _client(self, number: int) -> None:
        chance = self.chance
        for n in range(self.plan.jobs // 4):
            await asyncio.sleep(chance.random() * 2)
            token = f"c{number}-{n}"
            task = chance.choice(MIX)
            if chance.random() < 0.15:
                self.messages.append((token, json.dumps({"namespace": QUEUE, "name": task, "kwargs": {"token": token}}).encode()))
                self.history.published.add(token)
                self.news_of_broker.set()
                continue
            key = None
            if chance.random() < 0.5:
                key = IdempotencyKey("client", f"{QUEUE}/{task}", token, token.encode())
                self.history.keyed.add(token)
            call = Call(QUEUE, task, [], {"token": token}, {"delay": chance.random() * 20} if chance.random() < 0.1 else {})
            self.history.unknown.add(token)
            for _ in range(20 if key else 1):
                try:
                    [job] = await self.ask(lambda manager, call=call, key=key: manager.manager._intake.submit_calls([call], key))
                except (TimeoutError, EasyJobsError):
                    await asyncio.sleep(1)
                    continue
                self.history.unknown.discard(token)
                self.history.acked[token] = job
                break

    # --- faults

    async def _inject(self) -> None:
        chance = self.chance
        if not self.plan.has_faults:
            return
        await asyncio.sleep(3)
        for _ in range(chance.randrange(6, 14)):
            fault = chance.choice(self.plan.faults)
            self.note(fault)
            await getattr(self, f"_{fault}")()
            await asyncio.sleep(chance.random() * 12)

    def _replace_worker(self, worker: Worker) -> None:
        if worker in self.workers:
            self.workers[self.workers.index(worker)] = Worker(self, worker.number)

    async def _kill_worker(self) -> None:
        worker = self.chance.choice(self.workers)
        self.note(f"  {worker.process.name}")
        worker.process.kill()
        for connection in self.network.of(worker.process):
            if self.chance.random() < 0.7:
                connection.reset()
            else:
                connection.to_manager.is_held = True  # its machine is gone: nobody says so
        self.loop.call_later(self.chance.random() * 10, self._replace_worker, worker)

    async def _drain_worker(self) -> None:
        worker = self.chance.choice(self.workers)
        if worker.process.is_dead or worker.process.is_frozen or not hasattr(worker, "worker"):
            return
        self.note(f"  {worker.process.name}")
        worker.process.spawn(worker.drain())
        self.loop.call_later(12, self._end_drained, worker)

    def _end_drained(self, worker: Worker) -> None:
        if worker in self.workers:
            worker.process.kill()
            for connection in self.network.of(worker.process):
                connection.reset()
            self._replace_worker(worker)

    async def _kill_fetcher(self) -> None:
        """The next manager that gets messages dies before, while or after they are stored and acknowledged."""
        self.kills_fetcher = True

    def fetched(self, process: Process) -> None:
        if self.kills_fetcher:
            self.kills_fetcher = False
            for manager in self.managers:
                if manager.process is process:
                    self.loop.call_later(self.chance.random() * 0.06, self._kill, manager, context=contextvars.Context())

    async def _kill_manager(self) -> None:
        self._kill(self.chance.choice(self.managers))

    def _kill(self, manager: Manager) -> None:
        self.note(f"  {manager.process.name}")
        if manager.process.is_dead:
            return
        manager.process.kill()
        manager.broker.give_back()
        for connection in self.network.of(manager.process):
            connection.reset()
        self.loop.call_later(self.chance.choice([1, 5, 50]) * self.chance.random(), self._restart_manager, manager)

    def _restart_manager(self, manager: Manager) -> None:
        if manager in self.managers:
            self.managers[self.managers.index(manager)] = Manager(self, manager.number)

    async def _freeze(self, process: Process, seconds: float) -> None:
        if process.is_dead or process.is_frozen:
            return
        self.note(f"  {process.name} for {seconds:.1f} s")
        process.freeze()
        self.frozen[process] = self.loop.time()
        self.loop.call_later(seconds, self._thaw, process)

    def _thaw(self, process: Process) -> None:
        since = self.frozen.pop(process, None)
        if since is not None:
            process.thaw()
            self.history.stopped.append((process.name, since, self.loop.time() + 0.001))

    async def _freeze_worker(self) -> None:
        await self._freeze(self.chance.choice(self.workers).process, self.chance.choice([5, 20, 75]) * (0.5 + self.chance.random()))

    async def _freeze_manager(self) -> None:
        await self._freeze(self.chance.choice(self.managers).process, self.chance.choice([5, 20, 75]) * (0.5 + self.chance.random()))

    async def _reset(self) -> None:
        for connection in list(self.network.connections):
            if self.chance.random() < 0.5:
                connection.reset()

    async def _hold(self, direction: str) -> None:
        for connection in list(self.network.connections):
            if self.chance.random() < 0.4:
                pipe = getattr(connection, direction)
                pipe.is_held = True
                self.note(f"  {connection.worker.name}")
                if self.chance.random() < 0.5:
                    self.loop.call_later(self.chance.random() * 40, pipe.release)

    async def _hold_to_manager(self) -> None:
        await self._hold("to_manager")

    async def _hold_to_worker(self) -> None:
        await self._hold("to_worker")

    async def _cut_off(self) -> None:
        """A worker's packets go nowhere, in both directions, and it cannot connect again."""
        name = self.chance.choice(self.workers).process
        self.note(f"  {name.name}")
        self.network.cut_off.add(name.name)
        for connection in self.network.of(name):
            connection.to_manager.is_held = connection.to_worker.is_held = True
        self.loop.call_later(self.chance.choice([10, 60]) * (0.5 + self.chance.random()), self.network.cut_off.discard, name.name)

    async def _refuse(self) -> None:
        """The store refuses calls for a while, or does not answer at all."""
        if self.chance.random() < 0.5:
            self.server.refuses = 0.3
            self.loop.call_later(5 * self.chance.random(), setattr, self.server, "refuses", 0.0)
        else:
            self.server.is_down = True
            self.loop.call_later(20 * self.chance.random(), setattr, self.server, "is_down", False)

    async def _broker_down(self) -> None:
        self.broker_is_down = True
        for view in self.broker_views:
            view.give_back()
        self.loop.call_later(10 * self.chance.random(), setattr, self, "broker_is_down", False)

    async def _cancel(self) -> None:
        await self._wish("cancel", 0.1)

    async def _retry(self) -> None:
        await self._wish("retry", 1.0)

    async def _wish(self, verb: str, share: float) -> None:
        ids = [uuid.UUID(job).bytes for job in self.history.acked.values() if self.chance.random() < share]
        with contextlib.suppress(TimeoutError, EasyJobsError):
            await self.ask(lambda manager: _awaited(getattr(manager.manager._control, verb)(ids)))

    # --- the end

    async def _heal(self) -> None:
        await asyncio.sleep(60)  # what was planned to go on has gone on
        self.server.refuses, self.server.is_down, self.broker_is_down, self.kills_fetcher = 0.0, False, False, False
        self.network.cut_off.clear()
        self.network.spoils = 0.0
        for process in list(self.frozen):
            self._thaw(process)
        for connection in list(self.network.connections):
            if self.plan.resets_at_the_end:
                connection.reset()
            elif connection.to_manager.is_held or connection.to_worker.is_held:
                connection.to_manager.release()
                connection.to_worker.release()
        self.healed_at = self.loop.time()

    async def _settle(self) -> None:
        """Until nothing is left to do."""
        ticking = self.store.db.execute("select lane from tasks where name = 'ticked'").get

        def is_quiet() -> bool:
            left = [n for (lane, state), n in self.store._writer.counts.items() if n and lane != ticking and JobState(state) not in FINAL]
            return not left and not self.messages and not any(view._held for view in self.broker_views)

        await asyncio.sleep(5)  # what was asked of a manager that stood still is done now
        await self.until(is_quiet, END_S)
        await asyncio.sleep(1.0)
        self.history.notes["settled_s"] = self.loop.time() - self.healed_at

    def _collect(self, first_tick: int) -> None:
        db = self.store.db
        self.history.steps = steps_in(db)
        self.history.renewals = self.server.renewals
        self.history.rows = rows_in(db)
        self.history.waiting = {token for token, _ in self.messages} | {token for view in self.broker_views for token, _ in view._held}
        self.history.quarantined = {str(key) for (key,) in db.execute("select key from quarantine")}
        step = EVERY_S * 1_000_000
        begins = [row.run_at for row in self.history.rows if row.task == f"{QUEUE}/ticked" and row.run_at]
        start = min([first_tick, *begins])
        now = self.clock.now()
        ticks = [tick for tick in range(start - start % step, now + 1, step)]
        self.history.ticks = {f"{QUEUE}/ticked": [tick for tick in ticks if first_tick < tick <= now - 15_000_000]}
        self.history.optional_ticks = {f"{QUEUE}/ticked": set(ticks)}

    def fingerprint(self) -> str:
        """The same for two runs of a seed."""
        told = hashlib.sha256()
        for step in self.history.steps:
            told.update(repr(step._replace(result=None)).encode())
        for row in self.history.rows:
            told.update(row.id.encode())
        return told.hexdigest()[:16]


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def rows_in(db: apsw.Connection) -> list[Row]:
    """All jobs of a database."""
    found = []
    for row in db.execute(
        "select j.seq, j.id, t.queue || '/' || t.name, j.state, j.attempt, j.round, j.failures, j.crashes, j.args, j.result, j.parent_seq, j.edge, "
        "j.parent_round, j.run_at, j.max_retries, j.error, j.max_crashes from jobs j join tasks t using (lane) order by j.seq"
    ):
        args, kwargs = json.loads(row[8])
        token = kwargs.get("token") or (args[0] if args and isinstance(args[0], str) else "")
        result = json.loads(row[9]) if row[9] else None
        run = result.get("run", "") if isinstance(result, dict) else ""
        kind = json.loads(row[15]).get("kind", "") if row[15] else ""
        found.append(Row(row[0], id_text(row[1]), row[2], *row[3:8], token, run, *row[10:15], kind, row[16]))  # type: ignore[call-arg]
    return found


# --- the product, made to run in here ---------------------------------------------------------------------------------------------


_settings: dict[str, Any] = {}


def _manager_settings() -> ManagerSettings:
    if "manager" not in _settings:
        _settings["manager"] = ManagerSettings.read(secret=SECRET, store="memory:", lease_s=LEASE_S, manager_slots=0)
    read: ManagerSettings = _settings["manager"]
    return read


def _worker_settings() -> WorkerSettings:
    if "worker" not in _settings:
        _settings["worker"] = WorkerSettings.read(secret=SECRET, jobs_queue=QUEUE, max_tasks_per_worker=6)
    read: WorkerSettings = _settings["worker"]
    return read


class _Connecting:
    """What `connect(…)` returns in here: to be entered."""

    def __init__(self, url: str) -> None:
        process = PROCESS.get()
        assert process is not None
        self._number, self._process = int(url.partition("host-")[2].partition(":")[0]), process

    async def __aenter__(self) -> WorkerEnd:
        world = World.current
        managers = world.managers
        target = managers[self._number % len(managers)]
        if world.plan.through_balancer:
            target = world.chance.choice(world._live() or managers)
        process = target.process if target.is_up else None
        self._end = await world.network.connect(self._process, process, target.serve)
        return self._end

    async def __aexit__(self, *error: object) -> None:
        await self._end.__aexit__(*error)


def _once_a_function(make: Callable[..., Any]) -> Callable[..., Any]:
    """Workers of a run, and of all runs, have the same tasks: what pydantic makes of their signatures is made once."""
    made: dict[Any, Any] = {}

    def known(fn: Any, **about: Any) -> Any:
        if fn not in made:
            made[fn] = make(fn, **about)
        return made[fn]

    return known


def _once_a_value(make: Callable[[Any], Any], key: Callable[[Any], bytes]) -> Callable[[Any], Any]:
    """The same for what managers make of what their workers offer: it depends on nothing but what is offered, and is not changed."""
    made: dict[bytes, Any] = {}

    def known(value: Any) -> Any:
        of = key(value)
        if of not in made:
            made[of] = make(value)
        return made[of]

    return known


_decode = _once_a_value(catalogue_module.decode, bytes)  # type: ignore[attr-defined]
_compile_schema = _once_a_value(arguments_module.compile_schema, msgspec.json.encode)  # type: ignore[attr-defined]
_describe, _converter = _once_a_function(tasks_module.describe), _once_a_function(tasks_module.Converter)  # type: ignore[attr-defined]


class _Now:
    """The clock of ids that are made without one being given: with the machine's a seed would not replay, for ids have an order."""

    def now(self) -> int:
        return World.current.clock.now()


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Within this the product's parts meet the simulation instead of the system."""
    before: list[tuple[Any, str, Any]] = []

    def put(module: Any, name: str, value: Any) -> None:
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def time() -> float:
        return World.current.loop.time()

    for name, module in list(sys.modules.items()):
        if name.startswith("easyjobs") and hasattr(module, "stopwatch"):
            put(module, "stopwatch", time)
    put(manager_module, "open_store", lambda *_, **__: World.current.opening.view)
    put(manager_module, "SystemClock", lambda: World.current.clock)
    put(ids, "_clock", _Now())
    put(catalogue_module, "decode", _decode)
    put(arguments_module, "compile_schema", _compile_schema)
    put(tasks_module, "describe", _describe)
    put(tasks_module, "Converter", _converter)
    put(manager_module, "_open_brokers", lambda _: [World.current.opening.broker])
    put(os, "urandom", lambda n: World.current.bytes.randbytes(n))  # noqa: PLW0108 (there is a new world in each run)
    put(link_module, "connect", lambda url, **_: _Connecting(url))
    try:
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)


@dataclass
class Outcome:
    """What a seed came to. `trace`: the faults, with their instants."""

    seed: int
    wrong: list[str]
    history: History
    trace: list[str]
    fingerprint: str
    virtual_s: float
    turns: int = 0
    crashes: list[str] = field(default_factory=list)


def simulate(plan: Plan) -> Outcome:
    """Run one seed and judge it."""
    from faults.invariants import judge

    sys.unraisablehook = lambda _: None  # of coroutines that are thrown away at the end of a run
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.disable()  # a coroutine of this run that is thrown away in the middle of it would draw from the chances of others
    random.seed(plan.seed)
    loop = Loop()
    crashes: list[str] = []

    def failed(_: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, EasyJobsError | TimeoutError):
            crashes.append(f"{context.get('message')}: {type(error).__name__}: {error}")

    loop.set_exception_handler(failed)
    with patched(), in_memory():
        try:

            async def whole() -> World:
                world = World(plan)
                await world.run()
                return world

            world = loop.run_until_complete(whole())
            if not world.history.acked or not world.history.effects:
                crashes.append("nothing was acknowledged, or nothing ran: this seed shows nothing")
            outcome = Outcome(
                plan.seed, judge(world.history), world.history, world.trace, world.fingerprint(), loop.virtual - 1000.0, loop.turns, crashes
            )
            world.store._reader.close()  # type: ignore[union-attr]
            world.store._writer.close()
        finally:
            loop.set_exception_handler(lambda *_: None)
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.is_over = True
            loop.close()
            gc.enable()
    return outcome
