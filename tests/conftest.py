"""Shared fixtures. Airflow reads its settings at import, so they are set before anything imports it."""

from __future__ import annotations

import atexit
import datetime as dt
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import settings

from tests.processes import pytest_pyfunc_call  # noqa: F401 - a hook
from tests.storage import s3_served

# For the fast loop: few examples, and others in each run. A failure is kept and tried first the next time.
settings.register_profile("dev", max_examples=25, deadline=None, print_blob=True)
# For what must pass: all examples, and the same ones in every run, so that a failure anywhere is found again
# here.
settings.register_profile("ci", derandomize=True, database=None, deadline=None, print_blob=True)
settings.load_profile("dev")

# What is slow besides tests that are marked themselves: by folder, by file, by what a test
# uses.
SLOW_FOLDERS = {"airflow", "bench", "browser", "faults", "kill", "warehouses"}
SLOW_FILES = ("*_property.py", "test_*memory*.py", "test_fuzz.py", "test_openapi.py", "test_installation.py")
LONGEST_FILES = (
    *("test_memory.py", "test_mirror_property.py", "test_scale.py", "test_stopped_tasks.py"),
    *("test_scheduled.py", "test_profile_property.py", "test_kill.py", "test_outside.py"),
    *("test_processes.py", "test_across_workers.py", "test_warehouse_to_audiences.py"),
    *("test_installation.py", "test_shared.py"),
)
SLOW_PARTS = ("[S3", "-S3")
# Where a release of Airflow makes most of the difference: a short matrix runs these, slow or not.
RELEASE_FOLDERS = {"airflow", "kill", "package"}

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

# Its first import adds a filter for modules whose names begin with "airflow", as ours do: in the test that
# came to it first, our warnings would be text, not errors. Here the filter ends with this file's loading.
import airflow.configuration  # noqa: E402, F401
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath  # noqa: E402

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
def talon(_emulator, monkeypatch, no_ledgers):
    """An empty local Talon.One, and the Airflow connection ``talon_cdp_default`` that leads to it."""
    _emulator.reset()
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(_emulator.connection()))
    return _emulator


@pytest.fixture
def no_ledgers(monkeypatch, tmp_path):
    """A common state URI of its own for one test."""
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(tmp_path / "ledgers"))


@pytest.fixture(scope="session")
def _stop():
    """A function that stops an emulator while the next test begins: it takes a fifth of a second."""
    with ThreadPoolExecutor() as pool:
        stopped = []
        yield lambda emulator: stopped.append(pool.submit(emulator.__exit__, None, None, None))
        for each in stopped:
            each.result()


@pytest.fixture
def own_talon(_stop):
    """A local Talon.One of its own for one test: a request that another test gave up must not count here."""
    emulator = Emulator()
    yield emulator.__enter__()
    _stop(emulator)


@pytest.fixture
def connect(talon, monkeypatch):
    """Set the Airflow connection: the emulator's, with other fields, and fast, as rates are not the matter
    here."""

    def connect(extra=None, emulator=talon, **fields):
        connection = emulator.connection() | fields
        connection["extra"] = connection["extra"] | {"requests_per_second": 5000} | (extra or {})
        monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))

    connect()
    return connect


@pytest.fixture
def run(connect):
    """Render an operator's templates in a DAG and execute it; check that XCom could hold the result."""

    def run(operator, *, native=False, searchpath=None, **context):
        dag = DAG(
            "dag",
            template_searchpath=searchpath,
            schedule=None,
            start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            render_template_as_native_obj=native,
        )
        dag.add_task(operator)
        operator.resolve_template_files()
        operator.render_template_fields(context, jinja_env=dag.get_template_env())
        result = operator.execute(context)
        assert len(json.dumps(result)) < 3000
        return result

    return run


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
    with s3_served() as url:
        path = bucket("storage", url)
        # Another test of this process may have made it: moto has one memory for all of its servers.
        path.fs.mkdirs("ledgers", exist_ok=True)
        yield path


def pytest_addoption(parser):
    faults = parser.getgroup("faults", "tests/faults")
    faults.addoption("--faults-seed", default=0, type=int, help="seed of the first history")
    faults.addoption(
        "--faults-steps", default=100_000, type=int, help="steps of histories; 1 for one history"
    )
    faults.addoption("--faults-long", action="store_true", help="more kills, and sleeps of full length")


def pytest_collection_modifyitems(items):
    # The longest files come first: as the last one, each would keep one process waiting for another.
    places = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        slow = folder in SLOW_FOLDERS or "s3" in item.fixturenames
        slow = slow or any(fnmatch(item.path.name, pattern) for pattern in SLOW_FILES)
        if slow or any(part in item.name for part in SLOW_PARTS):
            item.add_marker("slow")
        if folder in RELEASE_FOLDERS:
            item.add_marker("release")


def pytest_terminal_summary(terminalreporter):
    """Show what tests measured."""
    reports = [each for each in terminalreporter.getreports("passed") if each.user_properties]
    if reports:
        terminalreporter.section("measured")
    for report in reports:
        for name, value in report.user_properties:
            terminalreporter.line(f"{report.nodeid.rpartition('/')[2]}: {name}: {value}")
