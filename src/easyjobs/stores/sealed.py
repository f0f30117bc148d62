"""A store whose payloads are ciphertext in the store beneath, and plain above: arguments, results, errors, log lines, progress, messages.

Everything is validated before it comes here, so nothing beneath needs to read a payload. A report names its job by number, while payloads are
bound to ids: so this remembers the ids of running jobs, which it has heard from claims and from `running`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from easyjobs.domain.job import (
    Change,
    Claims,
    ErrorInfo,
    JobRecord,
    NewJob,
    Outcome,
    Report,
    Reports,
    Running,
    Submission,
    Submitted,
    Verdict,
    Want,
)
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.domain.replies import Unsent
from easyjobs.domain.schedule import Fired, Firing
from easyjobs.domain.seeing import FailedAttempt, Glance, Look, Notes
from easyjobs.ports.store import Store, Successors
from easyjobs.runtime.sealing import MARK, KeyRing, Unreadable

_T = TypeVar("_T")
_replace: Final = msgspec.structs.replace
_encode: Final = msgspec.json.encode
_error_of: Final = msgspec.json.Decoder(ErrorInfo).decode
SEALED: Final = "Sealed"  # the type of an error in the store
_SEALED_TEXT: Final = re.compile(re.escape(MARK) + r"[\w~=-]+")
_BYTES: Final = b'"' + MARK.encode()
MAX_KNOWN: Final = 1_000_000  # running jobs whose ids are remembered
NOBODY: Final = b""  # for a report of a job that this manager never gave out: no store takes it


class SealedStore:
    """See the module. What is not written out here is the inner store's."""

    def __init__(self, inner: Store, ring: KeyRing) -> None:
        self._inner: Any = inner
        self._ring = ring
        self._ids: dict[int, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _delegated(name: str) -> Any:  # type: ignore[misc]  # noqa: N805
        return property(lambda self: getattr(self._inner, name), lambda self, value: setattr(self._inner, name, value))

    on_unsent, on_news, clock = _delegated("on_unsent"), _delegated("on_news"), _delegated("clock")
    on_followed, on_failed_over = _delegated("on_followed"), _delegated("on_failed_over")

    @property
    def successors(self) -> Successors:
        """See the port."""
        return self._inner.successors  # type: ignore[no-any-return]

    @successors.setter
    def successors(self, ask: Successors) -> None:
        self._inner.successors = lambda record: tuple(self._job(job) for job in ask(self._record(record)))

    @property
    def on_change(self) -> Callable[[Sequence[Change]], None]:
        """See the port."""
        return self._inner.on_change  # type: ignore[no-any-return]

    @on_change.setter
    def on_change(self, tell: Callable[[Sequence[Change]], None]) -> None:
        self._inner.on_change = lambda changes: tell(
            [_replace(change, body=self._error(change.body, change.id)) if change.body else change for change in changes]
        )

    # --- one payload ------------------------------------------------------------------------------------------------------------

    def _seal(self, body: bytes, id: bytes, field: bytes) -> bytes:
        return b'"%b"' % self._ring.seal(body, field + b" " + id).encode() if body and self._ring.seals else body

    def _seal_text(self, text: str, id: bytes, field: bytes) -> str:
        return self._ring.seal(text.encode("utf-8", "surrogatepass"), field + b" " + id) if text and self._ring.seals else text

    def _open(self, body: bytes, id: bytes, field: bytes, otherwise: Callable[[str], bytes]) -> bytes:
        if not body.startswith(_BYTES):
            return body
        try:
            return self._ring.open(body[1:-1].decode("ascii", "replace"), field + b" " + id)
        except Unreadable as why:
            return otherwise(str(why))

    def _open_text(self, text: str, id: bytes, field: bytes) -> str:
        if not text.startswith(MARK):
            return text
        try:
            return self._ring.open(text, field + b" " + id).decode("utf-8", "surrogatepass")
        except Unreadable as why:
            return f"(unreadable: {why})"

    def _seal_error(self, body: bytes, id: bytes) -> bytes:
        """An error whose words are sealed, and that is an error still: stores tell jobs that wait for this one what happened to it."""
        if not body or not self._ring.seals:
            return body
        kind = _error_of(body).kind
        return _encode(ErrorInfo(SEALED, self._ring.seal(body, b"error " + id), kind=kind))

    def _error(self, body: bytes, id: bytes) -> bytes:
        if MARK.encode() not in body:
            return body
        error = _error_of(body)
        if error.type != SEALED or not error.message.startswith(MARK):  # of a job that waited for one whose error is sealed
            return _encode(_replace(error, message=_SEALED_TEXT.sub("(see that job)", error.message)))
        try:
            return self._ring.open(error.message, b"error " + id)
        except Unreadable as why:
            return _encode(ErrorInfo("Unreadable", str(why), kind="unreadable"))

    def _result(self, body: bytes, id: bytes) -> bytes:
        return self._open(body, id, b"result", lambda why: msgspec.json.encode(f"(unreadable: {why})"))

    def _job(self, job: NewJob) -> NewJob:
        befores = tuple(self._job(before) for before in job.befores) if job.befores else ()
        return _replace(job, args=self._seal(job.args, job.id, b"args"), befores=befores)

    def _record(self, record: JobRecord) -> JobRecord:
        if record.attempt and record.state in (JobState.RUNNING, JobState.QUEUED):  # the second: a late report of it may still count
            self._learn(record.seq, record.id)
        return _replace(
            record,
            args=self._open(record.args, record.id, b"args", lambda why: msgspec.json.encode([[f"(unreadable: {why})"], {}])),
            result=None if record.result is None else self._result(record.result, record.id),
            error=None if record.error is None else self._error(record.error, record.id),
        )

    # --- verbs ------------------------------------------------------------------------------------------------------------------
    # Each calls the inner store before it awaits anything, so that calls of one turn still share a transaction.

    def submit(self, submissions: Sequence[Submission]) -> Awaitable[list[Submitted]]:
        """See the port."""
        return self._inner.submit([_replace(one, jobs=tuple(self._job(job) for job in one.jobs)) for one in submissions])  # type: ignore[no-any-return]

    def claim(self, wants: Sequence[Want]) -> Awaitable[list[Claims]]:
        """See the port. What does not open goes to the worker as it is, where it is no arguments, and the job fails."""
        return _then(self._inner.claim(wants), self._claimed)

    def _learn(self, seq: int, id: bytes) -> None:
        self._ids[seq] = id
        if len(self._ids) > MAX_KNOWN:  # of jobs that others have ended
            del self._ids[next(iter(self._ids))]

    def _claimed(self, answers: list[Claims]) -> list[Claims]:
        opened = []
        for claims in answers:
            jobs = []
            for job in claims.jobs:
                self._learn(job.seq, job.id)
                sealed = job.args
                jobs.append(_replace(job, args=self._open(sealed, job.id, b"args", lambda _, kept=sealed: kept)))  # type: ignore[misc]
            opened.append(_replace(claims, jobs=jobs))
        return opened

    def running(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """See the port."""
        return _then(self._inner.running(sessions), self._heard)

    def _heard(self, answers: list[list[Running]]) -> list[list[Running]]:
        for jobs in answers:
            for job in jobs:
                self._learn(job.seq, job.id)
        return answers

    def finish(self, reports: Sequence[Reports]) -> Awaitable[list[list[Verdict]]]:
        """See the port."""
        sealed = [
            _replace(
                one,
                items=[self._report(report) for report in one.items],
                successors={seq: tuple(self._job(job) for job in jobs) for seq, jobs in one.successors.items()},
            )
            for one in reports
        ]
        seqs = [[report.seq for report in one.items] for one in reports]

        def forget(answers: list[list[Verdict]]) -> list[list[Verdict]]:
            for some, verdicts in zip(seqs, answers, strict=True):
                for seq, verdict in zip(some, verdicts, strict=True):
                    if verdict.state is not JobState.RUNNING:
                        self._ids.pop(seq, None)
            return answers

        return _then(self._inner.finish(sealed), forget)

    def _report(self, report: Report) -> Report:
        if not report.body:
            return report
        id = self._ids.get(report.seq, NOBODY)
        is_good = report.outcome is Outcome.SUCCEEDED
        return _replace(report, body=self._seal(report.body, id, b"result") if is_good else self._seal_error(report.body, id))

    def note(self, notes: Sequence[Notes]) -> Awaitable[list[tuple[int, ...]]]:
        """See the port."""
        ids = self._ids
        return self._inner.note([  # type: ignore[no-any-return]
            _replace(
                one,
                marks=[_replace(mark, message=self._seal_text(mark.message, ids.get(mark.seq, NOBODY), b"mark")) for mark in one.marks],
                lines=[_replace(line, text=self._seal_text(line.text, ids.get(line.seq, NOBODY), b"line")) for line in one.lines],
            )
            for one in notes
        ])  # fmt: skip

    def look(self, glances: Sequence[Glance]) -> Awaitable[list[Look | None]]:
        """See the port."""

        def opened(answers: list[Look | None]) -> list[Look | None]:
            return [None if look is None else self._look(look, glance.id) for look, glance in zip(answers, glances, strict=True)]

        return _then(self._inner.look(glances), opened)

    def _look(self, look: Look, id: bytes) -> Look:
        progress = look.progress
        if progress is not None:
            progress = _replace(progress, message=self._open_text(progress.message, id, b"mark"))
        return _replace(
            look, progress=progress, lines=[_replace(line, text=self._open_text(line.text, id, b"line")) for line in look.lines]
        )

    def attempts(self, ids: Sequence[bytes]) -> Awaitable[list[list[FailedAttempt]]]:
        """See the port."""

        def opened(answers: list[list[FailedAttempt]]) -> list[list[FailedAttempt]]:
            return [[_replace(each, error=self._error(each.error, id)) for each in some] for some, id in zip(answers, ids, strict=True)]

        return _then(self._inner.attempts(ids), opened)

    def _records(self, answers: Iterable[JobRecord | None]) -> list[Any]:
        return [None if record is None else self._record(record) for record in answers]

    def get(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return _then(self._inner.get(ids), self._records)

    def page(self, query: Any) -> Awaitable[list[JobRecord]]:
        """See the port."""
        return _then(self._inner.page(query), self._records)

    def pull(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """See the port."""
        return _then(self._inner.pull(ids), self._records)

    def ended(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord]]:
        """See the port of a shared store."""
        return _then(self._inner.ended(ids), self._records)

    def fire(self, firings: Sequence[Firing]) -> Awaitable[list[list[Fired]]]:
        """See the port."""
        return self._inner.fire([  # type: ignore[no-any-return]
            _replace(firing, ticks=tuple(_replace(tick, job=self._job(tick.job)) for tick in firing.ticks)) for firing in firings
        ])  # fmt: skip

    def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> Awaitable[list[bool]]:
        """See the port."""
        return self._inner.run_now([(id, self._job(job)) for id, job in jobs])  # type: ignore[no-any-return]

    def unsent(self, broker: str, after_id: int = 0, limit: int = 500) -> Awaitable[list[Unsent]]:
        """See the port."""

        def opened(answers: list[Unsent]) -> list[Unsent]:
            return [
                _replace(one, body=(self._result if one.state is JobState.SUCCEEDED else self._error)(one.body, one.job)) for one in answers
            ]

        return _then(self._inner.unsent(broker, after_id, limit), opened)

    def quarantine(self, messages: Sequence[BadMessage]) -> Awaitable[list[int]]:
        """See the port."""
        return self._inner.quarantine([  # type: ignore[no-any-return]
            _replace(
                message,
                body=self._seal(message.body, _source(message), b"message"),
                detail=self._seal_text(message.detail, _source(message), b"detail"),
            )
            for message in messages
        ])  # fmt: skip

    def quarantined(self, query: QuarantineQuery) -> Awaitable[list[Quarantined]]:
        """See the port."""

        def opened(answers: list[Quarantined]) -> list[Quarantined]:
            return [
                _replace(
                    message,
                    body=self._open(message.body, _source(message), b"message", lambda why: why.encode()),
                    detail=self._open_text(message.detail, _source(message), b"detail"),
                )
                for message in answers
            ]

        return _then(self._inner.quarantined(query), opened)


def _source(message: BadMessage | Quarantined) -> bytes:
    return f"{message.broker}/{message.queue}/{message.key or ''}".encode("utf-8", "surrogatepass")


def _then(called: Awaitable[_T], work: Callable[[Any], _T]) -> Awaitable[_T]:
    """The answer of a verb that was called already, worked on. Like the inner one it need not be awaited."""

    async def worked() -> _T:
        return work(await called)

    return asyncio.ensure_future(worked())
