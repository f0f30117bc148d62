"""What users do at the wrong moment, or with odd values."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from faults.cluster import QUEUE, site, tokens
from faults.load import said
from faults.matrix import row
from tests.processes import Answer, http_call


@row("R2")
def cancel_races(directory: Path, size: float) -> str:
    """Cancelling while jobs end, and retrying while they are being cancelled: one end a round."""
    with site(directory) as place:
        place.start_worker(slots=20)
        ids = place.submit_many("work", tokens("r", round(200 * size)), seconds=0.05)
        chance = Random(2)
        done = threading.Event()
        answers: Counter[str] = Counter()

        def wish(verb: str) -> None:
            while not done.is_set():
                answer = place.manager.call("POST", f"/jobs/api/v1/jobs/{chance.choice(ids)}/{verb}")
                answers[f"{verb} {answer.status}"] += 1

        threads = [threading.Thread(target=wish, args=(verb,)) for verb in ("cancel", "cancel", "retry")]
        for thread in threads:
            thread.start()
        time.sleep(4 * size)
        done.set()
        for thread in threads:
            thread.join()
        history = place.judged()
        states = [row.state for row in history.rows]
        raced = {"cancel 200", "cancel 202", "cancel 409", "retry 200", "retry 409"}  # before it ran, while it ran, after its end; …
        assert answers.keys() >= raced, f"there was no race: {answers}"
        return f"{said(answers)}; in the end {states.count(2)} succeeded, {states.count(4)} cancelled, {max(row.round for row in history.rows)} rounds at most"


@row("R4")
def odd_values(directory: Path, size: float) -> str:
    """Arguments that are too large, too deep, no JSON, NaN, half of a surrogate pair: refused, and nothing is queued."""
    with site(directory) as place:
        place.start_worker()
        bodies: dict[str, bytes] = {
            "too large": b'{"token": "' + b"x" * (1024 * 1024 + 1) + b'"}',
            "too deep": b'{"token": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            "NaN": b'{"token": NaN}',
            "no JSON": b'{"token": ',
            "half a pair": b'{"token": "\\ud800"}',
            "no UTF-8": b'{"token": "\xff"}',
            "a huge number": b'{"token": "n", "seconds": ' + b"9" * 5000 + b"}",
            "a huge exponent": b'{"token": "n", "seconds": 1e999}',
        }
        answers: dict[str, Answer] = {}
        for name, body in bodies.items():
            answers[name] = http_call("POST", f"{place.manager.url}/{QUEUE}/task/work", body)
        wrong = {name: answer.status for name, answer in answers.items() if not 400 <= answer.status < 500}
        assert not wrong, f"not refused: {wrong}"
        place.submit("work", "after")
        place.judged()
        return ", ".join(f"{name} {answer.status}" for name, answer in answers.items())


@row("R6")
def keys(directory: Path, size: float) -> str:
    """One Idempotency-Key with one body and with another, by 50 callers at once, and again after the manager was killed between commit and answer."""
    callers = 50
    refused = repeated = 0

    def send(key: str, seconds: float) -> Answer:
        url = f"{place.manager.url}/{QUEUE}/task/work"
        return http_call("POST", url, {"token": key, "seconds": seconds}, headers={"Idempotency-Key": key})

    with site(directory) as place, ThreadPoolExecutor(callers) as pool:
        place.start_worker(slots=20)
        for n in range(round(4 * size)):
            key = f"k{n}"
            place.keyed.add(key)
            answers = list(pool.map(lambda m, key=key: send(key, 0.25 if m % 5 == 0 else 0.0), range(callers)))
            bodies = [{answer.status for answer in answers[m::5]} for m in range(5)]
            assert sorted(map(sorted, [bodies[0], set[int]().union(*bodies[1:])])) == [[200], [422]], (
                f"{key}: one body is the key's: {bodies}"
            )
            taken = {answer.json()["request_id"] for answer in answers if answer.status == 200}
            assert len(taken) == 1, f"{key}: {len(taken)} jobs: {taken}"
            place.history.acked[key] = taken.pop()
            refused += sum(answer.status == 422 for answer in answers)
            repeated += sum(answer.status == 200 for answer in answers) - 1
        kills = round(3 * size)
        for n in range(kills):
            key = f"dead{n}"
            place.keyed.add(key)
            place.history.unknown.add(key)
            place.manager.stop()
            place.start_manager(EASYJOBS_FAILPOINTS="intake.stored:kill")
            try:
                answer = send(key, 0.0)
            except (OSError, http.client.HTTPException):
                pass
            else:
                raise AssertionError(f"{key}: the manager answered {answer.status}: the failpoint did not bite")
            place.wait_for_death()
            place.start_manager()
            stored = [row for row in place.told().rows if row.token == key]
            assert len(stored) == 1, f"{key}: the manager died after the commit, and there are {len(stored)} jobs"
            again = list(pool.map(lambda m, key=key: send(key, 0.25 if m % 5 == 0 else 0.0), range(callers)))
            assert {answer.status for answer in again[::5]} == {422}, "another body was not refused"
            ids = {answer.json()["request_id"] for m, answer in enumerate(again) if m % 5}
            assert ids == {stored[0].id}, f"{key}: stored as {stored[0].id}, and the repeats were told {ids}"
            place.history.acked[key] = stored[0].id
            place.history.unknown.discard(key)
            refused += len(again[::5])
            repeated += len(again) - len(again[::5])
        history = place.judged()
        assert len(history.rows) == len(place.keyed), f"{len(history.rows)} jobs of {len(place.keyed)} keys"
        return f"{len(place.keyed)} keys, {callers} callers each, {kills} kills between commit and answer: {len(history.rows)} jobs; {repeated} repeats told the same id, {refused} other bodies 422"
