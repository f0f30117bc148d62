"""What our handlers read off a request: who sends it, its body within a limit, its keys and preferences."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import Message, Receive

from easyjobs.domain.job import IdempotencyKey
from easyjobs.errors import InvalidArguments, PayloadTooLarge, UnknownJob
from easyjobs.http.auth import Access, Caller, Scope, Verdict, explain
from easyjobs.http.problems import Unwelcome
from easyjobs.ports.store import Store
from easyjobs.runtime.ids import id_bytes, id_text
from easyjobs.services.results import MAX_WAIT_S

BODY_S: Final = 60.0  # for a body that comes in pieces: nobody holds a request open with a byte now and then
MAX_KEY: Final = 255  # characters of an Idempotency-Key
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?![^-])")

Headers = Mapping[bytes, bytes]


class Disconnected(Exception):
    """The client went away before its body was whole: there is nobody to answer."""


LOCAL: Final = Caller("local")


def admit(access: Access, scope: Mapping[str, Any], headers: Headers, needed: Scope, *, changes: bool) -> Caller:
    """Return who sends a request that has the scope it needs; which queues it reaches is for the handler. Raises: Unwelcome (401, 403)."""
    verdict, facts = access.judge(scope, headers, needed, changes=changes)
    if verdict is Verdict.ALLOWED:
        return Caller(facts.grant.principal, facts.grant.queues) if facts.grant is not None else LOCAL
    challenge = {}
    if verdict.status == 401:
        challenge["WWW-Authenticate"] = 'Bearer realm="easyjobs"' + (', error="invalid_token"' if facts.refused else "")
    raise Unwelcome(
        verdict.status, "Not allowed" if verdict.status == 403 else "A token is needed", explain(verdict, facts, needed), challenge
    )


async def read_body(headers: Headers, receive: Receive, limit: int, what: str) -> bytes:
    """Return the whole body. The bytes are counted while they come in: `Content-Length` is only believed when it is too large.

    Raises: PayloadTooLarge; Unwelcome (415 for a compressed body, 408 for one that does not come in `BODY_S`); Disconnected.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Unwelcome(415, "Compressed", "a compressed body is not accepted: send it as it is", {"Accept-Encoding": "identity"})
    said = headers.get(b"content-length", b"")
    if said.isdigit() and len(said) < 20 and int(said) > limit:
        raise PayloadTooLarge(what, int(said), limit)
    message = await receive()  # nearly always all of it, and there already
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise PayloadTooLarge(what, len(body), limit)
        return body
    try:
        async with asyncio.timeout(BODY_S):
            return await _read_on(message, receive, limit, what)
    except TimeoutError:
        raise Unwelcome(408, "Too slow", f"{what} did not come within {BODY_S:g} s: send it again", {"Connection": "close"}) from None


async def _read_on(message: Message, receive: Receive, limit: int, what: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise PayloadTooLarge(f"{what}, as far as it was read,", size, limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def idempotency_key(headers: Headers, principal: str, scope: str, content: bytes) -> IdempotencyKey | None:
    """The request's key, if it has one; `content` is what a repeat must be equal to. Raises: InvalidArguments for an unfit key.

    A structured field (RFC 8941) is accepted as well as the bare text: `"8e03978e"` and `8e03978e` are the same key.
    """
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    text = raw.decode("latin-1").strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not 0 < len(text) <= MAX_KEY or not text.isprintable():
        wrong = {
            "type": "string_type",
            "loc": ["header", "idempotency-key"],
            "msg": f"must have 1 to {MAX_KEY} printable characters",
            "input": text[:80],
        }
        raise InvalidArguments("Idempotency-Key", [wrong])
    return IdempotencyKey(principal, scope, text, hashlib.blake2b(content, digest_size=16).digest())


def preferred_wait(headers: Headers) -> int | None:
    """The seconds of `Prefer: wait=…` (RFC 7240), at most MAX_WAIT_S; None where there is none."""
    raw = headers.get(b"prefer")
    if raw is None:
        return None
    found = _WAIT.search(raw.decode("latin-1"))
    return min(int(found[1]), int(MAX_WAIT_S)) if found else None


def traceparent(headers: Headers) -> str | None:
    """The request's place in a trace (W3C Trace Context, `traceparent`); None where there is none, or none that can be read: then it begins anew."""
    found = _TRACEPARENT.match(headers.get(b"traceparent", b"").decode("latin-1"))
    if found is None or found[1] == "ff" or not found[2].strip("0") or not found[3].strip("0"):
        return None
    return found[0]


async def status_of(store: Store, id: bytes) -> str:
    """What a job that has not ended is doing, in a user's word. Raises: UnknownJob, StoreError."""
    [record] = await store.get([id])
    if record is None:
        raise UnknownJob(id_text(id))
    return record.state.text


def raw_id(text: str) -> bytes:
    """The id in a path or a query. Raises: UnknownJob, for what is none."""
    raw = id_bytes(text)
    if raw is None:
        raise UnknownJob(text[:80])
    return raw
