from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyjobs.domain.job import MAX_FRAME, Claimed
from easyjobs.errors import ProtocolError
from easyjobs.protocol.codec import Decoder, FrameTooLarge, MalformedFrame, UnknownFrame, encode, from_manager, from_peer
from easyjobs.protocol.messages import Challenge, Frame, FromManager, FromPeer, Run, Watch
from tests.protocol.examples import EARLIER, FROM_MANAGER, FROM_PEER, GOLDEN, ID

DECODERS: dict[str, Decoder[Any]] = {
    **dict.fromkeys(FROM_MANAGER, from_manager()),
    **dict.fromkeys(FROM_PEER, from_peer()),
}
EXAMPLES: dict[str, Frame] = {**FROM_MANAGER, **FROM_PEER}


def test_every_frame_of_the_protocol_has_an_example_and_a_golden_file() -> None:
    tags = {kind.__name__.lower() for union in (FromManager, FromPeer) for kind in get_args(union)}
    assert tags == EXAMPLES.keys()
    assert {path.stem for path in GOLDEN.glob("*.msgpack")} == tags


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_golden_file_is_read_as_what_was_written(name: str) -> None:
    assert DECODERS[name].decode((GOLDEN / f"{name}.msgpack").read_bytes()) == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_frame_is_still_written_as_its_golden_file(name: str) -> None:
    assert encode(EXAMPLES[name]) == (GOLDEN / f"{name}.msgpack").read_bytes()


@pytest.mark.parametrize("path", sorted((GOLDEN / "earlier").glob("*.msgpack")), ids=lambda path: path.name)
def test_a_frame_of_an_earlier_version_is_read_with_the_defaults_of_what_it_lacks(path: Path) -> None:
    frame = DECODERS[path.name.split(".")[0]].decode(path.read_bytes())
    assert frame == EARLIER[path.name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_field_that_a_later_version_adds_is_ignored(name: str) -> None:
    fields = msgspec.msgpack.decode((GOLDEN / f"{name}.msgpack").read_bytes())
    assert DECODERS[name].decode(msgspec.msgpack.encode({**fields, "added_later": [1, {"a": None}]})) == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_frame_of_the_other_direction_is_refused_by_name(name: str) -> None:
    other = from_peer() if name in FROM_MANAGER else from_manager()
    with pytest.raises(UnknownFrame, match=name) as caught:
        other.decode(encode(EXAMPLES[name]))
    assert caught.value.code == 4400


def test_an_unknown_frame_is_refused_by_name_and_its_name_is_cut() -> None:
    with pytest.raises(UnknownFrame) as caught:
        from_peer().decode(msgspec.msgpack.encode({"type": "x" * 5000}))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 5000,  # arrays in arrays
        b"\x81\xa4type\xa2\xff\xfe",  # a tag that is no UTF-8
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode({"type": 5}),
        msgspec.msgpack.encode({"type": "credit"}),
        msgspec.msgpack.encode({"type": "credit", "limit": "1"}),
        msgspec.msgpack.encode({"type": "watch", "ids": [1]}),
        msgspec.msgpack.encode({"type": "credit", "limit": 1}) + b"\x00",
        '{"type": "credit"}',
    ],
)
def test_what_cannot_be_read_is_malformed(data: bytes | str) -> None:
    with pytest.raises(MalformedFrame) as caught:
        from_peer().decode(data)
    assert caught.value.code == 4400


def test_a_frame_over_the_limit_is_refused_both_ways() -> None:
    with pytest.raises(FrameTooLarge):
        encode(Run(jobs=[Claimed(1, 1, 1, ID, 0, 0, b"x" * MAX_FRAME)]))
    with pytest.raises(FrameTooLarge) as caught:
        from_peer().decode(b"\x00" * (MAX_FRAME + 1))
    assert caught.value.code == 1009


@given(st.binary(max_size=200))
def test_any_bytes_give_a_frame_or_a_protocol_error(data: bytes) -> None:
    for decoder in (from_peer(), from_manager()):
        try:
            frame = decoder.decode(data)
        except ProtocolError:
            continue
        assert isinstance(frame, Frame)


@given(st.sampled_from(sorted(EXAMPLES)), st.integers(0, 400), st.integers(0, 255))
def test_a_frame_with_a_wrong_byte_gives_a_frame_or_a_protocol_error(name: str, at: int, value: int) -> None:
    data = bytearray((GOLDEN / f"{name}.msgpack").read_bytes())
    data[at % len(data)] = value
    try:
        frame = DECODERS[name].decode(bytes(data))
    except ProtocolError:
        return
    assert isinstance(frame, Frame)


def test_frames_are_maps_with_their_type_so_that_other_languages_can_read_them() -> None:
    assert msgspec.msgpack.decode(encode(Challenge(version=1, nonce=b"n"))) == {"type": "challenge", "version": 1, "nonce": b"n"}
    assert msgspec.msgpack.decode(encode(Watch(ids=[ID]))) == {"type": "watch", "ids": [ID]}
