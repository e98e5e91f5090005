"""The process of a real task gets SIGKILL in the middle of a mirror of 200,000 members, or of sending
attributes of 6,000 profiles, and Airflow retries it.

The task runs as an executor's worker runs it (``worker.py``): Airflow forks a process for each try, and
learns from its exit that it was killed. The next try has the same DAG, task, run and map index, as the
scheduler would have it. How many changes were sent twice stands at the end of pytest's output.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
import requests
from packaging.version import Version

from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, ledger_name

# The first test waits until Airflow has made its database, and several wait for many tries of a task.
pytestmark = pytest.mark.timeout(235)

ROOT = Path(__file__).parents[2]
MEMBERS = 200_000
SEED = int(os.environ.get("TALON_CDP_TEST_SEED", "20261123"))
DAG_FILE = """
import time
from datetime import datetime, timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator


def wait_here(context, result=None):
    hold = Path(HOLD)
    while hold.exists():
        hold.write_text("here")
        time.sleep(0.02)


with DAG("members", schedule=None, start_date=datetime(2026, 1, 1)):
    SqlToTalonAudienceOperator(
        task_id="mirror",
        sql="SELECT profile_id FROM customers",
        sql_conn_id="warehouse",
        mode="mirror",
        audience_id="{{ dag_run.conf['audience'] }}",
        audience_name="{{ dag_run.conf['audience'] }}",
        max_removal_fraction=1,
        state_uri=STATE,
        retries=20,
        retry_delay=timedelta(0),
        post_execute=wait_here,
    )
    SqlToTalonProfilesOperator(
        task_id="profiles",
        sql="SELECT profile_id, tier, score FROM people",
        sql_conn_id="warehouse",
        nulls="delete",
        on_missing="clear",
        max_removal_fraction=1,
        ledger="{{ dag_run.conf['ledger'] }}",
        state_uri=STATE,
        talon_cdp_conn_id="talon_cdp_fast",
        retries=20,
        retry_delay=timedelta(0),
    )
