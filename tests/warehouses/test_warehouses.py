"""What holds for every database: rows, their order, values, an early end, errors, and flat memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.api.values import AttributesEncoder
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers import _databases
from airflow_provider_talon_cdp.transfers._databases import DATABASES, Database, Result
from airflow_provider_talon_cdp.transfers._rows import (
    ProfileColumns,
    SqlSource,
    range_bounds,
    read_profiles,
    sql_hook,
    stream_rows,
)
from tests.warehouses.conftest import IDS, NUMBERS, WARNINGS_OF_DRIVERS
from tests.warehouses.relay import Relay

pytestmark = WARNINGS_OF_DRIVERS

ROOT = Path(__file__).parents[2]
BERLIN = ZoneInfo("Europe/Berlin")


def rows_of(source, sql, columns=("profile_id",), parameters=None, **how):
    with closing(stream_rows(source, sql, columns, parameters, **how)) as blocks:
        return list(chain.from_iterable(blocks))


def test_ids_come_sorted_by_their_bytes(warehouse, caplog):
    found = rows_of(warehouse.source, warehouse.of_ids(IDS), order_by=1)
    assert [row[0] for row in found] == sorted(IDS, key=str.encode)
    assert "did not sort" not in caplog.text


def test_ids_that_are_numbers_come_in_the_order_of_their_text(warehouse):
    sql = " UNION ALL ".join(warehouse.ids.format(each) for each in NUMBERS)
    found = rows_of(warehouse.source, sql, order_by=1)
    assert [str(row[0]) for row in found] == sorted(map(str, NUMBERS))


def test_each_row_is_in_one_range_and_nulls_are_in_the_first(warehouse):
    sql = f"{warehouse.of_ids([*IDS, *'cdefghij'])} UNION ALL {warehouse.ids.format('NULL')}"
    bounds = range_bounds(warehouse.source, sql, "profile_id", None, 4)
    assert bounds
    ends = [None, *bounds, None]
    ranges = [
        [row[0] for row in rows_of(warehouse.source, sql, order_by=1, bounds=(low, high))]
        for low, high in pairwise(ends)
    ]
    assert None in ranges[0]
    found = [each for some in ranges for each in some if each is not None]
    assert found == sorted([*IDS, *"cdefghij"], key=str.encode)


def test_ids_of_many_audiences_come_sorted_by_both(warehouse):
    sql = " UNION ALL ".join(
        f"SELECT '{audience}' AS audience_id, 1 AS other, '{profile}' AS profile_id"
        for audience in ("b", "B", "a")
        for profile in ("y", "X", "y")
    )
    found = rows_of(warehouse.source, sql, ["profile_id", "audience_id"], order_by=2)
    assert found == sorted((profile, audience) for profile in ("X", "y", "y") for audience in ("B", "a", "b"))


def test_a_query_that_it_cannot_sort_is_read_as_it_is_written(warehouse):
    """Two columns of one name cannot stand in a subquery of any database."""
    sql = "SELECT 'b' AS profile_id, 1 AS x, 2 AS x UNION ALL SELECT 'a', 3, 4"
    assert sorted(rows_of(warehouse.source, sql, order_by=1)) == [("a",), ("b",)]


@pytest.mark.parametrize("order_by", [0, 1])
# In the process that has the server already.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("mariadb", "duckdb", "redshift")],
)
def test_an_ambiguous_column_is_refused(request, monkeypatch, name, order_by):
    """Some databases rename the second one, if the query stands in a subquery. Stand-ins rename it always."""
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    sql = "SELECT 'a' AS profile_id, 'b' AS profile_id"
    with pytest.raises(InvalidInputError, match="more than one column 'profile_id'"):
        rows_of(found.source, sql, order_by=order_by)


@pytest.mark.parametrize("name", ["redshift", "redshift_as_postgres"])
def test_redshift_is_asked_for_as_many_rows_as_one_node_gives(request, redshift_server, monkeypatch, name):
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    redshift_server.fetches.clear()
    assert len(rows_of(sql_hook("warehouse"), found.many.format(2500), order_by=1)) == 2500
    assert set(redshift_server.fetches) == {1000}


def test_an_operator_with_a_percent_sign_is_none_of_redshifts_placeholders(redshift, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(redshift.connection))
    sql = "SELECT i::text AS profile_id FROM generate_series(1, 30) AS i WHERE i % 10 = 0"
    assert rows_of(sql_hook("warehouse"), sql, order_by=1) == [("10",), ("20",), ("30",)]


@pytest.mark.xdist_group("mariadb")
@pytest.mark.parametrize("charset", ["latin1", "utf8"])
@pytest.mark.parametrize("name", ["mariadb", "mysql_connector"])
def test_the_character_set_of_a_connection_loses_no_character(request, monkeypatch, name, charset):
    found = request.getfixturevalue(name)
    found.connection["extra"]["charset"] = charset
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    # In hex, so that only its way back is tested.
    sql = "SELECT _utf8mb4 0xF09F9880 AS profile_id"
    assert rows_of(sql_hook("warehouse"), sql, order_by=1) == [("\U0001f600",)]


@pytest.mark.xdist_group("mariadb")
def test_what_mysql_does_not_take_for_a_comment_is_part_of_the_query(mariadb, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(mariadb.connection))
    ids = "(SELECT '6' AS profile_id UNION SELECT '9') AS t"
    for end in ("profile_id > 5--3", "TRUE /*! AND profile_id = 9 */"):
        assert rows_of(sql_hook("warehouse"), f"SELECT profile_id FROM {ids} WHERE {end}", order_by=1) == [
            ("9",)
        ]


@pytest.mark.xdist_group("snowflake")
def test_a_result_that_the_snowflake_connector_cuts_off_is_an_error(snowflake, monkeypatch):
    from snowflake.connector.cursor import SnowflakeCursor  # noqa: PLC0415 - it may not be installed

    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(snowflake.connection))
    fetch = SnowflakeCursor.fetch_arrow_batches
    monkeypatch.setattr(
        SnowflakeCursor, "fetch_arrow_batches", lambda self: (table.slice(0, 7) for table in fetch(self))
    )
    with pytest.raises(RuntimeError, match="Snowflake reported 10 rows but returned 7"):
        rows_of(sql_hook("warehouse"), snowflake.many.format(10), order_by=1)


@pytest.mark.xdist_group("snowflake")
def test_what_is_not_a_query_of_snowflake_is_read(snowflake, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(snowflake.connection))
    assert ("PUBLIC",) in rows_of(sql_hook("warehouse"), "SHOW SCHEMAS", ["name"])


def read_from_arrow(array):
    """What is read of a column."""
    batch = pytest.importorskip("pyarrow").record_batch({"x": array})
    database = Database(
        connection_types=(),
        connect=lambda _: SimpleNamespace(close=lambda: None),
        read=lambda *_: Result(["x"], iter([batch])),
    )
    return [value for (value,) in rows_of(SqlSource(database, lambda: None), "SELECT ...", ["x"])]


# How a value is nested in Arrow, and in Python.
NESTED = [
    (lambda _, kind: kind, lambda value: value),
    (lambda arrow, kind: arrow.list_(kind), lambda value: [value, None]),
    (lambda arrow, kind: arrow.struct({"a": arrow.large_list(kind)}), lambda value: {"a": [value]}),
    (lambda arrow, kind: arrow.map_(arrow.string(), arrow.list_(kind, 1)), lambda value: {"a": [value]}),
]


# Ticks that a cast to microseconds would wrap around to 1970.
@pytest.mark.parametrize("unit, far", [("s", 2**58), ("ms", 2**61), ("us", 2**62), ("ns", 2**63 - 1)])
@pytest.mark.parametrize("kind, nested", NESTED)
def test_a_time_of_arrow_that_python_cannot_represent_is_the_fault_of_its_row(unit, far, kind, nested):
    pyarrow = pytest.importorskip("pyarrow")
    infinity = 2**63 - 1
    ticks = [*map(nested, [0, far, -far, infinity, -infinity]), None]
    ticks = pyarrow.array(ticks, kind(pyarrow, pyarrow.int64()))
    first, *others, last = read_from_arrow(ticks.cast(kind(pyarrow, pyarrow.timestamp(unit, "UTC"))))
    assert (first, last) == (nested(datetime(1970, 1, 1, tzinfo=UTC)), None)
    assert all(isinstance(each, InvalidInputError) for each in others)


@pytest.mark.parametrize("has_pandas", [False, True])
@pytest.mark.parametrize("zone, tzinfo", [(None, None), ("Europe/Berlin", UTC)])
@pytest.mark.parametrize("kind, nested", NESTED)
def test_nanoseconds_of_arrow_are_cut_off(monkeypatch, kind, nested, zone, tzinfo, has_pandas):
    """Arrow's own conversion fails where pandas is not installed."""
    pyarrow = pytest.importorskip("pyarrow")
    if not has_pandas:
        monkeypatch.setitem(sys.modules, "pandas", None)
    ticks = pyarrow.array(list(map(nested, [1577836800123456789, -1])), kind(pyarrow, pyarrow.int64()))
    assert read_from_arrow(ticks.cast(kind(pyarrow, pyarrow.timestamp("ns", zone)))) == [
        nested(datetime(2020, 1, 1, microsecond=123456, tzinfo=tzinfo)),
        nested(datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=tzinfo)),
    ]


