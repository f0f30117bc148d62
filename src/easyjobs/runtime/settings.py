"""What a program, its environment and our defaults say, as one frozen value.

A keyword of `create()` wins over the environment (`EASYJOBS_…`), that over the seed's older names (`DB_PATH`, `MANAGER_HOST`,
`MANAGER_PORT`, `WORKER_TASK_DIR`), and those over the default. Everything is read when `create()` runs, never at import: programs
set `os.environ` after they import us.

Each secret, and the store's address, can also come from a file: `EASYJOBS_SECRET_FILE=/run/secrets/easyjobs`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from easyjobs.errors import ConfigurationError
from easyjobs.protocol.address import SOCKET_PATH, socket_url
from easyjobs.runtime.log import WARNING, event

log = logging.getLogger("easyjobs.settings")

PREFIX: Final = "EASYJOBS_"
DATABASE: Final = "job_manager.db"
SHORT_LEASE_S: Final = 5.0  # below it, a busy machine loses leases that are alive
MAX_SECRETS: Final = 2  # that hold at the same time
MIN_SECRET: Final = 32  # bytes: as long as the HMAC's digest
SAMPLE_SECRETS: Final = frozenset({"abcd1234", "secret", "changeme", "password", "replace this with a long random secret"})
LEGACY: Final = {"manager_host": "MANAGER_HOST", "manager_port": "MANAGER_PORT", "task_dir": "WORKER_TASK_DIR", "db_path": "DB_PATH"}
NEW_SECRET: Final = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105
# Read elsewhere than in this module, and so no misspelling either.
OTHER_NAMES: Final = frozenset({"EASYJOBS_TOKEN", "EASYJOBS_ENV", "EASYJOBS_FAILPOINTS"})

# What is planned, and asked for by its name.
NOT_YET: Final = {name: f"easyjobs has no {name} yet" for name in ("metrics", "dashboard")}

ADDRESSES: Final = frozenset({"store", "store_listen"})
MEMORY: Final = "memory://"
POSTGRES: Final = ("postgresql://", "postgres://")
_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")
_MEMORY = frozenset({"memory:", "memory://", ":memory:", "sqlite://", "sqlite:///:memory:"})


class Durability(StrEnum):
    """When a commit counts: `full` after fsync; `relaxed` leaves that to the operating system (a power cut may take the last ones)."""

    FULL = "full"
    RELAXED = "relaxed"


class Auth(StrEnum):
    """Who needs a token: `protected` all but this machine, `required` everybody, `off` nobody."""

    PROTECTED = "protected"
    REQUIRED = "required"
    OFF = "off"


def _queue_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("a queue's name has 1 to 64 of the characters A-Z a-z 0-9 _ . -")
    return value


QueueName: TypeAlias = Annotated[str, AfterValidator(_queue_name)]


def _may_be_a_file(name: str, field: FieldInfo) -> bool:
    """Whether `EASYJOBS_<NAME>_FILE` may name a file that has the value: of secrets, and of addresses, which may have a password."""
    return "SecretStr" in str(field.annotation) or name in ADDRESSES


class _Files(PydanticBaseSettingsSource):
    """`EASYJOBS_<NAME>_FILE`: the content of that file, for fields that hold secrets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = f"{PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(name)
        if not path or not _may_be_a_file(field_name, field):
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{name}={path}: cannot read it: {error}") from error

    def __call__(self) -> dict[str, Any]:
        found = ((name, self.get_field_value(field, name)[0]) for name, field in self.settings_cls.model_fields.items())
        return {name: value for name, value in found if value is not None}


class _Legacy(PydanticBaseSettingsSource):
    """The names of the environment that the seed's programs use."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return os.environ.get(LEGACY.get(field_name, "")) or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = ((name, self.get_field_value(field, name)[0]) for name, field in self.settings_cls.model_fields.items())
        return {name: value for name, value in found if value is not None}


def _several(value: object) -> object:
    """One or several, as a program gives them or the environment, with commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Several: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_several)]


