"""What the README shows is run, and what it names exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import DAG
from airflow.utils.session import create_session

import airflow_provider_talon_cdp
from airflow_provider_talon_cdp.connection_form import FIELDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True) for block in BASH for line in block.replace("\\\n", " ").splitlines()
]


def command(*words):
    """The one command in the README that starts so."""
    (found,) = [each for each in COMMANDS if each[: len(words)] == list(words)]
    return found


def test_the_dag_makes_an_audience(talon, warehouse, load_dags, tmp_path):
    with closing(sqlite3.connect(warehouse)) as database, database:
        database.execute("CREATE TABLE customers (customer_id TEXT, lifetime_value INTEGER)")
        database.executemany(
            "INSERT INTO customers VALUES (?, ?)", [("anna", 1500), ("bo", 20), ("cem", 1001)]
        )
    (tmp_path / "readme.py").write_text(PYTHON[0])
    bag = load_dags(tmp_path / "readme.py")
    assert bag.import_errors == {}
    # dag.test() wants a file in Airflow's own DAGs folder; the one task needs no other.
    (task,) = bag.dags["vip_audience"].tasks
    assert task.execute({})["sent"] == 2
    assert talon.members("vip") == {"anna", "cem"}
    assert talon.audiences()["vip"]["name"] == "VIP customers"


def test_the_task_for_profiles_sends_attributes(talon, warehouse):
    with closing(sqlite3.connect(warehouse)) as database, database:
        database.execute("CREATE TABLE customers (customer_id, tier, birthday, lifetime_value)")
        database.execute("INSERT INTO customers VALUES ('anna', 'gold', '1990-05-01T00:00:00Z', '19.990')")
    shown = {}
    exec(compile(PYTHON[1], "README.md", "exec"), shown)
    assert shown["profiles"].execute({})["sent"] == 1
    held = talon.profile("anna")["attributes"]
    assert held == {
        "Tier": "gold",
        "Birthday": "1990-05-01T00:00:00Z",
        "LifetimeValue": Decimal("19.99"),
    }


def test_the_connection_command_makes_the_connection():
    arguments = [
        each.replace("$TALON_CDP_API_KEY", "key-of-the-readme") for each in command("airflow", "connections")
    ]
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        # Nothing is encrypted, as this process has no key to read it with.
        env=os.environ | {"AIRFLOW__CORE__FERNET_KEY": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with create_session() as session:
        connection = session.query(Connection).filter_by(conn_id="talon_cdp_default").one()
        assert (connection.conn_type, connection.password) == ("talon_cdp", "key-of-the-readme")
        assert connection.extra_dejson == {"deployment_host": "mycompany.europe-west1.talon.one"}


def test_the_emulator_runs_in_a_test(monkeypatch, capsys):
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", "")
    exec(compile(PYTHON[-1], "README.md", "exec"), {})
    assert json.loads(os.environ["AIRFLOW_CONN_TALON_CDP_DEFAULT"])["conn_type"] == "talon_cdp"
    assert capsys.readouterr().out == "{}\n"


def test_the_task_group_is_one():
    with DAG("d", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
        exec(compile(PYTHON[2], "README.md", "exec"), {})
    assert {"vip.plan", "vip.push", "vip.commit"} <= set(dag.task_ids)


def test_the_ledger_command_adopts_members(tmp_path):
    (tmp_path / "members.csv").write_text("profileintegrationid\nanna\n")
    arguments = command("python", "-m", "airflow_provider_talon_cdp", "ledger", "import")
    arguments = [
        str(tmp_path / "state") if each == "/var/lib/airflow/talon_cdp" else each for each in arguments
    ]
    done = subprocess.run(
        [sys.executable, *arguments[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Adopted 1 members." in done.stdout, done.stderr


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z][\w-]*)", README))
    assert {"demo", "test"} <= named <= targets


def test_the_table_of_operators_has_each_operator_and_no_other():
    public = {name for name in airflow_provider_talon_cdp.__all__ if name.endswith("Operator")}
    assert set(re.findall(r"^\| `(\w+Operator)`", README, re.MULTILINE)) == public


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_of_the_connection_is_explained(field):
    assert re.search(rf"^\| {re.escape(field.label)} \| `{field.name}` \|", README, re.MULTILINE)
