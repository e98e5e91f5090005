"""Shared fixtures. Airflow reads its settings at import, so they are set before anything imports it."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_AIRFLOW_HOME = tempfile.mkdtemp(prefix="talon-cdp-tests-")
atexit.register(shutil.rmtree, _AIRFLOW_HOME, ignore_errors=True)
for name in [each for each in os.environ if each.startswith("AIRFLOW")]:
    del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": _AIRFLOW_HOME,
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}

# Its first import adds a filter for modules whose names begin with "airflow", as ours do: in the test that came to it
# first, our warnings would be text, not errors. Here the filter ends with this file's loading.
import airflow.configuration  # noqa: E402, F401
from airflow.providers.common.compat.sdk import ObjectStoragePath  # noqa: E402

try:
    from airflow.sdk.io import attach
except ImportError:  # Airflow 2.11
    from airflow.io.store import attach

from airflow_provider_talon_cdp.emulator import Emulator  # noqa: E402


@pytest.fixture(scope="session")
def _emulator():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def talon(_emulator, monkeypatch, tmp_path):
    """An empty local Talon.One, the Airflow connection ``talon_cdp_default`` that leads to it, and no ledgers."""
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(tmp_path / "ledgers"))
    _emulator.reset()
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(_emulator.connection()))
    return _emulator


@pytest.fixture(scope="session")
def bucket():
    """Make a path of Airflow's, as the operators get one, with the file system of a connection."""
    s3fs = pytest.importorskip("s3fs")

    def made(conn_id, url, **options):
        client = s3fs.S3FileSystem(endpoint_url=url, key="a", secret="b", **options)
        attach("s3", conn_id, fs=client)
        return ObjectStoragePath(f"s3://{conn_id}@ledgers")

    return made


@pytest.fixture(scope="session")
def s3(bucket):
    """An empty bucket, which moto serves on loopback."""
    server = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    path = bucket("storage", f"http://{host}:{port}")
    path.fs.mkdir("ledgers")
    yield path
    served.stop()


def pytest_terminal_summary(terminalreporter):
    """Show what tests measured."""
    reports = [each for each in terminalreporter.getreports("passed") if each.user_properties]
    if reports:
        terminalreporter.section("measured")
    for report in reports:
        for name, value in report.user_properties:
            terminalreporter.line(f"{report.nodeid.rpartition('/')[2]}: {name}: {value}")