class Settings(BaseSettings):
    """What manager and worker share. Build one with `read()`, which turns what is wrong into one `ConfigurationError`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True, env_parse_none_str="never"
    )

    secret: SecretStr | None = None
    """What manager and workers share; never sent, it only signs. While it is being replaced: two lines, the new one first."""
    grace_s: float = Field(default=25.0, ge=0, le=3600)
    """How long running jobs may go on after SIGTERM."""
    task_dir: Path | None = None
    """Where the files of `subprocess` tasks are."""

    def files(self) -> Path | None:
        """`task_dir`, or where WORKER_TASK_DIR points now: programs set it just before they register their tasks."""
        named = os.environ.get(f"{PREFIX}TASK_DIR") or os.environ.get(LEGACY["task_dir"])
        return self.task_dir or (Path(named) if named else None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _Files(settings_cls), _Legacy(settings_cls)

    @classmethod
    def read(cls, **keywords: Any) -> Self:
        """Return the settings in force now; a keyword that is None counts as not given. Warns of what looks wrong.

        Raises:
            ConfigurationError: a value does not fit; the message names each, with where it can be set, and no secret.
        """
        try:
            settings = cls(**{name: value for name, value in keywords.items() if value is not None})
        except ValidationError as error:
            raise ConfigurationError("; ".join(_complaints(cls, error))) from None  # its context would show the values
        for name, near in unknown_names(os.environ):
            reason = NOT_YET.get(name.removeprefix(PREFIX).partition("_")[0].lower())
            event(log, WARNING, "setting.ignored", name=name, reason=reason or "no such setting", did_you_mean=None if reason else near)
        return settings

    def secrets(self) -> tuple[str, ...]:
        """The secrets that hold now, newest first. Raises: ConfigurationError where none was given."""
        if self.secret is None:
            raise ConfigurationError(f"no secret: pass server_secret=… or set {PREFIX}SECRET (or {PREFIX}SECRET_FILE); {NEW_SECRET}")
        return lines_of(self.secret)

    def secret_text(self) -> str:
        """The secret itself, to sign with: the newest. Raises: ConfigurationError where none was given."""
        return self.secrets()[0]

    @field_validator("secret", mode="before")
    @classmethod
    def _several_secrets(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if not all(isinstance(one, str) for one in value):
                raise ValueError("a secret is text, or a list of texts, newest first")
            return "\n".join(value)
        return value

    @field_validator("secret", "own_secret", mode="after", check_fields=False)
    @classmethod
    def _no_empty_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not lines_of(value):
            raise ValueError("an empty secret protects nothing; " + NEW_SECRET)
        if value is not None and len(lines_of(value)) > MAX_SECRETS:
            raise ValueError(f"more than {MAX_SECRETS} lines: give the new secret and the one before it")
        return value


class ManagerSettings(Settings):
    """The settings of a manager."""

    store: str | None = Field(default=None, repr=False)
    """`sqlite:///file` (relative; absolute with four slashes), a plain path, `postgresql://user@host/database`, or `memory:`."""
    store_listen: str | None = Field(default=None, repr=False)
    """PostgreSQL's own address, where `store` leads through a pooler (PgBouncer): it is for LISTEN, which needs a connection of its own."""
    db_path: Path | None = None
    """The directory of `job_manager.db`, where `store` is not given."""
    lease_s: float = Field(default=30.0, ge=1, le=3600)
    """How long a worker may be silent before its jobs are given to others."""
    durability: Durability = Durability.FULL
    auth: Auth = Auth.PROTECTED
    path: str = "/jobs"
    """Where everything but the seed's own routes lives."""
    manager_slots: int = Field(default=10, ge=0, le=10_000)
    """How many jobs the manager runs at once itself; 0: none."""
    keep_succeeded_s: float | None = Field(default=30 * 86400.0, ge=0)
    """How long succeeded jobs are kept after their end, in seconds; None (in the environment: never): they are never deleted."""
    keep_failed_s: float | None = Field(default=None, ge=0)
    keep_cancelled_s: float | None = Field(default=30 * 86400.0, ge=0)
    keep_expired_s: float | None = Field(default=30 * 86400.0, ge=0)
    broker_type: str | None = None
    """`rabbitmq`, `redis`, `nats`, or `easyjobs` for the embedded queue; where it is not given, the URL's scheme says it."""
    broker_path: SecretStr | None = None
    """The URL of a broker to take messages from, besides HTTP."""
    brokers: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """URLs of further brokers; in the environment with spaces between them."""
    broker_backlog: int = Field(default=1_000_000, ge=1)
    """While so many jobs are queued, no messages are fetched."""

    encryption_enabled: bool = False
    """Whether arguments, results, errors, log lines and messages are ciphertext in the store."""
    encryption_keys: SecretStr | None = None
    """Base64 of 32 random bytes each, a line for each key, newest first: the first seals, all open. Without `encryption_enabled` they only open."""

    results_to: str | None = None
    """A queue of the first broker, or `<broker>/<queue>`, to which the ends of jobs are told whose task does not say it."""

    @field_validator("path")
    @classmethod
    def _plain_path(cls, value: str) -> str:
        value = value.rstrip("/")
        if not _PATH.fullmatch(value):
            raise ValueError("a path such as /jobs: it begins with a slash and has no other characters than letters, digits, _ . ~ -")
        return value

    @field_validator("encryption_keys", mode="before")
    @classmethod
    def _several_keys(cls, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) else value

    @field_validator("brokers", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None:
            parse_store(value)
        return value

    @classmethod
    def look(cls, **keywords: Any) -> Self:
        """As `read`, for a program that only looks: of values nothing is warned of, and no directory is made. Raises: ConfigurationError."""
        return super().read(**keywords)

    @field_validator("store_listen")
    @classmethod
    def _direct(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(POSTGRES):
            raise ValueError("the address of a PostgreSQL server, as postgresql://user@host/database")
        return value

    @property
    def address(self) -> str:
        """Where the jobs are kept, as `stores.open_store` takes it: a file's path, PostgreSQL's URL, or `memory://`. No I/O."""
        if self.store is not None:
            return parse_store(self.store)
        return str((self.db_path or Path()) / DATABASE)

    @property
    def broker_urls(self) -> list[tuple[str | None, str]]:
        """(type, URL) of each broker; type None: as the scheme says. Raises: ConfigurationError."""
        first: list[tuple[str | None, str]] = []
        if self.broker_type == "easyjobs" and self.broker_path is not None and "://" in self.broker_path.get_secret_value():
            raise ConfigurationError("broker_type='easyjobs' is the embedded queue and has no URL: leave out broker_path, or broker_type")
        if self.broker_path is not None and self.broker_type != "easyjobs":
            first = [(self.broker_type, self.broker_path.get_secret_value())]
        elif self.broker_type not in (None, "easyjobs"):
            raise ConfigurationError(f"broker_type={self.broker_type!r} needs its URL: pass broker_path=…, or set {PREFIX}BROKER_PATH")
        return [*first, *((None, url.get_secret_value()) for url in self.brokers)]

    @classmethod
    def read(cls, **keywords: Any) -> Self:
        settings = super().read(**keywords)
        if settings.address != MEMORY and not settings.address.startswith(POSTGRES):
            make_directory(Path(settings.address))
        if settings.lease_s < SHORT_LEASE_S:
            event(
                log, WARNING, "setting.doubted", name="lease_s", value=settings.lease_s, reason="busy workers may lose it: for tests only"
            )
        if settings.durability is Durability.RELAXED:
            event(
                log,
                WARNING,
                "setting.doubted",
                name="durability",
                value="relaxed",
                reason="a power cut may take jobs that were acknowledged",
            )
        if settings.auth is Auth.OFF:
            event(log, WARNING, "setting.doubted", name="auth", value="off", reason="whoever reaches the port may submit and read jobs")
        warn_of_secret(settings.secret)
        return settings


class WorkerSettings(Settings):
    """The settings of a worker. `secret` is the manager's; `own_secret` protects what the worker itself serves."""

    own_secret: SecretStr | None = None
    manager_host: Several = ("127.0.0.1",)
    """`host` or `host:port`; or several, of managers over one database (in the environment: with commas)."""
    manager_port: int = Field(default=8220, ge=1, le=65535)
    """The port of hosts without one."""
    manager_tls: bool = False
    """Dial `wss://` instead of `ws://`; the manager's certificate is checked."""
    manager_ca: Path | None = None
    """The certificates (PEM) that are trusted instead of the system's."""
    manager_url: Several = ()
    """`https://host/prefix`, of a manager or of what balances the load of several; instead of host and port."""
    jobs_queue: QueueName = "DEFAULT"
    max_tasks_per_worker: int = Field(default=3, ge=1, le=100_000)

    @field_validator("manager_host")
    @classmethod
    def _reachable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no host: name at least one manager")
        for host in value:
            split_host(host)
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the managers' WebSockets are. Raises: ConfigurationError."""
        if self.manager_url:
            return tuple(dict.fromkeys(socket_url(url) for url in self.manager_url))
        scheme, found = "wss" if self.manager_tls else "ws", []
        for each in self.manager_host:
            host, port = split_host(each)
            found.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or self.manager_port}{SOCKET_PATH}")
        return tuple(dict.fromkeys(found))


def split_host(text: str) -> tuple[str, int | None]:
    """Read `host`, `host:port`, `::1` or `[::1]:port`. Raises: ValueError."""
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:/\s]+)(?::(\d+))?|([^\[\]/\s]*:[^\[\]/\s]*:[^\[\]/\s]*)", text)
    if found is None:
        raise ValueError(f"{text!r} is no host: use host, host:port or [::1]:port; a whole address is manager_url")
    host, port = found[1] or found[3] or found[5], found[2] or found[4]
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    # The seed's programs name the address that their manager listens on; nobody can dial "all addresses".
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), None if port is None else int(port)  # noqa: S104


