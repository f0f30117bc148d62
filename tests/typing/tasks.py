"""What type checkers know of tasks. Checked by mypy (`tests/typing/test_typing.py`), never run: an ignore that is not needed is an error."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import assert_type

from easyjobs.tasks import Job, JobContext, Task, TaskMaker, current_job


def check(worker: TaskMaker) -> None:
    @worker.task
    async def bare(a: int, b: str = "") -> float:
        return 1.0

    @worker.task()
    async def called(a: int) -> list[int]:
        return [a]

    @worker.task(retry_policy="never", on_failure="bare", run_after=["called"], priority=5)
    def plain(a: int, *, flag: bool = False) -> dict[str, int]:
        return {}

    @worker.task(schedule="0 9 * * 1-5", timezone="Europe/Berlin", default_args={"a": 1}, catch_up="all", overlap="skip")
    async def timed(a: int) -> str:
        return ""

    @worker.task(schedule=["@daily", "@hourly"], default_args=[1], catch_up_window=timedelta(hours=2))
    def timed_twice(a: int) -> None: ...

    @worker.task(schedule="@daily", catch_up="some")  # type: ignore[call-overload, untyped-decorator]
    async def misspelt_too() -> None: ...

    @worker.task()
    @worker.task(name="other")
    async def stacked(a: int) -> str:
        return ""

    def later(a: int) -> bytes:
        return b""

    given = worker.task(later, retry_policy=3)

    @worker.task(retries=3)  # type: ignore[call-overload, untyped-decorator]
    async def misspelt() -> None: ...

    async def use() -> None:
        assert_type(await bare(1, b="x"), float)
        assert_type(await called(1), list[int])
        assert_type(await plain(1, flag=True), dict[str, int])
        assert_type(await stacked(1), str)
        assert_type(await given(1), bytes)
        assert_type(await bare.submit(1), Job[float])
        assert_type(await (await plain.submit(1)).result(timeout=1), dict[str, int])
        assert_type(await called.options(priority=1, delay=2.5, key="k").submit(1), Job[list[int]])
        assert_type(await timed.options(at=datetime.now().astimezone()).submit(1), Job[str])
        assert_type(await timed_twice(1), None)
        assert_type(plain.fn(1), dict[str, int])
        assert_type(current_job(), JobContext)
        task: Task[[int], list[int]] = called
        await task(1)
        await bare("1")  # type: ignore[arg-type]
        assert_type(await timed.submit_in(object(), 1), Job[str])
        assert_type(timed.options(delay=1).submit_in_sync(object(), 1), Job[str])
        await bare.submit()  # type: ignore[call-arg]
        await bare.submit_in(object())  # type: ignore[call-arg]
        await plain(1, True)  # type: ignore[call-arg]

    del use, misspelt, misspelt_too
