"""The delivery contract as invariants I1 to I13, each a function from a history to what it found wrong.

I1  each acknowledged submit is a job with one end; one without an answer is a job or none
I2  no job and no run without an origin
I3  the attempt of a job goes up by one at each claim and never otherwise
I4  a job is claimed only while nobody has it, and taken back only when its session's lease has ended
I5  a body that has lost its job stops: what overlaps the next attempt is at most what the worker needs to notice
I6  an end is an end: only a person's retry, which begins a new round, leaves it
I7  a result does not change, and is that of the attempt that won
I8  each end has its successors, once
I9  each tick is one job
I10 one job for each key
I11 no more runs than claims, no more claims than reasons for them, and no more deaths of workers under a job than its budget allows
I12 at the end nothing is left that could run
I13 what a broker confirmed is a job, is put aside, or is still at the broker
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from easyjobs.domain.blame import SPARED_UNTIL
from easyjobs.domain.job import CALL
from easyjobs.domain.lifecycle import FINAL, Back, JobState
from faults.events import Step
from faults.history import Effect, History, Row

S = JobState
_FINAL = frozenset(int(state) for state in FINAL)


def steps_by_job(history: History) -> dict[int, list[Step]]:
    grouped: dict[int, list[Step]] = defaultdict(list)
    for step in history.steps:
        grouped[step.seq].append(step)
    return grouped


def runs(history: History) -> dict[str, list[tuple[Effect, Effect | None]]]:
    """By job (its id, or its token where the id is not known): start and end of each run, by start."""
    ends = {effect.run: effect for effect in history.effects if effect.what != "start"}
    grouped: dict[str, list[tuple[Effect, Effect | None]]] = defaultdict(list)
    for effect in sorted(history.effects, key=lambda effect: effect.at):
        if effect.what == "start":
            grouped[effect.job or effect.token].append((effect, ends.get(effect.run)))
    return grouped


def i1(history: History) -> Iterator[str]:
    by_id = {row.id: row for row in history.rows}
    tokens = Counter(row.token for row in history.rows if row.parent_seq is None)
    ids = Counter(history.acked.values())
    for token, job in history.acked.items():
        if job not in by_id:
            yield f"{token}: acknowledged as {job}, and the store does not know it"
        elif by_id[job].state not in _FINAL:
            yield f"{token}: acknowledged, and at the end {S(by_id[job].state).text}"
        elif ids[job] > 1 and history.acked:
            yield f"{token}: shares the id {job} with another submit"
    for token in history.unknown:
        if tokens[token] > 1:
            yield f"{token}: its submit got no answer, and there are {tokens[token]} jobs of it"


def i2(history: History) -> Iterator[str]:
    known = history.acked.keys() | history.unknown | history.published
    born = {row.id for row in history.rows if row.parent_seq is not None or row.task in history.ticks}
    for row in history.rows:
        if row.parent_seq is None and row.task not in history.ticks and row.token not in known:
            yield f"job {row.seq} ({row.task}, {row.token!r}): nobody submitted it"
    ids = {row.id for row in history.rows}
    for effect in history.effects:
        if effect.job and effect.job not in ids:
            yield f"a body ran for job {effect.job} ({effect.token}), which the store does not know"
        elif not effect.job and effect.token not in known and not born:
            yield f"{effect.token}: ran, and nobody submitted it"


def i3(history: History) -> Iterator[str]:
    for seq, steps in steps_by_job(history).items():
        attempt = 0
        for step in steps:
            claimed = step.old_state == S.QUEUED and step.state == S.RUNNING
            if claimed and step.attempt != attempt + 1:
                yield f"job {seq}: claimed as attempt {step.attempt} after attempt {attempt}"
            if not claimed and step.attempt != attempt:
                yield f"job {seq}: its attempt went from {attempt} to {step.attempt} without a claim"
            attempt = step.attempt


def i4(history: History) -> Iterator[str]:
    renewed: dict[int, list[float]] = defaultdict(list)
    for renewal in history.renewals:
        renewed[renewal.session].append(renewal.at)
    for seq, steps in steps_by_job(history).items():
        for step in steps:
            if step.state == S.RUNNING and step.old_state not in (S.QUEUED, S.RUNNING):
                yield f"job {seq}: went from {step.old_state} to running"
            if step.old_state == S.RUNNING and step.state == S.RUNNING and _claimed_by(steps, step) != step.session:
                yield f"job {seq}: session {step.session} took it while it ran"
            if history.renewals and step.old_state == S.RUNNING and step.back == Back.RESCUED and step.state != S.RUNNING:
                at = step.at / 1e6
                last = max((each for each in renewed[step.session or 0] if each < at), default=None)
                if last is not None and at < last + history.lease_s - 0.001:
                    yield f"job {seq}: taken back {last + history.lease_s - at:.2f} s before the lease of session {step.session} ended"


def _claimed_by(steps: list[Step], step: Step) -> int | None:
    claims = [each for each in steps if each.n < step.n and each.old_state == S.QUEUED and each.state == S.RUNNING]
    return claims[-1].session if claims else None


def overlaps(history: History) -> Iterator[tuple[str, float, Effect, Effect]]:
    """Each pair of runs of one job, of which the second began before the first had ended: job, seconds, the two starts."""
    for job, several in runs(history).items():
        for (first, end), (second, second_end) in pairwise(several):
            until = end.at if end is not None else None
            if until is None or until <= second.at:
                continue
            last = min(until, second_end.at if second_end is not None else until)
            still = sum(max(0.0, min(last, to) - max(second.at, since)) for worker, since, to in history.stopped if worker == first.worker)
            yield job, last - second.at - still, first, second


def i5(history: History) -> Iterator[str]:
    if history.duplicate_frames:  # a list of what a worker holds that comes again is taken for news: its jobs may be given away
        return
    for job, seconds, first, second in overlaps(history):
        # What was on its way for so long that it was given back begins late, and is stopped after the next beat.
        bound = history.lease_s * 2 / 3 if first.attempt > second.attempt else history.max_overlap_s
        if seconds > bound:
            yield (
                f"job {job} ({first.token}): attempt {first.attempt} on {first.worker} and attempt {second.attempt} on {second.worker} ran at "
                f"the same time for {seconds:.1f} s, from {second.at:.1f} on"
            )


def i6(history: History) -> Iterator[str]:
    for seq, steps in steps_by_job(history).items():
        for before, step in pairwise(steps):
            if step.old_state in _FINAL and step.state is not None and step.state != step.old_state and step.round != before.round + 1:
                yield f"job {seq}: went from {S(step.old_state).text} to {S(step.state).text} in round {step.round}"
            if step.old_state != before.state:
                yield f"job {seq}: was {before.state}, and its next step began at {step.old_state}"


def i7(history: History) -> Iterator[str]:
    for seq, steps in steps_by_job(history).items():
        for before, step in pairwise(steps):
            if (
                before.state == S.SUCCEEDED
                and step.state == S.SUCCEEDED
                and before.result is not None
                and step.result not in (before.result, None)
            ):
                yield f"job {seq}: its result changed"
    ends = {effect.run: effect for effect in history.effects if effect.what != "start"}
    for row in history.rows:
        if row.state != S.SUCCEEDED or not history.effects or not row.run:
            continue
        end = ends.get(row.run)
        if end is None or end.what != "done":
            yield f"job {row.seq} ({row.token}): its result is of the run {row.run!r}, which did not end well"
        elif end.job not in ("", row.id):
            yield f"job {row.seq} ({row.token}): its result is of the run {row.run!r}, which was for the job {end.job} ({end.token})"
        elif end.attempt != row.attempt:
            yield f"job {row.seq} ({row.token}): its result is of attempt {end.attempt}, and the job is at attempt {row.attempt}"


def i8(history: History) -> Iterator[str]:
    children = Counter((row.parent_seq, row.edge, row.parent_round) for row in history.rows if row.parent_seq is not None)
    for (parent, edge, round), count in children.items():
        if count > 1:
            yield f"job {parent}: {count} jobs by {edge} in round {round}"
    ends: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for seq, steps in steps_by_job(history).items():
        ends[seq] = [(step.round, step.state or 0) for step in steps if step.state in _FINAL and step.old_state != step.state]
    for row in history.rows:
        for round, state in ends[row.seq] if history.steps else [(row.round, row.state)]:
            for task in history.successors.get(row.task, ()):
                born = children[row.seq, f"run_after:{task}", round]
                if born != (state == S.SUCCEEDED):
                    yield f"job {row.seq} ({row.task}): {S(state).text} in round {round}, and {born} jobs of its run_after {task}"
            helper = history.helpers.get(row.task)
            if helper is not None:
                born = children[row.seq, f"on_failure:{helper}", round]
                if born != (state == S.FAILED):
                    yield f"job {row.seq} ({row.task}): {S(state).text} in round {round}, and {born} jobs of its on_failure {helper}"


def i9(history: History) -> Iterator[str]:
    for task, expected in history.ticks.items():
        fired = Counter(row.run_at for row in history.rows if row.task == task and row.parent_seq is None and row.id not in history.by_hand)
        may = history.optional_ticks.get(task, set())
        for tick in sorted(set(expected) - fired.keys() - may):
            yield f"{task}: the tick {tick} was not fired"
        for at, count in fired.items():
            if at not in expected and at not in may:
                yield f"{task}: fired at {at}, which is no tick of it"
            if count > 1:
                yield f"{task}: the tick {at} was fired {count} times"


def i10(history: History) -> Iterator[str]:
    count = Counter(row.token for row in history.rows if row.parent_seq is None and row.token)
    for token in history.keyed | history.published:
        if count[token] > 1:
            yield f"{token}: {count[token]} jobs of one key"


def i11(history: History) -> Iterator[str]:
    by_id = {row.id: row for row in history.rows}
    for job, several in runs(history).items():
        row = by_id.get(job)
        if row is None:
            continue
        attempts = Counter(start.attempt for start, _ in several)
        for attempt, count in attempts.items():
            if count > 1 and not history.duplicate_frames:
                yield f"job {row.seq} ({row.token}): attempt {attempt} ran {count} times"
        if len(attempts) > row.attempt:
            yield f"job {row.seq} ({row.token}): {len(attempts)} runs, and it is at attempt {row.attempt}"
        if not history.has_faults and len(several) > 1 + row.failures:
            yield f"job {row.seq} ({row.token}): ran {len(several)} times with {row.failures} failures, and nothing had happened"
    for seq, steps in steps_by_job(history).items():
        claims = sum(1 for step in steps if step.old_state == S.QUEUED and step.state == S.RUNNING)
        backs = sum(1 for step in steps if step.old_state == S.RUNNING and step.state in (S.QUEUED, S.SCHEDULED))
        again = sum(1 for step in steps if step.old_state in _FINAL and step.state is not None and step.state not in _FINAL)
        if claims > 1 + backs + again:
            yield f"job {seq}: claimed {claims} times, and put back {backs} times"
    for row in history.rows:
        if row.max_crashes and row.crashes > (SPARED_UNTIL * row.max_crashes if row.max_crashes > 1 else 1):
            yield f"job {row.seq} ({row.token}): {row.crashes} workers died under it, of {row.max_crashes} that may, and twice as many at most"


def i12(history: History) -> Iterator[str]:
    if not history.is_quiet:
        return
    for row in history.rows:
        if row.state not in _FINAL and row.task not in history.ticks:
            yield f"job {row.seq} ({row.task}, {row.token!r}): still {S(row.state).text} at the end"


def i13(history: History) -> Iterator[str]:
    tokens = {row.token for row in history.rows}
    for message in sorted(history.published - tokens - history.waiting - history.quarantined):
        yield f"message {message}: the broker had confirmed it, and it is nowhere"


INVARIANTS: dict[str, Callable[[History], Iterator[str]]] = {
    "I1": i1, "I2": i2, "I3": i3, "I4": i4, "I5": i5, "I6": i6, "I7": i7, "I8": i8, "I9": i9, "I10": i10, "I11": i11, "I12": i12, "I13": i13,
}  # fmt: skip


def judge(history: History) -> list[str]:
    """Everything that is wrong with this history, a sentence each, with the invariant in front."""
    return [f"{name}: {wrong}" for name, check in INVARIANTS.items() for wrong in check(history)]


def is_call(row: Row) -> bool:
    """Whether a job was called by another one."""
    return row.edge is not None and row.edge.startswith(CALL)
