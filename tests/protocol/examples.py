"""One example of every frame, as the golden files in `v1/` have it. Run this module to write files that are missing; it never rewrites one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from easyjobs.domain import seeing
from easyjobs.domain.job import Claimed, Outcome, Report, Running
from easyjobs.protocol.codec import encode
from easyjobs.protocol.messages import (
    Acked,
    Beat,
    BeatSeen,
    Calling,
    Cancel,
    Challenge,
    Control,
    Controlled,
    Credit,
    Follow,
    Followed,
    Frame,
    Goaway,
    Held,
    Hello,
    Log,
    NewTask,
    Offer,
    Offered,
    OfferedTask,
    Progress,
    Refused,
    Reports,
    Results,
    Run,
    Submit,
    SubmitItem,
    SubmitOptions,
    SubmitProblem,
    Submitted,
    Unfollow,
    Unwatch,
    Watch,
    WatchedResult,
    Welcome,
)

GOLDEN: Final = Path(__file__).parent / "v1"

ID: Final = bytes(range(16))
OTHER: Final = bytes(range(16, 32))
NONCE: Final = bytes(range(32))
RUNNING: Final = Running(7, 2, 3, ID)

FROM_MANAGER: Final[dict[str, Frame]] = {
    "challenge": Challenge(version=1, nonce=NONCE),
    "welcome": Welcome(proof=NONCE, lease_s=30.0, beat_s=10.0, drop=[RUNNING], has_others=True),
    "offered": Offered(number=1, tasks=[OfferedTask("add", 3)], refused=[("bad name", "no task name")]),
    "run": Run(jobs=[Claimed(7, 2, 3, ID, 1, 0, b'[[1,2],{"c":null}]', "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]),
    "acked": Acked(number=5, stale=[7]),
    "beatseen": BeatSeen(number=4, send_held=True, has_others=True),
    "cancel": Cancel(jobs=[(7, 2)]),
    "goaway": Goaway(reason="the manager is shutting down", spread_s=2.0),
    "submitted": Submitted(
        number=9, problem=SubmitProblem(status=404, detail="no task 'ad'", index=0, errors=b"[]", is_busy=True), ids=[OTHER]
    ),
    "controlled": Controlled(number=10, items=[(True, 4), (False, -1)], problem=""),
    "results": Results(items=[WatchedResult(ID, 2, b"null"), WatchedResult(OTHER, -1)]),
    "followed": Followed(
        number=11,
        news=[
            seeing.StateChanged("running", 2),
            seeing.Progress(2, 3, 10.5, "so far", 1_700_000_000_000_000),
            seeing.LogLine(2, 17, 1_700_000_000_000_000, 20, "app", "text"),
        ],
        is_last=False,
    ),
    "refused": Refused(code=4401, reason="wrong secret"),
}
FROM_PEER: Final[dict[str, Frame]] = {
    "hello": Hello(
        version=1,
        role="worker",
        session=ID,
        nonce=NONCE,
        proof=NONCE,
        name="host-1",
        queue="DEFAULT",
        slots=3,
        software="easyjobs 1.0.0",
        held=[RUNNING],
        held_later=True,
    ),
    "offer": Offer(number=1, tasks=[NewTask("add", b'{"parameters":[]}', b'{"max_retries":1}')]),
    "credit": Credit(limit=1003),
    "reports": Reports(
        number=5,
        items=[
            Report(7, 2, Outcome.SUCCEEDED, 1500, b"3"),
            Report(8, 1, Outcome.FAILED, 10, b'{"type":"ValueError","message":"x"}', True, 250_000, crashed=True),
            Report(9, 1, Outcome.RELEASED),
        ],
        limit=1004,
    ),
    "progress": Progress(items=[seeing.Mark(7, 2, 3, 10.5, "so far"), seeing.Mark(8, 1, 0.5)]),
    "log": Log(number=6, lines=[seeing.Line(7, 2, 17, 1_700_000_000_000_000, 20, "app", "text")]),
    "beat": Beat(number=4, count=1, digest=2**63 - 1, loop_age_s=0.25),
    "held": Held(items=[RUNNING]),
    "submit": Submit(
        number=9,
        jobs=[SubmitItem(ID, "DEFAULT", "add", b"[[1,2],{}]", Calling(7, 2, "abc:1"))],
        options=SubmitOptions(priority=5, delay_us=1_000_000, key="k"),
    ),
    "control": Control(number=10, verb="cancel", ids=[ID, OTHER]),
    "watch": Watch(ids=[ID, OTHER]),
    "unwatch": Unwatch(ids=[OTHER]),
    "follow": Follow(number=11, id=ID, after=(2, 17)),
    "unfollow": Unfollow(number=11),
}

EARLIER: Final[dict[str, Frame]] = {  # files in `v1/earlier/`: frames as they were before they got another field
    "hello.1.msgpack": Hello(
        version=1,
        role="worker",
        session=ID,
        nonce=NONCE,
        proof=NONCE,
        name="host-1",
        queue="DEFAULT",
        slots=3,
        software="easyjobs 1.0.0",
        held=[RUNNING],
    ),
    "reports.1.msgpack": Reports(
        number=5,
        items=[
            Report(7, 2, Outcome.SUCCEEDED, 1500, b"3"),
            Report(8, 1, Outcome.FAILED, 10, b'{"type":"ValueError","message":"x"}', True, 250_000),
            Report(9, 1, Outcome.RELEASED),
        ],
        limit=1004,
    ),
    "welcome.1.msgpack": Welcome(proof=NONCE, lease_s=30.0, beat_s=10.0, drop=[RUNNING]),
    "beatseen.1.msgpack": BeatSeen(number=4, send_held=True),
    "submit.1.msgpack": Submit(
        number=9, jobs=[SubmitItem(ID, "DEFAULT", "add", b"[[1,2],{}]")], options=SubmitOptions(priority=5, delay_us=1_000_000, key="k")
    ),
    "submitted.1.msgpack": Submitted(number=9, problem=SubmitProblem(status=404, detail="no task 'ad'", index=0, errors=b"[]")),
    "submitted.2.msgpack": Submitted(
        number=9, problem=SubmitProblem(status=404, detail="no task 'ad'", index=0, errors=b"[]"), ids=[OTHER]
    ),
}

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, frame in {**FROM_MANAGER, **FROM_PEER}.items():
        path = GOLDEN / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(encode(frame))
            print(f"{path.name}: {msgspec.msgpack.decode(encode(frame))}")