@pytest.mark.parametrize("kind, nested", NESTED)
def test_text_of_arrow_that_is_not_utf8_is_the_fault_of_its_row(kind, nested):
    """Databricks and Arrow do not check it."""
    pyarrow = pytest.importorskip("pyarrow")
    bytes_ = pyarrow.array(list(map(nested, [b"anna", b"J\xf6rg"])), kind(pyarrow, pyarrow.binary()))
    text, fault = read_from_arrow(bytes_.cast(kind(pyarrow, pyarrow.string()), safe=False))
    assert text == nested("anna")
    assert isinstance(fault, InvalidInputError)
    assert str(fault) == "holds text that is not UTF-8"


def test_a_struct_of_arrow_with_two_fields_of_one_name_is_the_fault_of_its_row():
    """As DuckDB before version 2 makes of ``row(1, 2)``."""
    pyarrow = pytest.importorskip("pyarrow")
    (fault,) = read_from_arrow(pyarrow.StructArray.from_arrays([[1], [2]], names=["", ""]))
    assert isinstance(fault, InvalidInputError)
    assert "such as a struct with two fields of one name" in str(fault)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize(
    "sql, value",
    [
        ("19.99::FLOAT", 19.99),
        ("'inf'::FLOAT", float("inf")),
        ("NULL::FLOAT", None),
        ("[19.99, NULL]::FLOAT[]", [19.99, None]),
        ("[52.52, 13.405]::FLOAT[2]", [52.52, 13.405]),
        ("{'a': 19.99::FLOAT, 'b': [0.1]::FLOAT[]}", {"a": 19.99, "b": [0.1]}),
        ("MAP {'a': 19.99::FLOAT}", {"a": 19.99}),
    ],
)
def test_floats_of_32_bits_have_the_digits_that_the_database_shows(duckdb, monkeypatch, sql, value):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    assert rows_of(sql_hook("warehouse"), f"SELECT {sql} AS x UNION ALL SELECT NULL", ["x"]) == [
        (value,),
        (None,),
    ]


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("order_by", [0, 1])
def test_without_arrow_duckdb_is_refused(duckdb, monkeypatch, order_by):
    """Its own rows have other values. Airflow's provider does not install pyarrow."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    monkeypatch.setattr(_databases, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match="install pyarrow"):
        rows_of(sql_hook("warehouse"), "SELECT 'a' AS profile_id", order_by=order_by)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("order_by", [0, 1])
def test_numbers_that_duckdb_would_make_negative_are_refused(duckdb, monkeypatch, order_by):
    """``md5_number`` returns this type, so that it may be a profile ID."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    sql = "SELECT {} AS profile_id"
    with pytest.raises(InvalidInputError, match="'profile_id' has the type UHUGEINT"):
        rows_of(sql_hook("warehouse"), sql.format("md5_number('anna')"), order_by=order_by)
    as_text = sql.format("md5_number('anna')::VARCHAR")
    assert rows_of(sql_hook("warehouse"), as_text, order_by=order_by) == [
        (str(int.from_bytes(hashlib.md5(b"anna").digest(), "little")),)
    ]
    beside = "SELECT 'a' AS profile_id, 1::UHUGEINT AS unused"
    assert rows_of(sql_hook("warehouse"), beside, order_by=order_by) == [("a",)]


