"""Who may do what over HTTP.

A token is what it says, signed: `ej2.<id>.<scopes>.<expiry>.<name>.<mac>`, for instance `ej2.8f0c….read+submit.1798761600.billing.Zm9v…`. The
mac is HMAC-SHA256 of the rest under a key derived from the secret; so a token needs no list to hold, another secret ends all tokens, and
the secret itself is no token. What the manager keeps is a list of those that were taken back, by id. (`ej1.` tokens have no id: they end
with their expiry or with the secret.) While a secret is being replaced there are two, and tokens of both hold.

A token that is bound to queues says so too: `ej3.<id>.<scopes>.<expiry>.<name>.<queues>.<mac>`, names of queues with a `+` between, and `~`
for their dots. It is of a kind of its own so that a manager which knows nothing of bonds takes it for none of its tokens.

A request without a token is let in by mode: `off` everyone, `required` nobody, `protected` (the default) those that come from this
very machine and were not sent on by a proxy or made by another site's page. That needs four things at once: a loopback peer, a
loopback `Host` (a page that rebinds its name to 127.0.0.1 still sends its own name), no forwarding header, no foreign `Origin`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum, StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from easyjobs.domain.job import QUEUE_NAME
from easyjobs.ports.clock import Clock
from easyjobs.runtime.settings import Auth

TOKEN_PREFIXES: Final = ("ej3.", "ej2.", "ej1.")
MAX_TOKEN: Final = 2048  # characters
MAX_QUEUES: Final = 16  # that one token is bound to
MAX_HOST: Final = 64  # characters that a name of this machine can have
MAX_KNOWN: Final = 1024  # verified tokens that are remembered
FORWARDED: Final = frozenset(
    {b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"}
    | {b"x-forwarded-" + name for name in (b"for", b"host", b"proto", b"port", b"server", b"by", b"prefix", b"scheme")}
)
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_CONTEXT: Final = b"easyjobs token key 1"
_PARTS: Final = {"ej1": 4, "ej2": 5, "ej3": 6}  # of a token, without its mac
TOKEN_ID: Final = re.compile(r"[0-9a-f]{16}")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_LOOPBACK: Final = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]|::1|::ffff:127(?:\.\d{1,3}){3}|0\.0\.0\.0")


class Scope(StrEnum):
    """What a token allows."""

    SUBMIT = "submit"  # put jobs in
    READ = "read"  # see jobs, results, queues, workers, tasks; pull results
    OPERATE = "operate"  # cancel, retry, pause; and read
    WORKER = "worker"  # be a worker
    ADMIN = "admin"  # everything


IMPLIED: Final[Mapping[Scope, frozenset[Scope]]] = {
    Scope.SUBMIT: frozenset({Scope.SUBMIT}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.OPERATE: frozenset({Scope.OPERATE, Scope.READ}),
    Scope.WORKER: frozenset({Scope.WORKER}),
    Scope.ADMIN: frozenset(Scope),
}
LOCAL_SCOPES: Final = frozenset({Scope.SUBMIT, Scope.READ, Scope.OPERATE})  # what `protected` gives to this machine


class Grant(NamedTuple):
    """What a valid token says. `expires_at`: seconds since 1970, 0 for never. `scopes` has those implied, too. `queues` None: all of them.

    `principal` is another one for each token, so that nobody meets the Idempotency-Keys of another one.
    """

    scopes: frozenset[Scope]
    expires_at: int
    principal: str
    id: str = ""
    queues: frozenset[str] | None = None


class Caller(NamedTuple):
    """Who was let in. `queues`: those that it may reach; None: all of them."""

    principal: str
    queues: frozenset[str] | None = None

    def reaches(self, queue: str) -> bool:
        """Whether it may know of this queue."""
        return self.queues is None or queue in self.queues


class TokenRefused(ValueError):
    """A token of ours that does not hold; the text says why."""


class Facts(NamedTuple):
    """What of a request decides about access. `grant` is the token's; `refused` why a token of ours does not hold."""

    is_local: bool  # peer and host are this machine, and nothing says that it was forwarded
    is_foreign: bool  # another site's page made it (`Origin`)
    is_cross_site: bool  # the browser says so (`Sec-Fetch-Site`)
    changes: bool  # an unsafe method, or a pull
    grant: Grant | None = None
    refused: str = ""


class Verdict(Enum):
    """The answer, and in `status` what HTTP calls it."""

    ALLOWED = 200
    TOKEN_NEEDED = 401
    TOKEN_REFUSED = 4010
    SCOPE_MISSING = 403
    FOREIGN_PAGE = 4030

    @property
    def status(self) -> int:
        return self.value if self.value < 1000 else self.value // 10


