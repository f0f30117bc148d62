"""How a `wss://` connection is checked: always, by the system's authorities or by those of one file."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from easyjobs.errors import ConfigurationError

CA_VARIABLE: Final = "EASYJOBS_MANAGER_CA"


def context_for(url: str, ca: Path | None) -> ssl.SSLContext | None:
    """What `connect` needs for this address; None for `ws://`. `ca`: certificates that are trusted instead of the system's.

    There is no way to switch the check off. Raises: ConfigurationError, for a file that cannot be read as certificates.
    """
    if not url.startswith("wss://"):
        return None
    try:
        return ssl.create_default_context(cafile=str(ca) if ca is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{CA_VARIABLE}={ca}: no certificates can be read from it: {error}") from error


def distrust(url: str, error: ssl.SSLCertVerificationError) -> str:
    """A sentence for who dials a manager whose certificate does not hold, with the way out."""
    return (
        f"the certificate of {url} does not hold: {error.verify_message}. If it is of an authority of your own, set {CA_VARIABLE} to the file of "
        "that authority's certificate"
    )
