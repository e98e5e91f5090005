"""Refused records that ``max_rejected`` puts up with are planned by each run, and stop none: not even where
nothing else is sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync, talon_profiles_sync
from tests.mirror.conftest import CONN_ID, task_instance

BAD = [f"bad{number:03}" for number in range(120)]
GOOD = [f"p{number:03}" for number in range(30)]


@pytest.mark.parametrize("limit", [120, None])
def test_members_that_are_refused_every_day(sqlite, vip, mirror, limit):
    vip.reject_profiles(BAD)
    sqlite.fill(BAD + GOOD)
    for sent in (30, 0):
        summary = mirror(max_rejected=limit)
        assert (summary["sent"], summary["rejected"]) == (sent, {"refused by Talon.One (400)": 120})


@pytest.mark.parametrize("limit", [120, None])
def test_profiles_that_are_refused_every_day(sqlite, send, talon, limit):
    talon.reject_profiles(BAD)
    sqlite.fill_people("id, score", [(each, 1) for each in BAD + GOOD])
    for sent in (30, 0):
        summary = send(max_rejected=limit)
        assert (summary["sent"], summary["rejected"]) == (sent, {"refused by Talon.One (400)": 120})


def profiles_group(name, **how):
    return talon_profiles_sync(name, profile_id_column="id", **how)


def audience_group(name, **how):
    return talon_audience_sync(name, audience_id="vip", **how)


@pytest.mark.parametrize("group", [audience_group, profiles_group])
def test_what_is_refused_every_day_by_tasks_that_push(sqlite, vip, connect, state, group):
    vip.reject_profiles(BAD)
    sqlite.fill_people("id, score", [(each, 1) for each in BAD])
    sql = "SELECT id, score FROM people" if group is profiles_group else "SELECT id AS profile_id FROM people"
    with DAG("dag", schedule=None):
        made = group("g", sql=sql, sql_conn_id=CONN_ID, state_uri=str(state), max_rejected=120)
    instance = task_instance(task_id="g.plan")
    context = {"ti": SimpleNamespace(**vars(instance), xcom_push=lambda *_, **__: None)}
    (share,) = made.children["g.plan"].execute(context)
    summary = made.children["g.push"].unmap({"share": share}).execute(context)
    assert summary["rejected"] == {"refused by Talon.One (400)": 120}
