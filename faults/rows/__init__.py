"""The rows of the matrix, by what they break; importing this registers them all."""

<<<<<<< HEAD
from faults.rows import brokers, chaos, database, disk, flows, herd, managers, network, schedules, soak, strangers, users, workers

__all__ = [
    "brokers",
    "chaos",
    "database",
    "disk",
    "flows",
    "herd",
    "managers",
    "network",
    "schedules",
    "soak",
    "strangers",
    "users",
    "workers",
]
=======
from faults.rows import bodies, brokers, chaos, database, disk, flows, managers, network, schedules, soak, users, workers

__all__ = ["bodies", "brokers", "chaos", "database", "disk", "flows", "managers", "network", "schedules", "soak", "users", "workers"]
>>>>>>> rows
