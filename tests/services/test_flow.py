"""Which jobs belong to a job: predecessors, successors, unique keys."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import Outcome, Report
from easyjobs.domain.lifecycle import JobState
from easyjobs.errors import InvalidArguments, UnknownTask
from easyjobs.runtime.ids import id_bytes, new_id
from easyjobs.services.catalogue import GRACE_S
from easyjobs.tasks import JobFailure
from tests.services.conftest import Parts


def json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def builds(url: str, size: int = 1, *rest: str, name: str = "n") -> None: ...
def takes_url(url: str) -> None: ...
def takes_size_and_more(size: int, other: str = "x") -> None: ...
def takes_nothing() -> None: ...


async def submit(parts: Parts, name: str, args: bytes = b"[[1],{}]", queue: str = "Q") -> bytes:
    id = id_bytes(await parts.intake.submit_one(parts.catalogue.find(queue, name), args))
    assert id is not None
    return id


async def kin(parts: Parts, id: bytes) -> list[tuple[str, str, JobState]]:
    [children] = await parts.store.children([id])
    names = {child.lane: parts.catalogue.by_lane(child.lane) for child in children}
    return [(child.edge, f"{names[child.lane].queue}/{names[child.lane].name}", child.state) for child in children]  # type: ignore[union-attr]


async def test_predecessors_get_the_arguments_that_their_parameters_name(parts: Parts) -> None:
    for fn in (takes_url, takes_size_and_more, takes_nothing):
        await parts.task(fn.__name__, fn=fn)
    await parts.task("build", options=json({"run_before": ["takes_url", "takes_size_and_more", "takes_nothing"]}), fn=builds)
    task = parts.catalogue.find("Q", "build")
    job = parts.flow.job(task, new_id(1), json([["u", 5, "r", "s"], {"name": "x"}]))
    assert [msgspec.json.decode(before.args) for before in job.befores] == [[[], {"url": "u"}], [[], {"size": 5}], [[], {}]]


async def test_predecessors_may_have_predecessors_but_not_themselves(parts: Parts) -> None:
    await parts.task("a", options=json({"run_before": ["b"]}))
    await parts.task("b", options=json({"run_before": ["c"]}))
    await parts.task("c")
    job = parts.flow.job(parts.catalogue.find("Q", "a"), new_id(1), b"[[1],{}]")
    assert [len(before.befores) for before in job.befores] == [1]
    await parts.task("c", options=json({"run_before": ["a"]}))
    with pytest.raises(InvalidArguments, match="round in circles: Q/a → Q/b → Q/c → Q/a"):
        parts.flow.job(parts.catalogue.find("Q", "a"), new_id(1), b"[[1],{}]")
    with pytest.raises(InvalidArguments, match="round in circles"):
        await submit(parts, "a")
    assert sum((await parts.store.counts()).values()) == 0


async def test_a_name_means_the_own_queue_then_the_only_one_that_has_it(parts: Parts) -> None:
    await parts.task("then", "Q")
    await parts.task("then", "R")
    await parts.task("only", "R")
    assert parts.catalogue.resolve("Q", "then").queue == "Q"
    assert parts.catalogue.resolve("Q", "R/then").queue == "R"
    assert parts.catalogue.resolve("Q", "only").queue == "R"
    with pytest.raises(UnknownTask):
        parts.catalogue.resolve("S", "then")  # two have it: neither


async def test_a_task_that_is_only_named_has_a_place_but_is_not_there(parts: Parts) -> None:
    await parts.task("work", options=json({"run_after": ["later", "R/elsewhere"], "on_failure": "later"}))
    assert {(each.queue, each.name) for each in (parts.catalogue.resolve("Q", "later"), parts.catalogue.resolve("Q", "R/elsewhere"))} == {
        ("Q", "later"), ("R", "elsewhere"),
    }  # fmt: skip
    assert [task.name for task in parts.catalogue.visible()] == ["work"]
    with pytest.raises(UnknownTask):
        parts.catalogue.find("Q", "later")
    await parts.task("later", "S")
    assert parts.catalogue.resolve("Q", "later").queue == "S", "the only one that has it, now"


async def test_a_successor_that_nobody_offers_fails_after_the_grace_and_its_parent_stays(parts: Parts) -> None:
    task = await parts.task("work", options=json({"run_after": ["later"], "max_retries": 0}))
    session, peer = await parts.session(task, room=1)
    id = await submit(parts, "work")
    await parts.settle()
    await parts.reporter.report(session, [Report(peer.got[0].seq, 1, Outcome.SUCCEEDED, 0, b"1")])
    assert await kin(parts, id) == [("run_after:Q/later", "Q/later", JobState.QUEUED)]
    parts.clock.advance(GRACE_S - 1)
    await parts.expirer.run_once()
    assert (await kin(parts, id))[0][2] is JobState.QUEUED
    parts.clock.advance(2)
    await parts.expirer.run_once()
    assert (await kin(parts, id))[0][2] is JobState.FAILED
    [record] = await parts.store.get([id])
    assert record is not None
    assert record.state is JobState.SUCCEEDED


async def test_a_worker_that_comes_in_time_gets_the_successor(parts: Parts) -> None:
    task = await parts.task("work", options=json({"run_after": ["later"]}))
    session, peer = await parts.session(task, room=1)
    await submit(parts, "work")
    await parts.settle()
    await parts.reporter.report(session, [Report(peer.got[0].seq, 1, Outcome.SUCCEEDED, 0, b'"late"')])
    later = await parts.task("later")
    _, other = await parts.session(later, name="other", room=1)
    await parts.settle()
    assert [msgspec.json.decode(job.args)[0] for job in other.got] == [["late"]]
    parts.clock.advance(GRACE_S + 1)
    await parts.expirer.run_once()
    assert (await parts.store.counts()).get((later.lane, JobState.FAILED), 0) == 0


async def test_a_unique_key_is_made_of_the_arguments_however_they_are_given(parts: Parts) -> None:
    unique = {"fields": ["url", "size"], "period_us": None, "states": ["queued"]}
    await parts.task("build", options=json({"unique": unique}), fn=builds)
    task = parts.catalogue.find("Q", "build")

    def key(args: Any) -> bytes:
        made = parts.flow.job(task, new_id(1), json(args)).unique
        assert made is not None
        return made.key

    same = [[["u", 1], {}], [["u"], {"size": 1}], [[], {"size": 1, "url": "u"}], [["u", 1, "more"], {"name": "other"}]]
    assert len({key(args) for args in same}) == 1
    assert len({key(args) for args in [[["u", 1], {}], [["u", 2], {}], [["u"], {}], [["v", 1], {}]]}) == 4


async def test_an_on_failure_task_that_asks_for_it_gets_the_whole_failure(parts: Parts) -> None:
    def mourn(failure: JobFailure) -> None: ...

    await parts.task("mourn", fn=mourn)
    task = await parts.task("work", options=json({"on_failure": "mourn", "max_retries": 0}))
    session, peer = await parts.session(task, room=1)
    id = await submit(parts, "work", b"[[1],{}]")
    await parts.settle()
    error = json({"type": "E", "message": "no", "traceback": "tb"})
    await parts.reporter.report(session, [Report(peer.got[0].seq, 1, Outcome.FAILED, 0, error)])
    await parts.settle()
    [child] = (await parts.store.children([id]))[0]
    [record] = await parts.store.get([child.id])
    assert record is not None
    [[told], _] = msgspec.json.decode(record.args)
    assert (told["type"], told["message"], told["traceback"], told["args"], told["attempt"]) == ("E", "no", "tb", [1], 1)


@pytest.mark.parametrize("option", ["run_after", "on_failure"])
async def test_the_predecessors_of_a_successor_are_given_out_too(parts: Parts, option: str) -> None:
    first = await parts.task("first", fn=takes_nothing)
    await parts.task("then", options=json({"run_before": ["first"]}), fn=takes_nothing)
    task = await parts.task("work", options=json({option: "then", "max_retries": 0}))
    session, peer = await parts.session(task, room=1)
    _, other = await parts.session(first, name="other", room=5)
    await submit(parts, "work")
    await parts.settle()
    outcome, body = (Outcome.SUCCEEDED, b"1") if option == "run_after" else (Outcome.FAILED, json({"type": "E", "message": "no"}))
    await parts.reporter.report(session, [Report(peer.got[0].seq, 1, outcome, 0, body)])
    await parts.settle()
    assert [job.lane for job in other.got] == [first.lane]


async def test_what_runs_before_a_job_is_its_own_though_its_task_is_unique(parts: Parts) -> None:
    """A second job would wait for ever for a predecessor that another one has."""
    unique = {"fields": None, "period_us": None, "states": ["queued", "running"]}
    first = await parts.task("first", options=json({"unique": unique}), fn=takes_nothing)
    then = await parts.task("then", options=json({"run_before": ["first"]}), fn=takes_nothing)
    session, peer = await parts.session(first, then, room=10)
    ids = [await submit(parts, "then", b"[[],{}]") for _ in range(2)]
    for _ in range(2):
        await parts.settle()
        await parts.reporter.report(session, [Report(job.seq, job.attempt, Outcome.SUCCEEDED, body=b"null") for job in peer.got])
        peer.got.clear()
    assert {job.state for job in await parts.store.get(ids) if job} == {JobState.SUCCEEDED}