def make_directory(file: Path) -> None:
    """Make the directory of a database file. Raises: ConfigurationError where that is not possible."""
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the directory of {file}: {error.strerror}; set DB_PATH to a directory, or EASYJOBS_STORE to a file, that this user "
            "may write to"
        ) from error


def parse_store(text: str) -> str:
    """Read `sqlite:///file`, a plain path, `postgresql://…` or `memory:`; return a path, the URL, or `memory://`.

    As SQLAlchemy has it, three slashes begin a relative path and four an absolute one. A path that ends with a slash, or that is a
    directory, is one in which `job_manager.db` goes.

    Raises:
        ValueError: another scheme.
    """
    text = text.strip()
    if text in _MEMORY:
        return MEMORY
    scheme, found, rest = text.partition("://")
    if text.startswith(POSTGRES):
        return text
    if found and scheme != "sqlite":
        raise ValueError(f"no store is known by {scheme}://: use sqlite:///file, a path, postgresql://user@host/database, or memory:")
    if found and not rest.startswith("/"):
        raise ValueError("sqlite: takes three slashes before a relative path (sqlite:///jobs.db) and four before an absolute one")
    path = Path(rest[1:] if found else text).expanduser()
    if text.endswith("/") or path.is_dir():
        path /= DATABASE
    return str(path)


