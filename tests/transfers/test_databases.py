"""How results are read of databases that no test can start; their drivers are faked at cursor and client."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers._databases import DATABASES
from airflow_provider_talon_cdp.transfers._rows import SqlSource, stream_rows


class Hook(DbApiHook):
    """A hook with a connection."""

    def __init__(self, connection):
        self._connection = connection

    def get_conn(self):
        return self._connection


class Cursor:
    """A DB-API cursor with one result."""

    def __init__(self, description, rows):
        self.description = description
        self._rows = list(rows)

    def execute(self, *_):
        """Keep the result."""

    def fetchmany(self, count):
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    def close(self):
        """Do nothing."""


def source(conn_type, connection):
    """The database of a type of connections, with this connection."""
    database = next(each for each in DATABASES if conn_type in each.connection_types)
    connection.close = lambda: None
    return SqlSource(database, lambda: Hook(connection))


def rows_of(database, columns, **how):
    with ExitStack() as stack:
        blocks = stream_rows(database, "SELECT ...", columns, **how)
        stack.callback(blocks.close)
        return [row for block in blocks for row in block]


@pytest.mark.parametrize("conn_type", ["trino", "presto"])
def test_json_of_trino_is_parsed(conn_type):
    cursor = Cursor([("profile_id", "json"), ("x", "varchar")], [('"u1"', '"as it is"'), (None, None)])
    connection = SimpleNamespace(cursor=lambda: cursor)
    assert rows_of(source(conn_type, connection), ["profile_id", "x"]) == [("u1", '"as it is"'), (None, None)]


class ClickHouse:
    """The client of clickhouse-connect: an empty result tells no names, unless it was asked for no rows."""

    def __init__(self, rows):
        self._rows = rows
        self.modes = []

    def query_row_block_stream(self, statement, parameters, tz_mode="naive_utc"):
        self.modes.append(tz_mode)
        stack = ExitStack()
        rows = [] if "LIMIT 0" in statement else self._rows
        names = ["profile_id", "at"] if rows or "LIMIT 0" in statement else []

        class Stream(list):
            source = SimpleNamespace(column_names=names)
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda *_: stack.close()  # noqa: E731

        return Stream([rows] if rows else [])

    def query(self, statement, parameters):
        assert statement.endswith("LIMIT 0")
        return SimpleNamespace(column_names=["profile_id", "at"])


AT = datetime(2026, 6, 30, 10, tzinfo=UTC)


class OldClickHouse(ClickHouse):
    """Before version 0.14."""

    def query_row_block_stream(self, statement, parameters, *, utc_tz_aware=False):
        return super().query_row_block_stream(statement, parameters, "aware" if utc_tz_aware else "naive_utc")


@pytest.mark.parametrize("client", [ClickHouse, OldClickHouse])
@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("rows", [[("anna", AT)], []])
def test_clickhouse_names_its_columns_also_of_no_rows_and_keeps_zones(client, order_by, rows):
    client = client(rows)
    database = source("clickhouse", SimpleNamespace(_client=client))
    assert rows_of(database, ["profile_id", "at"], order_by=order_by) == rows
    assert set(client.modes) == {"aware"}
    assert database.sorts


def test_oracle_refuses_a_time_whose_offset_its_driver_loses(monkeypatch):
    kinds = SimpleNamespace(DB_TYPE_NUMBER="number", DB_TYPE_TIMESTAMP_TZ="tz", DB_TYPE_TIMESTAMP_LTZ="ltz")
    monkeypatch.setitem(sys.modules, "oracledb", kinds)

    class Converting(Cursor):
        """Applies the handler as the driver does."""

        arraysize = 100
        outputtypehandler = None

        def var(self, kind, arraysize, outconverter=lambda value: value):
            return Decimal if kind is Decimal else outconverter

        def fetchmany(self, count):
            made = [
                self.outputtypehandler(self, SimpleNamespace(type_code=kind)) for _, kind in self.description
            ]
            return [
                tuple(convert(value) if convert else value for convert, value in zip(made, row, strict=True))
                for row in super().fetchmany(count)
            ]

    columns = [("ID", "number"), ("AT", "tz"), ("LOCAL", "ltz"), ("NAIVE", "timestamp")]
    naive = datetime(2026, 6, 30, 10)
    cursor = Converting(columns, [(7, naive, naive, naive)])
    ((number, at, local, plain),) = rows_of(
        source("oracle", SimpleNamespace(cursor=lambda: cursor)), ["id", "at", "local", "naive"]
    )
    assert (number, type(number), plain) == (7, Decimal, naive)
    assert isinstance(at, InvalidInputError)
    assert isinstance(local, InvalidInputError)
    assert "SYS_EXTRACT_UTC" in str(at)
