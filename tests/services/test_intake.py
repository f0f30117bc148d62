"""How calls become jobs."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from easyjobs.domain.job import IdempotencyKey, Submission
from easyjobs.domain.lifecycle import JobState
from easyjobs.domain.message import Call
from easyjobs.errors import InvalidArguments, KeyReused, StoreBusy, UnknownTask
from easyjobs.protocol.messages import SubmitItem, SubmitOptions
from easyjobs.runtime.ids import id_bytes, new_id
from easyjobs.services.intake import ItemRefused, ShuttingDown
from tests.services.conftest import Parts


def a_key(body: bytes = b"body", key: str = "k") -> IdempotencyKey:
    return IdempotencyKey(principal="p", scope="Q/work", key=key, body=hashlib.sha256(body).digest())


async def total(parts: Parts) -> int:
    return sum((await parts.store.counts()).values())


async def test_a_call_is_stored_with_its_arguments_and_found_by_its_id(parts: Parts) -> None:
    await parts.task()
    [text] = await parts.intake.submit_calls([Call(queue="Q", name="work", args=[5], kwargs={})])
    [record] = await parts.store.get([id_bytes(text) or b""])
    assert record is not None
    assert record.state is JobState.QUEUED
    assert record.args in (b'[[],{"n":5}]', b"[[5],{}]")


async def test_one_bad_call_of_many_stores_none_and_says_which(parts: Parts) -> None:
    await parts.task()
    calls = [Call(queue="Q", name="work", args=[number], kwargs={}) for number in (1, "x", 3)]
    with pytest.raises(InvalidArguments) as refused:
        await parts.intake.submit_calls(calls)
    assert [list(error["loc"])[:3] for error in refused.value.errors] == [["body", 1, "n"]]
    with pytest.raises(UnknownTask):
        await parts.intake.submit_calls([calls[0], Call(queue="Q", name="no", args=[], kwargs={})])
    assert await total(parts) == 0


async def test_the_same_key_and_body_answer_the_same_also_at_the_same_time(parts: Parts) -> None:
    task = await parts.task()
    ids = await asyncio.gather(*(parts.intake.submit_one(task, b"[[1],{}]", a_key()) for _ in range(20)))
    assert len(set(ids)) == 1
    assert await total(parts) == 1
    with pytest.raises(KeyReused):
        await parts.intake.submit_one(task, b"[[2],{}]", a_key(b"another"))
    assert await parts.intake.submit_one(task, b"[[2],{}]", a_key(key="k2")) not in ids


async def test_a_repeated_frame_is_no_second_job_and_a_foreign_id_is_refused(parts: Parts) -> None:
    await parts.task()
    items = [SubmitItem(new_id(), "Q", "work", b"[[1],{}]"), SubmitItem(new_id(), "", "work", b"[[2],{}]")]
    first = await parts.intake.submit_frame(items, None)
    assert await parts.intake.submit_frame(items, None) == first
    assert await total(parts) == 2
    with pytest.raises(KeyReused):
        await parts.intake.submit_frame([SubmitItem(items[0].id, "Q", "work", b"[[99],{}]")], None)
    assert await total(parts) == 2


async def test_a_frame_with_one_bad_item_stores_none_and_says_which(parts: Parts) -> None:
    await parts.task()
    good = SubmitItem(new_id(), "Q", "work", b"[[1],{}]")
    for bad in (
        SubmitItem(new_id(), "Q", "work", b'[["x"],{}]'),
        SubmitItem(new_id(), "Q", "nobody", b"[[1],{}]"),
        SubmitItem(b"short", "Q", "work", b"[[1],{}]"),
        SubmitItem(new_id(), "Q", "work", b"not json"),
        SubmitItem(new_id(), "Q", "work", b'{"n":1}'),
        SubmitItem(new_id(), "Q", "work", b"[[1,2],{}]"),
    ):
        with pytest.raises(ItemRefused) as refused:
            await parts.intake.submit_frame([good, bad], None)
        assert refused.value.index == 1
    assert await total(parts) == 0


async def test_a_delay_makes_the_job_scheduled_until_it_is_due(parts: Parts) -> None:
    task = await parts.task()
    _, peer = await parts.session(task, room=5)
    [id] = await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "work", b"[[1],{}]")], SubmitOptions(delay_us=5_000_000))
    assert await parts.scheduler.run_once() == pytest.approx(5.0)
    parts.clock.advance(5)
    await parts.scheduler.run_once()
    await parts.settle()
    assert [job.id for job in peer.got] == [id]


async def test_a_delayed_submit_wakes_a_scheduler_that_sleeps_longer(parts: Parts) -> None:
    await parts.task()
    assert await parts.scheduler.run_once() > 5
    parts.scheduler._woken.clear()
    await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "work", b"[[1],{}]")], SubmitOptions(delay_us=1_000_000))
    assert parts.scheduler._woken.is_set()
    assert await parts.scheduler.run_once() == pytest.approx(1.0)


async def test_a_submit_that_is_due_at_once_leaves_the_scheduler_asleep(parts: Parts) -> None:
    await parts.task()
    parts.scheduler._woken.clear()
    await parts.intake.submit_frame([SubmitItem(new_id(), "Q", "work", b"[[1],{}]")], None)
    assert not parts.scheduler._woken.is_set()


async def test_a_manager_that_goes_down_takes_nothing_more(parts: Parts) -> None:
    task = await parts.task()
    parts.intake.is_closed = True
    with pytest.raises(ShuttingDown):
        await parts.intake.submit_one(task, b"[[1],{}]")
    assert await total(parts) == 0


async def test_while_too_much_waits_for_the_store_only_those_are_queued_who_wait_anyway(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await parts.task()
    call = Call(queue="Q", name="work", args=[1], kwargs={})
    item = SubmitItem(new_id(), "Q", "work", b"[[1],{}]")
    monkeypatch.setattr(type(parts.store), "is_busy", True)
    with pytest.raises(StoreBusy):
        await parts.intake.submit_one(task, b"[[1],{}]")
    with pytest.raises(StoreBusy):
        await parts.intake.submit_calls([call])
    with pytest.raises(StoreBusy):
        await parts.intake.submit_frame([item], None)
    assert await total(parts) == 0
    await parts.intake.submit_frame([item], None, is_patient=True)  # of a worker
    job, lanes, timed = parts.intake.prepare(call, "Q", parts.clock.now())
    await parts.intake.submit_prepared([Submission((job,))], lanes, timed=timed)  # of a broker
    assert await total(parts) == 2
