"""What a manager learns of other managers over the same store: by a hint, or by the poll behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing

import pytest

from easyjobs.domain.job import JobRecord, NewSession, Outcome, Report
from easyjobs.domain.seeing import Mark, Notes
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import News, token
from easyjobs.protocol.messages import CLOSE_STORE_AWAY
from easyjobs.services.peers import POLL_S, STRAY_POLLS, Peers
from easyjobs.services.results import End
from easyjobs.stores.memory import MemoryStore
from tests.clocks import FakeClock
from tests.contracts.store_contract import a_job, claim, finish, submit, succeeded
from tests.services.conftest import LEASE_S, Parts, row


class Shared(MemoryStore):
    """The store in memory, as if others had it open too."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock, lease_s=LEASE_S)
        self.clock: Clock = clock
        self.on_news: Callable[[News], None] = lambda _: None
        self.number = 0
        self.has_others = True
        self.on_followed: Callable[[frozenset[int] | None], None] = lambda _: None
        self.on_failed_over: Callable[[], None] = lambda: None
        self.followed: list[bytes] = []
        self.shown: list[bytes] = []

    def follow(self, ids: Collection[bytes]) -> None:
        self.followed = list(ids)

    def show(self, id: bytes) -> None:
        self.shown.append(id)

    async def _revision(self) -> int:
        return self.number

    def revision(self) -> Awaitable[int]:
        return self._revision()

    async def _ended(self, ids: Sequence[bytes]) -> list[JobRecord]:
        return [record for record in await self.get(ids) if record is not None and record.state.is_final]

    def ended(self, ids: Sequence[bytes]) -> Awaitable[list[JobRecord]]:
        return self._ended(ids)


@pytest.fixture
async def site() -> tuple[Parts, Peers, Shared]:
    clock = FakeClock()
    store = Shared(clock)
    await store.open()
    parts = Parts(store, clock)
    peers = Peers(store, clock, parts.catalogue, parts.dispatcher, parts.results, parts.control, parts.events, lambda: None)
    await peers.run_once()
    return parts, peers, store


Site = tuple[Parts, Peers, Shared]


async def test_a_task_that_was_offered_elsewhere_is_visible_after_the_poll(site: Site) -> None:
    parts, peers, store = site
    await store.offer([row("elsewhere")])
    store.number += 1
    before = parts.catalogue.version
    await peers.run_once()
    assert parts.catalogue.find("Q", "elsewhere").name == "elsewhere"
    assert parts.catalogue.version != before


async def test_hints_that_come_all_the_time_do_not_put_the_poll_off(site: Site) -> None:
    """What no hint came for is found all the same: among it is a token that was taken back."""
    parts, peers, store = site
    await store.offer([row("elsewhere")])
    store.number += 1
    polled_at = parts.clock.monotonic()
    while not parts.catalogue.visible():
        assert parts.clock.monotonic() <= polled_at + 2 * POLL_S
        parts.clock.advance(POLL_S / 10)
        store.on_news(News((), has_ended=True, is_more=False))
        assert await peers.run_once() <= POLL_S


async def test_the_end_of_a_job_elsewhere_is_told_once(site: Site) -> None:
    parts, peers, store = site
    [lane] = await store.offer([row()])
    [session] = await store.begin([NewSession(b"s" * 16, "w")])
    [job_id] = await submit(store, a_job(lane))
    told: list[End] = []
    await parts.results.watch([job_id], told.append)
    await peers.run_once()
    assert told == []
    await finish(store, session, *(succeeded(job) for job in await claim(store, session, lane)))
    store.on_news(News((), has_ended=True, is_more=False))
    await peers.run_once()
    await peers.run_once()
    assert [(end.id, end.body) for end in told] == [(job_id, b"1")]


async def test_a_pause_elsewhere_holds_the_queue_here_too(site: Site) -> None:
    parts, peers, store = site
    await store.pause("Q", True)
    store.number += 1
    store.on_news(News((), has_ended=False, is_more=True))
    await peers.run_once()
    assert parts.control.paused == {"Q"}


async def test_jobs_that_were_queued_elsewhere_are_given_out_here(site: Site) -> None:
    parts, peers, store = site
    task = await parts.task()
    _, peer = await parts.session(task, room=10)
    await parts.settle()
    hinted = await submit(store, a_job(task.lane))
    store.on_news(News((task.lane,), has_ended=False, is_more=False))
    await parts.settle()
    assert [job.id for job in peer.got] == hinted
    polled = await submit(store, a_job(task.lane))
    await peers.run_once()
    await parts.settle()
    assert [job.id for job in peer.got] == hinted + polled


