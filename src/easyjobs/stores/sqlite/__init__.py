"""Jobs in one SQLite file, owned by one process."""

from easyjobs.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
