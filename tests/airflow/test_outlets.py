"""Calls that emit nothing by themselves, and the ``outlets`` that docs/operators.md gives one of them."""

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


@pytest.fixture
def told(talon, tmp_path):
    """Run the DAG in an Airflow of its own; asset events by task, and the outputs that OpenLineage got."""
    pytest.importorskip("airflow.providers.openlineage")
    dags, file, home = tmp_path / "dags", tmp_path / "events.jsonl", tmp_path / "home"
    dags.mkdir()
    body = (SHOWN + CALLS).replace("\n", "\n    ")
    (dags / "calls.py").write_text(f"{HEAD}    {body}\n")
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
    }
    for command in (["db", "migrate"], ["dags", "reserialize"], ["dags", "test", "calls"]):
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert talon.profile("anna")["attributes"] == {"Tier": "gold"}
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        kind = "asset" if "asset_event" in tables else "dataset"
        events = database.execute(
            f"SELECT source_task_id, uri FROM {kind}_event JOIN {kind} ON {kind}.id = {kind}_id"
        ).fetchall()
    lineage = [json.loads(line) for line in file.read_text().splitlines()]
    outputs = {
        each["job"]["name"].removeprefix("calls."): [
            f"{output['namespace']}/{output['name']}" for output in each["outputs"]
        ]
        for each in lineage
        if each["eventType"] == "COMPLETE" and each["job"]["name"] != "calls"
    }
    return events, outputs


def test_a_call_emits_what_its_outlets_say_and_others_nothing(told):
    events, outputs = told
    assert events == [("create", URI)]
    assert outputs == {"create": [URI], "rename": [], "profile": [], "move": [], "delete": []}
