"""Which jobs the end of a job brings to life: `run_after` and `on_failure` of its task's options.

They go to the store with the report (or rescue) that ends their parent, and are born in its transaction (P5).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from easyjobs.domain.flow import arguments_after, arguments_on_failure
from easyjobs.domain.job import ErrorInfo, JobRecord, NewJob, Outcome, Parent, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.signature import Signature
from easyjobs.errors import AmbiguousTask, InvalidArguments, PayloadTooLarge, UnknownTask
from easyjobs.ports.clock import Clock
from easyjobs.runtime.ids import new_id
from easyjobs.services.catalogue import Catalogue, CatalogueTask
from easyjobs.services.dispatcher import Session

log = logging.getLogger("easyjobs.flow")


class Flow:
    """Looks up who follows whom."""

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self._catalogue, self._clock = catalogue, clock

    def after_reports(self, session: Session, items: Sequence[Report]) -> Mapping[int, tuple[NewJob, ...]]:
        """The jobs that these reports may bring to life, by the parent's seq."""
        if not self._catalogue.has_successors:
            return {}
        born: dict[int, tuple[NewJob, ...]] = {}
        for report in items:
            job = session.running.get(report.seq) or session.overdue.get(report.seq)
            task = self._catalogue.by_lane(job.lane) if job is not None else None
            if task is None:
                continue
            if report.outcome is Outcome.SUCCEEDED and task.options.get("run_after"):
                born[report.seq] = self._after_success(task, report)
            elif report.outcome is Outcome.FAILED and task.options.get("on_failure"):
                error = msgspec.json.decode(report.body, type=ErrorInfo)
                born[report.seq] = self._after_failure(task, report.seq, error)
        return born

    def after_failure(self, record: JobRecord) -> tuple[NewJob, ...]:
        """The jobs that a job which failed without a report of its own (a crash, a predecessor) brings to life."""
        task = self._catalogue.by_lane(record.lane)
        if task is None or not task.options.get("on_failure"):
            return ()
        error = msgspec.json.decode(record.error, type=ErrorInfo) if record.error else ErrorInfo(type="WorkerLost", message="")
        return self._after_failure(task, record.seq, error)

    def _after_success(self, task: CatalogueTask, report: Report) -> tuple[NewJob, ...]:
        names = task.options["run_after"]
        result = msgspec.json.decode(report.body)
        jobs = [
            self._successor(task, name, report.seq, "run_after", JobState.SUCCEEDED, lambda sig: arguments_after(sig, result))
            for name in ([names] if isinstance(names, str) else names)
        ]
        return tuple(job for job in jobs if job is not None)

    def _after_failure(self, task: CatalogueTask, seq: int, error: ErrorInfo) -> tuple[NewJob, ...]:
        reason = f"{error.type}: {error.message}" if error.message else error.type
        job = self._successor(
            task, task.options["on_failure"], seq, "on_failure", JobState.FAILED, lambda sig: arguments_on_failure(sig, reason)
        )
        return (job,) if job is not None else ()

    def _successor(self, task: CatalogueTask, name: str, seq: int, edge: str, when: JobState, arguments: Any) -> NewJob | None:
        target = self._resolve(task, name)
        if target is None:
            log.error("job.successor_lost: %s=%r of %s/%s names no task that can be found", edge, name, task.queue, task.name)
            return None
        args, kwargs = _bound(target.signature, arguments)
        try:
            stored = target.arguments.from_call(args, kwargs)
        except (InvalidArguments, PayloadTooLarge) as why:
            # The worker validates again: there the job fails as invalid_arguments, where a person can see it.
            log.warning("job.successor_unfit: %s=%r of %s/%s: %s", edge, name, task.queue, task.name, why)
            stored = msgspec.json.encode([args, kwargs])
        parent = Parent(seq=seq, edge=f"{edge}:{target.queue}/{target.name}", when=when)
        return NewJob(new_id(self._clock.now()), target.spec, stored, parent)

    def _resolve(self, task: CatalogueTask, name: str) -> CatalogueTask | None:
        queue, _, rest = name.rpartition("/")
        try:
            if queue:
                return self._catalogue.find(queue, rest)
            return self._catalogue.find(task.queue, name)
        except UnknownTask:
            try:
                return None if queue else self._catalogue.find(None, name)
            except (UnknownTask, AmbiguousTask):
                return None


def _bound(signature: Signature, arguments: Any) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = arguments(signature)
    return list(args), dict(kwargs)
