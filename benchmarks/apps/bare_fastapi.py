"""What our HTTP submit is compared with: a FastAPI endpoint that validates the same body and does nothing."""

from fastapi import FastAPI
from pydantic import BaseModel

server = FastAPI()


class Arguments(BaseModel):
    """The noop task's signature."""

    n: int


@server.post("/BENCH/task/noop")
async def noop(arguments: Arguments) -> dict[str, str]:
    """Answers what a submit answers."""
    return {"request_id": str(arguments.n)}


@server.get("/jobs/readyz")
async def readyz() -> dict[str, str]:
    """So that it is waited for like a manager."""
    return {"status": "ready"}
