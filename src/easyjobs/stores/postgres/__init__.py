"""Jobs in PostgreSQL, shared by any number of managers."""

from easyjobs.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
