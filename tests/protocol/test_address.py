"""Addresses of managers."""

from __future__ import annotations

import pytest

from easyjobs.errors import ConfigurationError
from easyjobs.protocol.address import socket_url


@pytest.mark.parametrize(
    ("given", "dialled"),
    [
        ("http://127.0.0.1:8220", "ws://127.0.0.1:8220/ws/jobs"),
        ("https://jobs.example", "wss://jobs.example/ws/jobs"),
        ("jobs.example:80", "ws://jobs.example:80/ws/jobs"),
        ("https://jobs.example/prefix/", "wss://jobs.example/prefix/ws/jobs"),
        ("ws://[::1]:8220/ws/jobs", "ws://[::1]:8220/ws/jobs"),
    ],
)
def test_an_address_of_any_usual_form_is_dialled_at_its_socket(given: str, dialled: str) -> None:
    assert socket_url(given) == dialled


@pytest.mark.parametrize("given", ["ftp://jobs.example", "http://", "amqp://guest@127.0.0.1/"])
def test_what_is_no_address_of_a_manager_is_named(given: str) -> None:
    with pytest.raises(ConfigurationError, match="no address of a manager"):
        socket_url(given)