@pytest.mark.xdist_group("mariadb")
@pytest.mark.parametrize("name", ["mariadb", "mysql_connector"])
def test_the_rows_of_a_procedure_of_mysql_are_read(request, monkeypatch, name):
    """After them comes a status, which is no second statement."""
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    sql_hook("warehouse").hook().run(
        ["DROP PROCEDURE IF EXISTS members", "CREATE PROCEDURE members() SELECT 'a' AS profile_id"]
    )
    assert rows_of(sql_hook("warehouse"), "CALL members()", order_by=1) == [("a",)]


@pytest.mark.xdist_group("mariadb")
@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("name", ["mariadb", "mysql_connector"])
def test_a_second_statement_whose_rows_mysql_would_leave_out_is_refused(request, monkeypatch, name, order_by):
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    for between in ("", "DO 1;"):
        sql = f"SELECT 'a' AS profile_id; {between} SELECT 'b' AS profile_id"
        with pytest.raises(InvalidInputError, match="more than one statement"):
            rows_of(sql_hook("warehouse"), sql, order_by=order_by)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize(
    "first",
    [
        "SELECT 'a' AS profile_id",
        "VALUES ('a')",
        "FROM (VALUES ('a')) AS t(profile_id)",
        "PIVOT (SELECT 'a' AS profile_id, 1 AS x) ON x USING count(*)",
    ],
)
def test_a_statement_whose_rows_duckdb_would_leave_out_is_refused(duckdb, monkeypatch, first, order_by):
    """It returns those of the last one."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    for between in ("", "SET threads = 1;"):
        sql = f"{first}; {between} SELECT 'b' AS profile_id"
        with pytest.raises(InvalidInputError, match="more than one statement"):
            rows_of(sql_hook("warehouse"), sql, order_by=order_by)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize(
    "first", ["SET threads = 1", "CREATE TEMP TABLE one AS SELECT 1", "SET VARIABLE x = (SELECT 1)"]
)
def test_statements_without_rows_may_come_before_the_select_of_duckdb(duckdb, monkeypatch, first, order_by):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    sql = f"{first}; SELECT 'a' AS profile_id;"
    assert rows_of(sql_hook("warehouse"), sql, order_by=order_by) == [("a",)]
    pivot = "PIVOT (SELECT 'a' AS profile_id, 1 AS x) ON x USING count(*)"
    assert rows_of(sql_hook("warehouse"), pivot, order_by=order_by) == [("a",)]


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("sql", ["-- nothing", "CREATE TEMP TABLE one AS SELECT 1"])
def test_a_script_of_duckdb_without_a_select_at_its_end_is_refused(duckdb, monkeypatch, sql, order_by):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    # From version 2 on, a statement without rows has a column of its own.
    with pytest.raises(InvalidInputError, match="no SELECT at its end|no column 'profile_id'"):
        rows_of(sql_hook("warehouse"), sql, order_by=order_by)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize(
    "sql",
    [
        "{} ORDER BY profile_id DESC LIMIT 2",
        "{} ORDER BY profile_id DESC LIMIT 2 -- or more",
        "{} OFFSET 0",
        "WITH own AS ({}) SELECT * FROM own LIMIT 2",
        "{0} UNION ALL {0} LIMIT 2",
    ],
)
def test_duckdb_sorts_and_divides_a_query_with_a_limit_of_its_own(duckdb, monkeypatch, caplog, sql):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    sql = sql.format("SELECT * FROM (VALUES ('a'), ('b')) AS t(profile_id) WHERE profile_id < $most")
    parameters = {"most": "x"}
    assert rows_of(sql_hook("warehouse"), sql, parameters=parameters, order_by=1) == [("a",), ("b",)]
    assert "did not sort" not in caplog.text
    assert range_bounds(sql_hook("warehouse"), sql, "profile_id", parameters, 2) == ["b"]


@pytest.mark.parametrize("name", ["redshift", "redshift_as_postgres"])
@pytest.mark.parametrize("order_by", [0, 1])
def test_redshift_itself_refuses_a_second_statement(request, monkeypatch, name, order_by):
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    with pytest.raises(Exception, match="multiple commands"):
        rows_of(sql_hook("warehouse"), "SELECT 1 AS profile_id; SELECT 2 AS profile_id", order_by=order_by)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("key", ["{'k': 1}", "['k']", "MAP {'k': 1}"])
@pytest.mark.parametrize("value", ["{}", "[{}]", "{{'inside': {}}}"])
def test_a_map_whose_keys_are_nested_is_the_fault_of_its_row(duckdb, monkeypatch, key, value):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    sql = f"SELECT {value.format(f'MAP {{{key}: 1}}')} AS x UNION ALL SELECT NULL"
    (found,), (null,) = rows_of(sql_hook("warehouse"), sql, ["x"])
    assert null is None
    with pytest.raises(InvalidInputError, match="^Attribute 'x' has a key that is not a string"):
        AttributesEncoder()({"x": found})


@pytest.mark.parametrize(
    "name, sql",
    [
        pytest.param(name, sql, marks=pytest.mark.xdist_group(name))
        for name, sql in [
            ("duckdb", "{'x': JSON '\"gold\"'}"),
            ("duckdb", "{'x': [JSON '\"gold\"']}"),
            ("duckdb", "[{'x': JSON '\"gold\"'}]"),
            ("duckdb", "MAP {'x': JSON '\"gold\"'}"),
            ("duckdb", "[[JSON '\"gold\"']]"),
            ("bigquery", "STRUCT(JSON '\"gold\"' AS x)"),
            ("bigquery", "STRUCT([JSON '\"gold\"'] AS x)"),
            ("bigquery", "[STRUCT(STRUCT(JSON '\"gold\"' AS y) AS x)]"),
        ]
    ],
)
def test_json_inside_another_value_than_a_list_is_the_fault_of_its_row(request, monkeypatch, name, sql):
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    (row,) = rows_of(sql_hook("warehouse"), f"SELECT {sql} AS x, 'anna' AS profile_id", ["x", "profile_id"])
    assert row[1] == "anna"
    with pytest.raises(InvalidInputError, match="^Attribute 'x' holds JSON inside a struct"):
        AttributesEncoder()({"x": row[0]})


@pytest.mark.xdist_group("mariadb")
@pytest.mark.parametrize("offset", ["+00:00", "+05:30", "-03:00"])
@pytest.mark.parametrize("name", ["mariadb", "mysql_connector"])
def test_a_timestamp_of_mysql_is_the_same_time_in_every_session(request, monkeypatch, name, offset):
    found = request.getfixturevalue(name)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(found.connection))
    sql_hook("warehouse").hook().run(
        [
            "DROP TABLE IF EXISTS visits",
            "CREATE TABLE visits (profile_id INT, at TIMESTAMP(6) NULL, local DATETIME)",
            "INSERT INTO visits VALUES (1, FROM_UNIXTIME(1782813600.5), '2026-06-30 12:00:00')",
            "INSERT INTO visits VALUES (2, NULL, NULL)",
        ]
    )
    source = sql_hook("warehouse", {"init_command": f"SET time_zone = '{offset}'"})
    columns = ["profile_id", "at", "local"]
    (_, at, local), null = rows_of(source, "SELECT * FROM visits", columns, order_by=1)
    body, _ = AttributesEncoder(zone=BERLIN)({"at": at, "local": local})
    assert body == b'{"at":"2026-06-30T10:00:00.500000Z","local":"2026-06-30T10:00:00Z"}'
    assert null == (2, None, None)


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("sql", ["INTERVAL '1' MONTH", "[INTERVAL '1' DAY]"])
@pytest.mark.parametrize("types", [{}, {"x": "(list number)"}], ids=["undeclared", "declared"])
def test_intervals_are_refused(duckdb, monkeypatch, sql, types):
    """Arrow's are tuples of three numbers."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    ((value,),) = rows_of(sql_hook("warehouse"), f"SELECT {sql} AS x", ["x"])
    with pytest.raises(InvalidInputError, match="MonthDayNano"):
        AttributesEncoder(types=types)({"x": value})


