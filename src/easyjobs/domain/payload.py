"""How arguments and results become JSON bytes, and the limits of what is read back.

Payloads are opaque from end to end, so what gets in must be readable everywhere: UTF-8, no NaN or Infinity, at most `MAX_DEPTH`
levels. Integers of up to 4,300 digits (Python's own limit for text) round-trip; a number such as 1e400, which no float holds, is
refused. Of duplicate keys the last one counts, as in Python's `json` and so in FastAPI.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pydantic_core

from easyjobs.domain.job import MAX_DEPTH

_fast_encode: Final = msgspec.json.Encoder().encode
_fast_decode: Final = msgspec.json.Decoder().decode
_safe_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class BadJson(ValueError):
    """Bytes that are not JSON as we take it. `type` is pydantic's name for the error; `position` a byte offset, 0 where unknown."""

    def __init__(self, type: str, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.type, self.message, self.position = type, message, position


class NotJson(ValueError):
    """A Python value that JSON cannot carry; the message names the place, as in `$.a[3].b: float nan is not JSON`."""


def decode(raw: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Read JSON. Raises: BadJson."""
    try:
        value = _fast_decode(raw)
    except msgspec.DecodeError as error:
        raise _explain(raw, error) from None
    except UnicodeDecodeError as error:
        raise BadJson("json_invalid", "JSON is not valid UTF-8", error.start) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    # Too short to be deep, or with too few brackets: two scans in C are cheaper than a walk.
    if len(raw) > 2 * max_depth and raw.count(b"[") + raw.count(b"{") > max_depth:
        check_depth(value, max_depth)
    return value


def canonical(value: Any) -> bytes:
    """Write decoded JSON so that equal values have equal bytes: keys sorted, no spaces."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def check_depth(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Refuse decoded JSON of more than `max_depth` nested arrays and objects. Raises: BadJson."""
    if (type(value) is list or type(value) is dict) and not _fits(value, max_depth):
        raise _too_deep(max_depth)


def _fits(value: Any, levels: int) -> bool:
    if levels == 0:
        return False
    for item in value.values() if type(value) is dict else value:
        kind = type(item)
        if (kind is dict or kind is list) and not _fits(item, levels - 1):
            return False
    return True


def _too_deep(max_depth: int) -> BadJson:
    return BadJson("recursion_limit", f"JSON is nested too deeply, the limit is {max_depth} levels")


def _explain(raw: bytes, error: msgspec.DecodeError) -> BadJson:
    text = str(error)
    if "Number out of range" in text:
        return BadJson("finite_number", "Input should be a finite number")
    if "Integer value out of range" in text:
        return BadJson("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size")
    found = re.search(r"\(byte (\d+)\)", text)
    position = int(found[1]) if found else len(raw)
    if re.search(rb"\\u[dD][89a-fA-F]", raw):
        return BadJson("json_invalid", "JSON decode error: malformed, perhaps a lone surrogate, which UTF-8 cannot hold", position)
    return BadJson("json_invalid", "JSON decode error", position)


def encode(value: Any, root: str = "$", max_depth: int = MAX_DEPTH) -> bytes:
    """Write a value as JSON: plain ones as they are, others as FastAPI would (`pydantic_core.to_jsonable_python`).

    So dataclasses, pydantic models (by alias), enums, datetimes, UUIDs, Decimals (as strings), paths, bytes (UTF-8), tuples, sets and
    named tuples (as arrays) are written; keys become strings. NaN, Infinity, lone surrogates, cycles, more than `max_depth` levels
    and objects of unknown kinds are refused.

    Raises: NotJson, which names the place, starting from `root`.
    """
    try:
        if _is_plain(value, max_depth):
            return _fast_encode(value)
        # The standard library's encoder, not msgspec's: that one writes NaN as null, and an enum or a Decimal in its own way.
        raw = _safe_encode(value).encode()
    except (TypeError, ValueError, RecursionError):
        raw = _encode_objects(value, root)
    try:
        decode(raw, max_depth)
    except BadJson as error:
        raise NotJson(f"{root}: {error}") from None
    return raw


def _is_plain(value: Any, levels: int) -> bool:
    """Whether a value is made of nothing but what JSON has, without NaN, in exact types, and not too deep (so not in a circle)."""
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        items = value.values()
    elif kind is list:
        items = value
    else:
        items = (value,)
        levels += 1
    if levels == 0:
        return False
    for item in items:
        kind = type(item)
        if kind is str or kind is int or kind is bool or item is None:
            continue
        if kind is float:
            if item - item != 0.0:  # NaN or infinite
                return False
        elif (kind is not dict and kind is not list) or not _is_plain(item, levels - 1):
            return False
    return True


def encode_plain(value: Any) -> bytes:
    """Write what `decode` gave, fast: no NaN is in it. Raises: NotJson, for integers of more than 4,300 digits."""
    try:
        return _fast_encode(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise NotJson(f"$: {error}") from None


def _encode_objects(value: Any, root: str) -> bytes:
    plain: Any = None
    try:
        plain = pydantic_core.to_jsonable_python(value, inf_nan_mode="constants")
        return _safe_encode(plain).encode()
    except (pydantic_core.PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise NotJson(find_fault(value, root) or find_fault(plain, root) or f"{root}: {error}") from None


def find_fault(value: Any, root: str, _level: int = 0) -> str:
    """Return where and why a value is no JSON, as far as plain containers show it, or ""."""
    if _level > MAX_DEPTH:
        return f"{root}: nested too deeply or in a circle, the limit is {MAX_DEPTH} levels"
    why = _why(value)
    if why:
        return f"{root}: {why}"
    if isinstance(value, Mapping):
        for key, item in value.items():
            why = _why(key)
            if why:
                return f"{root}: key {key!r}: {why}"
            text = str(key)
            found = find_fault(item, f"{root}.{text}" if text.isidentifier() else f"{root}[{text!r}]", _level + 1)
            if found:
                return found
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            found = find_fault(item, f"{root}[{index}]", _level + 1)
            if found:
                return found
    return ""


def _why(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float {value} is not JSON: send None or a string"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"a string with a lone surrogate at {error.start}, which UTF-8 cannot hold"
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 14_000:
        try:
            str(int(value))
        except ValueError:
            return "an integer of more than 4,300 digits"
    elif isinstance(value, bytes | bytearray):
        try:
            value.decode()
        except UnicodeDecodeError as error:
            return f"bytes that are no UTF-8 (at {error.start}): send base64 text"
    elif not _is_known(value):
        return f"{type(value).__module__}.{type(value).__qualname__} cannot be written as JSON: return plain data, a dataclass or a pydantic model"
    return ""


def _is_known(value: Any) -> bool:
    """Whether pydantic can write objects of this type. Containers are looked into by the caller."""
    if value is None or isinstance(value, Mapping | list | tuple | set | frozenset | float | int):
        return True
    try:
        pydantic_core.to_jsonable_python(value)
    except pydantic_core.PydanticSerializationError as error:
        return "Unable to serialize unknown type" not in str(error)
    except (ValueError, TypeError, RecursionError):
        return True  # of a known kind, with a fault inside, which the caller meets again
    return True
