"""How a broker's URL is shown in messages: without what is secret in it."""

from __future__ import annotations

from urllib.parse import urlsplit


def shown(url: str) -> str:
    """The URL without user, password and options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a URL that cannot be read)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
