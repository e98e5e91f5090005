"""The TaskGroups, in which one task plans, several push and one commits; as whole DAG runs."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from datetime import datetime

import pytest
from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import clear_task_instances
from airflow.providers.common.compat.sdk import DAG
from airflow.utils.state import DagRunState

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.ledger.ledger import Sizes
from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync, talon_profiles_sync

# Just over two parts of a plan.
MANY = 200_500
AUDIENCE = "example-everybody"


@pytest.fixture
def fill(warehouse):
    def fill(first, end, points=()):
        """So many customers; some of them have points."""
        with closing(sqlite3.connect(warehouse)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS customers")
            connection.execute("CREATE TABLE customers (profile_id text PRIMARY KEY, points int)")
            rows = ((f"c{number:07}", number if number in points else None) for number in range(first, end))
            connection.executemany("INSERT INTO customers VALUES (?, ?)", rows)

    return fill


@pytest.fixture
def sync(run, talon):
    """Run the example DAG."""

    def synced(**conf):
        return run("talon_across_workers", conf)

    return synced


@pytest.fixture
def reports(left_behind):
    """What the tasks of a run returned, those with counts."""

    def read(dag_run):
        texts, _ = left_behind(dag_run)
        return [each for each in map(json.loads, texts) if isinstance(each, dict) and "sent" in each]

    return read


def states(dag_run, group):
    found = sorted((each.task_id, each.state) for each in dag_run.get_task_instances())
    return [(task, state) for name, state in found for of, _, task in [name.partition(".")] if of == group]


def test_plans_are_pushed_by_several_tasks_and_committed(fill, sync, talon, reports):
    fill(0, MANY, points=range(0, 3000, 10))
    run = sync()
    assert run.state == "success"
    three = [("push", "success")] * 3
    assert states(run, "everybody") == [("commit", "success"), ("plan", "success"), *three]
    assert states(run, "points") == [("commit", "success"), ("plan", "success"), ("push", "success")]
    assert len(talon.members(AUDIENCE)) == MANY
    assert talon.profile("c0000120")["attributes"] == {"points": 120}
    found = reports(run)
    ends = {each["sent"]: each for each in found if each["read"]}
    assert ends.keys() == {MANY, 300}
    # One request creates the audience.
    # The audience is created, and looked at once more when all is sent.
    assert (ends[MANY]["read"], ends[MANY]["unsent"], ends[MANY]["requests"]) == (MANY, 0, 1 + 201 + 1)
    assert (ends[300]["read"], ends[300]["unsent"], ends[300]["requests"]) == (MANY, 0, 300)
    assert sorted(each["sent"] for each in found if not each["read"]) == [300, 500, 100_000, 100_000]


RANGED = """
from datetime import datetime
from airflow import settings
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_talon_cdp import talon_audience_sync

with DAG("ranged", schedule=None, start_date=datetime(2026, 1, 1)):
    talon_audience_sync(
        "everybody",
        plan_workers=3,
        sql="SELECT profile_id, 'a' || points AS audience FROM customers",
        sql_conn_id="warehouse",
        audience_column="audience",
        audience_name_column="audience",
    )
"""


def test_a_query_is_read_by_several_tasks_and_planned_by_one(
    fill, talon, load_dags, tmp_path, monkeypatch, left_behind
):
    file = tmp_path / "dags" / "ranged.py"
    file.parent.mkdir()
    file.write_text(RANGED)
    # Where dag.test() looks for the DAG's file.
    monkeypatch.setattr(settings, "DAGS_FOLDER", str(file.parent))
    dag = load_dags(file).dags["ranged"]
    fill(0, 90, points=range(90))
    for sent, push in ((90, "success"), (0, "skipped")):
        run = dag.test()
        tasks = {"commit", "plan", "ranges"}
        assert states(run, "everybody") == sorted(
            [*((task, "success") for task in tasks), *[("compare", "success")] * 3, ("push", push)]
        )
        texts, rendered = left_behind(run)
        assert sum('"sent": 90' in each for each in texts) == (2 if sent else 0)
        assert "c0000" not in str([texts, rendered])
    assert talon.members("a7") == {"c0000007"}


CLEARED = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_talon_cdp import talon_audience_sync

with DAG("cleared", schedule=None, start_date=datetime(2026, 1, 1)):
    talon_audience_sync(
        "everybody",
        workers=3,
        plan_workers=3,
        sql="SELECT profile_id FROM customers",
        sql_conn_id="warehouse",
        audience_id="vip",
        audience_name="VIP",
        max_removal_fraction=1,
        max_rejected=1,
    )
"""


