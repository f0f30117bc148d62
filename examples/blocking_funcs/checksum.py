"""The file of the task `checksum`: a process of its own for each job.

By hand: python examples/blocking_funcs/checksum.py README.md
"""

import hashlib

from easyjobs.workers.task import subprocess


@subprocess
def work(path: str, algorithm: str = "sha256") -> str:
    print(f"reading {path}")  # goes to the log, not into the result
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, algorithm).hexdigest()


if __name__ == "__main__":
    work()
