"""When a cron expression fires in a time zone.

Instants are integers of microseconds since 1970 (UTC); ticks lie on whole seconds. The fields are read by `cronsim`, as Debian's cron
reads them; it also walks through the calendar, on a clock without a zone. What a local time means in a zone is decided here:

* A schedule of fixed hours (its hour field does not begin with `*`: `30 2 * * *`, `*/5 9-17 * * *`) fires once for each local time of
  its own. Local times that are skipped when clocks go forward fire together, once, at the first valid instant after the gap. Local
  times that come twice when clocks go back fire the first time only.
* A schedule of every hour (its hour field begins with `*`: `*/5 * * * *`, `0 */2 * * *`) follows the time that passes: it fires at each
  instant whose local time fits. So nothing is made up for in a gap, and a repeated hour fires both times.

`cronsim` by itself does so too, but only for five fields, and only where neither minute nor hour begin with `*`; else `*/5 2 * * *`
would be left out on one night, and run twice as often on another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from easyjobs.errors import RegistrationError

SECOND: Final = 1_000_000
MAX_EXPRESSION: Final = 200  # characters
MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 (a local clock's, of any zone)
_DAY_S: Final = 86_400
_ONE_STEP: Final = re.compile(r"\b(\w+)-\1/\d+")  # 5-5/2 is 5; cronsim takes it for 5/2, which goes on to the field's end
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+/-]{0,63}")


class Cron:
    """A cron expression in a zone.

    Args:
        expression: five fields (minute, hour, day of month, month, day of week), six with seconds in front, or `@hourly` and the like.
            Day of month takes `L` and `LW` (the last day, the last weekday), day of week `5L` and `5#2` (the last, the second Friday).
            If both days are given, either will do, unless one begins with `*`.
        timezone: an IANA name, such as `Europe/Berlin`.

    Raises:
        RegistrationError: the expression or the zone is none, or the expression never fires. It names what was given.
    """

    __slots__ = ("_fields", "_is_hourly", "_zone", "expression", "timezone")

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        self.expression, self.timezone = " ".join(expression.split()), timezone
        self._zone = zone_of(timezone)
        if len(expression) > MAX_EXPRESSION:
            raise RegistrationError(f"schedule={expression[:40] + '…'!r}: an expression has at most {MAX_EXPRESSION} characters")
        if self.expression.startswith("@"):
            fields = MACROS.get(self.expression.lower())
            if fields is None:
                raise RegistrationError(f"schedule={expression!r}: no such name; there are {', '.join(MACROS)}")
        else:
            fields = self.expression
        fields = _ONE_STEP.sub(r"\1", fields)
        self._fields = fields if len(fields.split()) == 6 else f"0 {fields}"
        try:
            CronSim(fields, _EPOCH)
        except CronSimError as why:
            raise RegistrationError(
                f"schedule={expression!r}: {str(why)[0].lower()}{str(why)[1:]}; write five fields, minute hour day month weekday, such as "
                "'*/5 * * * *', or six, with seconds in front"
            ) from why
        self._is_hourly = self._fields.split()[2].startswith("*")
        if self._local_after(0) is None:
            raise RegistrationError(f"schedule={expression!r}: it never fires, as there is no such day")

    def next(self, after: int) -> int | None:
        """The first tick later than `after`; None if there is none within 50 years."""
        at = after // SECOND
        tick = self._next_hourly(at) if self._is_hourly else self._next_fixed(at)
        return None if tick is None else tick * SECOND

    def ticks(self, after: int, until: int) -> Iterator[int]:
        """The ticks later than `after`, up to and including `until`."""
        tick = self.next(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.next(tick)

    def latest(self, after: int, until: int) -> int | None:
        """The last of `ticks(after, until)`. Its cost does not grow with their number."""
        found = self.next(after)
        if found is None or found > until:
            return None
        beyond = until  # no tick in (beyond, until]
        while beyond - found >= SECOND:
            middle = found + (beyond - found) // 2
            tick = self.next(middle)
            if tick is None or tick > until:
                beyond = middle
            else:
                found = tick
        return found

    # --- in seconds -------------------------------------------------------------------------------------------------------------

    def _next_fixed(self, at: int) -> int | None:
        # `_instant` never goes back: a later local time is no earlier instant. So the search may begin at the local time of `at`.
        local = self._local_after(at + self._offset(at))
        while local is not None:
            tick = self._instant(local)
            if tick > at:
                return tick
            local = self._local_after(local)  # in a repeated hour, the second time
        return None

    def _instant(self, local: int) -> int:
        """When a local clock shows `local` for the first time; if it skips it, when the gap is over."""
        clock = _EPOCH + timedelta(seconds=local)
        before = _seconds(clock.replace(tzinfo=self._zone))
        if self._offset(local - before) == before:
            return local - before
        after = _seconds(clock.replace(tzinfo=self._zone, fold=1))  # in a gap the two are swapped: PEP 495
        change = self._change(local - after, local - before)
        return local - before if change is None else change

    def _next_hourly(self, at: int) -> int | None:
        start = at + 1
        while True:
            offset = self._offset(start)
            local = self._local_after(start + offset - 1)
            if local is None:
                return None
            change = self._change(start, local - offset)
            if change is None:
                return local - offset
            start = change

    def _change(self, start: int, until: int) -> int | None:
        """The first second in (start, until] at which the zone has another offset than at `start`."""
        offset, same = self._offset(start), start
        while same < until and self._zone is not UTC:
            other = min(same + _DAY_S, until)
            if self._offset(other) == offset:
                same = other
                continue
            while other - same > 1:
                middle = (same + other) // 2
                if self._offset(middle) == offset:
                    same = middle
                else:
                    other = middle
            return other
        return None

    def _offset(self, at: int) -> int:
        return 0 if self._zone is UTC else _seconds(datetime.fromtimestamp(at, self._zone))

    def _local_after(self, local: int) -> int | None:
        """The first time later than `local` that the fields name, on a clock without a zone."""
        try:
            found = next(CronSim(self._fields, _EPOCH + timedelta(seconds=local)))
        except (StopIteration, OverflowError):
            return None
        return (found - _EPOCH) // timedelta(seconds=1)


def zone_of(name: str) -> tzinfo:
    """The zone of an IANA name. Raises: RegistrationError."""
    if name == "UTC":
        return UTC
    if isinstance(name, str) and _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    raise RegistrationError(f"timezone={name!r} is no time zone that this machine knows: write an IANA name, such as 'Europe/Berlin'")


def _seconds(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None
    return offset // timedelta(seconds=1)
