"""A worker that knows the secret, and lies: what it says about others changes nothing, and what it says about itself harms nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from easyjobs.domain.job import Claimed, ErrorInfo, Outcome, Report
from easyjobs.domain.seeing import Line, Mark
from easyjobs.protocol.messages import (
    CLOSE_BAD_FRAME,
    CLOSE_REFUSED,
    Acked,
    Beat,
    Calling,
    Control,
    Controlled,
    Credit,
    Follow,
    Followed,
    Held,
    Log,
    NewTask,
    Offer,
    Offered,
    Progress,
    Refused,
    Reports,
    Results,
    Submit,
    SubmitItem,
    SubmitOptions,
    Submitted,
    Watch,
    Welcome,
)
from easyjobs.services import catalogue
from tests.security.world import Peer, World, running, task_named

FAR = 2**63 - 1
EDGES = [-1, -FAR - 1, 2**31, 2**53, 10**18, 9 * 10**18, FAR, FAR + 1, 2**64 - 1]


def succeeded(job: Claimed, body: bytes = b"1", **other: Any) -> Report:
    return msgspec.structs.replace(Report(job.seq, job.attempt, Outcome.SUCCEEDED, body=body), **other)


Two = tuple[Peer, Peer, str, str, Claimed, Claimed]


async def two_jobs(world: World) -> Two:
    """An honest worker and a rogue, each with a running job of a lane of its own: (honest, rogue, their ids, their jobs)."""
    honest = await world.peer().join(task_named("honest"), name="honest")
    rogue = await world.peer().join(task_named("rogue"), name="rogue")
    ids = await world.submit("honest"), await world.submit("rogue")
    [good], [bad] = await honest.take(), await rogue.take()
    return honest, rogue, *ids, good, bad


async def ends_well(world: World, honest: Peer, id: str, job: Claimed) -> None:
    """The honest worker's job is as if the rogue had never been there."""
    assert (await world.job(id))["status"] == "running"
    honest.say(Reports(number=77, items=[succeeded(job, b'"good"')]))
    assert (await honest.hear(Acked)).stale == []
    found = await world.job(id)
    assert (found["status"], found["result"], found["attempt"]) == ("succeeded", "good", 1)


# --- other sessions' leases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
async def test_a_report_of_another_sessions_job_is_stale(there: World, outcome: Outcome) -> None:
    honest, rogue, id, _, good, _ = await two_jobs(there)
    rogue.say(Reports(number=1, items=[succeeded(good, b'"stolen"', outcome=outcome, retry=True)]))
    assert (await rogue.hear(Acked)).stale == [good.seq]
    await ends_well(there, honest, id, good)


async def test_what_a_worker_shows_of_another_sessions_job_is_not_kept(there: World) -> None:
    honest, rogue, id, _, good, _ = await two_jobs(there)
    rogue.say(Progress(items=[Mark(good.seq, good.attempt, 5, 5, "stolen")]))
    rogue.say(Log(number=1, lines=[Line(good.seq, good.attempt, 1, 1, 20, "rogue", "stolen")]))
    await rogue.hear(Acked)
    found = await there.job(id)
    assert (found["progress"], found["log_lines"]) == (None, 0)
    await ends_well(there, honest, id, good)


async def test_a_call_in_the_name_of_another_sessions_attempt_is_refused(there: World) -> None:
    honest, rogue, id, _, good, _ = await two_jobs(there)
    item = SubmitItem(b"i" * 16, "Q", "rogue", b"[[],{}]", Calling(good.seq, good.attempt, "f"))
    rogue.say(Submit(number=1, jobs=[item]))
    assert (await rogue.hear(Submitted)).problem.status == 410
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("how", ["held", "twice"])
async def test_watchers_hear_of_a_job_from_its_own_worker_only(there: World, how: str) -> None:
    """A worker that names its own attempt, with the id of another job, does not speak for that job."""
    honest, rogue, id, _, good, bad = await two_jobs(there)
    watcher = there.peer()
    await watcher.join(role="client")
    watcher.say(Watch(ids=[good.id]))
    held = [running(bad, id=good.id)]
    if how == "twice":  # a second attempt of that number, of which the store cannot know
        held = [running(bad), running(bad, attempt=good.attempt + 1, id=good.id)]
    back = there.peer()
    back.session = rogue.session
    await back.join(held=held)
    back.say(Reports(number=1, items=[succeeded(bad, b'"forged"')]), Reports(number=2, items=[succeeded(bad, b'"forged"')]))
    await back.hear(Acked)
    await back.hear(Acked)
    await ends_well(there, honest, id, good)
    [end] = (await watcher.hear(Results)).items
    assert (end.id, end.body) == (good.id, b'"good"')


