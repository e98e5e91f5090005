"""How results are read of databases that no test can start; their drivers are faked at cursor and client."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace

import pytest
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers._databases import DATABASES, FETCH
from airflow_provider_talon_cdp.transfers._rows import SqlSource, stream_rows


class Hook(DbApiHook):
    """A hook with a connection."""

    def __init__(self, connection):
        self._connection = connection

    def get_conn(self):
        return self._connection


class Cursor:
    """A DB-API cursor with one result."""

    rowcount = None

    def __init__(self, description, rows):
        self.description = description
        self._rows = list(rows)

    def execute(self, *_):
        """Keep the result."""

    def fetchmany(self, count):
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    def nextset(self):
        """Have no other result."""

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


@pytest.mark.parametrize("conn_type", ["trino", "presto"])
def test_json_of_trino_is_parsed_in_a_list_and_refused_in_other_values(conn_type):
    kinds = ["array(json)", "array(array(json))", "map(varchar, json)", "row(x json, y varchar)"]
    kinds += ["array(row(x json))", 'row("x, json" varchar, json varchar)']
    text = '"gold"'
    rows = [([text, None], [[text]], {"x": text}, (text, "y"), [(text,)], (text, text)), (None,) * 6]
    cursor = Cursor([(str(at), kind) for at, kind in enumerate(kinds)], rows)
    connection = SimpleNamespace(cursor=lambda: cursor)
    (items, *refused, named), nulls = rows_of(source(conn_type, connection), list("012345"))
    assert (items, named) == (["gold", None], (text, text))
    assert all("holds JSON inside a struct" in str(each) for each in refused)
    assert all(isinstance(each, InvalidInputError) for each in refused)
    assert nulls == (None,) * 6


@pytest.mark.parametrize(
    "zone, system, summer, winter",
    [
        ("+05:30", "CET", 330, 330),
        ("-03:00", "CET", -180, -180),
        ("Europe/Berlin", "UTC", 120, 60),
        ("SYSTEM", "UTC", 0, 0),
        # The abbreviation is that of the day on which the server started.
        ("SYSTEM", "EST", None, None),
        ("SYSTEM", "CEST", None, None),
        ("Atlantis/Poseidonis", "UTC", None, None),
        # Other databases speak MySQL's protocol, and may not have the variables.
        (0, 0, None, None),
        (None, None, None, None),
        (OSError("unknown variable"), None, None, None),
    ],
)
def test_a_timestamp_of_mysql_has_the_zone_of_its_session_where_that_is_known(zone, system, summer, winter):
    june, december, twice = (
        datetime(2026, 6, 30, 12),
        datetime(2026, 12, 30, 12),
        datetime(2026, 10, 25, 2, 30),
    )

    class Session(Cursor):
        def execute(self, statement):
            if "time_zone" in statement:
                if isinstance(zone, OSError):
                    raise zone
                self._zones = [(zone, system)]

        def fetchall(self):
            return self._zones

    cursor = Session(
        [("at", 7), ("local", 12)], [(june, june), (december, june), (twice, june), (None, None)]
    )
    connection = SimpleNamespace(cursor=lambda buffered: cursor, unread_result=False)
    rows = rows_of(source("mysql", connection), ["at", "local"])
    (first, second, third, null), local = zip(*rows, strict=True)

    def aware(moment, minutes):
        return moment if minutes is None else moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))

    assert (first, second, null) == (aware(june, summer), aware(december, winter), None)
    if summer == winter:
        assert third == aware(twice, summer)
    else:
        assert isinstance(third, InvalidInputError)
        assert "is a TIMESTAMP that happens twice in the session's time zone" in str(third)
    assert local == (june, june, june, None)


@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_value_that_trinos_client_cannot_convert_is_not_quoted(earlier, order_by):
    class TrinoDataError(Exception):
        pass

    class Failing(Cursor):
        def fetchmany(self, count):
            if rows := super().fetchmany(count):
                return rows
            raise TrinoDataError("Could not convert '+10000-01-01' into the associated python type")

    failing = Failing([("profile_id", "varchar"), ("born", "date")], [("anna", None)] * earlier)
    cursors = [Cursor(failing.description, [])] * order_by + [failing]
    connection = SimpleNamespace(cursor=lambda: cursors.pop(0))
    with pytest.raises(InvalidInputError, match="Trino's client cannot convert a value") as error:
        rows_of(source("trino", connection), ["profile_id", "born"], order_by=order_by)
    assert error.value.__suppress_context__
    assert "10000" not in str(error.value)


@pytest.mark.parametrize(
    "conn_type, kinds",
    [
        ("trino", ["interval day to second", "interval year to month"]),
        ("presto", ["interval day to second", "interval year to month"]),
        ("databricks", ["interval_day_time", "interval_year_month"]),
    ],
)
def test_an_interval_that_a_driver_returns_as_text_is_the_fault_of_its_row(monkeypatch, conn_type, kinds):
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    cursor = Cursor([(kind, kind) for kind in kinds], [("2 03:00:00.000", "1-2"), (None, None)])
    connection = SimpleNamespace(cursor=lambda: cursor)
    found, nulls = rows_of(source(conn_type, connection), kinds)
    assert ["is an interval" in str(each) for each in found] == [True, True]
    assert all(isinstance(each, InvalidInputError) for each in found)
    assert nulls == (None, None)


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


@pytest.fixture
def clickhouse_connect(tmp_path, monkeypatch):
    """Pretends that a version of clickhouse-connect is installed."""

    def install(version):
        metadata = tmp_path / f"clickhouse_connect-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: clickhouse-connect\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("rows", [[("anna", AT)], []])
def test_clickhouse_names_its_columns_also_of_no_rows_and_keeps_zones(clickhouse_connect, order_by, rows):
    clickhouse_connect("1.4.0")
    client = ClickHouse(rows)
    database = source("clickhouse", SimpleNamespace(_client=client))
    assert rows_of(database, ["profile_id", "at"], order_by=order_by) == rows
    assert set(client.modes) == {"aware"}
    assert database.sorts


@pytest.mark.parametrize("order_by", [0, 1])
def test_a_clickhouse_client_that_takes_a_broken_connection_for_the_end_is_refused(
    clickhouse_connect, order_by
):
    clickhouse_connect("1.3.0")
    client = ClickHouse([("anna", AT)])
    database = source("clickhouse", SimpleNamespace(_client=client))
    says = "clickhouse-connect 1.3.0 takes a broken connection .*\nInstall clickhouse-connect>=1.4."
    with pytest.raises(InvalidInputError, match=says):
        rows_of(database, ["profile_id"], order_by=order_by)
    assert client.modes == []


@pytest.mark.parametrize("total, is_short", [(3, True), (2, False), (None, False), (-1, False)])
def test_fewer_rows_than_snowflake_counts_are_an_error_that_another_try_may_not_have(
    monkeypatch, total, is_short
):
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    cursor = Cursor([("PROFILE_ID", 2)], [("u1",), ("u2",)])
    cursor.rowcount = total
    database = source("snowflake", SimpleNamespace(cursor=lambda: cursor))
    if not is_short:
        assert rows_of(database, ["profile_id"]) == [("u1",), ("u2",)]
        return
    with pytest.raises(RuntimeError, match="reported 3 rows but returned 2"):
        rows_of(database, ["profile_id"])


@pytest.mark.parametrize("kind", [5, 9, 10])
def test_a_null_inside_a_value_of_snowflake_is_null(monkeypatch, kind):
    """Its server writes it as a word that JSON does not have."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    texts = ['[\n  undefined,\n  "b@x"\n]', r'{"undefined": "\", undefined", "x": [undefined]}', "undefined"]
    cursor = Cursor([("X", kind), ("TEXT", 2)], [*((text, text) for text in texts), (None, None)])
    database = source("snowflake", SimpleNamespace(cursor=lambda: cursor))
    values, unchanged = zip(*rows_of(database, ["x", "text"]), strict=True)
    assert values == ([None, "b@x"], {"undefined": '", undefined', "x": [None]}, None, None)
    assert unchanged == (*texts, None)


