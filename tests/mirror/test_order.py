"""A source in the wrong order is found out while it is read, and sorted on the worker."""

from __future__ import annotations

import logging
import random
from contextlib import closing

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_talon_cdp.changes.spool import sorted_members
from airflow_provider_talon_cdp.transfers import _rows

SORTED_HERE = "not sorted by bytes: it is read again and sorted on this worker's disk"
IDS = [
    "é",
    "e\u0301",
    "a",
    "A",
    "a\tb",
    "a\nb",
    "a\\nb",
    "a\rb",
    "a\u2028b",
    "a\x85b",
    "\U0001f600",
    "\uffff",
    "9",
    "10",
]


@pytest.fixture
def unknown_dialect(monkeypatch):
    """Treat every database as one whose way to order by bytes we do not know."""
    monkeypatch.setattr(_rows, "DATABASES", ())


@pytest.fixture
def small_runs(monkeypatch):
    """Have the external sort write many files."""
    monkeypatch.setattr(sorted_members, "__kwdefaults__", {"run": 3})


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO)


def test_a_database_that_we_cannot_tell_is_read_as_it_comes(
    warehouse, vip, mirror, agrees, caplog, unknown_dialect
):
    warehouse.fill(IDS)
    mirror()
    agrees(IDS)
    assert caplog.text.count(SORTED_HERE) == 1
    warehouse.fill(IDS[2:])
    assert mirror()["removals"] == 2
    agrees(IDS[2:])


def test_text_in_the_order_of_an_index_is_not_sorted_again(sqlite, vip, mirror, agrees, caplog):
    """Seen in the query plan: a cast would keep SQLite from the index, and double the time of a large
    reading."""
    sqlite.run("CREATE TABLE customers (profile_id text PRIMARY KEY) WITHOUT ROWID")
    sqlite.insert("customers", [(each,) for each in IDS])
    mirror()
    agrees(IDS)
    with closing(BaseHook.get_connection("warehouse").get_hook().get_conn()) as connection:
        database = _rows.sql_hook("warehouse").database
        statement = _rows._ordered(
            database, connection, "SELECT * FROM customers", ["profile_id"], None, 1, None
        )
        plan = str(connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall())
    assert "SCAN" in plan
    assert "TEMP B-TREE" not in plan


def test_a_column_of_text_and_integers_is_read_in_the_right_order(sqlite, vip, mirror, agrees):
    sqlite.run("CREATE TABLE customers (profile_id)")
    sqlite.insert("customers", [("a",), (10,), (9,), ("1b",)])
    mirror()
    agrees(["a", "10", "9", "1b"])


def test_many_runs_on_disk_merge_to_one_order(warehouse, vip, mirror, agrees, unknown_dialect, small_runs):
    ids = [*IDS, *(str(each) for each in range(100, 300))]
    random.Random(7).shuffle(ids)
    warehouse.fill([*ids, None, "x" * 1001, *ids[:50]])
    summary = mirror(max_rejected=None)
    assert (summary["read"], summary["duplicate"], summary["sent"]) == (len(ids) + 52, 50, len(ids))
    assert summary["rejected"] == {"profile ID null": 1, "profile ID longer than 1000 characters": 1}
    agrees(ids)


def test_what_happens_to_be_in_order_is_not_sorted(warehouse, vip, mirror, agrees, caplog, unknown_dialect):
    warehouse.fill(IDS)
    order = {"sqlite": "", "postgres": 'COLLATE "C"'}[warehouse.kind]
    mirror(sql=f"SELECT profile_id FROM customers ORDER BY profile_id {order}")
    agrees(IDS)
    assert SORTED_HERE not in caplog.text


def test_a_wrong_order_late_in_the_source_leaves_nothing_of_the_first_reading(
    warehouse, vip, mirror, agrees, caplog, unknown_dialect
):
    ids = [f"{each:06}" for each in range(1000, 7000)]
    warehouse.fill([*ids, "000001"])
    summary = mirror()
    assert (summary["read"], summary["sent"], summary["duplicate"]) == (6001, 6001, 0)
    agrees([*ids, "000001"])
    assert SORTED_HERE in caplog.text


def test_integers_in_their_own_order_are_in_the_wrong_one(
    warehouse, vip, mirror, agrees, caplog, unknown_dialect
):
    warehouse.fill(range(1, 1200), column_type="integer")
    mirror(sql="SELECT profile_id FROM customers ORDER BY profile_id")
    agrees([str(each) for each in range(1, 1200)])
    assert SORTED_HERE in caplog.text


def test_many_audiences_in_the_wrong_order(warehouse, talon, mirror, unknown_dialect, small_runs):
    pairs = [(profile, audience) for audience in ("vip", "VIP", "ém") for profile in IDS]
    warehouse.fill_pairs(pairs)
    mirror(audience_column="audience_id", audience_name_column="audience_name")
    assert all(talon.members(audience) == set(IDS) for audience in ("vip", "VIP", "ém"))


def test_no_member_is_named_in_the_log(warehouse, vip, mirror, said, unknown_dialect):
    secrets = ["zoe@example.com", "anna@example.com", "x" * 1001]
    warehouse.fill(secrets)
    summary = mirror(max_rejected=None)
    assert not any(each in said() + repr(summary) for each in ["zoe", "anna", "xxx"])


def test_a_database_in_the_order_of_a_language_orders_by_bytes_for_us(
    language_database, vip, mirror, agrees, caplog, monkeypatch
):
    language_database.fill(IDS)
    mirror()
    agrees(IDS)
    assert SORTED_HERE not in caplog.text
    monkeypatch.setattr(_rows, "DATABASES", ())
    assert mirror(sql="SELECT profile_id FROM customers ORDER BY profile_id")["sent"] == 0
    assert SORTED_HERE in caplog.text, "this database does order by its language"
