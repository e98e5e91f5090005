"""A real Airflow with its LocalExecutor, and tasks that people and Airflow stop in the middle of a push."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
import sqlite3
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from tests.airflow.stopped_dags import TIMEOUTS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "demo"))
from local import environment, get, started, tail  # noqa: E402 - the demo's own module

pytestmark = pytest.mark.skipif(
    not version("apache-airflow").startswith("3.3.") or sys.platform != "linux",
    reason="for the release that everything but the matrix runs on",
)
# A request has a thousand, so that a push takes 50 seconds.
MEMBERS, RATE = 200_000, 4
# Seconds; a push at that rate sends all the time.
PAUSE = 1.5
# How often a task asks whether it is still wanted.
HEARTBEAT = 1
# After it was told to stop.
SECONDS_TO_STOP = 2


class Place:
    """An Airflow, a warehouse, and a Talon.One for each DAG.

    Args:
        home: An empty folder.
        talons: By DAG.
    """

    def __init__(self, home, talons):
        self.home = home
        self.talons = talons
        self._port, self._log_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._token = ""
        # Without one, three processes would write theirs at once, each with a secret of its own.
        (home / "airflow.cfg").touch()
        (home / "dags").mkdir()
        shutil.copy(Path(__file__).with_name("stopped_dags.py"), home / "dags")

    @contextlib.contextmanager
    def running(self):
        """Run Airflow, from when it knows the DAGs."""
        talons = {
            f"AIRFLOW_CONN_{dag}_{speed}".upper(): json.dumps(
                talon.connection() | {"extra": talon.connection()["extra"] | {"requests_per_second": rate}}
            )
            for dag, talon in self.talons.items()
            for speed, rate in (("slow", RATE), ("fast", 2000))
        }
        warehouse = {"conn_type": "sqlite", "host": str(self.home / "warehouse.db")}
        env = environment(
            self.home,
            PYTHONPATH=str(ROOT),
            AIRFLOW__CORE__DAGS_FOLDER=str(self.home / "dags"),
            AIRFLOW__CORE__EXECUTOR="LocalExecutor",
            AIRFLOW__CORE__PARALLELISM="3",
            AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
            AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_hex(),
            AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{self.url}/execution/",
            AIRFLOW__API__HOST="127.0.0.1",
            AIRFLOW__API__PORT=str(self._port),
            AIRFLOW__API__BASE_URL=self.url,
            AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(self._log_port),
            AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL=str(HEARTBEAT),
            AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME="0.3",
            AIRFLOW__TALON_CDP__STATE_URI=f"file://{self.home}/state",
            AIRFLOW_CONN_WAREHOUSE=json.dumps(warehouse),
            **talons,
        )
        with contextlib.ExitStack() as stack:
            parts = {
                self.home / f"{part}.log": stack.enter_context(
                    started(["airflow", part], env, self.home / f"{part}.log")
                )
                for part in ("api-server", "scheduler", "dag-processor")
            }

            def knows_all():
                for log, process in parts.items():
                    assert process.poll() is None, tail(log)
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                    self._token = self._token or json.loads(get(self.url, "/auth/token")[1])["access_token"]
                    return self.call("GET", "dags/next_run")[0] == http.client.OK
                return False

            until(knows_all, 240)
            yield

    def call(self, method, path, body=None):
        """Call Airflow's API; return the status and the answer."""
        host = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=30)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request(method, f"/api/v2/{path}", json.dumps(body or {}), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def trigger(self, dag, run_id, **conf):
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        status, answer = self.call("POST", f"dags/{dag}/dagRuns", body)
        assert status == http.client.OK, answer

    def task(self, dag, run_id):
        """The task instance, as Airflow's API shows it."""
        return self.call("GET", f"dags/{dag}/dagRuns/{run_id}/taskInstances/sync")[1]

    def is_done(self, dag, run_id):
        return self.task(dag, run_id)["state"] in ("success", "failed")

    def log(self, dag, attempt=1):
        """The lines that a try of a task in the run ``first`` logged."""
        folder = self.home / "logs" / f"dag_id={dag}" / "run_id=first" / "task_id=sync"
        return [json.loads(line) for line in (folder / f"attempt={attempt}.log").read_text().splitlines()]

    def logged(self, dag, event):
        """When the first try of a task logged something."""
        lines = self.log(dag)
        return next(datetime.fromisoformat(each["timestamp"]) for each in lines if each["event"] == event)

    def fill(self, first, last):
        with contextlib.closing(sqlite3.connect(self.home / "warehouse.db")) as warehouse, warehouse:
            warehouse.execute("DROP TABLE IF EXISTS customers")
            warehouse.execute("CREATE TABLE customers (profile_id text PRIMARY KEY)")
            rows = ((f"c{number:06}",) for number in range(first, last))
            warehouse.executemany("INSERT INTO customers VALUES (?)", rows)

    def locks(self):
        """Locks of all ledgers."""
        return [each for each in (self.home / "state").glob("*/*/locks/*") if each.is_file()]


def until(is_so, seconds):
    """Wait until something is so."""
    limit = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.2)


