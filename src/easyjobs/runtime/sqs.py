"""What the manager and producers share of Amazon SQS: how they find it, how a queue is made, how messages are sent.

Credentials come from where every AWS program looks for them (environment, profile, role), never from a URL. What AWS says of a signature
that it does not like repeats the request, session token included: of such errors only the code is shown, and they are not chained.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import random
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

BATCH: Final = 10  # messages in one request, of any kind
MAX_BYTES: Final = 1024 * 1024  # of a message, and of all messages of one request; attributes count
OLD_MAX_BYTES: Final = 256 * 1024  # until 2025, and in older local servers: their queues say so
ID: Final = "message_id"  # the attribute with the sender's id for a message
CORRELATION: Final = "correlation_id"  # the attribute with what a result answers to
MAX_ID: Final = 255
CONCURRENT: Final = 16  # requests of one kind under way at once
RETENTION_S: Final = 4 * 24 * 3600  # of a queue that we make: what AWS takes by itself, too
MAX_RETENTION_S: Final = 14 * 24 * 3600  # the longest that AWS allows
MAX_RECEIVES: Final = 20  # deliveries of a message that ends our process each time; then it goes to `<queue>-dead`
TRIES: Final = 5  # with messages of a batch that were not taken while others of it were
RETRY_S: Final = 0.1  # to the second try; doubles
SETTLE_S: float = 1.0  # AWS: a queue can be used a second after it was made
GROUP: Final = "easyjobs"  # of messages in a FIFO queue for which nobody says another

_AWS_HOST: Final = re.compile(r"sqs(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_REGION: Final = re.compile(r"[a-z0-9-]*")
_NOT_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_NOT_CARRIED: Final = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}  # characters that SQS refuses, as JSON may write them instead

_MISSING: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NonExistentQueue"})
_THROTTLED: Final = frozenset(
    {"RequestThrottled", "Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException", "KmsThrottled", "SlowDown"}
)
_CREDENTIALS: Final = frozenset({
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "IncompleteSignatureException", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurity", "InvalidSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
    "NotAuthorized", "OptInRequired", "RequestExpired", "SignatureDoesNotMatch", "UnrecognizedClientException",
})  # fmt: skip
_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "KmsAccessDenied"})
_REFUSED: Final = frozenset({
    "AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently", "InvalidParameterValue", "InvalidAttributeValue",
    "InvalidAttributeName", "InvalidMessageContents", "InvalidAddress", "UnsupportedOperation", "KmsDisabled", "KmsInvalidState", "KmsNotFound",
    "AWS.SimpleQueueService.BatchRequestTooLong", "BatchRequestTooLong",
})  # fmt: skip


# --- where it is --------------------------------------------------------------------------------------------------------------------


class Address(msgspec.Struct, frozen=True):
    """Which SQS is meant, and how its queues are called. `region`, `endpoint`: None as AWS's own configuration says."""

    region: str | None
    endpoint: str | None
    prefix: str = ""
    is_fifo: bool = False
    wait_s: int = 20
    visibility_s: int = 60

    def __str__(self) -> str:
        return f"Amazon SQS ({self.endpoint or self.region or 'default region'})"

    def queue_name(self, queue: str) -> str:
        """What a queue of ours is called there. Raises: BrokerRefused."""
        stem, is_fifo = self.prefix + queue.removesuffix(".fifo"), self.is_fifo or queue.endswith(".fifo")
        name = stem + (".fifo" if is_fifo else "")
        if not _NAME.fullmatch(stem) or len(name) > 80:
            raise BrokerRefused(f"queue {queue}: {name!r} is no name for a queue of SQS, which has up to 80 letters, digits, - and _")
        return name


