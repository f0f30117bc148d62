"""Which tasks are known, and for how long."""

from __future__ import annotations

import pytest

from easyjobs.domain.job import TaskRow
from easyjobs.errors import AmbiguousTask, UnknownTask
from easyjobs.services.catalogue import GRACE_S, Catalogue
from tests.services.conftest import Parts, row


async def test_a_task_is_known_while_it_is_offered_and_ten_minutes_more(parts: Parts) -> None:
    task = await parts.task()
    await parts.session(task)
    parts.clock.advance(GRACE_S * 5)
    assert parts.catalogue.find("Q", "work") is task
    parts.catalogue.left([task.lane])
    parts.clock.advance(GRACE_S - 1)
    assert parts.catalogue.visible() == [task]
    before = parts.catalogue.version
    parts.clock.advance(2)
    assert parts.catalogue.version != before
    assert parts.catalogue.visible() == []
    with pytest.raises(UnknownTask):
        parts.catalogue.find("Q", "work")
    assert parts.catalogue.by_lane(task.lane) is task  # its jobs can still be read


async def test_a_manager_that_starts_anew_knows_the_tasks_before_their_workers_are_back(parts: Parts) -> None:
    task = await parts.task()
    again = Catalogue(parts.store, parts.clock)
    await again.load()
    found = again.find("Q", "work")
    assert (found.lane, found.signature) == (task.lane, task.signature)
    assert found.workers == 0


async def test_the_name_alone_is_enough_where_it_is_the_only_one_or_in_default(parts: Parts) -> None:
    await parts.task("work", "A")
    assert parts.catalogue.find(None, "work").queue == "A"
    await parts.task("work", "B")
    with pytest.raises(AmbiguousTask, match="A, B"):
        parts.catalogue.find(None, "work")
    await parts.task("work", "DEFAULT")
    assert parts.catalogue.find(None, "work").queue == "DEFAULT"


async def test_an_unknown_name_is_answered_with_those_that_look_like_it(parts: Parts) -> None:
    await parts.task("send_email", "mail")
    with pytest.raises(UnknownTask) as unknown:
        parts.catalogue.find("mail", "send_mail")
    assert unknown.value.near == ("mail/send_email",)
    with pytest.raises(UnknownTask) as elsewhere:
        parts.catalogue.find("sms", "send_email")
    assert elsewhere.value.near == ("mail/send_email",)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (TaskRow(queue="Q", name="../x", signature=b"{}", options=b"{}"), "identifier"),
        (TaskRow(queue="a/b", name="x", signature=b"{}", options=b"{}"), "queue"),
        (TaskRow(queue="Q", name="x", signature=b"not json", options=b"{}"), ""),
        (row(options=b'{"max_retries": "many"}'), "max_retries"),
        (row(options=b'{"max_crashes": 0}'), "max_crashes"),
        (row(options=b"[]"), ""),
        (row(options=b'{"note": "' + b"x" * 20_000 + b'"}'), "16,384"),
    ],
)
async def test_an_offer_that_no_worker_of_ours_makes_is_refused_and_harms_no_other(parts: Parts, bad: TaskRow, why: str) -> None:
    taken, refused = await parts.catalogue.offer([bad, row("good")], "a stranger")
    assert [task.name for task, _ in taken] == ["good"]
    assert len(refused) == 1
    assert why in refused[0][1]


async def test_the_newest_signature_wins(parts: Parts) -> None:
    def other(text: str) -> None: ...

    old = await parts.task()
    before = parts.catalogue.version
    new = await parts.task(fn=other)
    assert new.lane == old.lane
    assert [parameter.name for parameter in new.signature.parameters] == ["text"]
    assert parts.catalogue.version != before


async def test_an_offer_that_changes_nothing_leaves_openapi_as_it_is(parts: Parts) -> None:
    await parts.task()
    before = parts.catalogue.version
    await parts.task()
    assert parts.catalogue.version == before


async def test_a_tasks_timeout_becomes_that_of_its_jobs(parts: Parts) -> None:
    task = await parts.task("slow", options=b'{"timeout_us":1500000}')
    assert task.spec.timeout_us == 1_500_000
    for wrong in (b"0", b"-1", b'"1"', b"1.5", b"99999999999999999"):
        taken, [(_, why)] = await parts.catalogue.offer([row("wrong", options=b'{"timeout_us":' + wrong + b"}")], "w1")
        assert not taken
        assert "timeout_us" in why