@pytest.mark.xdist_group("duckdb")
@pytest.mark.parametrize("sign", ["", "-"])
def test_infinity_of_duckdb_is_the_fault_of_its_row_in_every_unit(duckdb, monkeypatch, sign):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(duckdb.connection))
    units = ["TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMPTZ"]
    sql = "SELECT " + ", ".join(f"'{sign}infinity'::{unit} AS {unit.lower()}_" for unit in units)
    (row,) = rows_of(sql_hook("warehouse"), sql, [f"{unit.lower()}_" for unit in units])
    assert all(isinstance(each, InvalidInputError) for each in row)


def values_of_athena(*texts):
    """What is read of texts, each with the name of its type, in a row of Athena."""
    pytest.importorskip("pyathena")
    names = [f"c{number}" for number in range(len(texts))]

    class Cursor:
        description = tuple((name, kind) for name, (kind, _) in zip(names, texts, strict=True))

        def __init__(self, converter):
            self._rows = [tuple(converter.convert(kind, text) for kind, text in texts)]

        def execute(self, *_):
            """Keep the result."""

        def fetchmany(self, count):
            rows, self._rows = self._rows[:count], []
            return rows

        def close(self):
            """Do nothing."""

    class Hook(DbApiHook):
        def __init__(self):
            """Need no connection of Airflow."""

        def get_conn(self):
            return SimpleNamespace(cursor=Cursor, close=lambda: None)

    athena = next(each for each in DATABASES if "athena" in each.connection_types)
    (row,) = rows_of(SqlSource(athena, Hook), "SELECT ...", names)
    return row