async def test_a_worker_is_told_once_to_stop_a_job_that_was_cancelled_elsewhere(site: Site) -> None:
    parts, peers, store = site
    task = await parts.task()
    _, peer = await parts.session(task, room=10)
    [job_id] = await submit(store, a_job(task.lane))
    await peers.run_once()
    await parts.settle()
    [job] = peer.got
    store.on_change = lambda _: None  # as the manager that cancels is another one
    await store.cancel([job_id])
    await peers.run_once()
    await peers.run_once()
    assert peer.cancelled == [(job.seq, job.attempt)]


async def test_a_worker_stops_what_was_put_back_once_another_manager_has_given_it_away(site: Site) -> None:
    parts, peers, store = site
    task = await parts.task()
    session, peer = await parts.session(task, room=10)
    [other] = await store.begin([NewSession(b"o" * 16, "a worker of another manager")])
    await submit(store, a_job(task.lane))
    await peers.run_once()
    await parts.settle()
    [job] = peer.got
    store.clock.advance(LEASE_S + 1)  # type: ignore[attr-defined]
    await store.rescue()
    parts.dispatcher.lapse(session, job.seq)
    await store.renew([session.number, other])
    await peers.run_once()
    assert peer.cancelled == [], "it was put back, and nobody has it: its report still counts"
    [again] = await claim(store, other, task.lane)
    assert again.seq == job.seq
    await peers.run_once()
    await peers.run_once()
    assert peer.cancelled == [(job.seq, job.attempt)], "two workers would run it for as long as it takes"
    assert session.overdue == {}


async def test_workers_say_hello_again_after_a_fail_over(site: Site) -> None:
    parts, _, store = site
    _, peer = await parts.session(await parts.task(), room=10)
    store.on_failed_over()
    assert peer.closed == [CLOSE_STORE_AWAY]


async def test_what_others_follow_is_shown_to_them_and_nothing_else(site: Site) -> None:
    parts, _, store = site
    task = await parts.task()
    session, peer = await parts.session(task, room=10)
    ids = await submit(store, a_job(task.lane), a_job(task.lane))
    store.on_followed(frozenset({token(ids[0])}))
    store.on_news(News((task.lane,), has_ended=False, is_more=False))
    await parts.settle()
    assert store.shown == ids[:1]  # it runs
    await parts.events.note(session, [Mark(job.seq, job.attempt, 1, 2) for job in peer.got], [])
    await parts.reporter.report(session, [Report(job.seq, job.attempt, Outcome.SUCCEEDED, body=b"1") for job in peer.got])
    assert store.shown == ids[:1] * 3
    store.on_followed(frozenset())
    assert not parts.events.followed


@pytest.mark.parametrize("shown", ["it", "another", "anything"])
async def test_a_follower_looks_when_another_manager_shows_its_job(site: Site, shown: str) -> None:
    parts, _, store = site
    [lane] = await store.offer([row()])
    [session] = await store.begin([NewSession(b"s" * 16, "w")])
    [job_id] = await submit(store, a_job(lane))
    async with aclosing(parts.events.follow(job_id, idle_s=0.05 if shown == "another" else 60)) as stream:
        assert len(await anext(stream)) == 1
        assert store.followed == [job_id]
        [job] = await claim(store, session, lane)
        await store.note([Notes(session, [Mark(job.seq, job.attempt, 1, 2)], [])])
        tokens = {"it": (token(job_id),), "another": (token(job_id) + 1,), "anything": None}[shown]
        store.on_news(News((), has_ended=False, is_more=False, shown=tokens))
        assert len(await anext(stream)) == (0 if shown == "another" else 2)
    assert store.followed == []


async def test_what_another_manager_claimed_for_our_session_is_known_after_two_looks(site: Site) -> None:
    parts, peers, store = site
    task = await parts.task()
    session, peer = await parts.session(task)
    await submit(store, a_job(task.lane))
    [job] = await claim(store, session.number, task.lane)  # on a connection that the worker had left: it never gets it
    for _ in range(STRAY_POLLS):
        await peers.run_once()
    assert session.running == {}, "it may be on its way"
    for _ in range(STRAY_POLLS):
        await peers.run_once()
    assert [(one.seq, one.attempt) for one in session.running.values()] == [(job.seq, job.attempt)], "no beat will ever differ"
    assert peer.got == []


async def test_what_has_ended_between_two_looks_is_no_stray(site: Site) -> None:
    parts, peers, store = site
    task = await parts.task()
    session, _ = await parts.session(task)
    await submit(store, a_job(task.lane))
    [job] = await claim(store, session.number, task.lane)
    for _ in range(STRAY_POLLS):
        await peers.run_once()
    await finish(store, session.number, succeeded(job))
    for _ in range(STRAY_POLLS):
        await peers.run_once()
    assert session.running == {}
