"""A connection through a pooler that gives each transaction another connection to the server: PgBouncer in transaction mode.

Between two transactions nothing holds there: no setting of a session, no prepared statement, not even the one without a name that the
driver prepares and runs in two steps. So a statement that has values is always part of a transaction here, of one of its own if there is no
other, and our settings are made anew in each transaction, as its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import asyncpg

ARRAY_TYPES: Final = ("smallint", "integer", "bigint", "bytea", "text", "boolean", "double precision")  # all that our statements have
ARRAYS: Final = "select " + ", ".join(f"${at}::{name}[]" for at, name in enumerate(ARRAY_TYPES, 1))


class PooledConnection(asyncpg.Connection):  # type: ignore[misc,unused-ignore] # untyped where asyncpg is not installed
    """`settings` hold in every transaction that is begun by plain `begin` or by a statement of its own."""

    settings: Mapping[str, str] = {}

    async def ready(self, settings: Mapping[str, str]) -> None:
        """Let `settings` hold from now on.

        First the driver learns the types of arrays. It asks the server for them once, and while it does so it switches `jit` off and on
        again, for the session: within a transaction in which we have it off, it would be left off, for whoever has that connection next.
        """
        await self.fetchval(ARRAYS, *([] for _ in ARRAY_TYPES))
        self.settings = settings

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """See asyncpg."""
        if args:
            return str(await self._whole(super().execute, query, *args, timeout=timeout))
        if self.settings and query.rstrip("; ").lower().startswith("begin"):
            query = "; ".join([query.rstrip("; "), *(f"set local {name} = '{value}'" for name, value in self.settings.items())])
        return str(await super().execute(query, timeout=timeout))

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, **more: Any) -> Any:
        """See asyncpg."""
        return await self._whole(super().fetch, query, *args, timeout=timeout, **more)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """See asyncpg."""
        return await self._whole(super().fetchval, query, *args, column=column, timeout=timeout)

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, **more: Any) -> Any:
        """See asyncpg."""
        return await self._whole(super().fetchrow, query, *args, timeout=timeout, **more)

    async def _whole(self, run: Callable[..., Awaitable[Any]], query: str, *args: Any, **more: Any) -> Any:
        if self.is_in_transaction():
            return await run(query, *args, **more)
        await self.execute("begin")
        try:
            answer = await run(query, *args, **more)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong is being raised
                await self.execute("rollback")
            raise
        await self.execute("commit")
        return answer
