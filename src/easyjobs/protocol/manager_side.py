"""The manager's end of one connection: what may come when, and who the peer is.

States: expecting the hello → welcomed (as worker or client) → closed. No I/O: bytes in, frames out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from easyjobs.domain.job import Running
from easyjobs.errors import ProtocolError
from easyjobs.protocol.codec import encode, from_peer
from easyjobs.protocol.handshake import manager_proof, matches, peer_proof
from easyjobs.protocol.messages import (
    CLOSE_BAD_FRAME,
    CLOSE_REFUSED,
    CLOSE_TOO_LARGE,
    CLOSE_VERSION,
    PROTOCOL_VERSION,
    Beat,
    Challenge,
    Credit,
    FromPeer,
    Held,
    Hello,
    Log,
    Offer,
    Progress,
    Reports,
    Welcome,
)

MAX_HELLO: Final = 64 * 1024  # bytes, with up to MAX_HELD_IN_HELLO attempts that a worker which comes back holds
MAX_SLOTS: Final = 100_000
MAX_NAME: Final = 200  # characters of a worker's name
_QUEUE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_WORKER_ONLY: Final = (Offer, Credit, Reports, Progress, Log, Beat, Held)


class HelloRefused(ProtocolError):
    """The peer may not come in. `code` says whether it may try again."""


class ManagerSide:
    """One conversation. `secrets`: those that are valid now, newest first (two while one is being replaced)."""

    def __init__(self, secrets: Sequence[str], nonce: bytes) -> None:
        self._secrets, self._nonce = secrets, nonce
        self._decoder = from_peer()
        self._secret: str | None = None
        self.hello: Hello | None = None

    def challenge(self) -> bytes:
        """The first message."""
        return encode(Challenge(version=PROTOCOL_VERSION, nonce=self._nonce))

    def greet(self, data: bytes | str) -> Hello:
        """Take the peer's first message. Raises: HelloRefused, ProtocolError."""
        if len(data) > MAX_HELLO:
            raise ProtocolError(f"a hello of {len(data):,} bytes", CLOSE_TOO_LARGE)
        hello = self._decoder.decode(data)
        if not isinstance(hello, Hello):
            raise ProtocolError(f"{type(hello).__name__.lower()} before hello", CLOSE_BAD_FRAME)
        if hello.version != PROTOCOL_VERSION:
            raise HelloRefused(
                f"protocol version {hello.version} is not spoken here (this manager speaks {PROTOCOL_VERSION}): "
                "use the same easyjobs release on both sides",
                CLOSE_VERSION,
            )
        if hello.role not in ("worker", "client"):
            raise HelloRefused(f"unknown role {hello.role[:20]!r}", CLOSE_REFUSED)
        for secret in self._secrets:
            ours = peer_proof(
                secret,
                role=hello.role,
                session=hello.session,
                manager_nonce=self._nonce,
                peer_nonce=hello.nonce,
                version=hello.version,
            )
            if matches(ours, hello.proof):
                self._secret = secret
                break
        else:
            raise HelloRefused("wrong secret: it must be the manager's server_secret", CLOSE_REFUSED)
        if not 0 <= hello.slots <= MAX_SLOTS:
            raise HelloRefused(f"{hello.slots} slots: 0 to {MAX_SLOTS:,} are possible", CLOSE_REFUSED)
        if hello.role == "worker" and not _QUEUE.fullmatch(hello.queue):
            raise HelloRefused(f"a queue's name has 1 to 64 of A-Z a-z 0-9 _ . -, not {hello.queue[:64]!r}", CLOSE_REFUSED)
        name = hello.name[:MAX_NAME]
        if not name.isprintable():  # it stands in log lines
            name = repr(name)[1:-1][:MAX_NAME]
        self.hello = msgspec.structs.replace(hello, name=name)
        return self.hello

    def complete(self, data: bytes | str) -> Hello:
        """Take what the worker holds, where its hello says that this comes later. Raises: ProtocolError."""
        frame = self.receive(data)
        if self.hello is None or not isinstance(frame, Held):
            raise ProtocolError(f"{type(frame).__name__.lower()} instead of what the worker holds", CLOSE_BAD_FRAME)
        self.hello = msgspec.structs.replace(self.hello, held=frame.items, held_later=False)
        return self.hello

    def welcome(self, *, lease_s: float, beat_s: float, drop: list[Running], has_others: bool = False) -> bytes:
        """The answer to a hello that was taken."""
        if self.hello is None or self._secret is None:
            raise ProtocolError("no hello was taken")
        proof = manager_proof(
            self._secret,
            role=self.hello.role,
            session=self.hello.session,
            manager_nonce=self._nonce,
            peer_nonce=self.hello.nonce,
            version=self.hello.version,
        )
        return encode(Welcome(proof=proof, lease_s=lease_s, beat_s=beat_s, drop=drop, has_others=has_others))

    def receive(self, data: bytes | str) -> FromPeer:
        """Take a later message. Raises: ProtocolError for what cannot be read, or does not belong to the peer's role."""
        frame = self._decoder.decode(data)
        if self.hello is None or isinstance(frame, Hello):
            raise ProtocolError(f"{type(frame).__name__.lower()} out of place", CLOSE_BAD_FRAME)
        if self.hello.role != "worker" and isinstance(frame, _WORKER_ONLY):
            raise ProtocolError(f"a {self.hello.role} may not send {type(frame).__name__.lower()}", CLOSE_BAD_FRAME)
        return frame