def times_of(talon):
    """When the requests that change members were answered."""
    return [
        datetime.fromisoformat(each["time"])
        for each in talon.requests()
        if each["operation"] == "update_profiles_external"
    ]


def since(moment):
    return (datetime.now(UTC) - moment).total_seconds()


def last_before_a_pause(times, after):
    """The last request before a pause that a push does not make, from some time on."""
    following = [*times[1:], datetime.now(UTC)]
    pairs = zip(times, following, strict=True)
    return next(time for time, later in pairs if later > after and (later - time).total_seconds() > PAUSE)


@pytest.fixture(scope="module")
def place(tmp_path_factory, migrated):
    home = tmp_path_factory.mktemp("airflow")
    shutil.copy(migrated, home)
    with contextlib.ExitStack() as stack:
        talons = {dag: stack.enter_context(Emulator()) for dag in (*TIMEOUTS, "added")}
        place = Place(home, talons)
        place.fill(0, MEMBERS)
        stack.enter_context(place.running())
        yield place


def test_a_task_that_is_stopped_stops_sending_gives_its_ledger_back_and_the_next_run_is_exact(place):
    """Marked as failed, cleared, and after its ``execution_timeout``; all three at once, to save time."""
    for dag in TIMEOUTS:
        place.trigger(dag, "first")
    for dag in TIMEOUTS:
        until(lambda dag=dag: len(times_of(place.talons[dag])) >= 5, 90)

    # A wrong state is told in the answer.
    marked = datetime.now(UTC)
    path = "dags/marked/dagRuns/first/taskInstances/sync"
    status, answer = place.call("PATCH", path, {"new_state": "failed"})
    assert status == http.client.OK, answer
    cleared = datetime.now(UTC)
    body = {"dry_run": False, "task_ids": ["sync"], "dag_run_id": "first", "only_failed": False}
    status, answer = place.call("POST", "dags/cleared/clearTaskInstances", body)
    assert status == http.client.OK, answer
    until(lambda: place.is_done("timed_out", "first"), 60)
    until(lambda: place.task("cleared", "first")["try_number"] == 2, 30)
    until(lambda: since(times_of(place.talons["timed_out"])[-1]) > 2 * PAUSE, 30)

    stopped = {
        "marked": marked,
        "cleared": cleared,
        "timed_out": place.logged("timed_out", "Process timed out"),
    }
    ends = {dag: last_before_a_pause(times_of(place.talons[dag]), at) for dag, at in stopped.items()}
    seconds = {dag: (ends[dag] - stopped[dag]).total_seconds() for dag in stopped}
    # Airflow tells a task at its next heartbeat that it is not wanted any more.
    assert max(seconds.values()) < HEARTBEAT + SECONDS_TO_STOP, seconds
    assert all(place.task(dag, "first")["state"] == "failed" for dag in ("marked", "timed_out"))
    for dag in ("marked", "timed_out"):
        assert 0 < len(place.talons[dag].members("vip")) < MEMBERS

    # The cleared task has gone on by itself.
    until(lambda: place.is_done("cleared", "first"), 60)
    assert place.task("cleared", "first")["state"] == "success"
    assert len(place.talons["cleared"].members("vip")) == MEMBERS
    assert place.locks() == []

    place.fill(1000, MEMBERS + 1000)
    for dag in TIMEOUTS:
        place.trigger("next_run", dag, of=dag)
    for dag in TIMEOUTS:
        until(lambda dag=dag: place.is_done("next_run", dag), 60)
        assert place.task("next_run", dag)["state"] == "success", dag
        assert place.talons[dag].members("vip") == {f"c{each:06}" for each in range(1000, MEMBERS + 1000)}


def test_a_retry_of_an_addition_continues_and_a_person_who_clears_it_has_all_rows_sent(place):
    continues = "An earlier try sent the first rows. This one continues where it ended."
    talon = place.talons["added"]
    talon.create_audience("vip", "VIP")
    place.trigger("added", "first")

    def is_done(attempt):
        task = place.task("added", "first")
        return task["try_number"] == attempt and task["state"] in ("success", "failed")

    until(lambda: is_done(2), 120)
    sent = len(times_of(talon))
    assert place.task("added", "first")["state"] == "success"
    assert len(talon.members("vip")) == MEMBERS
    assert continues in [each["event"] for each in place.log("added", 2)]
    # At most those in flight and those of the last two seconds are sent again.
    assert MEMBERS / 1000 < sent < MEMBERS / 1000 + 40

    # Until then, clearing the task would not start the run again.
    until(lambda: place.call("GET", "dags/added/dagRuns/first")[1]["state"] == "success", 30)
    body = {"dry_run": False, "task_ids": ["sync"], "dag_run_id": "first", "only_failed": False}
    status, answer = place.call("POST", "dags/added/clearTaskInstances", body)
    assert status == http.client.OK, answer
    until(lambda: is_done(3), 60)
    assert len(times_of(talon)) == sent + MEMBERS / 1000
    assert continues not in [each["event"] for each in place.log("added", 3)]
