"""`easyjobs token`: print a token for the HTTP API. The secret comes from the environment, a file or a prompt, never from argv."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from easyjobs.errors import ConfigurationError
from easyjobs.http.auth import Scope, make_token
from easyjobs.runtime.clock import SystemClock
from easyjobs.runtime.settings import PREFIX, Settings

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_S: Final = 100 * 366 * 86_400


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(token)


def token(
    scope: Annotated[list[Scope], typer.Option(help="What it allows; may be repeated. operate implies read, admin everything.")],
    expires: Annotated[str, typer.Option(help="How long it holds, as 12h, 30d or 8w; 'never' is possible.")] = "30d",
    name: Annotated[str, typer.Option(help="Whose it is. Idempotency-Keys of two names never meet.")] = "",
) -> None:
    """Print a token for `Authorization: Bearer …`, made from the manager's secret.

    The secret is read from EASYJOBS_SECRET, from the file that EASYJOBS_SECRET_FILE names, or asked for. Nothing is stored: a token
    can be taken back only by giving the manager another secret.
    """
    seconds = parse_duration(expires)
    expires_at = 0 if seconds is None else SystemClock().now() // 1_000_000 + seconds
    try:
        made = make_token(ask_secret(), scope, expires_at, name)
    except ValueError as why:
        raise ConfigurationError(str(why)) from why
    until = "never expires" if not expires_at else f"expires {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M} UTC"
    print(f"scopes: {', '.join(sorted(set(scope)))}; {until}", file=sys.stderr)
    print(made)


def parse_duration(text: str) -> int | None:
    """Seconds of `90s`, `15m`, `12h`, `30d`, `8w`; None for `never`. Raises: ConfigurationError."""
    if text == "never":
        return None
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        raise ConfigurationError(f"--expires {text}: give a number and a unit (s, m, h, d, w), as in 30d, or 'never'")
    return seconds


def ask_secret() -> str:
    """The manager's secret. Raises: ConfigurationError where there is none, and nobody to ask."""
    settings = Settings.read()
    if settings.secret is None and sys.stdin.isatty():
        typed: str = typer.prompt("The manager's secret", hide_input=True, err=True)
        return typed
    if settings.secret is None:
        raise ConfigurationError(f"no secret: set {PREFIX}SECRET or {PREFIX}SECRET_FILE to the one that the manager has")
    return settings.secret_text()
