from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from easyjobs.errors import ConfigurationError
from easyjobs.runtime.settings import Auth, Durability, ManagerSettings, WorkerSettings, parse_store, unknown_names

GOOD = "a secret of the tests, long enough to be one"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith("EASYJOBS_") or name in ("DB_PATH", "MANAGER_HOST", "MANAGER_PORT", "WORKER_TASK_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults() -> None:
    settings = ManagerSettings.read(secret=GOOD)
    assert (settings.lease_s, settings.grace_s, settings.manager_slots, settings.path) == (30, 25, 10, "/jobs")
    assert (settings.durability, settings.auth) == (Durability.FULL, Auth.PROTECTED)
    assert settings.address == "job_manager.db"
    worker = WorkerSettings.read(secret=GOOD)
    assert (worker.urls, worker.jobs_queue) == (("ws://127.0.0.1:8220/ws/jobs",), "DEFAULT")


def test_a_keyword_wins_over_the_environment_and_that_over_the_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANAGER_PORT", "1111")
    assert WorkerSettings.read().manager_port == 1111
    monkeypatch.setenv("EASYJOBS_MANAGER_PORT", "2222")
    assert WorkerSettings.read().manager_port == 2222
    assert WorkerSettings.read(manager_port=3333).manager_port == 3333
    assert WorkerSettings.read(manager_port=None).manager_port == 2222


def test_the_environment_is_read_at_the_call_and_not_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("12", "13"):
        monkeypatch.setenv("EASYJOBS_LEASE_S", value)
        assert ManagerSettings.read().lease_s == float(value)


def test_db_path_is_a_directory_that_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DB_PATH", str(tmp_path / "a" / "b"))
    assert ManagerSettings.read().address == str(tmp_path / "a" / "b" / "job_manager.db")
    assert (tmp_path / "a" / "b").is_dir()
    monkeypatch.setenv("EASYJOBS_STORE", str(tmp_path / "c" / "jobs.db"))
    assert ManagerSettings.read().address == str(tmp_path / "c" / "jobs.db")
    assert (tmp_path / "c").is_dir()


def test_a_directory_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="DB_PATH"):
        ManagerSettings.read(store=str(tmp_path / "file" / "jobs.db"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:////var/jobs.db", "/var/jobs.db"),
        ("/var/jobs.db", "/var/jobs.db"),
        ("data/", "data/job_manager.db"),
        (".", "job_manager.db"),
        ("memory:", "memory://"),
        (":memory:", "memory://"),
        ("memory://", "memory://"),
        ("postgresql://u:p@h/db?host=/run", "postgresql://u:p@h/db?host=/run"),
    ],
)
def test_stores(text: str, address: str) -> None:
    assert parse_store(text) == address


@pytest.mark.parametrize("text", ["mysql://u:topsecret@h/db", "redis://h", "sqlite://jobs.db"])
def test_a_store_that_is_not_there_is_refused_without_showing_what_was_typed(text: str) -> None:
    with pytest.raises(ConfigurationError, match="EASYJOBS_STORE") as caught:
        ManagerSettings.read(store=text)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    "keyword", [{"lease_s": 0.5}, {"durability": "none"}, {"auth": "maybe"}, {"path": "jobs"}, {"path": "/"}, {"path": "/a b"}]
)
def test_a_value_that_does_not_fit_is_named(keyword: dict[str, object]) -> None:
    [name] = keyword
    with pytest.raises(ConfigurationError, match=f"EASYJOBS_{name.upper()}"):
        ManagerSettings.read(**keyword)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean lease_s"):
        ManagerSettings.read(lease=3)


def test_an_unknown_name_of_the_environment_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EASYJOBS_LEASE", "3")
    ManagerSettings.read(secret=GOOD)
    assert "did_you_mean=EASYJOBS_LEASE_S" in caplog.text
    known = {"EASYJOBS_MANAGER_HOST": "x", "EASYJOBS_STORE": "x", "EASYJOBS_SECRET_FILE": "x", "HOME": "x"}
    assert list(unknown_names(known)) == []  # of the manager or of the worker: one environment may serve both


