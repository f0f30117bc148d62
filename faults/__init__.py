"""The fault suite: breaks managers, workers, disks and links on purpose, and checks that the delivery contract holds.

    python -m faults            about an hour: `make faults`
    python -m faults --long     all night: `make faults-long`
    python -m faults --row N2   one row; `--list` says which there are

What is where: `cluster` starts real processes, `proxy` is the network between them, `history` is what three witnesses wrote down, `invariants` judges
it, `mutants` shows that it judges well; `simulation` runs managers and workers in one process on a virtual clock; `powerloss` is a disk that
forgets; `matrix` has the rows.
"""
