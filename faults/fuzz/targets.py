"""Coverage-guided fuzzing of what reads bytes from outside: `python -m faults.fuzz.targets frames -max_total_time=600`.

Targets: `frames` (the manager's end of a connection, before and after the hello), `registration` (signature and options of an offered task),
`arguments` (a body against a typed signature), `reports` (the body of a report), `jobs` (the job format, one and many), `cron`.
Each may raise the errors that its module names, and nothing else. Everything behind the target's name goes to libFuzzer; a corpus directory is kept if
one is named.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
import uuid
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from easyjobs.domain.arguments import Arguments

SECRET: Final = "a secret of the fuzzer, long enough to be one"


def frames(data: bytes) -> None:
    """The frame decoder, and what may come when."""
    from easyjobs.errors import ProtocolError
    from easyjobs.protocol.codec import encode
    from easyjobs.protocol.handshake import peer_proof
    from easyjobs.protocol.manager_side import ManagerSide
    from easyjobs.protocol.messages import Hello

    fresh, welcomed = ManagerSide((SECRET,), b"m" * 32), ManagerSide((SECRET,), b"m" * 32)
    proof = peer_proof(SECRET, role="worker", session=b"s" * 16, manager_nonce=b"m" * 32, peer_nonce=b"n" * 32, version=1)
    welcomed.greet(encode(Hello(version=1, role="worker", session=b"s" * 16, nonce=b"n" * 32, proof=proof, queue="Q")))
    for take in (fresh.greet, welcomed.receive):
        said = ""
        try:
            take(data)
        except ProtocolError as error:
            said = str(error)
        assert not said or said.isprintable()


def registration(data: bytes) -> None:
    """A task that a worker offers: half of the bytes are its signature, half its options."""
    import msgspec

    from easyjobs.domain.job import TaskRow
    from easyjobs.services.catalogue import CatalogueTask

    signature, _, options = data.partition(b"\xff")
    with contextlib.suppress(ValueError, msgspec.DecodeError, RecursionError):
        CatalogueTask(TaskRow("Q", "task", signature, options or b"{}"))


def arguments(data: bytes) -> None:
    """A body for a function with many types."""
    from easyjobs.errors import InvalidArguments, PayloadTooLarge

    try:
        stored = _typed().from_body(data)
    except (InvalidArguments, PayloadTooLarge):
        return
    _typed().check_call(stored)  # what was accepted is accepted again


def reports(data: bytes) -> None:
    """The body of a report: what comes out is always JSON within the limits."""
    import msgspec

    from easyjobs.domain import payload
    from easyjobs.domain.job import ErrorInfo, Outcome, Report
    from easyjobs.domain.reported import sound

    for outcome in Outcome:
        kept = sound(Report(1, 1, outcome, body=data))
        if kept.outcome is Outcome.SUCCEEDED:
            payload.decode(kept.body)
        elif kept.outcome is Outcome.FAILED:
            msgspec.json.decode(kept.body, type=ErrorInfo)
        else:
            assert kept.body == b""


def jobs(data: bytes) -> None:
    """The job format."""
    from easyjobs.domain import message
    from easyjobs.errors import InvalidArguments, PayloadTooLarge

    for read in (message.parse, message.parse_lines):
        with contextlib.suppress(InvalidArguments, PayloadTooLarge):
            read(data)


def cron(data: bytes) -> None:
    """An expression of a schedule."""
    from easyjobs.domain.cron import Cron
    from easyjobs.errors import RegistrationError

    expression, _, zone = data.decode(errors="replace").partition("|")
    with contextlib.suppress(RegistrationError):
        Cron(expression, zone or "UTC")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (frames, registration, arguments, reports, jobs, cron)
}


def _sample(
    a: int,
    b: str = "",
    *rest: float,
    when: dt.datetime | None = None,
    id: uuid.UUID | None = None,
    price: Decimal = Decimal(0),
    tags: set[str] | None = None,
    table: dict[str, list[int]] | None = None,
    **more: bool,
) -> None: ...


@cache
def _typed() -> Arguments:
    from easyjobs.domain.arguments import Arguments
    from easyjobs.domain.cloning import describe

    return Arguments(describe(_sample), "sample")


def main() -> None:
    """Fuzz one target until libFuzzer's options end it."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    target = TARGETS[sys.argv[1]]
    with atheris.instrument_imports(include=["easyjobs"]):
        target(b"")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