def test_athenas_text_of_an_array_is_refused():
    """It is the same for one text with a comma and for two texts."""
    *refused, parsed, number = values_of_athena(
        ("array", "[Berlin, DE]"),
        ("map", "{a=1}"),
        ("row", "{a=1}"),
        ("json", '["Berlin, DE"]'),
        ("integer", "7"),
    )
    assert all(isinstance(each, InvalidInputError) for each in refused)
    assert "CAST it AS JSON" in str(refused[0])
    assert (parsed, number) == (["Berlin, DE"], 7)


def test_json_of_athena_keeps_its_digits():
    digits = "12345678901234567890.123456789"
    exact, invalid, null = values_of_athena(("json", f"[{digits}]"), ("json", "{"), ("json", None))
    assert exact == [Decimal(digits)]
    assert "holds JSON that is not valid" in str(invalid)
    assert isinstance(invalid, InvalidInputError)
    assert null is None


@pytest.mark.parametrize(
    "kind, text, says",
    [
        ("date", "+10000-01-01", "holds a time that Python cannot represent"),
        ("timestamp", "+10000-01-01 00:00:00.000", "holds a time that Python cannot represent"),
        ("timestamp with time zone", "-0044-03-15 12:00:00.000 UTC", "holds a time that Python cannot repr"),
        ("timestamp with time zone", "2026-10-25 02:30:00.000 Europe/Berlin", "AT TIME ZONE 'UTC'"),
        ("timestamp with time zone", "2026-03-29 02:30:00.000 Europe/Berlin", "AT TIME ZONE 'UTC'"),
        ("timestamp with time zone", "2026-03-29 02:30:00.000 Atlantis/Poseidonis", "AT TIME ZONE 'UTC'"),
        ("interval day to second", "2 03:00:00.000", "is an interval"),
        ("interval year to month", "1-2", "is an interval"),
    ],
)
def test_a_value_of_athena_that_no_attribute_takes_is_the_fault_of_its_row(kind, text, says):
    found, null = values_of_athena((kind, text), (kind, None))
    assert says in str(found)
    assert text not in str(found)
    assert isinstance(found, InvalidInputError)
    assert null is None


