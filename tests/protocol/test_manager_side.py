"""The manager's end of a connection: who comes in, and what may come when."""

from __future__ import annotations

import pytest

from easyjobs.domain.job import Report, Running
from easyjobs.errors import ProtocolError
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.handshake import manager_proof, peer_proof
from easyjobs.protocol.manager_side import HelloRefused, ManagerSide
from easyjobs.protocol.messages import (
    CLOSE_REFUSED,
    CLOSE_VERSION,
    PROTOCOL_VERSION,
    Beat,
    Challenge,
    Credit,
    Frame,
    Held,
    Hello,
    Offer,
    Reports,
    Submit,
    Watch,
    Welcome,
)

SECRET = "a secret of more than thirty-two bytes"
OURS, THEIRS, SESSION = b"m" * 32, b"p" * 32, b"s" * 16


def hello(
    secret: str = SECRET, *, role: str = "worker", version: int = PROTOCOL_VERSION, proved_role: str | None = None, slots: int = 3
) -> Hello:
    proof = peer_proof(secret, role=proved_role or role, session=SESSION, manager_nonce=OURS, peer_nonce=THEIRS, version=version)
    return Hello(version=version, role=role, session=SESSION, nonce=THEIRS, proof=proof, name="w", queue="DEFAULT", slots=slots)


def a_side(*secrets: str) -> ManagerSide:
    return ManagerSide(secrets or (SECRET,), OURS)


def test_a_peer_that_knows_the_secret_comes_in_and_sees_that_the_manager_knows_it_too() -> None:
    side = a_side()
    challenge = from_manager().decode(side.challenge())
    assert challenge == Challenge(version=PROTOCOL_VERSION, nonce=OURS)
    assert side.greet(encode(hello())).name == "w"
    lost = Running(seq=7, attempt=2, lane=1, id=b"i" * 16)
    welcome = from_manager().decode(side.welcome(lease_s=30, beat_s=10, drop=[lost]))
    assert isinstance(welcome, Welcome)
    assert welcome.drop == [lost]
    assert welcome.proof == manager_proof(
        SECRET, role="worker", session=SESSION, manager_nonce=OURS, peer_nonce=THEIRS, version=PROTOCOL_VERSION
    )


def test_either_of_two_secrets_is_taken_while_one_replaces_the_other() -> None:
    side = a_side("the new secret, of more than 32 bytes..", SECRET)
    assert side.greet(encode(hello()))
    with pytest.raises(HelloRefused):
        a_side("the new secret, of more than 32 bytes..").greet(encode(hello()))


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (hello("another secret of more than 32 bytes"), CLOSE_REFUSED),
        (hello(proved_role="client"), CLOSE_REFUSED),  # a proof for one role does not open another
        (hello(role="emperor"), CLOSE_REFUSED),
        (hello(version=PROTOCOL_VERSION + 1), CLOSE_VERSION),
        (hello(slots=-1), CLOSE_REFUSED),
    ],
    ids=["wrong secret", "proof of another role", "unknown role", "other version", "negative slots"],
)
def test_a_hello_that_does_not_prove_itself_is_refused_with_its_code(bad: Hello, code: int) -> None:
    side = a_side()
    with pytest.raises(HelloRefused) as refused:
        side.greet(encode(bad))
    assert refused.value.code == code
    assert SECRET not in str(refused.value)
    with pytest.raises(ProtocolError):
        side.welcome(lease_s=30, beat_s=10, drop=[])
    with pytest.raises(ProtocolError):
        side.receive(encode(Credit(limit=1)))


def test_the_proof_of_one_connection_is_worth_nothing_on_another() -> None:
    recorded = encode(hello())
    with pytest.raises(HelloRefused):
        ManagerSide((SECRET,), b"n" * 32).greet(recorded)


@pytest.mark.parametrize("frame", [Credit(limit=1), Submit(number=1, jobs=[])])
def test_nothing_is_taken_before_the_hello(frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        a_side().greet(encode(frame))


@pytest.mark.parametrize(
    "frame",
    [
        Offer(number=1, tasks=[]),
        Credit(limit=5),
        Reports(number=1, items=[Report(seq=1, attempt=1, outcome=0)]),  # type: ignore[arg-type]
        Beat(number=1, count=0, digest=0),
        Held(items=[]),
    ],
)
def test_a_client_may_not_speak_as_a_worker(frame: Frame) -> None:
    side = a_side()
    side.greet(encode(hello(role="client")))
    with pytest.raises(ProtocolError, match="client may not"):
        side.receive(encode(frame))
    assert side.receive(encode(Watch(ids=[b"i" * 16]))) == Watch(ids=[b"i" * 16])


def test_a_second_hello_is_out_of_place() -> None:
    side = a_side()
    side.greet(encode(hello()))
    with pytest.raises(ProtocolError, match="out of place"):
        side.receive(encode(hello()))


def test_an_endless_hello_is_not_even_decoded() -> None:
    with pytest.raises(ProtocolError) as refused:
        a_side().greet(b"\x00" * (64 * 1024 + 1))
    assert refused.value.code == 1009


def test_what_is_held_comes_after_the_hello_from_a_worker_and_as_held_only() -> None:
    job = Running(seq=7, attempt=2, lane=1, id=b"i" * 16)
    side = a_side()
    side.greet(encode(hello()))
    assert side.complete(encode(Held(items=[job]))).held == [job]
    for role, frame in (("worker", Watch(ids=[])), ("client", Held(items=[job]))):
        side = a_side()
        side.greet(encode(hello(role=role)))
        with pytest.raises(ProtocolError, match=type(frame).__name__.lower()):
            side.complete(encode(frame))
    with pytest.raises(ProtocolError, match="out of place"):
        a_side().complete(encode(Held(items=[job])))
