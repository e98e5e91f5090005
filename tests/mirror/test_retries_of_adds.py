"""A retry of a task that adds or removes continues where the try before it ended."""

from __future__ import annotations

import json
import logging
import random
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import AuthenticationError, RejectedRecordsError, TalonCdpError
from airflow_provider_talon_cdp.transfers import _rows
from tests.mirror.conftest import task_instance

MANY = [f"customer-{each:05}" for each in range(5000)]
CONTINUES = "This one continues where it ended"


def attempt(number, *, last=2, start=None, **instance):
    """The context of a try of a task."""
    ti = task_instance(**instance)
    ti.try_number, ti.max_tries = number, last
    return {"ti": ti, "dag_run": SimpleNamespace(start_date=start)}


@pytest.fixture
def add(mirror, caplog):
    caplog.set_level(logging.INFO)

    def run(number, *, instance=None, **arguments):
        defaults = {"mode": "add", "in_flight": 1, "retries": 2}
        return mirror(context=attempt(number, **(instance or {})), **(defaults | arguments))

    return run


@pytest.fixture
def fails(vip, add):
    """Run a try that ends after so many requests, or at a profile."""

    def run(requests=0, number=1, only=None, **arguments):
        vip.fail_next("status", status=401, after=requests, times=None, only=only)
        with pytest.raises(AuthenticationError):
            add(number, **arguments)
        vip.clear_faults()

    return run


def shuffled(ids):
    return random.Random(5).sample(ids, len(ids))


@pytest.mark.parametrize("mode", ["add", "remove"])
def test_a_retry_sends_only_what_is_left(warehouse, vip, add, fails, caplog, mode):
    warehouse.fill(shuffled(MANY))
    if mode == "remove":
        add(1, instance={"run_id": "before"})
    fails(3, mode=mode)
    assert CONTINUES not in caplog.text
    summary = add(2, mode=mode)
    # The last row of the first try is read again.
    assert (summary["read"], summary["sent"], summary["requests"]) == (2001, 2001, 3)
    assert CONTINUES in caplog.text
    assert vip.members("vip") == (set(MANY) if mode == "add" else set())


def test_each_retry_continues_where_the_last_one_ended(sqlite, vip, add, fails, caplog):
    sqlite.fill(shuffled(MANY))
    how = {"retries": 3, "instance": {"last": 3}}
    fails(1, **how)
    fails(1, number=2, **how)
    # One that sends nothing loses nothing.
    fails(0, number=3, **how)
    assert add(4, **how)["read"] == len(MANY) - 1998
    assert caplog.text.count(CONTINUES) == 3
    assert vip.members("vip") == set(MANY)


@pytest.mark.parametrize("column_type", ["integer", "text", "uuid"])
def test_ids_of_any_type_are_found_again(postgres, vip, add, fails, column_type):
    ids = {
        "integer": range(1, 5001),
        "text": [f"ä {each}" for each in range(5000)],
        "uuid": [f"{each:032x}" for each in range(5000)],
    }[column_type]
    postgres.fill(shuffled(list(ids)), column_type=column_type)
    fails(3, suspicious_ids="ignore")
    summary = add(2, suspicious_ids="ignore")
    assert len(vip.members("vip")) == 5000
    # White space needs an escape in SQL, so that bound is none. Ids that look wrong are counted again.
    assert summary["read"] == (5000 if column_type == "text" else 2001)


def test_rows_with_an_audience_each_continue_and_tell_of_the_audiences_before(sqlite, talon, add):
    talon.create_audience("a", "A")
    talon.create_audience("z", "Z")
    sqlite.fill_pairs([(each, "a") for each in MANY[:2000]] + [(each, "z") for each in MANY[1500:]])
    how = {"audience_column": "audience_id", "sql": "SELECT * FROM memberships"}
    talon.fail_next("status", status=401, after=3, times=None)
    with pytest.raises(AuthenticationError):
        add(1, **how)
    talon.clear_faults()
    # The last thousand rows that were read are read again, as they are sent by audience.
    assert 2500 < add(2, **how)["read"] <= 3501
    assert (talon.members("a"), talon.members("z")) == (set(MANY[:2000]), set(MANY[1500:]))


