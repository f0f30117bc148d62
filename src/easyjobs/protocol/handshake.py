"""How both ends of a connection prove that they know the secret, without saying it.

The manager opens with a nonce of 32 random bytes. The peer makes one of its own and answers with
``HMAC-SHA256(secret, "easyjobs peer" | version | role | session | manager nonce | peer nonce)``; the manager checks it, and answers with
the same over ``"easyjobs manager"``, which the peer checks before it sends anything else. Each field goes in with its length before it, so that
no two conversations have the same text; the first word keeps one side's proof from being sent back as the other's.

What it protects against: a stranger who connects (either way: a worker does not give its results to a process that merely took the
manager's address), a recorded handshake played again (nonces are used once), a proof turned round, a peer of one role or version passing as
another, and guessing by timing (`matches`). The secret never crosses the wire.

What it does not: somebody who can read or change the connection itself sees the jobs, may alter them after the handshake, and may try
short secrets at leisure against the recorded proofs. That needs TLS (`wss://`), and a secret from `openssl rand -hex 32`.

Source: challenge-response with mutual authentication as in ISO/IEC 9798-4; RFC 2104 for HMAC.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from easyjobs.errors import ProtocolError

NONCE_BYTES: Final = 32
SESSION_BYTES: Final = 16
PROOF_BYTES: Final = 32


def peer_proof(secret: str, *, role: str, session: bytes, manager_nonce: bytes, peer_nonce: bytes, version: int) -> bytes:
    """Return the 32 bytes that a worker or client puts into `Hello.proof`.

    Raises:
        ProtocolError: a nonce or the session has another length than it must, or both nonces are the same.
        ValueError: the secret is empty.
    """
    return _proof(b"easyjobs peer", secret, role, session, manager_nonce, peer_nonce, version)


def manager_proof(secret: str, *, role: str, session: bytes, manager_nonce: bytes, peer_nonce: bytes, version: int) -> bytes:
    """Return the 32 bytes that the manager puts into `Welcome.proof`; arguments and errors as for `peer_proof`."""
    return _proof(b"easyjobs manager", secret, role, session, manager_nonce, peer_nonce, version)


def matches(ours: bytes, theirs: bytes) -> bool:
    """Return whether two proofs are equal, in a time that does not tell where they differ."""
    return len(ours) == PROOF_BYTES and hmac.compare_digest(ours, theirs)


def _proof(side: bytes, secret: str, role: str, session: bytes, manager_nonce: bytes, peer_nonce: bytes, version: int) -> bytes:
    if not secret:
        raise ValueError("the secret is empty: set one, the same for the manager and its workers")
    for what, value, size in (
        ("manager's nonce", manager_nonce, NONCE_BYTES),
        ("peer's nonce", peer_nonce, NONCE_BYTES),
        ("session", session, SESSION_BYTES),
    ):
        if len(value) != size:
            raise ProtocolError(f"handshake: the {what} has {len(value)} bytes instead of {size}")
    if manager_nonce == peer_nonce:
        raise ProtocolError("handshake: the peer sent the manager's own nonce back")
    mac = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    for field in (side, str(version).encode(), role.encode(), session, manager_nonce, peer_nonce):
        mac.update(len(field).to_bytes(4, "big"))
        mac.update(field)
    return mac.digest()