def allowed(facts: Facts, scope: Scope, mode: Auth) -> Verdict:
    """Decide. Pure: the same facts always get the same answer.

    A valid token is enough, whatever page sends it: nobody's browser adds it by itself. Without one, a page of another site may
    never change anything, whatever the mode.
    """
    if facts.refused:
        return Verdict.TOKEN_REFUSED
    if facts.grant is not None:
        return Verdict.ALLOWED if scope in facts.grant.scopes else Verdict.SCOPE_MISSING
    if facts.changes and (facts.is_foreign or facts.is_cross_site) and (mode is Auth.OFF or (mode is Auth.PROTECTED and facts.is_local)):
        return Verdict.FOREIGN_PAGE
    if mode is Auth.OFF:
        return Verdict.ALLOWED
    if mode is Auth.PROTECTED and facts.is_local and not facts.is_foreign and scope in LOCAL_SCOPES:
        return Verdict.ALLOWED
    return Verdict.TOKEN_NEEDED


# --- tokens ---------------------------------------------------------------------------------------------------------------------


def make_token(
    secret: str, scopes: Iterable[Scope], expires_at: int, name: str = "", id: str = "", queues: Collection[str] | None = None
) -> str:
    """Return a token. `expires_at`: seconds since 1970, 0 for never. `name` says whose it is.

    `id`: 16 hexadecimal digits, by which it can be taken back; without one it cannot. `queues`: those that it reaches, None for all; then it
    needs an id.

    Raises: ValueError for a name with other characters than A-Z a-z 0-9 _ -, no scope, queues that cannot be meant.
    """
    given = set(scopes)
    if not given:
        raise ValueError("a token needs a scope")
    if not _NAME.fullmatch(name):
        raise ValueError("a token's name has at most 64 of the characters A-Z a-z 0-9 _ -")
    if (id or queues is not None) and not TOKEN_ID.fullmatch(id):
        raise ValueError(f"a token's id has 16 hexadecimal digits, not {id!r}")
    said = f"{'+'.join(sorted(given))}.{expires_at}.{name}"
    if queues is not None:
        check_bond(given, queues)
        said = f"ej3.{id}.{said}.{'+'.join(sorted(set(queues))).replace('.', '~')}"
    else:
        said = f"ej2.{id}.{said}" if id else f"ej1.{said}"
    return f"{said}.{_mac(_key(secret), said)}"


def check_bond(scopes: Collection[Scope], queues: Collection[str]) -> None:
    """Raise ValueError where a token cannot be bound to these queues."""
    if Scope.ADMIN in scopes:
        raise ValueError("a token with the scope admin is bound to no queues: it could make one that is not")
    if not 0 < len(set(queues)) <= MAX_QUEUES:
        raise ValueError(f"a token is bound to 1 to {MAX_QUEUES} queues, or to none")
    for queue in queues:
        if not QUEUE_NAME.fullmatch(queue):
            raise ValueError(f"a queue's name has 1 to 64 of A-Z a-z 0-9 _ . -, not {queue[:64]!r}")


def _key(secret: str) -> bytes:
    return hmac.digest(secret.encode(), _CONTEXT, hashlib.sha256)


def _mac(key: bytes, said: str) -> str:
    return base64.urlsafe_b64encode(hmac.digest(key, said.encode(), hashlib.sha256)).rstrip(b"=").decode()


def read_token(keys: Sequence[bytes], token: str) -> Grant:
    """Verify a token, but not its expiry and whether it was taken back. `keys`: of the secrets that hold now. Raises: TokenRefused."""
    said, _, mac = token.rpartition(".")
    parts = said.split(".")
    if len(token) > MAX_TOKEN or len(parts) != _PARTS.get(parts[0]) or not token.isascii():
        raise TokenRefused("this is no whole token")
    if not any(hmac.compare_digest(_mac(key, said), mac) for key in keys):
        raise TokenRefused("this token was made with another secret")
    queues = frozenset(parts.pop().replace("~", ".").split("+")) if parts[0] == "ej3" else None
    words, expiry, _ = parts[-3:]
    try:
        scopes = frozenset(scope for word in words.split("+") for scope in IMPLIED[Scope(word)])
        expires_at = int(expiry)
    except ValueError:
        raise TokenRefused("this token was made by another version of easyjobs") from None
    id = "" if parts[0] == "ej1" else parts[1]
    principal = id or hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
    return Grant(scopes, expires_at, f"token:{principal}", id, queues)


# --- requests -------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a peer's address, or a `Host` with or without its port, names this machine."""
    bare = host.lower()
    if bare.startswith("["):
        bare = bare[: bare.find("]") + 1] if re.fullmatch(r"\[[^\]]*\](:\d+)?", bare) else ""
    elif bare.count(":") == 1:
        bare, _, port = bare.partition(":")
        if not port.isdigit():
            return False
    return _LOOPBACK.fullmatch(bare) is not None


