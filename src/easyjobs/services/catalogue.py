"""Which tasks exist, in which queue, with which signature and options: durable, so that it outlives workers and restarts.

A task is visible (in OpenAPI, and for submits) while a session offers it and for `GRACE_S` after its last offer.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from easyjobs.domain.arguments import Arguments
from easyjobs.domain.job import UNLIMITED, Spec, TaskRow
from easyjobs.domain.signature import Signature, decode
from easyjobs.errors import AmbiguousTask, UnknownTask
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store

log = logging.getLogger("easyjobs.catalogue")

GRACE_S: Final = 600  # a task that nobody offers is known for so long
MAX_TASKS: Final = 10_000  # in all
MAX_OPTIONS: Final = 16 * 1024  # bytes of one task's options
DEFAULT_QUEUE: Final = "DEFAULT"
TASK_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class CatalogueTask:
    """A task as the manager knows it. `workers` counts the live sessions that offer it; `offered_at` is in microseconds."""

    __slots__ = ("arguments", "lane", "name", "offered_at", "options", "queue", "row", "signature", "spec", "workers")

    def __init__(self, row: TaskRow) -> None:
        self.row = row
        self.lane, self.queue, self.name, self.offered_at = row.lane, row.queue, row.name, row.offered_at
        self.signature: Signature = decode(row.signature)
        self.arguments = Arguments(self.signature, f"{row.queue}/{row.name}")
        self.options: dict[str, Any] = msgspec.json.decode(row.options, type=dict[str, Any])
        self.spec = spec_of(row.lane, self.options)
        self.workers = 0


def spec_of(lane: int, options: dict[str, Any]) -> Spec:
    """What of a task's options each of its jobs carries. Raises: ValueError for options that no worker of ours sends."""
    retries, crashes, priority = options.get("max_retries", 1), options.get("max_crashes", 3), options.get("priority", 0)
    if not (isinstance(retries, int) and UNLIMITED <= retries <= 1_000_000):
        raise ValueError(f"max_retries must be -1 (no limit) to 1,000,000, not {retries!r}")
    if not (isinstance(crashes, int) and 1 <= crashes <= 1000):
        raise ValueError(f"max_crashes must be 1 to 1,000, not {crashes!r}")
    if not (isinstance(priority, int) and abs(priority) <= 1_000_000):
        raise ValueError(f"priority must be -1,000,000 to 1,000,000, not {priority!r}")
    timeout_us = options.get("timeout_us")
    if timeout_us is not None and not (isinstance(timeout_us, int) and 0 < timeout_us <= 366 * 86_400_000_000):
        raise ValueError(f"timeout_us must be 1 to that of a year, or null, not {timeout_us!r}")
    return Spec(lane=lane, max_retries=retries, max_crashes=crashes, priority=priority, timeout_us=timeout_us)


class Catalogue:
    """The tasks in memory, kept equal to the store's. `version` changes whenever what is visible, or how it looks, changes."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._tasks: dict[tuple[str, str], CatalogueTask] = {}
        self._lanes: dict[int, CatalogueTask] = {}
        self._version = 0
        self._next_end: int | None = None
        self.has_successors = False  # whether any task has run_after or on_failure

    async def load(self) -> None:
        """Read the catalogue from the store."""
        for row in await self._store.tasks():
            try:
                self._keep(CatalogueTask(row))
            except ValueError as why:  # written by another version: the task comes back with its worker
                log.warning("the stored task %s/%s cannot be read: %s", row.queue, row.name, why)

    def _keep(self, task: CatalogueTask) -> None:
        before = self._tasks.get((task.queue, task.name))
        if before is not None:
            task.workers = before.workers
        self._tasks[task.queue, task.name] = self._lanes[task.lane] = task
        self.has_successors = self.has_successors or bool(task.options.get("run_after") or task.options.get("on_failure"))
        self._version += 1

    @property
    def version(self) -> int:
        """Changes whenever the visible set, or how it looks, may have changed."""
        if self._next_end is not None and self._clock.now() >= self._next_end:
            self._next_end = None
            self._version += 1
        return self._version

    def _is_visible(self, task: CatalogueTask) -> bool:
        return task.workers > 0 or self._clock.now() < task.offered_at + GRACE_S * 1_000_000

    def find(self, queue: str | None, name: str) -> CatalogueTask:
        """The visible task of this name. `queue` None: the only one, else that in DEFAULT. Raises: UnknownTask, AmbiguousTask."""
        if queue is not None:
            task = self._tasks.get((queue, name))
            if task is None or not (task.workers or self._is_visible(task)):
                raise UnknownTask(queue, name, self._near(name))
            return task
        found = [task for task in self._tasks.values() if task.name == name and self._is_visible(task)]
        if not found:
            raise UnknownTask(None, name, self._near(name))
        if len(found) > 1:
            default = [task for task in found if task.queue == DEFAULT_QUEUE]
            if not default:
                raise AmbiguousTask(name, [task.queue for task in found])
            return default[0]
        return found[0]

    def _near(self, name: str) -> list[str]:
        if len(name) > 200:
            return []
        visible = [task for task in self._tasks.values() if self._is_visible(task)][:1000]
        same = [f"{task.queue}/{task.name}" for task in visible if task.name == name]
        close = difflib.get_close_matches(name, {task.name for task in visible}, n=3)
        full = [f"{task.queue}/{task.name}" for task in visible if task.name in close]
        return list(dict.fromkeys(same + full))[:3]

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
                log.warning("%s offers the task %s/%s, refused: %s", source, row.queue[:64], row.name[:64], why)
                refused.append((row, why))
            else:
                taken.append(row)
        if not taken:
            return [], refused
        lanes = await self._store.offer(taken)
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
        return list(zip(taken, lanes, strict=True)), refused

    def _fault(self, row: TaskRow) -> str | None:
        """Why this offer cannot be taken, or None. Offers come from workers: nothing in them is trusted."""
        if not QUEUE_NAME.fullmatch(row.queue):
            return f"a queue's name has 1 to 64 of A-Z a-z 0-9 _ . -, not {row.queue[:64]!r}"
        if not TASK_NAME.fullmatch(row.name):
            return f"a task's name is an identifier of at most 64 characters, not {row.name[:64]!r}"
        known = self._tasks.get((row.queue, row.name))
        if known is None and len(self._tasks) >= MAX_TASKS:
            return f"the catalogue is full ({MAX_TASKS:,} tasks)"
        if known is not None and known.row.signature == row.signature and known.row.options == row.options:
            return None
        if len(row.options) > MAX_OPTIONS:
            return f"its options have {len(row.options):,} bytes, the limit is {MAX_OPTIONS:,}"
        try:
            CatalogueTask(row)
        except (ValueError, msgspec.DecodeError) as why:
            return str(why)
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
