"""Whether a failed attempt is worth another one, and after how long.

The worker judges the exception with this; whether the job's budget still allows a retry is for the store to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from easyjobs.domain.job import UNLIMITED
from easyjobs.errors import RegistrationError

Backoff = Literal["none", "fixed", "linear", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a task's failures are retried.

    Args:
        max_retries: retries after the first attempt; -1 for no end.
        backoff: how the delay grows with the number of failures; "none" retries at once.
        base: seconds before the first retry.
        cap: seconds that no delay exceeds.
        jitter: the part of each delay that is drawn at random, in [0, 1], so that jobs that failed together do not come back together.
        retry_on: only these exceptions are retried.
        give_up_on: these are not, even if `retry_on` names them.
        name: how the policy was written, for people.

    Raises:
        RegistrationError: a value is out of its range.
    """

    max_retries: int = 3
    backoff: Backoff = "exponential"
    base: float = 1.0
    cap: float = 300.0
    jitter: float = 0.5
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.max_retries, bool) or not isinstance(self.max_retries, int) or not UNLIMITED <= self.max_retries <= 1_000_000:
            raise RegistrationError(f"max_retries={self.max_retries!r}: give 0 to 1,000,000, or -1 for no end")
        if self.backoff not in ("none", "fixed", "linear", "exponential"):
            raise RegistrationError(f"backoff={self.backoff!r}: it is one of none, fixed, linear, exponential")
        if not (0 < self.base <= self.cap <= 366 * 86400):
            raise RegistrationError(f"base={self.base!r}, cap={self.cap!r}: seconds, 0 < base <= cap <= a year")
        if not 0 <= self.jitter <= 1:
            raise RegistrationError(f"jitter={self.jitter!r}: it is a part, 0 to 1")
        for what, kinds in (("retry_on", self.retry_on), ("give_up_on", self.give_up_on)):
            if not isinstance(kinds, tuple) or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
                raise RegistrationError(f"{what} is a tuple of exception classes, not {kinds!r}")

    def retries(self, error: BaseException) -> bool:
        """Return whether this exception is one to try again after, whatever the budget."""
        return self.max_retries != 0 and isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def delay(self, failures: int, random: float) -> float:
        """Return how many seconds to wait after the `failures`-th failure of a round (1 = the first one).

        The delay ``d`` is `base`, ``base * failures`` or ``base * 2 ** (failures - 1)``, at most `cap`, or 0 without backoff. The result is
        ``d * (1 - jitter + jitter * random)``.

        Args:
            failures: failed attempts so far, this one included, >= 1.
            random: in [0, 1), drawn by the caller, so that this stays pure.

        Raises:
            ValueError: `failures` < 1.

        Source: "equal jitter" (jitter = 0.5) in "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        if failures < 1:
            raise ValueError(f"failures={failures}: it counts this failure too")
        if self.backoff == "none":
            return 0.0
        growth = {"fixed": 1.0, "linear": float(failures), "exponential": 2.0 ** min(failures - 1, 60)}[self.backoff]
        return min(self.cap, self.base * growth) * (1 - self.jitter + self.jitter * random)


NEVER: Final = RetryPolicy(max_retries=0, backoff="none", name="never")
RETRY_ONCE: Final = RetryPolicy(max_retries=1, backoff="none", name="retry_once")
RETRY_ALWAYS: Final = RetryPolicy(max_retries=UNLIMITED, name="retry_always")
NAMES: Final = {"never": NEVER, "retry_once": RETRY_ONCE, "retry_always": RETRY_ALWAYS, "always": RETRY_ALWAYS}


def parse(value: str | int | RetryPolicy) -> RetryPolicy:
    """Return the policy that a `retry_policy=` argument means: a name of `NAMES`, a number of retries (with backoff), or a policy.

    Raises:
        RegistrationError: anything else; the message lists the names.
    """
    if isinstance(value, RetryPolicy):
        return value
    if isinstance(value, str) and value in NAMES:
        return NAMES[value]
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise RegistrationError(f"retry_policy={value!r}: a number of retries is 0 or more; without an end it is called retry_always")
        return RetryPolicy(max_retries=value, name=f"{value} retries")
    raise RegistrationError(f"retry_policy={value!r} is not known: use {', '.join(NAMES)}, a number of retries, or a RetryPolicy(…)")
