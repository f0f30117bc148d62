"""What operators do to jobs and queues."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Response

from easyjobs import errors
from easyjobs.domain.job import QUEUE_NAME, Changed
from easyjobs.domain.lifecycle import JobState
from easyjobs.http import reach, schemas, views
from easyjobs.http.auth import Caller, Scope
from easyjobs.http.guard import ProblemRoute, needs
from easyjobs.http.problems import Unwelcome
from easyjobs.http.requests import raw_id
from easyjobs.http.services import Services

JobId = Annotated[str, Path(description="the job's id")]
QueueName = Annotated[str, Path(pattern=f"^{QUEUE_NAME.pattern}$", description="the queue")]
_PROBLEMS: Final = {401: "A token is needed", 403: "Not allowed", 404: "No such job", 409: "Its state does not allow this"}
_NEEDS: Final = {
    "cancel": "a job that has not ended",
    "retry": "a job that failed, was cancelled or expired, and whose unique key no other job has",
    "run": "a job that is scheduled",
    "delete": "a job that has ended: cancel it first",
}


def control_router(services: Services, path: str) -> APIRouter:
    """Routes below `<path>/api/v1`."""
    router = APIRouter(prefix=f"{path}/api/v1", tags=["easyjobs"], route_class=ProblemRoute)
    operator = needs(services.access, Scope.OPERATE, bound=True)
    control = services.control
    refusals = schemas.problems(_PROBLEMS, 401, 403, 404, 409)

    async def one(caller: Caller, id: str, verb: str, do: Callable[[Sequence[bytes]], Awaitable[list[Changed]]]) -> JobState:
        raw = raw_id(id)
        await reach.check_job(caller, services.store, services.catalogue, raw)
        [answer] = await do([raw])
        if answer.state is None:
            raise errors.UnknownJob(id[:80])
        if not answer.done:
            raise Unwelcome(409, "Its state does not allow this", f"job {id} is {answer.state.text}; {verb} takes {_NEEDS[verb]}")
        return answer.state

    def said(id: str, state: JobState) -> Response:
        status = 202 if state is JobState.RUNNING else 200
        return Response(views.encode({"id": id, "status": state.text}), status, media_type="application/json")

    done: dict[int | str, dict[str, Any]] = {200: schemas.content(schemas.JobStatus, "Done; the job's state now"), **refusals}

    @router.post(
        "/jobs/{id}/cancel",
        summary="Cancel a job",
        responses={202: schemas.content(schemas.JobStatus, "It runs: its worker was asked to stop it"), **done},
    )
    async def cancel_job(id: JobId, caller: Caller = Depends(operator)) -> Response:
        """With the unfinished jobs that it called or waits for. What does not run is cancelled at once."""
        return said(id, await one(caller, id, "cancel", control.cancel))

    @router.post("/jobs/{id}/retry", summary="Retry a job that has ended without success", responses=done)
    async def retry_job(id: JobId, caller: Caller = Depends(operator)) -> Response:
        """A new round: budgets start again. Of its run_before jobs, those that did not succeed run again too."""
        return said(id, await one(caller, id, "retry", control.retry))

    @router.post("/jobs/{id}/run", summary="Run a scheduled job now", responses=done)
    async def run_job(id: JobId, caller: Caller = Depends(operator)) -> Response:
        return said(id, await one(caller, id, "run", control.run_now))

    @router.delete("/jobs/{id}", status_code=204, summary="Delete a job that has ended", responses=refusals)
    async def delete_job(id: JobId, caller: Caller = Depends(operator)) -> Response:
        await one(caller, id, "delete", control.delete)
        return Response(status_code=204)

    queue_done: dict[int | str, dict[str, Any]] = {
        200: schemas.content(schemas.QueueStatus, "Done"),
        401: refusals[401],
        403: refusals[403],
    }

    def of_queue(namespace: str) -> Response:
        body: dict[str, Any] = {"namespace": namespace, "paused": namespace in control.paused}
        if not services.catalogue.lanes_of(namespace, None):  # it may be to come; or it is a misspelling
            body["known"] = False
        return Response(views.encode(body), media_type="application/json")

    @router.post("/queues/{queue}/pause", summary="Pause a queue", responses=queue_done)
    async def pause_queue(queue: QueueName, caller: Caller = Depends(operator)) -> Response:
        """Its jobs are taken and kept, and given to no worker; what runs, runs on. A restart does not forget it.

        A queue that no task was ever offered in can be paused too, before its first worker comes: then the answer has `known: false`.
        """
        reach.check_queue(caller, queue)
        await control.pause(queue, True)
        return of_queue(queue)

    @router.post("/queues/{queue}/resume", summary="Resume a queue", responses=queue_done)
    async def resume_queue(queue: QueueName, caller: Caller = Depends(operator)) -> Response:
        reach.check_queue(caller, queue)
        await control.pause(queue, False)
        return of_queue(queue)

    return router