def test_times_of_athena_are_those_of_their_zone():
    noon = datetime(2026, 6, 30, 10, tzinfo=UTC)
    assert values_of_athena(
        ("timestamp with time zone", "2026-06-30 12:00:00.000 Europe/Berlin"),
        ("timestamp with time zone", "2026-06-30 12:00:00.000 +02:00"),
        ("timestamp", "2026-06-30 10:00:00.000"),
        ("date", "2026-06-30"),
    ) == (noon, noon, noon.replace(tzinfo=None), noon.date())


def test_parameters_and_a_percent_sign(warehouse):
    every = warehouse.of_ids(["a%", "b", "c%"])
    escaped = every.replace("%", warehouse.percent)
    sql = f"SELECT profile_id FROM ({escaped}) AS t WHERE profile_id <> {warehouse.parameter}"
    parameters = {"x": "b"} if "x" in warehouse.parameter else ("b",)
    assert rows_of(warehouse.source, sql, parameters=parameters, order_by=1) == [("a%",), ("c%",)]
    assert rows_of(warehouse.source, f"{every} ; -- all") == [("a%",), ("b",), ("c%",)]


def test_every_value_arrives_as_the_json_of_its_kind(warehouse):
    columns = ", ".join(f"{sql} AS v{number:02}" for number, (sql, _) in enumerate(warehouse.values))
    wanted = {f"v{number:02}": text for number, (_, text) in enumerate(warehouse.values)}
    encode = AttributesEncoder(zone=BERLIN, skip_nulls=False)
    found = {}
    for name in wanted:
        sql = f"SELECT 'anna' AS profile_id, {columns}"
        chosen = ProfileColumns(profile_id="profile_id", attributes={name: name})
        with closing(read_profiles(warehouse.source, sql, chosen, encode)) as profiles:
            (profile,) = profiles
        found[name] = profile.fault or profile.attributes.decode().partition(":")[2].removesuffix("}")
    assert found == wanted


@pytest.mark.parametrize("order_by", [0, 1])
def test_an_early_end_does_not_read_the_rest(warehouse, order_by):
    """Counted where rows leave the database, in whatever portions its driver takes them."""
    many = warehouse.many.format(200_000)
    taken = warehouse.count()
    with closing(stream_rows(warehouse.source, many, ["profile_id"], order_by=order_by)) as blocks:
        first = len(next(blocks))
    assert 100 < first <= taken() < 60_000
    assert rows_of(warehouse.source, warehouse.of_ids(["a"])) == [("a",)]


def test_an_error_in_mid_read_is_the_databases_own(warehouse):
    with pytest.raises(Exception) as error:
        rows_of(warehouse.source, warehouse.broken)
    assert not isinstance(error.value, InvalidInputError | AttributeError | TypeError)
    assert "Unread result" not in str(error.value)


