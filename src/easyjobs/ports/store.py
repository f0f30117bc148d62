"""What a store promises: the life of jobs, in batches.

Each verb takes a sequence and answers one value per item, in order. A verb is one guarded set-based statement or one transaction;
its future resolves after the COMMIT, with the store's durability, or raises a `StoreError`, and then nothing of the call was stored.
The guards are those of `domain.lifecycle`; a row that does not fit gets its own verdict and never fails a neighbour.

A call enters the store's queue at once, when the method is called, not when its future is awaited; calls made in one turn of the
loop share a transaction, within which notes come first, then reports and renewals, then submits, then claims: so what an attempt shows of
itself is there when its end is, and a job may be claimed in the transaction that stores it.

Time is the store's time: no verb takes a `now`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from easyjobs.domain.job import (
    Change,
    Changed,
    Child,
    Claims,
    Due,
    JobQuery,
    JobRecord,
    NewJob,
    NewSession,
    Reports,
    Rescued,
    Running,
    Submission,
    Submitted,
    TaskRow,
    Verdict,
    Want,
)
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.lifecycle import JobState as S
from easyjobs.domain.quarantine import BadMessage, Quarantined, QuarantineQuery
from easyjobs.domain.replies import Unsent
from easyjobs.domain.schedule import DueSchedules, Fired, Firing, Schedule, TaskSchedules
from easyjobs.domain.seeing import FailedAttempt, Glance, Look, Notes
from easyjobs.domain.tokens import Token
from easyjobs.ports.clock import Clock

Successors = Callable[[JobRecord], tuple[NewJob, ...]]
"""Pure: given a job that has just failed, the jobs that this brings to life."""


class Kept(NamedTuple):
    """How long jobs are kept after their end, in microseconds, by final state; None: for ever."""

    succeeded: int | None
    failed: int | None
    cancelled: int | None
    expired: int | None

    def of(self, state: JobState) -> int | None:
        """For this state; None for one that is not final."""
        return {S.SUCCEEDED: self.succeeded, S.FAILED: self.failed, S.CANCELLED: self.cancelled, S.EXPIRED: self.expired}.get(state)

    @property
    def shortest_us(self) -> int:
        """No job younger than this is deleted."""
        return min((us for us in self if us is not None), default=2**62)


class News(NamedTuple):
    """A hint that other managers have committed something. It may come late, twice, or never: what counts is in the store."""

    lanes: tuple[int, ...]  # got queued jobs
    has_ended: bool  # some jobs have ended
    is_more: bool  # something else: tasks, pauses, schedules, requests to stop, jobs that came back to life
    shown: tuple[int, ...] | None = ()  # tokens of followed jobs that have something new to show; None: it may be any of them


def token(id: bytes) -> int:
    """Stands for a job's id in hints: its random half. Two jobs with one token cost a look in vain."""
    return int.from_bytes(id[8:])


