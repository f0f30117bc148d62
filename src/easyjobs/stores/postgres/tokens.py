"""Tokens, within the writer's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from easyjobs.domain.tokens import Token

if TYPE_CHECKING:
    from asyncpg import Connection

ADD: Final = """insert into easyjobs.tokens(id, name, scopes, expires_at, created_at, queues) values ($1, $2, $3, $4, $5, $6)
    on conflict do nothing returning true"""
REVOKE: Final = "update easyjobs.tokens set revoked_at = $2 where id = $1 and revoked_at is null returning true"


async def keep(db: Connection, tokens: Sequence[Token], now: int) -> list[bool]:
    """See the port's `keep_tokens`."""
    await db.execute("delete from easyjobs.tokens where expires_at > 0 and expires_at <= $1", now)
    return [await _add(db, token, now) for token in tokens]


async def _add(db: Connection, token: Token, now: int) -> bool:
    return bool(await db.fetchval(ADD, token.id, token.name, token.scopes, token.expires_at, now, token.queues))


async def revoke(db: Connection, tokens: Sequence[Token], now: int) -> list[bool]:
    """See the port's `revoke_tokens`."""
    answers = []
    for token in tokens:
        await _add(db, token, now)
        answers.append(bool(await db.fetchval(REVOKE, token.id, now)))
    return answers


async def read(db: Connection) -> list[Token]:
    """See the port's `tokens`."""
    rows = await db.fetch(
        "select id, name, scopes, expires_at, created_at, revoked_at, queues from easyjobs.tokens"
        ' order by created_at desc, id collate "C" desc'
    )
    return [Token(*row) for row in rows]
