"""Every event that easyjobs logs: its name and what it tells. A test compares this list with the calls in the code."""

from __future__ import annotations

from typing import Final

EVENTS: Final[dict[str, str]] = {
    # settings
    "setting.ignored": "an environment name that no setting reads",
    "setting.doubted": "a setting that is allowed, and hardly meant",
    "secret.doubted": "a secret that is short, or that of the examples",
    # the manager
    "store.reconnected": "the connection to the database was made anew; no lease is ended for the time of one",
    "store.failed_over": "the database is on another server, or on another timeline of it, than before: a standby has taken over",
    "store.deaf": "the connection that hears of other managers does not work; they are seen by the poll, within a second",
    "store.held_up": "nothing could be written for a good part of a lease (a lock, slow statements, another program's lock); leases last longer for it",
    "store.clock_set": "the database's clock went otherwise than ours; no lease is ended for the time of one",
    "http.mounted": "the routes are on the app: where, and who needs a token",
    "operator.acted": "somebody changed jobs, queues, schedules, put-aside messages or tokens: who, from where, what, and how it was answered",
    "schedule.missed": "ticks came due while nobody could fire them: since when, and how many jobs make up for them",
    "schedule.overlapped": "ticks without a job, as an earlier job of the schedule is not final",
    "schedule.unreadable": "a schedule that cannot fire, and why",
    "worker.connected": "a worker is here, with the attempts that it still holds and those that it shall drop",
    "worker.disconnected": "a worker's connection has ended; its jobs stay its own until its lease ends",
    # brokers
    "broker.connected": "the manager takes messages from a broker",
    "broker.down": "a broker cannot be reached, or was lost; when the next try is",
    "broker.refused": "a broker that does not let us in, or a queue that it does not let us use, and why",
    "broker.left_queue": "a namespace has no tasks any more: its messages stay in the broker until it has",
    "broker.paused": "nothing is fetched for now: the store cannot take it, or the backlog or the disk is full",
    "broker.resumed": "messages are fetched again",
    "message.buried": "a message that was handed over too often without being stored was moved aside",
    "message.quarantined": "messages that could not become jobs: how many, and the first one's reason",
    "result.refused": "ends of jobs that a queue does not take: how many, why, and how many were too old and dropped",
    "result.unclaimed": "ends of jobs whose reader has gone, with the queue that the broker had made for it",
    "payload.unreadable": "a sealed payload does not open: it was changed in the database, or is of another job",
    # a worker and its link
    "worker.started": "a worker is connected and takes jobs",
    "worker.waits": "no manager answers yet; the worker goes on trying",
    "worker.stopped": "a worker is down; `unacked` reports were not acknowledged",
    "worker.not_closed": "a worker was dropped without being closed",
    "worker.holds_on": "the worker is to end, and has reports of ended jobs that no manager has acknowledged; it goes on trying within the grace",
    "reports.undelivered": "a worker ended, and so many reports were not acknowledged: their jobs run again after its lease",
    "worker.gave_up_waiting": "the grace is over and jobs still run",
    "manager.connected": "the link to the manager stands",
    "manager.refused": "the manager refuses this worker for good",
    "manager.silent": "the manager has not answered for too long; the worker reconnects",
    "manager.unreachable": "the manager cannot be reached; when the next try is",
    "task.refused": "the manager does not take a task, and why",
    "lease.lost": "the lease ended: running attempts are stopped",
    "attempts.lost": "attempts that the manager gave to others meanwhile",
    "lines.dropped": "log lines of jobs that were dropped, since the manager did not take them",
    "loop.blocked": "a task blocks the event loop, with its stack",
    # one line an attempt
    "attempt.succeeded": "an attempt returned",
    "attempt.failed": "an attempt raised, or could not run",
    "attempt.released": "an attempt was given back",
    "attempt.snoozed": "an attempt asked to be run later",
    "child.printed": "a line that a child process has printed",
    # the process
    "process.draining": "a signal came: no new work, running jobs may end",
    "process.drained": "the process ends, with this exit code",
    "process.cannot_end": "the drain is over and the process cannot be ended from here",
}