def warn_of_secret(secret: SecretStr | None) -> None:
    """Warn, loudly, of a secret that can be guessed. Logs what is wrong with it, never the secret."""
    if secret is None:
        return
    for text in lines_of(secret):
        if text.lower() in SAMPLE_SECRETS:
            reason = "it is the one of the examples: everybody knows it"
        elif len(text.encode()) < MIN_SECRET:
            reason = f"it has {len(text.encode())} bytes, fewer than {MIN_SECRET}: it can be guessed"
        else:
            continue
        event(log, WARNING, "secret.doubted", reason=reason, remedy=f"whoever knows it runs and reads jobs; {NEW_SECRET}")


def lines_of(secret: SecretStr) -> tuple[str, ...]:
    """The secrets in one setting: a line each."""
    return tuple(line for line in secret.get_secret_value().splitlines() if line)


def unknown_names(environment: os._Environ[str] | dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each `EASYJOBS_…` name that no setting reads, with the nearest one that exists, or ""."""
    known = set(OTHER_NAMES)
    for settings in (ManagerSettings, WorkerSettings):
        for name, field in settings.model_fields.items():
            known.add(PREFIX + name.upper())
            if _may_be_a_file(name, field):
                known.add(f"{PREFIX}{name.upper()}_FILE")
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            yield name, next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), "")


def _complaints(settings: type[Settings], error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_input=False, include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, settings.model_fields, n=1)
            yield f"{name}: no such setting{f'; did you mean {near[0]}?' if near else ''}"
        else:
            places = " or ".join(filter(None, [PREFIX + name.upper(), LEGACY.get(name)]))
            yield f"{name} (also {places}): {item['msg'].removeprefix('Value error, ')}"