@pytest.fixture
def clear_ended(warehouse, monkeypatch):
    """Have ``dag.test()`` clear all tasks of a run once, after it has ended and most customers are gone.

    The value is the states of its tasks before.
    """
    update_state, ended = DagRun.update_state, []

    def update(self, session):
        found = update_state(self, session=session)
        if self.state != DagRunState.RUNNING and not ended:
            ended.append(states(self, "everybody"))
            with closing(sqlite3.connect(warehouse)) as connection, connection:
                connection.execute("DELETE FROM customers WHERE profile_id > 'c0000000'")
            instances = self.get_task_instances(session=session)
            clear_task_instances(instances, session, dag_run_state=DagRunState.RUNNING)
            found = update_state(self, session=session)
        return found

    monkeypatch.setattr(DagRun, "update_state", update)
    return ended


def test_a_group_that_is_cleared_ends_with_fewer_ranges_and_shares_too(
    fill, talon, load_dags, tmp_path, monkeypatch, clear_ended, reports
):
    file = tmp_path / "dags" / "cleared.py"
    file.parent.mkdir()
    file.write_text(CLEARED)
    monkeypatch.setattr(settings, "DAGS_FOLDER", str(file.parent))
    monkeypatch.setitem(Sizes.__init__.__kwdefaults__, "part", 1000)
    dag = load_dags(file).dags["cleared"]
    fill(0, 2500)
    talon.reject_profiles(["c0000007"])
    run = dag.test()
    assert clear_ended[0].count(("push", "success")) == clear_ended[0].count(("compare", "success")) == 3
    assert run.state == "success"
    assert talon.members("vip") == {"c0000000"}
    after = states(run, "everybody")
    assert ("commit", "success") in after
    assert len(after) == len(clear_ended[0])
    (commit,) = [each for each in reports(run) if each["read"] == 1 and each["sent"]]
    assert (commit["sent"], commit["rejected"], commit["unsent"]) == (2498, {}, 0)


def test_plans_of_nothing_are_committed_without_a_push(fill, sync, talon):
    fill(0, 100, points=[1])
    assert sync().state == "success"
    before = len(talon.requests())
    run = sync()
    assert run.state == "success"
    for group in ("everybody", "points"):
        assert states(run, group) == [("commit", "success"), ("plan", "success"), ("push", "skipped")]
    # It asks whether the audience is still the one that the ledger knows.
    assert [each["operation"] for each in talon.requests()[before:]] == ["update_audience"]


def test_the_guard_stops_the_plan(fill, sync, talon):
    fill(0, 100)
    sync()
    fill(90, 190)
    run = sync()
    assert run.state == "failed"
    assert ("plan", "failed") in states(run, "everybody")
    assert len(talon.members(AUDIENCE)) == 100


def test_refused_members_fail_the_commit_after_all_is_sent(fill, sync, talon):
    fill(0, 1500)
    talon.reject_profiles(["c0000007"])
    run = sync()
    assert states(run, "everybody") == [("commit", "failed"), ("plan", "success"), ("push", "success")]
    assert len(talon.members(AUDIENCE)) == 1499


