"""Tokens, as the writer keeps them. Runs inside the writer's transactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from easyjobs.domain.tokens import Token

if TYPE_CHECKING:
    from easyjobs.stores.sqlite.writer import Writer

ADD: Final = "insert into tokens(id, name, scopes, expires_at, created_at, queues) values (?1, ?2, ?3, ?4, ?5, ?6) on conflict do nothing"
REVOKE: Final = "update tokens set revoked_at = ?2 where id = ?1 and revoked_at is null"


class Tokens:
    """What the port says of tokens, for `writer`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def keep(self, tokens: Sequence[Token]) -> list[bool]:
        """See the port's `keep_tokens`."""
        self._writer._db.execute("delete from tokens where expires_at > 0 and expires_at <= ?", (self._writer._now,))
        return [self._add(token) for token in tokens]

    def _add(self, token: Token) -> bool:
        row = (token.id, token.name, token.scopes, token.expires_at, self._writer._now, token.queues)
        self._writer._db.execute(ADD, row)
        return self._writer._db.changes() > 0

    def revoke(self, tokens: Sequence[Token]) -> list[bool]:
        """See the port's `revoke_tokens`."""
        answers = []
        for token in tokens:
            self._add(token)
            self._writer._db.execute(REVOKE, (token.id, self._writer._now))
            answers.append(self._writer._db.changes() > 0)
        return answers

    def read(self) -> list[Token]:
        """See the port's `tokens`."""
        rows = self._writer._db.execute(
            "select id, name, scopes, expires_at, created_at, revoked_at, queues from tokens order by created_at desc, id desc"
        )
        return [Token(*row) for row in rows]
