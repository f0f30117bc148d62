"""Conversations of the worker's side, as lists of frames."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from easyjobs.domain.job import MAX_RESULT, Claimed, Outcome, Report, Running
from easyjobs.errors import AccessRefused, ProtocolError
from easyjobs.protocol.codec import encode
from easyjobs.protocol.handshake import manager_proof
from easyjobs.protocol.held import digest_of
from easyjobs.protocol.manager_side import MAX_HELLO, ManagerSide
from easyjobs.protocol.messages import (
    MAX_OPEN_SUBMITS,
    Acked,
    Beat,
    BeatSeen,
    Cancel,
    Challenge,
    Credit,
    Frame,
    FromManager,
    Goaway,
    Held,
    Hello,
    NewTask,
    Offer,
    Offered,
    OfferedTask,
    Refused,
    Reports,
    Results,
    Run,
    Submit,
    SubmitItem,
    Submitted,
    Unwatch,
    Watch,
    WatchedResult,
    Welcome,
)
from easyjobs.protocol.worker_side import (
    MAX_HELD_IN_HELLO,
    MAX_OPEN_SUBMIT_BYTES,
    MAX_UNACKED,
    JobsArrived,
    JobsEnded,
    LanesKnown,
    LeaseRenewed,
    Leaving,
    Lost,
    StopAsked,
    SubmitAnswered,
    Welcomed,
    WorkerSide,
)

SESSION, MINE, THEIRS = b"s" * 16, b"p" * 32, b"m" * 32


def side(slots: int = 3) -> WorkerSide:
    return WorkerSide(session=SESSION, secret="secret", name="w", queue="DEFAULT", slots=slots, software="easyjobs")


def welcome(drop: Iterable[Running] = (), secret: str = "secret") -> Welcome:
    proof = manager_proof(secret, role="worker", session=SESSION, manager_nonce=THEIRS, peer_nonce=MINE, version=1)
    return Welcome(proof=proof, lease_s=30.0, beat_s=10.0, drop=list(drop))


def connect(worker: WorkerSide, drop: Iterable[Running] = ()) -> list[Frame]:
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    worker.welcomed(welcome(drop))
    return sent(worker)


def sent(worker: WorkerSide) -> list[Frame]:
    frames, worker.outgoing = worker.outgoing, []
    return frames


def job(seq: int, attempt: int = 1) -> Claimed:
    return Claimed(seq, attempt, 1, seq.to_bytes(16), 0, 0, b"[[],{}]")


def done(seq: int, attempt: int = 1, body: bytes = b"1") -> Report:
    return Report(seq, attempt, Outcome.SUCCEEDED, 5, body)


# --- the handshake


def test_the_hello_says_who_we_are_and_what_we_hold() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2, 3)]))
    worker.disconnected()
    [hello] = worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    assert isinstance(hello, Hello)
    assert (hello.role, hello.session, hello.queue, hello.slots) == ("worker", SESSION, "DEFAULT", 3)
    assert hello.held == [Running(1, 1, 1, job(1).id), Running(2, 3, 1, job(2).id)]


@pytest.mark.parametrize("count", [MAX_HELD_IN_HELLO, MAX_HELD_IN_HELLO + 1, MAX_UNACKED])
def test_a_hello_is_small_however_much_we_hold(count: int) -> None:
    worker = WorkerSide(session=SESSION, secret="secret", name="w" * 200, queue="q" * 64, slots=100_000, software="s" * 100)
    connect(worker)
    jobs = [msgspec.structs.replace(job(2**62 - n), attempt=2**31 - 1, lane=2**31 - 1) for n in range(count)]
    worker.receive(Run(jobs=jobs))
    worker.disconnected()
    hello, *rest = worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    assert isinstance(hello, Hello)
    assert len(encode(hello)) < MAX_HELLO
    held = [running for frame in rest if isinstance(frame, Held) for running in frame.items]
    assert hello.held_later is bool(rest)
    assert hello.held + held == [Running(one.seq, one.attempt, one.lane, one.id) for one in jobs]
    manager = ManagerSide(("secret",), THEIRS)
    taken = manager.greet(encode(hello))
    for frame in rest:
        taken = manager.complete(encode(frame))
    assert len(taken.held) == count


def test_a_manager_that_does_not_know_the_secret_gets_nothing_from_us() -> None:
    worker = side()
    worker.offer([NewTask("add", b"{}", b"{}")])
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    with pytest.raises(AccessRefused, match="does not know the secret"):
        worker.welcomed(welcome(secret="another"))
    assert sent(worker) == []
    assert not worker.is_up


@pytest.mark.parametrize("code", [4401, 4426])
def test_a_wrong_secret_or_version_is_final(code: int) -> None:
    worker = side()
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    with pytest.raises(AccessRefused, match="wrong"):
        worker.welcomed(Refused(code=code, reason="wrong"))


def test_another_version_of_the_protocol_is_final() -> None:
    with pytest.raises(AccessRefused, match="version 2"):
        side().challenged(Challenge(version=2, nonce=THEIRS), MINE)


def test_a_refusal_for_now_is_not_final() -> None:
    worker = side()
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    with pytest.raises(ProtocolError) as caught:
        worker.welcomed(Refused(code=1013, reason="busy"))
    assert caught.value.code == 1013


def test_frames_out_of_place_are_a_protocol_error() -> None:
    worker = side()
    with pytest.raises(ProtocolError):
        worker.challenged(welcome(), MINE)
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    with pytest.raises(ProtocolError):
        worker.welcomed(Run(jobs=[]))
    worker.welcomed(welcome())
    with pytest.raises(ProtocolError):
        worker.receive(welcome())


def test_a_welcome_renews_the_lease_and_tells_its_length() -> None:
    worker = side()
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    assert worker.welcomed(welcome()) == [Welcomed(30.0, 10.0), LeaseRenewed(0)]


# --- credit


def test_credit_counts_jobs_since_the_start_of_the_connection() -> None:
    worker = side()
    worker.credit(5)
    assert connect(worker) == [Credit(limit=5)]
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.report([done(1)], 5)
    [reports] = sent(worker)
    assert isinstance(reports, Reports)
    assert reports.limit == 6  # one finished, room for five
    worker.disconnected()
    frames = connect(worker)
    assert frames[-1] == Credit(limit=4)  # anew: five minus the one that still runs


def test_a_limit_does_not_fall_by_itself_and_what_was_given_away_is_regained() -> None:
    worker = side()
    worker.credit(10)
    connect(worker)
    worker.receive(Run(jobs=[job(seq) for seq in range(1, 11)]))
    worker.report([done(1)], 3)  # the room has shrunk
    assert [frame.limit for frame in sent(worker) if isinstance(frame, Reports)] == [10]
    for seq in range(2, 8):
        worker.report([done(seq)], 3)
    assert [frame.limit for frame in sent(worker) if isinstance(frame, Reports)] == [10] * 6
    worker.report([done(8)], 3)  # two are left: one more fits
    assert [frame.limit for frame in sent(worker) if isinstance(frame, Reports)] == [11]


def test_a_limit_falls_when_jobs_had_to_be_given_back_or_there_is_no_room() -> None:
    worker = side()
    worker.credit(10)
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.report([Report(2, 1, Outcome.RELEASED)], 1, falls=True)  # the one slot is busy
    assert [frame.limit for frame in sent(worker) if isinstance(frame, Reports)] == [2]
    worker.credit(3)
    assert sent(worker) == [Credit(limit=4)]
    worker.credit(0)
    assert sent(worker) == [Credit(limit=1)]
    worker.credit(0)
    assert sent(worker) == []


def test_a_side_that_withdraws_says_so_at_once() -> None:
    worker = side()
    worker.credit(10)
    connect(worker)
    worker.receive(Run(jobs=[job(1)]))
    worker.withdraw()
    assert sent(worker) == [Credit(limit=1)]
    worker.credit(20)
    assert sent(worker) == []


def test_a_frozen_side_takes_nothing_new_until_it_thaws() -> None:
    worker = side()
    worker.credit(2)
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.credit(5)
    worker.freeze()
    assert [frame.limit for frame in sent(worker) if isinstance(frame, Credit)] == [5, 2]
    worker.report([done(1)], 2)
    assert [frame.limit for frame in sent(worker) if isinstance(frame, Reports)] == [2]
    worker.thaw()
    assert sent(worker) == [Credit(limit=3)]


def test_a_withdrawn_side_takes_nothing_and_offers_nothing_after_a_reconnect() -> None:
    worker = side()
    worker.offer([NewTask("add", b"{}", b"{}")])
    worker.credit(2)
    connect(worker)
    worker.withdraw()
    worker.disconnected()
    worker.credit(2)
    assert connect(worker) == []


# --- reports


def test_reports_are_held_until_they_are_acked() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.report([done(1), done(2)], 3)
    [reports] = sent(worker)
    assert isinstance(reports, Reports)
    assert (worker.held_count, worker.unacked) == (2, 2)
    worker.receive(Acked(number=reports.number))
    assert (worker.held_count, worker.unacked) == (0, 0)
    assert worker.receive(Acked(number=reports.number)) is None  # a repeat does no harm


def test_what_is_given_back_does_not_count_as_finished() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.report([Report(1, 1, Outcome.RELEASED)], 3)
    assert (worker.unacked, worker.finished) == (1, 0)
    worker.report([done(2)], 3)
    assert (worker.unacked, worker.finished) == (2, 1)
    worker.receive(Acked(number=[frame.number for frame in sent(worker) if isinstance(frame, Reports)][-1]))
    assert (worker.unacked, worker.finished) == (1, 0)


def test_unacked_reports_are_sent_again_before_new_ones() -> None:
    worker = side()
    worker.offer([NewTask("add", b"{}", b"{}")])
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2), job(3)]))
    worker.report([done(1)], 3)
    worker.report([done(2)], 3)
    worker.disconnected()
    worker.report([done(3)], 3)
    offer, *reports, credit = connect(worker)
    assert isinstance(offer, Offer)
    assert [frame.items[0].seq for frame in reports if isinstance(frame, Reports)] == [1, 2, 3]
    assert all(isinstance(frame, Reports) and frame.limit == 0 for frame in reports)
    assert credit == Credit(limit=3)
    numbers = [frame.number for frame in reports if isinstance(frame, Reports)]
    assert numbers == sorted(set(numbers))


def test_an_ack_of_an_earlier_attempt_leaves_the_later_one_held() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1)]))
    worker.report([Report(1, 1, Outcome.FAILED, 5, b"{}", True, 0)], 3)
    [reports] = sent(worker)
    assert isinstance(reports, Reports)
    worker.receive(Run(jobs=[job(1, 2)]))  # claimed again, in the very transaction of the report
    worker.receive(Acked(number=reports.number))
    assert worker.held_count == 1
    worker.report([done(1, 2)], 3)
    [again] = sent(worker)
    assert isinstance(again, Reports)
    assert again.items == [done(1, 2)]


def test_large_results_are_split_over_frames_that_can_be_sent() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(seq) for seq in range(1, 5)]))
    worker.report([done(seq, body=b"1" * MAX_RESULT) for seq in range(1, 5)], 3)
    frames = sent(worker)
    assert len(frames) == 4
    assert all(encode(frame) for frame in frames)


def test_many_reports_are_split_over_frames() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(seq) for seq in range(1, 2502)]))
    worker.report([done(seq) for seq in range(1, 2502)], 3)
    assert [len(frame.items) for frame in sent(worker) if isinstance(frame, Reports)] == [1000, 1000, 501]


def test_a_dropped_attempt_is_stopped_and_its_report_is_not_sent() -> None:
    worker = side()
    worker.credit(3)
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.disconnected()
    worker.challenged(Challenge(version=1, nonce=THEIRS), MINE)
    events = worker.welcomed(welcome([Running(1, 1, 1, job(1).id), Running(9, 9, 1, b"x" * 16)]))
    assert events[-1] == Lost([(1, 1)])
    assert sent(worker) == [Credit(limit=1)]  # both bodies still run
    worker.report([done(1)], 3)
    assert sent(worker) == [Credit(limit=2)]  # nothing is said of it, and its room is regained


def test_what_was_not_reported_is_known() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    worker.report([done(1)], 3)
    assert [held.seq for held in worker.unreported()] == [2]


# --- beats


def test_a_beat_describes_the_held_set_and_the_set_is_sent_when_it_differs() -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2, 5)]))
    number = worker.beat(1.5)
    assert sent(worker) == [Beat(number=number, count=2, digest=digest_of([(1, 1), (2, 5)]), loop_age_s=1.5)]
    assert worker.receive(BeatSeen(number=number)) == LeaseRenewed(number)
    assert sent(worker) == []
    worker.receive(BeatSeen(number=number, send_held=True))
    assert sent(worker) == [Held(items=[Running(1, 1, 1, job(1).id), Running(2, 5, 1, job(2).id)])]


# --- what the manager says


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (Run(jobs=[job(7)]), JobsArrived([job(7)])),
        (Cancel(jobs=[(1, 1), (1, 2), (5, 1)]), StopAsked([(1, 1)])),
        (Goaway(reason="bye", spread_s=2.0), Leaving(2.0)),
        (Results(items=[WatchedResult(b"i" * 16, 2, b"1")]), JobsEnded([WatchedResult(b"i" * 16, 2, b"1")])),
        (Offered(number=1, tasks=[OfferedTask("add", 4)], refused=[("x", "no")]), LanesKnown([OfferedTask("add", 4)], [("x", "no")])),
        (Submitted(number=99), None),
        (Acked(number=99), None),
    ],
)
def test_frames_become_events(frame: FromManager, event: object) -> None:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1)]))
    assert worker.receive(frame) == event


def test_a_task_that_was_refused_is_not_offered_again() -> None:
    worker = side()
    worker.offer([NewTask("good", b"{}", b"{}"), NewTask("bad", b"{}", b"{}")])
    connect(worker)
    worker.receive(Offered(number=1, tasks=[OfferedTask("good", 1)], refused=[("bad", "no")]))
    worker.disconnected()
    [offer] = connect(worker)
    assert isinstance(offer, Offer)
    assert [task.name for task in offer.tasks] == ["good"]


# --- submits and watches


def test_unanswered_submits_and_watches_are_repeated_after_a_reconnect() -> None:
    worker = side()
    connect(worker)
    item = SubmitItem(b"i" * 16, "DEFAULT", "add", b"[[],{}]")
    first = worker.submit([item], None)
    second = worker.submit([item], None)
    worker.watch([b"a" * 16, b"b" * 16])
    sent(worker)
    assert worker.receive(Submitted(number=first)) == SubmitAnswered(first, None)
    worker.receive(Results(items=[WatchedResult(b"a" * 16, 2, b"1")]))
    worker.disconnected()
    submit, watch = connect(worker)
    assert isinstance(submit, Submit)
    assert submit.number == second
    assert watch == Watch(ids=[b"b" * 16])
    assert worker.waits_for_answers
    worker.receive(Submitted(number=second))
    assert not worker.waits_for_answers
    worker.unwatch([b"b" * 16])
    assert sent(worker) == [Unwatch(ids=[b"b" * 16])]


def test_no_more_submits_are_under_way_than_the_manager_takes_so_that_beats_are_not_left_behind_them() -> None:
    worker = side()
    connect(worker)
    small = SubmitItem(b"i" * 16, "DEFAULT", "add", b"[[],{}]")
    numbers = [worker.submit([small], None) for _ in range(MAX_OPEN_SUBMITS + 2)]
    assert [frame.number for frame in sent(worker) if isinstance(frame, Submit)] == numbers[:MAX_OPEN_SUBMITS]
    worker.receive(Submitted(number=numbers[3]))
    assert [frame.number for frame in sent(worker) if isinstance(frame, Submit)] == [numbers[MAX_OPEN_SUBMITS]]
    worker.disconnected()
    again = [frame.number for frame in connect(worker) if isinstance(frame, Submit)]
    left = [number for number in numbers if number != numbers[3]]
    assert again == left[:MAX_OPEN_SUBMITS]
    for number in left:
        assert worker.receive(Submitted(number=number)) == SubmitAnswered(number, None)
    assert [frame.number for frame in sent(worker) if isinstance(frame, Submit)] == left[MAX_OPEN_SUBMITS:]
    assert not worker.waits_for_answers


def test_large_submits_go_one_after_the_other() -> None:
    worker = side()
    connect(worker)
    large = SubmitItem(b"i" * 16, "DEFAULT", "add", b"x" * (MAX_OPEN_SUBMIT_BYTES // 2))
    first, second, third = [worker.submit([large], None) for _ in range(3)]
    assert [frame.number for frame in sent(worker) if isinstance(frame, Submit)] == [first, second]
    worker.receive(Submitted(number=first))
    assert [frame.number for frame in sent(worker) if isinstance(frame, Submit)] == [third]
    worker.receive(Submitted(number=second))
    worker.receive(Submitted(number=third))
    huge = msgspec.structs.replace(large, args=b"x" * (MAX_OPEN_SUBMIT_BYTES + 1))
    worker.submit([huge], None)
    assert len(sent(worker)) == 1
