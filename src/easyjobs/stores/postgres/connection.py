"""How PostgreSQL is reached, checked and migrated, and what its errors mean to us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from easyjobs.errors import ConfigurationError, MissingExtra, StoreError, StoreFull
from easyjobs.runtime.log import WARNING, event
from easyjobs.stores.migrate import Migration, load, pending

if TYPE_CHECKING:
    from asyncpg import Connection

log = logging.getLogger("easyjobs.store")

MIGRATIONS: Final = "easyjobs.stores.postgres.migrations"
IDENTITY: Final = "select (select system_identifier from pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)"
OLDEST: Final = 130_000  # server_version_num: the first with pg_xact_status and pg_current_xact_id
CONNECT_S: Final = 5.0
COMMAND_S: Final = 10.0  # no statement of ours takes so long: the network has swallowed it, or the answer
UNHEARD_S: Final = 6.0  # after so long without an acknowledgement of what was sent, a connection is dead
SETTINGS: Final = {  # of each connection, by plain SET: a pooler may refuse them as startup parameters
    "lock_timeout": "5s",
    "statement_timeout": "8s",
    "idle_in_transaction_session_timeout": "3s",  # a manager that stands still lets go of what it holds; its batch runs again later
    "client_min_messages": "warning",
    "jit": "off",  # our statements are short, and compiling one takes longer than running it
    # Each statement has one good plan, by its index, whatever the statistics say: they are those of an empty table at the start, and of
    # a minute ago later. Without these, 400 jobs/s instead of thousands until the first analyze.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
SERIAL: Final = frozenset({"40001", "40P01", "55P03"})  # serialization failure, deadlock, lock not available: the batch runs again
MIXED_UP: Final = frozenset({"26000", "42P05"})  # a prepared statement that is not there, or is there already
FULL: Final = frozenset({"53100", "53400"})
AWAY: Final = frozenset(
    {"25006", "57P01", "57P02", "57P03", "53300"}
)  # read-only (a standby), shutting down, starting up, too many connections


def driver() -> Any:
    """The module asyncpg. Raises: MissingExtra."""
    try:
        import asyncpg
    except ImportError as error:
        raise MissingExtra("a store on PostgreSQL", "postgres") from error
    return asyncpg


class Address:
    """Where the database is. `name` is for people: it has no password.

    `is_pooled`: a pooler that gives each transaction another connection stands before the server (`statement_cache_size=0` says so).
    """

    def __init__(self, url: str) -> None:
        """Raises: ConfigurationError, for an address of which nobody can say where its password ends."""
        user, at, _ = url.partition("://")[2].rpartition("@")
        if at and any(sign in user for sign in "@/#?"):
            raise ConfigurationError(
                "the address of the PostgreSQL server cannot be read: write @ / # ? within its user, password or options as %40 %2F %23 %3F"
            )
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self.cached_statements = int(options.pop("statement_cache_size", "100"))
        self.is_pooled = self.cached_statements == 0
        self.dsn = urlunsplit(parts._replace(query=urlencode(options)))
        host = parts.netloc.rpartition("@")[2] or options.get("host", "")
        self.name = f"postgresql://{host}{parts.path}"

    async def connect(self, *, durability: str = "full") -> Connection:
        """Open a connection that may write, with our settings. Raises: MissingExtra, StoreError, ConfigurationError."""
        db = await self.dial()
        try:
            watch(db)
            settings = SETTINGS | {"synchronous_commit": "on" if durability == "full" else "off"}
            if self.is_pooled:
                from easyjobs.stores.postgres.pooled import PooledConnection

                assert isinstance(db, PooledConnection)
                await db.ready(settings)
            else:
                await db.execute("; ".join(f"set {name} = '{value}'" for name, value in settings.items()))
            if await db.fetchval("select pg_is_in_recovery()"):
                raise StoreError(
                    f"{self.name} is a standby, which cannot be written to: connect to the primary, for instance by target_session_attrs=read-write"
                )
        except BaseException:
            db.terminate()
            raise
        return db

    async def dial(self, *, command_s: float | None = COMMAND_S) -> Connection:
        """Open a connection with the server's settings; no statement may take longer than `command_s`. Raises: as `connect`."""
        asyncpg = driver()
        kind: dict[str, Any] = {}
        if self.is_pooled:
            from easyjobs.stores.postgres.pooled import PooledConnection

            kind["connection_class"] = PooledConnection
        try:
            db: Connection = await asyncpg.connect(
                self.dsn, timeout=CONNECT_S, command_timeout=command_s, statement_cache_size=self.cached_statements, **kind
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise ConfigurationError(f"{self.name}: {error}: check the user, the password and the database's name") from error
        except (ValueError, asyncpg.UndefinedObjectError) as error:
            raise ConfigurationError(f"{self.name}: the address or one of its options is wrong: {error}") from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"{self.name} cannot be reached: {type(error).__name__}: {error}") from error
        return db

    def translate(self, error: BaseException) -> StoreError | None:
        """Our error for one that says that the store, not a call, is to blame; else None."""
        asyncpg = driver()
        state = getattr(error, "sqlstate", None)
        if state in MIXED_UP and not self.is_pooled:
            return StoreError(
                f"{self.name}: {error}: a pooler in transaction mode (PgBouncer) seems to be in between; say so by ?statement_cache_size=0 at the end "
                "of the address"
            )
        if state in FULL:
            return StoreFull(self.name)
        if state in AWAY or is_cut(error):
            return StoreError(f"{self.name} is away for now: {type(error).__name__}: {error}")
        if isinstance(error, asyncpg.InternalServerError | asyncpg.QueryCanceledError):
            return StoreError(f"{self.name}: {type(error).__name__}: {error}")
        return None