class Store(Protocol):
    """See the module's docstring.

    `successors` is asked, inside transactions, what a job that fails without a report brings to life; `on_change` is told on the loop,
    after the commit, of jobs that changed otherwise than by their own claim, report or rescue; `on_unsent`, on the loop too, that there is
    something to send. All are set before `open`.
    """

    successors: Successors
    on_change: Callable[[Sequence[Change]], None]
    on_unsent: Callable[[], None]

    async def open(self) -> None:
        """Take the store, migrate it, check it. Raises: StoreLocked, SchemaTooNew, StoreError."""
        ...

    async def close(self) -> None:
        """Finish what was called, then let go. Calls made later raise StoreError."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether so many submits wait for their transaction that no more should come; those that come all the same wait, too."""
        ...

    def submit(self, submissions: Sequence[Submission]) -> Awaitable[list[Submitted]]:
        """Store jobs as queued, or as scheduled if their `run_at` is in the future."""
        ...

    def claim(self, wants: Sequence[Want]) -> Awaitable[list[Claims]]:
        """Give queued jobs to sessions: by lane, lowest rank first (rank = due time - priority * 60 s), then seq; attempt + 1."""
        ...

    def finish(self, reports: Sequence[Reports]) -> Awaitable[list[list[Verdict]]]:
        """Apply reports under the fence (job, attempt, session); successors are born in the same transaction.

        A failure with `retry` and budget left (`failures` < `max_retries`, or no limit) is scheduled after `delay_us`, or queued at
        once if that is 0; else the job fails. A failure that is `crashed` is queued at once whatever `retry` says, crashes + 1, and the
        job fails at `max_crashes`. Each failed attempt's error is kept.
        """
        ...

    def note(self, notes: Sequence[Notes]) -> Awaitable[list[tuple[int, ...]]]:
        """Keep what running attempts show, under the fence; the answer to each is the seqs of which nothing was kept.

        The newest progress of a job is kept while it has not ended; lines also of an attempt that has just ended, for its report may have
        overtaken them. A line that was there before is passed over, one for which the job's log has no room is counted (`seeing.enter`).
        """
        ...

    def begin(self, sessions: Sequence[NewSession]) -> Awaitable[list[int]]:
        """Make sessions known, with a fresh lease; a known id keeps its number. Numbers are > 0 and never reused."""
        ...

    def renew(self, sessions: Sequence[int]) -> Awaitable[list[bool]]:
        """Extend leases by the whole lease time. False: no such session."""
        ...

    def running(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """The running attempts of each session."""
        ...

    def rescue(self, limit: int = 1000) -> Awaitable[list[Rescued]]:
        """Put back up to `limit` running jobs whose session's lease has ended, as they began: crashes + 1; those that are blamed fail.

        `domain.blame` says which: at `max_crashes`, unless a job of the same session that had its last chance too began later.

        One statement compares (state, attempt, session, lease end) and sets, so that it never undoes a finish.
        """
        ...

    def due(self, limit: int = 1000) -> Awaitable[Due]:
        """Queue up to `limit` scheduled jobs whose `run_at` has come."""
        ...

    def offer(self, tasks: Sequence[TaskRow]) -> Awaitable[list[int]]:
        """Insert or update tasks of the catalogue and set their `offered_at` to now; the answer is each one's lane, > 0, for ever."""
        ...

    def tasks(self) -> Awaitable[list[TaskRow]]:
        """The whole catalogue, by lane."""
        ...

    def schedule(self, tasks: Sequence[TaskSchedules]) -> Awaitable[list[bool]]:
        """Make the schedules of these tasks, which were offered, those that the code has now (see `domain.schedule.plan`).

        One that is new, or whose expression or zone has changed, begins now. True: something has changed.
        """
        ...

    def schedules(self, ids: Sequence[int] | None = None) -> Awaitable[list[Schedule]]:
        """Those of these ids that there are, or all, by id; as of the last commit."""
        ...

    def due_schedules(self, limit: int = 100) -> Awaitable[DueSchedules]:
        """Up to `limit` schedules, not paused, whose `next_at` has come. Nothing is changed."""
        ...

    def fire(self, firings: Sequence[Firing]) -> Awaitable[list[list[Fired]]]:
        """Store ticks with their jobs, once per (schedule, tick), and each schedule's `next_at`; a verdict per tick.

        A firing holds only for its schedule as it was looked at (version, `due_at`), and not before its ticks; else all of it is STALE.
        """
        ...

    def run_now(self, jobs: Sequence[tuple[int, NewJob]]) -> Awaitable[list[bool]]:
        """Store a job for each of these schedules, paused or not, without using up a tick. False: no such schedule, and no job."""
        ...

    def pause_schedules(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """No ticks until `resume_schedules`, also after a restart. False: no such schedule."""
        ...

    def resume_schedules(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """Go on with the first tick from now; those of the pause are not caught up with. False: no such schedule."""
        ...

    def prune_ticks(self, before_us: int, limit: int = 500) -> Awaitable[int]:
        """Forget up to `limit` ticks older than `before_us`, but for those whose job is not final; how many."""
        ...

    def get(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """Jobs by id, as of the last commit."""
        ...

    def look(self, glances: Sequence[Glance]) -> Awaitable[list[Look | None]]:
        """What jobs show of themselves, as of the last commit; None: no such job."""
        ...

    def attempts(self, ids: Sequence[bytes]) -> Awaitable[list[list[FailedAttempt]]]:
        """The failed attempts of each job, in their order; none for a job that is not there."""
        ...

    def ahead(self, ids: Sequence[bytes], limit: int = 10_000) -> Awaitable[list[int | None]]:
        """How many queued jobs of its lane will be claimed before each job, `limit` at most; None: it is not queued."""
        ...

    def page(self, query: JobQuery) -> Awaitable[list[JobRecord]]:
        """One page of jobs, newest (highest seq) first."""
        ...

    def pull(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """Like `get`; a succeeded job that was not pulled before gets its `pulled_at` set to now, committed."""
        ...

    def counts(self) -> Awaitable[dict[tuple[int, JobState], int]]:
        """How many jobs are in each (lane, state); zero counts may be left out. Cost does not grow with the number of jobs."""
        ...

    def prune(self, pulled_before_us: int, keys_before_us: int, limit: int = 500) -> Awaitable[int]:
        """Drop result bytes pulled more than `pulled_before_us` ago or past their `ttl_us`, keys, and what deleted jobs showed.

        Results of calls and of predecessors stay until their parent has ended; a key with a `keep_us` of its own stays for that time instead
        of `keys_before_us`. Returns: rows touched.
        """
        ...

    def cancel(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """Cancel jobs, with the unfinished children that they called or wait for.

        What does not run is cancelled now; what runs is asked to stop (its answer's state is RUNNING). `done` also for a job that was
        cancelled before.
        """
        ...

    def stopping(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """The running attempts of each session that were asked to stop."""
        ...

    def restart(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """A person's retry: failed, cancelled and expired jobs get a new round; those with unmet predecessors wait, and these restart too.

        Not done for a job whose unique key another one has taken.
        """
        ...

    def hasten(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """Queue scheduled jobs now."""
        ...

    def delete(self, ids: Sequence[bytes]) -> Awaitable[list[Changed]]:
        """Delete jobs that have ended; the answer's state is the one that the job had."""
        ...

    def expire(self, limit: int = 1000) -> Awaitable[int | None]:
        """Expire up to `limit` jobs that were not started in time; when the next one does (None: never)."""
        ...

    def fail_unoffered(self, lanes: Sequence[int], grace_us: int, limit: int = 1000) -> Awaitable[int]:
        """Fail queued successors and predecessors of these lanes, which nobody offers, once they are `grace_us` old; how many."""
        ...

    def retain(self, kept: Kept, after_seq: int = 0, limit: int = 500) -> Awaitable[tuple[int, int | None]]:
        """Look at `limit` jobs after `after_seq`, oldest first, and delete those that have been kept long enough.

        Returns: how many, and where to go on (None: what follows is too young, so begin again later).
        """
        ...

    def pause(self, queue: str, is_paused: bool) -> Awaitable[bool]:
        """Remember that a queue gives out no jobs, or does again; whether that is new."""
        ...

    def paused(self) -> Awaitable[list[str]]:
        """The paused queues, by name."""
        ...

    def children(self, ids: Sequence[bytes]) -> Awaitable[list[list[Child]]]:
        """Up to 1,000 jobs that descend from each of these, oldest first."""
        ...

    def quarantine(self, messages: Sequence[BadMessage]) -> Awaitable[list[int]]:
        """Put messages aside that cannot become jobs; their ids, > 0. One whose (broker, queue, key) is there keeps its row and id."""
        ...

    def quarantined(self, query: QuarantineQuery) -> Awaitable[list[Quarantined]]:
        """A page of messages that were put aside."""
        ...

    def awaited_tasks(self) -> Awaitable[list[tuple[str, str]]]:
        """The tasks (queue, name) that messages put aside still wait for."""
        ...

    def unquarantine(self, ids: Sequence[int]) -> Awaitable[list[bool]]:
        """Forget these messages. False: there is none of this id."""
        ...

    def unsent(self, broker: str, after_id: int = 0, limit: int = 500) -> Awaitable[list[Unsent]]:
        """Ends of jobs that are to be told to this broker, by id, above `after_id`; of about a frame's bytes in all.

        One is written in the transaction that ends a job with a `reply`, in each round, whatever the end.
        """
        ...

    def sent(self, ids: Sequence[int]) -> Awaitable[int]:
        """Forget these ends: the broker has them. How many there were."""
        ...

    def keep_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """Remember tokens that were made, and forget those that have expired. False: one of this id is there, and stays as it is."""
        ...

    def revoke_tokens(self, tokens: Sequence[Token]) -> Awaitable[list[bool]]:
        """Take tokens back, known ones or not. False: it was taken back before."""
        ...

    def tokens(self) -> Awaitable[list[Token]]:
        """All that are remembered, newest first."""
        ...

    def check(self) -> Awaitable[None]:
        """Prove that the store can be written to now, by a small commit. Raises: StoreError."""
        ...


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store that other managers may have open at the same time. `on_news`, `on_followed` and `on_failed_over` are called on the loop; they are set before `open`.

    `clock` is the store's own time, as this process knows it.
    """

    on_news: Callable[[News], None]
    on_followed: Callable[[frozenset[int] | None], None]
    """Told which jobs are followed at other managers, by token, whenever that changes; None: too many to name."""
    on_failed_over: Callable[[], None]
    """Another server, or timeline, has taken over, which may lack the last commits: what connected workers hold has to be compared with it anew."""
    clock: Clock

    @property
    def has_others(self) -> bool:
        """Whether other managers have it open, or had it within the last minute."""
        ...

    def follow(self, ids: Collection[bytes]) -> None:
        """Tell the others which jobs are followed here; they `show` them."""
        ...

    def show(self, id: bytes) -> None:
        """Tell those who follow this job that it has something new. A hint, as `News` is; many cost as much as one."""
        ...

    def revision(self) -> Awaitable[int]:
        """Changes whenever a task of the catalogue, or which queues are paused, has changed."""
        ...

    def ended(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord]]:
        """Those of these jobs that have ended, in no order."""
        ...
