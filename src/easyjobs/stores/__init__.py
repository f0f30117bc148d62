"""Where jobs are kept: one adapter of `ports.store` a module."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from easyjobs.errors import ConfigurationError

if TYPE_CHECKING:
    from easyjobs.ports.clock import Clock
    from easyjobs.ports.store import Store

DURABILITIES = ("full", "relaxed")
LOW_BYTES = 256 * 1024 * 1024
LOW_SHARE = 0.05


def has_room(address: str) -> bool:
    """Whether the disk of the store at this address (as settings give it) has more than 256 MiB, or 5 % of a small one, left."""
    if "://" in address:
        return True
    try:
        usage = shutil.disk_usage(Path(address).absolute().parent)
    except OSError:
        return True  # the store itself will say what is wrong
    return usage.free > min(LOW_BYTES, usage.total * LOW_SHARE)


def open_store(url_or_path: str, *, clock: Clock, lease_s: float = 30.0, durability: str = "full", listen_url: str | None = None) -> Store:
    """Choose the store for `url_or_path`; it is not open yet: `await store.open()`.

    Args:
        url_or_path: a path, `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user@host/database`, or `memory://`
            (nothing survives the process).
        clock: the store's time; PostgreSQL has its own.
        lease_s: how long a session keeps its jobs without renewing.
        listen_url: PostgreSQL's own address, where the other one leads through a pooler.
        durability: "full": what is acknowledged survives a power cut; "relaxed": the last moments may be lost then.

    Raises:
        ConfigurationError: no store is meant by this.
        MissingExtra: PostgreSQL without asyncpg, when it is opened.
    """
    if durability not in DURABILITIES:
        raise ConfigurationError(f"durability {durability!r} is unknown: use 'full' or 'relaxed'")
    scheme, separator, rest = url_or_path.partition("://")
    if not separator:
        scheme, rest = "sqlite", f"/{url_or_path}"
    if scheme == "memory":
        from easyjobs.stores.memory import MemoryStore

        return MemoryStore(clock=clock, lease_s=lease_s)
    if scheme == "sqlite" and len(rest) > 1:
        from easyjobs.stores.sqlite import SqliteStore

        return SqliteStore(rest[1:], clock=clock, lease_s=lease_s, durability=durability)
    if scheme in ("postgresql", "postgres"):
        from easyjobs.stores.postgres import PostgresStore

        return PostgresStore(url_or_path, clock=clock, lease_s=lease_s, durability=durability, listen_url=listen_url)
    raise ConfigurationError(f"no store is known by {scheme}://: give a path, sqlite:///path, postgresql://… or memory://")
