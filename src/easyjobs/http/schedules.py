"""The API for schedules: see them, pause and resume them, run one now. What they are is said by the tasks' code, and only there."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from easyjobs.http import reach, schemas, views
from easyjobs.http.auth import Caller, Scope
from easyjobs.http.guard import ProblemRoute, needs
from easyjobs.http.services import Services

Namespace = Annotated[str | None, Query(description="only of this queue")]
Name = Annotated[str | None, Query(description="only of this task")]
Id = Annotated[int, Path(ge=1, lt=2**63, description="the schedule's id, as the list shows it")]

_PROBLEMS: Final = {401: "A token is needed", 403: "Not allowed", 404: "No such schedule", 503: "Not now"}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(views.encode(value), status, headers, "application/json")


def schedules_router(services: Services, path: str) -> APIRouter:
    """Routes below `<path>/api/v1/schedules`. `path` is needed for `Location`."""
    router = APIRouter(prefix=f"{path}/api/v1/schedules", tags=["easyjobs"], route_class=ProblemRoute)
    reader, operator = needs(services.access, Scope.READ, bound=True), needs(services.access, Scope.OPERATE, bound=True)
    store, catalogue, scheduler = services.store, services.catalogue, services.scheduler
    one: dict[int | str, dict[str, Any]] = {200: schemas.content(schemas.ScheduleView, "The schedule as it is now")}

    @router.get(
        "",
        summary="Schedules",
        responses={200: schemas.content(schemas.SchedulePage, "As asked"), **schemas.problems(_PROBLEMS, 401)},
    )
    async def list_schedules(namespace: Namespace = None, name: Name = None, caller: Caller = Depends(reader)) -> Response:
        lanes = reach.lanes_of(caller, catalogue, namespace, name)
        found = [schedule for schedule in await store.schedules() if lanes is None or schedule.lane in lanes]
        return _json({"items": [views.schedule_view(schedule, catalogue) for schedule in found]})

    @router.get("/{id}", summary="A schedule", responses={**one, **schemas.problems(_PROBLEMS, 401, 404)})
    async def get_schedule(id: Id, caller: Caller = Depends(reader)) -> Response:
        await reach.check_schedule(caller, scheduler, catalogue, id)
        return _json(views.schedule_view(await scheduler.find(id), catalogue))

    @router.post(
        "/{id}/pause",
        summary="Pause a schedule",
        responses={**one, **schemas.problems(_PROBLEMS, 401, 403, 404, 503)},
    )
    async def pause_schedule(id: Id, caller: Caller = Depends(operator)) -> Response:
        """It has no ticks until it is resumed, also after a restart, and when its task is offered again."""
        await reach.check_schedule(caller, scheduler, catalogue, id)
        return _json(views.schedule_view(await scheduler.pause(id), catalogue))

    @router.post(
        "/{id}/resume",
        summary="Resume a schedule",
        responses={**one, **schemas.problems(_PROBLEMS, 401, 403, 404, 503)},
    )
    async def resume_schedule(id: Id, caller: Caller = Depends(operator)) -> Response:
        """It goes on with its next tick. The ticks of the pause are not made up for."""
        await reach.check_schedule(caller, scheduler, catalogue, id)
        return _json(views.schedule_view(await scheduler.resume(id), catalogue))

    @router.post(
        "/{id}/run",
        status_code=202,
        summary="Run a schedule's job now",
        responses={202: schemas.content(schemas.RequestId, "Queued, and durable"), **schemas.problems(_PROBLEMS, 401, 403, 404, 503)},
    )
    async def run_schedule(request: Request, id: Id, caller: Caller = Depends(operator)) -> Response:
        """One more job with the schedule's arguments, also while it is paused. Its next tick stays what it is."""
        await reach.check_schedule(caller, scheduler, catalogue, id)
        job_id = await scheduler.run_now(id)
        location = f"{request.scope.get('root_path', '')}{path}/api/v1/jobs/{job_id}"
        return _json({"request_id": job_id}, 202, {"Location": location})

    return router
