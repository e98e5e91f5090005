"""What Airflow's OpenLineage provider writes of a green and of a red sync, and of a group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from tests.transfers import conftest as transfers

DAG_FILE = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_talon_cdp import SqlToTalonAudienceOperator, talon_audience_sync

with DAG("lineage", schedule=None, start_date=datetime(2026, 1, 1)):
    for name, more in (("green", ""), ("red", " UNION SELECT ''")):
        SqlToTalonAudienceOperator(
            task_id=name,
            sql="SELECT profile_id FROM customers" + more,
            sql_conn_id="warehouse",
            mode="mirror",
            audience_id=name,
            audience_name=name,
        )
    talon_audience_sync(
        "group",
        sql="SELECT profile_id, audience FROM customers",
        sql_conn_id="warehouse",
        audience_column="audience",
        audience_name_column="audience",
        plan_workers=2,
    )
"""
# SQLite's hook does not tell OpenLineage of its database.
postgres_folder = transfers.postgres_folder


@pytest.fixture
def warehouse(postgres_folder, monkeypatch):
    """A table with the members of two audiences."""
    connection = {"conn_type": "postgres", "login": "postgres", "host": postgres_folder, "schema": "postgres"}
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    rows = "VALUES ('anna', 'gold'), ('bert', 'gold'), ('anna', 'vip')"
    table = f"CREATE TABLE customers AS SELECT * FROM ({rows}) AS r (profile_id, audience)"
    BaseHook.get_connection("warehouse").get_hook().run(table)


@pytest.fixture
def events(talon, warehouse, tmp_path):
    """Run the DAG in an Airflow with a file transport; what the file has, by type and job."""
    pytest.importorskip("airflow.providers.openlineage")
    dags, file = tmp_path / "dags", tmp_path / "events.jsonl"
    dags.mkdir()
    (dags / "lineage.py").write_text(DAG_FILE)
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    env = os.environ | {
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
    }
    command = [sys.executable, "-m", "airflow", "dags", "test", "lineage"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    with closing(file.open()) as lines:
        found = [json.loads(line) for line in lines]
    assert found, done.stdout + done.stderr
    return {(each["eventType"], each["job"]["name"]): each for each in found}


def test_a_sync_tells_what_was_read_and_how_much_was_changed(events):
    def rows(kind, job):
        """Of a task's outputs, once its input is seen to be the table."""
        event = events[kind, f"lineage.{job}"]
        (read,) = event["inputs"]
        assert read["namespace"].startswith("postgres://")
        assert read["name"] == "postgres.public.customers"
        assert {each["namespace"] for each in event["outputs"]} <= {"talon-cdp://demo.europe-west1.talon.one"}
        return {
            each["name"]: each["outputFacets"]["outputStatistics"]["rowCount"] for each in event["outputs"]
        }

    assert rows("COMPLETE", "green") == {"audiences/green": 2}
    assert rows("FAIL", "red") == {"audiences/red": 2}
    for task in ("ranges", "compare", "plan"):
        assert rows("COMPLETE", f"group.{task}") == {}
    assert rows("START", "group.commit") == {}
    assert rows("COMPLETE", "group.commit") == {"audiences/gold": 2, "audiences/vip": 1}
