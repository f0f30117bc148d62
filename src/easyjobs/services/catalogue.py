"""Which tasks exist, in which queue, with which signature and options: durable, so that it outlives workers and restarts.

A task is visible (in OpenAPI, and for submits) while a session offers it and for `GRACE_S` after its last offer.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from easyjobs.domain.arguments import Arguments
from easyjobs.domain.job import MAX_DEPTH_OF_CHAIN, QUEUE_NAME, UNLIMITED, Spec, TaskRow
from easyjobs.domain.replies import MAX_ADDRESS, Reply, address
from easyjobs.domain.schedule import TaskSchedules
from easyjobs.domain.signature import ANYTHING, Signature, decode, encode
from easyjobs.domain.timing import schedules_of
from easyjobs.domain.unique import UniqueOptions
from easyjobs.errors import LONGEST_S, AmbiguousTask, RegistrationError, UnknownTask
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store

log = logging.getLogger("easyjobs.catalogue")

GRACE_S: Final = 600  # a task that nobody offers is known for so long
MAX_TASKS: Final = 10_000  # in all
MAX_NAMED: Final = 100  # tasks that one option names
MAX_OPTIONS: Final = 16 * 1024  # bytes of one task's options
DEFAULT_QUEUE: Final = "DEFAULT"
NAMING: Final = ("run_before", "run_after", "on_failure")  # options that name tasks
TASK_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class CatalogueTask:
    """A task as the manager knows it. `workers` counts the live sessions that offer it; `offered_at` is in microseconds."""

    __slots__ = (
        "arguments", "is_placeholder", "is_plain", "lane", "max_depth", "name", "offered_at", "options", "queue", "reply", "row", "run_before",
        "schedules", "signature", "spec", "unique", "workers",
    )  # fmt: skip

    def __init__(self, row: TaskRow) -> None:
        self.row = row
        self.lane, self.queue, self.name, self.offered_at = row.lane, row.queue, row.name, row.offered_at
        self.signature: Signature = decode(row.signature)
        self.arguments = Arguments(self.signature, f"{row.queue}/{row.name}")
        self.options: dict[str, Any] = msgspec.json.decode(row.options, type=dict[str, Any])
        self.spec = spec_of(row.lane, self.options)
        self.run_before, *_ = [names_of(self.options, option) for option in NAMING]
        results_to = self.options.get("results_to")
        if not (results_to is None or (isinstance(results_to, str) and len(results_to) <= MAX_ADDRESS)):
            raise ValueError(f"results_to is a queue of a broker, of at most {MAX_ADDRESS} characters, not {str(results_to)[:80]!r}")
        self.unique: UniqueOptions | None = self.options.get("unique")
        self.max_depth: int = self.options.get("max_chain_depth", MAX_DEPTH_OF_CHAIN)
        if not (isinstance(self.max_depth, int) and 1 <= self.max_depth <= 1_000_000):
            raise ValueError(f"max_chain_depth must be 1 to 1,000,000, not {self.max_depth!r}")
        if self.unique is not None:
            msgspec.convert(self.unique, UniqueOptions)
        self.reply: Reply | None = None  # where the ends of its jobs are told: set by the catalogue
        self.is_plain = not self.run_before and self.unique is None  # its jobs are a lane and arguments
        self.is_placeholder = bool(self.options.get("placeholder"))  # named by another task's options, never offered
        try:
            self.schedules = schedules_of(self.options, self.arguments)
        except RegistrationError as why:
            raise ValueError(str(why)) from why
        self.workers = 0


def names_of(options: dict[str, Any], option: str) -> tuple[str, ...]:
    """The tasks that an option names: none, one or several. Raises: ValueError."""
    names = options.get(option) or ()
    names = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, list | tuple) else (names,)
    if not all(isinstance(name, str) and _is_reference(name) for name in names):
        raise ValueError(f"{option} names tasks as <name> or <queue>/<name>, not {str(names)[:200]}")
    if len(names) > MAX_NAMED:
        raise ValueError(f"{option} names {len(names)} tasks, the limit is {MAX_NAMED}")
    return names


def _is_reference(name: str) -> bool:
    queue, slash, task = name.rpartition("/")
    return bool(TASK_NAME.fullmatch(task)) and (not slash or bool(QUEUE_NAME.fullmatch(queue)))


def spec_of(lane: int, options: dict[str, Any]) -> Spec:
    """What of a task's options each of its jobs carries. Raises: ValueError for options that no worker of ours sends."""
    retries, crashes, priority = options.get("max_retries", 1), options.get("max_crashes", 3), options.get("priority", 0)
    if not (isinstance(retries, int) and UNLIMITED <= retries <= 1_000_000):
        raise ValueError(f"max_retries must be -1 (no limit) to 1,000,000, not {retries!r}")
    if not (isinstance(crashes, int) and 1 <= crashes <= 1000):
        raise ValueError(f"max_crashes must be 1 to 1,000, not {crashes!r}")
    if not (isinstance(priority, int) and abs(priority) <= 1_000_000):
        raise ValueError(f"priority must be -1,000,000 to 1,000,000, not {priority!r}")
    expires_us, ttl_us, timeout_us = (options.get(name) for name in ("expires_us", "ttl_us", "timeout_us"))
    for value in (expires_us, ttl_us):
        if value is not None and not (isinstance(value, int) and 0 <= value <= LONGEST_S * 1_000_000):
            raise ValueError(f"expires and result_ttl are 0 to ten years, not {value!r} microseconds")
    if timeout_us is not None and not (isinstance(timeout_us, int) and 0 < timeout_us <= 366 * 86_400_000_000):
        raise ValueError(f"timeout_us must be 1 to that of a year, or null, not {timeout_us!r}")
    return Spec(
        lane=lane, max_retries=retries, max_crashes=crashes, priority=priority, expires_us=expires_us, ttl_us=ttl_us, timeout_us=timeout_us
    )


