"""What Airflow registers after a sync: events of assets, and the DAG that is scheduled on one."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from airflow import settings
from airflow.models.dagrun import DagRun
from sqlalchemy import event

from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2

URI = "talon-cdp://demo.europe-west1.talon.one/audiences/example-everybody"
DAG_FILE = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, Asset
from airflow_provider_talon_cdp import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2

OWN = "talon-cdp://demo.europe-west1.talon.one/audiences/own"

with DAG("own_outlet", schedule=None, start_date=datetime(2026, 1, 1)):
    SyncAudienceMembersOperator(
        task_id="sync",
        audience_id="own",
        audience_name="Own",
        members=["anna", "bert"],
        mode="mirror",
        # Airflow 2 has no names of assets.
        outlets=[Asset(OWN) if IS_AIRFLOW_2 else Asset(name="our members", uri=OWN)],
    )
"""


@pytest.fixture
def customers(warehouse):
    with closing(sqlite3.connect(warehouse)) as connection, connection:
        connection.execute("CREATE TABLE customers (profile_id text PRIMARY KEY, points int)")
        connection.executemany(
            "INSERT INTO customers VALUES (?, 1)", [(f"c{each:02}",) for each in range(40)]
        )
    return warehouse


def rows_of(dag_run):
    """URI and extra of each event of a run's tasks."""
    with closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        kind = "asset" if "asset_event" in tables else "dataset"
        rows = database.execute(
            f"SELECT uri, {kind}_event.extra FROM {kind}_event JOIN {kind} ON {kind}.id = {kind}_id "
            "WHERE source_run_id = ?",
            (dag_run.run_id,),
        )
        return [(uri, json.loads(extra)) for uri, extra in rows]


def events_of(dag_run):
    """Extra by URI of the assets that a run's tasks updated, one event of each."""
    rows = rows_of(dag_run)
    events = dict(rows)
    assert len(events) == len(rows)
    return events


def test_a_sync_emits_its_audience_and_its_profiles_with_counts(run, examples, talon, customers):
    if IS_AIRFLOW_2:
        # It registers events of what some DAG is scheduled on.
        examples.sync_to_db()
    dag_run = run("talon_across_workers")
    assert dag_run.state == "success"
    events = events_of(dag_run)
    profiles = "talon-cdp://demo.europe-west1.talon.one/profiles/talon_across_workers.points.plan"
    assert set(events) == ({URI} if IS_AIRFLOW_2 else {URI, profiles})
    extra = events[URI]
    assert extra == {
        "added": 40,
        "removed": 0,
        "members": 40,
        "rejected": 0,
        "unclear": 0,
        "ledger_version": 1,
        "run": dag_run.run_id,
    }


def test_a_dry_run_and_a_red_run_emit_nothing(run, talon, customers):
    assert events_of(run("talon_across_workers", {"dry_run": True})) == {}
    talon.fail_next("status", status=401, times=None)
    dag_run = run("talon_across_workers")
    assert dag_run.state == "failed"
    assert events_of(dag_run) == {}


def test_the_dag_that_is_scheduled_on_the_audience_streams_a_function_into_another(
    run, examples, talon, customers
):
    run("talon_across_workers")
    assert run("talon_after_audience").state == "success"
    assert talon.members("example-holdout") == {"c00", "c10", "c20", "c30"}


@pytest.fixture
def run_own(load_dags, tmp_path, monkeypatch):
    """A function that runs the DAG of ``DAG_FILE``."""

    def run_dag():
        file = tmp_path / "dags" / "own.py"
        file.parent.mkdir()
        file.write_text(DAG_FILE)
        # Where dag.test() looks for the DAG's file.
        monkeypatch.setattr(settings, "DAGS_FOLDER", str(file.parent))
        bag = load_dags(file)
        if IS_AIRFLOW_2:
            bag.sync_to_db()
        dag_run = bag.dags["own_outlet"].test()
        assert dag_run.state == "success"
        return dag_run

    return run_dag


@pytest.fixture
def partition():
    """The partition of all DAG runs that are created, as dag.test() cannot be told one."""

    def set_partition(dag_run, args, arguments):
        arguments["partition_key"] = "eu"

    event.listen(DagRun, "init", set_partition)
    yield "eu"
    event.remove(DagRun, "init", set_partition)


def test_an_outlet_of_the_users_own_has_one_event_with_the_counts(run_own, talon):
    ((uri, extra),) = rows_of(run_own())
    assert uri == "talon-cdp://demo.europe-west1.talon.one/audiences/own"
    assert (extra["added"], extra["members"], extra["ledger_version"]) == (2, 2, 1)


@pytest.mark.skipif(not hasattr(DagRun, "partition_key"), reason="Airflow 3.2 and newer have partitions")
def test_the_event_of_a_partitioned_run_has_the_partition(run_own, talon, partition):
    ((_, extra),) = rows_of(run_own())
    assert (extra["partition_key"], extra["added"]) == (partition, 2)
