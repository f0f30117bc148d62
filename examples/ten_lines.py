from fastapi import FastAPI

from easyjobs.manager import EasyJobsManager

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    jobs = await EasyJobsManager.create(server, server_secret="replace this with a long random secret")

    @jobs.task()
    async def greet(name: str, times: int = 1) -> str:
        return " ".join([f"Hello {name}!"] * times)
