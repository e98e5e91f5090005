"""What Airflow registers after a sync: events of assets, and the DAG that is scheduled on one."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2

URI = "talon-cdp://demo.europe-west1.talon.one/audiences/example-everybody"


@pytest.fixture
def customers(warehouse):
    with closing(sqlite3.connect(warehouse)) as connection, connection:
        connection.execute("CREATE TABLE customers (profile_id text PRIMARY KEY, points int)")
        connection.executemany(
            "INSERT INTO customers VALUES (?, 1)", [(f"c{each:02}",) for each in range(40)]
        )
    return warehouse


def events_of(dag_run):
    """Extra by URI of the assets that a run's tasks updated."""
    with closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        kind = "asset" if "asset_event" in tables else "dataset"
        rows = database.execute(
            f"SELECT uri, {kind}_event.extra FROM {kind}_event JOIN {kind} ON {kind}.id = {kind}_id "
            "WHERE source_run_id = ?",
            (dag_run.run_id,),
        )
        return {uri: json.loads(extra) for uri, extra in rows}


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
