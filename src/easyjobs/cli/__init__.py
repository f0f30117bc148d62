"""The console script `easyjobs`. Each verb is a module here that has a `register(app)`."""

from easyjobs.cli.main import app, main

__all__ = ["app", "main"]