def parse(url: str) -> Address:
    """Read `sqs://eu-west-1`, `sqs://` or an endpoint such as `http://127.0.0.1:4566` (also `sqs+http://…`).

    Options, as in `sqs://eu-west-1?prefix=shop-&fifo=true`: `region`, `prefix` (of the queues' names), `fifo` (all queues are FIFO ones),
    `wait` (of a long poll, 1 to 20 s), `visibility` (for how long a manager that died keeps a message from others, 2 to 43200 s).

    Raises:
        ConfigurationError: its message shows no part of the URL that could be a secret.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.removeprefix("sqs+")
    if parts.username or parts.password or "@" in parts.netloc:
        raise ConfigurationError(
            "the URL of Amazon SQS has no user and password: credentials are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a profile or a role"
        )
    if parts.path.strip("/"):
        raise ConfigurationError("the URL of Amazon SQS ends after the host: the queues are called like the namespaces, see `prefix`")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = options.keys() - {"region", "prefix", "fifo", "wait", "visibility"}
    if unknown:
        raise ConfigurationError(f"the URL of Amazon SQS has options that are not known: {', '.join(sorted(unknown))[:200]}")
    region = options.get("region")
    endpoint = None
    if scheme == "sqs":
        region = parts.netloc or region
    else:
        endpoint = f"{scheme}://{parts.netloc}"
        found = _AWS_HOST.fullmatch(parts.hostname or "")
        region = region or (found[1] if found else None)
    if not _REGION.fullmatch(region or ""):
        raise ConfigurationError(
            "the URL of Amazon SQS names no region: it looks like sqs://eu-west-1; an endpoint begins with http:// or https://"
        )
    prefix = options.get("prefix", "")
    if prefix and not _NAME.fullmatch(prefix):
        raise ConfigurationError(f"prefix={prefix[:100]!r}: the names of queues have letters, digits, - and _")
    return Address(
        region or None,
        endpoint,
        prefix,
        options.get("fifo", "false").lower() in {"1", "true", "yes"},
        _number(options, "wait", 20, 1, 20),
        _number(options, "visibility", 60, 2, 43200),
    )


def _number(options: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    given = options.get(name, str(default))
    if not given.isdecimal() or not least <= int(given) <= most:
        raise ConfigurationError(f"{name}={given[:20]!r} in the URL of Amazon SQS: whole seconds from {least} to {most}")
    return int(given)


# --- the client ---------------------------------------------------------------------------------------------------------------------


def require() -> None:
    """Raises: MissingExtra."""
    try:
        import aiobotocore  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise MissingExtra("Amazon SQS", "sqs") from error


async def open_client(address: Address, stack: AsyncExitStack) -> Any:
    """A client, closed by `stack`. Nothing is sent yet. Raises: BrokerRefused (no region, no such profile), MissingExtra."""
    require()
    loader = await asyncio.to_thread(_descriptions)
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(
        connect_timeout=3,
        read_timeout=address.wait_s + 10,
        max_pool_connections=4 * CONCURRENT,
        retries={"mode": "standard", "total_max_attempts": 4},  # with back-off, throttling too
        user_agent_extra="easyjobs",
    )
    with translated(str(address)):
        session = get_session()
        session.register_component("data_loader", loader)
        return await stack.enter_async_context(
            session.create_client("sqs", region_name=address.region, endpoint_url=address.endpoint, config=config)
        )


@functools.cache
def _descriptions() -> Any:
    """What the client reads of AWS from files, read once and in a thread, as the client is imported: else the loop stands for a second."""
    import aiobotocore.session  # noqa: F401 (with all that it imports)
    from botocore.loaders import create_loader

    loader = create_loader()
    for name in ("endpoints", "partitions", "_retry", "sdk-default-configuration"):
        loader.load_data(name)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("sqs", kind)
    return loader


async def prove(client: Any, address: Address) -> None:
    """Ask something that changes nothing. Raises: BrokerDown, BrokerRefused."""
    with translated(str(address)):
        try:
            await client.list_queues(MaxResults=1)
        except Exception as error:
            if code_of(error) not in _DENIED:  # it knows us; whether we may use a queue is seen there
                raise


def code_of(error: BaseException) -> str:
    """AWS's code of what it answered; "" for anything else."""
    answer = getattr(error, "response", None)
    return str(answer.get("Error", {}).get("Code", "")).rpartition("#")[2] if isinstance(answer, dict) else ""


