"""What Airflow's OpenLineage provider writes of a green and of a red sync."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

DAG_FILE = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_talon_cdp import SqlToTalonAudienceOperator

with DAG("lineage", schedule=None, start_date=datetime(2026, 1, 1)):
    for name, more in (("green", ""), ("red", " UNION SELECT ''")):
        SqlToTalonAudienceOperator(
            task_id=name,
            sql="SELECT 'anna' AS profile_id" + more,
            sql_conn_id="warehouse",
            mode="mirror",
            audience_id=name,
            audience_name=name,
        )
"""


@pytest.fixture
def events(talon, warehouse, tmp_path):
    """Run the DAG in an Airflow with a file transport; what the file has, by type and job."""
    pytest.importorskip("airflow.providers.openlineage")
    sqlite3.connect(warehouse).close()
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


def test_a_green_and_a_red_sync_tell_what_was_changed(events):
    for kind, job in (("COMPLETE", "green"), ("FAIL", "red")):
        (output,) = events[kind, f"lineage.{job}"]["outputs"]
        assert output["namespace"] == "talon-cdp://demo.europe-west1.talon.one"
        assert output["name"] == f"audiences/{job}"
        assert output["outputFacets"]["outputStatistics"]["rowCount"] == 1
