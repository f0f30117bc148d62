"""What a report is worth, and where it brings its job: the fence and the budgets, as every store applies them.

Stores that can answer a whole batch by one guarded statement do so; this is for the reports that need a closer look. The guards
stand in the statements that write, too.
"""

from __future__ import annotations

from typing import Final

import msgspec

from easyjobs.domain.job import UNLIMITED, Answer, ErrorInfo, Outcome, Report, Verdict
from easyjobs.domain.lifecycle import Back, JobEvent, JobState, advance

RANK_STEP_US: Final = 60_000_000  # one step of priority is worth 60 s of waiting
VERDICTS: Final = {(answer, state): Verdict(answer, state) for answer in Answer for state in (*JobState, None)}
UNKNOWN: Final = VERDICTS[Answer.STALE, None]
SUCCEEDED: Final = VERDICTS[Answer.ACCEPTED, JobState.SUCCEEDED]


class Standing(msgspec.Struct, array_like=True):
    """Where a job stands, as far as reports care. Stores update it while they judge a batch."""

    seq: int
    lane: int
    state: JobState
    attempt: int
    session: int | None
    back: Back
    round: int
    failures: int
    max_retries: int
    cancel_requested: bool
    crashes: int
    max_crashes: int


def event_of(report: Report, standing: Standing) -> JobEvent:
    """Translate a report into what happened; whether a failure is the last is decided by the budget."""
    if report.outcome is Outcome.SUCCEEDED:
        return JobEvent.SUCCEEDED
    if report.outcome is Outcome.RELEASED:
        return JobEvent.RELEASED
    if report.outcome is Outcome.SNOOZED:
        return JobEvent.SNOOZED
    if report.crashed:
        return JobEvent.CRASHED_OUT if standing.crashes + 1 >= standing.max_crashes else JobEvent.CRASHED
    if report.retry and (standing.max_retries == UNLIMITED or standing.failures < standing.max_retries):
        return JobEvent.RETRIED_LATER if report.delay_us > 0 else JobEvent.RETRIED_NOW
    return JobEvent.FAILED


def judge(standing: Standing, session: int, report: Report, *, failed_before: bool) -> Verdict:
    """Judge a report and, if it is accepted, move `standing` to where it brings the job.

    Args:
        standing: the job now; changed in place (state, back, failures, crashes).
        session: who reports.
        report: what it says.
        failed_before: whether this attempt of this session is on record as a failure.
    """
    outcome = report.outcome
    if standing.attempt != report.attempt or standing.session != session:
        repeated = failed_before and outcome is Outcome.FAILED
        return VERDICTS[Answer.DUPLICATE if repeated else Answer.STALE, standing.state]
    after = advance(standing.state, event_of(report, standing), cancel_requested=standing.cancel_requested, back=standing.back)
    fenced = standing.state is JobState.RUNNING or standing.state is JobState.QUEUED
    if after is None or not fenced:
        if outcome is Outcome.SUCCEEDED:
            repeated = standing.state is JobState.SUCCEEDED
        elif outcome is Outcome.FAILED:
            repeated = standing.back is Back.FAILED
        else:
            repeated = standing.back is Back.RELEASED
        return VERDICTS[Answer.DUPLICATE if repeated else Answer.STALE, standing.state]
    if outcome is Outcome.FAILED:
        if report.crashed:
            standing.crashes += 1
        else:
            standing.failures += 1
        standing.back = Back.FAILED
    elif outcome is not Outcome.SUCCEEDED:
        standing.back = Back.RELEASED
    standing.state = after
    return VERDICTS[Answer.ACCEPTED, after]


def calls_for_help(state: JobState, max_retries: int, failures: int) -> bool:
    """Whether a reported failure brings an on_failure job to life: the last one, or the first failed retry of retries without an end."""
    return state is JobState.FAILED or (max_retries == UNLIMITED and failures >= 2 and state is not JobState.CANCELLED)


def crash_error(crashes: int) -> bytes:
    """The error of a job whose workers were lost too often, as JSON."""
    times = "once" if crashes == 1 else f"{crashes} times"
    return msgspec.json.encode(ErrorInfo("WorkerLost", f"its worker was lost {times} while it ran", kind="crashed"))


def depth_error(max_depth: int) -> bytes:
    """The error of a job that would be born too deep in a chain, as JSON."""
    text = f"{max_depth:,} jobs stand above this one, the limit of max_chain_depth: does the chain come back to itself?"
    return msgspec.json.encode(ErrorInfo("ChainTooDeep", text, kind="chain_too_deep"))


def predecessor_error(edge: str, state: JobState, error: bytes | None) -> bytes:
    """The error of a job that waited for another one, which ended without success, as JSON. `edge`: "run_before:<queue>/<task>"."""
    why = ""
    if error:
        info = msgspec.json.decode(error, type=ErrorInfo)
        why = f": {info.type}: {info.message}" if info.message else f": {info.type}"
    text = f"the run_before job {edge.partition(':')[2]} {'was ' if state is JobState.CANCELLED else ''}{state.text}{why}"
    return msgspec.json.encode(ErrorInfo("PredecessorFailed", text, kind="predecessor"))


def expired_error() -> bytes:
    """The error of a job that was not started in time, as JSON."""
    return msgspec.json.encode(ErrorInfo("Expired", "it was not started before its time was over", kind="expired"))


def unoffered_error() -> bytes:
    """The error of a successor whose task nobody offers, as JSON."""
    text = "no worker offers this task, and the grace is over: check the name, or start the worker, then retry the job"
    return msgspec.json.encode(ErrorInfo("UnknownTask", text, kind="unknown_task"))
