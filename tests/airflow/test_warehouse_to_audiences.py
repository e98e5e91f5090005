"""The DAG from a warehouse to Talon.One, run whole, against segments and attributes that plain Python
computes from the file."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from contextlib import closing
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from tests.airflow.conftest import connection

DAG_ID = "talon_warehouse_to_audiences"
PURCHASES = Path(__file__).parents[2] / "example_dags" / "data" / "cdnow_purchases.csv"
AUDIENCES = ("cdnow-champions", "cdnow-at-risk", "cdnow-lapsed")

pytestmark = [
    pytest.mark.usefixtures("warehouse"),
    # Airflow 2.11 reads the whole context for a map_index_template, and warns of the parts that it
    # deprecates.
    pytest.mark.filterwarnings("ignore:Accessing '.*' from the template is deprecated:DeprecationWarning"),
]


def segments(month: str) -> dict[str, set[str]]:
    """The three segments at the end of a month, by counting months, where the DAG's SQL compares dates."""
    found: dict[str, set[str]] = {audience: set() for audience in AUDIENCES}
    with PURCHASES.open(newline="") as file:
        known = [each for each in csv.DictReader(file) if each["purchased_on"][:7] <= month]
    known.sort(key=lambda each: each["customer_id"])
    for customer, group in groupby(known, key=lambda each: each["customer_id"]):
        purchases = list(group)
        idle = min(_months(month) - _months(each["purchased_on"]) for each in purchases)
        spent = sum(Decimal(each["dollars"]) for each in purchases)
        if idle <= 2 and len(purchases) >= 5 and spent >= 150:
            found["cdnow-champions"].add(customer)
        elif 3 <= idle <= 8 and len(purchases) >= 3 and spent >= 75:
            found["cdnow-at-risk"].add(customer)
        elif idle >= 12:
            found["cdnow-lapsed"].add(customer)
    return found


def attributes(month: str) -> dict[str, dict[str, object]]:
    """What is known of each customer at the end of a month."""
    found: dict[str, dict[str, object]] = {}
    with PURCHASES.open(newline="") as file:
        known = [each for each in csv.DictReader(file) if each["purchased_on"][:7] <= month]
    known.sort(key=lambda each: each["customer_id"])
    for customer, group in groupby(known, key=lambda each: each["customer_id"]):
        purchases = list(group)
        last = max(each["purchased_on"] for each in purchases)
        idle = _months(month) - _months(last)
        found[customer] = {
            "recency": "this quarter" if idle <= 2 else "this year" if idle <= 11 else "over a year ago",
            "purchases": len(purchases),
            "total_spent": sum(Decimal(each["dollars"]) for each in purchases),
            "last_purchase": f"{last}T00:00:00Z",
        }
    return found


def held(talon) -> dict[str, dict[str, object]]:
    """The attributes of all profiles in Talon.One."""
    return {customer: talon.profile(customer)["attributes"] for customer in talon.profiles()}


def _months(day: str) -> int:
    return int(day[:4]) * 12 + int(day[5:7])


def members(talon) -> dict[str, set[str]]:
    """By audience; one that the query has never named does not exist, so it has none."""
    existing = talon.audiences()
    return {
        audience: set(talon.members(audience)) if audience in existing else set() for audience in AUDIENCES
    }


@pytest.fixture(scope="module")
def may(run, left_behind, tmp_path_factory):
    """What one run for May 1998 did, for the tests that only look."""
    warehouse = {"conn_type": "sqlite", "host": str(tmp_path_factory.mktemp("may") / "warehouse.db")}
    with Emulator() as talon, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(warehouse))
        patch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", connection(talon))
        ledgers = str(tmp_path_factory.mktemp("ledgers"))
        patch.setenv("AIRFLOW__TALON_CDP__STATE_URI", ledgers)
        TalonCdpHook().create_audience("cdnow-lapsed", "An old name")
        dag_run = run(DAG_ID, {"month": "1998-05"})
        xcoms, templates = left_behind(dag_run)
        yield SimpleNamespace(
            talon=talon, state=dag_run.state, xcoms=xcoms, templates=templates, ledgers=ledgers
        )


def test_talon_one_holds_the_segments_of_the_month(may):
    assert may.state == "success"
    assert members(may.talon) == segments("1998-05")


def test_talon_one_holds_the_attributes_of_every_customer(may):
    assert held(may.talon) == attributes("1998-05")
    assert str(held(may.talon)["00111"]["total_spent"]) == str(attributes("1998-05")["00111"]["total_spent"])
    assert may.talon.state()["requests"]["by_operation"]["update_profile"] == len(attributes("1998-05"))


