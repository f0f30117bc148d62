"""What becomes of messages: jobs, once each, or rows of the quarantine; and how those become jobs after all."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from easyjobs.domain import message
from easyjobs.domain import quarantine as q
from easyjobs.domain.job import IdempotencyKey, NewJob, Submission, SubmitVerdict
from easyjobs.domain.quarantine import KEPT_BYTES, BadMessage, Quarantined, QuarantineQuery
from easyjobs.domain.replies import MAX_ADDRESS, Reply
from easyjobs.errors import InvalidArguments, NotReplayed, PayloadTooLarge, SubmitError, UnknownMessage, UnknownTask
from easyjobs.ports.broker import MAX_MESSAGE
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.protocol.options import MAX_KEY
from easyjobs.runtime.ids import id_text
from easyjobs.runtime.log import WARNING, event
from easyjobs.runtime.service import Service
from easyjobs.services.catalogue import GRACE_S, Catalogue
from easyjobs.services.intake import Intake

log = logging.getLogger("easyjobs.inbox")

KEEP_US: Final = 14 * 24 * 3600 * 1_000_000  # keys of messages that were in quarantine
REPLAYED: Final = 20  # messages in one transaction: each may have a megabyte
LATER_S: Final = 3600.0


class Letter(msgspec.Struct, frozen=True):
    """A message from queue `queue` of a broker. `id`: the broker's, the same when it comes again; `keep_us`: for how long that may be."""

    broker: str
    queue: str
    id: str | None
    body: bytes
    keep_us: int = KEEP_US


class _Opened(msgspec.Struct):
    """A letter as jobs that can be stored."""

    submissions: list[Submission]
    lanes: set[int]
    is_timed: bool


class _BadError(Exception):
    """A letter that cannot become jobs."""

    def __init__(self, reason: str, detail: str, task: tuple[str, str] | None = None) -> None:
        super().__init__(detail)
        self.reason, self.task = reason, task


