"""What every store must do with messages that cannot become jobs, and with keys of messages."""

from __future__ import annotations

from typing import Any

from easyjobs.domain.job import IdempotencyKey, Submission, SubmitVerdict
from easyjobs.domain.quarantine import BadMessage, QuarantineQuery
from easyjobs.ports.store import Store
from tests.clocks import FakeClock
from tests.contracts.store_contract import HOUR_US, StoreContract, a_job, all_jobs

EVERYTHING = QuarantineQuery(limit=1000)


def bad(key: str | None = None, **fields: Any) -> BadMessage:
    given = {"broker": "b", "queue": "Q", "reason": "bad_json", "detail": "no", "body": b"{", "size": 1, **fields}
    return BadMessage(key=key, **given)


def waiting(name: str, **fields: Any) -> BadMessage:
    return bad(reason="unknown_task", task=("Q", name), wait_us=HOUR_US, **fields)


class QuarantineContract(StoreContract):
    async def test_a_bad_message_is_kept_as_it_was_said(self, store: Store, clock: FakeClock) -> None:
        [id] = await store.quarantine([bad("m1", body=b"\x00\xff", size=700_000, detail="no JSON")])
        [kept] = await store.quarantined(QuarantineQuery(ids=(id,)))
        assert (kept.id, kept.broker, kept.queue, kept.key, kept.reason, kept.detail) == (id, "b", "Q", "m1", "bad_json", "no JSON")
        assert (kept.body, kept.size, kept.at, kept.waits_until, kept.is_whole) == (b"\x00\xff", 700_000, clock.now(), None, False)

    async def test_a_redelivered_bad_message_is_kept_once(self, store: Store) -> None:
        [first] = await store.quarantine([bad("m1")])
        again, other_queue, other_broker = await store.quarantine([bad("m1"), bad("m1", queue="R"), bad("m1", broker="c")])
        assert again == first
        assert len({first, other_queue, other_broker}) == 3
        assert len(await store.quarantined(EVERYTHING)) == 3

    async def test_messages_without_an_id_are_kept_each(self, store: Store) -> None:
        assert len(set(await store.quarantine([bad(), bad()]))) == 2

    async def test_pages_go_from_the_newest_to_the_oldest(self, store: Store) -> None:
        ids = await store.quarantine([bad(queue="QR"[n % 2], reason=("bad_json", "too_large")[n // 3]) for n in range(5)])
        page = await store.quarantined(QuarantineQuery(limit=2))
        rest = await store.quarantined(QuarantineQuery(limit=5, before_id=page[-1].id))
        assert [each.id for each in page + rest] == sorted(ids, reverse=True)
        assert [each.id for each in await store.quarantined(QuarantineQuery(queue="R"))] == [ids[3], ids[1]]
        assert [each.id for each in await store.quarantined(QuarantineQuery(reason="too_large"))] == [ids[4], ids[3]]

    async def test_it_is_forgotten_once(self, store: Store) -> None:
        one, two = await store.quarantine([bad("m1"), bad("m2")])
        assert await store.unquarantine([one, 10**9]) == [True, False]
        assert await store.unquarantine([one]) == [False]
        assert [each.id for each in await store.quarantined(EVERYTHING)] == [two]
        [anew] = await store.quarantine([bad("m1")])
        assert anew not in (one, two)

    async def test_what_waits_for_a_task_is_found_by_it_until_its_time_is_over(self, store: Store, clock: FakeClock) -> None:
        one, _, other, three = await store.quarantine([waiting("a"), bad(), waiting("b"), waiting("a", key="m")])
        assert sorted(await store.awaited_tasks()) == [("Q", "a"), ("Q", "b")]
        assert [each.id for each in await store.quarantined(QuarantineQuery(task=("Q", "a")))] == [one, three]
        await store.unquarantine([other])
        assert await store.awaited_tasks() == [("Q", "a")]
        clock.advance(3601)
        assert await store.awaited_tasks() == []
        assert await store.quarantined(QuarantineQuery(task=("Q", "a"))) == []
        assert len(await store.quarantined(EVERYTHING)) == 3

    # --- keys -------------------------------------------------------------------------------------------------------------------

    async def test_a_redelivered_message_is_no_second_job(self, store: Store, lane: int) -> None:
        def message(n: int, body: bytes = b"b") -> Submission:
            return Submission((a_job(lane, b"[[%d],{}]" % n),), IdempotencyKey("broker:b", "Q", f"m{n}", body, 14 * 24 * HOUR_US))

        first = await store.submit([message(n) for n in range(10)])
        assert {answer.verdict for answer in first} == {SubmitVerdict.ACCEPTED}
        again = await store.submit([message(n) for n in range(5, 15)])
        assert [answer.verdict for answer in again] == [SubmitVerdict.REPEATED] * 5 + [SubmitVerdict.ACCEPTED] * 5
        assert [answer.ids for answer in again[:5]] == [answer.ids for answer in first[5:]]
        assert len(await all_jobs(store)) == 15
        [conflict] = await store.submit([message(3, b"other")])
        assert conflict.verdict is SubmitVerdict.CONFLICT

    async def test_the_same_message_twice_in_a_batch_is_one_job(self, store: Store, lane: int) -> None:
        key = IdempotencyKey("broker:b", "Q", "m", b"b", HOUR_US)
        first, second = await store.submit([Submission((a_job(lane),), key), Submission((a_job(lane),), key)])
        assert (first.verdict, second.verdict) == (SubmitVerdict.ACCEPTED, SubmitVerdict.REPEATED)
        assert first.ids == second.ids
        assert len(await all_jobs(store)) == 1

    async def test_keys_whose_time_is_over_are_pruned_in_small_batches(self, store: Store, lane: int, clock: FakeClock) -> None:
        keys = [IdempotencyKey("p", "s", f"{n}", b"b", HOUR_US) for n in range(25)]
        await store.submit([Submission((a_job(lane),), key) for key in keys])
        clock.advance(3601)
        assert [await store.prune(HOUR_US, 24 * HOUR_US, 10) for _ in range(4)] == [10, 10, 5, 0]

    async def test_a_key_is_kept_for_its_own_time(self, store: Store, lane: int, clock: FakeClock) -> None:
        def submissions() -> list[Submission]:
            keys = [IdempotencyKey("p", "s", "plain", b"b")]
            keys += [IdempotencyKey("p", "s", f"{hours} hours", b"b", hours * HOUR_US) for hours in (1, 48)]
            return [Submission((a_job(lane),), key) for key in keys]

        await store.submit(submissions())
        clock.advance(2 * 3600)
        await store.prune(HOUR_US, 24 * HOUR_US)
        assert [answer.verdict.name for answer in await store.submit(submissions())] == ["REPEATED", "ACCEPTED", "REPEATED"]
        clock.advance(47 * 3600)
        await store.prune(HOUR_US, 24 * HOUR_US)
        assert {answer.verdict for answer in await store.submit(submissions())} == {SubmitVerdict.ACCEPTED}
