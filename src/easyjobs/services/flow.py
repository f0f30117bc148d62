"""Which jobs belong together: what must run before a job, and what its end brings to life, by the options of its task.

Predecessors are stored with the job that waits for them; successors go to the store with the report (or whatever it is) that ends their
parent, and are born in its transaction (P5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from easyjobs.domain.flow import arguments_after, arguments_before, arguments_on_failure, by_name
from easyjobs.domain.job import BEFORE, ErrorInfo, JobRecord, NewJob, Outcome, Parent, Report, Spec, UniqueKey
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.signature import Signature
from easyjobs.domain.unique import key_of
from easyjobs.errors import InvalidArguments, PayloadTooLarge, UnknownTask
from easyjobs.ports.clock import Clock
from easyjobs.runtime.ids import id_text, new_id
from easyjobs.services.catalogue import Catalogue, CatalogueTask, names_of
from easyjobs.services.dispatcher import Session

log = logging.getLogger("easyjobs.flow")

MAX_PREDECESSORS: Final = 1000  # of one job, those of its predecessors included
_halves = msgspec.json.Decoder(tuple[list[Any], dict[str, Any]]).decode


class Flow:
    """Makes jobs with all that belongs to them. No I/O: it reads the catalogue in memory, also from the store's thread."""

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self._catalogue, self._clock = catalogue, clock

    # --- jobs, and what runs before them ----------------------------------------------------------------------------------------

    def job(self, task: CatalogueTask, id: bytes, args: bytes, *, spec: Spec | None = None, parent: Parent | None = None) -> NewJob:
        """A job of `task`, with its predecessors and its unique key. `args`: JSON `[args, kwargs]`, checked.

        Raises: InvalidArguments, if its predecessors go round in circles.
        """
        if task.is_plain:
            return NewJob(id, spec or task.spec, args, parent)
        return self._job(task, id, args, spec or task.spec, parent, (), [0])

    def _job(
        self,
        task: CatalogueTask,
        id: bytes,
        args: bytes,
        spec: Spec,
        parent: Parent | None,
        path: tuple[CatalogueTask, ...],
        made: list[int],
    ) -> NewJob:
        named = by_name(task.signature, *_halves(args))
        path = (*path, task)
        befores: list[NewJob] = []
        for name in dict.fromkeys(task.run_before):
            target = self._catalogue.resolve(task.queue, name)
            made[0] += 1
            if target in path or made[0] > MAX_PREDECESSORS:
                way = " → ".join(f"{each.queue}/{each.name}" for each in (*path, target))
                what = "goes round in circles" if target in path else f"asks for more than {MAX_PREDECESSORS:,} jobs"
                raise InvalidArguments(
                    f"{task.queue}/{task.name}",
                    [{"type": "value_error", "loc": ["body"], "msg": f"run_before {what}: {way}", "input": None}],
                )
            stored = self._arguments(task, target, "run_before", lambda signature: arguments_before(signature, named))
            edge = Parent(0, f"{BEFORE}{target.queue}/{target.name}", max_depth=target.max_depth)
            same = msgspec.structs.replace(target.spec, run_at=spec.run_at, priority=spec.priority)
            befores.append(self._job(target, new_id(self._clock.now()), stored, same, edge, path, made))
        # A predecessor is its job's own: one that another job has would end without this one's knowing, and it would wait for ever.
        unique = self._unique(task, named) if len(path) == 1 else None
        return NewJob(id, spec, args, parent, tuple(befores), unique, task.reply)

    @staticmethod
    def _unique(task: CatalogueTask, named: Mapping[str, Any]) -> UniqueKey | None:
        return None if task.unique is None else key_of(task.queue, task.name, named, task.unique)

    # --- what an end brings to life ---------------------------------------------------------------------------------------------

    def after_reports(self, session: Session, items: Sequence[Report]) -> Mapping[int, tuple[NewJob, ...]]:
        """The `run_after` jobs of these reports' successes, by the parent's seq."""
        if not self._catalogue.has_successors:
            return {}
        born: dict[int, tuple[NewJob, ...]] = {}
        for report in items:
            if report.outcome is not Outcome.SUCCEEDED:
                continue
            job = session.running.get(report.seq) or session.overdue.get(report.seq)
            task = self._catalogue.by_lane(job.lane) if job is not None else None
            if task is not None and task.options.get("run_after"):
                born[report.seq] = self._after_success(task, report)
        return born

    def _after_success(self, task: CatalogueTask, report: Report) -> tuple[NewJob, ...]:
        result = msgspec.json.decode(report.body)
        made = [
            self._successor(task, name, report.seq, "run_after", JobState.SUCCEEDED, lambda signature: arguments_after(signature, result))
            for name in dict.fromkeys(names_of(task.options, "run_after"))
        ]
        return tuple(job for job in made if job is not None)

    def after_failure(self, record: JobRecord) -> tuple[NewJob, ...]:
        """The `on_failure` job of a job that has just failed, or whose endless retries have begun; `record.error` says why."""
        task = self._catalogue.by_lane(record.lane)
        name = task.options.get("on_failure") if task is not None else None
        if task is None or not name:
            return ()
        error = msgspec.json.decode(record.error, type=ErrorInfo) if record.error else ErrorInfo(type="Unknown", message="")
        reason = f"{error.type}: {error.message}" if error.message else error.type
        args, kwargs = _halves(record.args)
        failure = {
            "job_id": id_text(record.id),
            "namespace": task.queue,
            "name": task.name,
            "type": error.type,
            "message": error.message,
            "traceback": error.traceback,
            "attempt": record.attempt,
            "args": args,
            "kwargs": kwargs,
        }
        job = self._successor(task, name, record.seq, "on_failure", None, lambda sig: arguments_on_failure(sig, reason, failure))
        return () if job is None else (job,)

    def _successor(
        self,
        task: CatalogueTask,
        name: str,
        seq: int,
        edge: str,
        when: JobState | None,
        arguments: Callable[[Signature], tuple[list[Any], dict[str, Any]]],
    ) -> NewJob | None:
        try:
            target = self._catalogue.resolve(task.queue, name)
            stored = self._arguments(task, target, edge, arguments)
            parent = Parent(seq, f"{edge}:{target.queue}/{target.name}", when, max_depth=target.max_depth)
            return self.job(target, new_id(self._clock.now()), stored, parent=parent)
        except (UnknownTask, InvalidArguments) as why:  # no place was held for it (an older version's row), or a circle
            log.error("job.successor_lost: %s=%r of %s/%s: %s", edge, name, task.queue, task.name, why)
            return None

    @staticmethod
    def _arguments(
        task: CatalogueTask, target: CatalogueTask, edge: str, arguments: Callable[[Signature], tuple[list[Any], dict[str, Any]]]
    ) -> bytes:
        args, kwargs = arguments(target.signature)
        try:
            return target.arguments.from_call(args, kwargs)
        except (InvalidArguments, PayloadTooLarge) as why:
            # The worker validates again: there the job fails as invalid_arguments, where a person can see it.
            log.warning("job.successor_unfit: %s=%s/%s of %s/%s: %s", edge, target.queue, target.name, task.queue, task.name, why)
            return msgspec.json.encode([args, kwargs])
