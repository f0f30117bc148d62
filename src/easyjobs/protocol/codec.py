"""Frames to bytes and back.

Decoding checks the size, the tag and the type of each field, so that what comes out is a frame as `messages` describes it. What
cannot be read is a `ProtocolError` of one of three names, with the WebSocket close code to answer with.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from easyjobs.domain.job import MAX_FRAME
from easyjobs.errors import ProtocolError
from easyjobs.protocol.messages import CLOSE_BAD_FRAME, CLOSE_TOO_LARGE, Frame, FromManager, FromPeer


class UnknownFrame(ProtocolError):
    """A well-formed frame of a type that this side does not take."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"frames of type {tag[:40]!r} do not belong here, or are newer than this easyjobs", CLOSE_BAD_FRAME)
        self.tag = tag


class FrameTooLarge(ProtocolError):
    """A frame over the size limit, in either direction."""

    def __init__(self, size: int, limit: int = MAX_FRAME) -> None:
        super().__init__(f"a frame of {size:,} bytes is over the limit of {limit:,}", CLOSE_TOO_LARGE)
        self.size, self.limit = size, limit


class MalformedFrame(ProtocolError):
    """Not msgpack, no map with a `type`, or a field that is missing or of the wrong type."""

    def __init__(self, why: str) -> None:
        why = why[:200]
        if not why.isprintable():  # it may quote what a stranger sent, and stands in the log
            why = repr(why)[1:-1]
        super().__init__(f"a frame that cannot be read: {why}", CLOSE_BAD_FRAME)


_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """Return the frame as one binary message. Raises: FrameTooLarge."""
    data = _encoder.encode(frame)
    if len(data) > MAX_FRAME:
        raise FrameTooLarge(len(data))
    return data


class _Tag(msgspec.Struct, frozen=True):
    type: str


_tag_of = msgspec.msgpack.Decoder(_Tag)
_F = TypeVar("_F")


class Decoder(Generic[_F]):
    """Reads the frames of one direction."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[_F]) -> None:
        self._decode = decoder.decode

    def decode(self, data: bytes | str) -> _F:
        """Return the frame in `data`. Raises: FrameTooLarge, UnknownFrame, MalformedFrame (all ProtocolError)."""
        if isinstance(data, str):
            raise MalformedFrame("a text message; frames are binary")
        if len(data) > MAX_FRAME:
            raise FrameTooLarge(len(data))
        try:
            return self._decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _named(data, error) from error


def _named(data: bytes, error: Exception) -> ProtocolError:
    if str(error).endswith("`$.type`"):  # the tag is a string that the union does not have, or no string
        try:
            return UnknownFrame(_tag_of.decode(data).type)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
    return MalformedFrame(str(error))


def from_manager() -> Decoder[FromManager]:
    """Return a decoder of what a manager sends."""
    return Decoder(msgspec.msgpack.Decoder(FromManager))


def from_peer() -> Decoder[FromPeer]:
    """Return a decoder of what a worker or client sends."""
    return Decoder(msgspec.msgpack.Decoder(FromPeer))
