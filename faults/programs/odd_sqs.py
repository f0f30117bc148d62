"""moto's SQS as AWS may be: messages out of order, some handed over twice, and some deletions that are answered and lost. Its chance has a seed."""

import random
from typing import Any

from moto.server import main
from moto.sqs.models import SQSBackend

import tests.moto_server  # noqa: F401  (a receive is one step)

chance = random.Random(7)
receive, delete = SQSBackend.receive_message, SQSBackend.delete_message


def receive_message(
    self: SQSBackend, queue_name: str, count: int, wait_seconds_timeout: int, visibility: int, *more: Any, **others: Any
) -> Any:
    messages = self.get_queue(queue_name)._messages
    if len(messages) > 1:
        at = chance.randrange(len(messages))
        messages[0], messages[at] = messages[at], messages[0]
    found = receive(self, queue_name, count, wait_seconds_timeout, visibility, *more, **others)
    for message in found:
        if chance.random() < 0.1:
            message.change_visibility(0)  # so it is handed over again at once
    return found


def delete_message(self: SQSBackend, queue_name: str, receipt_handle: str) -> None:
    if chance.random() >= 0.1:
        delete(self, queue_name, receipt_handle)


SQSBackend.receive_message = receive_message  # type: ignore[method-assign,assignment]
SQSBackend.delete_message = delete_message  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
