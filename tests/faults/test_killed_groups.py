"""Tasks of ``talon_audience_sync`` that get SIGKILL at random moments and are tried again.

Each has a process of its own. The ledger is on a local disk, or behind an S3 API with faults.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from tests.faults.group_process import run_task

RANGES = 3
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.faults.group_process", "airflow_provider_talon_cdp.sync.mirror"])


class Group:
    """Runs the tasks of the group.

    Args:
        arguments: Of all tasks but ``push`` and ``commit``.
        chance: Chooses the moments of the kills.
        s3: URL of the S3 API, or None.
    """

    def __init__(self, arguments, chance, s3=None):
        self.arguments = arguments
        self.chance = chance
        self.s3 = s3
        # Seconds that a task may take before it is killed.
        self.seconds = 4.0 if s3 else 0.6
        self.killed = 0

    def run(self, run_id):
        """Run all tasks, and return the report."""
        run = partial(self._complete, run_id)
        before_plan = {"plan_id": "plan", **self.arguments}
        with ThreadPoolExecutor(RANGES) as pool:
            spans, _ = run("DivideQueryOperator", task_id="ranges", ranges=RANGES, **before_plan)
            compare = partial(run, "CompareRangeOperator", task_id="compare", **before_plan)
            reads = [read for read, _ in pool.map(lambda span: compare(span=span), spans)]
            shares, planned = run(
                "PlanAudienceOperator", task_id="plan", workers=2, reads=reads, **self.arguments
            )
            push = partial(run, "PushShareOperator", task_id="push")
            pushed = [share for share, _ in pool.map(lambda share: push(share=share), shares)]
        return run("CommitPlanOperator", task_id="commit", planned=planned, pushed=pushed)[0]

    def _complete(self, run_id, operator, **arguments):
        """Try a task again and again until a try is not killed."""
        for _ in range(self.chance.choice((0, 1, 1, 2))):
            if result := self._try(run_id, operator, arguments, self.chance.uniform(0, self.seconds)):
                return result
            self.killed += 1
        return self._try(run_id, operator, arguments, 120)

    def _try(self, run_id, operator, arguments, seconds):
        """Run a task and kill it after some seconds; return its result, or None."""
        environment = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW")}
        receiver, sender = SERVER.Pipe(duplex=False)
        process = SERVER.Process(
            target=run_task, args=(environment, self.s3, operator, arguments, run_id, sender)
        )
        process.start()
        sender.close()
        with receiver:
            try:
                return receiver.recv() if receiver.poll(seconds) else None
            except EOFError:
                pytest.fail(f"{operator} failed; see its log above")
            finally:
                process.kill()
                process.join()


def sync_with_kills(group, chance, talon, warehouse, rounds, rows):
    for number in range(rounds):
        ids = {f"{chance.getrandbits(40):x}" for _ in range(rows)} | {f"{each:05}" for each in range(rows)}
        with closing(sqlite3.connect(warehouse)) as database, database:
            database.execute("DROP TABLE IF EXISTS customers")
            database.execute("CREATE TABLE customers (profile_id TEXT)")
            database.executemany("INSERT INTO customers VALUES (?)", [(each,) for each in ids])
        report = group.run(f"run-{number}")
        assert talon.members("vip") == ids
        assert report["read"] == report["unchanged"] + report["added"] == len(ids)
    assert group.killed


@pytest.fixture
def talon():
    with Emulator(service_time=0.05) as emulator:
        yield emulator


@pytest.fixture
def warehouse(talon, monkeypatch, tmp_path):
    """A SQLite file, and the connections to it and to Talon.One."""
    path = tmp_path / "warehouse.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    connection = talon.connection()
    connection["extra"] |= {"requests_per_second": 100}
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))
    return path


@pytest.fixture
def arguments(tmp_path):
    names = {"audience_id": "vip", "audience_name": "VIP"}
    source = {"sql": "SELECT profile_id FROM customers", "sql_conn_id": "warehouse"}
    return {**names, **source, "state_uri": str(tmp_path / "state"), "max_removal_fraction": 1}


def test_kills_on_a_local_disk_lose_nothing(arguments, chance, talon, warehouse, is_long):
    rounds, rows = (10, 150_000) if is_long else (2, 10_000)
    sync_with_kills(Group(arguments, chance), chance, talon, warehouse, rounds, rows)


def test_kills_over_an_s3_api_with_faults_lose_nothing(
    arguments, chance, talon, warehouse, is_long, faulty_s3
):
    arguments["state_uri"] = "s3://ledgers@ledgers/state"
    group = Group(arguments, chance, faulty_s3.url)
    sync_with_kills(group, chance, talon, warehouse, 10 if is_long else 1, 5_000)
    assert faulty_s3.met > 10
