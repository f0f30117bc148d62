"""Registering tasks, and calling them through whatever carries the call."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from easyjobs.domain.retry import RetryPolicy
from easyjobs.errors import JobCancelled, JobExpired, JobFailed, RegistrationError, ResultRemoved, UnknownJob
from easyjobs.protocol.messages import SubmitItem, SubmitOptions, WatchedResult
from easyjobs.tasks import JobContext, Registry, Task, TaskMaker, TaskOptions


class Maker(TaskMaker):
    """A facade, and the caller behind it: it remembers what is submitted, and every job ends as `end` says."""

    def __init__(self) -> None:
        self.submitted: list[tuple[SubmitItem, SubmitOptions | None]] = []
        self.registered: list[Task[..., Any]] = []
        self.end: tuple[int, bytes] = (2, b"null")
        self._registry = Registry(self, self.registered.append)

    def _queues(self, namespace: str | Sequence[str] | None) -> Sequence[str]:
        return ("DEFAULT",) if namespace is None else (namespace,) if isinstance(namespace, str) else namespace

    async def submit(self, items: Sequence[SubmitItem], options: SubmitOptions | None) -> Sequence[bytes]:
        self.submitted += [(item, options) for item in items]
        return [item.id for item in items]

    async def control(self, verb: str, ids: Sequence[bytes]) -> Sequence[tuple[bool, int]]:
        raise NotImplementedError

    async def result(self, id: bytes, timeout: float | None) -> WatchedResult:
        return WatchedResult(id, *self.end)


def names(maker: Maker) -> list[tuple[str, str]]:
    return [(task.queue, task.name) for task in maker.registered]


def test_all_forms_of_the_decorator_register_the_function() -> None:
    maker = Maker()

    @maker.task
    def bare() -> None: ...

    @maker.task()
    def called() -> None: ...

    @maker.task(retry_policy="never")
    def with_options() -> None: ...

    maker.task(lambda: None, name="given")
    assert names(maker) == [("DEFAULT", name) for name in ("bare", "called", "with_options", "given")]


def test_stacked_decorators_and_lists_put_one_function_into_several_queues() -> None:
    maker = Maker()

    @maker.task(namespace="outer")
    @maker.task(namespace=["a", "b"])
    def work() -> str:
        return "plain"

    assert names(maker) == [("a", "work"), ("b", "work"), ("outer", "work")]
    assert work.fn() == "plain"
    assert work.queue == "outer"


def test_a_second_task_of_the_same_name_is_refused_and_nothing_of_it_registered() -> None:
    maker = Maker()
    maker.task(lambda: 1, name="work", namespace="a")
    with pytest.raises(RegistrationError, match="queue 'a' has a task 'work' already"):
        maker.task(lambda: 2, name="work", namespace=["b", "a"])
    assert names(maker) == [("a", "work")]


@pytest.mark.parametrize("name", ["has space", "1st", "", "x" * 65, "größe", "a/b", "a-b"])
def test_names_that_do_not_fit_into_a_path_are_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match=r"name|lambda"):
        Maker().task(lambda: 1, name=name)


@pytest.mark.parametrize("namespace", ["", "a b", "ü", "x" * 65, [], ["ok", ""]])
def test_namespaces_that_do_not_fit_into_a_path_are_refused(namespace: Any) -> None:
    with pytest.raises(RegistrationError):
        Maker().task(lambda: 1, name="work", namespace=namespace)


def test_a_lambda_without_a_name_a_generator_and_what_is_no_function_are_refused() -> None:
    with pytest.raises(RegistrationError, match="pass name="):
        Maker().task(lambda: 1)
    with pytest.raises(RegistrationError, match="generator"):

        @Maker().task()
        def numbers() -> Any:
            yield 1

    with pytest.raises(RegistrationError, match="no function"):
        Maker().task(5)  # type: ignore[call-overload]


def test_options_may_be_given_as_not_used() -> None:
    maker = Maker()
    maker.task(lambda: 1, name="work", timeout=None, subprocess=False, schedule=None, timezone=None)
    assert names(maker) == [("DEFAULT", "work")]


@pytest.mark.parametrize(
    "options",
    [
        {"retry_policy": "twice"},
        {"max_crashes": 0},
        {"max_crashes": True},
        {"priority": "high"},
        {"priority": 10**7},
        {"on_failure": "no name"},
        {"on_failure": 5},
        {"on_failure": ["a", "b"]},
        {"run_before": "no name"},
        {"unique": "yes"},
        {"expires": -1},
        {"result_ttl": "soon"},
        {"max_chain_depth": 0},
        {"run_after": ["ok", "q/"]},
        {"retries": 5},
        {"timeout": 0},
        {"timeout": -1.5},
        {"timeout": True},
        {"timeout": "10s"},
        {"timeout": float("nan")},
        {"timeout": timedelta(days=400)},
        {"subprocess": 1},
        {"max_memory": "256MB"},
        {"subprocess": True, "max_memory": "lots"},
        {"subprocess": True, "max_memory": 4096},
        {"subprocess": True, "max_memory": -1},
        {"subprocess": True, "max_memory": 1e9},
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RegistrationError):
        Maker().task(lambda: 1, name="work", **options)


def test_options_are_offered_as_the_manager_reads_them() -> None:
    maker = Maker()
    task: Any = maker.task(
        lambda: 1, name="work", retry_policy=RetryPolicy(max_retries=4), run_after="next", on_failure="q/mail", priority=2, max_crashes=5
    )
    assert msgspec.json.decode(task.task_options.to_json()) == {
        "retry_policy": "4 retries",
        "max_retries": 4,
        "max_crashes": 5,
        "priority": 2,
        "on_failure": "q/mail",
        "run_after": ["next"],
    }


def test_limits_are_offered_where_they_are_given() -> None:
    options = TaskOptions.of({"timeout": timedelta(minutes=2), "subprocess": True, "max_memory": "1.5 GiB"})
    offered = msgspec.json.decode(options.to_json())
    assert (offered["timeout_us"], offered["subprocess"], offered["max_memory"]) == (120_000_000, True, 3 << 29)
    assert TaskOptions.of({"timeout": 0.25}).timeout_us == 250_000
    assert [TaskOptions.of({"subprocess": True, "max_memory": text}).max_memory for text in ("256MB", "256m", 1 << 28, "262144 KB")] == [
        1 << 28
    ] * 4


async def test_a_call_submits_the_arguments_and_returns_the_result_as_annotated() -> None:
    maker = Maker()

    @maker.task()
    async def due(day: date, days: int = 1) -> date:
        return day + timedelta(days)

    maker.end = (2, b'"2026-11-25"')
    assert await due(date(2026, 11, 24), days=1) == date(2026, 11, 25)
    [(item, options)] = maker.submitted
    assert (item.queue, item.name, item.args, options) == ("DEFAULT", "due", b'[["2026-11-24"],{"days":1}]', None)
    assert len(item.id) == 16


async def test_a_priority_of_nought_is_asked_for_too() -> None:
    maker = Maker()
    task = maker.task(lambda: 1, name="work", priority=5)
    await task.options(priority=0).submit()
    await task.options(delay=1).submit()
    assert [None if options is None else options.priority for _, options in maker.submitted] == [0, None]


async def test_options_of_a_call_add_up_and_leave_the_task_as_it_was() -> None:
    maker = Maker()
    task: Any = maker.task(lambda: 1, name="work")
    await task.options(priority=1).options(delay=timedelta(minutes=1)).options(key="k").submit()
    await task.submit()
    assert [options for _, options in maker.submitted] == [SubmitOptions(priority=1, delay_us=60_000_000, key="k"), None]
    for wrong in ({"delay": -1}, {"delay": float("nan")}, {"key": ""}, {"key": "x" * 256}):
        with pytest.raises(ValueError, match=r"delay|key"):
            task.options(**wrong)


@pytest.mark.parametrize(
    ("state", "body", "raised"),
    [
        (3, b'{"type":"ValueError","message":"no","traceback":"tb"}', JobFailed),
        (3, b"", JobFailed),
        (4, b"", JobCancelled),
        (5, b"", JobExpired),
        (-2, b"", ResultRemoved),
        (-1, b"", UnknownJob),
    ],
)
async def test_a_job_that_gave_no_result_raises(state: int, body: bytes, raised: type[Exception]) -> None:
    maker = Maker()
    maker.end = (state, body)
    task: Any = maker.task(lambda: 1, name="work")
    with pytest.raises(raised) as caught:
        await task()
    assert getattr(caught.value, "job_id", "")


@pytest.mark.parametrize("body", [b"null", b"0", b"false", b'"failed"', b"[]"])
async def test_falsy_results_are_results(body: bytes) -> None:
    maker = Maker()
    maker.end = (2, body)
    task: Any = maker.task(lambda: 1, name="work")
    assert await task() == msgspec.json.decode(body)


def test_the_context_is_no_argument_of_the_task() -> None:
    maker = Maker()

    @maker.task()
    async def work(context: JobContext, a: int) -> None: ...

    signature = msgspec.json.decode(work.signature_json)
    assert [parameter["name"] for parameter in signature["parameters"]] == ["a"]


def test_annotations_that_are_text_may_name_what_is_local_to_the_function_around() -> None:
    from pydantic import BaseModel

    maker = Maker()

    class Order(BaseModel):
        number: int

    @maker.task()
    async def ship(order: Order) -> Order:
        return order

    assert "Order" in str(msgspec.json.decode(ship.signature_json))


# --- time -----------------------------------------------------------------------------------------------------------------------


async def test_an_instant_is_submitted_as_it_is_and_takes_the_place_of_a_delay() -> None:
    maker = Maker()
    task = maker.task(lambda: 1, name="work")
    await task.options(at=datetime(2026, 5, 1, 9, 0, tzinfo=ZoneInfo("Europe/Berlin"))).submit()
    await task.options(delay=5).options(at=datetime(2026, 5, 1, 7, 0, 0, 1, tzinfo=UTC)).submit()
    await task.options(at=datetime(2026, 5, 1, 7, 0, tzinfo=UTC)).options(delay=5).submit()
    await task.options(at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))).submit()
    nine = 1_777_618_800_000_000
    expected = [SubmitOptions(run_at=nine), SubmitOptions(run_at=nine + 1), SubmitOptions(delay_us=5_000_000), SubmitOptions(run_at=1)]
    assert [options for _, options in maker.submitted] == expected


@pytest.mark.parametrize("at", [datetime(2026, 5, 1, 9, 0, tzinfo=UTC).replace(tzinfo=None), date(2026, 5, 1), "2026-05-01", 5])
def test_what_is_no_instant_says_what_to_write(at: Any) -> None:
    task = Maker().task(lambda: 1, name="work")
    with pytest.raises(ValueError, match=r"no time zone.*ZoneInfo\('Europe/Berlin'\).*astimezone\(\)"):
        task.options(at=at)
    with pytest.raises(ValueError, match="give one of them"):
        task.options(at=datetime(2026, 5, 1, tzinfo=UTC), delay=5)


def takes(a: int, when: date, *, note: str = "") -> None: ...


def test_a_schedule_is_offered_with_its_arguments_as_json() -> None:
    options: Any = {
        "schedule": ["*/5  9-17 * * 1-5", "@daily"],
        "timezone": "Europe/Berlin",
        "default_args": {"a": 1, "when": date(2026, 5, 1)},
        "catch_up": "all",
        "catch_up_window": timedelta(minutes=5),
        "overlap": "skip",
    }
    offered = msgspec.json.decode(Maker().task(takes, **options).task_options.to_json())
    assert {name: offered[name] for name in offered if name in options or name == "catch_up_window_us"} == {
        "schedule": ["*/5  9-17 * * 1-5", "@daily"],
        "timezone": "Europe/Berlin",
        "default_args": [[], {"a": 1, "when": "2026-05-01"}],
        "catch_up": "all",
        "catch_up_window_us": 300_000_000,
        "overlap": "skip",
    }
    plain = msgspec.json.decode(Maker().task(lambda: 1, name="work", schedule="@daily").task_options.to_json())
    assert (plain["timezone"], plain["catch_up"], plain["overlap"], plain["default_args"]) == ("UTC", "one", "allow", [[], {}])


def test_a_context_parameter_needs_no_default_argument() -> None:
    def with_context(job: JobContext, a: int) -> None: ...

    assert Maker().task(with_context, schedule="@daily", default_args=[1]).task_options.timing is not None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "61 * * * *"}, "task takes: schedule='61 .*bad minute"),
        ({"schedule": 5}, "schedule=5 is no cron expression"),
        ({"schedule": []}, "is no cron expression"),
        ({"schedule": ["@daily", 5]}, "is no cron expression"),
        ({"schedule": True}, "is no cron expression"),
        ({"timezone": "UTC"}, "timezone='UTC' without a schedule"),
        ({"schedule": "@daily"}, r"task takes: default_args do not fit the task: .*Field required"),
        ({"schedule": "@daily", "default_args": [1, "yesterday"]}, "default_args do not fit"),
        ({"schedule": "@daily", "default_args": {"a": 1, "when": "2026-05-01", "c": 1}}, "default_args do not fit"),
        ({"schedule": "@daily", "default_args": [1, "2026-05-01", "x"]}, "default_args do not fit"),
        ({"schedule": "@daily", "default_args": 1}, "default_args=1: give a dict of keyword arguments or a list"),
        ({"schedule": "@daily", "default_args": "ab"}, "default_args='ab': give a dict"),
        ({"schedule": "@daily", "default_args": [float("nan")]}, r"default_args: args\[0\]: .*nan"),
        ({"schedule": "@daily", "timezone": "Berlin"}, "timezone='Berlin' is no time zone"),
        ({"schedule": "@daily", "catch_up": "some"}, "catch_up='some': known are one, all, skip"),
        ({"schedule": "@daily", "overlap": "queue"}, "overlap='queue': known are allow, skip"),
        ({"schedule": "@daily", "catch_up_window": -1}, "catch_up_window=-1: seconds, or a timedelta"),
        ({"schedule": "@daily", "catch_up_window": "1h"}, "catch_up_window='1h': seconds"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_an_error_at_registration(options: dict[str, Any], says: str) -> None:
    maker = Maker()
    with pytest.raises(RegistrationError, match=says):
        maker.task(takes, **options)
    assert not maker.registered
