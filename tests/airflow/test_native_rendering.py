"""Templates and results of other tasks, as whole DAG runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from airflow import settings

DAG_FILE = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task
from airflow_provider_talon_cdp import UpdateProfileOperator

with DAG("native", schedule=None, start_date=datetime(2026, 1, 1), render_template_as_native_obj=True):
    @task
    def ids():
        return ["4711", "{{ 1 }}"]

    given = {"attributes": {"points": "{{ 5 }}"}}
    UpdateProfileOperator.partial(task_id="result", **given).expand(customer_profile_id=ids())
    UpdateProfileOperator.partial(task_id="literal", **given).expand(customer_profile_id=["1_000", "{{ 2 }}"])
"""

ROWS = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, TaskGroup, task
from airflow_provider_talon_cdp import SqlToTalonAudienceOperator, UpdateProfileOperator

START = datetime(2026, 1, 1)
PARAMS = {"state": STATE, "x": "anna", "connection": "talon_cdp_default"}
GIVEN = {"default_args": {"state_uri": "{{ params.state }}"}, "params": PARAMS}

with DAG("rows", schedule=None, start_date=START, render_template_as_native_obj=NATIVE, **GIVEN):
    @task
    def profiles():
        return [{"customer_profile_id": "{{ 1 }}", "attributes": {"Name": "{{ 2 }}", "Zip": "1_000"}}]

    @task
    def profile():
        return {"customer_profile_id": "{{ 3 }}", "attributes": {"Name": "{{ 4 }}"}}

    @task
    def audiences():
        sql = "SELECT id AS profile_id FROM customers WHERE id = '{{ params.x }}'"
        return [{"audience_id": "{{ 5 }}", "audience_name": "{{ 6 }}", "sql": sql, "initial_members": None}]

    @task
    def functions():
        return [{"profile_id": "{{ 7 }}"}]

    UpdateProfileOperator.partial(task_id="result", types={"Name": "string"}).expand_kwargs(profiles())
    UpdateProfileOperator.partial(task_id="literal").expand_kwargs(
        [{"customer_profile_id": "{{ params.x }}", "attributes": {"Name": "{{ params.x }}"}}, profile()]
    )
    of_warehouse = {"sql_conn_id": "warehouse", "mode": "mirror", "max_rejected": "{{ 0 }}"}
    SqlToTalonAudienceOperator.partial(task_id="of_rows", **of_warehouse).expand_kwargs(audiences())

    @task.talon_audience(audience_id="{{ params.x }}", audience_name="{{ params.x }}")
    def members(profile_id, other):
        return [profile_id, other]

    members.partial(other="{{ params.x }}").expand_kwargs(functions())

    class OfRegion(UpdateProfileOperator):
        def __init__(self, *, region, talon_cdp_conn_id="{{ params.connection }}", **others):
            profile = "{{ params.x }}-" + region
            super().__init__(customer_profile_id=profile, talon_cdp_conn_id=talon_cdp_conn_id, **others)

    @task
    def regions():
        return [{"region": "eu"}]

    OfRegion.partial(task_id="of_region", attributes={"Name": "Anna"}).expand_kwargs(regions())

    with TaskGroup("group", default_args={"talon_cdp_conn_id": "{{ params.connection }}"}):
        @task
        def others():
            return [{"customer_profile_id": "{{ 8 }}", "attributes": {"Name": "{{ 9 }}"}}]

        UpdateProfileOperator.partial(task_id="in_group").expand_kwargs(others())
"""

NOTHING = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task, task_group
from airflow_provider_talon_cdp import (
    SqlToTalonAudienceOperator, SqlToTalonProfilesOperator, UpdateProfileOperator
)

OF_WAREHOUSE = {"sql": "SELECT * FROM customers", "sql_conn_id": "warehouse", "profile_id_column": "id"}
COLUMNS = {"audience_column": "audience", "audience_name_column": "audience"}

with DAG("nothing", schedule=None, start_date=datetime(2026, 1, 1)):
    @task
    def nothing():
        return None

    none = nothing()
    for name in ("audiences", "ledger", "state_uri", "max_rejected"):
        SqlToTalonAudienceOperator(task_id=name, mode="mirror", **COLUMNS, **OF_WAREHOUSE, **{name: none})
    for name in ("attributes", "attributes_column"):
        SqlToTalonProfilesOperator(task_id=name, **OF_WAREHOUSE, **{name: none})
    UpdateProfileOperator(task_id="profile", customer_profile_id="anna", attributes=none, add_audiences=[1])

    @task_group
    def mapped(audiences):
        how = {"mode": "mirror", "audiences": audiences, **COLUMNS, **OF_WAREHOUSE}
        SqlToTalonAudienceOperator(task_id="sync", **how)

    mapped.expand(audiences=[None])
"""


@pytest.fixture
def run_file(load_dags, tmp_path, monkeypatch):
    """Run a DAG of a file that has this text."""

    def run_file(name, text):
        file = tmp_path / "dags" / f"{name}.py"
        file.parent.mkdir()
        file.write_text(text)
        # Where dag.test() looks for the DAG's file.
        monkeypatch.setattr(settings, "DAGS_FOLDER", str(file.parent))
        return load_dags(file).dags[name].test()

    return run_file


@pytest.fixture
def customers(warehouse):
    with closing(sqlite3.connect(warehouse)) as connection, connection:
        connection.execute("CREATE TABLE customers (id, audience, tier)")
        connection.execute("INSERT INTO customers VALUES ('anna', 'vip', 'gold')")


def test_ids_stay_text_and_another_tasks_result_is_no_template(talon, run_file):
    assert run_file("native", DAG_FILE).state == "success"
    assert talon.profiles() == {"4711", "{{ 1 }}", "1_000", "2"}
    assert talon.profile("4711")["attributes"] == {"points": 5}


@pytest.mark.parametrize("native", [False, True])
def test_nor_is_it_a_template_in_rows_of_arguments(talon, customers, run_file, tmp_path, native):
    """Of ``expand_kwargs``: only ``sql``, and what the DAG's author wrote, is rendered."""
    text = ROWS.replace("NATIVE", str(native)).replace("STATE", repr(str(tmp_path / "state")))
    assert run_file("rows", text).state == "success"
    assert talon.profile("{{ 1 }}")["attributes"] == {"Name": "{{ 2 }}", "Zip": "1_000"}
    assert talon.profile("{{ 3 }}")["attributes"] == {"Name": "{{ 4 }}"}
    assert talon.profile("anna")["attributes"] == {"Name": "anna"}
    assert talon.audiences()["{{ 5 }}"]["name"] == "{{ 6 }}"
    assert talon.members("{{ 5 }}") == {"anna"}
    assert talon.members("anna") == {"anna", "{{ 7 }}"}
    # What a subclass makes of an argument is rendered, and the default of a group.
    assert talon.profile("anna-eu")["attributes"] == {"Name": "Anna"}
    assert talon.profile("{{ 8 }}")["attributes"] == {"Name": "{{ 9 }}"}


def test_a_task_that_returned_nothing_widens_no_argument(talon, customers, run_file):
    """None is their default, or no limit."""
    dag_run = run_file("nothing", NOTHING)
    states = {each.task_id: each.state for each in dag_run.get_task_instances()}
    assert states.pop("nothing") == "success"
    assert len(states) == 8
    assert set(states.values()) == {"failed"}
    assert talon.requests() == []
