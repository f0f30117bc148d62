"""`encryption_enabled`: plain text above, ciphertext in the database, and nothing that opens anywhere but where it belongs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from easyjobs.domain.job import ErrorInfo, Outcome, Report
from easyjobs.domain.seeing import Line, Mark
from easyjobs.errors import ConfigurationError
from easyjobs.protocol.messages import Acked, Log, Progress, Reports
from easyjobs.runtime.sealing import KeyRing, Unreadable
from tests.postgres import Cluster
from tests.security.world import Peer, World, task_named, world

OLD, NEW = (base64.urlsafe_b64encode(letter * 32).decode() for letter in (b"o", b"n"))
WORDS = {what: f"canary-{what}-4c1f" for what in ("argument", "result", "error", "trace", "line", "progress", "successor", "message")}


def anything(text: object = None, **more: object) -> None: ...


async def worked(here: World, name: str = "w") -> dict[str, str]:
    """One job that succeeds, with a successor, and one that fails; all of them say canaries. Their ids."""
    options = b'{"run_after":"after","max_retries":0}'
    peer = await here.peer().join(task_named("work", anything, options), name=name)
    good, bad = await here.submit("work", {"text": WORDS["argument"]}), await here.submit("work", {"text": WORDS["argument"]})
    first, second = await peer.take(2)
    peer.say(Progress(items=[Mark(first.seq, first.attempt, 1, 2, WORDS["progress"])]))
    peer.say(Log(number=1, lines=[Line(first.seq, first.attempt, 1, 1, 20, "app", WORDS["line"])]))
    await peer.hear(Acked)
    assert all(WORDS["argument"].encode() in job.args for job in (first, second)), "workers see plain text"
    async with here.client() as http:
        progress = (await http.get(f"/jobs/api/v1/jobs/{good}")).json()["progress"]
        assert progress["message"] == WORDS["progress"]
    error = ErrorInfo("ValueError", WORDS["error"], WORDS["trace"])
    peer.say(
        Reports(
            number=2,
            items=[
                Report(first.seq, first.attempt, Outcome.SUCCEEDED, body=json.dumps([WORDS["result"]]).encode()),
                Report(second.seq, second.attempt, Outcome.FAILED, body=msgspec.json.encode(error)),
            ],
        )
    )
    await peer.hear(Acked)
    await peer.leave()
    return {"good": good, "bad": bad}


async def seen(here: World, ids: dict[str, str]) -> None:
    """HTTP shows plain text."""
    good, bad = await here.job(ids["good"]), await here.job(ids["bad"])
    assert good["kwargs"] == {"text": WORDS["argument"]}
    assert good["result"] == [WORDS["result"]]
    assert (bad["error"]["message"], bad["error"]["traceback"]) == (WORDS["error"], WORDS["trace"])
    assert bad["attempts"][0]["error"]["message"] == WORDS["error"]
    async with here.client() as http:
        lines = (await http.get(f"/jobs/api/v1/jobs/{ids['good']}/logs")).json()["items"]
        assert [line["text"] for line in lines] == [WORDS["line"]]
        jobs = (await http.get("/jobs/api/v1/jobs")).json()["items"]
        after = next(job for job in jobs if job["name"] == "after")
        assert WORDS["result"] in json.dumps(after["args"])
        pulled = await http.get(f"/job/pull/result?request_id={ids['good']}")
        assert pulled.json() == [WORDS["result"]]


def canaries(directory: Path) -> list[tuple[str, str]]:
    return [
        (file.name, word) for file in directory.iterdir() if file.is_file() for word in WORDS.values() if word.encode() in file.read_bytes()
    ]


async def test_the_database_has_ciphertext_and_everybody_else_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    async with world(str(file), encryption_enabled=True, encryption_keys=NEW) as here:
        ids = await worked(here)
        await seen(here, ids)
        assert canaries(tmp_path) == []
    assert canaries(tmp_path) == []
    async with world(str(file), encryption_enabled=True, encryption_keys=[NEW]) as here:
        await seen(here, ids)


async def test_without_encryption_the_canaries_are_found(tmp_path: Path) -> None:
    """The search would find them."""
    async with world(str(tmp_path / "jobs.db")) as here:
        await worked(here)
        found = {word for _, word in canaries(tmp_path)}
    assert found >= {WORDS[what] for what in ("argument", "result", "error", "trace", "line")}


async def test_postgresql_has_ciphertext_too(postgres_cluster: Cluster) -> None:
    postgres_cluster.sql("drop schema if exists easyjobs cascade")
    async with world(postgres_cluster.url(), encryption_enabled=True, encryption_keys=NEW) as here:
        await seen(here, await worked(here))
        tables = postgres_cluster.sql("select table_name from information_schema.tables where table_schema = 'easyjobs'").split()
        rows = "".join(postgres_cluster.sql(f"select t::text from easyjobs.{table} t") for table in tables)
    hexed = [word.encode().hex() for word in WORDS.values()]
    assert len(rows) > 1000
    assert [word for word in [*WORDS.values(), *hexed] if word in rows] == []


async def test_keys_are_replaced_and_the_old_one_opens_what_it_has_sealed(tmp_path: Path) -> None:
    file = str(tmp_path / "jobs.db")
    async with world(file) as here:
        plain = await worked(here)
    async with world(file, encryption_enabled=True, encryption_keys=OLD) as here:
        await seen(here, plain)  # rows of before
        old = await worked(here)
    async with world(file, encryption_enabled=True, encryption_keys=[NEW, OLD]) as here:
        await seen(here, old)
        new = await worked(here)
    async with world(file, encryption_enabled=False, encryption_keys=[NEW]) as here:  # switched off: what was sealed is read still
        await seen(here, new)
        lost = await here.job(old["good"])
        assert "not in EASYJOBS_ENCRYPTION_KEYS" in lost["result"]
        assert (await here.job(old["bad"]))["error"]["type"] == "Unreadable"
        async with here.client() as http:
            for path in ("/jobs/api/v1/jobs", "/job/view/results"):
                msgspec.json.decode((await http.get(path)).content)


async def test_a_job_that_waits_through_a_change_of_keys_runs(tmp_path: Path) -> None:
    file = str(tmp_path / "jobs.db")
    async with world(file, encryption_enabled=True, encryption_keys=OLD) as here:
        await here.peer().join(task_named("work", anything))
        await here.submit("work", {"text": WORDS["argument"]})
    async with world(file, encryption_enabled=True, encryption_keys=[NEW, OLD]) as here:
        [job] = await (await here.peer().join(task_named("work", anything))).take()
        assert WORDS["argument"].encode() in job.args


@pytest.mark.parametrize("change", ["exchange jobs", "exchange fields", "a byte", "cut"])
async def test_what_was_changed_in_the_database_does_not_open(tmp_path: Path, change: str) -> None:
    file = tmp_path / "jobs.db"
    async with world(str(file), encryption_enabled=True, encryption_keys=NEW) as here:
        ids = await worked(here)
    db = apsw.Connection(str(file))
    good, bad = (bytes.fromhex(ids[which].replace("-", "")) for which in ("good", "bad"))
    args, result = db.execute("select args, result from jobs where id = ?", (good,)).get
    if change == "exchange jobs":
        db.execute("update jobs set result = (select args from jobs where id = ?) where id = ?", (bad, good))
    elif change == "exchange fields":
        db.execute("update jobs set result = ? where id = ?", (args, good))
    elif change == "a byte":
        db.execute("update jobs set result = ? where id = ?", (result[:-6] + (b"A" if result[-6:-5] != b"A" else b"B") + result[-5:], good))
    else:
        db.execute("update jobs set result = ? where id = ?", (result[:40] + b'"', good))
    db.close()
    async with world(str(file), encryption_enabled=True, encryption_keys=NEW) as here:
        found = await here.job(ids["good"])
        assert "unreadable: it was changed" in found["result"]
        assert WORDS["argument"] not in json.dumps(found["result"])


async def test_arguments_that_do_not_open_run_nothing(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    async with world(str(file), encryption_enabled=True, encryption_keys=NEW) as here:
        await here.peer().join(task_named("work", anything))
        ids = [await here.submit("work", {"text": text}) for text in ("a", "b")]
    db = apsw.Connection(str(file))
    one, two = (bytes.fromhex(id.replace("-", "")) for id in ids)
    db.execute("update jobs set args = (select args from jobs where id = ?) where id = ?", (two, one))
    db.close()
    async with world(str(file), encryption_enabled=True, encryption_keys=NEW) as here:
        peer: Peer = await here.peer().join(task_named("work", anything))
        jobs: list[Any] = await peer.take(2)
        assert [job.args for job in jobs if job.id == two] == [b'[[],{"text":"b"}]']
        [stolen] = [job.args for job in jobs if job.id == one]
        with pytest.raises(msgspec.ValidationError):  # no arguments: the worker reports the attempt as invalid_arguments
            msgspec.json.decode(stolen, type=tuple[list[Any], dict[str, Any]])


async def test_a_repeated_submit_is_known_for_a_repeat(tmp_path: Path) -> None:
    async with world(str(tmp_path / "jobs.db"), encryption_enabled=True, encryption_keys=NEW) as here:
        await here.peer().join(task_named("work", anything))
        async with here.client() as http:
            ids = {
                (await http.post("/Q/task/work", json={"text": "x"}, headers={"Idempotency-Key": "k"})).json()["request_id"]
                for _ in range(3)
            }
        assert len(ids) == 1


def test_sealed_text_is_of_one_place_and_one_key() -> None:
    ring = KeyRing([NEW, OLD])
    sealed = ring.seal(b"text", b"here")
    assert ring.open(sealed, b"here") == b"text"
    assert ring.seal(b"text", b"here") == sealed
    assert len({ring.seal(text, place) for text in (b"a", b"b") for place in (b"c", b"d")}) == 4
    for other, place in (
        (sealed, b"there"),
        (sealed[:-8], b"here"),
        ("ej~1~00000000~AAAA", b"here"),
        ("ej~1~", b"here"),
        ("ej~1~~é", b"here"),
    ):
        with pytest.raises(Unreadable):
            ring.open(other, place)
    with pytest.raises(Unreadable, match="not in EASYJOBS_ENCRYPTION_KEYS"):
        KeyRing([OLD]).open(sealed, b"here")
    assert NEW not in repr(ring)


@pytest.mark.parametrize("keys", [None, "", "short", "x" * 44, base64.b64encode(b"k" * 31).decode(), [NEW, "short"]])
async def test_keys_that_are_none_are_refused_and_not_shown(keys: object) -> None:
    with pytest.raises(ConfigurationError, match=r"base64|needs keys") as caught:
        async with world(encryption_enabled=True, encryption_keys=keys):
            pass
    assert "short" not in str(caught.value)
    assert NEW not in str(caught.value)
