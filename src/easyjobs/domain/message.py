"""What a job looks like in JSON, as producers send it.

One job is `{"namespace": …, "name": …, "args": […], "kwargs": {…}}`; all but the name may be left out. The same may be wrapped, as
`{"job": {…}}`. A body is one job, an array of them (`parse`), or one job per line (`parse_lines`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from easyjobs.domain import payload
from easyjobs.domain.complaints import Loc, shorten
from easyjobs.domain.job import MAX_BULK_BYTES, MAX_BULK_JOBS, MAX_DEPTH
from easyjobs.errors import InvalidArguments, PayloadTooLarge

MAX_NAME: Final = 200  # characters
OPTIONS: Final = frozenset({"key", "delay", "at", "priority", "reply_to", "id"})
"""Fields that a job may have besides; they are passed on as they are, for the caller to check."""

_FIELDS: Final = frozenset({"namespace", "name", "args", "kwargs"})
_TASK: Final = "job"  # what errors call it while the task is not known


class Call(msgspec.Struct, frozen=True):
    """One job to be. `queue` is None where the message names none; `args` and `kwargs` are JSON values."""

    queue: str | None
    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any] = {}


class _Job(msgspec.Struct, forbid_unknown_fields=True):
    """The plain format, which msgspec checks in one go."""

    name: str
    namespace: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


_fast: Final = msgspec.json.Decoder(list[_Job])


def parse(raw: object) -> list[Call]:
    """Read one job or an array of them, from bytes or from decoded JSON.

    Raises:
        InvalidArguments: what is wrong and where: `loc` is `("body", index, field)` in an array, `("body", field)` for a single job.
        PayloadTooLarge: more than `MAX_BULK_BYTES`.
    """
    if isinstance(raw, bytes | bytearray | memoryview):
        data = bytes(raw)
        _check_size(data)
        if data[:1] == b"[":
            calls = _parse_plain(data)
            if calls is not None:
                return calls
        raw = _decode(data, ("body",), MAX_DEPTH + 3)  # an array, a wrapper and a job around the arguments
    if not isinstance(raw, list):
        return [_call(raw, ("body",))]
    _check_count(len(raw))
    return [_call(item, ("body", index)) for index, item in enumerate(raw)]


def parse_lines(raw: bytes) -> list[Call]:
    """Read one job per line (NDJSON); blank lines are skipped. `loc` is `("body", line)`, counted from 0. Raises: as `parse`."""
    _check_size(raw)
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n")) if line.strip()]
    _check_count(len(lines))
    return [_call(_decode(line, ("body", number), MAX_DEPTH + 2), ("body", number)) for number, line in lines]


def _parse_plain(data: bytes) -> list[Call] | None:
    """Read an array of plain jobs fast; None if it is not one, or something is wrong with it: then the slow way says what."""
    try:
        jobs = _fast.decode(data)
        for job in jobs:
            payload.check_depth(job.args)
            payload.check_depth(job.kwargs)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not 0 < len(jobs) <= MAX_BULK_JOBS or any(not 0 < len(job.name) <= MAX_NAME or _bad_queue(job.namespace) for job in jobs):
        return None
    return [Call(job.namespace, job.name, job.args, job.kwargs) for job in jobs]


def _call(item: Any, loc: Loc) -> Call:
    if not isinstance(item, dict):
        raise _error("dict_type", loc, "Input should be a valid dictionary", item)
    queue = None
    if "job" in item:
        for field in item:
            if field not in ("job", "namespace"):
                raise _error("extra_forbidden", (*loc, field), "Extra inputs are not permitted beside 'job'", item[field])
        queue, loc, item = item.get("namespace"), (*loc, "job"), item["job"]
        if not isinstance(item, dict):
            raise _error("dict_type", loc, "Input should be a valid dictionary", item)
    errors = [
        _entry("extra_forbidden", (*loc, field), "Extra inputs are not permitted", item[field])
        for field in item
        if field not in _FIELDS and field not in OPTIONS
    ]
    queue = item.get("namespace", queue)
    name, args, kwargs = item.get("name"), item.get("args"), item.get("kwargs")
    if "name" not in item:
        errors.append(_entry("missing", (*loc, "name"), "Field required", item))
    elif not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        errors.append(_entry("string_type", (*loc, "name"), f"Input should be a valid string of 1 to {MAX_NAME} characters", name))
    if queue is not None and (not isinstance(queue, str) or _bad_queue(queue)):
        errors.append(_entry("string_type", (*loc, "namespace"), f"Input should be a valid string of 1 to {MAX_NAME} characters", queue))
    if args is not None and not isinstance(args, list):
        errors.append(_entry("list_type", (*loc, "args"), "Input should be a valid list", args))
    if kwargs is not None and not isinstance(kwargs, dict):
        errors.append(_entry("dict_type", (*loc, "kwargs"), "Input should be a valid dictionary", kwargs))
    if errors:
        raise InvalidArguments(_TASK, errors)
    options = {field: item[field] for field in item if field in OPTIONS}
    return Call(queue, str(name), args or [], kwargs or {}, options)


def _bad_queue(queue: str | None) -> bool:
    return queue is not None and not 0 < len(queue) <= MAX_NAME


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_BULK_BYTES:
        raise PayloadTooLarge("the body", len(raw), MAX_BULK_BYTES)


def _check_count(count: int) -> None:
    if count == 0:
        raise _error("too_short", ("body",), "List should have at least 1 item after validation, not 0", [])
    if count > MAX_BULK_JOBS:
        raise _error("too_long", ("body",), f"List should have at most {MAX_BULK_JOBS} items after validation, not {count}", None)


def _decode(raw: bytes, loc: Loc, max_depth: int) -> Any:
    try:
        return payload.decode(raw, max_depth)
    except payload.BadJson as error:
        where = (*loc, error.position) if error.type == "json_invalid" else loc
        raise InvalidArguments(_TASK, [{**_entry(error.type, where, error.message, {}), "ctx": {"error": error.message}}]) from None


def _entry(type: str, loc: Loc, message: str, value: Any) -> dict[str, Any]:
    return {"type": type, "loc": loc, "msg": message, "input": shorten(value)}


def _error(type: str, loc: Loc, message: str, value: Any) -> InvalidArguments:
    return InvalidArguments(_TASK, [_entry(type, loc, message, value)])
