"""Real DAG runs: a migrated metadata database, a warehouse, and what the runs leave behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 2.11
    from airflow.models.dagbag import DagBag

EXAMPLES = Path(__file__).parents[2] / "example_dags"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A file with Airflow's own tables, made by its own command once for all processes of a test session."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    file = folder / "airflow.db"
    with (folder / "airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            home = tmp_path_factory.mktemp("migrated")
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            # Without its bytecode cache Airflow takes twice as long to start.
            env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
            env["AIRFLOW_HOME"] = str(home)
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            (home / file.name).rename(file)
    return file


@pytest.fixture(scope="session", autouse=True)
def _metadata_database(migrated):
    """Airflow's own tables."""
    shutil.copy(migrated, os.environ["AIRFLOW_HOME"])


@pytest.fixture(scope="session", autouse=True)
def _one_api_server():
    """Airflow 3.1 builds its API server anew for each task of a test run, in 3 s; later versions keep it.

    Airflow 2.11 has none to import.
    """
    try:
        from airflow.sdk.execution_time import supervisor  # noqa: PLC0415 - see above
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(supervisor.in_process_api_server, "cache_info"):
            patch.setattr(supervisor, "in_process_api_server", cache(supervisor.in_process_api_server))
        yield


@pytest.fixture(scope="session")
def load_dags():
    """A function that parses a folder or a file as Airflow does."""

    def load(path: Path) -> DagBag:
        return DagBag(str(path))

    return load


@pytest.fixture(scope="session")
def examples(load_dags):
    """The example DAGs."""
    return load_dags(EXAMPLES)


def connection(talon, **fields: Any) -> str:
    """The Airflow connection to an emulator, without a limit, as it has none."""
    connection = talon.connection() | fields
    connection["extra"] |= {"requests_per_second": 5000}
    return json.dumps(connection)


@pytest.fixture
def talon(talon, monkeypatch):
    """The same emulator, without a limit."""
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", connection(talon))
    return talon


@pytest.fixture
def warehouse(tmp_path, monkeypatch):
    """An empty SQLite warehouse, and the Airflow connection ``warehouse`` that leads to it."""
    file = tmp_path / "warehouse.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(file)}))
    return file


@pytest.fixture(scope="session")
def run(examples):
    """A function that runs an example DAG whole and gives its run."""
    # All of them each time: what dag.test() is given becomes the default of the runs after it.
    defaults = {dag_id: dag.params.dump() for dag_id, dag in examples.dags.items()}

    def run_dag(dag_id: str, conf: dict[str, Any] | None = None, **options: Any) -> Any:
        return examples.dags[dag_id].test(run_conf=defaults[dag_id] | (conf or {}), **options)

    return run_dag


@pytest.fixture(scope="session")
def left_behind():
    """A function that gives what a DAG run left in Airflow's database: XComs and rendered templates, as
    JSON."""

    def read(dag_run: Any) -> tuple[list[str], list[str]]:
        with closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if "xcom" in tables:
                xcoms = "xcom WHERE run_id = ?"
                rendered = "rendered_task_instance_fields WHERE run_id = ?"
            else:  # Airflow 3.4
                of_the_run = "JOIN task_instance ti ON ti.id = task_instance_id WHERE ti.run_id = ?"
                xcoms, rendered = f"xcom_v2 {of_the_run}", f"rtif_v2 {of_the_run}"
            return (
                _texts(database, f"SELECT CAST(value AS TEXT) FROM {xcoms}", dag_run),
                _texts(database, f"SELECT CAST(rendered_fields AS TEXT) FROM {rendered}", dag_run),
            )

    return read


def _texts(database: sqlite3.Connection, sql: str, dag_run: Any) -> list[str]:
    return [_json_text(value) for (value,) in database.execute(sql, (dag_run.run_id,))]


def _json_text(value: str) -> str:
    """JSON as text; some Airflow versions keep it as a JSON string of JSON."""
    content = json.loads(value)
    is_json = isinstance(content, str) and content.startswith(("{", "["))
    return _json_text(content) if is_json else json.dumps(content)