async def test_an_attempt_of_another_job_of_the_same_numbers_is_not_taken_for_ours(there: World) -> None:
    """An older copy of the database was put back: it gives numbers again that a worker still holds attempts of."""
    honest, rogue, id, other, good, bad = await two_jobs(there)
    back = there.peer()
    back.session = rogue.session
    await back.hello(held=[running(bad, id=b"of another time!")])
    dropped = (await back.hear(Welcome)).drop
    assert [(job.seq, job.attempt, job.id) for job in dropped] == [(bad.seq, bad.attempt, b"of another time!")]
    found = await there.job(other)
    assert (found["status"], found["attempt"]) == ("queued", 1), "the one that was never delivered is given out anew"
    await ends_well(there, honest, id, good)


async def test_a_queued_job_is_not_taken_for_a_late_one_of_somebody_else(there: World) -> None:
    """A hello that lists another job under one's own number: the manager goes by what the store says of that job."""
    honest, rogue, _, _, good, bad = await two_jobs(there)
    waiting = await there.submit("honest")
    watcher = await there.peer().join(role="client")
    raw = bytes.fromhex(waiting.replace("-", ""))
    watcher.say(Watch(ids=[raw]))
    back = there.peer()
    back.session = rogue.session
    await back.join(held=[running(bad), running(bad, attempt=0, id=raw)])
    for number in (1, 2):
        back.say(Reports(number=number, items=[succeeded(bad, b'"forged"')]))
        await back.hear(Acked)
    honest.say(Reports(number=1, items=[succeeded(good)]))
    [_, job] = await honest.take(2)
    honest.say(Reports(number=2, items=[succeeded(job, b'"good"')]))
    [end] = (await watcher.hear(Results)).items
    assert (end.id, end.body) == (raw, b'"good"')


# --- numbers, sizes, texts ------------------------------------------------------------------------------------------------------


def edge_reports(bad: Claimed, edge: int) -> list[Report]:
    failed = succeeded(bad, msgspec.json.encode(ErrorInfo("E", "m")), outcome=Outcome.FAILED, retry=True)
    return [
        succeeded(bad, seq=edge),
        succeeded(bad, attempt=edge),
        succeeded(bad, ran_us=edge),
        msgspec.structs.replace(failed, delay_us=edge),
        succeeded(bad, b"", outcome=Outcome.SNOOZED, delay_us=edge),
        msgspec.structs.replace(failed, ran_us=edge),
    ]


@pytest.mark.parametrize("which", range(6))
async def test_numbers_out_of_range_harm_nobody_else(there: World, which: int) -> None:
    for edge in EDGES:
        honest, rogue, id, own, good, bad = await two_jobs(there)
        rogue.say(Reports(number=1, items=[edge_reports(bad, edge)[which]]))
        honest.say(Reports(number=77, items=[succeeded(good, b'"good"')]))  # in one transaction with it
        assert (await honest.hear(Acked)).stale == []
        assert (await there.job(id))["result"] == "good"
        await there.job(own)  # whatever has become of it, it can be looked at
        async with there.client() as http:
            assert (await http.get("/jobs/api/v1/jobs")).status_code == 200
            assert (await http.get(f"/jobs/api/v1/jobs/{own}/explain")).status_code == 200
        for peer in (honest, rogue):
            await peer.leave()


