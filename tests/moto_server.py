"""moto's server, with a receive that is one step, as it is in SQS: without that two polls take the same message, or the same group.

`python -m tests.moto_server -H 127.0.0.1 -p PORT`
"""

from __future__ import annotations

import threading
import time
from typing import Any

from moto.server import main
from moto.sqs.models import SQSBackend

LOOK_S = 0.05

one_at_a_time = threading.Lock()
receive = SQSBackend.receive_message


def receive_message(self: SQSBackend, queue_name: str, count: int, wait_seconds_timeout: int, *more: Any, **others: Any) -> Any:
    """The same, waiting outside of the lock."""
    end = time.monotonic() + wait_seconds_timeout
    while True:
        with one_at_a_time:
            messages = receive(self, queue_name, count, 0, *more, **others)
        if messages or time.monotonic() > end:
            return messages
        time.sleep(LOOK_S)


SQSBackend.receive_message = receive_message  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
