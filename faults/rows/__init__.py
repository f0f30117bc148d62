"""The rows of the matrix, by what they break; importing this registers them all."""

from faults.rows import chaos, database, disk, managers, network, schedules, soak, users, workers

__all__ = ["chaos", "database", "disk", "managers", "network", "schedules", "soak", "users", "workers"]