def test_missing_audiences_are_created_with_their_names_and_others_get_theirs(may):
    assert {audience: facts["name"] for audience, facts in may.talon.audiences().items()} == {
        "cdnow-champions": "CDNOW: champions",
        "cdnow-at-risk": "CDNOW: at risk",
        "cdnow-lapsed": "CDNOW: lapsed",
    }


def test_members_travel_a_thousand_in_a_request(may):
    assert may.talon.state()["requests"]["by_operation"]["update_profiles_external"] == 2


def test_what_a_run_leaves_in_airflow_is_small_and_holds_neither_member_nor_key(may):
    counts = [json.loads(each) for each in may.xcoms if "sent" in each]
    assert sorted(each["sent"] for each in counts) == [1876, len(attributes("1998-05"))]
    # How long the path of the ledgers is, is up to whoever sets it. Airflow 2.11 adds the outlets itself.
    own = [each for each in may.xcoms if '"airflow.datasets.Dataset"' not in each]
    assert all(len(each.replace(may.ledgers, "")) < 500 for each in own), max(own, key=len)
    assert len(may.templates) == 5
    key = may.talon.connection()["password"]
    everybody = set().union(*segments("1998-05").values())
    for text in may.xcoms + may.templates:
        assert key not in text
        # The digits of a digest, or of a part of a second, may be those of a customer.
        assert everybody.isdisjoint(re.findall(r"(?<![0-9a-f.])\d+(?![0-9a-f])", text))


def test_purchases_after_the_end_of_the_month_do_not_count(run, talon):
    """They are in the warehouse all the same: the file ends half a year later."""
    assert run(DAG_ID, {"month": "1997-12"}).state == "success"
    assert members(talon) == segments("1997-12")


def test_the_next_month_removes_leavers_and_adds_joiners(run, talon):
    may, june = segments("1998-05"), segments("1998-06")
    for audience in AUDIENCES:
        assert may[audience] - june[audience]
        assert june[audience] - may[audience]
    run(DAG_ID, {"month": "1998-05"})
    sent = talon.state()["requests"]["by_operation"]["update_profile"]
    assert run(DAG_ID, {"month": "1998-06"}).state == "success"
    assert members(talon) == june
    before, after = attributes("1998-05"), attributes("1998-06")
    changed = sum(before.get(customer) != facts for customer, facts in after.items())
    assert 100 < changed < 500
    assert talon.state()["requests"]["by_operation"]["update_profile"] == sent + changed
    assert held(talon) == after


def test_an_earlier_month_can_be_made_good_later(run, talon):
    run(DAG_ID, {"month": "1998-06"})
    assert run(DAG_ID, {"month": "1998-05"}).state == "success"
    assert members(talon) == segments("1998-05")


def test_a_dry_run_sends_nothing(run, talon):
    assert run(DAG_ID, {"month": "1998-05", "dry_run": True}).state == "success"
    assert talon.requests() == []


def test_an_empty_warehouse_is_refused_and_changes_nothing(run, talon):
    run(DAG_ID, {"month": "1998-05"})
    assert run(DAG_ID, {"month": "1996-12"}).state == "failed"
    assert members(talon) == segments("1998-05")


def test_a_month_that_runs_twice_leaves_the_same_state(run, talon, warehouse):
    def state():
        with closing(sqlite3.connect(warehouse)) as database:
            return (
                members(talon),
                held(talon),
                *(
                    database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()
                    for table in ("cdnow_purchases", "cdnow_segments")
                ),
            )

    run(DAG_ID, {"month": "1998-05"})
    once = state()
    sent = talon.state()["requests"]["total"]
    assert run(DAG_ID, {"month": "1998-05"}).state == "success"
    assert state() == once
    # One request an audience asks whether it is still there.
    assert talon.state()["requests"]["total"] == sent + len(AUDIENCES)


def test_a_month_that_is_no_month_is_refused_before_anything_runs(run, talon):
    with pytest.raises(Exception, match="month"):
        run(DAG_ID, {"month": "May 1998"})
    assert talon.requests() == []


def test_the_run_fails_when_talon_one_refuses_the_key(run, talon, monkeypatch):
    expired = connection(talon, password="expired-key-0987654321")
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", expired)
    assert run(DAG_ID).state == "failed"
    assert talon.audiences() == {}
