"""The handshake against somebody who records, reflects, guesses and downgrades; and strangers who only take up room."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyjobs.errors import AccessRefused, EasyJobsError, ProtocolError
from easyjobs.http import socket
from easyjobs.protocol.codec import encode, from_manager
from easyjobs.protocol.handshake import manager_proof, peer_proof
from easyjobs.protocol.manager_side import MAX_HELLO, ManagerSide
from easyjobs.protocol.messages import (
    CLOSE_BAD_FRAME,
    CLOSE_BUSY,
    CLOSE_REFUSED,
    CLOSE_TOO_LARGE,
    CLOSE_VERSION,
    Challenge,
    Hello,
    Refused,
    Watch,
    Welcome,
)
from easyjobs.protocol.worker_side import WorkerSide
from tests.protocol.examples import FROM_MANAGER, FROM_PEER
from tests.security.world import SECRET, World

S16 = b"s" * 16


def proof(challenge: Challenge, nonce: bytes, secret: str = SECRET, **other: Any) -> bytes:
    return peer_proof(
        secret, **{"role": "worker", "session": S16, "manager_nonce": challenge.nonce, "peer_nonce": nonce, "version": 1, **other}
    )


def hello(challenge: Challenge, nonce: bytes = b"n" * 32, **fields: Any) -> Hello:
    said: dict[str, Any] = {"version": 1, "role": "worker", "session": S16, "nonce": nonce, "proof": proof(challenge, nonce), "queue": "Q"}
    return Hello(**{**said, **fields})


async def refused(world: World, make: Any) -> tuple[int, str]:
    """What the manager answers to the hello that `make` gives for its challenge: the close code and the reason."""
    peer = world.peer()
    said = make(await peer.hear(Challenge))
    peer.say_bytes(said if isinstance(said, bytes) else encode(said))
    answer = await peer.hear(Refused)
    assert await peer.hear_close() == answer.code
    assert SECRET not in answer.reason
    async with world.client() as http:
        assert len((await http.get("/jobs/api/v1/workers")).json()["items"]) == 1  # the manager itself
    return answer.code, answer.reason


async def test_each_challenge_is_new_and_a_recorded_hello_opens_nothing(here: World) -> None:
    first = here.peer()
    recorded = await first.hello()
    await first.hear(Welcome)
    nonces = set()
    for _ in range(20):
        peer = here.peer()
        nonces.add((await peer.hear(Challenge)).nonce)
        peer.say(recorded)
        assert (await peer.hear(Refused)).code == CLOSE_REFUSED
    assert len(nonces) == 20


async def test_a_second_hello_on_one_connection_is_refused(here: World) -> None:
    peer = here.peer()
    said = await peer.hello()
    await peer.hear(Welcome)
    peer.say(said)
    assert await peer.hear_close() == CLOSE_BAD_FRAME


@pytest.mark.parametrize(
    "make",
    [
        lambda c: hello(c, proof=b""),
        lambda c: hello(c, proof=proof(c, b"n" * 32)[:31]),
        lambda c: hello(c, proof=proof(c, b"n" * 32) + b"\0"),
        lambda c: hello(c, proof=b"\0" * 32),
        lambda c: hello(c, proof=proof(c, b"n" * 32, secret=SECRET + " ")),
        lambda c: hello(c, proof=proof(c, b"m" * 32)),
        lambda c: hello(c, session=b"t" * 16),
        lambda c: hello(c, role="client"),
        lambda c: hello(c, role="admin", proof=proof(c, b"n" * 32, role="admin")),
        lambda c: hello(c, role="manager", proof=proof(c, b"n" * 32, role="manager")),
        lambda c: hello(c, proof=manager_proof(SECRET, role="worker", session=S16, manager_nonce=c.nonce, peer_nonce=b"n" * 32, version=1)),
        lambda c: hello(c, slots=-1),
        lambda c: hello(c, slots=2**40),
    ],
)
async def test_a_hello_that_is_not_wholly_true_is_refused(here: World, make: Any) -> None:
    code, _ = await refused(here, make)
    assert code == CLOSE_REFUSED


@pytest.mark.parametrize("fields", [{"nonce": None}, {"nonce": b"n"}, {"nonce": b""}, {"session": b""}, {"session": b"s" * 64}])
async def test_a_reflected_or_short_nonce_is_refused(here: World, fields: dict[str, Any]) -> None:
    def make(challenge: Challenge) -> Hello:
        said = {"version": 1, "role": "worker", "session": S16, "nonce": b"n" * 32, "proof": b"\0" * 32, "queue": "Q", **fields}
        return Hello(**said if said["nonce"] is not None else {**said, "nonce": challenge.nonce})

    await refused(here, make)


@pytest.mark.parametrize("version", [0, 2, -1, 2**63])
async def test_no_other_version_is_spoken(here: World, version: int) -> None:
    code, reason = await refused(here, lambda c: hello(c, version=version, proof=proof(c, b"n" * 32, version=version)))
    assert code == CLOSE_VERSION
    assert "version" in reason


@pytest.mark.parametrize("name", [name for name in FROM_PEER if name != "hello"])
async def test_nothing_is_taken_before_a_hello(here: World, name: str) -> None:
    assert (await refused(here, lambda _: FROM_PEER[name]))[0] == CLOSE_BAD_FRAME


async def test_what_a_stranger_may_send_is_small(here: World) -> None:
    assert MAX_HELLO <= 64 * 1024
    assert (await refused(here, lambda _: b"x" * (MAX_HELLO + 1)))[0] == CLOSE_TOO_LARGE
    assert (await refused(here, lambda c: hello(c, name="x" * MAX_HELLO)))[0] == CLOSE_TOO_LARGE


# --- the other way: a process that took the manager's address -------------------------------------------------------------------


def worker() -> WorkerSide:
    return WorkerSide(session=S16, secret=SECRET, name="w", queue="Q", slots=3)


def test_a_worker_tells_nothing_to_a_manager_that_cannot_prove_itself() -> None:
    side = worker()
    [said] = side.challenged(Challenge(version=1, nonce=b"m" * 32), b"n" * 32)
    assert isinstance(said, Hello)
    assert SECRET.encode() not in encode(said)
    for forged in (
        b"",
        b"\0" * 32,
        said.proof,
        manager_proof("another", role="worker", session=S16, manager_nonce=b"m" * 32, peer_nonce=b"n" * 32, version=1),
    ):
        with pytest.raises((AccessRefused, ProtocolError)):
            side.receive(encode(Welcome(proof=forged, lease_s=30, beat_s=10)))
        assert not side.outgoing


def test_a_worker_is_no_oracle_for_its_own_challenge() -> None:
    """A man in the middle sends the worker's own nonce back as the manager's."""
    with pytest.raises(ProtocolError):
        worker().challenged(Challenge(version=1, nonce=b"n" * 32), b"n" * 32)


@pytest.mark.parametrize("version", [0, 2])
def test_a_worker_takes_no_other_version(version: int) -> None:
    with pytest.raises(EasyJobsError):
        worker().challenged(Challenge(version=version, nonce=b"m" * 32), b"n" * 32)


# --- rotation, strangers --------------------------------------------------------------------------------------------------------


def test_each_of_two_secrets_opens_and_the_manager_answers_with_that_one() -> None:
    for secret in ("newest " * 5, "oldest " * 5):
        side = ManagerSide(("newest " * 5, "oldest " * 5), b"m" * 32)
        said = hello(Challenge(version=1, nonce=b"m" * 32), proof=proof(Challenge(version=1, nonce=b"m" * 32), b"n" * 32, secret=secret))
        side.greet(encode(said))
        welcome: Any = from_manager().decode(side.welcome(lease_s=1, beat_s=1, drop=[]))
        assert welcome.proof == manager_proof(secret, role="worker", session=S16, manager_nonce=b"m" * 32, peer_nonce=b"n" * 32, version=1)


async def test_who_says_no_hello_is_closed(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "HELLO_S", 0.05)
    peer = here.peer()
    await peer.hear(Challenge)
    assert await peer.hear_close() == CLOSE_BUSY  # not CLOSE_REFUSED: a worker that was slow would never come again


async def test_strangers_leave_nothing_behind(here: World) -> None:
    peers = [here.peer() for _ in range(50)]
    for peer in peers:
        await peer.hear(Challenge)
        await peer.leave()
    assert not here.manager._connections


# --- bytes ----------------------------------------------------------------------------------------------------------------------

GOLDEN = [encode(frame) for frame in (*FROM_PEER.values(), *FROM_MANAGER.values())]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=5),
    max_leaves=15,
)
TAGS = sorted({*FROM_PEER, *FROM_MANAGER, "x"})
FIELDS = sorted({field for frame in FROM_PEER.values() for field in frame.__struct_fields__})


@st.composite
def mutated(draw: Any) -> bytes:
    """A frame of which some bytes are others, are missing, or come twice."""
    data = bytearray(draw(st.sampled_from(GOLDEN)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = draw(st.binary(max_size=6))
            case _:
                data += data[at:]
    return bytes(data)


frames = (
    st.binary(max_size=200)
    | mutated()
    | values.map(msgspec.msgpack.encode)
    | st.builds(
        lambda tag, fields: msgspec.msgpack.encode({"type": tag, **fields}),
        st.sampled_from(TAGS),
        st.dictionaries(st.sampled_from(FIELDS), values),
    )
    | st.sampled_from([b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5000, b"\x81\xa1a" * 5000])
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=frames)
def test_whatever_bytes_come_they_are_a_frame_or_a_named_refusal(data: bytes) -> None:
    for side in (ManagerSide((SECRET,), b"m" * 32), welcomed()):
        refusal = None
        try:
            side.receive(data) if side.hello else side.greet(data)
        except ProtocolError as error:
            refusal = error
        if refusal is not None:
            assert refusal.code in {CLOSE_BAD_FRAME, CLOSE_REFUSED, CLOSE_VERSION, CLOSE_TOO_LARGE}
            assert len(str(refusal)) < 1000
            assert str(refusal).isprintable()


def welcomed() -> ManagerSide:
    challenge = Challenge(version=1, nonce=b"m" * 32)
    side = ManagerSide((SECRET,), challenge.nonce)
    side.greet(encode(hello(challenge)))
    return side


def test_the_peers_frames_of_a_whole_conversation_harm_no_manager() -> None:
    """The same bytes, to a manager of flesh and blood: what is wrong closes that connection, and nothing else."""
    from tests.security.world import world

    async def play(conversations: list[list[bytes]]) -> None:
        async with world() as here:
            for conversation in conversations:
                peer = await here.peer().join(name=os.urandom(4).hex())
                for data in conversation:
                    peer.say_bytes(data)
                await peer.closing()
                await peer.leave()
            await here.peer().join(name="honest")
            async with here.client() as http:
                for path in ("jobs", "workers", "tasks", "queues", "schedules"):
                    answer = await http.get(f"/jobs/api/v1/{path}")
                    assert answer.status_code == 200
                    msgspec.json.decode(answer.content)
                assert (await http.get("/openapi.json")).status_code == 200

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(conversations=st.lists(st.lists(frames, max_size=6), max_size=12))
    def run(conversations: list[list[bytes]]) -> None:
        asyncio.run(play(conversations))

    run()


async def test_a_frame_whose_peer_leaves_in_the_same_turn_leaves_nothing_behind(here: World) -> None:
    peer = await here.peer().join(role="client")
    peer.say(Watch(ids=[b"i" * 16]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        await peer.leave()
        gc.collect()
    assert [str(each.message) for each in told] == []
