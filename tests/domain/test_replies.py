"""Where results are sent to."""

from __future__ import annotations

import pytest

from easyjobs.domain.replies import address

BROKERS = ("rabbitmq", "redis")


@pytest.mark.parametrize(
    ("text", "found"),
    [("answers", ("rabbitmq", "answers")), ("redis/answers", ("redis", "answers")), ("rabbitmq/a/b", ("rabbitmq", "a/b"))],
)
def test_a_queue_is_of_the_first_broker_unless_it_names_one(text: str, found: tuple[str, str]) -> None:
    assert address(text, BROKERS) == found


@pytest.mark.parametrize("text", ["rabbit/answers", "nats/answers", "a/b", "redis/"])
def test_a_mistyped_broker_is_not_taken_for_a_part_of_a_queue(text: str) -> None:
    with pytest.raises(ValueError, match=r"no broker is called .*'rabbitmq', 'redis'; write rabbitmq/"):
        address(text, BROKERS)


def test_without_a_broker_there_is_no_queue() -> None:
    with pytest.raises(ValueError, match="has none"):
        address("answers", ())
