"""The operators that read with SQL, from each database to a local Talon.One: members, values and counts."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from types import SimpleNamespace

import pytest

from airflow_provider_talon_cdp.exceptions import AuthenticationError, RejectedRecordsError
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator
from tests.warehouses.conftest import IDS, WARNINGS_OF_DRIVERS, spelt

pytestmark = WARNINGS_OF_DRIVERS

# The same profile twice in "vip", and profiles whose IDs some databases take for equal.
FIRST = [(each, "vip") for each in IDS] + [(each, "new") for each in ("a", "A", "é")]
GONE = [("\U0001f600", "vip"), ("a  ", "vip"), ("A", "new")]
SECOND = [pair for pair in FIRST if pair not in GONE]
SECOND += [("b", "vip"), ("a ", "vip"), ("A ", "new"), ("ß", "new")]

ONE = {"sql": "SELECT profile_id FROM members WHERE audience_id = 'vip'", "audience_id": "vip"}
MANY = {"sql": "SELECT audience_id, profile_id FROM members", "audience_column": "audience_id"}
NOT_COUNTS = {"seconds", "dead_letters", "ledger_version", "suspicious", "verdict", "report_file"}


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def audiences(talon):
    """The members of the audiences ``vip`` and ``new`` so far, with the audience of each."""
    for each in ("vip", "new"):
        talon.create_audience(each, each)
    return lambda: {(member, audience) for audience in ("vip", "new") for member in talon.members(audience)}


@pytest.fixture
def sync(run, any_warehouse, audiences):
    """Run an operator on the warehouse; its counts that are not zero."""

    def sync(operator=SqlToTalonAudienceOperator, **arguments):
        source = {"sql_conn_id": "warehouse", "hook_params": any_warehouse.hook_params}
        summary = run(operator(task_id="t", **source, **arguments))
        return {name: value for name, value in summary.items() if value and name not in NOT_COUNTS}

    return sync


def of(arguments, pairs):
    """What a run with these arguments gets of the table's rows."""
    return {pair for pair in pairs if arguments is MANY or pair[1] == "vip"}


def counts(**numbers):
    return numbers


@pytest.mark.parametrize(
    "arguments, first, second, third",
    [
        (
            ONE,
            counts(read=16, sent=15, added=15, duplicate=1, requests=1),
            counts(read=16, unchanged=13, removals=2, sent=4, added=2, removed=2, duplicate=1, requests=2),
            counts(read=16, unchanged=15, duplicate=1, requests=1),
        ),
        (
            MANY,
            counts(read=19, sent=18, added=18, duplicate=1, requests=1),
            counts(read=20, unchanged=15, removals=3, sent=7, added=4, removed=3, duplicate=1, requests=3),
            counts(read=20, unchanged=19, duplicate=1, requests=2),
        ),
    ],
    ids=["one", "many"],
)
def test_a_mirror_follows_the_rows(any_warehouse, sync, audiences, caplog, arguments, first, second, third):
    """In the order of bytes, which the database makes, though its own is another one."""
    any_warehouse.fill(FIRST)
    assert sync(mode="mirror", **arguments) == first
    assert audiences() == of(arguments, FIRST)
    any_warehouse.fill(SECOND)
    assert sync(mode="mirror", max_removal_fraction=0.5, **arguments) == second
    assert audiences() == of(arguments, SECOND)
    assert sync(mode="mirror", **arguments) == third
    assert audiences() == of(arguments, SECOND)
    assert "did not sort" not in caplog.text
    assert "sorted on this worker" not in caplog.text


@pytest.mark.parametrize(
    "arguments, added, removed",
    [
        (
            ONE,
            counts(read=16, sent=15, added=15, duplicate=1, requests=1),
            counts(read=16, sent=15, removed=15, duplicate=1, requests=1),
        ),
        (
            MANY,
            counts(read=19, sent=18, added=18, duplicate=1, requests=1),
            counts(read=20, sent=19, removed=19, duplicate=1, requests=1),
        ),
    ],
    ids=["one", "many"],
)
def test_rows_are_added_and_rows_are_removed(any_warehouse, sync, audiences, arguments, added, removed):
    any_warehouse.fill(FIRST)
    assert sync(mode="add", **arguments) == added
    assert audiences() == of(arguments, FIRST)
    any_warehouse.fill(SECOND)
    assert sync(mode="remove", **arguments) == removed
    assert audiences() == of(arguments, GONE)


