"""What a worker says of its running attempts, as lists of frames."""

from __future__ import annotations

import pytest

from easyjobs.domain.seeing import Line, Mark, StateChanged
from easyjobs.errors import ProtocolError
from easyjobs.protocol import worker_side as module
from easyjobs.protocol.codec import encode
from easyjobs.protocol.manager_side import ManagerSide
from easyjobs.protocol.messages import Acked, Follow, Followed, Hello, Log, Progress, Reports, Run, Unfollow
from easyjobs.protocol.worker_side import NewsArrived, WorkerSide
from tests.protocol.test_worker_side import connect, done, job, sent, side

ID = b"i" * 16


def line(seq: int, number: int, text: str = "x") -> Line:
    return Line(seq, 1, number, 0, 20, "app", text)


def busy() -> WorkerSide:
    worker = side()
    connect(worker)
    worker.receive(Run(jobs=[job(1), job(2)]))
    sent(worker)
    return worker


def test_notes_of_attempts_that_are_held_are_sent_and_others_passed_over() -> None:
    worker = busy()
    worker.note([Mark(1, 1, 5), Mark(1, 2, 6), Mark(9, 1, 7)], [line(1, 1), line(9, 1), line(2, 1)])
    log, progress = sent(worker)
    assert progress == Progress(items=[Mark(1, 1, 5)])
    assert isinstance(log, Log)
    assert log.lines == [line(1, 1), line(2, 1)]
    worker.note([], [])
    assert sent(worker) == []


def test_lines_go_before_the_report_and_again_until_they_are_acked() -> None:
    worker = busy()
    worker.note([], [line(1, 1)])
    worker.report([done(1)], 3)
    log, reports, *_ = sent(worker)
    assert isinstance(log, Log)
    assert isinstance(reports, Reports)
    assert worker.waits_for_answers
    worker.disconnected()
    again = [frame for frame in connect(worker) if isinstance(frame, Log | Reports)]
    assert [type(frame) for frame in again] == [Log, Reports]
    assert again[0] == log
    worker.receive(Acked(number=log.number))
    worker.receive(Acked(number=reports.number))
    assert not worker.waits_for_answers
    worker.disconnected()
    assert not [frame for frame in connect(worker) if isinstance(frame, Log | Reports)]


def test_what_is_written_while_the_manager_is_away_is_sent_when_it_is_back() -> None:
    worker = busy()
    worker.disconnected()
    worker.note([Mark(1, 1, 1), Mark(2, 1, 1)], [line(1, 1)])
    worker.note([Mark(1, 1, 2)], [line(1, 2)])
    worker.report([done(2)], 3)
    frames = connect(worker)
    assert [frame.items for frame in frames if isinstance(frame, Progress)] == [[Mark(1, 1, 2), Mark(2, 1, 1)]]
    assert [frame.lines for frame in frames if isinstance(frame, Log)] == [[line(1, 1)], [line(1, 2)]]
    worker.disconnected()
    assert not [frame for frame in connect(worker) if isinstance(frame, Progress)], "progress is not said again"


def test_a_frame_holds_no_more_than_it_may() -> None:
    worker = busy()
    worker.note([], [line(1, n) for n in range(1, module.MAX_LINES + 2)])
    assert [len(frame.lines) for frame in sent(worker) if isinstance(frame, Log)] == [module.MAX_LINES, 1]
    half = "x" * (module.MAX_LINE_BYTES // 2)
    worker.note([], [line(2, n, half) for n in range(1, 5)])
    assert all(len(encode(frame)) < module.MAX_LINE_BYTES * 1.1 for frame in sent(worker))


def test_lines_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNACKED_LINE_BYTES", 20)
    worker = busy()
    worker.note([], [line(1, n, "12345") for n in range(1, 5)])  # 8 bytes each, with the logger's name
    [log] = sent(worker)
    assert isinstance(log, Log)
    assert (len(log.lines), worker.dropped_lines) == (2, 2)
    worker.receive(Acked(number=log.number))
    worker.note([], [line(1, 5, "12345")])
    assert worker.dropped_lines == 2


def test_a_follow_is_repeated_until_it_is_answered_and_answered_once() -> None:
    worker = busy()
    number = worker.follow(ID, (0, 0))
    assert sent(worker) == [Follow(number=number, id=ID)]
    worker.disconnected()
    assert Follow(number=number, id=ID) in connect(worker)
    news = [StateChanged("running", 1)]
    assert worker.receive(Followed(number=number, news=list(news))) == NewsArrived(number, list(news), False)
    assert worker.receive(Followed(number=number, news=list(news))) is None
    assert worker.follow(ID, (1, 3), number) == number
    assert sent(worker) == [Follow(number=number, id=ID, after=(1, 3))]
    worker.unfollow(number)
    assert sent(worker) == [Unfollow(number=number)]
    worker.disconnected()
    assert not [frame for frame in connect(worker) if isinstance(frame, Follow)]


@pytest.mark.parametrize("frame", [Progress(items=[]), Log(number=1, lines=[])])
def test_a_client_may_not_speak_for_attempts(frame: Progress | Log) -> None:
    manager = ManagerSide(("secret",), b"n" * 32)
    manager.hello = Hello(version=1, role="client", session=b"s" * 16, nonce=b"", proof=b"")
    with pytest.raises(ProtocolError, match="client may not send"):
        manager.receive(encode(frame))
