"""Tasks that ask for all that a task can ask for. What they do is written to TEST_EFFECTS, one line each."""

import asyncio
import os
import threading
import time
from pathlib import Path

from fastapi import FastAPI

from easyjobs import GiveUp, JobContext, JobFailure, Retry, RetryPolicy, Snooze, Unique
from easyjobs.workers.worker import EasyJobsWorker

server = FastAPI()


def effect(*words: object) -> None:
    """Append a line, in one write."""
    with Path(os.environ["TEST_EFFECTS"]).open("a", encoding="utf-8") as file:
        file.write(" ".join(str(word) for word in words) + "\n")


@server.on_event("startup")
async def startup() -> None:
    queue = os.environ.get("TEST_QUEUE", "A")
    worker = await EasyJobsWorker.create(
        server,
        server_secret="abcd1234",
        manager_secret="abcd1234",
        manager_port=int(os.environ["TEST_MANAGER_PORT"]),
        jobs_queue=queue,
        max_tasks_per_worker=3,
    )

    @server.post("/toggle")
    async def toggle(pause: bool) -> None:
        worker.toggle_workers(pause=pause)

    if queue == "B":

        @worker.task(run_after="DEFAULT/archive")
        async def enrich(text: str) -> str:
            return text + " and more"

        return

    # --- retries

    @worker.task(retry_policy=RetryPolicy(max_retries=3, backoff="fixed", base=0.05, jitter=0, give_up_on=(ZeroDivisionError,)))
    async def flaky(times: int, context: JobContext) -> int:
        effect("flaky", context.attempt)
        if context.failures < times:
            raise ValueError(f"failure {context.failures + 1}")
        return context.attempt

    @worker.task(retry_policy="never")
    async def drowsy(context: JobContext) -> int:
        if context.attempt < 3:
            raise Snooze(in_=0.05)
        return context.failures

    @worker.task(retry_policy="always")
    async def hopeless() -> None:
        raise GiveUp("no use")

    @worker.task(retry_policy=1)
    async def patient(context: JobContext) -> str:
        if context.attempt == 1:
            raise Retry("not yet", in_=0.05)
        return "done"

    # --- chains

    @worker.task(run_after="B/enrich")
    async def fetch(text: str) -> str:
        return text.upper()

    @worker.task(run_after=["loop"], max_chain_depth=4)
    async def loop(n: int = 0) -> int:
        effect("loop", n)
        return n + 1

    @worker.task(run_after="nobody_has_this")
    async def leads_nowhere() -> str:
        return "here"

    @worker.task()
    async def download(url: str) -> str:
        effect("download", url)
        return url

    @worker.task(retry_policy="never")
    async def check(size: int) -> None:
        effect("check", size)
        if size < 0:
            raise ValueError("too small")

    @worker.task(run_before=["download", "check"], on_failure="report")
    async def build(url: str, size: int, name: str) -> str:
        effect("build", name)
        return f"{name}: {url} ({size})"

    @worker.task()
    async def report(failure: JobFailure) -> dict[str, object]:
        effect("report", failure.name, failure.type)
        return {"job": failure.job_id, "message": failure.message, "kwargs": failure.kwargs, "args": failure.args}

    @worker.task(retry_policy="always", on_failure="plain_report")
    async def endless(context: JobContext) -> None:
        effect("endless", context.attempt)
        raise KeyError("again")

    @worker.task()
    async def plain_report(reason: str) -> str:
        effect("plain_report", reason)
        return reason

    # --- calls

    @worker.task()
    async def square(n: int) -> int:
        effect("square", n)
        return n * n

    @worker.task()
    async def slow_square(n: int, gate: str) -> int:
        effect("slow_square", n)
        while not Path(gate).exists():
            await asyncio.sleep(0.02)
        return n * n

    @worker.task(max_crashes=5)
    async def sums(gate: str, context: JobContext) -> int:
        effect("sums", context.attempt)
        first = await square(1)
        second = await square(2)
        effect("two of three", context.attempt)
        return first + second + await slow_square(3, gate)

    @worker.task()
    async def gathers(count: int) -> int:
        return sum(await asyncio.gather(*(square(n) for n in range(count))))

    # --- control

    @worker.task()
    async def sleeps(token: str) -> None:
        effect("sleeps", token)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            effect("cancelled", token)
            raise

    @worker.task()
    def blocks(token: str, context: JobContext) -> None:
        effect("blocks", token)
        while not context.cancel_requested:
            time.sleep(0.01)
        effect("stopped", token, threading.current_thread() is not threading.main_thread())

    @worker.task()
    async def calls_sleeps(token: str) -> None:
        await sleeps(token)

    @worker.task(unique=Unique(fields=["customer"], states=["queued", "running"]))
    async def bill(customer: str, amount: int) -> int:
        effect("bill", customer, amount)
        while not Path(os.environ["TEST_EFFECTS"] + f".{customer}").exists():
            await asyncio.sleep(0.02)
        return amount

    @worker.task(expires=0.3)
    async def urgent() -> str:
        return "in time"

    @worker.task(priority=1)
    async def important(token: str) -> None:
        effect("important", token)

    @worker.task(result_ttl=0)
    async def short_lived() -> str:
        return "gone soon"
