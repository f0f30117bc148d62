"""A token that was made, or taken back, as the store keeps it: never the token itself."""

from __future__ import annotations

import msgspec


class Token(msgspec.Struct, frozen=True):
    """`id`: 16 hexadecimal digits; `scopes` as the token says them, "" for one that was made elsewhere. Instants: microseconds since 1970.

    `expires_at` 0: never. `queues`: those that it is bound to, with `+` between; "": to none.
    """

    id: str
    name: str
    scopes: str
    expires_at: int
    created_at: int = 0
    revoked_at: int | None = None
    queues: str = ""
