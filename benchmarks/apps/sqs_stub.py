"""Answers as Amazon SQS does, at once: so many messages for whoever asks, and nothing kept. `python sqs_stub.py PORT TOTAL`."""

import asyncio
import itertools
import json
import sys
import uuid
from collections import defaultdict

from aiohttp import web

TOTAL = int(sys.argv[2])
left: defaultdict[str, int] = defaultdict(lambda: TOTAL)  # of each queue
numbers = itertools.count()


async def answer(request: web.Request) -> web.Response:
    """One request of any kind."""
    action = request.headers["X-Amz-Target"].partition(".")[2]
    asked = json.loads(await request.read())
    found: dict[str, object] = {}
    if action == "GetQueueUrl":
        found = {"QueueUrl": f"http://stub/{asked['QueueName']}"}
    elif action == "GetQueueAttributes":
        found = {"Attributes": {"MaximumMessageSize": "1048576", "MessageRetentionPeriod": "345600"}}
    elif action == "ReceiveMessage":
        queue = asked["QueueUrl"]
        count = min(asked["MaxNumberOfMessages"], left[queue])
        left[queue] -= count
        if count:
            found = {
                "Messages": [
                    {
                        "MessageId": str(uuid.uuid4()), "ReceiptHandle": uuid.uuid4().hex * 6, "MD5OfBody": "",
                        "Body": json.dumps({"name": "noop", "args": [next(numbers)]}),
                    }
                    for _ in range(count)
                ]
            }  # fmt: skip
        else:
            await asyncio.sleep(1)
    elif action.endswith("Batch"):
        found = {"Successful": [{"Id": entry["Id"]} for entry in asked["Entries"]], "Failed": []}
    return web.json_response(found, content_type="application/x-amz-json-1.0")


app = web.Application(client_max_size=2 * 1024 * 1024)
app.router.add_post("/{path:.*}", answer)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
