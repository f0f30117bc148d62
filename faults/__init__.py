"""The fault suite: breaks managers, workers, disks and links on purpose, and checks that the delivery contract holds.

    python -m faults            about an hour: `make faults`
    python -m faults --long     all night: `make faults-long`
    python -m faults --row N2   one row; `--list` says which there are

What is where: `matrix` and `rows` say what is broken, `run` runs it and keeps what came out, `report` writes docs/guarantees.md of that. `cluster` starts real
processes, `load` keeps them busy, `proxy` is the network between them; `history` is what three witnesses wrote down, `invariants` judges it, and
`mutants` shows that it judges well. `sim` runs managers and workers in one process on a virtual clock; `powerloss` is a disk that forgets; `fuzz` makes bytes.
"""
