"""What the routes need of the manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from easyjobs.http.auth import Access
from easyjobs.ports.clock import Clock
from easyjobs.ports.store import Store
from easyjobs.services.catalogue import Catalogue
from easyjobs.services.consumer import Consumer
from easyjobs.services.control import Control
from easyjobs.services.dispatcher import Dispatcher
from easyjobs.services.events import Events
from easyjobs.services.inbox import Inbox
from easyjobs.services.intake import Intake
from easyjobs.services.results import Results
from easyjobs.services.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The manager's parts, as its routes see them."""

    store: Store
    catalogue: Catalogue
    intake: Intake
    dispatcher: Dispatcher
    results: Results
    events: Events
    control: Control
    scheduler: Scheduler
    inbox: Inbox
    consumers: Sequence[Consumer] = ()
    clock: Clock
    access: Access
