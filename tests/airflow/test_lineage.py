"""What Airflow's OpenLineage provider writes of syncs, a group and calls, and events of the calls' assets."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_talon_cdp.emulator import Emulator
from tests.airflow.conftest import connection
from tests.transfers import conftest as transfers

SYNCS = """
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
# Calls emit nothing by themselves. The first has the outlets that the page gives it.
PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
(SHOWN,) = re.findall(r"```python\n([^`]*outlets=[^`]*)```", PAGE)
HEAD = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_talon_cdp import *

with DAG("calls", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
"""
CALLS = """
UpdateAudienceOperator(task_id="rename", audience_id="vip", audience_name="Very important")
UpdateProfileOperator(task_id="profile", customer_profile_id="anna", attributes={"Tier": "gold"})
UpdateProfileAudiencesOperator(task_id="move", customer_profile_id="anna", add_audiences=["vip"])
DeleteAudienceOperator(task_id="delete", audience_id="vip")
names = ("create", "rename", "profile", "move", "delete")
for before, after in zip(names, names[1:]):
    dag.get_task(before) >> dag.get_task(after)
assert not [each for each in dag.tasks if each.operator_extra_links]
"""
URI = "talon-cdp://mycompany.europe-west1.talon.one/audiences/vip"
# One Airflow for both DAGs, as it takes seconds to start.
RUN = """
import sys

from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 2.11 and 3.1
    from airflow.models.dagbag import DagBag

bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
if IS_AIRFLOW_2:
    # It registers events of assets that it knows; newer versions come to know them when they test a DAG.
    bag.sync_to_db()
states = {dag_id: bag.dags[dag_id].test().state for dag_id in ("calls", "lineage")}
assert states == {"calls": "success", "lineage": "failed"}, states
"""
# SQLite's hook does not tell OpenLineage of its database.
postgres_folder = transfers.postgres_folder


@pytest.fixture(scope="module")
def lines(postgres_folder, tmp_path_factory):
    """Run both DAGs in an Airflow with a file transport; what the file has."""
    pytest.importorskip("airflow.providers.openlineage")
    folder = tmp_path_factory.mktemp("lineage")
    dags, file = folder / "dags", folder / "events.jsonl"
    dags.mkdir()
    (dags / "syncs.py").write_text(SYNCS)
    body = (SHOWN + CALLS).replace("\n", "\n    ")
    (dags / "calls.py").write_text(f"{HEAD}    {body}\n")
    warehouse = {"conn_type": "postgres", "login": "postgres", "host": postgres_folder, "schema": "postgres"}
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    with Emulator() as talon, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(warehouse))
        patch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", connection(talon))
        patch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(folder / "ledgers"))
        patch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(dags))
        rows = "VALUES ('anna', 'gold'), ('bert', 'gold'), ('anna', 'vip')"
        table = f"CREATE TABLE customers AS SELECT * FROM ({rows}) AS r (profile_id, audience)"
        BaseHook.get_connection("warehouse").get_hook().run(table)
        command = [sys.executable, "-c", RUN, str(dags)]
        # Set for that process alone: in this one OpenLineage would listen to the DAG runs of later tests.
        env = os.environ | {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert talon.profile("anna")["attributes"] == {"Tier": "gold"}
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_sync_tells_what_was_read_and_how_much_was_changed(lines):
    events = {(each["eventType"], each["job"]["name"]): each for each in lines}

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


def test_a_call_emits_what_its_outlets_say_and_others_nothing(lines):
    outputs = {
        each["job"]["name"].removeprefix("calls."): [
            f"{output['namespace']}/{output['name']}" for output in each["outputs"]
        ]
        for each in lines
        if each["eventType"] == "COMPLETE" and each["job"]["name"].startswith("calls.")
    }
    assert outputs == {"create": [URI], "rename": [], "profile": [], "move": [], "delete": []}
    with closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        kind = "asset" if "asset_event" in tables else "dataset"
        events = database.execute(
            f"SELECT source_task_id, uri FROM {kind}_event JOIN {kind} ON {kind}.id = {kind}_id "
            "WHERE source_dag_id = 'calls'"
        ).fetchall()
    assert events == [("create", URI)]
