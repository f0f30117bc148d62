"""One function per kind of signature that easyjobs clones. Each returns what it got, so that a test can see the real objects."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, Union
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    number: int = Field(gt=0)


class Person(BaseModel):
    """Somebody."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=20)
    born: dt.date | None = None
    addresses: list[Address] = []


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Options(TypedDict):
    retries: int
    verbose: NotRequired[bool]


class Pair(NamedTuple):
    left: int
    right: str


def untyped(value, other=None):
    return value, other


def anything(value: Any) -> Any:
    return value


def integer(value: int) -> int:
    return value


def number(value: float) -> float:
    return value


def boolean(value: bool) -> bool:
    return value


def text(value: str) -> str:
    return value


def optional(value: Optional[int] = None) -> Optional[int]:  # noqa: UP045
    return value


def union(value: Union[int, str, None]) -> Union[int, str, None]:  # noqa: UP007
    return value


def union_of_models(value: Address | Point) -> Any:
    return value


def tagged(value: Pet) -> Any:
    return value


def defaults(a: int, b: int = 2, c: str = "c", d: tuple[int, ...] = (1,), e: dt.datetime = dt.datetime(2020, 1, 1)) -> tuple[Any, ...]:  # noqa: DTZ001
    return a, b, c, d, e


def enumeration(value: Color, level: Level = Level.LOW) -> Any:
    return value, level


def literal(value: Literal["a", "b", 3]) -> Any:
    return value


def instant(value: dt.datetime) -> Any:
    return value


def day(value: dt.date) -> Any:
    return value


def clock_time(value: dt.time) -> Any:
    return value


def duration(value: dt.timedelta) -> Any:
    return value


def uuid(value: UUID) -> Any:
    return value


def decimal(value: Decimal) -> Any:
    return value


def path(value: Path) -> Any:
    return value


def raw_bytes(value: bytes) -> Any:
    return value


def list_of_ints(value: list[int]) -> Any:
    return value


def list_of_models(value: list[Person]) -> Any:
    return value


def dict_of_models(value: dict[str, Address]) -> Any:
    return value


def bare_containers(a: list, b: dict) -> Any:  # type: ignore[type-arg]
    return a, b


def set_of_text(value: set[str]) -> Any:
    return value


def fixed_tuple(value: tuple[int, str]) -> Any:
    return value


def named_tuple(value: Pair) -> Any:
    return value


def model(value: Person) -> Person:
    """Greet somebody.

    At length.
    """
    return value


def recursive(value: Tree) -> Any:
    return value


def data_class(value: Point) -> Any:
    return value


def typed_dict(value: Options) -> Any:
    return value


def bounded(value: Annotated[int, Field(gt=0, le=10)], name: Annotated[str, Field(pattern="^[a-z]+$", max_length=5)] = "x") -> Any:
    return value, name


def keyword_only(*, value: int, other: str = "x") -> Any:
    return value, other


def positional_only(a: int, b: int = 2, /, c: int = 3) -> Any:
    return a, b, c


def rest(a: int, b: int = 2, *args: dt.date) -> Any:
    return a, b, args


def extra(a: int, **kwargs: UUID) -> Any:
    return a, kwargs


def everything(a: int, /, b: Color, *args: int, c: Point, d: Options | None = None, **kwargs: float) -> Any:
    return a, b, args, c, d, kwargs


def untyped_everything(*args, **kwargs):
    return args, kwargs


async def asynchronous(value: Person) -> list[Person]:
    return [value]


ALL: list[Callable[..., Any]] = [
    untyped, anything, integer, number, boolean, text, optional, union, union_of_models, tagged, defaults, enumeration, literal, instant,
    day, clock_time, duration, uuid, decimal, path, raw_bytes, list_of_ints, list_of_models, dict_of_models, bare_containers, set_of_text,
    fixed_tuple, named_tuple, model, recursive, data_class, typed_dict, bounded, keyword_only, positional_only, rest, extra, everything,
    untyped_everything, asynchronous,
]  # fmt: skip
