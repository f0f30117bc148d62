"""Which state a job may go to from which, and why.

The table is the truth: what is not in it cannot happen. Every store repeats these guards inside its statements, and the contract
suite walks the table against every store.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class JobState(IntEnum):
    """Where a job is in its life. The number is what stores keep; `text` is what users see."""

    QUEUED = 0
    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4
    EXPIRED = 5
    SCHEDULED = 6
    WAITING = 7

    @property
    def text(self) -> str:
        """The state's name as users see it: `"queued"`, `"running"`, …"""
        return self.name.lower()

    @property
    def is_final(self) -> bool:
        """Whether a round of the job has ended."""
        return self in FINAL


class JobEvent(StrEnum):
    """What can happen to a job."""

    DUE = "due"  # run_at has come
    MET = "met"  # all run_before jobs have succeeded
    MET_EARLY = "met_early"  # the same, before its run_at
    UNOFFERED = "unoffered"  # nobody offers the task of a successor, and the grace is over
    CLAIMED = "claimed"
    SUCCEEDED = "succeeded"
    RETRIED_LATER = "retried_later"  # failed, budget left, with a delay
    RETRIED_NOW = "retried_now"  # failed, budget left, no delay
    FAILED = "failed"  # failed, no budget left
    SNOOZED = "snoozed"  # its task asked to be run later, no budget spent
    RELEASED = "released"  # given back by its worker, no budget spent
    LEASE_ENDED = "lease_ended"  # crashes + 1
    CRASHED = "crashed"  # crashes + 1: its child process died, says the worker
    CRASHED_OUT = "crashed_out"  # crashes + 1 = max_crashes
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    PREDECESSOR_ENDED = "predecessor_ended"  # a run_before job failed, was cancelled or expired
    RESTARTED = "restarted"  # by a person: a new round
    RESTARTED_WAITING = "restarted_waiting"  # the same, with run_before jobs to repeat


S, E = JobState, JobEvent

TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (S.SCHEDULED, E.DUE): S.QUEUED,
    (S.WAITING, E.MET): S.QUEUED,
    (S.WAITING, E.MET_EARLY): S.SCHEDULED,
    (S.WAITING, E.PREDECESSOR_ENDED): S.FAILED,
    (S.QUEUED, E.UNOFFERED): S.FAILED,
    (S.QUEUED, E.CLAIMED): S.RUNNING,  # attempt += 1, the session's lease covers it
    (S.RUNNING, E.SUCCEEDED): S.SUCCEEDED,  # run_after jobs are born in the same commit
    (S.RUNNING, E.RETRIED_LATER): S.SCHEDULED,  # run_at = now + backoff
    (S.RUNNING, E.RETRIED_NOW): S.QUEUED,
    (S.RUNNING, E.FAILED): S.FAILED,  # the on_failure job is born in the same commit
    (S.RUNNING, E.SNOOZED): S.SCHEDULED,
    (S.RUNNING, E.RELEASED): S.QUEUED,
    (S.RUNNING, E.LEASE_ENDED): S.QUEUED,
    (S.RUNNING, E.CRASHED): S.QUEUED,
    (S.RUNNING, E.CRASHED_OUT): S.FAILED,
    (S.SCHEDULED, E.CANCELLED): S.CANCELLED,
    (S.WAITING, E.CANCELLED): S.CANCELLED,
    (S.QUEUED, E.CANCELLED): S.CANCELLED,
    (S.SCHEDULED, E.EXPIRED): S.EXPIRED,
    (S.WAITING, E.EXPIRED): S.EXPIRED,
    (S.QUEUED, E.EXPIRED): S.EXPIRED,
    (S.FAILED, E.RESTARTED): S.QUEUED,
    (S.FAILED, E.RESTARTED_WAITING): S.WAITING,
    (S.CANCELLED, E.RESTARTED): S.QUEUED,
    (S.CANCELLED, E.RESTARTED_WAITING): S.WAITING,
    (S.EXPIRED, E.RESTARTED): S.QUEUED,
    (S.EXPIRED, E.RESTARTED_WAITING): S.WAITING,
}

# A job that a rescue or a release put back, and that nobody has claimed since, still takes the report of that same attempt: the
# work is done, and a rerun would only repeat it. After a reported failure it does not, or one attempt would count twice.
LATE_REPORTS: frozenset[JobEvent] = frozenset({E.SUCCEEDED, E.RETRIED_LATER, E.RETRIED_NOW, E.FAILED})

# A running job whose cancellation was requested: these events end it as cancelled; a success still wins.
CANCELLED_INSTEAD: frozenset[JobEvent] = frozenset(
    {E.RETRIED_LATER, E.RETRIED_NOW, E.FAILED, E.SNOOZED, E.RELEASED, E.LEASE_ENDED, E.CRASHED, E.CRASHED_OUT}
)

FINAL: frozenset[JobState] = frozenset({S.SUCCEEDED, S.FAILED, S.CANCELLED, S.EXPIRED})


class Back(IntEnum):
    """Why a job that is not running any more went back, and so whether a late report still counts."""

    NEVER = 0
    RESCUED = 1  # its lease ended: a late report of that attempt counts
    RELEASED = 2  # its worker gave it back: the same
    FAILED = 3  # its failure was reported: a repeat of that report is a duplicate


def advance(state: JobState, event: JobEvent, *, cancel_requested: bool = False, back: Back = Back.NEVER) -> JobState | None:
    """Return the state after `event`, or None where the table has no such step.

    Args:
        state: where the job is.
        event: what happens.
        cancel_requested: whether somebody asked to cancel this running job.
        back: why a queued job was last put back; lets a late report in.
    """
    if state is S.QUEUED and back in (Back.RESCUED, Back.RELEASED) and event in LATE_REPORTS:
        state = S.RUNNING
    if state is S.RUNNING and cancel_requested and event in CANCELLED_INSTEAD:
        return S.CANCELLED
    return TRANSITIONS.get((state, event))
