"""The API for messages that could not become jobs: see them, replay them, delete them."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Response

from easyjobs.domain.quarantine import KEPT_BYTES, Quarantined, QuarantineQuery
from easyjobs.http import schemas, views
from easyjobs.http.auth import Scope
from easyjobs.http.guard import ProblemRoute, needs
from easyjobs.http.problems import PROBLEM
from easyjobs.http.services import Services

MAX_PAGE: Final = 100

Namespace = Annotated[str | None, Query(description="only from this queue")]
Reason = Annotated[str | None, Query(description="only with this reason")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="at most so many")]
Cursor = Annotated[str | None, Query(pattern=r"^\d{1,18}$", description="`next_cursor` of the page before")]
Id = Annotated[int, Path(ge=1, lt=2**63, description="the message's id, as the list shows it")]

_PROBLEMS: Final = {
    401: "A token is needed",
    403: "Not allowed",
    404: "No such message",
    409: "It still cannot become a job",
    503: "Not now",
}


def _json(value: Any, status: int = 200) -> Response:
    return Response(views.encode(value), status, media_type="application/json")


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: schemas.content(schemas.Problem, _PROBLEMS[code], media_type=PROBLEM) for code in codes}


def _view(kept: Quarantined) -> dict[str, Any]:
    return {
        "id": kept.id,
        "broker": kept.broker,
        "namespace": kept.queue,
        "message_id": kept.key,
        "reason": kept.reason,
        "detail": kept.detail,
        "body": kept.body[:KEPT_BYTES].decode(errors="replace"),
        "size": kept.size,
        "at": views.instant(kept.at),
        "waits_until": views.instant(kept.waits_until),
    }


def quarantine_router(services: Services, path: str) -> APIRouter:
    """Routes below `<path>/api/v1/quarantine`."""
    router = APIRouter(prefix=f"{path}/api/v1/quarantine", tags=["easyjobs"], route_class=ProblemRoute)
    read = [Depends(needs(services.access, Scope.READ))]
    operate = [Depends(needs(services.access, Scope.OPERATE))]
    store, inbox = services.store, services.inbox

    @router.get(
        "",
        summary="Messages that could not become jobs",
        dependencies=read,
        responses={200: schemas.content(schemas.MessagePage, "As asked"), **_problems(401)},
    )
    async def list_messages(namespace: Namespace = None, reason: Reason = None, limit: Limit = 50, cursor: Cursor = None) -> Response:
        query = QuarantineQuery(limit=limit, queue=namespace, reason=reason, before_id=None if cursor is None else int(cursor))
        found = await store.quarantined(query)
        more = str(found[-1].id) if len(found) == limit else None
        return _json({"items": [_view(kept) for kept in found], "next_cursor": more})

    @router.post(
        "/{id}/replay",
        summary="Make jobs of a message",
        dependencies=operate,
        responses={200: schemas.content(schemas.RequestIds, "Queued, and durable"), **_problems(401, 403, 404, 409, 503)},
    )
    async def replay_message(id: Id) -> Response:
        """As if it came now. It leaves the quarantine; a replay that is repeated makes no second job."""
        return _json({"request_ids": await inbox.replay(id)})

    @router.delete("/{id}", status_code=204, summary="Forget a message", dependencies=operate, responses=_problems(401, 403, 404, 503))
    async def delete_message(id: Id) -> Response:
        await inbox.delete(id)
        return Response(status_code=204)

    return router
