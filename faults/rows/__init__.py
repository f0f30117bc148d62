"""The rows of the matrix, by what they break; importing this registers them all."""

from faults.rows import brokers, chaos, database, disk, herd, managers, network, pooler, schedules, soak, strangers, upkeep, users, workers

__all__ = [
    "brokers",
    "chaos",
    "database",
    "disk",
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
