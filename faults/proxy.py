"""A network between workers and a manager that understands WebSocket frames, and spoils them as a seed and its rules say.

It extends the proxy of the fault tests, whose gates (`to_manager`, `to_worker`) make half-open and one-way connections, and `cut` resets.
"""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.proxy import RESET, Proxy


@dataclass
class Rules:
    """What happens to the frames of one direction; each share is of all frames, from 0.0 to 1.0.

    `delay_s` to each, and as much again times chance if `jitter`; `bytes_per_s` 0: as fast as it goes. `drop` swallows it; `duplicate` sends it twice;
    `replay` sends one of the last fifty again; `reorder` lets the next one overtake it; `flip` changes one bit of its payload. `cut_at`: the
    connection is reset after so many bytes, also in the middle of a frame; then it is None again.
    """

    delay_s: float = 0.0
    jitter: bool = False
    bytes_per_s: int = 0
    drop: float = 0.0
    duplicate: float = 0.0
    replay: float = 0.0
    reorder: float = 0.0
    flip: float = 0.0
    cut_at: int | None = None
    frames: int = 0
    spoiled: int = 0


def frames_of(buffer: bytearray) -> Iterator[bytes]:
    """Take whole frames from the front of `buffer` (RFC 6455, section 5.2)."""
    while len(buffer) >= 2:
        size, start = buffer[1] & 0x7F, 2
        if size == 126:
            if len(buffer) < 4:
                return
            size, start = struct.unpack(">H", buffer[2:4])[0], 4
        elif size == 127:
            if len(buffer) < 10:
                return
            size, start = struct.unpack(">Q", buffer[2:10])[0], 10
        end = start + (4 if buffer[1] & 0x80 else 0) + size
        if len(buffer) < end:
            return
        frame = bytes(buffer[:end])
        del buffer[:end]
        yield frame


@dataclass
class _Line:
    """What is on its way in one direction of one connection: (when it arrives, bytes)."""

    items: queue.SimpleQueue[tuple[float, bytes] | None] = field(default_factory=queue.SimpleQueue)


class FrameProxy(Proxy):
    """See the module's docstring. The rules may be changed at any time."""

    def __init__(self, target: int, seed: int = 0) -> None:
        self.rules = {True: Rules(), False: Rules()}  # to the manager; to the worker
        self.chance = random.Random(seed)
        self.connects = 0
        super().__init__(target)

    @property
    def up(self) -> Rules:
        """To the manager."""
        return self.rules[True]

    @property
    def down(self) -> Rules:
        """To the worker."""
        return self.rules[False]

    def heal(self) -> None:
        """From now on a good network."""
        for rules in self.rules.values():
            rules.__dict__.update(Rules(frames=rules.frames, spoiled=rules.spoiled).__dict__)
        self.to_manager.set()
        self.to_worker.set()

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        is_up = gate is self.to_manager
        self.connects += is_up
        rules, line = self.rules[is_up], _Line()
        self._run(self._deliver, line, sink, gate, rules)
        buffer, before = bytearray(), deque[bytes](maxlen=50)
        head = False
        late: bytes | None = None
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                buffer += data
                if not head:
                    end = buffer.find(b"\r\n\r\n")
                    if end < 0:
                        continue
                    head = True
                    line.items.put((0.0, bytes(buffer[: end + 4])))
                    del buffer[: end + 4]
                for frame in frames_of(buffer):
                    rules.frames += 1
                    out = self._spoil(frame, rules, before)
                    if late is not None:
                        out, late = [*out, late], None
                    elif out and self.chance.random() < rules.reorder:
                        late, out = out[0], out[1:]
                        rules.spoiled += 1
                    due = time.monotonic() + rules.delay_s * (1 + (self.chance.random() if rules.jitter else 0))
                    for each in out:
                        line.items.put((due, each))
        line.items.put(None)

    def _spoil(self, frame: bytes, rules: Rules, before: deque[bytes]) -> list[bytes]:
        chance = self.chance.random
        is_data = frame[0] & 0x0F == 2  # binary: control frames go as they are
        out = [frame]
        if is_data and rules.frames > 2:  # a connection may begin
            if chance() < rules.drop:
                out = []
            elif chance() < rules.duplicate:
                out = [frame, frame]
            elif before and chance() < rules.replay:
                out = [frame, self.chance.choice(before)]
            elif chance() < rules.flip:
                at = self.chance.randrange(len(frame) // 2, len(frame))
                spoiled = bytearray(frame)
                spoiled[at] ^= 1 << self.chance.randrange(8)
                out = [bytes(spoiled)]
            rules.spoiled += out != [frame]
            before.append(frame)
        return out

    def _deliver(self, line: _Line, sink: socket.socket, gate: threading.Event, rules: Rules) -> None:
        with contextlib.suppress(OSError):
            while (item := line.items.get()) is not None:
                due, data = item
                time.sleep(max(0.0, due - time.monotonic()))
                gate.wait()
                if rules.bytes_per_s:
                    time.sleep(len(data) / rules.bytes_per_s)
                if rules.cut_at is not None:
                    rules.cut_at -= len(data)
                    if rules.cut_at <= 0:
                        sink.sendall(data[: len(data) + rules.cut_at])
                        rules.cut_at = None
                        rules.spoiled += 1
                        self.cut()
                        return
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sink.shutdown(socket.SHUT_RDWR)
