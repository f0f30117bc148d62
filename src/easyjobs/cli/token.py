"""`easyjobs token`: tokens for the HTTP API. The secret comes from the environment, a file or a prompt, never from argv."""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from easyjobs.errors import ConfigurationError, ConnectionFailed
from easyjobs.http.auth import TOKEN_ID, Scope, make_token
from easyjobs.runtime.clock import SystemClock
from easyjobs.runtime.settings import PREFIX, Settings

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_S: Final = 100 * 366 * 86_400
OWN_S: Final = 60  # the token with which these verbs ask the manager
DEFAULT_URL: Final = "http://127.0.0.1:8220"

Scopes = Annotated[list[Scope], typer.Option(help="What it allows; may be repeated. operate implies read, admin everything.")]
Expires = Annotated[str, typer.Option(help="How long it holds, as 12h, 30d or 8w; 'never' is possible.")]
Name = Annotated[str, typer.Option(help="Whose it is.")]
Queues = Annotated[
    list[str], typer.Option("--queue", help="It reaches this queue (namespace) and those of further --queue only; without, all of them.")
]
Url = Annotated[str, typer.Option(envvar=f"{PREFIX}MANAGER_URL", help="The manager's address.")]
Path = Annotated[str, typer.Option(envvar=f"{PREFIX}PATH", help="Where its API lives.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(invoke_without_command=True, no_args_is_help=False, help="Tokens for the HTTP API, made from the manager's secret.")
    group.callback()(token)
    group.command("create")(create)
    group.command("list")(list_tokens)
    group.command("revoke")(revoke)
    app.add_typer(group, name="token")


def token(
    context: typer.Context,
    scope: Scopes = [],  # noqa: B006 - typer reads it
    expires: Expires = "30d",
    name: Name = "",
    queue: Queues = [],  # noqa: B006 - typer reads it
) -> None:
    """Print a token for `Authorization: Bearer …`, made from the manager's secret.

    The secret is read from EASYJOBS_SECRET, from the file that EASYJOBS_SECRET_FILE names, or asked for. No manager is asked, so `token list`
    does not show it; `token revoke` takes it back all the same. `token create` makes one that is listed.
    """
    if context.invoked_subcommand is not None:
        return
    if not scope:
        raise ConfigurationError("--scope: say what the token allows: " + ", ".join(Scope))
    seconds = parse_duration(expires)
    expires_at = 0 if seconds is None else SystemClock().now() // 1_000_000 + seconds
    try:
        made = make_token(ask_secret(), scope, expires_at, name, os.urandom(8).hex(), queue or None)
    except ValueError as why:
        raise ConfigurationError(str(why)) from why
    _show(made, scope, queue, expires_at)


def create(
    scope: Scopes,
    expires: Expires = "30d",
    name: Name = "",
    queue: Queues = [],  # noqa: B006 - typer reads it
    url: Url = DEFAULT_URL,
    path: Path = "/jobs",
) -> None:
    """Let the manager make a token, and remember it for `list`."""
    seconds = parse_duration(expires)
    wanted = {"scopes": list(scope), "expires_s": seconds, "name": name} | ({"queues": list(queue)} if queue else {})
    made = _ask("POST", url, path, "", wanted)["token"]
    _show(made, scope, queue, 0 if seconds is None else SystemClock().now() // 1_000_000 + seconds)


def list_tokens(url: Url = DEFAULT_URL, path: Path = "/jobs") -> None:
    """Show the tokens that the manager has made, and those that were taken back."""
    for item in _ask("GET", url, path, "")["items"]:
        state = f"revoked {item['revoked_at'][:16]}" if item["revoked_at"] else f"expires {(item['expires_at'] or 'never')[:16]}"
        print(f"{item['id']}  {'+'.join(item['scopes']) or '?':24}  {state:24}  {','.join(item['queues'] or ['*']):16}  {item['name']}")


def revoke(
    id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it, or '-': a whole token is read from stdin.")],
    url: Url = DEFAULT_URL,
    path: Path = "/jobs",
) -> None:
    """Take a token back: it holds no longer."""
    if id == "-":  # not as an argument: command lines are seen by all
        id = sys.stdin.readline().strip()
        if not id.startswith("ej2."):
            raise ConfigurationError("what came on stdin is no token with an id (ej2.…): those of older versions end with the secret only")
        id = id.split(".")[1]
    if not TOKEN_ID.fullmatch(id):
        raise ConfigurationError(f"{id[:20]!r} is no token's id: 16 hexadecimal digits, the second part of a token")
    _ask("DELETE", url, path, f"/{id}")
    print(f"{id} is taken back", file=sys.stderr)


def _show(made: str, scope: list[Scope], queues: list[str], expires_at: int) -> None:
    until = "never expires" if not expires_at else f"expires {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M} UTC"
    where = f"queues: {', '.join(sorted(set(queues)))}; " if queues else ""
    print(f"scopes: {', '.join(sorted(set(scope)))}; {where}{until}; id {made.split('.')[1]}", file=sys.stderr)
    print(made)


def _ask(method: str, url: str, path: str, rest: str, body: Any = None) -> Any:
    """Ask the manager, as its admin. Raises: ConnectionFailed, ConfigurationError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    own = make_token(ask_secret(), [Scope.ADMIN], SystemClock().now() // 1_000_000 + OWN_S, "easyjobs-token")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=20)
    try:
        headers = {"Authorization": f"Bearer {own}", "Content-Type": "application/json"}
        where = f"{parts.path.rstrip('/')}{path.rstrip('/')}/api/v1/tokens{rest}"
        connection.request(method, where, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as why:
        raise ConnectionFailed(f"no manager answers at {url}: {why}; name it with --url, or {PREFIX}MANAGER_URL") from why
    finally:
        connection.close()
    if answer.status >= 300:
        try:
            said = json.loads(text)["detail"]
            if isinstance(said, list):  # 422, as FastAPI has it
                said = "; ".join(str(error["msg"]) for error in said)
        except (ValueError, KeyError, TypeError):
            said = f"no easyjobs manager with its API at {path} answers there"
        raise ConfigurationError(f"{url}: {answer.status}: {said}")
    return json.loads(text) if text else None


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
    """The manager's secret, the newest. Raises: ConfigurationError where there is none, and nobody to ask."""
    settings = Settings.read()
    if settings.secret is None and sys.stdin.isatty():
        typed: str = typer.prompt("The manager's secret", hide_input=True, err=True)
        return typed
    if settings.secret is None:
        raise ConfigurationError(f"no secret: set {PREFIX}SECRET or {PREFIX}SECRET_FILE to the one that the manager has")
    return settings.secret_text()
