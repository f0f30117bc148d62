"""The rows of the matrix, by what they break; importing this registers them all."""

from faults.rows import bodies, brokers, chaos, database, disk, flows, managers, network, schedules, soak, users, workers

__all__ = ["bodies", "brokers", "chaos", "database", "disk", "flows", "managers", "network", "schedules", "soak", "users", "workers"]
