"""Amazon SQS: what its URL says, how its refusals are told, and what is done when it takes a part of a batch only.

moto takes every request whole and never asks to be slower, so a client of ours answers here.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from easyjobs.brokers import open_broker
from easyjobs.brokers import sqs as adapter
from easyjobs.brokers.sqs import SQS
from easyjobs.errors import BrokerDown, BrokerError, BrokerRefused, ConfigurationError, InvalidArguments
from easyjobs.producers.sqs import get_producer_channel
from easyjobs.runtime import sqs
from tests.moto import AWS, CREDENTIALS, Moto, moto
from tests.processes import free_port

QUEUE = sqs.Queue("q", "http://localhost/q", sqs.MAX_BYTES, 3600)
FIFO = sqs.Queue("q.fifo", "http://localhost/q.fifo", sqs.MAX_BYTES, 3600)


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sqs, "RETRY_S", 0.001)
    monkeypatch.setattr(adapter, "PAUSE_S", 0.001)
    monkeypatch.setattr(adapter, "LINGER_S", 0.01)


# --- the URL ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("sqs://eu-west-1", sqs.Address("eu-west-1", None)),
        ("sqs://", sqs.Address(None, None)),
        ("sqs://?region=eu-west-1&prefix=shop-&fifo=true", sqs.Address("eu-west-1", None, "shop-", True)),
        ("http://127.0.0.1:4566", sqs.Address(None, "http://127.0.0.1:4566")),
        ("sqs+http://127.0.0.1:4566/?region=x-1&wait=3&visibility=9", sqs.Address("x-1", "http://127.0.0.1:4566", "", False, 3, 9)),
        ("https://sqs.eu-west-1.amazonaws.com/", sqs.Address("eu-west-1", "https://sqs.eu-west-1.amazonaws.com")),
        ("https://sqs.cn-north-1.amazonaws.com.cn", sqs.Address("cn-north-1", "https://sqs.cn-north-1.amazonaws.com.cn")),
    ],
)
def test_a_url_says_where_sqs_is(url: str, address: sqs.Address) -> None:
    assert sqs.parse(url) == address
    assert isinstance(open_broker(url, "sqs"), SQS)


@pytest.mark.parametrize(
    "url",
    [
        "sqs://key:pass-word@eu-west-1",
        "https://sqs.eu-west-1.amazonaws.com/123456789012/pass-word",
        "sqs://eu_west_1/",
        "sqs://eu-west-1?pass-word=1&visibility=x",
        "sqs://eu-west-1?wait=21",
        "sqs://eu-west-1?visibility=1",
        "sqs://eu-west-1?prefix=a.b",
    ],
)
def test_a_wrong_url_is_said_without_a_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_broker(url, "sqs")
    assert "pass-word" not in str(wrong.value) or "options that are not known" in str(wrong.value)


def test_the_scheme_says_it_and_http_needs_the_type() -> None:
    assert isinstance(open_broker("sqs://eu-west-1"), SQS)
    with pytest.raises(ConfigurationError):
        open_broker("http://127.0.0.1:4566")


def test_queues_are_called_like_namespaces() -> None:
    plain, fifo = sqs.Address(None, None, "shop-"), sqs.Address(None, None, "", True)
    assert [plain.queue_name("mail"), plain.queue_name("mail.fifo")] == ["shop-mail", "shop-mail.fifo"]
    assert [fifo.queue_name("mail"), fifo.queue_name("mail.fifo")] == ["mail.fifo", "mail.fifo"]


# --- refusals -----------------------------------------------------------------------------------------------------------------------


def refusal(code: str, message: str = "", status: int = 400) -> Exception:
    import botocore.exceptions

    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "SendMessage")


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("InvalidClientTokenId", BrokerRefused, "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", BrokerRefused, "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", BrokerRefused, "ExpiredToken"),
        ("com.amazonaws.sqs#UnrecognizedClientException", BrokerRefused, "credentials"),
        ("AccessDenied", BrokerRefused, "permission"),
        ("AWS.SimpleQueueService.NonExistentQueue", BrokerDown, "deleted"),
        ("AWS.SimpleQueueService.QueueDeletedRecently", BrokerRefused, "less than a minute ago"),
        ("RequestThrottled", BrokerDown, "throttled"),
        ("InternalError", BrokerDown, "InternalError"),
        ("InvalidAttributeValue", BrokerRefused, "InvalidAttributeValue"),
    ],
)
def test_what_aws_answers_is_told_as_down_or_refused(code: str, kind: type[BrokerError], told: str) -> None:
    with pytest.raises(BrokerError, match=told) as raised, sqs.translated("queue q"):
        raise refusal(code)
    assert type(raised.value) is kind
    assert str(raised.value).startswith("queue q")


def test_a_signature_that_is_refused_shows_no_token_not_even_in_the_traceback() -> None:
    answer = refusal("SignatureDoesNotMatch", f"The canonical string was: x-amz-security-token:{CREDENTIALS['AWS_SESSION_TOKEN']}", 403)
    with pytest.raises(BrokerRefused) as raised, sqs.translated("queue q"):
        raise answer
    assert CREDENTIALS["AWS_SESSION_TOKEN"] not in "".join(traceback.format_exception(raised.value))


async def test_without_a_region_or_credentials_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    broker = open_broker("sqs://")
    with pytest.raises(BrokerRefused, match="AWS_DEFAULT_REGION"):
        await broker.connect()
    await broker.close()
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    broker = open_broker(f"sqs+http://127.0.0.1:{free_port()}?region=eu-west-1")
    with pytest.raises(BrokerRefused, match="AWS_ACCESS_KEY_ID"):
        await broker.connect()
    await broker.close()


async def test_to_list_queues_need_not_be_permitted() -> None:
    class Denied:
        async def list_queues(self, **_: Any) -> None:
            raise refusal("AccessDenied", "not authorized to perform: sqs:ListQueues", 403)

    class Unknown:
        async def list_queues(self, **_: Any) -> None:
            raise refusal("InvalidClientTokenId", "", 403)

    await sqs.prove(Denied(), sqs.parse("sqs://eu-west-1"))
    with pytest.raises(BrokerRefused, match="eu-west-1"):
        await sqs.prove(Unknown(), sqs.parse("sqs://eu-west-1"))


async def test_nobody_there_is_down_and_says_where() -> None:
    port = free_port()
    broker = open_broker(f"http://127.0.0.1:{port}", "sqs")
    with pytest.raises(BrokerDown, match=f"127.0.0.1:{port}"):
        await broker.connect()
    await broker.close()
    with pytest.raises(BrokerDown, match="endpoint"):
        await get_producer_channel(f"sqs+http://127.0.0.1:{port}", "q")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """A server that knows no credentials, and looks at them."""
    with moto(tmp_path_factory.mktemp("moto"), INITIAL_NO_AUTH_ACTION_COUNT="0") as running:
        yield running


async def test_wrong_credentials_are_refused_and_not_shown(strict: Moto) -> None:
    broker = open_broker(strict.url())
    with pytest.raises(BrokerRefused, match="credentials") as refused:
        await broker.connect()
    await broker.close()
    shown = "".join(traceback.format_exception(refused.value))
    assert not [secret for secret in CREDENTIALS.values() if secret in shown]
    with pytest.raises(BrokerRefused, match="credentials"):
        await get_producer_channel(strict.url(), "q")


# --- parts of batches ---------------------------------------------------------------------------------------------------------------

Answers = Callable[[str, list[dict[str, Any]]], Mapping[str, Any]]


class Client:
    """Answers batches as `answers(action, entries)` says; keeps what it was asked."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.asked: list[tuple[str, list[dict[str, Any]]]] = []
        self.inbox: asyncio.Queue[list[dict[str, Any]] | Exception] = asyncio.Queue()

    def batches(self, action: str) -> list[list[dict[str, Any]]]:
        return [entries for name, entries in self.asked if name == action]

    async def _batch(self, action: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
        self.asked.append((action, entries))
        await asyncio.sleep(0)
        return self._answers(action, entries)

    async def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> Mapping[str, Any]:  # noqa: N803
        return await self._batch("send", Entries)

    async def delete_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> Mapping[str, Any]:  # noqa: N803
        return await self._batch("delete", Entries)

    async def change_message_visibility_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> Mapping[str, Any]:  # noqa: N803
        return await self._batch("prolong", Entries)

    async def receive_message(self, *, MaxNumberOfMessages: int, **_: Any) -> Mapping[str, Any]:  # noqa: N803
        got = await self.inbox.get()
        if isinstance(got, Exception):
            raise got
        assert len(got) <= MaxNumberOfMessages
        return {"Messages": got}


def all_well(action: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {"Successful": entries}


def fails(entries: Sequence[dict[str, Any]], *, fault: bool, code: str = "InternalError") -> Mapping[str, Any]:
    return {"Failed": [{"Id": each["Id"], "SenderFault": fault, "Code": code, "Message": "a test"} for each in entries]}


def parcels(count: int, size: int = 1) -> list[sqs.Parcel]:
    return [sqs.Parcel(f"id-{n}", b"x" * size) for n in range(count)]


async def test_batches_have_ten_messages_and_a_megabyte_at_most() -> None:
    client = Client(all_well)
    await sqs.send(client, QUEUE, parcels(25))
    assert sorted(len(entries) for entries in client.batches("send")) == [5, 10, 10]
    client = Client(all_well)
    await sqs.send(client, QUEUE, parcels(5, 400_000))
    assert sorted(len(entries) for entries in client.batches("send")) == [1, 2, 2]
    client = Client(all_well)
    await sqs.send(client, sqs.Queue("old", "http://localhost/old", 256 * 1024, 3600), parcels(5, 100_000))
    assert sorted(len(entries) for entries in client.batches("send")) == [1, 2, 2]


async def test_what_was_not_taken_of_a_batch_is_sent_again_alone() -> None:
    def answers(action: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
        return fails([each for each in entries if each["Id"] in "37"], fault=False) if len(client.asked) < 3 else all_well(action, entries)

    client = Client(answers)
    await sqs.send(client, QUEUE, parcels(10))
    assert [[each["Id"] for each in entries] for entries in client.batches("send")] == [[*"0123456789"], ["3", "7"], ["3", "7"]]


async def test_an_error_says_which_were_not_confirmed() -> None:
    client = Client(lambda _, entries: fails([each for each in entries if each["Id"] in {"4", "17"}], fault=True, code="InvalidMessage"))
    with pytest.raises(BrokerRefused, match=r"InvalidMessage.*2 of 30 messages.*4, 17") as refused:
        await sqs.send(client, QUEUE, parcels(30))
    assert refused.value.failed == (4, 17)
    assert len(client.asked) == 3


async def test_what_is_never_taken_is_given_up_after_some_tries() -> None:
    client = Client(lambda _, entries: fails(entries[:1], fault=False))
    with pytest.raises(BrokerDown) as down:
        await sqs.send(client, QUEUE, parcels(2))
    assert down.value.failed == (0,)
    assert len(client.asked) == sqs.TRIES


async def test_after_a_request_that_failed_whole_nothing_more_is_tried() -> None:
    def answers(action: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
        if len(client.asked) > 1:
            raise refusal("ServiceUnavailable")
        return all_well(action, entries)

    client = Client(answers)
    with pytest.raises(BrokerDown, match="ServiceUnavailable") as down:
        await sqs.send(client, FIFO, parcels(100))
    assert down.value.failed == tuple(range(10, 100))
    assert len(client.asked) == 2


async def test_in_a_fifo_queue_nothing_overtakes_what_was_refused_and_ids_are_deduplicated() -> None:
    client = Client(lambda _, entries: fails(entries[:1], fault=True) if entries[0]["Id"] == "10" else all_well("", entries))
    with pytest.raises(BrokerRefused) as refused:
        await sqs.send(client, FIFO, parcels(40))
    assert refused.value.failed == (10, *range(20, 40))
    [first, second, *_] = client.batches("send")[0]
    assert first["MessageGroupId"] == second["MessageGroupId"] == "easyjobs"
    assert first["MessageDeduplicationId"] != second["MessageDeduplicationId"]
    again = Client(all_well)
    await sqs.send(again, FIFO, parcels(1))
    assert again.batches("send")[0][0] == first


async def test_characters_that_sqs_refuses_are_written_as_json_may_write_them() -> None:
    client = Client(all_well)
    await sqs.send(client, QUEUE, [sqs.Parcel("a", '{"name":"\uffff"}'.encode())])
    assert client.batches("send")[0][0]["MessageBody"] == '{"name":"\\uffff"}'


async def test_what_a_result_answers_to_is_an_attribute_where_sqs_carries_it() -> None:
    client = Client(all_well)
    await sqs.send(client, QUEUE, [sqs.Parcel("a", b"1", correlation="order-17"), sqs.Parcel("b", b"2", correlation="\x00")])
    [[first, second]] = client.batches("send")
    assert first["MessageAttributes"]["correlation_id"] == {"DataType": "String", "StringValue": "order-17"}
    assert set(second["MessageAttributes"]) == {"message_id"}


# --- what is held -------------------------------------------------------------------------------------------------------------------


def received(*numbers: int) -> list[dict[str, Any]]:
    return [{"Body": f"b{n}", "MessageId": f"m{n}", "ReceiptHandle": f"h{n}"} for n in numbers]


class Inlets:
    """Makes inlets over a client of ours, and closes them."""

    def __init__(self) -> None:
        self.made: list[adapter._Inlet] = []

    def open(self, client: Client, queue: sqs.Queue = QUEUE, receivers: int = 1) -> adapter._Inlet:
        inlet = adapter._Inlet(client, queue, sqs.Address(None, None), receivers)
        inlet.start()
        self.made.append(inlet)
        return inlet


@pytest.fixture
async def inlets(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inlets]:
    monkeypatch.setattr(adapter, "CLOSE_S", 0.01)
    group = Inlets()
    yield group
    for inlet in group.made:
        await inlet.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  a few turns of the loop
            await asyncio.sleep(0.001)


async def test_deletions_are_collected_over_fetches_and_what_was_not_deleted_is_tried_again(inlets: Inlets) -> None:
    def answers(action: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
        return fails(entries[:2], fault=False) if len(client.batches("delete")) == 1 else all_well(action, entries)

    client = Client(answers)
    inlet = inlets.open(client)
    for n in range(4):
        client.inbox.put_nowait(received(n))
        inlet.ack(await inlet.fetch(10))
    await until(lambda: not inlet._held)
    assert [[each["ReceiptHandle"] for each in entries] for entries in client.batches("delete")] == [["h0", "h1", "h2", "h3"], ["h0", "h1"]]


async def test_a_handle_that_is_not_ours_any_more_is_forgotten(inlets: Inlets) -> None:
    client = Client(lambda _, entries: fails(entries, fault=True, code="ReceiptHandleIsInvalid"))
    inlet = inlets.open(client, FIFO)
    client.inbox.put_nowait(received(1, 2))
    inlet.ack(await inlet.fetch(10))
    await until(lambda: not inlet._held)
    assert len(client.batches("delete")) == 1


async def test_what_is_held_is_prolonged_in_batches_and_what_is_acknowledged_is_not(
    inlets: Inlets, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = adapter._now()
    client = Client(lambda _, entries: fails(entries[:1], fault=False) if len(entries) == 10 else all_well("", entries))
    inlet = inlets.open(client)
    for at in (0, 10):
        client.inbox.put_nowait(received(*range(at, at + 10)))
    await until(lambda: len(inlet._held) == 20)
    await inlet.prolong_some()
    assert client.batches("prolong") == []
    inlet.ack(await inlet.fetch(5))
    monkeypatch.setattr(adapter, "_now", lambda: now + 30)
    await inlet.prolong_some()
    prolonged = [each["ReceiptHandle"] for entries in client.batches("prolong") for each in entries]
    assert prolonged == [f"h{n}" for n in range(5, 20)]
    assert {each["VisibilityTimeout"] for entries in client.batches("prolong") for each in entries} == {60}
    await inlet.prolong_some()
    assert [[each["ReceiptHandle"] for each in entries] for entries in client.batches("prolong")[2:]] == [["h5"]]  # the one that failed


async def test_a_permission_that_is_missing_is_told_by_the_fetch(inlets: Inlets) -> None:
    def denied(action: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
        raise refusal("AccessDenied", "not authorized to perform: sqs:DeleteMessage", 403)

    client = Client(denied)
    inlet = inlets.open(client)
    client.inbox.put_nowait(received(1))
    inlet.ack(await inlet.fetch(10))
    async with asyncio.timeout(10):
        with pytest.raises(BrokerRefused, match="sqs:DeleteMessage"):
            await inlet.fetch(10)


async def test_close_gives_back_what_is_held_and_deletes_what_is_acknowledged(inlets: Inlets) -> None:
    client = Client(all_well)
    inlet = inlets.open(client)
    client.inbox.put_nowait(received(1, 2, 3))
    [first, *_] = await inlet.fetch(10)
    inlet.ack([first])
    await inlet.close()
    assert [each["ReceiptHandle"] for each in client.batches("delete")[0]] == ["h1"]
    assert [(each["ReceiptHandle"], each["VisibilityTimeout"]) for each in client.batches("prolong")[0]] == [("h2", 0), ("h3", 0)]


async def test_an_answer_that_makes_no_sense_ends_the_fetch(inlets: Inlets) -> None:
    client = Client(all_well)
    inlet = inlets.open(client)
    client.inbox.put_nowait([{"Body": "a message without a handle"}])
    async with asyncio.timeout(10):
        with pytest.raises(BrokerDown, match="ReceiptHandle"):
            await inlet.fetch(10)


async def test_when_asked_to_be_slower_it_is_and_goes_on(inlets: Inlets) -> None:
    client = Client(all_well)
    inlet = inlets.open(client)
    for _ in range(3):
        client.inbox.put_nowait(refusal("RequestThrottled"))
    client.inbox.put_nowait(received(1))
    async with asyncio.timeout(10):
        assert [each.body for each in await inlet.fetch(10)] == [b"b1"]
    assert inlet.lost is None


async def test_more_polls_are_under_way_while_they_come_back_full(inlets: Inlets) -> None:
    client = Client(all_well)
    inlet = inlets.open(client, receivers=4)
    await until(lambda: inlet._asked == 10)
    for at in range(0, 30, 10):
        client.inbox.put_nowait(received(*range(at, at + 10)))
    await until(lambda: inlet._asked == 40)
    for _ in range(4):  # each to another poll, of which only the first goes on
        client.inbox.put_nowait([])
        await until(client.inbox.empty)
    await until(lambda: inlet._asked == 10)


# --- the producer -------------------------------------------------------------------------------------------------------------------


async def test_a_job_with_a_key_is_the_same_message_when_it_is_sent_again(tmp_path: Path) -> None:
    with moto(tmp_path) as server:
        job = {"name": "work", "args": [1], "key": "k"}
        async with await get_producer_channel(server.url(fifo="true"), "q") as channel, AsyncExitStack() as stack:
            await channel.send_jobs([job, job, {"name": "work"}, {"name": "work"}, {**job, "args": [2]}])
            client = await sqs.open_client(sqs.parse(server.url()), stack)
            url = (await client.get_queue_url(QueueName="q.fifo"))["QueueUrl"]
            answer = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
            assert answer["Attributes"]["ApproximateNumberOfMessages"] == "4"
            with pytest.raises(InvalidArguments, match="limit is 1,048,5"):
                await channel.send_jobs([job, {"name": "work", "args": ["x" * 1024 * 1024]}])
            await client.delete_queue(QueueUrl=url)
            with pytest.raises(BrokerDown, match="not there"):
                await channel.send_job(job)
            await channel.send_job(job)  # the queue was made again
            await channel.close()
            await channel.close()
