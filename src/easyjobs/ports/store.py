"""What a store promises: the life of jobs, in batches.

Each verb takes a sequence and answers one value per item, in order. A verb is one guarded set-based statement or one transaction;
its future resolves after the COMMIT, with the store's durability, or raises a `StoreError`, and then nothing of the call was stored.
The guards are those of `domain.lifecycle`; a row that does not fit gets its own verdict and never fails a neighbour.

A call enters the store's queue at once, when the method is called, not when its future is awaited; calls made in one turn of the
loop share a transaction, within which reports and renewals come first, then submits, then claims: so a job may be claimed in the
transaction that stores it.

Time is the store's time: no verb takes a `now`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from easyjobs.domain.job import (
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

Successors = Callable[[JobRecord], tuple[NewJob, ...]]
"""Pure: given a job that has just failed, the jobs that this brings to life."""


class Store(Protocol):
    """See the module's docstring."""

    async def open(self) -> None:
        """Take the store, migrate it, check it. Raises: StoreLocked, SchemaTooNew, StoreError."""
        ...

    async def close(self) -> None:
        """Finish what was called, then let go. Calls made later raise StoreError."""
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

    def begin(self, sessions: Sequence[NewSession]) -> Awaitable[list[int]]:
        """Make sessions known, with a fresh lease; a known id keeps its number. Numbers are > 0 and never reused."""
        ...

    def renew(self, sessions: Sequence[int]) -> Awaitable[list[bool]]:
        """Extend leases by the whole lease time. False: no such session."""
        ...

    def running(self, sessions: Sequence[int]) -> Awaitable[list[list[Running]]]:
        """The running attempts of each session."""
        ...

    def rescue(self, successors: Successors, limit: int = 1000) -> Awaitable[list[Rescued]]:
        """Put back up to `limit` running jobs whose session's lease has ended: crashes + 1; at `max_crashes` the job fails.

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

    def get(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord | None]]:
        """Jobs by id, as of the last commit."""
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
        """Drop result bytes pulled more than `pulled_before_us` ago and idempotency keys older than `keys_before_us`; rows touched."""
        ...

    def check(self) -> Awaitable[None]:
        """Prove that the store can be written to now, by a small commit. Raises: StoreError."""
        ...
