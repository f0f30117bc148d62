"""Payloads as ciphertext: AES-256-GCM, bound to the job and the field that they are of, under a ring of keys.

A sealed payload is text, ``ej~1~<key id>~<base64url of nonce and ciphertext>``; where JSON is kept, it is that text as a JSON string. So every
store, and everything that takes payloads for JSON, carries it as it is. What is not of this form is passed through: rows from before the
encryption was switched on, and errors that the store itself has written.

The nonce is made from the key, the place and the text (HMAC-SHA256, cut to 96 bits), not drawn: so the same payload of the same job is the same
ciphertext, and a submit that is repeated is known for a repeat. Two nonces under one key meet by chance after some 2^48 payloads; equal
nonces for equal texts of one place tell only that they are equal. The key for the cipher and the one for nonces are both derived from the
ring's key (HKDF-SHA256 with different labels).

What it protects: a stolen disk, backup or dump of the database, and rows that were exchanged or changed in it (a job that is opened as
another one does not open). What it does not: a process of the manager, which holds the keys; sizes, names, times, states, and keys of
idempotency and uniqueness, which are hashes; plaintext rows that somebody with write access puts in.

Source: NIST SP 800-38D; the derived nonce as in RFC 8452 (AES-GCM-SIV), of which this is not an implementation.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Sequence
from typing import Final

from easyjobs.errors import ConfigurationError, MissingExtra
from easyjobs.runtime.log import ERROR, event

log = logging.getLogger("easyjobs.sealing")

MARK: Final = "ej~1~"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
NEW_KEY: Final = "make one with: python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"


class Unreadable(ValueError):
    """A sealed payload that does not open: another key, another place, or changed. The text says which."""


class _Key:
    """One key of a ring. `id` names it in what it has sealed, and does not tell what it is."""

    def __init__(self, raw: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as error:
            raise MissingExtra("encryption_enabled", "encryption") from error
        self.id = _derive(raw, b"id")[:4].hex()
        self.nonce_key = _derive(raw, b"nonce")
        self.cipher = AESGCM(_derive(raw, b"cipher"))


def _derive(raw: bytes, label: bytes) -> bytes:
    """HKDF-Expand of one block: `raw` is random already."""
    return hmac.digest(raw, b"easyjobs sealing " + label + b"\x01", hashlib.sha256)


class KeyRing:
    """Seals with the newest key, opens with any."""

    def __init__(self, keys: Sequence[str], *, seals: bool = True) -> None:
        """`keys`: base64 of 32 random bytes each, newest first. `seals` False: only open what was sealed before.

        Raises: ConfigurationError, which does not show the key; MissingExtra.
        """
        self._keys = [_Key(_read(key, number)) for number, key in enumerate(keys, 1)]
        if not self._keys:
            raise ConfigurationError(f"encryption_enabled needs keys: set EASYJOBS_ENCRYPTION_KEYS (or …_FILE); {NEW_KEY}")
        self._by_id = {key.id: key for key in self._keys}
        self.seals = seals

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._by_id)})"

    def seal(self, text: bytes, place: bytes) -> str:
        """The sealed form. `place`: what it belongs to; only there it opens."""
        key = self._keys[0]
        nonce = hmac.digest(key.nonce_key, len(place).to_bytes(4, "big") + place + text, hashlib.sha256)[:NONCE_BYTES]
        sealed = base64.urlsafe_b64encode(nonce + key.cipher.encrypt(nonce, text, place)).decode()
        return f"{MARK}{key.id}~{sealed}"

    def open(self, sealed: str, place: bytes) -> bytes:
        """What was sealed. Raises: Unreadable."""
        from cryptography.exceptions import InvalidTag

        id, _, rest = sealed.removeprefix(MARK).partition("~")
        key = self._by_id.get(id)
        if key is None:
            raise Unreadable(f"it is sealed with the key {id[:16]!r}, which is not in EASYJOBS_ENCRYPTION_KEYS")
        try:
            raw = base64.b64decode(rest.encode(), b"-_", validate=True)
            return key.cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], place)
        except (InvalidTag, binascii.Error, ValueError) as error:
            event(log, ERROR, "payload.unreadable", key=id, reason="it was changed, or is of another job")
            raise Unreadable("it was changed in the database, or is of another job") from error


def _read(key: str, number: int) -> bytes:
    try:
        raw = base64.b64decode(key.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ConfigurationError(f"encryption key {number} is not base64 of {KEY_BYTES} bytes; {NEW_KEY}")
    return raw