@pytest.mark.parametrize("order_by", [0, 1])
def test_a_connection_that_breaks_in_mid_read_is_no_end_of_the_rows(warehouse, monkeypatch, order_by):
    if warehouse.connection["conn_type"] in ("duckdb", "google_cloud_platform", "databricks"):
        pytest.skip("it is a file, or Google's client tries again for minutes, or the driver is faked")
    place = warehouse.connection["extra"] if "port" in warehouse.connection["extra"] else warehouse.connection
    with Relay(place["port"], 2_000_000) as relay:
        place["port"] = relay.port
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(warehouse.connection))
        with pytest.raises(Exception) as error:
            rows_of(warehouse.source, warehouse.many.format(300_000), order_by=order_by)
    assert relay.is_broken
    assert not isinstance(error.value, InvalidInputError | AttributeError | TypeError)


def test_an_aws_connection_leads_to_the_database_that_is_named(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "aws"}))
    for name in ("AthenaSQLHook", "RedshiftSQLHook"):
        module = {"AthenaSQLHook": "athena_sql", "RedshiftSQLHook": "redshift_sql"}[name]
        pytest.importorskip(f"airflow.providers.amazon.aws.hooks.{module}")
        hook = sql_hook("warehouse", {"sql_hook": name}).hook()
        assert type(hook).__name__ == name
        assert hook.aws_conn_id == getattr(hook, hook.conn_name_attr) == "warehouse"


def test_a_table_that_is_not_there_is_the_databases_own_error(warehouse):
    with pytest.raises(Exception, match="(?i)no_such_table"):
        rows_of(warehouse.source, "SELECT profile_id FROM no_such_table", order_by=1)


def test_an_error_of_closing_hides_no_other(warehouse, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    source = sql_hook("warehouse", warehouse.hook_params)
    connect = source.database.connect

    with closing(connect(source.hook())) as plain:
        module = type(plain).__module__

    class Stubborn:
        # Drivers are told apart by it.
        __module__ = module

        def __init__(self, connection):
            self._connection = connection

        def __getattr__(self, name):
            return getattr(self._connection, name)

        def close(self):
            self._connection.close()
            raise RuntimeError("secret")

    object.__setattr__(source.database, "connect", lambda hook: Stubborn(connect(hook)))
    try:
        with pytest.raises(Exception, match="(?i)no_such_table"):
            rows_of(source, "SELECT profile_id FROM no_such_table")
    finally:
        object.__setattr__(source.database, "connect", connect)
    assert "Closing the warehouse's cursor or connection failed: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("conn_type", ["google_cloud_platform", "gcpbigquery"])
def test_bigquery_rows_come_over_rest_where_its_storage_api_refuses(bigquery, monkeypatch, caplog, conn_type):
    from google.api_core.exceptions import PermissionDenied  # noqa: PLC0415 - it may not be installed
    from google.cloud.bigquery import Client  # noqa: PLC0415 - as above

    class Refusing:
        transport = None

        def create_read_session(self, *_, **__):
            raise PermissionDenied("bigquery.readsessions.create")

    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(bigquery.connection | {"conn_type": conn_type}))
    monkeypatch.setattr(Client, "_ensure_bqstorage_client", lambda *_, **__: Refusing())
    assert len(rows_of(sql_hook("warehouse"), bigquery.many.format(30_000), order_by=1)) == 30_000
    assert "BigQuery's Storage API failed (PermissionDenied), so rows are read over REST" in caplog.text


def test_bigquery_is_read_with_a_client_that_cannot_limit_its_streams(bigquery, monkeypatch):
    """Google's client before 3.28."""
    from google.cloud.bigquery.table import RowIterator  # noqa: PLC0415 - it may not be installed

    read = RowIterator.to_arrow_iterable
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(bigquery.connection))
    monkeypatch.setattr(
        RowIterator,
        "to_arrow_iterable",
        lambda self, bqstorage_client=None: read(self, bqstorage_client=bqstorage_client),
    )
    assert len(rows_of(sql_hook("warehouse"), bigquery.many.format(30_000), order_by=1)) == 30_000


def test_scalars_and_arrays_of_numpy_and_pandas_are_what_they_stand_for():
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    row = {
        "a": np.int64(7),
        "b": np.float64(1.0),
        "c": np.bool_(1),
        "d": np.array([1, 2]),
        "e": pd.Timestamp("2026-06-30 12:00:00.123456789+02:00"),
        "f": np.datetime64("2026-06-30T12:00:00.123456789"),
        "g": [np.int8(1), pd.NA],
        "h": np.str_("x"),
        "i": pd.NA,
        "j": np.float32(19.99),
        "k": np.array([19.99, 0.1], dtype="float32"),
        "l": np.array([["2026-06-30T12:00:00.123456789"]], dtype="datetime64[ns]"),
    }
    body, names = AttributesEncoder(zone=BERLIN, types={"a": "string"})(row)
    assert json.loads(body) == {
        "a": "7",
        "b": 1,
        "c": True,
        "d": [1, 2],
        "e": "2026-06-30T10:00:00.123456Z",
        "f": "2026-06-30T10:00:00.123456Z",
        "g": [1, None],
        "h": "x",
        "j": 19.99,
        "k": [19.99, 0.1],
        "l": [["2026-06-30T10:00:00.123456Z"]],
    }
    assert "i" not in names


