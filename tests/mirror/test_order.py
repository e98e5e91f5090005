"""What the database does not sort is sorted on the worker, and the query is read once."""

from __future__ import annotations

import logging
import random
from contextlib import closing
from dataclasses import replace

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_talon_cdp.changes.spool import sorted_members
from airflow_provider_talon_cdp.transfers import _rows
from airflow_provider_talon_cdp.transfers._databases import ANY

SORTED_HERE = "The rows are sorted on this worker's disk"
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
    """Treat every database as one whose way to order by bytes we do not know; list what it is asked."""
    statements = []

    def read(connection, statement, *rest):
        statements.append(statement)
        return read_any(connection, statement, *rest)

    read_any = ANY.read
    monkeypatch.setattr(_rows, "ANY", replace(ANY, read=read))
    monkeypatch.setattr(_rows, "DATABASES", ())
    return statements


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
    assert caplog.text.count(SORTED_HERE) == len(unknown_dialect) == 1
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
            database, connection, "SELECT * FROM customers", ["profile_id"], None, _rows._Order(1, None, None)
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


@pytest.mark.parametrize("audiences", ["one", "many"])
def test_a_query_with_two_columns_of_one_name_is_read_once(warehouse, talon, mirror, caplog, audiences):
    """Outside of a subquery such columns are ambiguous, so it cannot be wrapped."""
    warehouse.fill_pairs([(profile, "vip") for profile in IDS])
    sql = "SELECT profile_id, audience_id, audience_name, 1 AS twice, 2 AS twice FROM memberships"
    how = {"audience_id": "vip", "audience_name": "VIP"}
    if audiences == "many":
        how = {"audience_column": "audience_id", "audience_name_column": "audience_name"}
    mirror(sql=sql, **how)
    assert talon.members("vip") == set(IDS)
    assert SORTED_HERE in caplog.text
    assert "read again" not in caplog.text


def test_a_wrong_order_late_in_the_source_leaves_nothing_of_the_first_reading(
    warehouse, vip, mirror, agrees, caplog, monkeypatch
):
    """The database says that it has sorted the rows, and has not."""
    monkeypatch.setattr(
        _rows, "_ordered", lambda database, connection, statement, *_: f"{statement} ORDER BY n DESC, 1"
    )
    ids = [f"{each:06}" for each in range(1000, 7000)]
    warehouse.fill([*ids, "000001"])
    summary = mirror(sql="SELECT profile_id, profile_id <> '000001' AS n FROM customers")
    assert (summary["read"], summary["sent"], summary["duplicate"]) == (6001, 6001, 0)
    agrees([*ids, "000001"])
    assert "read again and sorted on this worker's disk" in caplog.text


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
    sql = "SELECT profile_id FROM customers ORDER BY profile_id"
    its_order = [row[0] for row in BaseHook.get_connection("warehouse").get_hook().get_records(sql)]
    assert its_order != sorted(IDS), "this database does order by its language"
    monkeypatch.setattr(_rows, "DATABASES", ())
    assert mirror(sql=sql)["sent"] == 0
    assert SORTED_HERE in caplog.text
