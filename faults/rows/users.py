"""What users do at the wrong moment, or with odd values."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from random import Random

from faults.cluster import QUEUE, site, tokens
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

        def wish(verb: str) -> None:
            while not done.is_set():
                place.manager.call("POST", f"/jobs/api/v1/jobs/{chance.choice(ids)}/{verb}")

        threads = [threading.Thread(target=wish, args=(verb,)) for verb in ("cancel", "cancel", "retry")]
        for thread in threads:
            thread.start()
        time.sleep(4 * size)
        done.set()
        for thread in threads:
            thread.join()
        history = place.judged()
        states = [row.state for row in history.rows]
        return f"{states.count(2)} succeeded, {states.count(4)} cancelled, {max(row.round for row in history.rows)} rounds at most"


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
