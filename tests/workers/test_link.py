"""The link and its manager: what survives a cut, a restart, a blocked loop, silence and a refusal."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from easyjobs.domain.job import Claimed, Outcome, Running
from easyjobs.errors import AccessRefused, ConfigurationError
from easyjobs.protocol.messages import CLOSE_ENDED, HOLDS_HEADER, Run
from easyjobs.protocol.worker_side import JobsArrived
from easyjobs.runtime.ids import new_id
from easyjobs.workers.worker import EasyJobsWorker
from tests.processes import free_port
from tests.workers.fake import SECRET, FakeManager, within
from tests.workers.test_pool import Gauge

Start = Callable[..., Awaitable[EasyJobsWorker]]


async def test_tasks_registered_later_are_offered_at_once_and_together(manager: FakeManager, start: Start) -> None:
    worker = await start()
    await manager.connected()
    for name in ("one", "two", "three"):
        worker.task(lambda: 1, name=name, retry_policy="never", priority=2)
    await manager.seen(lambda: len(manager.offers) == 3)
    assert manager.offers["two"]["max_retries"] == 0
    assert manager.offers["two"]["priority"] == 2


async def test_a_wrong_secret_fails_at_once(manager: FakeManager) -> None:
    with pytest.raises(AccessRefused, match="wrong secret"):
        await within(2.5, EasyJobsWorker.create(manager_port=manager.port, manager_secret="not the manager's secret, but a long one"))


async def test_without_a_secret_the_message_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EASYJOBS_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="manager_secret"):
        await EasyJobsWorker.create()


async def test_a_manager_that_comes_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyjobs.workers.worker.FIRST_S", 0.1)
    manager, port = FakeManager(), free_port()
    async with await EasyJobsWorker.create(manager_port=port, manager_secret=SECRET) as worker:
        worker.task(lambda: 7, name="seven")
        await manager.start(port)
        assert (await manager.run_job("seven")).body == b"7"
        await worker.close()
        await manager.stop()


async def test_a_secret_refused_later_ends_the_worker(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("easyjobs.workers.worker.FIRST_S", 0.1)
    ended = asyncio.Event()
    monkeypatch.setattr("easyjobs.runtime.drain.give_up", lambda _: ended.set())
    manager, port = FakeManager(secret="another one, just as long as the first"), free_port()
    async with await EasyJobsWorker.create(manager_port=port, manager_secret=SECRET):
        await manager.start(port)
        await within(10, ended.wait())
        await manager.stop()
    assert "wrong secret" in caplog.text
    assert SECRET not in caplog.text


async def test_a_manager_that_answers_later_than_the_first_patience_is_reached(
    monkeypatch: pytest.MonkeyPatch, manager: FakeManager
) -> None:
    """As one does to which thousands come back at once: who gives up each time goes to the end of its queue each time."""
    monkeypatch.setattr("easyjobs.workers.worker.FIRST_S", 0.1)
    monkeypatch.setattr("easyjobs.workers.link.CONNECT_S", 0.2)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.0)
        there = await asyncio.open_connection("127.0.0.1", manager.port)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)

    queue = await asyncio.start_server(slowly, "127.0.0.1", 0)
    async with await EasyJobsWorker.create(manager_port=queue.sockets[0].getsockname()[1], manager_secret=SECRET) as worker:
        worker.task(lambda: 7, name="seven")
        await manager.seen(lambda: "seven" in manager.offers, 15)
        assert (await manager.run_job("seven")).body == b"7"
    queue.close()


async def test_running_jobs_and_unacked_reports_survive_a_cut(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(), Gauge()
    worker.task(gauge.inside, name="wait")
    worker.task(lambda: 1, name="quick")
    manager.ack = False
    quick = manager.add("quick")
    waiting = manager.add("wait")
    await manager.seen(lambda: len(manager.offers) == 2)
    await manager.give()
    await manager.report(quick)
    await gauge.has(1)
    manager.cut()
    await manager.connected(2)
    assert {held.seq for held in manager.hellos[1].held} == {quick, waiting}
    await manager.report(quick, 2)  # again, since it was not acked
    manager.ack = True
    gauge.open.set()
    assert (await manager.report(waiting)).outcome is Outcome.SUCCEEDED
    assert (await manager.run_job("quick")).body == b"1"
    assert len(manager.reports_of[waiting]) == 1


async def test_a_restarted_manager_is_found_quickly_and_jobs_are_not_run_twice(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(), Gauge()
    worker.task(gauge.inside, name="wait")
    seq = manager.add("wait")
    await manager.seen(lambda: "wait" in manager.offers)
    await manager.give()
    await gauge.has(1)
    port = manager.port
    await manager.stop()
    await manager.start(port)
    began = time.monotonic()
    await manager.connected(2)
    assert time.monotonic() - began < 5
    gauge.open.set()
    assert (await manager.report(seq)).outcome is Outcome.SUCCEEDED
    assert gauge.most == 1


async def test_a_worker_that_holds_jobs_says_so_before_it_is_let_in(manager: FakeManager, start: Start) -> None:
    """So that it does not wait behind thousands of idle ones."""
    worker, gauge = await start(), Gauge()

    def said() -> str | None:
        assert manager.socket is not None
        assert manager.socket.request is not None
        return manager.socket.request.headers.get(HOLDS_HEADER)

    worker.task(gauge.inside, name="wait")
    seq = manager.add("wait")
    await manager.seen(lambda: "wait" in manager.offers)
    assert said() is None
    await manager.give()
    await gauge.has(1)
    manager.cut()
    await manager.connected(2)
    assert said() == "1"
    gauge.open.set()
    await manager.report(seq)


async def test_an_idle_worker_that_a_manager_has_no_place_for_leaves_the_door_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def cap(lease_s: float, refusals: int, *, holds: bool) -> float:
        asked.append((refusals, holds))
        if len(asked) >= 4:
            loop.call_soon_threadsafe(enough.set)
        return 0.01

    monkeypatch.setattr("easyjobs.workers.worker.FIRST_S", 0.1)
    monkeypatch.setattr("easyjobs.runtime.reconnect.cap", cap)

    async def busy(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(503, "try again")

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=busy) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with await EasyJobsWorker.create(manager_port=port, manager_secret=SECRET):
            await within(10, enough.wait())
    assert asked[:4] == [(1, False), (2, False), (3, False), (4, False)]


async def test_attempts_that_the_manager_gave_away_are_stopped_and_not_reported(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(), Gauge()
    worker.task(gauge.inside, name="wait")
    worker.task(lambda: 1, name="quick")
    seq = manager.add("wait")
    await manager.seen(lambda: len(manager.offers) == 2)
    await manager.give()
    await gauge.has(1)
    job = manager.running.pop(seq)
    manager.drop = [Running(job.seq, job.attempt, job.lane, job.id)]
    manager.cut()
    await manager.connected(2)
    await gauge.has(0)
    await manager.run_job("quick")
    assert seq not in manager.reports_of


async def test_a_cancelled_job_is_stopped_and_released(manager: FakeManager, start: Start) -> None:
    worker, gauge = await start(), Gauge()
    worker.task(gauge.inside, name="wait")
    manager.requeue_released = False
    seq = manager.add("wait")
    await manager.seen(lambda: "wait" in manager.offers)
    await manager.give()
    await gauge.has(1)
    await manager.cancel(seq)
    assert (await manager.report(seq)).outcome is Outcome.RELEASED
    await gauge.has(0)


async def test_a_cancelled_thread_is_released_at_once_told_and_keeps_its_slot(manager: FakeManager, start: Start) -> None:
    from easyjobs.tasks import current_job

    worker = await start(1)
    told, go, entered = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        go.wait(10)
        if current_job().cancel_requested:
            told.set()

    worker.task(block)
    worker.task(lambda: 1, name="quick")
    manager.requeue_released = False
    await manager.seen(lambda: len(manager.offers) == 2)
    seq = manager.add("block")
    await manager.give()
    assert await asyncio.to_thread(entered.wait, 10)
    await manager.cancel(seq)
    assert (await manager.report(seq)).outcome is Outcome.RELEASED
    behind = manager.add("quick")
    await manager.give()
    assert behind in manager.running or manager.queue
    assert behind not in manager.reports_of
    go.set()
    await manager.report(behind)
    assert told.wait(5)
    assert len(manager.reports_of[seq]) == 1


async def test_a_success_wins_over_a_cancellation_that_the_body_ignores(manager: FakeManager, start: Start) -> None:
    worker = await start()
    entered = asyncio.Event()

    @worker.task()
    async def stubborn() -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return ""

    seq = manager.add("stubborn")
    await manager.seen(lambda: "stubborn" in manager.offers)
    await manager.give()
    await within(10, entered.wait())
    await manager.cancel(seq)
    assert (await manager.report(seq)).body == b'"done all the same"'


async def test_the_lease_is_renewed_while_the_loop_is_blocked_and_the_culprit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeManager(lease_s=3.0, beat_s=0.2) as manager:
        # The manager must not share the loop that the task blocks.
        worker_done: list[str] = []

        def run_worker() -> None:
            async def main() -> None:
                async with await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET) as worker:

                    @worker.task()
                    async def block() -> str:
                        time.sleep(2.5)  # noqa: ASYNC251 - the fault itself
                        return "blocked"

                    @worker.task()
                    async def quick() -> int:
                        return 1

                    await asyncio.to_thread(stop.wait)
                worker_done.append("yes")

            asyncio.run(main())

        stop = threading.Event()
        thread = threading.Thread(target=run_worker)
        thread.start()
        try:
            await manager.seen(lambda: len(manager.offers) == 2)
            manager.requeue_released = False
            seq = manager.add("block")
            await manager.give()
            await manager.seen(lambda: any(beat.loop_age_s > 1 for beat in manager.beats))
            behind = [manager.add("quick") for _ in range(2)]
            await manager.give()
            for one in behind:  # a blocked loop does not keep what it cannot start
                assert (await manager.report(one)).outcome is Outcome.RELEASED
            assert seq not in manager.reports_of
            assert (await manager.report(seq)).body == b'"blocked"'
            assert (await manager.run_job("quick")).body == b"1"
            assert len(manager.hellos) == 1
        finally:
            stop.set()
            await asyncio.to_thread(thread.join, 20)
        assert worker_done == ["yes"]
        assert "loop.blocked" in caplog.text
        assert "time.sleep(2.5)" in caplog.text


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.read(1000):
            pass
    except asyncio.CancelledError:
        pass
    finally:
        writer.close()


async def test_a_worker_that_cannot_renew_its_lease_stops_its_work_but_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyjobs.workers.link.CONNECT_S", 1.0)
    async with FakeManager(lease_s=1.0, beat_s=0.2) as manager:
        manager.ack = False
        async with await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET, grace_s=1) as worker:
            gauge = Gauge()
            worker.task(gauge.inside, name="wait")
            worker.task(lambda: 1, name="quick")
            quick, waiting = manager.add("quick"), manager.add("wait")
            await manager.seen(lambda: len(manager.offers) == 2)
            await manager.give()
            await manager.report(quick)
            await gauge.has(1)
            port = manager.port
            await manager.stop()
            async with await asyncio.start_server(says_nothing, "127.0.0.1", port):  # a network that swallows everything looks like this
                await gauge.has(0)  # stopped by itself
            manager.ack = True
            await manager.start(port)
            await manager.connected(2)
            assert (await manager.report(quick, 2)).outcome is Outcome.SUCCEEDED
            assert (await manager.report(waiting)).outcome is Outcome.RELEASED


async def test_a_job_that_comes_after_the_lease_was_lost_stops_too_unless_the_lease_is_renewed() -> None:
    async with FakeManager(lease_s=1.0, beat_s=30.0) as manager:
        manager.answer_beats = False
        async with await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET, grace_s=1) as worker:
            gauge = Gauge()
            worker.task(gauge.inside, name="wait")
            await manager.seen(lambda: "wait" in manager.offers)
            waiting = manager.add("wait")
            await manager.give()
            assert (await manager.report(waiting)).outcome is Outcome.RELEASED
            assert (
                await manager.report(waiting, 2)
            ).outcome is Outcome.RELEASED  # given out again at once, by a manager that says nothing of a lease


async def test_a_connection_without_answers_is_given_up_and_made_anew() -> None:
    async with FakeManager(lease_s=60.0, beat_s=0.1) as manager:
        manager.answer_beats = False
        async with await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET):
            await manager.connected(2)
            manager.answer_beats = True


async def test_beats_describe_what_is_held_and_the_list_follows_when_it_differs() -> None:
    async with (
        FakeManager(lease_s=30.0, beat_s=0.1) as manager,
        await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET) as worker,
    ):
        gauge = Gauge()
        worker.task(gauge.inside, name="wait")
        seq = manager.add("wait")
        await manager.seen(lambda: "wait" in manager.offers)
        await manager.give()
        await gauge.has(1)
        await manager.seen(lambda: manager.beats and manager.beats[-1].count == 1)
        known = manager.running.pop(seq)
        await manager.seen(lambda: manager.held)
        assert manager.held[-1].items == [Running(known.seq, known.attempt, known.lane, known.id)]
        manager.running[seq] = known
        gauge.open.set()


async def test_submits_and_watches_survive_a_cut(manager: FakeManager, start: Start) -> None:
    worker = await start()
    manager.answer_submits = False

    @worker.task()
    async def add(a: int, b: int) -> int:
        return a + b

    waiting = asyncio.ensure_future(add(1, 2))
    await manager.seen(lambda: manager.submits)
    manager.answer_submits = True
    manager.cut()
    assert await within(10, waiting) == 3
    assert len(manager.submits) == 2
    assert manager.submits[0].jobs == manager.submits[1].jobs


async def test_closing_finishes_what_runs_gives_back_the_rest_and_flushes(manager: FakeManager) -> None:
    worker = await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET, grace_s=0.3, max_tasks_per_worker=2)
    gauge, entered = Gauge(), asyncio.Event()

    @worker.task()
    async def short() -> str:
        entered.set()
        await asyncio.sleep(0.05)
        return "finished"

    worker.task(gauge.inside, name="endless")
    manager.requeue_released = False
    await manager.seen(lambda: len(manager.offers) == 2)
    short_seq, endless = manager.add("short"), manager.add("endless")
    await manager.give()
    await within(10, entered.wait())
    await gauge.has(1)
    await within(10, worker.close())
    assert (await manager.report(short_seq)).body == b'"finished"'
    assert (await manager.report(endless)).outcome is Outcome.RELEASED
    await manager.seen(lambda: manager.socket is None)
    await within(1, worker.close())  # again does no harm


async def test_jobs_that_come_after_all_was_acked_do_not_keep_a_worker_from_saying_that_it_has_ended(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET)

    @worker.task()
    async def plain() -> None: ...

    await manager.run_job("plain")
    link = worker._link
    ending, late = link._ending.set, Run(jobs=[Claimed(99, 1, manager.lanes["plain"], new_id(), 0, 0, b"[[],{}]")])

    def end_and_get_one_more() -> None:
        ending()
        link._take(JobsArrived(late.jobs))
        link._side.receive(late)
        link._give_back_unstarted()

    monkeypatch.setattr(link._ending, "set", end_and_get_one_more)
    await within(10, worker.close())
    await manager.seen(lambda: manager.closes)
    assert manager.closes == [CLOSE_ENDED]


async def test_a_body_that_swallows_its_cancellation_does_not_keep_the_worker_from_ending(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyjobs.workers.pool.STOP_S", 0.2)
    worker = await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET, grace_s=0.0, max_tasks_per_worker=2)
    entered, go, really = asyncio.Event(), threading.Event(), asyncio.Event()

    @worker.task()
    async def stubborn() -> None:
        entered.set()
        while not really.is_set():
            try:
                await really.wait()
            except asyncio.CancelledError:
                continue

    worker.task(lambda: go.wait(30), name="thread")
    manager.requeue_released = False
    await manager.seen(lambda: len(manager.offers) == 2)
    seqs = [manager.add("stubborn"), manager.add("thread")]
    await manager.give()
    await within(10, entered.wait())
    await within(10, worker.close())
    for seq in seqs:
        assert (await manager.report(seq)).outcome is Outcome.RELEASED
    go.set()
    really.set()


async def test_the_reconnects_are_said_sparsely(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyjobs.workers.worker.FIRST_S", 1.0)
    monkeypatch.setattr("easyjobs.runtime.reconnect.wait", lambda failures, random: 0.01)
    caplog.set_level(logging.WARNING)
    async with await EasyJobsWorker.create(manager_port=free_port(), manager_secret=SECRET):
        pass
    said = [record for record in caplog.records if record.message.startswith("manager.unreachable")]
    assert 1 <= len(said) <= 8
    assert "tries=1" in said[0].message


# --- several managers -------------------------------------------------------------------------------------------------------------


async def of_two(one: FakeManager, two: FakeManager) -> tuple[FakeManager, FakeManager]:
    """The manager that the worker has chosen, and the other one."""
    first = [asyncio.ensure_future(manager.connected()) for manager in (one, two)]
    await within(10, asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED))
    for waiting in first:
        waiting.cancel()
    return (one, two) if one.hellos else (two, one)


async def test_a_worker_that_loses_its_manager_takes_what_it_holds_to_the_next() -> None:
    async with FakeManager() as one, FakeManager() as two:
        hosts = [f"127.0.0.1:{one.port}", f"localhost:{two.port}"]
        async with await EasyJobsWorker.create(manager_host=hosts, manager_secret=SECRET, grace_s=1) as worker:
            gauge = Gauge()
            worker.task(gauge.inside, name="wait")
            worker.task(lambda: 1, name="quick")
            first, second = await of_two(one, two)
            first.ack = False
            quick, waiting = first.add("quick"), first.add("wait")
            await first.seen(lambda: len(first.offers) == 2)
            await first.give()
            await first.report(quick)
            await gauge.has(1)
            for seq, job in first.jobs.items():
                second.jobs[seq] = second.running[seq] = job
            await first.stop()
            await second.seen(lambda: len(second.offers) == 2)
            assert [job.seq for job in second.hellos[0].held] == [quick, waiting]
            assert (await second.report(quick)).outcome is Outcome.SUCCEEDED
            gauge.open.set()
            assert (await second.report(waiting)).outcome is Outcome.SUCCEEDED


async def test_the_silence_of_one_of_several_managers_is_not_waited_out() -> None:
    async with FakeManager(lease_s=3.0, beat_s=0.2) as one, FakeManager(lease_s=3.0, beat_s=0.2) as two:
        one.has_others = two.has_others = True
        one.answer_beats = two.answer_beats = False
        hosts = [f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}"]
        async with await EasyJobsWorker.create(manager_host=hosts, manager_secret=SECRET):
            _, second = await of_two(one, two)
            started = asyncio.get_running_loop().time()
            await second.connected()
            assert asyncio.get_running_loop().time() - started < 3.0  # less than a lease


async def test_a_manager_that_refuses_is_passed_over_while_another_takes_the_worker() -> None:
    async with FakeManager(secret="another one, just as long as the first") as closed, FakeManager() as manager:
        hosts = [f"127.0.0.1:{closed.port}", f"127.0.0.1:{manager.port}"]
        for _ in range(4):  # whichever it asks first
            async with await EasyJobsWorker.create(manager_host=hosts, manager_secret=SECRET) as worker:
                worker.task(lambda: 7, name="seven")
                assert (await manager.run_job("seven")).body == b"7"


@pytest.mark.parametrize("others", ["none", "there", "away", "died"])
async def test_a_lease_that_another_manager_may_end_is_not_taken_to_live_on(others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has_others = others in ("there", "away")
    monkeypatch.setattr("easyjobs.workers.link.OTHERS_LAST_S", 0.1 if others == "away" else 60.0)
    async with FakeManager(lease_s=1.0, beat_s=0.2) as manager:
        manager.has_others = others != "none"
        async with await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET, grace_s=1) as worker:
            gauge = Gauge()
            worker.task(gauge.inside, name="wait")
            await manager.seen(lambda: "wait" in manager.offers)
            seq = manager.add("wait")
            await manager.give()
            await gauge.has(1)
            if others == "died":  # they were one that ours has followed, and was named until a minute after its death
                manager.has_others = False
            if others == "away":  # just now, so that ours is the only one; they may come back while it is gone
                beats = len(manager.beats)
                await manager.seen(lambda: len(manager.beats) >= beats + 3)
                manager.has_others = False
            if others in ("away", "died"):
                beats = len(manager.beats)
                await manager.seen(lambda: len(manager.beats) >= beats + 2)
            port = manager.port
            await manager.stop()
            if has_others:
                await gauge.has(0)  # its only address refuses, and who knows what the others do
            else:
                with pytest.raises(TimeoutError):
                    await within(2.5, gauge.has(0))
            gauge.open.set()
            await manager.start(port)
            assert (await manager.report(seq)).outcome is (Outcome.RELEASED if has_others else Outcome.SUCCEEDED)


async def test_what_runs_goes_on_while_no_manager_has_its_store() -> None:
    async with FakeManager(lease_s=1.0, beat_s=0.2) as one, FakeManager(lease_s=1.0, beat_s=0.2) as two:
        one.has_others = two.has_others = True
        hosts = [f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}"]
        async with await EasyJobsWorker.create(manager_host=hosts, manager_secret=SECRET, grace_s=1) as worker:
            gauge = Gauge()
            worker.task(gauge.inside, name="wait")
            first, _ = await of_two(one, two)
            await first.seen(lambda: "wait" in first.offers)
            seq = first.add("wait")
            await first.give()
            await gauge.has(1)
            one.has_store = two.has_store = False
            first.cut()
            with pytest.raises(TimeoutError):  # two and a half leases
                await within(2.5, gauge.has(0))
            for manager in (one, two):
                manager.jobs[seq] = manager.running[seq] = first.jobs[seq]
                manager.has_store = True
            gauge.open.set()
            reported = [asyncio.ensure_future(manager.report(seq)) for manager in (one, two)]
            done, _ = await within(10, asyncio.wait(reported, return_when=asyncio.FIRST_COMPLETED))
            for waiting in reported:
                waiting.cancel()
            assert {report.result().outcome for report in done} == {Outcome.SUCCEEDED}