class Catalogue:
    """The tasks in memory, kept equal to the store's. `version` changes whenever what is visible, or how it looks, changes."""

    def __init__(self, store: Store, clock: Clock, brokers: Sequence[str] = (), results_to: str | None = None) -> None:
        """`brokers`: the names of those that there are. `results_to`: where the ends of jobs are told whose task does not say it."""
        self._store, self._clock = store, clock
        self._brokers, self._results_to = tuple(brokers), results_to
        self._tasks: dict[tuple[str, str], CatalogueTask] = {}
        self._lanes: dict[int, CatalogueTask] = {}
        self._version = 0
        self._next_end: int | None = None
        self.on_schedules: Callable[[], None] = lambda: None  # called when an offer has changed a schedule
        self.on_offers: Callable[[], None] = lambda: None  # called when tasks were offered
        self.has_successors = False  # whether any task has run_after

    async def load(self) -> None:
        """Read the catalogue from the store."""
        for row in await self._store.tasks():
            try:
                self._keep(CatalogueTask(row))
            except ValueError as why:  # written by another version: the task comes back with its worker
                log.warning("the stored task %s/%s cannot be read: %s", row.queue, row.name, why)

    async def refresh(self) -> None:
        """Learn what other managers were offered meanwhile."""
        for row in await self._store.tasks():
            known = self._tasks.get((row.queue, row.name))
            if known is not None and known.row.signature == row.signature and known.row.options == row.options:
                was_visible = self._is_visible(known)
                known.offered_at = max(known.offered_at, row.offered_at)
                if was_visible != self._is_visible(known):
                    self._version += 1
                continue
            try:
                self._keep(CatalogueTask(row))
            except ValueError as why:  # of a manager of another version
                log.warning("the task %s/%s of another manager cannot be read: %s", row.queue, row.name, why)

    def learn(self, tasks: Iterable[CatalogueTask]) -> None:
        """Take tasks that were read elsewhere."""
        for task in tasks:
            self._keep(task)

    def _keep(self, task: CatalogueTask) -> None:
        before = self._tasks.get((task.queue, task.name))
        if before is not None:
            task.workers = before.workers
        self._address(task)
        self._tasks[task.queue, task.name] = self._lanes[task.lane] = task
        self.has_successors = self.has_successors or bool(task.options.get("run_after"))
        self._version += 1

    def _address(self, task: CatalogueTask) -> None:
        results_to = task.options.get("results_to") or self._results_to
        if results_to is None:
            return
        try:
            task.reply = Reply(*address(results_to, self._brokers))
            task.is_plain = False
        except ValueError as why:
            log.error("the results of %s/%s are told to nobody: results_to=%s", task.queue, task.name, why)

    @property
    def version(self) -> int:
        """Changes whenever the visible set, or how it looks, may have changed."""
        if self._next_end is not None and self._clock.now() >= self._next_end:
            self._next_end = None
            self._version += 1
        return self._version

    def _is_visible(self, task: CatalogueTask) -> bool:
        return task.workers > 0 or (not task.is_placeholder and self._clock.now() < task.offered_at + GRACE_S * 1_000_000)

    def is_visible(self, task: CatalogueTask) -> bool:
        """Whether a session offers the task, or did so less than `GRACE_S` ago."""
        return self._is_visible(task)

    def find(self, queue: str | None, name: str, within: Collection[str] | None = None) -> CatalogueTask:
        """The visible task of this name. `queue` None: the only one, else that in DEFAULT. `within`: as if there were these queues only.

        Raises: UnknownTask, AmbiguousTask.
        """
        if queue is not None:
            task = self._tasks.get((queue, name))
            if task is None or not self._is_visible(task) or (within is not None and queue not in within):
                raise UnknownTask(queue, name, self._near(name, within))
            return task
        found = [
            task
            for task in self._tasks.values()
            if task.name == name and self._is_visible(task) and (within is None or task.queue in within)
        ]
        if not found:
            raise UnknownTask(None, name, self._near(name, within))
        if len(found) > 1:
            default = [task for task in found if task.queue == DEFAULT_QUEUE]
            if not default:
                raise AmbiguousTask(name, [task.queue for task in found])
            return default[0]
        return found[0]

    def _near(self, name: str, within: Collection[str] | None = None) -> list[str]:
        if len(name) > 200:
            return []
        tasks = [task for task in list(self._tasks.values()) if within is None or task.queue in within]
        visible = [task for task in tasks if self._is_visible(task)][:1000]
        same = [f"{task.queue}/{task.name}" for task in visible if task.name == name]
        close = difflib.get_close_matches(name, {task.name for task in visible}, n=3)
        full = [f"{task.queue}/{task.name}" for task in visible if task.name in close]
        return list(dict.fromkeys(same + full))[:3]

    def resolve(self, queue: str, reference: str) -> CatalogueTask:
        """The task that an option of a task in `queue` names: in its own queue, else the only one of that name; else a placeholder.

        Whether it is offered now does not matter. Asked from the store's thread too, hence the copies. Raises: UnknownTask, if there is
        not even a placeholder.
        """
        of, slash, name = reference.rpartition("/")
        own = self._tasks.get((of if slash else queue, name))
        if own is not None and not own.is_placeholder:
            return own
        if not slash:
            others = [task for task in list(self._tasks.values()) if task.name == name and not task.is_placeholder]
            offered = [task for task in others if self._is_visible(task)] or others
            if len(offered) == 1:
                return offered[0]
        if own is None:
            raise UnknownTask(of if slash else queue, name, self._near(name))
        return own

    def unoffered(self) -> list[int]:
        """The lanes of tasks that nobody offers, and whose grace is over or never began."""
        return [task.lane for task in self._lanes.values() if not self._is_visible(task)]

    def queues(self) -> list[str]:
        """The queues that have visible tasks, by name."""
        return sorted({task.queue for task in self._tasks.values() if self._is_visible(task)})

    def has_visible(self, queue: str) -> bool:
        """Whether a queue has visible tasks."""
        return any(task.queue == queue and self._is_visible(task) for task in self._tasks.values())

    def known(self, queue: str, name: str) -> CatalogueTask | None:
        """The task of this name, visible or not; None if nobody has ever offered it."""
        return self._tasks.get((queue, name))

    def by_lane(self, lane: int) -> CatalogueTask | None:
        """The task of this lane, visible or not."""
        return self._lanes.get(lane)

    def lanes_of(self, queue: str | None, name: str | None) -> list[int]:
        """The lanes of a queue and/or of a task's name; all lanes for None, None."""
        return [t.lane for t in self._lanes.values() if (queue is None or t.queue == queue) and (name is None or t.name == name)]

    def visible(self) -> list[CatalogueTask]:
        """All visible tasks, by queue and name."""
        tasks = [task for task in self._tasks.values() if self._is_visible(task)]
        ends = [task.offered_at + GRACE_S * 1_000_000 for task in tasks if not task.workers]
        self._next_end = min(ends, default=None)
        return sorted(tasks, key=lambda task: (task.queue, task.name))

    async def offer(self, rows: Sequence[TaskRow], source: str) -> tuple[list[tuple[TaskRow, int]], list[tuple[TaskRow, str]]]:
        """Take tasks that `source` (a worker's name, for the log) offers.

        Returns: those taken, with their lanes, and those refused, each with a sentence. The newest offer of a task wins.
        """
        taken: list[TaskRow] = []
        refused: list[tuple[TaskRow, str]] = []
        for row in rows:
            why = self._fault(row)
            if why:
                log.warning("%s offers the task %r, refused: %s", source, f"{row.queue[:64]}/{row.name[:64]}", why)
                refused.append((row, why))
            else:
                taken.append(row)
        if not taken:
            return [], refused
        # In one turn, so in one transaction.
        planned = [TaskSchedules(row.queue, row.name, self._read(row).schedules) for row in taken]
        lanes, changed = await asyncio.gather(self._store.offer(taken), self._store.schedule(planned))
        if any(changed):
            self.on_schedules()
        now = self._clock.now()
        for row, lane in zip(taken, lanes, strict=True):
            known = self._tasks.get((row.queue, row.name))
            if known is not None and known.row.signature == row.signature and known.row.options == row.options:
                if not self._is_visible(known):
                    self._version += 1
                known.offered_at = now
                continue
            if known is not None and known.workers:
                log.warning("%s offers %s/%s with another signature or options than before: the newest wins", source, row.queue, row.name)
            stored = msgspec.structs.replace(row, lane=lane, offered_at=now)
            self._keep(CatalogueTask(stored))
        await self._hold_places(taken)
        self.on_offers()
        return list(zip(taken, lanes, strict=True)), refused

    async def _hold_places(self, rows: Sequence[TaskRow]) -> None:
        """Give a lane to each task that these tasks' options name and that nobody has offered yet: a job for it can be born then."""
        missing: dict[tuple[str, str], TaskRow] = {}
        for row in rows:
            options = self._tasks[row.queue, row.name].options
            for option in NAMING:
                for reference in names_of(options, option):
                    try:
                        self.resolve(row.queue, reference)
                    except UnknownTask as unknown:
                        queue = unknown.queue or row.queue
                        log.warning("%s/%s: %s=%r names a task that nobody has offered yet", row.queue, row.name, option, reference)
                        missing[queue, unknown.name] = TaskRow(queue, unknown.name, encode(ANYTHING), b'{"placeholder":true}')
        if missing:
            places = list(missing.values())
            for place, lane in zip(places, await self._store.offer(places), strict=True):
                if (place.queue, place.name) not in self._tasks:
                    self._keep(CatalogueTask(msgspec.structs.replace(place, lane=lane)))

    def _read(self, row: TaskRow) -> CatalogueTask:
        known = self._tasks.get((row.queue, row.name))
        is_same = known is not None and (known.row.signature, known.row.options) == (row.signature, row.options)
        return known if known is not None and is_same else CatalogueTask(row)

    def _fault(self, row: TaskRow) -> str | None:
        """Why this offer cannot be taken, or None. Offers come from workers: nothing in them is trusted."""
        if not QUEUE_NAME.fullmatch(row.queue):
            return f"a queue's name has 1 to 64 of A-Z a-z 0-9 _ . -, not {row.queue[:64]!r}"
        if not TASK_NAME.fullmatch(row.name):
            return f"a task's name is an identifier of at most 64 characters, not {row.name[:64]!r}"
        known = self._tasks.get((row.queue, row.name))
        full = f"the catalogue is full ({MAX_TASKS:,} tasks, those that others name included)"
        if known is None and len(self._tasks) >= MAX_TASKS:
            return full
        if known is not None and known.row.signature == row.signature and known.row.options == row.options:
            return None
        if len(row.options) > MAX_OPTIONS:
            return f"its options have {len(row.options):,} bytes, the limit is {MAX_OPTIONS:,}"
        try:
            task = CatalogueTask(row)
            named = sum(len(names_of(task.options, option)) for option in NAMING)
            if named and len(self._tasks) + named >= MAX_TASKS:
                return full
        except (ValueError, msgspec.DecodeError) as why:
            return str(why)
        except RecursionError:
            return "its options are nested too deeply"
        return None

    def joined(self, lanes: Iterable[int]) -> None:
        """A session offers these lanes from now on."""
        for lane in lanes:
            task = self._lanes.get(lane)
            if task is not None:
                if not self._is_visible(task):
                    self._version += 1
                task.workers += 1

    def left(self, lanes: Iterable[int]) -> None:
        """A session no longer offers these lanes; their grace begins now."""
        now = self._clock.now()
        for lane in lanes:
            task = self._lanes.get(lane)
            if task is not None:
                task.workers -= 1
                task.offered_at = now
        self._version += 1

    async def touch(self) -> None:
        """Store that the tasks of live sessions are offered now, so that a manager that starts anew knows it."""
        live = [task for task in self._tasks.values() if task.workers]
        if live:
            await self._store.offer([task.row for task in live])
            now = self._clock.now()
            for task in live:
                task.offered_at = now