BAD_BODIES = {
    "no JSON": b"x", "empty": b"", "two values": b"1 2", "a member more": b'1,"status":"failed"', "not closed": b"[", "no UTF-8": b'"\xff"',
    "NaN": b"NaN", "deep": b"[" * 100 + b"]" * 100, "very deep": b"[" * 100_000 + b"]" * 100_000, "large": b'"' + b"x" * (5 << 20) + b'"',
    "a lone surrogate": b'"\\ud800"', "a NUL": b'"\\u0000\x00"',
}  # fmt: skip


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED])
@pytest.mark.parametrize(
    "options", [b"{}", b'{"run_after":"after","on_failure":"after","max_retries":0}'], ids=["alone", "with successors"]
)
async def test_a_body_that_is_no_json_is_never_shown_as_json(there: World, outcome: Outcome, options: bytes) -> None:
    for number, body in enumerate(BAD_BODIES.values()):
        honest = await there.peer().join(task_named("honest"), name="honest")
        rogue = await there.peer().join(task_named("rogue", options=options))
        id, own = await there.submit("honest"), await there.submit("rogue")
        [good], [bad] = await honest.take(), await rogue.take()
        rogue.say(Reports(number=1, items=[succeeded(bad, body, outcome=outcome)]))
        honest.say(Reports(number=77, items=[succeeded(good, b'"good"')]))
        assert (await honest.hear(Acked)).stale == []
        assert (await rogue.hear(Acked)).stale == []
        await ends_visibly(there, id, own)
        births = [job for job in await jobs_of(there) if job["name"] == "after"]
        assert len(births) == (number + 1 if options != b"{}" else 0)  # on_failure, for it did not succeed
        for peer in (honest, rogue):
            await peer.leave()


async def jobs_of(there: World) -> list[Any]:
    async with there.client() as http:
        found: list[Any] = msgspec.json.decode((await http.get("/jobs/api/v1/jobs?limit=500")).content)["items"]
    return found


async def ends_visibly(there: World, id: str, own: str) -> None:
    """Both jobs have ended, and every list that they stand in can be read."""
    async with there.client() as http:
        listed = await http.get("/jobs/api/v1/jobs")
        seen = await http.get("/job/view/results")
        pulled = await http.get(f"/job/pull/result?request_id={own}&wait=0")
    found = {job["id"]: job for job in msgspec.json.decode(listed.content)["items"]}
    assert found[id]["result"] == "good"
    assert {job["request_id"] for job in msgspec.json.decode(seen.content)} >= {id}
    assert found[own]["status"] == "failed"
    assert found[own]["error"]["kind"] == "bad_report"
    assert pulled.status_code == 409
    assert msgspec.json.decode(pulled.content)["job_status"] == "failed"


@pytest.mark.parametrize("name", ["a\nworker.connected worker=root", "x" * 50_000, "nul\0nul", "\x1b[2J", "<script>alert(1)</script>"])
async def test_a_workers_name_is_short_and_writes_no_line_of_its_own(there: World, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "easyjobs")
    rogue = await there.peer().join(task_named("rogue"), name=name)
    await there.submit("rogue")
    [bad] = await rogue.take()
    rogue.say(Offer(number=2, tasks=[task_named("no name")]))
    await rogue.hear(Offered)
    rogue.say(Reports(number=1, items=[succeeded(bad)]))
    await rogue.hear(Acked)
    async with there.client() as http:
        workers = (await http.get("/jobs/api/v1/workers")).json()["items"]
    assert all(0 < len(worker["name"]) <= 200 and worker["name"].isprintable() for worker in workers)
    assert len(workers) == 2  # the manager is one
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert "\x1b" not in record.getMessage()
        assert len(record.getMessage()) < 5000


