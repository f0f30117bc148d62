"""Which schema changes a database still needs.

Migrations are SQL files named `<number>_<what>.sql`, counted from 1 without gaps. A database remembers the number and checksum of
each that was applied. An applied file must never change: a difference means that the database is not what this easyjobs thinks it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

import msgspec

from easyjobs.errors import SchemaTooNew, StoreError


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load(package: str) -> list[Migration]:
    """Return the migrations in `package` (a dotted name), by version."""
    found = []
    for file in resources.files(package).iterdir():
        number, _, name = file.name.removesuffix(".sql").partition("_")
        if file.name.endswith(".sql"):
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise StoreError(f"the migrations in {package} are not numbered 1, 2, 3 …: reinstall easyjobs")
    return found


def pending(store: str, known: list[Migration], applied: Mapping[int, str]) -> list[Migration]:
    """Return what is to be applied, in order.

    Args:
        store: named in errors.
        known: all migrations of this easyjobs.
        applied: version → checksum, as the database remembers them.

    Raises:
        SchemaTooNew: the database has a version that is not known here.
        StoreError: an applied migration has another checksum than ours.
    """
    if applied and max(applied) > len(known):
        raise SchemaTooNew(store, max(applied), len(known))
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise StoreError(
                f"{store}: schema version {migration.version} was applied in another form than this easyjobs has; "
                "open it with the easyjobs that wrote it"
            )
    return [migration for migration in known if migration.version not in applied]