def test_more_rows_than_are_fetched_at_once_arrive(any_warehouse, sync, audiences):
    number = 12_000
    if any_warehouse.count:
        # From now on, Snowflake's stand-in gives rows in several chunks.
        any_warehouse.count()
    found = sync(mode="mirror", sql=any_warehouse.many.format(number), audience_id="vip")
    assert found == counts(read=number, sent=number, added=number, requests=12)
    assert audiences() == {(f"customer-{each:019}", "vip") for each in range(number)}


@pytest.mark.parametrize(
    "operator, arguments, requests",
    [
        (SqlToTalonAudienceOperator, ONE | {"mode": "mirror"}, 1),
        (SqlToTalonProfilesOperator, {"sql": MANY["sql"], "attributes": {"audience_id": "of"}}, 2),
    ],
    ids=["members", "profiles"],
)
def test_rows_without_an_id_are_counted_and_the_others_sent(
    any_warehouse, sync, talon, audiences, operator, arguments, requests
):
    any_warehouse.fill([("a", "vip"), (None, "vip"), ("", "vip"), ("b", "vip")])
    with pytest.raises(RejectedRecordsError, match="2 of 4 records were rejected, and max_rejected is 1"):
        sync(operator, max_rejected=1, **arguments)
    rejected = {"profile ID null": 1, "profile ID empty": 1}
    found = sync(operator, max_rejected=2, send="all", **arguments)
    assert found == counts(read=4, sent=2, added=2, rejected=rejected, requests=requests)
    assert talon.profiles() == {"a", "b"}
    if operator is SqlToTalonAudienceOperator:
        assert audiences() == {("a", "vip"), ("b", "vip")}
    else:
        assert [talon.profile(each)["attributes"] for each in ("a", "b")] == [{"of": "vip"}] * 2


def test_every_value_is_the_attribute_that_talon_one_has(any_warehouse, sync, talon, connect):
    connect({"timezone": "Europe/Berlin"})
    values = {f"v{number:02}": each for number, each in enumerate(any_warehouse.values)}
    # Nulls delete what was there.
    talon.set_attributes("anna", dict.fromkeys([*values, "other"], "from before"))
    # Some databases have the names of columns in upper case.
    arguments = {"nulls": "delete", "attributes": {name: name for name in values}}

    def send(values):
        columns = ", ".join(f"{sql} AS {name}" for name, (sql, _) in values.items())
        sql = f"SELECT 'anna' AS profile_id, {columns}"
        return sync(SqlToTalonProfilesOperator, sql=sql, **arguments)

    def wanted(values):
        texts = {name: text for name, (_, text) in values.items() if text != "null"}
        found = {name: json.loads(text, parse_float=Decimal) for name, text in texts.items()}
        return spelt(found | {"other": "from before"})

    def held():
        return spelt(talon.profile("anna")["attributes"])

    assert send(values) == counts(read=1, sent=1, added=1, requests=1)
    assert held() == wanted(values)
    assert send(values) == counts(read=1, unchanged=1)
    fewer = values | {"v00": ("NULL", "null")}
    assert send(fewer) == counts(read=1, sent=1, added=1, requests=1)
    assert held() == wanted(fewer)


def test_a_retry_of_an_addition_continues_where_the_try_before_ended(any_warehouse, run, talon, audiences):
    number = 5000
    how = {
        "sql": any_warehouse.many.format(number),
        "audience_id": "vip",
        "mode": "add",
        "in_flight": 1,
        "retries": 1,
    }
    source = {"sql_conn_id": "warehouse", "hook_params": any_warehouse.hook_params}

    def add(attempt):
        ids = {"dag_id": "dag", "task_id": "t", "run_id": "run", "map_index": -1}
        ti = SimpleNamespace(**ids, try_number=attempt, max_tries=1)
        return run(SqlToTalonAudienceOperator(task_id="t", **source, **how), ti=ti)

    talon.fail_next("status", status=401, after=3, times=None)
    with pytest.raises(AuthenticationError):
        add(1)
    talon.clear_faults()
    # The last row of the first try is read again.
    assert add(2)["read"] == number - 3000 + 1
    assert audiences() == {(f"customer-{each:019}", "vip") for each in range(number)}
