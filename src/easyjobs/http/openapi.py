"""How tasks get into the app's OpenAPI: one operation each, made from the cloned signature.

The app's own document is taken as it is (the user's `app.openapi`, if there is one, is asked first), and our operations are put in
where our submit route stands in it: so they are right below any prefix, and gone where the route is not reachable. An operation is
made once per task and version of it; the merged document once per version of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi.openapi.utils import validation_error_definition, validation_error_response_definition

from easyjobs.http import schemas
from easyjobs.http.guard import SCHEME, SCHEME_TEXT
from easyjobs.http.problems import PROBLEM
from easyjobs.http.showable import showable
from easyjobs.services.catalogue import Catalogue, CatalogueTask

MARK: Final = "x-easyjobs-submit"  # on our submit routes' operations, which the tasks' operations replace
LONG, SHORT = "/{namespace}/task/{name}", "/task/{name}"

Document = dict[str, Any]

_MAPS: Final = frozenset({"properties", "patternProperties", "$defs", "dependentSchemas"})
_DATA: Final = frozenset({"default", "const", "enum", "examples", "example"})
_DEFS: Final = "#/$defs/"


# What every task's operation may answer, and takes in headers, stands in the document once: it may have thousands of tasks.
_REPLY_HEADERS: Final = {
    "Location": {"description": "where the job can be looked at", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "for how long it was waited, with `Prefer`", "schema": {"type": "string"}},
}
_COMMON_RESPONSES: Final[dict[str, Document]] = {
    "200": {
        "description": "Queued, and durable; with `Prefer: wait=…`, ended",
        "headers": _REPLY_HEADERS,
        "content": {"application/json": {"schema": {"anyOf": [{"$ref": schemas.REF + "RequestId"}, {"$ref": schemas.REF + "Ended"}]}}},
    },
    "202": {**schemas.content(schemas.Pending, "Queued, and durable; not ended as long as was waited"), "headers": _REPLY_HEADERS},
    "422": {
        "description": "The arguments do not fit, or the Idempotency-Key was used with another body: nothing is queued",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/HTTPValidationError"}},
            PROBLEM: {"schema": {"$ref": schemas.REF + "Problem"}},
        },
    },
    **{str(code): response for code, response in schemas.problems(schemas.SUBMIT_PROBLEMS, *schemas.SUBMIT_PROBLEMS).items()},
}
_COMMON_PARAMETERS: Final = {parameter["name"].replace("-", ""): parameter for parameter in (schemas.PREFER, schemas.KEY)}
_RESPONSES: Final = {code: {"$ref": f"#/components/responses/{schemas.PREFIX}{code}"} for code in sorted(_COMMON_RESPONSES)}
_PARAMETERS: Final = [{"$ref": f"#/components/parameters/{schemas.PREFIX}{name}"} for name in _COMMON_PARAMETERS]


class Fragment:
    """What one task adds to the document: its operation below any prefix, and the definitions that it refers to."""

    __slots__ = ("definitions", "operation", "path")

    def __init__(self, task: CatalogueTask) -> None:
        signature = task.signature
        self.path = f"/{task.queue}/task/{task.name}"
        self.definitions: Document = {}
        arguments = self._take_definitions(showable(signature.arguments), f"{task.queue}.{task.name}.")
        operation: Document = {
            "tags": [task.queue],
            "summary": signature.summary or task.name,
            "operationId": f"{task.queue}.{task.name}",  # a task's name has no dot: so no two are equal
            "parameters": _PARAMETERS,
            "responses": _RESPONSES,
            "security": [{SCHEME: []}],
        }
        rest = signature.doc.removeprefix(signature.summary).strip()
        if rest:
            operation["description"] = rest
        if signature.parameters:
            is_required = bool(arguments.get("required"))
            operation["requestBody"] = {"required": is_required, "content": {"application/json": {"schema": arguments}}}
        if signature.returns is not None:
            operation["x-easyjobs-returns"] = self._take_definitions(showable(signature.returns), f"{task.queue}.{task.name}.returns.")
        self.operation = operation

    def _take_definitions(self, schema: Mapping[str, Any], prefix: str) -> Document:
        """The schema without its `$defs`, which become components whose names no other task has."""
        names = {name: prefix + name for name in schema.get("$defs", {})}
        for name, definition in schema.get("$defs", {}).items():
            self.definitions[names[name]] = point_to_components(definition, prefix)
        moved: Document = point_to_components({key: value for key, value in schema.items() if key != "$defs"}, prefix)
        return moved


def point_to_components(schema: Any, prefix: str) -> Any:
    """A copy of a schema whose references to its own `$defs` point to components, named with `prefix`. Data in it stays as it is."""
    if isinstance(schema, list):
        return [point_to_components(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy: Document = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            copy[key] = _pointer(value, prefix)
        elif key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
            copy[key] = {**value, "mapping": {word: _pointer(ref, prefix) for word, ref in value["mapping"].items()}}
        elif key in _DATA:
            copy[key] = value
        elif key in _MAPS and isinstance(value, dict):
            copy[key] = {name: point_to_components(item, prefix) for name, item in value.items()}
        else:
            copy[key] = point_to_components(value, prefix)
    return copy


def _pointer(ref: Any, prefix: str) -> Any:
    return f"#/components/schemas/{prefix}{ref.removeprefix(_DEFS)}" if isinstance(ref, str) and ref.startswith(_DEFS) else ref


class OpenApi:
    """Takes the place of `app.openapi`. `inner` is what was there before."""

    def __init__(self, inner: Callable[[], Document], catalogue: Catalogue) -> None:
        self.inner = inner
        self._catalogue = catalogue
        self._fragments: dict[int, tuple[CatalogueTask, Fragment]] = {}
        self._base: Document | None = None
        self._version = -1
        self._merged: Document = {}
        self._is_closed = False

    def close(self) -> None:
        """Show no tasks any more: only what the app itself has."""
        self._is_closed = True

    def __call__(self) -> Document:
        """The app's document with all tasks that are visible now."""
        base, version = self.inner(), self._catalogue.version
        if self._is_closed:
            return base
        if base is not self._base or version != self._version:
            self._merged = self._merge(base)
            self._base, self._version = base, version
        return self._merged

    def _fragment(self, task: CatalogueTask) -> Fragment:
        known = self._fragments.get(task.lane)
        if known is None or known[0] is not task:
            known = self._fragments[task.lane] = (task, Fragment(task))
        return known[1]

    def _merge(self, base: Document) -> Document:
        fragments = [self._fragment(task) for task in self._catalogue.visible()]
        components = dict(base.get("components", {}))
        models = dict(components.get("schemas", {}))
        paths: Document = {}
        for path, item in base.get("paths", {}).items():
            marked = item.get("post", {}).get(MARK) if isinstance(item, dict) else None
            if marked is None:
                paths[path] = item
            elif marked == LONG:
                prefix = path.removesuffix(LONG)
                for fragment in fragments:
                    operation = fragment.operation
                    if prefix:
                        operation = {**operation, "operationId": f"{prefix.strip('/').replace('/', '.')}.{operation['operationId']}"}
                    paths[prefix + fragment.path] = {**paths.get(prefix + fragment.path, {}), "post": operation}
        for fragment in fragments:
            models.update(fragment.definitions)
        models.setdefault("HTTPValidationError", validation_error_response_definition)
        models.setdefault("ValidationError", validation_error_definition)
        models |= schemas.components()
        components["schemas"] = models
        for kind, common in (("responses", _COMMON_RESPONSES), ("parameters", _COMMON_PARAMETERS)):
            components[kind] = components.get(kind, {}) | {schemas.PREFIX + name: one for name, one in common.items()}
        components["securitySchemes"] = components.get("securitySchemes", {}) | {SCHEME: _SCHEME}
        return {**base, "paths": paths, "components": components}


_SCHEME: Final = {"type": "http", "scheme": "bearer", "description": SCHEME_TEXT}