def is_cut(error: BaseException) -> bool:
    """Whether the connection has ended under a statement."""
    asyncpg = driver()
    return isinstance(
        error, OSError | TimeoutError | EOFError | asyncpg.PostgresConnectionError | asyncpg.InterfaceError | asyncpg.AdminShutdownError
    ) or getattr(error, "sqlstate", None) in ("57P01", "57P02", "57P03")


def watch(db: Connection) -> None:
    """Let the kernel notice that the other end is gone, when we send something as well as when we do not."""
    transport = getattr(db, "_transport", None)  # asyncpg has no other way
    found = None if transport is None else transport.get_extra_info("socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", round(UNHEARD_S * 1000))):
        option = getattr(socket, name, None)  # Linux has all of them
        if option is not None:
            found.setsockopt(socket.IPPROTO_TCP, option, value)


async def identity(db: Connection) -> str:
    """Which server this is, and which of its timelines: numbers of transactions mean something within one of them only. "": it does not say."""
    asyncpg = driver()
    try:
        found: str = await db.fetchval(IDENTITY)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError, asyncpg.FeatureNotSupportedError):
        return ""
    return found


async def migrate(db: Connection, name: str, now: int) -> list[Migration]:
    """Bring the schema up to date, and return what was applied; managers that come up together take turns. Raises: SchemaTooNew, StoreError."""
    asyncpg = driver()
    known = load(MIGRATIONS)
    if await db.fetchval("select to_regclass('easyjobs.migrations') is null"):
        for attempt in range(5):
            # `if not exists` does not see what another transaction is creating: the slower of two gets an error, and looks again.
            with contextlib.suppress(asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateSchemaError):
                await db.execute(
                    "create schema if not exists easyjobs; create table if not exists easyjobs.migrations"
                    "(version integer primary key, checksum text not null, applied_at bigint not null)"
                )
                break
            await asyncio.sleep(0.05 * (attempt + 1))
    applied = dict(await db.fetch("select version, checksum from easyjobs.migrations"))
    if not pending(name, known, applied):
        return []
    async with db.transaction():
        await db.execute("lock table easyjobs.migrations in access exclusive mode")  # ends with the transaction, whatever happens
        applied = dict(await db.fetch("select version, checksum from easyjobs.migrations"))
        todo = pending(name, known, applied)
        for migration in todo:
            await db.execute(migration.sql)
            await db.execute("insert into easyjobs.migrations values ($1, $2, $3)", migration.version, migration.checksum, now)
    return todo


async def examine(db: Connection, name: str, durability: str) -> None:
    """Refuse a server that is too old, or that does not keep what it has acknowledged; warn of what may damage it. Raises: ConfigurationError."""
    version, fsync, pages = await db.fetchrow(
        "select current_setting('server_version_num')::int, current_setting('fsync'), current_setting('full_page_writes')"
    )
    if version < OLDEST:
        raise ConfigurationError(f"{name} runs PostgreSQL {version // 10_000}: easyjobs needs 13 or newer")
    if fsync == "off" and durability == "full":
        raise ConfigurationError(
            f"{name} runs with fsync = off: a power cut would take jobs that were acknowledged, or the whole database; set fsync = on in its "
            'postgresql.conf, or accept that by durability="relaxed"'
        )
    for setting, value in (("fsync", fsync), ("full_page_writes", pages)):
        if value == "off":
            event(log, WARNING, "setting.doubted", setting=setting, value=value, effect="a power cut may damage or lose what is stored")
