"""Faults of the network between workers and managers, made by `faults.proxy`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from easyjobs.domain.lifecycle import Back
from faults import figures
from faults.cluster import overlap_s, reruns, site, tokens
from faults.crowd import Members, more_files
from faults.figures import quantile
from faults.matrix import Skipped, row
from faults.proxy import FrameProxy
from faults.rows.managers import _rss_mib
from tests import certificate, postgres
from tests.faults.cluster import LEASE_S, RERUN_S
from tests.faults.proxy import Proxy
from tests.processes import free_port, until


@row("N1")
def reset_in_a_frame(directory: Path, size: float) -> str:
    """The connection is reset after any number of bytes, in each direction."""
    chance = Random(1)
    with site(directory) as place, FrameProxy(place.port, 1) as proxy:
        place.start_worker(slots=10, through=proxy.port)
        cuts = round(12 * size)
        for n in range(cuts):
            place.submit_many("work", tokens(f"n{n}-", 20), seconds=0.01)
            (proxy.up if n % 2 else proxy.down).cut_at = chance.randrange(1, 1500)
            place.until_effect(f"n{n}-19", "done", within_s=30)
        proxy.heal()
        history = place.judged()
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        return f"{proxy.connects} connections; 0 reruns"


@row("N2")
def half_open(directory: Path, size: float) -> str:
    """Silence without an end, in one direction and in both: the worker finds out, and jobs run elsewhere after the lease."""
    found: list[str] = []
    for name, up, down in (("to the manager", True, False), ("to the worker", False, True), ("both", True, True)):
        with site(directory / name.replace(" ", "_")) as place, FrameProxy(place.port) as proxy:
            cut_off = place.start_worker(slots=2, through=proxy.port)
            job = place.submit("wait_for_gate", "a", gate="go")
            place.until_effect("a")
            began = place.note_fault(cut_off, kills=False)
            if up:
                proxy.to_manager.clear()
            if down:
                proxy.to_worker.clear()
            place.start_worker(slots=2)
            again = place.until_effect("a", times=2, within_s=RERUN_S + 4)
            rerun_s = again.at - began
            place.open_gate("go")
            place.end_of(job)
            proxy.heal()
            history = place.judged()
            found.append(f"{name}: ran elsewhere after {rerun_s:.1f} s, overlap {overlap_s(history):.2f} s")
    return "; ".join(found)


@row("N4")
def flapping(directory: Path, size: float) -> str:
    """The link is up for a second and down for a second."""
    with site(directory) as place, FrameProxy(place.port) as proxy:
        place.start_worker(slots=10, through=proxy.port)
        place.submit_many("work", tokens("f", round(300 * size)), seconds=0.05)
        began = time.monotonic()
        while time.monotonic() - began < 12 * size:
            time.sleep(1)
            proxy.to_manager.clear()
            proxy.to_worker.clear()
            time.sleep(0.5)
            proxy.cut()
            time.sleep(0.5)
            proxy.to_manager.set()
            proxy.to_worker.set()
        history = place.judged(60)
        return f"{len(history.acked)} jobs through {proxy.connects} connections, {reruns(history)} reruns, 0 duplicate results"


@row("N5")
def slow_link(directory: Path, size: float) -> str:
    """300 ms of round trip and 64 kB/s: no false rescue."""
    with site(directory) as place, FrameProxy(place.port) as proxy:
        proxy.up.delay_s = proxy.down.delay_s = 0.15
        proxy.up.bytes_per_s = proxy.down.bytes_per_s = 64_000
        place.start_worker(slots=10, through=proxy.port)
        place.start_worker(slots=1)
        place.submit_many("work", tokens("s", 300), seconds=0.05)
        history = place.judged(90)
        assert reruns(history) == 0, f"{reruns(history)} false rescues"
        return "false rescues 0"


@row("N6")
def frames_again(directory: Path, size: float) -> str:
    """Frames come twice, late, or again after others: nothing is stored twice."""
    with site(directory) as place, FrameProxy(place.port, 6) as proxy:
        place.duplicate_frames = True
        place.start_worker(slots=10, through=proxy.port)
        for rules in (proxy.up, proxy.down):
            rules.duplicate = rules.replay = rules.reorder = 0.05
        for n in range(round(10 * size)):
            place.submit_many("work" if n % 2 else "first", tokens(f"d{n}-", 20))
            time.sleep(0.5)
        proxy.heal()
        proxy.cut()
        history = place.judged(60)
        assert proxy.up.spoiled + proxy.down.spoiled > 20
        return f"{proxy.up.spoiled + proxy.down.spoiled} of {proxy.up.frames + proxy.down.frames} frames spoiled; {reruns(history)} reruns"


@row("N7")
def flipped_bits(directory: Path, size: float) -> str:
    """Bits of frames flip on their way (TCP would have to miss it): the manager and the worker live, and all ends."""
    with site(directory) as place, FrameProxy(place.port, 7) as proxy:
        worker = place.start_worker(slots=10, through=proxy.port)
        place.duplicate_frames = True
        proxy.up.flip = proxy.down.flip = 0.02
        for n in range(round(10 * size)):
            place.submit_many("work", tokens(f"x{n}-", 20))
            time.sleep(0.5)
        spoiled = proxy.up.spoiled + proxy.down.spoiled
        proxy.heal()
        proxy.cut()
        assert place.manager.is_running
        alive = worker.is_running
        if not alive:
            worker = place.start_worker(slots=10)
        place.settle(40)
        history = place.told()
        left = [row for row in history.rows if row.state in (0, 1, 6, 7)]
        assert not left, left
        assert place.manager.get("/jobs/readyz") is not None
        return f"{spoiled} flipped frames, {proxy.connects} connections; manager alive, worker {'alive' if alive else 'ended: ' + worker.log[-200:]}"


@row("N3")
def manager_without_its_database(directory: Path, size: float) -> str:
    """One of two managers is cut off from PostgreSQL for three leases, while its worker is well: one owner of each job, and one end."""
    with (
        postgres.cluster(port=free_port()) as server,
        Proxy(server.port or 0) as way,
        site(directory, server=server) as place,
    ):
        first, direct = place.manager, place.port
        place.port = free_port()
        through = (
            server.url().replace(f"port={server.port}", f"port={way.port}").replace(quote(str(server.directory), safe=""), "127.0.0.1")
        )
        place.start_manager(EASYJOBS_STORE=through)
        cut_off = place.start_worker(slots=4)
        place.submit_many("work", tokens("a", 8), seconds=LEASE_S * 2)
        place.until_effect("a3")
        place.port = direct
        other = place.manager
        place.manager = first
        place.start_worker(slots=20)
        way.to_manager.clear()
        way.to_worker.clear()
        place.submit_many("work", tokens("b", 20), seconds=0.1)
        time.sleep(LEASE_S * 3)
        way.cut()
        way.to_manager.set()
        way.to_worker.set()
        history = place.judged(60)
        assert cut_off.is_running
        assert other.is_running
        return f"{len(history.acked)} jobs, {reruns(history)} reruns; longest overlap {overlap_s(history):.2f} s"


class _Impatient(Proxy):
    """Closes a connection over which nothing has come, in either direction, for so long."""

    def __init__(self, target: int, idle_s: float) -> None:
        self.idle_s, self.connects = idle_s, 0
        super().__init__(target)

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        self.connects += gate is self.to_manager
        source.settimeout(self.idle_s)  # each side for itself: stricter than what balances load
        super()._pump(source, sink, gate)


@row("N11")
def impatient_proxy(directory: Path, size: float) -> str:
    """A proxy closes connections that are idle for two leases (60 s of 30 s, shortened): the beats keep them alive."""
    lease_s = 5.0
    with site(directory, lease_s=lease_s) as place, _Impatient(place.port, 2 * lease_s) as proxy:
        place.start_worker(slots=2, through=proxy.port)
        place.submit("wait_for_gate", "a", gate="go")
        place.until_effect("a")
        time.sleep(2.5 * 2 * lease_s)
        place.open_gate("go")
        history = place.judged()
        assert proxy.connects == 1, f"{proxy.connects} connections: it was closed"
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        return (
            f"{proxy.connects} connection over {2.5 * 2 * lease_s:.0f} s of no jobs, closed after {2 * lease_s:.0f} s of silence; 0 reruns"
        )


class _Terminator:
    """Ends TLS in front of a manager, as a proxy or a balancer does. `rotate` changes the certificate and closes what is open."""

    def __init__(self, target: int, chain: Path, key: Path) -> None:
        self.target, self.port, self.connects = target, free_port(), 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(chain, key)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context))

    def _call(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connects += 1
        try:
            behind, to_manager = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        pair = {writer, to_manager}
        self._writers |= pair
        await asyncio.gather(self._pump(reader, to_manager), self._pump(behind, writer))
        self._writers -= pair

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    def rotate(self, chain: Path, key: Path) -> None:
        async def change() -> None:
            self._context.load_cert_chain(chain, key)
            for writer in list(self._writers):
                writer.close()

        self._call(change())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


@row("N11T")
def certificate_rotated(directory: Path, size: float) -> str:
    """A proxy that ends TLS gets another certificate while workers are connected, for a moment one that nobody trusts: they come back, nothing runs again."""
    pairs = []
    for name in ("first", "second", "stranger"):
        (directory / name).mkdir(parents=True)
        pairs.append(certificate.make(directory / name, name))
    trusted = directory / "trusted.pem"
    trusted.write_bytes(pairs[0][0].read_bytes() + pairs[1][0].read_bytes())
    turns = max(2, round(3 * size))
    took: list[float] = []
    with site(directory, lease_s=15.0) as place:
        proxy = _Terminator(place.port, *pairs[0])
        try:
            workers = [
                place.start_worker(slots=10, through=proxy.port, EASYJOBS_MANAGER_TLS="1", EASYJOBS_MANAGER_CA=str(trusted))
                for _ in range(2)
            ]
            place.submit_many("wait_for_gate", tokens("held", 4), gate="go")
            place.until_effect("held3")
            for turn in range(turns):
                place.submit_many("work", tokens(f"t{turn}-", 60), seconds=0.2)
                place.until_effect(f"t{turn}-10", "done")
                if turn == 1:  # a person's mistake, which is mended
                    connects = proxy.connects
                    proxy.rotate(*pairs[2])
                    for worker in workers:
                        worker.wait_for_line("EASYJOBS_MANAGER_CA", 15)  # it says why it does not come
                    assert proxy.connects == connects, "a worker went on with a stranger"
                before = proxy.connects
                proxy.rotate(*pairs[(turn + 1) % 2])
                began = time.monotonic()
                until("both are back", lambda before=before: proxy.connects >= before + 2, 15)
                took.append(time.monotonic() - began)
            place.open_gate("go")
            history = place.judged(60)
            assert all(worker.is_running for worker in workers)
            assert reruns(history) == 0, f"{reruns(history)} reruns"
        finally:
            proxy.close()
    figures.took("reconnect after a certificate was rotated", *took)
    return (
        f"{turns} rotations under load, one by way of a stranger's certificate (refused by both workers, who said why): both "
        f"workers back within {max(took):.1f} s, {proxy.connects} connections, 0 reruns"
    )


@row("N9", limit_s=900)
def many_sockets(directory: Path, size: float) -> str:
    """The sockets of thousands of idle workers (10,000 in the long form), then a restart of the manager: all are back, and no job runs again."""
    count = 10_000 if size >= 3 else round(2000 * size)
    try:
        more_files(count + 1000)  # of the manager, for each process of the crowd has half of them
    except (OSError, ValueError) as why:
        raise Skipped(f"a process may not have {count + 1000:,} files here: {why}") from None
    with site(directory, lease_s=30.0) as place:
        worker = place.start_worker(slots=20, TEST_TELLS_ALL="1")
        before = _rss_mib(place.manager.pid)
        crowd = Members(place.started, f"ws://127.0.0.1:{place.port}/ws/jobs", count)
        crowd.until_in(1.0, 60 + count / 40)
        each_kib = (_rss_mib(place.manager.pid) - before) * 1024 / count
        place.submit_many("wait_for_gate", tokens("held", 10), gate="go")
        place.submit_many("work", tokens("w", 100), seconds=0.1)
        place.until_effect("held9")
        failed, said = crowd.sum("failed"), len(worker.lines)
        place.manager.stop(60)
        place.start_manager()
        ready = time.monotonic()
        worker.wait_for_line("manager.connected", 120, after=said)
        holder_s = time.monotonic() - ready
        crowd.until_in(0.99, 120 + count / 20)
        most_s = time.monotonic() - ready
        crowd.until_in(1.0, 120)
        all_s = time.monotonic() - ready
        until("all of them are said", lambda: len(crowd.took()) >= count, 10)
        figures.took("reconnect of one worker among many", *crowd.took())
        place.submit_many("work", tokens("after", 100), seconds=0.1)
        place.open_gate("go")
        history = place.judged(60)
        rescued = sum(step.back == Back.RESCUED for step in history.steps)
        assert rescued == 0, f"{rescued} rescues"
        assert reruns(history) == 0, f"{reruns(history)} reruns"
        assert crowd.sum("ended") == 0, f"{crowd.sum('ended')} gave up for good"
        return (
            f"{count:,} workers back: 99 % {most_s:.1f} s after the manager was ready, all {all_s:.1f} s; p99 {quantile(crowd.took(), 0.99):.1f} s "
            f"from the loss; {crowd.sum('failed') - failed:,} tries failed meanwhile; the one with jobs {holder_s:.1f} s; {each_kib:.0f} KiB of the manager for each; 0 rescues, 0 reruns"
        )
