"""What a caller whose token is bound to queues may know of: jobs, lanes and schedules of these queues, and nothing of the others.

What belongs to another queue is not there for it: an id of it answers as an unknown one does, and no list or count has it. Only a queue that the
caller itself names is refused in words (403), for that tells nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from easyjobs.errors import UnknownJob, UnknownSchedule
from easyjobs.http.auth import Caller
from easyjobs.http.problems import Unwelcome
from easyjobs.ports.store import Store
from easyjobs.runtime.ids import id_text
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.scheduler import Scheduler


def out_of_reach(caller: Caller, what: str) -> Unwelcome:
    """The refusal of something that a caller has named itself."""
    queues = ", ".join(sorted(caller.queues or ()))
    return Unwelcome(403, "Not allowed", f"this token is bound to {queues}: {what}")


def check_queue(caller: Caller, queue: str) -> None:
    """Raise Unwelcome (403) where the caller does not reach a queue that it has named."""
    if not caller.reaches(queue):
        raise out_of_reach(caller, f"it does not reach the queue {queue[:64]}")


def has_lane(caller: Caller, catalogue: Catalogue, lane: int) -> bool:
    """Whether the caller may know of what is in this lane; of a lane that this manager has not heard of yet only who reaches all queues."""
    if caller.queues is None:
        return True
    task = catalogue.by_lane(lane)
    return task is not None and task.queue in caller.queues


def lanes_of(caller: Caller, catalogue: Catalogue, queue: str | None, name: str | None) -> Collection[int] | None:
    """The lanes of `Catalogue.lanes_of` that the caller may know of. None: it may know of all, and all are asked for."""
    if caller.queues is None:
        return None if queue is None and name is None else catalogue.lanes_of(queue, name)
    queues = caller.queues if queue is None else caller.queues & {queue}
    return [lane for one in queues for lane in catalogue.lanes_of(one, name)]


async def check_job(caller: Caller, store: Store, catalogue: Catalogue, id: bytes) -> None:
    """Raise UnknownJob where the caller may not know of a job, or there is none. To be asked before anything is done to it, or waited for."""
    if caller.queues is None:
        return
    [record] = await store.get([id])
    if record is not None and catalogue.by_lane(record.lane) is None:
        await catalogue.refresh()  # another manager's task, offered a moment ago
    if record is None or not has_lane(caller, catalogue, record.lane):
        raise UnknownJob(id_text(id))


async def check_schedule(caller: Caller, scheduler: Scheduler, catalogue: Catalogue, id: int) -> None:
    """The same for a schedule. Raises: UnknownSchedule."""
    if caller.queues is not None and not has_lane(caller, catalogue, (await scheduler.find(id)).lane):
        raise UnknownSchedule(id)
