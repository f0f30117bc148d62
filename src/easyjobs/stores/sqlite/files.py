"""The database's file: who owns it, and whether it is still the one that is open.

One process owns a file. Its lock is an flock on `<file>.lock`, which ends with the process, however it ends.

SQLite goes on writing to a file that was unlinked, without an error: so before anything is acknowledged, the path must still lead to
the same inode. The same holds for the write-ahead log, where commits live until a checkpoint.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from easyjobs.errors import ConfigurationError, StoreLocked, StoreLost


class DatabaseFile:
    """The file at `path`: created, locked, watched."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self._wal = self.path + "-wal"
        self._lock: int | None = None
        self._inodes: tuple[int, int, int, int] | None = None

    def take(self) -> None:
        """Create the directory and the file (readable by this user only) where they are missing, and lock the file.

        Raises:
            StoreLocked: it is in use, by another process or by this one.
            ConfigurationError: it cannot be created.
        """
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{self.path}: {error.strerror}: choose a directory that this user may write to") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StoreLocked(self.path) from error
        self._lock = lock
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite gives its other files the same mode
        except OSError as error:
            self.release()
            raise ConfigurationError(f"{self.path}: {error.strerror}: choose a file that this user may write to") from error

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def watch(self) -> None:
        """Remember which files are open. Their inodes cannot be given away while SQLite holds them."""
        self._inodes = self._look()

    def check(self) -> None:
        """Raise StoreLost unless the path still leads to the files that are open."""
        try:
            same = self._look() == self._inodes
        except OSError as error:
            raise StoreLost(self.path, f"the file was removed ({error.strerror})") from error
        if not same:
            raise StoreLost(self.path, "the file was replaced by another one")

    def _look(self) -> tuple[int, int, int, int]:
        database, wal = os.stat(self.path), os.stat(self._wal)  # noqa: PTH116 (at every commit; Path.stat takes three times as long)
        return database.st_dev, database.st_ino, wal.st_dev, wal.st_ino
