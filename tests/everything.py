"""A store that holds everything that a store can hold."""

from __future__ import annotations

from typing import Any

import msgspec

from easyjobs.domain.job import BEFORE, CALL, IdempotencyKey, NewJob, NewSession, Parent, Reports, Spec, Submission, TaskRow, UniqueKey
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.quarantine import BadMessage
from easyjobs.domain.replies import Reply
from easyjobs.domain.schedule import Firing, NewSchedule, TaskSchedules, Tick
from easyjobs.domain.seeing import Line, Mark, Notes
from easyjobs.domain.tokens import Token
from easyjobs.ports.store import Store
from tests.clocks import FakeClock
from tests.contracts.store_contract import a_job, an_id, claim, failed, finish, released, submit, succeeded

MINUTE = 60_000_000
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEY = IdempotencyKey("secret", "Q/work", "ä key", b"\x00body")
UNIQUE = UniqueKey(b"\x00\xffunique", (JobState.QUEUED, JobState.RUNNING), 3600 * 1_000_000)
ODD = 'nul \x00, quote " and backslash \\, \ud7ff, 🦊'
EVERY_MINUTE = NewSchedule("* * * * *", args=b"[[1],{}]")


async def fill(store: Store, clock: FakeClock) -> dict[str, bytes]:
    """Jobs in every state, with all that may belong to them; their ids by what they are."""
    work, other, unlogged = await store.offer([
        TaskRow("Q", "work", b'{"s":1}', b'{"o":1}'), TaskRow("Q", "other", b"{}", b"{}"), TaskRow("ü", "unlogged", b"{}", b"{}"),
    ])  # fmt: skip
    one, two = await store.begin([NewSession(b"\x00" * 16, "wörker"), NewSession(b"\xff" * 16, "second")])
    ids: dict[str, bytes] = {}

    async def put(name: str, job: NewJob, key: Any = None) -> None:
        await store.submit([Submission((job,), key)])
        ids[name] = job.id

    await put("succeeded", a_job(work, msgspec.json.encode([[ODD], {}]), traceparent=TRACE, ttl_us=MINUTE * 600))
    await put("failed", a_job(work, max_retries=1))
    await put("parent", a_job(work))
    first, second, parent = await claim(store, one, work)
    await store.note([
        Notes(one, [Mark(first.seq, 1, 1, 2.5, "half"), Mark(parent.seq, 1, 3)], [Line(first.seq, 1, n, 7, 20, "app", f"{n} {ODD}") for n in (1, 2)])
    ])  # fmt: skip
    child = NewJob(an_id(), Spec(other), b"[[2],{}]", Parent(parent.seq, CALL + "x:1", None, (1, one)))
    after = NewJob(an_id(), Spec(work, priority=7), b"[[],{}]", Parent(first.seq, "run_after:Q/work", JobState.SUCCEEDED))
    await put("called", child)
    ids["after"] = after.id
    await store.finish([Reports(one, [succeeded(first, b'{"x":null}', 5)], {first.seq: (after,)})])
    await finish(store, one, failed(second, retry=True))
    [again] = [job for job in await claim(store, two, work) if job.seq == second.seq]
    await finish(store, two, failed(again, retry=True))
    await put("released", a_job(other, priority=1000))
    [back] = await claim(store, two, other, room=1)
    await finish(store, two, released(back))
    await put("pulled", a_job(other, priority=2000))
    [pulled] = await claim(store, two, other, room=1)
    await finish(store, two, succeeded(pulled))
    await store.pull([ids["pulled"]])
    await put("scheduled", a_job(work, run_at=clock.now() + 5 * MINUTE, timeout_us=3, expires_us=900 * MINUTE))
    before = NewJob(an_id(), Spec(other), b"[[3],{}]", Parent(0, f"{BEFORE}Q/other"))
    await put("waiting", NewJob(an_id(), Spec(work), b"[[],{}]", None, (before,)))
    await put("unique", NewJob(an_id(), Spec(other), b"[[4],{}]", None, (), UNIQUE))
    await put("keyed", a_job(other), KEY)
    await put("expired", a_job(other, expires_us=1))
    await put("cancelled", a_job(other))
    await store.cancel([ids["cancelled"]])
    await put("deleted", a_job(other, priority=5000))
    [gone] = await claim(store, two, other, room=1)
    await store.note([Notes(two, (), [Line(gone.seq, 1, 1, 7, 20, "app", "gone")])])
    await finish(store, two, succeeded(gone))
    await store.delete([ids.pop("deleted")])
    clock.advance(0.001)
    await store.expire()
    await put("stopping", a_job(other, priority=4000))
    await claim(store, two, other, room=1)
    await store.cancel([ids["stopping"]])
    # What message brokers bring, and where ends are told.
    ids["replying"] = an_id()
    told = NewJob(ids["replying"], Spec(other, priority=6000), b"[[],{}]", reply=Reply("rabbitmq", "results", "c-1"))
    await store.submit([Submission((told,), IdempotencyKey("broker", "in", "m-1", b"b", keep_us=99 * MINUTE))])
    ids["replied"] = an_id()
    await store.submit([Submission((NewJob(ids["replied"], Spec(other, priority=9000), b"[[],{}]", reply=Reply("rabbitmq", "results")),))])
    [ended] = await claim(store, two, other, room=1)
    await finish(store, two, succeeded(ended, b'"told"'))
    await store.quarantine([BadMessage("rabbitmq", "in", "m-2", "not_json", "line 1 \x00", b"\x00{", 2)])
    await store.keep_tokens([Token("0" * 16, "reports", "read", 0, queues="BILLS+MAIL")])
    await store.revoke_tokens([Token("1" * 16, "", "", 0)])
    await store.pause("paused queue", True)
    await store.schedule([TaskSchedules("Q", "work", (EVERY_MINUTE, NewSchedule("0 9 * * 1", "Europe/Berlin")))])
    clock.advance(61)
    [due] = (await store.due_schedules()).schedules
    assert due.next_at is not None
    tick = NewJob(an_id(), Spec(work), due.what.args)
    await store.fire([Firing(due.id, due.version, due.next_at, due.next_at + MINUTE, (Tick(due.next_at, tick),))])
    ids["tick"] = tick.id
    await store.pause_schedules([due.id + 1])
    await submit(store, *[a_job(unlogged, b"[[%d],{}]" % n) for n in range(1000)])
    return ids
