"""The example DAGs in a whole Airflow: a sync's asset starts another DAG, and a person approves a plan."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from tests.ports import free_port

DEMO = Path(__file__).parents[2] / "demo"
sys.path.append(str(DEMO))
from local import Talon, environment, run  # noqa: E402 - the demo's own module

pytestmark = pytest.mark.skipif(
    not version("apache-airflow").startswith("3.3."),
    reason="for the release that everything but the matrix runs on",
)
SYNC, AFTER = "talon_across_workers", "talon_after_audience"
ENDED = {"success", "failed", "skipped", "upstream_failed"}
WAITS_FOR_AN_ANSWER = {"awaiting_input", "deferred"}
PATIENCE = 240


class Place:
    """``make ui``: Airflow with the example DAGs, beside a local Talon.One and a warehouse."""

    def __init__(self, home):
        self.home, self.log = home, home.with_suffix(".log")
        ports = [free_port(), free_port()]
        self.url, talon_url = (f"http://127.0.0.1:{port}" for port in ports)
        self.talon = Talon(talon_url, "")
        self.command = [sys.executable, str(DEMO / "ui.py"), "--home", str(home)]
        self.command += ["--port", str(ports[0]), "--talon-port", str(ports[1])]

    @contextlib.contextmanager
    def running(self):
        """Run it, from when Airflow knows the DAGs."""
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                self.command,
                # A test that reads Airflow's log is not to wait until its buffer is full.
                env=environment(self.home, PYTHONUNBUFFERED="1"),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def knows_the_dags():
            assert process.poll() is None, self.log.read_text()
            if "Ctrl-C stops both" not in self.log.read_text():
                return False
            return {SYNC, AFTER} <= {dag_id for (dag_id,) in self.sql("SELECT dag_id FROM serialized_dag")}

        try:
            until(knows_the_dags)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def sql(self, statement, *values):
        """Rows of Airflow's own database."""
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            return database.execute(statement, values).fetchall()

    def fill(self, points):
        """Forty customers; so many of them have a point."""
        with contextlib.closing(sqlite3.connect(self.home / "warehouse.db")) as warehouse, warehouse:
            warehouse.execute("DROP TABLE IF EXISTS customers")
            warehouse.execute("CREATE TABLE customers (profile_id text PRIMARY KEY, points int)")
            rows = ((f"c{number:02}", int(number < points)) for number in range(40))
            warehouse.executemany("INSERT INTO customers VALUES (?, ?)", rows)

    def trigger(self, dag_id, run_id):
        run(
            ["airflow", "dags", "trigger", dag_id, "--run-id", run_id],
            environment(self.home),
            self.home / "trigger.log",
        )

    def runs(self, dag_id):
        """Run ID, type and state of each run."""
        return self.sql("SELECT run_id, run_type, state FROM dag_run WHERE dag_id = ?", dag_id)

    def wait_for_run(self, dag_id):
        """Wait until a DAG has had a run, and give the type and the state of each."""
        until(lambda: any(state in ENDED for _, _, state in self.runs(dag_id)))
        return [(kind, state) for _, kind, state in self.runs(dag_id)]

    def wait_for_task(self, run_id, task_id, states):
        """Wait until a task of ``AFTER`` is in one of these states, and return it."""
        statement = "SELECT state FROM task_instance WHERE dag_id = ? AND run_id = ? AND task_id = ?"
        state = None

        def is_there():
            nonlocal state
            state = next((each for (each,) in self.sql(statement, AFTER, run_id, task_id)), None)
            return state in states or state in ENDED

        until(is_there)
        return state

    def answer(self, run_id, option):
        """Answer what a run of ``AFTER`` asks, through Airflow's API."""
        token = requests.get(f"{self.url}/auth/token", timeout=60).json()["access_token"]
        path = f"dags/{AFTER}/dagRuns/{quote(run_id)}/taskInstances/offer.approve/-1/hitlDetails"
        requests.patch(
            f"{self.url}/api/v2/{path}",
            json={"chosen_options": [option]},
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        ).raise_for_status()


def until(is_so):
    """Wait until something is so."""
    limit = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where everybody was synced once, and what follows has ended."""
    place = Place(tmp_path_factory.mktemp("scheduled") / "home")
    with place.running():
        place.fill(points=40)
        place.trigger(SYNC, "first")
        assert place.wait_for_run(SYNC) == [("manual", "success")]
        yield place


def test_the_event_of_a_sync_starts_the_dag_that_is_scheduled_on_its_audience(place):
    assert place.wait_for_run(AFTER) == [("asset_triggered", "success")]
    members = place.talon.members()
    assert members["example-holdout"] == {"c00", "c10", "c20", "c30"}
    assert len(members["example-offer"]) == 40
    assert place.talon.attributes()["c00"] == {"points": 1, "tier": "silver"}


def test_a_plan_beyond_the_guards_limits_is_sent_when_a_person_has_approved_it(place):
    place.wait_for_run(AFTER)
    place.fill(points=10)
    place.trigger(AFTER, "fewer")
    assert place.wait_for_task("fewer", "offer.approve", WAITS_FOR_AN_ANSWER) in WAITS_FOR_AN_ANSWER
    assert len(place.talon.members()["example-offer"]) == 40
    # Airflow 3.3.2 fails a task that is answered before its scheduler has heard that it waits. No person
    # is that fast.
    heard = f"TaskInstance Finished: dag_id={AFTER}, task_id=offer.approve, run_id=fewer,"
    until(lambda: heard in (place.home / "airflow.log").read_text(errors="replace"))
    place.answer("fewer", "Approve")
    assert place.wait_for_task("fewer", "offer.commit", ENDED) == "success"
    assert place.talon.members()["example-offer"] == {f"c{number:02}" for number in range(10)}