@pytest.mark.parametrize("text", ["nul\0nul", "x" * 1_000_000, "\u2028\x1b", "é" * 9000])
async def test_texts_that_a_worker_shows_are_cut_and_harm_nobody_else(there: World, text: str) -> None:
    honest, rogue, id, own, good, bad = await two_jobs(there)
    rogue.say(Progress(items=[Mark(bad.seq, bad.attempt, 1, None, text)]))
    rogue.say(Log(number=1, lines=[Line(bad.seq, bad.attempt, 1, 1, 20, text, text)]))
    honest.say(Log(number=2, lines=[Line(good.seq, good.attempt, 1, 1, 20, "honest", "line")]))
    await honest.hear(Acked)
    await rogue.hear(Acked)
    async with there.client() as http:
        logs = (await http.get(f"/jobs/api/v1/jobs/{own}/logs")).json()
        assert (await http.get(f"/jobs/api/v1/jobs/{id}/logs")).json()["lines"] == 1
    assert all(len(line["text"]) <= 9000 and len(line["logger"]) <= 1000 for line in logs["items"])
    progress = (await there.job(own))["progress"]
    assert progress is None or len(progress["message"]) <= 500
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("edge", [0, *EDGES, 253402300800_000000, 2**62])
async def test_numbers_in_lines_and_marks_are_shown_or_refused(there: World, edge: int) -> None:
    honest, rogue, id, own, good, bad = await two_jobs(there)
    rogue.say(Log(number=1, lines=[Line(bad.seq, bad.attempt, 1, edge, edge, "rogue", "text")]))
    rogue.say(Progress(items=[Mark(bad.seq, bad.attempt, edge, edge, "m")]))
    await rogue.closing()
    async with there.client() as http:
        assert (await http.get(f"/jobs/api/v1/jobs/{own}/logs")).status_code == 200
    await there.job(own)
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308])
async def test_a_progress_that_is_no_number_is_no_broken_answer(there: World, value: float) -> None:
    honest, rogue, id, own, good, bad = await two_jobs(there)
    rogue.say(Progress(items=[Mark(bad.seq, bad.attempt, value, value, "m")]))
    rogue.say(Log(number=1, lines=[Line(bad.seq, bad.attempt, 1, 1, 20, "rogue", "text")]))
    await rogue.hear(Acked)
    await there.job(own)
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("age", [float("nan"), float("inf"), -1.0, 1e300])
async def test_a_beat_with_a_strange_age_breaks_no_view(there: World, age: float) -> None:
    honest, rogue, id, own, good, _ = await two_jobs(there)
    rogue.say(Beat(number=1, count=-5, digest=2**64 - 1, loop_age_s=age))
    await rogue.closing()
    waiting = await there.submit("rogue")
    async with there.client() as http:
        assert msgspec.json.decode((await http.get("/jobs/api/v1/workers")).content)
        for job in (own, waiting):
            assert (await http.get(f"/jobs/api/v1/jobs/{job}/explain")).status_code == 200
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("limit", EDGES)
async def test_a_credit_out_of_range_takes_no_more_than_there_is(there: World, limit: int) -> None:
    honest, rogue, id, _, good, _ = await two_jobs(there)
    rogue.say(Credit(limit=limit))
    await rogue.closing()
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("raw", [b"", b"x", b"\0" * 16, b"x" * 17, b"x" * 30_000])
async def test_ids_of_any_length_harm_nobody_else(there: World, raw: bytes) -> None:
    honest, rogue, id, _, good, bad = await two_jobs(there)
    rogue.say(Held(items=[running(bad, id=raw), running(bad, seq=FAR, id=raw)]))
    rogue.say(Watch(ids=[raw]), Control(number=1, verb="cancel", ids=[raw]), Control(number=2, verb="delete", ids=[raw]))
    rogue.say(Control(number=3, verb="no such verb", ids=[raw]), Follow(number=4, id=raw))
    rogue.say(Submit(number=5, jobs=[SubmitItem(raw, "Q", "rogue", b"[[],{}]")]))
    await rogue.closing()
    again = there.peer()
    again.session = rogue.session
    await again.join(held=[running(bad, id=raw), running(bad, seq=5, id=raw)])
    await ends_well(there, honest, id, good)


