"""The manager of the fault tests: as a user writes it."""

import logging
import os

from fastapi import FastAPI

from easyjobs.http import socket
from easyjobs.manager import EasyJobsManager
from easyjobs.services import dispatcher

if "TEST_WEDGED_S" in os.environ:  # no test can wait two minutes, and there is no setting
    dispatcher.WEDGED_S = socket.WEDGED_S = float(os.environ["TEST_WEDGED_S"])  # type: ignore[misc, attr-defined]

if "TEST_LOG" in os.environ:
    logging.basicConfig(level=logging.INFO)

server = FastAPI()


@server.on_event("startup")
async def startup() -> None:
    await EasyJobsManager.create(server, server_secret=os.environ["TEST_SECRET"])
