"""Processes that run jobs. This file imports nothing: `easyjobs.workers.task` must start fast."""