def test_a_dry_run_sends_nothing(fill, sync, talon, reports):
    fill(0, 1500, points=[3])
    run = sync(dry_run=True)
    assert run.state == "success"
    assert talon.requests() == []
    assert [each["verdict"] for each in reports(run) if each["verdict"]] == ["would be sent"] * 2


@pytest.mark.parametrize("group", [talon_audience_sync, talon_profiles_sync])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers must be"),
        ({"task_id": "x"}, "task_id is set by the group"),
        ({"max_rejected": -1}, "max_rejected must be"),
        ({"in_flight": 0}, "in_flight must be"),
    ],
)
def test_arguments_that_cannot_work_fail_where_the_dag_is_parsed(group, wrong, message):
    with (
        pytest.raises(InvalidInputError, match=message),
        DAG("d", schedule=None, start_date=datetime(2026, 1, 1)),
    ):
        group("vip", sql="SELECT 1", sql_conn_id="warehouse", **wrong)


FROM_DEFAULTS = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task
from airflow_provider_talon_cdp import talon_audience_sync, talon_profiles_sync

try:
    from airflow.sdk.exceptions import AirflowSkipException
except ImportError:  # Airflow 2.11 and 3.1
    from airflow.exceptions import AirflowSkipException

DEFAULTS = {"talon_cdp_conn_id": "sandbox", "sql_conn_id": "warehouse", "nulls": "delete"}
with DAG("defaults", schedule=None, start_date=datetime(2026, 1, 1), default_args=DEFAULTS):
    everybody = talon_audience_sync(
        "everybody", sql="SELECT profile_id FROM customers", audience_id="vip", audience_name="VIP"
    )
    everybody >> talon_profiles_sync("points", sql="SELECT profile_id, points FROM customers")

with DAG("skipped", schedule=None, start_date=datetime(2026, 1, 1), default_args=DEFAULTS):
    @task
    def no_new_data():
        raise AirflowSkipException

    no_new_data() >> talon_audience_sync("everybody", sql="SELECT 1", audience_id="vip")
"""


def test_a_group_takes_default_args_and_is_skipped_with_what_is_before_it(
    fill, talon, load_dags, tmp_path, monkeypatch
):
    """All tasks of a group take them, also those that are mapped."""
    file = tmp_path / "dags" / "defaults.py"
    file.parent.mkdir()
    file.write_text(FROM_DEFAULTS)
    monkeypatch.setattr(settings, "DAGS_FOLDER", str(file.parent))
    monkeypatch.setenv("AIRFLOW_CONN_SANDBOX", os.environ.pop("AIRFLOW_CONN_TALON_CDP_DEFAULT"))
    dags = load_dags(file).dags
    fill(0, 3, points=[1, 2])
    talon.set_attributes("c0000000", {"points": 9})
    run = dags["defaults"].test()
    assert {state for group in ("everybody", "points") for _, state in states(run, group)} == {"success"}
    assert talon.members("vip") == {"c0000000", "c0000001", "c0000002"}
    points = {each: talon.profile(each)["attributes"] for each in sorted(talon.profiles())}
    assert points == {"c0000000": {}, "c0000001": {"points": 1}, "c0000002": {"points": 2}}
    run = dags["skipped"].test()
    assert run.state == "success"
    assert {state for _, state in states(run, "everybody")} == {"skipped"}


def test_less_than_one_task_cannot_read():
    with (
        pytest.raises(InvalidInputError, match="plan_workers must be"),
        DAG("d", schedule=None, start_date=datetime(2026, 1, 1)),
    ):
        talon_audience_sync("vip", plan_workers=0, sql="SELECT 1", sql_conn_id="warehouse")


def test_the_mode_is_the_groups_own():
    with (
        pytest.raises(InvalidInputError, match="mode is set by the group"),
        DAG("d", schedule=None, start_date=datetime(2026, 1, 1)),
    ):
        talon_audience_sync("vip", sql="SELECT 1", sql_conn_id="warehouse", audience_id="vip", mode="add")
