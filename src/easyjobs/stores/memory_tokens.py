"""Tokens, as the store in memory keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from easyjobs.domain.tokens import Token
from easyjobs.ports.clock import Clock


class MemoryTokens:
    """What the port says of tokens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: dict[str, Token] = {}

    def keep(self, tokens: Sequence[Token]) -> list[bool]:
        """See the port's `keep_tokens`."""
        now = self._clock.now()
        self._all = {id: token for id, token in self._all.items() if not token.expires_at or token.expires_at > now}
        answers = []
        for token in tokens:
            answers.append(token.id not in self._all)
            self._all.setdefault(token.id, msgspec.structs.replace(token, created_at=now, revoked_at=None))
        return answers

    def revoke(self, tokens: Sequence[Token]) -> list[bool]:
        """See the port's `revoke_tokens`."""
        now = self._clock.now()
        answers = []
        for token in tokens:
            known = self._all.get(token.id) or msgspec.structs.replace(token, created_at=now, revoked_at=None)
            answers.append(known.revoked_at is None)
            if known.revoked_at is None:
                self._all[token.id] = msgspec.structs.replace(known, revoked_at=now)
        return answers

    def read(self) -> list[Token]:
        """See the port's `tokens`."""
        return sorted(self._all.values(), key=lambda token: (token.created_at, token.id), reverse=True)
