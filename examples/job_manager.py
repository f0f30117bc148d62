"""A manager: it keeps the jobs, and serves the HTTP API with /docs.

JOBS_SECRET='a long random text' uvicorn --app-dir examples --port 8220 job_manager:server
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager


@asynccontextmanager
async def lifespan(server: FastAPI) -> AsyncIterator[None]:
    jobs = await EasyJobsManager.create(server, server_secret=os.environ["JOBS_SECRET"])

    @jobs.task(namespace="reports")
    async def count_words(text: str) -> dict[str, int]:
        """How often each word is there. Short tasks may run in the manager itself."""
        words = text.lower().split()
        return {word: words.count(word) for word in dict.fromkeys(words)}

    yield


server = FastAPI(title="easyjobs example", lifespan=lifespan)