@pytest.mark.parametrize(
    "changed",
    [
        {"sql": "SELECT profile_id FROM customers WHERE profile_id <> 'x'"},
        {"number": 4, "instance": {"last": 5}},
        {"number": 1},
        {"instance": {"start": datetime(2026, 11, 30, tzinfo=UTC)}},
        {"audience_id_type": "internal"},
        {"instance": {"run_id": "run-2"}},
        {"instance": {"map_index": 1}},
    ],
    ids=[
        "query",
        "cleared by a person",
        "run made again",
        "run made again that died at once",
        "type of audience ID",
        "run",
        "mapped instance",
    ],
)
def test_what_may_have_other_rows_begins_at_the_first(sqlite, vip, add, fails, caplog, changed):
    sqlite.fill(MANY)
    fails(3)
    if "audience_id_type" in changed:
        sql = "SELECT profile_id FROM customers"
        changed = changed | {"audience_id": vip.audiences()["vip"]["id"], "sql": sql}
    assert add(**{"number": 2} | changed)["read"] == 5000
    assert CONTINUES not in caplog.text


def test_rows_that_the_database_sorts_no_more_are_no_progress(sqlite, vip, add, fails, monkeypatch, caplog):
    """The statement that sorts fails while the rows are read again from the first one on."""
    how = {"instance": {"last": 3}, "retries": 3}
    sqlite.fill(MANY)
    fails(3, **how)
    # Without the last row that was sent, and in a wrong order after more rows than are read ahead.
    sqlite.fill([*(f"customer-{each:06}" for each in range(100_000)), *MANY[:100]])
    monkeypatch.setenv("AIRFLOW__TALON_CDP__READ_AHEAD", "0")
    read_sorted, readings = _rows._read_sorted, []

    def failing_the_second_time(source, *arguments):
        readings.append(source)
        source.sorts = len(readings) != 2
        return read_sorted(source, *arguments)

    monkeypatch.setattr(_rows, "_read_sorted", failing_the_second_time)
    fails(1, number=2, **how)
    assert len(readings) == 2
    assert add(3, **how)["read"] == 100_100
    assert CONTINUES not in caplog.text


def test_another_database_begins_at_the_first_row(sqlite, vip, add, fails, tmp_path, monkeypatch):
    sqlite.fill(MANY)
    fails(3)
    other = shutil.copy(tmp_path / "warehouse.db", tmp_path / "another.db")
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(other)}))
    assert add(2)["read"] == 5000


def test_a_task_that_is_not_retried_is_not_sorted(sqlite, vip, mirror, state, monkeypatch):
    sqlite.fill(shuffled(MANY))
    monkeypatch.setattr(_rows, "_read_sorted", None)
    assert mirror(context=attempt(1, last=0), mode="add")["read"] == 5000
    assert not list(state.rglob("progress/*"))


def test_nothing_is_left_of_a_task_that_succeeded(sqlite, vip, add, fails, state):
    sqlite.fill(MANY)
    fails(3)
    (file,) = state.rglob("progress/*.json")
    assert json.loads(file.read_text())["content"]["after"] == MANY[2999]
    add(2)
    assert not list(state.rglob("progress/*.json"))


def test_the_progress_of_tasks_that_nobody_retried_goes_after_a_week(sqlite, vip, add, fails, state):
    sqlite.fill(MANY)
    fails(3, instance={"run_id": "old"})
    (old,) = state.rglob("progress/*.json")
    fails(3, instance={"run_id": "new"})
    old.rename(old.with_name("20200101" + old.name[8:]))
    add(2, instance={"run_id": "other"})
    (left,) = state.rglob("progress/*.json")
    assert left.name > old.name


def test_a_retry_counts_rows_that_cannot_be_sent_as_the_first_try_did(warehouse, vip, add, fails, caplog):
    bad = [None, "", "customer-01500" + "x" * 1000, None]
    warehouse.fill([*MANY, *bad])
    fails(3, max_rejected=None)
    summary = add(2, max_rejected=None)
    assert summary["rejected"] == {
        "profile ID null": 2,
        "profile ID empty": 1,
        "profile ID longer than 1000 characters": 1,
    }
    assert vip.members("vip") == set(MANY)