"""
DEPLOYMENT_HOST = "demo.europe-west1.talon.one"


class Emulator:
    """An emulator in a process of its own, read over HTTP."""

    def __init__(self, url):
        self.url = url
        self.session = requests.Session()

    def get(self, path):
        return self.session.get(f"{self.url}/emulator/{path}", timeout=30).json()

    def arrived(self):
        """About how many membership changes were applied, those that changed nothing included."""
        return self.get("state")["requests"]["by_status"].get("204", 0) * 1000

    def changes(self):
        """Exactly how many, if there were no more requests than the emulator keeps."""
        return sum(each["changes"] for each in self.get("requests")["requests"] if each["status"] == 204)

    def profiles_arrived(self):
        """How many updates of profiles were applied."""
        return self.get("state")["requests"]["by_operation"].get("update_profile", 0)

    def attributes(self):
        return self.get("profiles")["profiles"]

    def members(self, audience):
        return set(self.get(f"audiences/{audience}/members")["members"])

    def reset(self):
        self.session.post(f"{self.url}/emulator/reset", timeout=30).raise_for_status()


class Worker:
    """``worker.py``, with bounded waits for what it says."""

    def __init__(self, process, log):
        self.process = process
        self.log = log
        self.log_position = 0

    def start(self, run_id, task_id="mirror", **conf):
        """Start a try of the task; its process ID."""
        self.log_position = self.log.stat().st_size
        order = {"run_id": run_id, "task_id": task_id, "conf": conf}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()["pid"]

    def hear(self):
        line = self.process.stdout.readline()
        assert line, self.log.read_text()[-3000:]
        return json.loads(line)

    def said(self):
        """What was logged since the start of the last try."""
        with self.log.open() as file:
            file.seek(self.log_position)
            return file.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


def stop(process):
    if process.stdin is None:
        process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="module")
def emulator():
    command = [
        sys.executable,
        "-m",
        "airflow_provider_talon_cdp.emulator",
        "--port",
        "0",
        "--service-time",
        "0.05",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Emulator(re.search(r"http://[\d.]+:\d+", process.stdout.readline())[0])
        finally:
            stop(process)


@pytest.fixture(scope="module")
def worker(folder, emulator):
    dags = folder / "dags"
    dags.mkdir()
    places = {"STATE": str(folder / "state"), "HOLD": str(folder / "hold")}
    (dags / "members.py").write_text(re.sub("STATE|HOLD", lambda name: repr(places[name[0]]), DAG_FILE))
    talon = {
        "conn_type": "talon_cdp",
        "host": emulator.url,
        "password": "local-key-1234567890",
        "extra": {"deployment_host": DEPLOYMENT_HOST, "requests_per_second": 150},
    }
    # The emulator takes 50 ms, so more than 1,280 a second cannot be in flight.
    fast = talon | {"extra": talon["extra"] | {"requests_per_second": 5000}}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # How long Airflow 3 may take to see that a task's process has ended.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW_CONN_TALON_CDP_DEFAULT": json.dumps(talon),
        "AIRFLOW_CONN_TALON_CDP_FAST": json.dumps(fast),
        "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "sqlite", "host": str(folder / "warehouse.db")}),
    }
    log = folder / "worker.log"
    log.touch()
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("worker.py")), str(log)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            worker = Worker(process, log)
            assert worker.hear() == {"ready": True}
            yield worker
        finally:
            # At the end of its lines it ends; its SIGTERM is Airflow's.
            process.stdin.close()
            stop(process)


class Warehouse:
    def __init__(self, path):
        self.path = path
        self.ids = set()

    def write(self, ids):
        if self.ids == (ids := set(ids)):
            return
        self.ids = ids
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS customers")
            connection.execute("CREATE TABLE customers (profile_id text)")
            connection.executemany("INSERT INTO customers VALUES (?)", ((each,) for each in self.ids))


@pytest.fixture(scope="module")
def warehouse(folder):
    return Warehouse(folder / "warehouse.db")


def wait_until(ready, seconds=60):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def ledger_of(folder, emulator):
    def read(audience):
        identity = LedgerIdentity(
            deployment_host=DEPLOYMENT_HOST, base_url=emulator.url, name=ledger_name("audience", audience)
        )
        return Ledger(folder / "state", identity)

    return read


@pytest.fixture
def kill(worker, emulator, ledger_of):
    """Start a try, wait for its moment, kill it; how many changes had arrived."""

    def run(audience, moment):
        process = worker.start(audience, audience=audience)
        moment(ledger_of(audience).folder)
        os.kill(process, signal.SIGKILL)
        arrived = emulator.arrived()
        end = worker.hear()
        assert end["state"] == "up_for_retry", f"the kill came too late, or Airflow gave up: {end}"
        return arrived

    return run


@pytest.fixture
def finish(worker, emulator, warehouse, ledger_of):
    """Let the task run to its end, and compare the warehouse, Talon.One and the ledger."""

    def run(audience):
        worker.start(audience, audience=audience)
        end = worker.hear()
        assert end["state"] == "success", worker.said()[-3000:]
        ledger = ledger_of(audience)
        ledger.load()
        known = {profile_id for chunk in ledger.known() for profile_id in chunk.ids}
        assert known == warehouse.ids, differences(known, warehouse.ids)
        assert not list(ledger.uncertain())
        members = emulator.members(audience)
        assert members == warehouse.ids, differences(members, warehouse.ids)

    return run


def differences(have, want):
    return f"{len(have - want):,} too many, {len(want - have):,} missing"


@pytest.fixture
def generator(request):
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(autouse=True)
def _anew(emulator):
    emulator.reset()


def customers(start, stop):
    return [f"customer-{each * 7919 % 1_000_003:07}" for each in range(start, stop)]


def when(pattern):
    """The moment when the ledger has such a file."""
    return lambda folder: wait_until(lambda: any(folder.glob(pattern)))


@pytest.fixture
def after(emulator):
    """The moment when that many more changes have arrived."""

    def moment(number):
        target = emulator.arrived() + number
        return lambda _: wait_until(lambda: emulator.arrived() >= target)

    return moment


@pytest.fixture
def note(emulator, record_property):
    """Report how many changes had arrived at each kill, and how many were sent twice in the end."""

    def noted(*arrived):
        twice = emulator.changes() - MEMBERS
        killed = ", ".join(f"{each:,}" for each in arrived)
        record_property("SIGKILL when changes had arrived", f"{killed}; sent twice in the end: {twice:,}")

    return noted


@pytest.mark.parametrize(
    "audience, file",
    [
        pytest.param("planning", ".plan-00000.*", id="while the plan is written"),
        pytest.param("planned", "plan-00001.*", id="before the first request"),
    ],
)
def test_a_kill_while_nothing_was_sent(audience, file, warehouse, emulator, kill, finish, note):
    warehouse.write(customers(0, MEMBERS))
    arrived = kill(audience, when(f"*/{file}"))
    assert arrived == 0
    finish(audience)
    note(arrived)
    assert emulator.changes() == MEMBERS


def test_a_kill_during_the_push(generator, worker, warehouse, after, kill, finish, note):
    """Airflow keeps the cursor from 3.3 on; before, the retry reads the query at once."""
    warehouse.write(customers(0, MEMBERS))
    arrived = kill("push", after(generator.randrange(60_000, 140_000)))
    finish("push")
    resumes = Version(version("apache-airflow")) >= Version("3.3")
    assert ("Resuming the plan of an earlier try" in worker.said()) == resumes
    note(arrived)


def test_a_kill_after_the_last_acknowledgement(folder, warehouse, emulator, kill, finish, note):
    warehouse.write(customers(0, MEMBERS))
    hold = folder / "hold"
    hold.touch()
    arrived = kill("last", lambda _: wait_until(lambda: hold.read_text() == "here"))
    hold.unlink()
    finish("last")
    note(arrived)
    assert emulator.changes() == MEMBERS


def test_kills_of_one_try_after_another(generator, warehouse, after, kill, finish, note):
    """The first one comes between the plan and its first answers, the others anywhere in the push."""
    warehouse.write(customers(0, MEMBERS))
    arrived = [kill("chain", when("manifest-*.json"))]
    arrived += [kill("chain", after(generator.randrange(1_000, 30_000))) for _ in range(5)]
    finish("chain")
    note(*arrived)


def test_the_retry_is_exact_though_the_warehouse_changed(generator, warehouse, after, kill, finish):
    """Of what was on its way, a part has left the warehouse again before the retry."""
    warehouse.write(customers(0, MEMBERS))
    kill("changed", after(generator.randrange(60_000, 140_000)))
    stay = [each for each in sorted(warehouse.ids) if generator.random() > 0.3]
    warehouse.write([*stay, *customers(MEMBERS, MEMBERS + 5000)])
    finish("changed")


PROFILES = 6000


def test_kills_while_attributes_are_sent(generator, folder, worker, emulator, warehouse, record_property):
    """The first two kills meet the warehouse as it was first, the others one that has changed."""

    def write(people):
        with closing(sqlite3.connect(warehouse.path)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS people")
            connection.execute("CREATE TABLE people (profile_id text, tier text, score int)")
            connection.executemany(
                "INSERT INTO people VALUES (?, ?, ?)", ((each, *values) for each, values in people.items())
            )

    def kill(number):
        process = worker.start("people", "profiles", ledger="kills")
        target = emulator.profiles_arrived() + number
        wait_until(lambda: emulator.profiles_arrived() >= target)
        os.kill(process, signal.SIGKILL)
        end = worker.hear()
        assert end["state"] == "up_for_retry", f"the kill came too late, or Airflow gave up: {end}"
        return emulator.profiles_arrived()

    people = {
        each: (generator.choice([None, "gold"]), generator.randrange(100)) for each in customers(0, PROFILES)
    }
    write(people)
    arrived = [kill(1), kill(generator.randrange(1000, 3000))]
    # Of what was on its way, a part is gone or otherwise before the retry.
    people = {
        each: ("silver", score) if generator.random() < 0.5 else (tier, score)
        for each, (tier, score) in people.items()
        if generator.random() < 0.9
    }
    write(people)
    arrived += [kill(generator.randrange(200, 1000)) for _ in range(2)]
    worker.start("people", "profiles", ledger="kills")
    end = worker.hear()
    assert end["state"] == "success", worker.said()[-3000:]
    wanted = {
        each: {"score": score} | ({"tier": tier} if tier else {}) for each, (tier, score) in people.items()
    }
    held = {each: attributes for each, attributes in emulator.attributes().items() if attributes}
    unlike = {each for each in held.keys() | wanted.keys() if held.get(each) != wanted.get(each)}
    assert not unlike, f"{len(unlike):,} profiles differ"
    identity = LedgerIdentity(
        deployment_host=DEPLOYMENT_HOST, base_url=emulator.url, name="profiles:kills", holds="profiles"
    )
    ledger = Ledger(folder / "state", identity)
    ledger.load()
    known = {
        profile: line
        for chunk in ledger.known()
        for profile, line in zip(chunk.ids, chunk.each_key, strict=False)
    }
    assert known.keys() == people.keys(), differences(known.keys(), people.keys())
    assert not [line for line in known.values() if line.startswith("?")]
    killed = ", ".join(f"{each:,}" for each in arrived)
    record_property(
        "SIGKILL when updates of profiles had arrived",
        f"{killed}; in the end {emulator.profiles_arrived():,}",
    )
