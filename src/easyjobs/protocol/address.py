"""Where a manager's WebSocket is."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit, urlunsplit

from easyjobs.errors import ConfigurationError

SOCKET_PATH: Final = "/ws/jobs"


def socket_url(url: str) -> str:
    """The WebSocket address of a manager's `http`, `https`, `ws` or `wss` address. Raises: ConfigurationError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no address of a manager: use http://host:port")
    path = parts.path.rstrip("/")
    return urlunsplit((scheme, parts.netloc, path if path.endswith(SOCKET_PATH) else path + SOCKET_PATH, "", ""))
