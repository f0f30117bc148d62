"""`wss://` is verified: a certificate of nobody known, of another host or of last year opens nothing; one of a named authority does."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest

from easyjobs.client import EasyJobsClient
from easyjobs.errors import AccessRefused, ConfigurationError, ConnectionFailed, UnknownTask
from easyjobs.runtime.tls import context_for
from easyjobs.workers.worker import EasyJobsWorker
from tests.processes import SECRET, Processes, Served

x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

PROGRAM = """
from fastapi import FastAPI
from easyjobs.manager import EasyJobsManager

server = FastAPI()

@server.on_event("startup")
async def startup():
    manager = await EasyJobsManager.create(server, store="memory:")

    @manager.task()
    async def double(n: int) -> int:
        return 2 * n
"""
NOW = dt.datetime.now(dt.UTC)


def certificate(directory: Path, *, host: str = "127.0.0.1", days: tuple[int, int] = (-1, 30)) -> Path:
    """A certificate that signs itself; its key is beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    try:
        other: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        other = x509.DNSName(host)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + dt.timedelta(days=days[0]))
        .not_valid_after(NOW + dt.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([other]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "certificate.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return file


def authority(name: str) -> tuple[Any, ec.EllipticCurvePrivateKey]:
    """One that signs others' certificates, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _signed(name, key, name, key, is_authority=True), key


def signed_by(one: tuple[Any, ec.EllipticCurvePrivateKey], directory: Path) -> None:
    """A new certificate for 127.0.0.1, and its key, where `serve` looks for them."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = _signed("a manager", key, one[0].subject.rfc4514_string().removeprefix("CN="), one[1], is_authority=False)
    plain = serialization.NoEncryption()
    (directory / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def _signed(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuers_key: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> Any:
    subject_name, issuer_name = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (subject, issuer))
    return (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + dt.timedelta(days=-1))
        .not_valid_after(NOW + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .sign(issuers_key, hashes.SHA256())
    )


def serve(started: Processes, directory: Path, port: int | None = None) -> Served:
    """Its database is in memory: what it knew is gone with it."""
    (directory / "program.py").write_text(PROGRAM)
    options = ("--ssl-certfile", str(directory / "certificate.pem"), "--ssl-keyfile", str(directory / "key.pem"))
    manager = started.uvicorn("program:server", *options, directory=directory, env={"EASYJOBS_SECRET": SECRET}, port=port)
    manager.wait_for_line("Uvicorn running on https")
    return manager


async def refusals(manager: Served, ca: Path | None = None) -> str:
    """What a worker and a client say of the manager, which they do not trust."""
    said = []
    with pytest.raises(AccessRefused) as caught:
        await EasyJobsWorker.create(manager_port=manager.port, manager_secret=SECRET, manager_tls=True, manager_ca=ca)
    said.append(str(caught.value))
    with pytest.raises(ConnectionFailed) as failed:
        async with EasyJobsClient(f"https://127.0.0.1:{manager.port}", SECRET, ca=ca):
            pass
    said.append(str(failed.value))
    assert all(f"wss://127.0.0.1:{manager.port}" in text and "EASYJOBS_MANAGER_CA" in text for text in said)
    return "\n".join(said)


async def test_a_certificate_that_signs_itself_is_refused_and_taken_where_it_is_named(started: Processes, tmp_path: Path) -> None:
    ca = certificate(tmp_path)
    manager = serve(started, tmp_path)
    assert "self-signed" in await refusals(manager)
    async with EasyJobsClient(f"https://127.0.0.1:{manager.port}", SECRET, ca=ca) as client:
        assert await (await client.submit("DEFAULT", "double", 21)).result(10) == 42
        async with await EasyJobsWorker.create(
            manager_port=manager.port, manager_secret=SECRET, manager_tls=True, manager_ca=ca, jobs_queue="Q"
        ) as worker:

            @worker.task()
            async def triple(n: int) -> int:
                return 3 * n

            async with asyncio.timeout(10):
                while not worker._pool.lanes:  # noqa: ASYNC110 - the manager's answer to the offer
                    await asyncio.sleep(0.01)
            assert await triple(14) == 42


async def test_a_certificate_is_replaced_one_of_the_same_authority_is_taken_and_one_of_another_runs_nothing(
    started: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = authority("ours"), authority("another")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(ours[0].public_bytes(serialization.Encoding.PEM))
    signed_by(ours, tmp_path)
    manager = serve(started, tmp_path)
    ran = 0
    async with await EasyJobsWorker.create(
        manager_port=manager.port, manager_secret=SECRET, manager_tls=True, manager_ca=ca, jobs_queue="Q"
    ) as worker:

        @worker.task()
        async def count(n: int) -> int:
            nonlocal ran
            ran += 1
            return n

        async def again_after(signer: tuple[Any, ec.EllipticCurvePrivateKey]) -> Served:
            await asyncio.to_thread(manager.stop)
            signed_by(signer, tmp_path)
            return await asyncio.to_thread(serve, started, tmp_path, manager.port)

        async with EasyJobsClient(f"https://127.0.0.1:{manager.port}", SECRET, ca=ca) as client:
            async with asyncio.timeout(20):
                while not worker._pool.lanes:  # noqa: ASYNC110 - the manager's answer to the offer
                    await asyncio.sleep(0.01)
            assert await (await client.submit("Q", "count", 1)).result(10) == 1
        for expected, signer in enumerate((ours, other, ours), 2):  # a rotation, a manager that is not ours, and ours again
            manager = await again_after(signer)
            if signer is other:
                caplog.clear()
                with pytest.raises(ConnectionFailed, match="EASYJOBS_MANAGER_CA"):
                    async with EasyJobsClient(f"https://127.0.0.1:{manager.port}", SECRET, ca=ca):
                        pass
                theirs = tmp_path / "theirs.pem"
                theirs.write_bytes(other[0].public_bytes(serialization.Encoding.PEM))
                async with EasyJobsClient(f"https://127.0.0.1:{manager.port}", SECRET, ca=theirs) as stranger:
                    for _ in range(300):
                        if "EASYJOBS_MANAGER_CA" in caplog.text:
                            break
                        await asyncio.sleep(0.1)
                    assert "EASYJOBS_MANAGER_CA" in caplog.text  # the worker says why it does not come
                    with pytest.raises(UnknownTask):
                        await stranger.submit("Q", "count", 0)
                continue
            async with EasyJobsClient(f"https://127.0.0.1:{manager.port}", SECRET, ca=ca) as client:
                async with asyncio.timeout(40):
                    while True:
                        try:
                            job = await client.submit("Q", "count", expected)
                            break
                        except UnknownTask:  # the worker has not come back yet
                            await asyncio.sleep(0.1)
                assert await job.result(10) == expected
    assert ran == 3


@pytest.mark.parametrize(("wrong", "word"), [({"host": "jobs.example.com"}, "IP address mismatch"), ({"days": (-30, -1)}, "expired")])
async def test_a_certificate_of_another_host_or_of_last_month_is_refused_though_its_authority_is_trusted(
    started: Processes, tmp_path: Path, wrong: dict[str, object], word: str
) -> None:
    ca = certificate(tmp_path, **wrong)  # type: ignore[arg-type]
    assert word in await refusals(serve(started, tmp_path), ca)


async def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nothing")
    for file in (tmp_path / "x.pem", tmp_path / "not-there.pem"):
        with pytest.raises(ConfigurationError, match=file.name):
            await EasyJobsWorker.create(manager_secret=SECRET, manager_tls=True, manager_ca=file)


def test_the_check_cannot_be_switched_off() -> None:
    context = context_for("wss://127.0.0.1:1", None)
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context_for("ws://127.0.0.1:1", None) is None
