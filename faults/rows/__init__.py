"""The rows of the matrix, by what they break; importing this registers them all."""

from faults.rows import (
    bodies,
    brokers,
    chaos,
    database,
    disk,
    flows,
    herd,
    managers,
    network,
    pooler,
    schedules,
    soak,
    strangers,
    upkeep,
    users,
    workers,
)

__all__ = [
    "bodies",
    "brokers",
    "chaos",
    "database",
    "disk",
    "flows",
    "herd",
    "managers",
    "network",
    "pooler",
    "schedules",
    "soak",
    "strangers",
    "upkeep",
    "users",
    "workers",
]