@pytest.mark.parametrize("name", ["EASYJOBS_METRICS", "EASYJOBS_DASHBOARD_PATH"])
def test_what_is_not_there_yet_is_called_so_and_no_other_name_is_proposed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    ManagerSettings.read(secret=GOOD)
    assert f"name={name}" in caplog.text
    assert "easyjobs has no" in caplog.text
    assert "did_you_mean" not in caplog.text


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(GOOD + "\n")
    monkeypatch.setenv("EASYJOBS_SECRET_FILE", str(tmp_path / "secret"))
    assert ManagerSettings.read().secret_text() == GOOD
    monkeypatch.setenv("EASYJOBS_SECRET", "another one, that is long enough as well")
    assert ManagerSettings.read().secret_text().startswith("another")


def test_without_a_secret_the_error_says_how_to_make_one() -> None:
    with pytest.raises(ConfigurationError, match="token_urlsafe"):
        ManagerSettings.read().secret_text()


@pytest.mark.parametrize("secret", ["abcd1234", "short"])
def test_a_weak_secret_is_warned_of_and_never_shown(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = ManagerSettings.read(secret=secret)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert getattr(record, "event") == "secret.doubted"  # noqa: B009
    assert secret not in record.getMessage()
    assert secret not in repr(settings) + str(settings.model_dump())


def test_a_good_secret_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ManagerSettings.read(secret=GOOD)
    assert caplog.records == []


def test_a_secret_of_the_wrong_kind_is_not_shown_in_the_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ManagerSettings.read(secret={"a": "canary"})
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("keyword", [{"lease_s": 2}, {"durability": "relaxed"}, {"auth": "off"}])
def test_settings_that_give_something_up_are_logged(keyword: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    ManagerSettings.read(secret=GOOD, **keyword)
    assert "setting.doubted" in caplog.text


def test_settings_are_frozen() -> None:
    settings = ManagerSettings.read(secret=GOOD)
    with pytest.raises(ValueError, match="frozen"):
        settings.secret = SecretStr("x")


@pytest.mark.parametrize(
    ("hosts", "urls"),
    [
        ("0.0.0.0", ["ws://127.0.0.1:8220"]),
        ("::1", ["ws://[::1]:8220"]),
        ("[::]:81", ["ws://[::1]:81"]),
        ("m", ["ws://m:8220"]),
        (["a", "b:81", "[fe80::1]:82"], ["ws://a:8220", "ws://b:81", "ws://[fe80::1]:82"]),
        ("a, b:81,a:8220", ["ws://a:8220", "ws://b:81"]),
    ],
)
def test_the_addresses_that_a_worker_dials(hosts: str | list[str], urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tuple(f"{url}/ws/jobs" for url in urls)
    assert WorkerSettings.read(manager_host=hosts).urls == wanted
    monkeypatch.setenv("MANAGER_HOST", hosts if isinstance(hosts, str) else ",".join(hosts))
    assert WorkerSettings.read().urls == wanted
    monkeypatch.setenv("EASYJOBS_MANAGER_URL", "https://lb/prefix, http://m:1")
    assert WorkerSettings.read().urls == ("wss://lb/prefix/ws/jobs", "ws://m:1/ws/jobs")


@pytest.mark.parametrize("host", ["", "http://m:8220", "m:x", "m:70000", "m:", "[::1", []])
def test_what_is_no_host_is_refused_in_words(host: str | list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"manager_host.*(host|port)"):
        WorkerSettings.read(manager_host=host)


def test_addresses_come_from_files_and_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("postgresql://jobs:canary@pooler/app?statement_cache_size=0\n")
    monkeypatch.setenv("EASYJOBS_STORE_FILE", str(tmp_path / "store"))
    monkeypatch.setenv("EASYJOBS_STORE_LISTEN", "postgresql://jobs:canary@server/app")
    settings = ManagerSettings.read(secret="x" * 40)
    assert settings.address == "postgresql://jobs:canary@pooler/app?statement_cache_size=0"
    assert settings.store_listen == "postgresql://jobs:canary@server/app"
    assert "canary" not in repr(settings)
    with pytest.raises(ConfigurationError, match=r"store_listen .*the address of a PostgreSQL server") as refused:
        ManagerSettings.read(secret="x" * 40, store_listen="redis://:canary@server")
    assert "canary" not in str(refused.value)
