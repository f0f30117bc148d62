"""What of a stranger's schema a page can show without being kept busy by it.

A page writes references out and makes up an example, so a schema that is small and quickly validated may be endless work for it: definitions that
each refer twice to the next one are 2^n parts, `minItems: 1000000000` is an example of that length, and so is `((a*)*)*`. A browser's tab does not
come back from that. Nothing of it makes the manager slow, so the task is taken, and validated as it says; only the document shows less.
`/jobs/api/v1/tasks` has the schema whole.

A schema whose parts and example stay below `BUDGET`, as nearly all do, is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from easyjobs.domain import payload
from easyjobs.domain.signature import LISTS, MAPS, ONES

BUDGET: Final = 2000  # parts; Swagger UI needs some milliseconds for each
MAX_RECURSION: Final = 200  # references and parts within one another
BYTES_PER_PART: Final = 100  # of texts, defaults, examples and the like
EXAMPLE_PER_PART: Final = 100  # characters of an example
STAR: Final = 100  # times that an example repeats what has no limit
TOO_LARGE: Final = {"description": "Too large to be shown here. It is validated all the same."}

_DEFINITION: Final = "#/$defs/"
_OURS: Final = frozenset({"$ref", "$defs", "$comment"})
_LENGTHS: Final = frozenset({"minItems", "minContains", "minProperties", "minLength", "pattern"})
_QUANTIFIER: Final = re.compile(r"([*+?]|\{(\d+)(,(\d*))?\})[?+]?")

Schema = Mapping[str, Any]


class _TooLarge(Exception):
    pass


def showable(schema: Schema) -> dict[str, Any]:
    """A copy that a page can show. `schema` has passed `signature.check_schema`; its `$defs` are those that are still referred to."""
    definitions: Schema = schema.get("$defs", {})
    for without in (frozenset[str](), _LENGTHS):
        names = {name: _clean(definition, definitions, without) for name, definition in definitions.items()}
        root = _clean({key: value for key, value in schema.items() if key != "$defs"}, definitions, without)
        if _fits(root, names, BUDGET):
            return _with_definitions(root, names)
    properties = root.get("properties", {})
    if root.get("type") != "object" or not properties:
        return dict(TOO_LARGE)
    share = BUDGET // len(properties)
    shown = {name: each if _fits(each, names, share) else dict(TOO_LARGE) for name, each in properties.items()}
    root = {key: root[key] for key in ("type", "title", "required") if key in root} | {
        "properties": shown,
        "additionalProperties": root.get("additionalProperties") is not False,
    }
    return _with_definitions(root, names)


def _with_definitions(root: dict[str, Any], definitions: Schema) -> dict[str, Any]:
    used: set[str] = set()
    todo = [root]
    while todo:
        for name in _references(todo.pop()):
            if name not in used:
                used.add(name)
                todo.append(definitions[name])
    return {**root, "$defs": {name: definitions[name] for name in definitions if name in used}} if used else root


def _references(node: Any) -> list[str]:
    if not isinstance(node, Mapping):
        return []
    found = [node["$ref"].removeprefix(_DEFINITION)] if "$ref" in node else []
    mapping = node.get("discriminator", {}).get("mapping", {})
    found += [target.removeprefix(_DEFINITION) for target in mapping.values()]
    for child in _children(node):
        found += _references(child)
    return found


def _children(node: Schema) -> list[Any]:
    found: list[Any] = []
    for key in node.keys() & MAPS:
        found += node[key].values()
    for key in node.keys() & LISTS:
        found += node[key]
    found += [node[key] for key in node.keys() & ONES]
    return found


def _clean(node: Any, definitions: Collection[str], without: Collection[str]) -> Any:
    """A copy without the keywords in `without`, and without what a page takes for its own or for a pattern."""
    if not isinstance(node, Mapping):
        return node
    copy: dict[str, Any] = {}
    for key, value in node.items():
        if key in without or (key.startswith("$") and key not in _OURS):
            continue
        if key == "discriminator":  # Swagger UI searches by what the mapping has, as a pattern
            if not isinstance(value, Mapping) or not isinstance(value.get("propertyName"), str):
                continue
            mapping = value.get("mapping")
            targets = {_DEFINITION + name for name in definitions}
            kept = (
                {word: to for word, to in mapping.items() if isinstance(to, str) and to in targets} if isinstance(mapping, Mapping) else {}
            )
            copy[key] = {"propertyName": value["propertyName"]} | ({"mapping": kept} if kept else {})
        elif key in MAPS:
            copy[key] = {name: _clean(child, definitions, without) for name, child in value.items()}
        elif key in LISTS:
            copy[key] = [_clean(child, definitions, without) for child in value]
        elif key in ONES:
            copy[key] = _clean(value, definitions, without)
        else:
            copy[key] = value
    return copy


# --- what a page would do -------------------------------------------------------------------------------------------------------


def _fits(root: Any, definitions: Schema, budget: int) -> bool:
    """Whether a page that writes all of it out, up to where it comes back to itself, is done after `budget` parts."""
    sizes: dict[int, int] = {}
    left = budget
    open_names: set[str] = set()

    def visit(node: Any, times: int, depth: int) -> None:
        nonlocal left
        if not isinstance(node, Mapping):
            left -= times
        else:
            if id(node) not in sizes:
                sizes[id(node)] = _own_size(node)
            left -= times * sizes[id(node)]
        if left < 0 or depth > MAX_RECURSION:
            raise _TooLarge
        if not isinstance(node, Mapping):
            return
        name = node["$ref"].removeprefix(_DEFINITION) if "$ref" in node else None
        if name is not None and name not in open_names:
            open_names.add(name)
            visit(definitions[name], times, depth + 1)
            open_names.discard(name)
        within = times * max(1, *(_count(node, key) for key in ("minItems", "minContains", "minProperties")))
        for child in _children(node):
            visit(child, within, depth + 1)

    try:
        visit(root, 1, 0)
    except _TooLarge:
        return False
    return True


def _own_size(node: Schema) -> int:
    data = {key: value for key, value in node.items() if key not in MAPS | LISTS | ONES}
    size = 1 + len(payload.encode_plain(data)) // BYTES_PER_PART
    size += sum(_count(node, key) for key in ("minItems", "minContains", "minProperties")) // BYTES_PER_PART
    example = _count(node, "minLength")
    if isinstance(node.get("pattern"), str):
        example += longest_example(node["pattern"])
    return size + example // EXAMPLE_PER_PART


def _count(node: Schema, key: str) -> int:
    value = node.get(key)
    return int(value) if isinstance(value, int | float) and value > 0 else 0  # 10.0 is an integer in JSON Schema


def longest_example(pattern: str) -> int:
    """About how many characters a text can have that is made up to match a pattern, if `*` is at most `STAR` times. Never too few."""
    groups = [[0, 0]]  # of each open group: the length of what it has so far, of its last piece
    at = 0
    while at < len(pattern):
        char = pattern[at]
        quantifier = _QUANTIFIER.match(pattern, at)
        if quantifier is not None and groups[-1][1]:
            groups[-1][0] += groups[-1][1] * (_times(quantifier) - 1) if _times(quantifier) > 1 else 0
            groups[-1][1] *= max(1, _times(quantifier))
            at = quantifier.end()
            continue
        piece = 1
        if char == "\\":
            at += 1
        elif char == "[":
            at = _end_of_class(pattern, at)
        elif char == "(":
            groups.append([0, 0])
            at += 1
            continue
        elif char == ")" and len(groups) > 1:
            piece = max(1, groups.pop()[0])
        groups[-1][0] += piece
        groups[-1][1] = piece
        at += 1
    return sum(total for total, _ in groups)


def _times(quantifier: re.Match[str]) -> int:
    least, has_comma, most = quantifier[2], quantifier[3], quantifier[4]
    if least is None:
        return 1 if quantifier[1] == "?" else STAR
    if has_comma and not most:
        return int(least) + STAR
    return int(most or least)


def _end_of_class(pattern: str, at: int) -> int:
    at += 2 if pattern[at + 1 : at + 2] in ("]", "^") else 1
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at