class Inbox(Service):
    """The way in for messages. `run_once` replays those that waited for a task which is offered by now."""

    name = "inbox"

    def __init__(self, store: Store, intake: Intake, catalogue: Catalogue, clock: Clock) -> None:
        super().__init__()
        self._store, self._intake, self._catalogue, self._clock = store, intake, catalogue, clock

    async def take(self, letters: Sequence[Letter]) -> None:
        """Store each letter: as jobs, or in quarantine. When this returns, all of them are durable and may be acknowledged.

        Raises: ShuttingDown, StoreError; then nothing, or some of it, was stored, and all can be taken again.
        """
        bad = await self._settle(letters)
        if bad:
            await self.put_aside(bad)

    async def _settle(self, letters: Sequence[Letter]) -> list[BadMessage]:
        """Store the jobs of letters; return the rows for those that have none."""
        bad: list[BadMessage] = []
        opened: list[tuple[Letter, Submission]] = []
        lanes: set[int] = set()
        is_timed = False
        for letter in letters:
            try:
                content = self._open(letter)
            except _BadError as why:
                bad.append(self._bad(letter, why))
                continue
            opened.extend([(letter, submission) for submission in content.submissions])
            lanes |= content.lanes
            is_timed = is_timed or content.is_timed
        if opened:
            submitted = await self._intake.submit_prepared([submission for _, submission in opened], lanes, timed=is_timed)
            for (letter, submission), answer in zip(opened, submitted, strict=True):
                if answer.verdict is SubmitVerdict.CONFLICT:
                    bad.append(self._bad(letter, _conflict(submission)))
        return bad

    async def put_aside(self, bad: Sequence[BadMessage]) -> None:
        """Store rows of the quarantine. Raises: StoreError."""
        await self._store.quarantine(bad)
        first = bad[0]
        event(
            log,
            WARNING,
            "message.quarantined",
            count=len(bad),
            broker=first.broker,
            queue=first.queue,
            reason=first.reason,
            detail=first.detail[:300],
        )
        if any(message.wait_us for message in bad):
            self.wake()  # the task may have been offered meanwhile

    def refused(self, letter: Letter, why: str) -> BadMessage:
        """The row for a letter that the store will not take."""
        return self._bad(letter, _BadError(q.REFUSED, why))

    @staticmethod
    def _bad(letter: Letter, why: _BadError) -> BadMessage:
        waits = why.reason == q.UNKNOWN_TASK
        return BadMessage(
            broker=letter.broker,
            queue=letter.queue,
            key=letter.id,
            reason=why.reason,
            detail=str(why)[:2000],
            body=letter.body if waits else letter.body[:KEPT_BYTES],
            size=len(letter.body),
            wait_us=GRACE_S * 1_000_000 if waits else 0,
            task=why.task,
        )

    def _open(self, letter: Letter) -> _Opened:
        if len(letter.body) > MAX_MESSAGE:
            raise _BadError(q.TOO_LARGE, f"the message has {len(letter.body):,} bytes, the limit is {MAX_MESSAGE:,}")
        now = self._clock.now()
        content = _Opened([], set(), False)
        try:
            calls = message.parse(letter.body)
            for index, call in enumerate(calls):
                given, reply_to, call = _envelope(call)  # noqa: PLW2901 (without what is not the job's own)
                job, lanes, is_timed = self._intake.prepare(call, letter.queue, now)
                own = letter.id if given is None else given
                if own is not None and given is None and len(calls) > 1:
                    own = f"{own}#{index}"
                if reply_to is not None:
                    job = msgspec.structs.replace(job, reply=Reply(letter.broker, reply_to, own))
                elif job.reply is not None:
                    job = msgspec.structs.replace(job, reply=msgspec.structs.replace(job.reply, correlation=own))
                content.submissions.append(Submission((job,), _key(letter, own, job)))
                content.lanes |= lanes
                content.is_timed = content.is_timed or is_timed
        except UnknownTask as why:
            raise _BadError(q.UNKNOWN_TASK, str(why), (why.queue or letter.queue, why.name)) from why
        except PayloadTooLarge as why:
            raise _BadError(q.TOO_LARGE, str(why)) from why
        except InvalidArguments as why:
            kinds = {error["type"] for error in why.errors}
            parsed = why.task not in ("job", "options")
            raise _BadError(q.INVALID_ARGUMENTS if parsed else q.BAD_JSON if "json_invalid" in kinds else q.BAD_FORMAT, str(why)) from why
        except SubmitError as why:
            raise _BadError(q.REFUSED, str(why)) from why
        return content

    # --- the quarantine ---------------------------------------------------------------------------------------------------------

    async def find(self, id: int) -> Quarantined:
        """A message of the quarantine. Raises: UnknownMessage, StoreError."""
        found = await self._store.quarantined(QuarantineQuery(ids=(id,)))
        if not found:
            raise UnknownMessage(id)
        return found[0]

    async def replay(self, id: int) -> list[str]:
        """Let a message become jobs now, and leave the quarantine. Returns the jobs' ids, the same ones if it was replayed before.

        Raises: UnknownMessage; NotReplayed (it stays); ShuttingDown, StoreError.
        """
        kept = await self.find(id)
        if not kept.is_whole:
            raise NotReplayed(id, kept.reason, f"only {len(kept.body):,} of its {kept.size:,} bytes were kept; send it again")
        try:
            content = self._open(_letter(kept))
        except _BadError as why:
            raise NotReplayed(id, why.reason, str(why)) from why
        submitted = await self._intake.submit_prepared(content.submissions, content.lanes, timed=content.is_timed)
        if any(answer.verdict is SubmitVerdict.CONFLICT for answer in submitted):
            raise NotReplayed(id, q.KEY_REUSED, "its key was used with other arguments")
        await self._store.unquarantine([id])
        return [id_text(raw) for answer in submitted for raw in answer.ids]

    async def delete(self, id: int) -> None:
        """Forget a message. Raises: UnknownMessage, StoreError."""
        [known] = await self._store.unquarantine([id])
        if not known:
            raise UnknownMessage(id)

    async def run_once(self) -> float:
        """Replay what waits for tasks that are offered by now; woken by offers."""
        offered = [
            task
            for task in await self._store.awaited_tasks()
            if (found := self._catalogue.known(*task)) and self._catalogue.is_visible(found)
        ]
        for task in offered:
            await self._replay_waiting(task)
        return LATER_S

    async def _replay_waiting(self, task: tuple[str, str]) -> None:
        while waiting := await self._store.quarantined(QuarantineQuery(limit=REPLAYED, task=task)):
            bad = await self._settle([_letter(kept) for kept in waiting])
            if any(message.task == task for message in bad):
                return  # it has just gone again
            # Those that fail for another reason get a row that says so, in the transaction that takes the old one away.
            removed = self._store.unquarantine([kept.id for kept in waiting])
            await asyncio.gather(removed, self._store.quarantine(bad))


def _letter(kept: Quarantined) -> Letter:
    # Without a broker's id the row's own makes a replay that is cut off in the middle repeatable.
    return Letter(kept.broker, kept.queue, kept.key if kept.key is not None else f"quarantine:{kept.id}", kept.body)


def _envelope(call: message.Call) -> tuple[str | None, str | None, message.Call]:
    """What identifies the job to its sender, where its end is told, and the call without them. Raises: InvalidArguments."""
    if not call.options or not call.options.keys() & {"key", "id", "reply_to"}:
        return None, None, call
    options = dict(call.options)
    for name, most in (("key", MAX_KEY), ("id", MAX_KEY), ("reply_to", MAX_ADDRESS)):
        given = options.get(name, "default")
        if not isinstance(given, str) or not 0 < len(given) <= most or not given.isprintable():
            wrong = {
                "type": "string_type",
                "loc": ("body", name),
                "msg": f"Input should be 1 to {most} printable characters",
                "input": None,
            }
            raise InvalidArguments("options", [wrong])
    key, id, reply_to = (options.pop(name, None) for name in ("key", "id", "reply_to"))
    return key or id, reply_to, message.Call(call.queue, call.name, call.args, call.kwargs, options)


def _key(letter: Letter, own: str | None, job: NewJob) -> IdempotencyKey | None:
    if own is None:
        return None
    body = hashlib.blake2b(b"%d %b" % (job.spec.lane, job.args), digest_size=16).digest()
    return IdempotencyKey(f"broker:{letter.broker}", letter.queue, own, body, letter.keep_us)


def _conflict(submission: Submission) -> _BadError:
    key = submission.key.key if submission.key is not None else ""
    return _BadError(q.KEY_REUSED, f"the key {key[:100]!r} was used with another task or other arguments before")
