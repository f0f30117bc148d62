"""Targets for atheris: what strangers and workers send, as bytes."""