def is_missing(error: BaseException) -> bool:
    """Whether the queue is not there."""
    return code_of(error) in _MISSING


def is_denied(error: BaseException) -> bool:
    """Whether a permission is missing for this one action."""
    return code_of(error) in _DENIED


def is_throttled(error: BaseException) -> bool:
    """Whether AWS asks us to be slower."""
    return code_of(error) in _THROTTLED


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Let what the client raises leave as BrokerDown or BrokerRefused, beginning with `what`."""
    import botocore.exceptions as aws

    try:
        yield
    except BrokerError:
        raise
    except aws.ClientError as error:
        code, said = code_of(error), str(error.response.get("Error", {}).get("Message", ""))[:500]
        is_forbidden = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (401, 403)
        if code in _CREDENTIALS or (is_forbidden and code not in _DENIED):
            raise BrokerRefused(
                f"{what}: the credentials are not accepted ({code}): look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "AWS_SESSION_TOKEN, the profile or the role"
            ) from None
        if code in _DENIED:
            raise BrokerRefused(f"{what}: a permission is missing ({code}): {said}") from error
        if code in _MISSING:
            raise BrokerDown(f"{what}: the queue is not there: it was deleted, or is being made") from error
        if code in _THROTTLED:
            raise BrokerDown(f"{what}: throttled ({code}): {said}") from error
        if code.endswith("QueueDeletedRecently"):
            raise BrokerRefused(f"{what}: it was deleted less than a minute ago, and AWS makes it again only after that") from error
        kind = BrokerRefused if code in _REFUSED else BrokerDown
        raise kind(f"{what}: {code}: {said}") from error
    except aws.NoRegionError as error:
        raise BrokerRefused(f"{what}: no region: write sqs://eu-west-1, add ?region=…, or set AWS_DEFAULT_REGION") from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        raise BrokerRefused(
            f"{what}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a profile or a role"
        ) from error
    except (aws.EndpointConnectionError, aws.ConnectTimeoutError) as error:
        raise BrokerDown(f"{what}: nobody answers there: {_text(error)}; is the region, or the endpoint, right?") from error
    except (aws.HTTPClientError, aws.CredentialRetrievalError, aws.MetadataRetrievalError, OSError, TimeoutError) as error:
        raise BrokerDown(f"{what}: {_text(error)}") from error
    except (aws.BotoCoreError, ValueError) as error:  # a profile, an endpoint, a parameter
        raise BrokerRefused(f"{what}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()[:500]


# --- queues -------------------------------------------------------------------------------------------------------------------------


class Queue(msgspec.Struct, frozen=True):
    """A queue that is there. `max_bytes` and `retention_s`: as it says itself, or the most that is allowed where we may not ask."""

    name: str
    url: str
    max_bytes: int
    retention_s: int

    @property
    def is_fifo(self) -> bool:
        """Whether it keeps the order of each group."""
        return self.name.endswith(".fifo")


async def ensure_queue(client: Any, address: Address, queue: str) -> Queue:
    """Make sure that a queue is there: one that exists is used as it is, else it is made, with `<queue>-dead`.

    Raises: BrokerDown, BrokerRefused.
    """
    name = address.queue_name(queue)
    with translated(f"queue {name}"):
        try:
            url = (await client.get_queue_url(QueueName=name))["QueueUrl"]
        except Exception as error:
            if not is_missing(error):
                raise
            url = await _make(client, address, name)
    return await look(client, name, url)


async def look(client: Any, name: str, url: str) -> Queue:
    """A queue as it is now. Raises: BrokerDown, BrokerRefused."""
    attributes: dict[str, str] = {}
    with translated(f"queue {name}"):
        try:
            answer = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["MaximumMessageSize", "MessageRetentionPeriod"])
            attributes = answer.get("Attributes", {})
        except Exception as error:
            if not is_denied(error):
                raise
    most = min(MAX_BYTES, int(attributes.get("MaximumMessageSize", MAX_BYTES)))
    return Queue(name, url, most, int(attributes.get("MessageRetentionPeriod", MAX_RETENTION_S)))


async def _make(client: Any, address: Address, name: str) -> str:
    fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
    stem = name.removesuffix(".fifo")
    dead_name = f"{stem}-dead{'.fifo' if fifo else ''}"
    if len(dead_name) > 80:
        raise BrokerRefused(f"queue {name}: its name is too long for a {dead_name!r} beside it, at most 80 characters: make both yourself")
    dead = await client.create_queue(QueueName=dead_name, Attributes={"MessageRetentionPeriod": str(MAX_RETENTION_S), **fifo})
    about = await client.get_queue_attributes(QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"])
    redrive = {"deadLetterTargetArn": about["Attributes"]["QueueArn"], "maxReceiveCount": str(MAX_RECEIVES)}
    made = await client.create_queue(
        QueueName=name,
        Attributes={
            "MessageRetentionPeriod": str(RETENTION_S),
            "VisibilityTimeout": str(address.visibility_s),
            "RedrivePolicy": json.dumps(redrive),
            **fifo,
        },
    )
    await asyncio.sleep(SETTLE_S)
    return str(made["QueueUrl"])


# --- sending ------------------------------------------------------------------------------------------------------------------------


class Parcel(msgspec.Struct, frozen=True):
    """A message to be sent. `id`: by which a repeat is recognised; `group`: messages of one keep their order in a FIFO queue.

    `correlation`: left out where SQS does not carry its characters: a result has it in its body, too.
    """

    id: str
    body: bytes
    group: str = GROUP
    correlation: str | None = None


def overhead(attributes: Mapping[str, str]) -> int:
    """Bytes that a message has besides its body, as AWS counts."""
    return sum(len(name) + len("String") + len(value.encode()) for name, value in attributes.items())


async def send(client: Any, queue: Queue, parcels: Sequence[Parcel]) -> None:
    """Send; return when SQS has confirmed all of them. Batches go concurrently, to a FIFO queue one after the other.

    Raises:
        BrokerDown, BrokerRefused: `failed` has the numbers of those that were not confirmed, counted from 0.
    """
    entries = [_entry(queue, parcel) for parcel in parcels]
    sending = _Sending(client, queue, entries)
    at_once = asyncio.Semaphore(1 if queue.is_fifo else CONCURRENT)

    async def send_one(numbers: list[int]) -> None:
        async with at_once:
            await sending.send(numbers)

    batches = _batches([size for _, size in entries], max(OLD_MAX_BYTES, queue.max_bytes))
    await asyncio.gather(*[send_one(numbers) for numbers in batches])
    sending.judge()


class _Sending:
    """Messages on their way to one queue, and what became of them."""

    def __init__(self, client: Any, queue: Queue, entries: Sequence[tuple[dict[str, Any], int]]) -> None:
        self._client, self._queue, self._entries = client, queue, entries
        self._failed: dict[int, BrokerError] = {}
        self._end: BrokerError | None = None  # why nothing more is tried

    async def send(self, numbers: list[int]) -> None:
        """Send one batch; what it is refused for is kept for `judge`."""
        what = f"queue {self._queue.name}"
        for tries in range(1, TRIES + 1):
            if self._end is not None:
                break
            batch = [{"Id": str(number), **self._entries[number][0]} for number in numbers]
            try:
                with translated(what):
                    answer = await self._client.send_message_batch(QueueUrl=self._queue.url, Entries=batch)
            except BrokerError as error:
                self._end = error
                break
            numbers = []
            for each in answer.get("Failed", ()):
                number, reason = int(each["Id"]), f"{what}: {each.get('Code')}: {str(each.get('Message', ''))[:300]}"
                if each.get("SenderFault") and each.get("Code") not in _THROTTLED:
                    self._failed[number] = BrokerRefused(reason)
                elif tries == TRIES:
                    self._failed[number] = BrokerDown(reason)
                else:
                    numbers.append(number)
            if self._failed and self._queue.is_fifo:
                self._end = next(iter(self._failed.values()))  # what follows would overtake it
            if not numbers:
                return
            await asyncio.sleep(RETRY_S * 2 ** (tries - 1) * (0.5 + random.random()))
        if self._end is not None:
            self._failed.update(dict.fromkeys(numbers, self._end))

    def judge(self) -> None:
        """Raise if anything failed."""
        if not self._failed:
            return
        numbers = sorted(self._failed)
        first = self._failed[numbers[0]]
        shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
        kind = BrokerRefused if all(isinstance(each, BrokerRefused) for each in self._failed.values()) else BrokerDown
        told = f"{first} ({len(numbers):,} of {len(self._entries):,} messages were not confirmed, counted from 0: {shown})"
        raise kind(told, failed=numbers) from first.__cause__


def _entry(queue: Queue, parcel: Parcel) -> tuple[dict[str, Any], int]:
    """A message as it is sent, and its size. Raises: BrokerRefused."""
    try:
        text = parcel.body.decode().translate(_NOT_CARRIED)
    except UnicodeDecodeError as error:
        raise BrokerRefused(f"queue {queue.name}: SQS carries text only, and a message is no UTF-8: {error}") from error
    attributes = {ID: parcel.id}
    if parcel.correlation and parcel.correlation.translate(_NOT_CARRIED) == parcel.correlation and not _NOT_TEXT.search(parcel.correlation):
        attributes[CORRELATION] = parcel.correlation
    size = len(text.encode()) + overhead(attributes)
    if size > queue.max_bytes:
        raise BrokerRefused(
            f"queue {queue.name}: a message has {size:,} bytes, the limit is {queue.max_bytes:,}: send a reference to its data"
        )
    if not text or _NOT_TEXT.search(text):
        raise BrokerRefused(f"queue {queue.name}: SQS carries no message that is empty or has control characters")
    entry: dict[str, Any] = {
        "MessageBody": text,
        "MessageAttributes": {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    }
    if queue.is_fifo:
        entry |= {"MessageGroupId": parcel.group, "MessageDeduplicationId": hashlib.blake2b(parcel.id.encode(), digest_size=16).hexdigest()}
    return entry, size


def _batches(sizes: Sequence[int], max_bytes: int) -> list[list[int]]:
    """Numbers of the messages of each request: ten, and so many bytes, at most."""
    batches: list[list[int]] = []
    total = max_bytes + 1
    for number, size in enumerate(sizes):
        total += size
        if total > max_bytes or len(batches[-1]) == BATCH:
            batches.append([])
            total = size
        batches[-1].append(number)
    return batches


async def in_batches(handles: Sequence[str], call: Callable[[list[dict[str, Any]]], Any], **more: Any) -> tuple[list[str], list[str]]:
    """Do something to messages that were received, ten in one request, concurrently.

    Returns: handles for which it failed and may be tried again (also since a request failed), and those for which it never will do.

    Raises:
        BrokerRefused: a permission is missing.
    """
    again: list[str] = []
    never: list[str] = []
    at_once = asyncio.Semaphore(CONCURRENT)

    async def one(some: Sequence[str]) -> None:
        entries = [{"Id": str(number), "ReceiptHandle": handle, **more} for number, handle in enumerate(some)]
        async with at_once:
            try:
                with translated("messages that were received"):
                    answer = await call(entries)
            except BrokerDown:
                again.extend(some)
                return
        for each in answer.get("Failed", ()):
            is_final = each.get("SenderFault") and each.get("Code") not in _THROTTLED
            (never if is_final else again).append(some[int(each["Id"])])

    await asyncio.gather(*[one(handles[at : at + BATCH]) for at in range(0, len(handles), BATCH)])
    return again, never


def new_id() -> str:
    """For a message that has none."""
    return uuid.uuid4().hex