@pytest.mark.parametrize(
    "name, zone, text",
    [
        ("max", "America/New_York", "2262-04-12T03:47:16.854775Z"),
        ("max", "Europe/Berlin", "2262-04-11T21:47:16.854775Z"),
        ("min", "America/New_York", "1677-09-21T05:08:45.145224Z"),
        ("min", "Europe/Berlin", "1677-09-20T23:19:15.145224Z"),
    ],
)
def test_the_first_and_the_last_time_of_pandas_are_in_the_connections_zone(name, zone, text):
    """Its own methods end where a zone's offset would take them out of their range."""
    value = getattr(pytest.importorskip("pandas").Timestamp, name)
    body, _ = AttributesEncoder(zone=ZoneInfo(zone))({"x": value})
    assert json.loads(body) == {"x": text}


@pytest.mark.parametrize("is_array", [False, True])
def test_a_time_of_numpy_that_python_does_not_have_is_refused(is_array):
    np = pytest.importorskip("numpy")
    value = np.datetime64("20000-01-01", "us")
    with pytest.raises(InvalidInputError, match="'x' holds a time that Python cannot represent"):
        AttributesEncoder(zone=BERLIN)({"x": np.array([value]) if is_array else value})


@pytest.mark.parametrize("unit", ["ns", "us", "D", "M", "Y"])
def test_an_interval_of_numpy_is_refused_in_every_unit(unit):
    np = pytest.importorskip("numpy")
    interval = np.timedelta64(7, unit)
    for value in (interval, np.array([interval]), [interval]):
        with pytest.raises(InvalidInputError, match="'x' is of type (timedelta64|ndarray|timedelta),"):
            AttributesEncoder()({"x": value})
        with pytest.raises(InvalidInputError, match="'x' is declared as"):
            AttributesEncoder(types={"x": "(list number)" if value is not interval else "number"})(
                {"x": value}
            )
    assert AttributesEncoder(skip_nulls=False)({"x": np.timedelta64("NaT", unit)})[0] == b'{"x":null}'


GROWTH = textwrap.dedent(
    """
    import json, os, sys, warnings
    warnings.simplefilter("ignore")
    from contextlib import suppress
    from pathlib import Path
    with suppress(ImportError):
        from snowflake.connector import connection as snowflake
        snowflake.DEFAULT_CONFIGURATION["protocol"] = ("http", str)
    with suppress(ImportError):
        from google.cloud.bigquery import Client
        Client._ensure_bqstorage_client = lambda *_, **__: None
    with suppress(ImportError):
        from databricks import sql
        from tests.warehouses.fake_databricks import Connection
        sql.connect = Connection
    from airflow_provider_talon_cdp.transfers._rows import sql_hook, stream_rows
    many, hook_params, order_by = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    peaks = []
    for rows in (100_000, 1_000_000):
        source = sql_hook("warehouse", hook_params)
        if rows == 100_000 and "snowflake" in os.environ["AIRFLOW_CONN_WAREHOUSE"]:
            # Its fake sends all rows in one answer, so what the driver takes for that is counted before.
            with source.hook().get_conn().cursor() as cursor:
                batches = cursor.execute(many.format(1_000_000)).fetch_arrow_batches()
                assert sum(batch.num_rows for batch in batches) == 1_000_000
        count = sum(map(len, stream_rows(source, many.format(rows), ["profile_id"], order_by=order_by)))
        assert count == rows, count
        assert source.sorts
        # Not ru_maxrss, which begins with what the parent process had.
        lines = Path("/proc/self/status").read_text().splitlines()
        peaks.append(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
    print("GROWTH", peaks[1] - peaks[0])
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("order_by", [0, 1])
def test_memory_does_not_grow_with_the_rows(warehouse, order_by, request):
    """In a process of its own, between a hundred thousand rows and a million."""
    arguments = [warehouse.many, json.dumps(warehouse.hook_params), str(order_by)]
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, *arguments],
        env=os.environ | warehouse.environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Drivers of columns hold a few batches of them, and DuckDB as much as it may.
    assert float(done.stdout.rsplit("GROWTH", 1)[1]) < 64
