"""Faults of message brokers, and of managers that take from them: every confirmed message is one job, is put aside, or is still there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easyjobs.brokers import open_broker
from easyjobs.errors import BrokerError
from easyjobs.ports.broker import Outgoing
from easyjobs.producers import nats as nats_producer
from easyjobs.producers import rabbitmq as rabbit_producer
from easyjobs.producers import redis as redis_producer
from easyjobs.producers import sqs as sqs_producer
from easyjobs.producers.channel import Channel
from faults import figures
from faults.history import History
from faults.invariants import judge
from faults.load import PROGRAMS, LoadSite, assert_no_secret
from faults.matrix import row
from tests.moto import AWS, Moto, moto
from tests.nats_server import NatsServer, nats_server
from tests.processes import Processes, processes, until
from tests.rabbit import Rabbit, rabbit
from tests.redis_server import RedisServer, redis_server

QUEUE = "DEFAULT"
RESUMES_WITHIN_S = 30.0
DELETIONS = 5  # of a queue, in a turn
OPEN: dict[str, Callable[[str, str], Awaitable[Channel]]] = {
    "rabbitmq": rabbit_producer.get_producer_channel,
    "redis": redis_producer.get_producer_channel,
    "nats": nats_producer.get_producer_channel,
    "sqs": sqs_producer.get_producer_channel,
}
Server = Rabbit | RedisServer | NatsServer | Moto


class BrokerSite(LoadSite):
    """A manager that takes from a real broker and runs the jobs itself. `published` and `doubtful` are what the producers know."""

    app, programs = "broker_manager:server", PROGRAMS

    def __init__(self, started: Processes, directory: Path, kind: str, server: Server, *, impatient: bool = True) -> None:
        super().__init__(started, directory)
        self.kind, self.broker = kind, server
        self.url = server.url(visibility=2) if isinstance(server, Moto) else server.url
        self.published: set[str] = set()
        self.doubtful: set[str] = set()
        self._more = {"TEST_IMPATIENT": "1"} if impatient else {}
        self._probes = 0

    def environment(self, **more: str) -> dict[str, str]:
        own = {"TEST_BROKER": self.url, "EASYJOBS_MANAGER_SLOTS": "50", **(AWS if self.kind == "sqs" else {}), **self._more}
        return super().environment(**own, **more)

    def open_broker_site(self, **more: str) -> None:
        self.begin(**more)
        self.install_witness()

    def begin(self, **more: str) -> None:
        """Start the manager, and wait until it is ready. `more`: of its environment, this time."""
        before, self._more = self._more, {**self._more, **more}
        self.open_manager(0)
        self._more = before
        self.manager.until_ready(60)

    def restart(self, **more: str) -> None:
        """kill -9, and start it again."""
        self.manager.kill()
        self.begin(**more)

    # --- messages ---------------------------------------------------------------------------------------------------------------

    def publish(self, names: Sequence[str], *, by: int = 100, pause_s: float = 0.0) -> None:
        """Send a message for each, `by` at a time; those that the broker confirms are `published`, the others `doubtful`."""
        asyncio.run(self._publish(names, by, pause_s))

    async def _publish(self, names: Sequence[str], by: int, pause_s: float) -> None:
        channel: Channel | None = None
        for at in range(0, len(names), by):
            some = names[at : at + by]
            self.doubtful.update(some)
            try:
                async with asyncio.timeout(20):
                    channel = channel or await OPEN[self.kind](self.url, QUEUE)
                    await channel.send_jobs([{"name": "work", "kwargs": {"token": name}} for name in some])
            except (BrokerError, TimeoutError):
                if channel is not None:
                    await channel.close()
                channel = None
                await asyncio.sleep(0.1)
                continue
            self.published.update(some)
            self.doubtful.difference_update(some)
            await asyncio.sleep(pause_s)
        if channel is not None:
            await channel.close()

    @contextmanager
    def producing(self, prefix: str, by: int = 20) -> Iterator[None]:
        """A producer sends all the while, a hundred a second: what comes after a fault does not wait behind what no manager could do."""
        done = threading.Event()

        def produce() -> None:
            number = 0
            while not done.is_set():
                self.publish([f"{prefix}{n}" for n in range(number, number + by * 10)], by=by, pause_s=by / 100)
                number += by * 10

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(120)
            assert not thread.is_alive(), "the producer hangs"

    def has_job(self, token: str) -> bool:
        return self.count(f"""cast(j.args as text) like '%"{token}"%'""") > 0

    def jobs_in_store(self) -> int:
        return self.count("1 = 1")

    def resumes(self) -> float:
        """Publish until something is confirmed, and wait until it is a job; seconds from now on. Raises: NotInTime after thirty."""
        began = time.monotonic()
        self._probes += 1

        def arrived() -> bool:
            token = f"probe{self._probes}-{time.monotonic_ns()}"
            self.publish([token])
            return token in self.published and bool(until("it is a job", lambda: self.has_job(token), RESUMES_WITHIN_S))

        until("a message is a job", arrived, RESUMES_WITHIN_S)
        took = time.monotonic() - began
        figures.took("broker resumes", took)
        return took

    def all_arrived(self, within_s: float = 60.0) -> None:
        """Until each confirmed message is a job, or is put aside."""
        until("each confirmed message is a job", lambda: self.jobs_in_store() >= len(self.published), within_s, 0.2)

    def left(self) -> int:
        """Messages that the broker has, handed over or not."""

        async def look() -> int:
            broker: Any = open_broker(self.url, "redis" if self.kind == "redis" else None)
            await broker.connect()
            try:
                if self.kind == "redis":
                    return int(await broker._client.xlen(QUEUE))
                return int((await broker._connection.js.stream_info(QUEUE)).state.messages)
            finally:
                await broker.close()

        if isinstance(self.broker, Rabbit):
            rows = [line.split() for line in self.broker.ctl("list_queues", "name", "messages", "--no-table-headers").splitlines()]
            return sum(int(words[1]) for words in rows if words[0] == QUEUE)
        return asyncio.run(look())

    def quarantined(self) -> Counter[str]:
        """By reason."""
        found: Counter[str] = Counter()
        cursor = ""
        while True:
            page = self.manager.get(f"/jobs/api/v1/quarantine?limit=100{cursor}")
            found.update(item["reason"] for item in page["items"])
            if not page["next_cursor"]:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def told(self) -> History:
        told = History(lease_s=self.lease_s, unknown=set(self.doubtful), published=set(self.published))
        self.read_store(told)
        return told

    def judged(self, within_s: float = 60.0) -> History:  # type: ignore[override]
        """Wait until what was confirmed has arrived and ended, and judge. Raises: AssertionError with all that is wrong."""
        with contextlib.suppress(AssertionError):  # I13 says it better
            self.all_arrived(within_s)
        self.settle(within_s)
        history = self.told()
        wrong = judge(history)
        assert not wrong, "\n".join(wrong[:20])
        assert_no_secret(self.started)
        figures.count("jobs", len(history.rows))
        figures.count("messages confirmed by brokers", len(history.published))
        return history


@contextmanager
def broker_site(directory: Path, kind: str, *, impatient: bool = True, failpoints: str = "", **options: Any) -> Iterator[BrokerSite]:
    """A broker and a manager that takes from it, and has taken a message. `failpoints`: of this manager until it starts again."""
    logging.disable(logging.CRITICAL)  # what clients say of a broker that is gone
    start = {"rabbitmq": rabbit, "redis": redis_server, "nats": nats_server, "sqs": moto}[kind]
    where = directory / f"{kind}-broker"
    where.mkdir(parents=True)
    (directory / kind).mkdir()
    os.environ.update(AWS if kind == "sqs" else {})  # of our producers
    with start(where, **options) as server, processes() as started:  # type: ignore[operator]
        place = BrokerSite(started, directory / kind, kind, server, impatient=impatient)
        place.open_broker_site(**({"EASYJOBS_FAILPOINTS": failpoints} if failpoints else {}))
        place.publish([f"hello-{kind}"])  # the queue is there
        place.all_arrived()
        if isinstance(server, Rabbit):
            server.until_registered()
        yield place


def said(place: BrokerSite, history: History) -> str:
    return f"{len(history.published)} confirmed, {len(history.unknown)} in doubt, {len(history.rows)} jobs, 0 lost, 0 twice"


@row("B1")
def rabbitmq_broken(directory: Path, size: float) -> str:
    """RabbitMQ killed, restarted, its queue deleted, its connections closed, out of memory, under load: taking resumes within 30 s."""
    with broker_site(directory, "rabbitmq") as place:
        broker = place.broker
        assert isinstance(broker, Rabbit)

        def again(number: int) -> None:
            broker.kill(number)
            broker.start()

        def out_of_memory() -> None:
            broker.ctl("set_vm_memory_high_watermark", "0.0000001")
            time.sleep(3)
            broker.ctl("set_vm_memory_high_watermark", "0.4")

        faults: dict[str, Callable[[], object]] = {
            "kill -9": lambda: again(signal.SIGKILL),
            "restart": lambda: again(signal.SIGTERM),
            "connections closed": lambda: broker.ctl("close_all_connections", "by a test"),
            "memory alarm": out_of_memory,
        }
        took: dict[str, float] = {}
        for turn in range(max(1, round(size))):
            for name, fault in faults.items():
                with place.producing(f"{name.replace(' ', '-')}{turn}-"):
                    time.sleep(1)
                    fault()
                    took[name] = max(took.get(name, 0.0), place.resumes())
            place.all_arrived()
            until("the broker has none", lambda: place.left() == 0, 120, 0.5)
            for _ in range(DELETIONS):
                broker.ctl("delete_queue", QUEUE)  # its consumer is cancelled; or is not told of it, if the queue is there again too soon
                took["queue deleted"] = max(took.get("queue deleted", 0.0), place.resumes())
                until("the broker has none", lambda: place.left() == 0, 120, 0.5)
        history = place.judged()
        return f"{said(place, history)}; resumed after " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())


@row("B2")
def redis_broken(directory: Path, size: float) -> str:
    """Redis with appendfsync everysec killed under load, and a manager killed that held entries: they are claimed, with the settings as they are."""
    with broker_site(directory, "redis", impatient=False, failpoints="consumer.stored:kill@2", fsync="everysec") as place:
        broker = place.broker
        assert isinstance(broker, RedisServer)
        # The manager dies with what it has fetched: durable and not acknowledged, or not even stored.
        place.publish([f"held-{n}" for n in range(300)], by=300)
        place.wait_for_death(30)
        held = place.left()
        assert held > 0, "it held nothing"
        time.sleep(2)  # everysec: now Redis has it on its disk
        began = time.monotonic()
        place.begin()
        kills = max(2, round(3 * size))
        for turn in range(kills):
            with place.producing(f"k{turn}-"):
                time.sleep(1)
                broker.kill()
                broker.start()
                place.resumes()
        until("nothing is pending", lambda: place.left() == 0, 90, 0.3)
        took = time.monotonic() - began
        figures.took("entries of a dead consumer claimed", took)
        history = place.judged()
        return (
            f"{kills} kills of Redis; {said(place, history)}; {held} entries of a dead manager claimed within {took:.1f} s (idle time 30 s)"
        )


@row("B2L")
def redis_loses_its_last_second(directory: Path, size: float) -> str:
    """Redis with appendfsync everysec loses what it had not synced (its log is cut back): what the manager had taken stays, and is taken once; what was lost is counted."""
    lost = again = 0
    with broker_site(directory, "redis", fsync="everysec") as place:
        broker = place.broker
        assert isinstance(broker, RedisServer)
        for turn in range(max(1, round(size))):
            place.manager.signal(signal.SIGSTOP)
            place.publish([f"synced{turn}-{n}" for n in range(100)])
            time.sleep(2.5)  # more than the second after which it syncs
            [log] = broker.directory.glob("appendonlydir/*.incr.aof")
            synced = log.stat().st_size
            place.manager.signal(signal.SIGCONT)
            place.publish([f"taken{turn}-{n}" for n in range(100)])
            place.all_arrived()
            before = place.jobs_in_store()
            place.manager.signal(signal.SIGSTOP)
            gone = [f"gone{turn}-{n}" for n in range(100)]
            place.publish(gone)
            broker.kill()
            cut = log.stat().st_size - synced
            assert cut > 0, "there is nothing to lose"
            os.truncate(log, synced)
            broker.start()
            place.manager.signal(signal.SIGCONT)
            again += place.left()  # their acks are lost: they come again
            place.resumes()
            until("nothing is pending", lambda: place.left() == 0, 90, 0.3)
            assert place.jobs_in_store() > before, "a job is gone"
            jobs = {row.token for row in place.told().rows}
            missing = place.published - jobs
            assert missing <= set(gone), f"more is lost than Redis had not synced: {sorted(missing - set(gone))[:5]}"
            lost += len(missing)
            place.published -= missing
        history = place.judged()
    assert lost > 0, "nothing was lost: it does not bite"
    return (
        f"{lost} messages that Redis had confirmed and not synced are lost, none of them taken; {said(place, history)}; {again} came again for want of "
        f"their acks, 0 jobs twice"
    )


@row("B3")
def killed_before_the_acknowledgement(directory: Path, size: float) -> str:
    """The manager is killed between commit and acknowledgement, with each broker: what comes again makes no second job."""
    told = []
    for kind in OPEN:
        bites = 0
        with broker_site(directory, kind, failpoints="consumer.stored:kill@2") as place:  # its first batch is the site's own message
            for turn in range(max(1, round(size))):
                if turn:
                    place.restart(EASYJOBS_FAILPOINTS=f"consumer.stored:kill@{turn % 2 + 1}")
                before = place.jobs_in_store()
                place.publish([f"t{turn}-{n}" for n in range(40 if kind == "sqs" else 200)], by=20)
                place.wait_for_death(30)
                bites += place.jobs_in_store() > before  # else the batch was one that came again, from the turn before
                place.publish([f"t{turn}-more{n}" for n in range(40)], by=20)
                place.begin()
                place.all_arrived()
                if kind != "sqs":
                    until("the broker has none", lambda place=place: place.left() == 0, 60, 0.3)
            history = place.judged()
            assert bites, "nothing was stored that could come again"
            told.append(
                f"{kind}: {len(history.published)} confirmed, {len(history.rows)} jobs, {bites} times between commit and acknowledgement"
            )
    return f"duplicates 0; {'; '.join(told)}"


def poison(number: int) -> bytes:
    """A message of each bad kind in turn; not one for a task that nobody offers, which is given ten minutes first."""
    kinds = [
        b"no json at all",
        b'{"name":"work"',
        b"[" * 3000 + b"]" * 3000,
        b'{"name":"work","kwargs":{"token":7}}',
        b'{"name":"work","kwargs":{"token":"x","more":1}}',
        b'"text"',
        b'{"name":5}',
        b"\xff\xfe\x00",
        b'{"name":"work","kwargs":{"token":NaN}}',
    ]
    if number % 150 == 149:
        return b'{"name":"work","kwargs":{"token":"' + b"x" * 1_100_000 + b'"}}'
    return kinds[number % len(kinds)]


@row("B4")
def poison_between_good_messages(directory: Path, size: float) -> str:
    """Thousands of messages in a row that no manager can take, between good ones: they are put aside, and the good ones flow."""
    bad = round(3000 * size)
    with broker_site(directory, "rabbitmq") as place:

        async def send() -> None:
            broker = open_broker(place.url)
            await broker.connect()
            try:
                for at in range(0, bad, 50):
                    await broker.publish(QUEUE, [Outgoing(poison(n), f"bad-{n}") for n in range(at, min(at + 50, bad))])
            finally:
                await broker.close()

        place.manager.signal(signal.SIGSTOP)
        try:
            place.publish([f"before-{n}" for n in range(500)])
            asyncio.run(send())
            place.publish([f"behind-{n}" for n in range(500)])
        finally:
            place.manager.signal(signal.SIGCONT)
        began = time.monotonic()
        place.all_arrived(30 + bad / 50)
        took = time.monotonic() - began
        until("the broker has none", lambda: place.left() == 0, 120, 0.3)
        reasons = place.quarantined()
        assert reasons.total() == bad, f"{bad} sent, put aside: {dict(reasons)}"
        history = place.judged()
        figures.count("poisoned messages", bad)
        return (
            f"{bad} in a row put aside ({', '.join(f'{n} {reason}' for reason, n in sorted(reasons.items()))}); "
            f"the last good one was a job after {took:.1f} s, {(bad + 1000) / took:.0f} messages/s; {said(place, history)}"
        )


@row("B5")
def with_and_without_confirms(directory: Path, size: float) -> str:
    """RabbitMQ killed under a publisher with confirms and one without: all that was confirmed is a job, of the rest a part."""
    with broker_site(directory, "rabbitmq") as place:
        broker = place.broker
        assert isinstance(broker, Rabbit)
        unconfirmed = 0
        done = threading.Event()

        async def blindly() -> None:
            nonlocal unconfirmed
            import aio_pika

            while not done.is_set():
                with contextlib.suppress(Exception):  # whatever the client says of a broker that is gone
                    async with asyncio.timeout(20), await aio_pika.connect(place.url) as connection:
                        channel = await connection.channel(publisher_confirms=False)
                        while not done.is_set():
                            for _ in range(20):
                                token = f"blind-{unconfirmed}"
                                place.doubtful.add(token)
                                unconfirmed += 1
                                body = json.dumps({"name": "work", "kwargs": {"token": token}}).encode()
                                message = aio_pika.Message(body, message_id=token, delivery_mode=2)
                                await channel.default_exchange.publish(message, QUEUE, mandatory=False)
                            await asyncio.sleep(0.02)
                await asyncio.sleep(0.1)

        thread = threading.Thread(target=lambda: asyncio.run(blindly()))
        thread.start()
        kills = max(1, round(size))
        try:
            with place.producing("sure-"):
                for _ in range(kills):
                    time.sleep(2)
                    broker.kill()
                    broker.start()
                    place.resumes()
        finally:
            done.set()
            thread.join(60)
        until("the broker has none", lambda: place.left() == 0, 120, 0.3)
        history = place.judged()
        blind = sum(row.token.startswith("blind-") for row in history.rows)
        sure = len(history.rows) - blind
        return (
            f"{kills} kills; with confirms {len(history.published)} confirmed, all of them jobs ({sure} with those in doubt); "
            f"without: {unconfirmed} sent, {blind} jobs"
        )


@row("B6")
def odd_deliveries(directory: Path, size: float) -> str:
    """SQS out of order, with messages twice, lost deletions and visibility that ended; NATS with late acks and a purged stream: one job each."""
    with broker_site(directory, "sqs", module="faults.programs.odd_sqs") as place:
        for turn in range(max(2, round(2 * size))):
            place.publish([f"q{turn}-{n}" for n in range(60)], by=10)
            place.manager.signal(signal.SIGSTOP)  # what it holds becomes visible again
            time.sleep(3)
            place.manager.signal(signal.SIGCONT)
        history = place.judged(120)
        time.sleep(5)  # lost deletions come again
        again = place.told()
        assert len(again.rows) == len(history.rows), "what came again made jobs"
        assert not judge(again), judge(again)[:20]
        told = f"SQS: {said(place, history)}"
    with broker_site(directory, "nats") as place:
        for turn in range(max(2, round(2 * size))):
            with place.producing(f"n{turn}-"):
                time.sleep(0.5)
                place.manager.signal(signal.SIGSTOP)  # longer than AckWait: its acks come late
                time.sleep(3)
                place.manager.signal(signal.SIGCONT)
                place.resumes()
        place.all_arrived()
        place.manager.signal(signal.SIGSTOP)
        before = set(place.published)
        place.publish([f"purged-{n}" for n in range(1000)])
        asyncio.run(_purge(place.url))
        place.doubtful |= place.published - before  # a person has deleted those that the manager had not yet fetched
        place.published = before
        place.manager.signal(signal.SIGCONT)
        took = place.resumes()
        until("the broker has none", lambda: place.left() == 0, 120, 0.3)
        history = place.judged()
        kept = sum(row.token.startswith("purged-") for row in history.rows)
        return f"{told}; NATS: {said(place, history)}; goes on {took:.1f} s after a purge of 1000 ({kept} were taken before)"


async def _purge(url: str) -> None:
    import nats

    client = await nats.connect(url, allow_reconnect=False)
    await client.jetstream().purge_stream(QUEUE)
    await client.close()