async def test_calls_and_options_out_of_range_are_refused(there: World) -> None:
    honest, rogue, id, _, good, bad = await two_jobs(there)
    await rogue.leave()

    def item(letter: bytes, caller: Calling | None = None) -> SubmitItem:
        return SubmitItem(letter * 16, "Q", "rogue", b"[[],{}]", caller)

    for edge in EDGES:
        for frame in (
            Submit(number=1, jobs=[item(b"a", Calling(edge, bad.attempt, "f"))]),
            Submit(number=2, jobs=[item(b"b", Calling(bad.seq, edge, "f"))]),
            Submit(number=3, jobs=[item(b"c")], options=SubmitOptions(delay_us=edge)),
            Submit(number=4, jobs=[item(b"d")], options=SubmitOptions(run_at=edge)),
            Submit(number=5, jobs=[item(b"e")], options=SubmitOptions(priority=edge)),
        ):
            if (frame.number, edge) in {(5, -1), (3, 2**31), (4, 2**31)}:  # what may be meant
                continue
            back = await there.peer().join(role="client")
            back.say(frame)
            answer = await back.next()
            assert answer is CLOSE_BAD_FRAME or isinstance(answer, Refused) or answer.problem is not None, (edge, frame)
            await back.leave()
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("text", ["nul\0nul", "\n", "é" * 64, "x" * 255])
async def test_texts_in_calls_and_keys_are_kept_or_refused(there: World, text: str) -> None:
    honest, rogue, id, _, good, bad = await two_jobs(there)
    rogue.say(Submit(number=1, jobs=[SubmitItem(b"a" * 16, "Q", "rogue", b"[[],{}]", Calling(bad.seq, bad.attempt, text))]))
    await rogue.hear(Submitted)
    rogue.say(Submit(number=2, jobs=[SubmitItem(b"b" * 16, "Q", "rogue", b"[[],{}]")], options=SubmitOptions(key=text)))
    await rogue.hear(Submitted)
    await ends_well(there, honest, id, good)


# --- what it offers -------------------------------------------------------------------------------------------------------------

OFFERS: dict[str, NewTask] = {
    name: task_named(name)
    for name in ("", "../../etc/passwd", "a b", "a/b", "a\0", "é", "a\n", "__proto__.x", "x" * 65, "{id}", "a?b", "a#b", "%2e%2e", "1a")
}
SCHEMAS: dict[str, bytes] = {
    "no JSON": b"x",
    "empty": b"",
    "deep": b"[" * 1000 + b"]" * 1000,
    "large": b'"' + b"x" * 40_000 + b'"',
    "a list": b"[]",
    "a foreign ref": b'{"parameters":[],"arguments":{"type":"object","properties":{},"additionalProperties":false,"$ref":"http://127.0.0.1:1/x"}}',
    "a file": b'{"parameters":[],"arguments":{"type":"object","properties":{},"additionalProperties":false,"$defs":{"a":{"$ref":"file:///etc/passwd"}}}}',
    "a ref round and round": b'{"parameters":[],"arguments":{"type":"object","properties":{},"additionalProperties":false,"$defs":{"a":{"$ref":"#/$defs/a"}}}}',
    "a pattern of exponential time": b'{"parameters":[{"name":"a","kind":"keyword_only","required":false}],"arguments":{"type":"object",'
    b'"properties":{"a":{"type":"string","pattern":"(?=(a+)+$)b"}},"additionalProperties":false}}',
    "an unknown field": b'{"parameters":[],"arguments":{"type":"object","properties":{},"additionalProperties":false},"import":"os"}',
    "a parameter that is no name": b'{"parameters":[{"name":"a b","kind":"keyword_only","required":false}],"arguments":{"type":"object",'
    b'"properties":{"a b":{}},"additionalProperties":false}}',
}
OPTIONS: dict[str, bytes] = {
    "no JSON": b"x",
    "a list": b"[]",
    "large": b'{"a":"' + b"x" * 20_000 + b'"}',
    "deep": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a path": b'{"run_after":"../../x"}',
    "no text": b'{"run_after":[1]}',
    "a number": b'{"run_after":5}',
    "true": b'{"on_failure":true}',
    "retries": b'{"max_retries":1e9}',
    "retries of all time": b'{"max_retries":9223372036854775807}',
    "crashes": b'{"max_crashes":0}',
    "a huge priority": b'{"priority":99999999999999999999999}',
    "a timeout of ages": b'{"timeout_us":99999999999999999999}',
    "a schedule": b'{"schedule":"x"}',
    "a schedule that is a number": b'{"schedule":5}',
    "unique": b'{"unique":5}',
    "unique with a state that there is not": b'{"unique":{"fields":null,"period_us":null,"states":["x"]}}',
    "unique with fields that it has not": b'{"unique":{"fields":["x"],"period_us":-5,"states":["queued"]}}',
    "unique with states": b'{"unique":{"states":["x"]}}',
    "a place": b'{"results_to":5}',
    "a chain": b'{"max_chain_depth":0}',
    "a thousand successors": b'{"run_after":[' + b",".join(b'"t%d"' % n for n in range(1000)) + b"]}",
}