def test_a_second_statement_whose_rows_snowflake_would_leave_out_is_refused(monkeypatch):
    """Its connector takes several statements if the session's MULTI_STATEMENT_COUNT allows them."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    class OfSeveral(Cursor):
        def nextset(self):
            return self

    cursor = OfSeveral([("PROFILE_ID", 2)], [("u1",)])
    with pytest.raises(InvalidInputError, match="more than one statement"):
        rows_of(source("snowflake", SimpleNamespace(cursor=lambda: cursor)), ["profile_id"])


class Redshift:
    """A connection of redshift_connector 2.1.0, which asks once for the columns of equal statements."""

    def __init__(self):
        self._described = {}

    def cursor(self):
        described = self._described

        class RedshiftCursor(Cursor):
            def execute(self, statement):
                if statement.startswith("DECLARE"):
                    is_peek = "WHERE 1 = 0" in statement
                    self._columns = ["other", "profile_id"] if is_peek else ["profile_id", "other"]
                    self._rows = [] if is_peek else [("u1", "x")]
                else:
                    columns = described.setdefault(statement, self._columns)
                    self.description = [(name.encode(), 1043) for name in columns]

            def fetchall(self):
                return self.fetchmany(1000)

        return RedshiftCursor([], [])

    def rollback(self):
        """Do nothing."""


def test_columns_of_redshift_are_those_of_the_statement_not_of_the_one_before():
    assert rows_of(source("redshift", Redshift()), ["profile_id", "other"], order_by=1) == [("u1", "x")]


def test_sql_server_sorts_text_by_its_bytes_in_utf8_whatever_its_code_page_is():
    statements = []

    class Noting(Cursor):
        def execute(self, statement):
            statements.append(statement)

    connection = SimpleNamespace(cursor=lambda: Noting([("profile_id", str)], [("u1",)]))
    assert rows_of(source("mssql", connection), ["profile_id"], order_by=1) == [("u1",)]
    key = "CAST(CAST([profile_id] AS NVARCHAR(4000)) COLLATE Latin1_General_100_BIN2_UTF8 AS VARCHAR(8000))"
    assert statements[-1].endswith(f" ORDER BY {key}")


class Pymssql(Cursor):
    """The cursor of pymssql: at the end of a statement's rows, it fetches those of the next one."""

    def __init__(self, *results):
        super().__init__([("profile_id", 1)], results[0])
        self._others = list(results[1:])
        self._is_end = False

    def fetchmany(self, count):
        if self._is_end:
            self.nextset()
        taken = super().fetchmany(count)
        self._is_end = len(taken) < count
        return taken

    def nextset(self):
        self._rows, more = (self._others.pop(0), 1) if self._others else ([], None)
        self.description = self.description if more else None
        return more


@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("rows", [0, 1, FETCH, FETCH + 1])
def test_a_second_statement_of_sql_server_is_refused(rows, order_by):
    def read(*results):
        # The database does not take them in a subquery.
        class Refusing(Cursor):
            def execute(self, *_):
                raise ValueError("Incorrect syntax near ';'.")

        cursors = [Refusing((), ())] * order_by + [Pymssql(*results)]
        connection = SimpleNamespace(cursor=lambda: cursors.pop(0))
        return rows_of(source("mssql", connection), ["profile_id"], order_by=order_by)

    first = [(str(number),) for number in range(rows)]
    assert read(first) == first
    with pytest.raises(InvalidInputError, match="more than one statement"):
        read(first, [("b",)])


def test_oracle_sends_as_many_rows_at_a_time_as_are_fetched(monkeypatch):
    monkeypatch.setitem(sys.modules, "oracledb", SimpleNamespace())
    sizes = []

    class Sized(Cursor):
        arraysize = 100

        def execute(self, _):
            sizes.append(self.arraysize)

    connection = SimpleNamespace(cursor=lambda: Sized([("ID", "number")], [(7,)]))
    assert rows_of(source("oracle", connection), ["id"]) == [(7,)]
    assert sizes == [FETCH]


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
