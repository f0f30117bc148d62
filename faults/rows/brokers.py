"""Faults of message brokers, and of managers that take from them: every confirmed message is one job, is put aside, or is still there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easyjobs.brokers import open_broker
from easyjobs.errors import BrokerError
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

    def publish(self, names: Sequence[str], *, by: int = 100) -> None:
        """Send a message for each; those that the broker confirms are `published`, the others `doubtful`."""
        asyncio.run(self._publish(names, by))

    async def _publish(self, names: Sequence[str], by: int) -> None:
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
        if channel is not None:
            await channel.close()

    @contextmanager
    def producing(self, prefix: str, by: int = 20) -> Iterator[None]:
        """A producer sends all the while."""
        done = threading.Event()

        def produce() -> None:
            number = 0
            while not done.is_set():
                self.publish([f"{prefix}{n}" for n in range(number, number + by * 20)], by=by)
                number += by * 20

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(120)
            assert not thread.is_alive(), "the producer hangs"

    def has_job(self, token: str) -> bool:
        return self.count(f"""j.args like '%"{token}"%'""") > 0

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

    def judged(self, within_s: float = 60.0) -> History:
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


@row("B3")
def killed_before_the_acknowledgement(directory: Path, size: float) -> str:
    """The manager is killed between commit and acknowledgement, with each broker: what comes again makes no second job."""
    told = []
    for kind in OPEN:
        with broker_site(directory, kind, failpoints="consumer.stored:kill@2") as place:  # its first batch is the site's own message
            for turn in range(max(1, round(size))):
                if turn:
                    place.restart(EASYJOBS_FAILPOINTS=f"consumer.stored:kill@{turn % 2 + 1}")
                before = place.jobs_in_store()
                place.publish([f"t{turn}-{n}" for n in range(40 if kind == "sqs" else 200)], by=20)
                place.wait_for_death(30)
                assert place.jobs_in_store() > before, "nothing was stored that could come again"
                place.publish([f"t{turn}-more{n}" for n in range(40)], by=20)
                place.begin()
                place.all_arrived()
                if kind != "sqs":
                    until("the broker has none", lambda place=place: place.left() == 0, 60, 0.3)  # type: ignore[misc]
            history = place.judged()
            told.append(f"{kind}: {len(history.published)} confirmed, {len(history.rows)} jobs")
    return f"duplicates 0; {'; '.join(told)}"