def routes_of(world: World) -> list[tuple[str, object]]:
    return [(str(getattr(route, "path", "")), getattr(route, "endpoint", None)) for route in world.app.routes]


async def test_no_offer_adds_a_route_or_a_path_outside_the_tasks(there: World) -> None:
    before = routes_of(there)
    rogue = await there.peer().join()
    for name, task in OFFERS.items():
        rogue.say(Offer(number=1, tasks=[task]))
        answer = await rogue.hear(Offered)
        assert [refused for refused, _ in answer.refused] == [name]
    for signature in SCHEMAS.values():
        rogue.say(Offer(number=1, tasks=[NewTask("task", signature, b"{}")]))
        assert (await rogue.hear(Offered)).refused
    assert routes_of(there) == before
    async with there.client() as http:
        document = (await http.get("/openapi.json")).json()
    assert not [path for path in document["paths"] if "/task/" in path]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
async def test_options_that_no_worker_of_ours_sends_are_refused_and_the_worker_hears_why(there: World, options: bytes) -> None:
    honest, rogue, id, _, good, _ = await two_jobs(there)
    rogue.say(Offer(number=2, tasks=[task_named("strange", options=options)]))
    answer = await rogue.hear(Offered)
    if not answer.refused:
        await there.submit("strange")
    await ends_well(there, honest, id, good)


@pytest.mark.parametrize("queue", ["", "a/b", "../x", "a b", "x" * 65, "é", "a\n", "a\0"])
async def test_a_worker_of_a_queue_of_a_strange_name_is_refused(here: World, queue: str) -> None:
    rogue = here.peer()
    await rogue.hello(queue=queue)
    assert await rogue.hear_close() == CLOSE_REFUSED


async def test_one_worker_does_not_fill_the_catalogue(there: World) -> None:
    rogue = await there.peer().join()
    rogue.say(Offer(number=1, tasks=[task_named(f"t{n}") for n in range(1500)]))
    answer = await rogue.hear(Offered)
    assert len(answer.tasks) <= 1000
    assert "1,000" in answer.refused[0][1]
    honest = await there.peer().join(task_named("honest"), name="honest")
    assert honest.lanes


async def test_named_tasks_do_not_overfill_the_catalogue(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_TASKS", 20)
    rogue = await here.peer().join()
    names = ",".join(f'"t{n}"' for n in range(50))
    rogue.say(Offer(number=1, tasks=[task_named("a", options=f'{{"run_after":[{names}]}}'.encode())]))
    [(name, why)] = (await rogue.hear(Offered)).refused
    assert (name, "20 tasks" in why) == ("a", True)
    assert await here.peer().join(task_named("honest"))


# --- frames out of place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame", [Offer(number=1, tasks=[]), Credit(limit=1), Reports(number=1, items=[]), Beat(number=1, count=0, digest=0)]
)
async def test_a_client_is_no_worker(here: World, frame: Any) -> None:
    client = await here.peer().join(role="client")
    client.say(frame)
    assert await client.hear_close() == CLOSE_BAD_FRAME


async def test_followers_of_many_jobs_are_closed_and_no_others(there: World) -> None:
    honest, rogue, id, _, good, bad = await two_jobs(there)
    rogue.say(*[Follow(number=n, id=bad.id) for n in range(1002)])
    assert await rogue.hear_close() == CLOSE_BAD_FRAME
    await ends_well(there, honest, id, good)


async def test_the_end_of_a_conversation_leaves_nothing_behind(here: World) -> None:
    honest, rogue, id, _, good, _ = await two_jobs(here)
    rogue.say(Watch(ids=[good.id]), Follow(number=1, id=good.id))
    await rogue.hear(Followed)
    rogue.say(Control(number=1, verb="cancel", ids=[b"x" * 16]))
    await rogue.hear(Controlled)
    await rogue.leave()
    assert not here.manager._results.watched or all(not watchers for watchers in here.manager._results.watched.values())
    assert rogue.served.done()
    await ends_well(here, honest, id, good)
    assert len(asyncio.all_tasks()) < 50