def test_a_retry_counts_what_talon_one_refused(sqlite, vip, add, fails):
    sqlite.fill(MANY)
    vip.reject_profiles([MANY[1500]])
    fails(only=MANY[4500], max_rejected=None)
    assert len(vip.members("vip")) == 3999
    # The end of its faults has ended this, too.
    vip.reject_profiles([MANY[1500]])
    with pytest.raises(RejectedRecordsError) as raised:
        add(2)
    assert raised.value.report.rejected == {"refused by Talon.One (400)": 1}
    assert vip.members("vip") == {*MANY} - {MANY[1500]}


def test_a_retry_warns_of_ids_that_look_wrong(sqlite, vip, add, fails):
    sqlite.fill([*MANY[:1500], "customer-01499 ", *MANY[1500:]])
    fails(3)
    assert add(2)["suspicious"] == {"white_space_at_ends": 1}


def test_if_the_database_lies_about_its_order_all_rows_are_sent(sqlite, vip, add, fails, state, monkeypatch):
    sqlite.fill([*MANY[1000:], *MANY[:1000]])
    ordered = _rows._ordered

    def by_rowid(*arguments):
        return ordered(*arguments).partition(" ORDER BY")[0]

    monkeypatch.setattr(_rows, "_ordered", by_rowid)
    fails(3)
    assert not list(state.rglob("progress/*.json"))
    assert add(2)["read"] == 5000
    assert vip.members("vip") == set(MANY)


def test_if_the_database_spells_ids_in_another_way_all_rows_are_sent(
    sqlite, vip, add, fails, caplog, monkeypatch
):
    """As SQL Server spells a ``uniqueidentifier`` in capitals, and its driver does not."""
    sqlite.fill([each.upper() for each in MANY])
    select = "SELECT profile_id FROM customers"
    stream = _rows.stream_rows

    def in_small(*arguments, **how):
        for rows in stream(*arguments, **how):
            yield [(row[0].lower(),) for row in rows]

    monkeypatch.setattr(_rows, "stream_rows", in_small)
    fails(3, sql=select)
    assert add(2, sql=select)["read"] == 5000
    assert "is not found, so all rows are sent" in caplog.text
    assert vip.members("vip") == set(MANY)


def test_a_row_that_was_deleted_meanwhile_leaves_none_out(sqlite, vip, add, fails):
    sqlite.fill(MANY)
    fails(3)
    sqlite.run(f"DELETE FROM customers WHERE profile_id = '{MANY[2999]}'")
    assert add(2)["read"] == 4999


def test_a_storage_that_cannot_be_written_only_costs_the_progress(sqlite, vip, add, fails, state, caplog):
    sqlite.fill(MANY)
    fails(3)
    (file,) = state.rglob("progress/*.json")
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("")
    fails(3)
    assert "A retry will begin at the first row" in caplog.text
    assert add(2)["read"] == 5000
    assert vip.members("vip") == set(MANY)


_IDS = st.one_of(
    st.none(),
    st.integers(0, 2000),
    st.text("aAbé ~'%0\u2028", max_size=4),
    st.just("x" * 1001),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(_IDS, min_size=1, max_size=60), ends=st.lists(st.integers(0, 8), max_size=3))
def test_however_tries_end_all_is_sent_and_counted(talon, sqlite, mirror, monkeypatch, ids, ends):
    """SQLite has integers before texts, in their own order."""
    monkeypatch.setattr("airflow_provider_talon_cdp.sync.members.MAX_CHANGES", 4)
    sqlite.run("DROP TABLE IF EXISTS customers", "CREATE TABLE customers (profile_id)")
    sqlite.insert("customers", [(each,) for each in ids])
    whole, tried = (f"{name}-{uuid4()}" for name in ("whole", "tried"))
    for audience in (whole, tried):
        talon.create_audience(audience, audience)

    def add(audience, number, last):
        return mirror(
            sql="SELECT profile_id FROM customers",
            context=attempt(number, last=last, run_id=audience),
            audience_id=audience,
            mode="add",
            in_flight=1,
            max_rejected=None,
            retries=max(last, 0),
        )

    expected = add(whole, 1, last=0)
    for number, end in enumerate(ends, 1):
        talon.fail_next("status", status=401, after=end, times=None)
        with suppress(TalonCdpError):
            add(tried, number, last=9)
        talon.clear_faults()
    found = add(tried, 9, last=9)
    assert talon.members(tried) == talon.members(whole)
    assert found["rejected"] == expected["rejected"]
    assert found.get("suspicious") == expected.get("suspicious")
