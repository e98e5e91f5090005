"""The life of one audience, the update of one profile, and what follows a sync, as whole DAG runs."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

PURCHASES = Path(__file__).parents[2] / "example_dags" / "data" / "cdnow_purchases.csv"
AUDIENCE = "example-newsletter"


def test_the_audience_is_created_filled_renamed_and_gone(run, talon):
    assert run("talon_audience_lifecycle").state == "success"
    assert talon.audiences() == {}
    assert talon.profiles() == {"anna", "bert", "carla", "dora", "emil"}
    assert [(each["operation"], each["status"], each["changes"]) for each in talon.requests()] == [
        ("create_audience", 201, 0),
        ("update_profiles_external", 204, 3),
        ("update_profiles_external", 204, 3),
        ("update_audience", 200, 0),
        ("delete_audience", 204, 0),
    ]


def test_before_its_end_the_audience_has_its_new_name_and_who_joined_and_stayed(run, talon):
    assert run("talon_audience_lifecycle", mark_success_pattern="delete").state == "success"
    assert talon.members(AUDIENCE) == {"anna", "carla", "dora", "emil"}
    assert talon.audiences()[AUDIENCE]["name"] == "Newsletter subscribers (example)"


def test_an_audience_left_over_from_an_earlier_run_is_no_obstacle(run, talon):
    run("talon_audience_lifecycle", mark_success_pattern="delete")
    assert run("talon_audience_lifecycle").state == "success"
    assert talon.audiences() == {}


@pytest.fixture
def filled_warehouse(run, talon, warehouse):
    """The warehouse as the other DAG leaves it; nothing has reached Talon.One."""
    only_load = "build_segments|mirror_segments|send_attributes"
    assert run("talon_warehouse_to_audiences", mark_success_pattern=only_load).state == "success"
    assert talon.requests() == []


@pytest.mark.usefixtures("filled_warehouse")
@pytest.mark.parametrize(
    "customer, audience",
    [("00111", "cdnow-big-spenders"), ("00004", "cdnow-small-spenders")],
)
def test_the_profile_gets_the_customers_figures_and_one_of_two_audiences(run, talon, customer, audience):
    with PURCHASES.open(newline="") as file:
        everything = list(csv.DictReader(file))
    theirs = [each for each in everything if each["customer_id"] == customer]
    last = max(each["purchased_on"] for each in theirs)

    assert run("talon_profile_update", {"customer_id": customer}).state == "success"

    profile = talon.profile(customer)
    assert profile["attributes"] == {
        "recency_days": (date(1998, 6, 30) - date.fromisoformat(last)).days,
        "purchases": len(theirs),
        "total_spent": sum(Decimal(each["dollars"]) for each in theirs),
        "last_purchase": f"{last}T00:00:00Z",
    }
    assert profile["audiences"] == [audience]


@pytest.mark.usefixtures("filled_warehouse")
def test_a_customer_whom_the_warehouse_does_not_know_fails_the_run_and_changes_no_profile(run, talon):
    assert run("talon_profile_update", {"customer_id": "99999"}).state == "failed"
    assert talon.profiles() == frozenset()


def test_after_an_audience_has_changed_tiers_are_sent_and_who_has_points_gets_an_offer(run, talon, warehouse):
    with closing(sqlite3.connect(warehouse)) as connection, connection:
        connection.execute("CREATE TABLE customers (profile_id text PRIMARY KEY, points int)")
        customers = [("anna", 1000), ("bert", 999), ("carla", 0), ("dora", None)]
        connection.executemany("INSERT INTO customers VALUES (?, ?)", customers)
    assert run("talon_after_audience").state == "success"
    assert {each: talon.profile(each)["attributes"]["tier"] for each in talon.profiles()} == {
        "anna": "gold",
        "bert": "silver",
        "carla": "silver",
        "dora": "silver",
    }
    assert talon.members("example-holdout") == {"anna"}
    assert talon.members("example-offer") == {"anna", "bert"}
