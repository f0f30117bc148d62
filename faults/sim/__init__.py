"""Managers, workers, a store and a broker in one process, on a virtual clock, under faults that a seed chooses.

What runs is the product: `EasyJobsManager` as it wires itself, `EasyJobsWorker` with its pool and its link (on the one loop instead of a thread
of its own), the WebSocket endpoint, and a real store. What is simulated is time, the network, the death and the standstill of processes, and
the way to the store.
"""