def is_same_origin(origin: str, host: str) -> bool:
    """Whether `Origin` names the same host and port as `Host`. The scheme is not compared: a proxy may have ended TLS."""
    scheme, found, there = origin.lower().partition("://")
    if not found or not there:
        return False  # "null": a sandboxed page, a file
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return there.removesuffix(port) == host.lower().removesuffix(port)


def is_from_a_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a WebSocket handshake comes from a web page: browsers always send `Origin`, workers and clients never do.

    No page has a use for our socket, so it does not matter whose: one whose name was rebound to this machine would pass for our own.
    """
    return any(name == b"origin" for name, _ in headers)


class Access:
    """The rules of one manager: its mode, and the keys of its tokens. Cheap: a verified token is remembered.

    `revoked`: the ids of tokens that were taken back; whoever knows of more adds to it.
    """

    def __init__(self, secrets: str | Sequence[str], mode: Auth, clock: Clock) -> None:
        """`secrets`: those that hold now, newest first."""
        self.mode, self.revoked = mode, set[str]()
        self._secrets = (secrets,) if isinstance(secrets, str) else tuple(secrets)
        self._keys, self._clock = [_key(secret) for secret in self._secrets], clock
        self._known: dict[bytes, Grant] = {}

    def make(self, scopes: Iterable[Scope], expires_at: int, name: str, id: str, queues: Collection[str] | None = None) -> str:
        """A token of the newest secret. Raises: ValueError, as `make_token`."""
        return make_token(self._secrets[0], scopes, expires_at, name, id, queues)

    def __repr__(self) -> str:
        return f"Access(mode={self.mode.value})"

    def judge(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], needed: Scope, *, changes: bool) -> tuple[Verdict, Facts]:
        """Decide about an ASGI request; `headers` are `scope["headers"]` as a dict. `changes`: an unsafe method, or a pull."""
        facts = self.facts(scope, headers, changes=changes)
        return allowed(facts, needed, self.mode), facts

    def facts(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], *, changes: bool) -> Facts:
        """Read the facts off an ASGI scope."""
        grant, refused = None, ""
        bearer = headers.get(b"authorization")
        if bearer is not None and self.mode is not Auth.OFF:
            try:
                grant = self._grant(bearer)
            except TokenRefused as why:
                refused = str(why)
        origin, host = headers.get(b"origin"), headers.get(b"host", b"").decode("latin-1")
        return Facts(
            is_local=_is_local(scope.get("client"), host, headers),
            is_foreign=origin is not None and not is_same_origin(origin.decode("latin-1"), host),
            is_cross_site=headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"),
            changes=changes,
            grant=grant,
            refused=refused,
        )

    def _grant(self, bearer: bytes) -> Grant | None:
        """The grant of a token of ours; None for a credential that is not: it may be meant for the user's own app."""
        grant = self._known.get(bearer)
        if grant is None:
            kind, _, token = bearer.decode("latin-1").partition(" ")
            token = token.strip()
            if kind.lower() != "bearer" or not token.startswith(TOKEN_PREFIXES):
                return None
            grant = read_token(self._keys, token)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[bearer] = grant
        if grant.expires_at and self._clock.now() >= grant.expires_at * 1_000_000:
            raise TokenRefused("this token has expired")
        if grant.id in self.revoked:
            raise TokenRefused("this token was taken back")
        return grant


def _is_local(client: tuple[str, int] | None, host: str, headers: Mapping[bytes, bytes]) -> bool:
    if client is None:  # a UNIX socket: behind it there is a proxy
        return False
    peer = client[0]
    if not FORWARDED.isdisjoint(headers):
        return False
    # No socket has a peer of that name: it is Starlette's TestClient, in the same process.
    return peer == "testclient" or (len(host) <= MAX_HOST and is_loopback(peer) and is_loopback(host))


def explain(verdict: Verdict, facts: Facts, needed: Scope) -> str:
    """A sentence for the one who was refused, with the way out."""
    command = f"`easyjobs token --scope {needed}` prints one (run it with the manager's secret), to be sent as `Authorization: Bearer …`"
    if verdict is Verdict.TOKEN_NEEDED:
        return f"a token with the scope {needed} is needed: {command}"
    if verdict is Verdict.TOKEN_REFUSED:
        return f"{facts.refused}: {command}"
    if verdict is Verdict.SCOPE_MISSING:
        return f"this token has not the scope {needed}: {command}"
    return "a page of another site may not do this without a token: open the manager by its own address"
