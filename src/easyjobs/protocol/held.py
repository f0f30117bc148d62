"""A fingerprint of a set of attempts, so that two sides can compare what is running without listing it.

The digest is the sum, modulo 2**63, of one mixed number per (seq, attempt). A sum does not depend on the order; mixing keeps sets apart
whose plain sums agree ({1, 4} and {2, 3}). It is worked out when a beat is made or seen (about 1 µs per attempt, every few seconds), which
is cheaper than keeping it up to date with every job. It finds mistakes, not enemies: a peer that lies about its own set harms only
its own jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MASK: Final = (1 << 63) - 1
_WORD: Final = (1 << 64) - 1


def mix(seq: int, attempt: int) -> int:
    """Return the number that stands for one attempt, in [0, 2**63): the middle bits of a square, which is not linear."""
    z = (seq * 0x9E3779B97F4A7C15 + attempt * 0xD1B54A32D192ED03) & _WORD
    return (z * z >> 32) & _MASK


def digest_of(attempts: Iterable[tuple[int, int]]) -> int:
    """Return the digest of a set of (seq, attempt), in [0, 2**63); of the empty set: 0."""
    return sum(mix(seq, attempt) for seq, attempt in attempts) & _MASK
