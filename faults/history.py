"""What is known of a run: three witnesses that do not know of each other, and the faults that were injected.

The client notes what was acknowledged, each body that it began and how it ended, and triggers in the store (`events`) each step of each job.
Times are seconds of one clock: of the simulation, or CLOCK_BOOTTIME.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from faults.events import Step


@dataclass(frozen=True, slots=True)
class Effect:
    """A run of a body began, or ended: `what` is start, done, raised or cancelled. `run` is its own name."""

    token: str
    run: str
    worker: str
    what: str
    at: float
    attempt: int
    job: str = ""  # its id


@dataclass(frozen=True, slots=True)
class Row:
    """A job, as the store has it at the end. `token`: of its arguments. `task`: queue/name."""

    seq: int
    id: str
    task: str
    state: int
    attempt: int
    round: int
    failures: int
    crashes: int
    token: str
    run: str = ""  # of the result
    parent_seq: int | None = None
    edge: str | None = None
    parent_round: int | None = None
    run_at: int | None = None
    max_retries: int = 0
    kind: str = ""  # of the error
    max_crashes: int = 0  # 0: not known


@dataclass(frozen=True, slots=True)
class Renewal:
    """The store extended the lease of a session, at an instant of its own time (seconds)."""

    session: int
    at: float


@dataclass
class History:
    """See the module's docstring. `acked`: token → job id. `unknown`: tokens whose submit got no answer. `keyed`: tokens with a key of their own.

    `successors`: task → its run_after tasks; `helpers`: task → its on_failure task. `ticks`: schedule's task → the ticks (microseconds) that an
    independent oracle expects; one within `tick_slack_s` of the end may be missing. `published`: messages that a broker confirmed, `waiting`
    those that it still has, `quarantined` those that were put aside. `has_faults` False: nothing was injected, so nothing may run twice.
    """

    lease_s: float
    acked: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    keyed: set[str] = field(default_factory=set)
    effects: list[Effect] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    renewals: list[Renewal] = field(default_factory=list)
    successors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    helpers: dict[str, str] = field(default_factory=dict)
    ticks: dict[str, list[int]] = field(default_factory=dict)
    optional_ticks: dict[str, set[int]] = field(default_factory=dict)
    by_hand: set[str] = field(default_factory=set)  # ids of jobs that a person had a schedule run: they use up no tick
    published: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    quarantined: set[str] = field(default_factory=set)
    stopped: list[tuple[str, float, float]] = field(default_factory=list)  # worker, from, to: it stood still
    has_faults: bool = True
    is_quiet: bool = True
    max_overlap_s: float = 8.0  # what a worker that stood still may need to notice
    duplicate_frames: bool = False  # the network sent frames twice: then a body may run twice in one attempt
    notes: dict[str, Any] = field(default_factory=dict)
