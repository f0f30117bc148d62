"""Every event that easyjobs logs: its name and what it tells. A test compares this list with the calls in the code."""

from __future__ import annotations

from typing import Final

EVENTS: Final[dict[str, str]] = {
    "setting.ignored": "an environment name that no setting reads",
    "setting.doubted": "a setting that is allowed, and hardly meant",
    "secret.doubted": "a secret that is short, or that of the examples",
}
