"""What databases that no test can start are asked, word for word, and what DuckDB answers in their place."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.transfers._databases import DATABASES
from airflow_provider_talon_cdp.transfers._rows import SqlSource, range_bounds, stream_rows
from tests.warehouses.conftest import IDS, NUMBERS

SQL = "SELECT a, b FROM t"


@dataclass(frozen=True)
class Spoken:
    """The SQL of a database.

    Args:
        key: The expression that sorts by bytes, given a quoted name or a literal.
        names: Names of columns as its driver gives them. The second one needs an escape.
        quoted: How they are written in SQL.
        alias: The alias of a subquery.
        peek: The statement for the columns of SQL.
        dialect: What sqlglot calls it, if not as the connection's type.
    """

    key: str
    names: tuple[str, ...] = ("profile_id", 'o"d d')
    quoted: tuple[str, ...] = ('"profile_id"', '"o""d d"')
    alias: str = "AS talon_cdp_source"
    peek: str = f"SELECT * FROM (\n{SQL}\n) AS talon_cdp_source WHERE 1 = 0"
    dialect: str = ""


DATABASES_OF_OTHERS = {
    "trino": Spoken("CAST({} AS VARCHAR)"),
    "presto": Spoken("CAST({} AS VARCHAR)"),
    "athena": Spoken("CAST({} AS VARCHAR)"),
    "clickhouse": Spoken("toString({})", peek=f"SELECT * FROM (\n{SQL}\n) LIMIT 0"),
    "oracle": Spoken(
        "NLSSORT(TO_CHAR({}), 'NLS_SORT=BINARY')",
        names=("PROFILE_ID", 'o"d d'),
        quoted=('"PROFILE_ID"', '"o""d d"'),
        # Oracle takes no AS there.
        alias="talon_cdp_source",
        peek=f"SELECT * FROM (\n{SQL}\n) talon_cdp_source WHERE 1 = 0",
    ),
    "mssql": Spoken(
        "CAST(CAST({} AS NVARCHAR(4000)) COLLATE Latin1_General_100_BIN2_UTF8 AS VARCHAR(8000))",
        names=("profile_id", "o]d d"),
        quoted=("[profile_id]", "[o]]d d]"),
        dialect="tsql",
    ),
}


class Hook(DbApiHook):
    def __init__(self, cursor):
        self._cursor = cursor

    def get_conn(self):
        return SimpleNamespace(cursor=self._cursor, close=lambda: None)


@pytest.fixture(params=DATABASES_OF_OTHERS)
def conn_type(request, monkeypatch):
    """The type of an Airflow connection to each of them in turn."""
    if request.param == "athena":
        pytest.importorskip("pyathena")
    # Its driver need not be installed.
    monkeypatch.setitem(sys.modules, "oracledb", SimpleNamespace())
    return request.param


def source_of(conn_type, cursor):
    entry = next(each for each in DATABASES if conn_type in each.connection_types)
    return SqlSource(entry, lambda: Hook(cursor))


def rows_of(source, columns, sql=SQL, **how):
    with closing(stream_rows(source, sql, columns, **how)) as blocks:
        return list(chain.from_iterable(blocks))


def asked(conn_type, **how):
    """The statements for the rows of SQL in an order."""
    statements = []

    class Cursor:
        description = tuple((name, "text") for name in DATABASES_OF_OTHERS[conn_type].names)

        def __init__(self, **_):
            self._rows = []

        def execute(self, statement, *parameters):
            assert not parameters
            statements.append(statement)
            # A peek gives no rows.
            self._rows = [("u1", "x")] if "ORDER BY" in statement else []

        def fetchmany(self, count):
            rows, self._rows = self._rows[:count], self._rows[count:]
            return rows

        def nextset(self):
            """Have no other result."""

        def close(self):
            """Do nothing."""

    source = source_of(conn_type, Cursor)
    # In whatever case people write the name.
    assert rows_of(
        source, ["Profile_ID", *DATABASES_OF_OTHERS[conn_type].names[1:]], f"{SQL} ;\n", **how
    ) == [("u1", "x")]
    assert source.sorts
    return statements


@pytest.mark.parametrize("order_by", [1, 2])
def test_a_query_is_asked_for_in_the_order_of_the_bytes_of_columns(conn_type, order_by):
    spoken = DATABASES_OF_OTHERS[conn_type]
    keys = ", ".join(spoken.key.format(name) for name in spoken.quoted[:order_by])
    columns = ", ".join(spoken.quoted)
    assert asked(conn_type, order_by=order_by) == [
        spoken.peek,
        f"SELECT {columns} FROM (\n{SQL}\n) {spoken.alias} ORDER BY {keys}",
    ]


@pytest.mark.parametrize(
    "bounds, condition",
    [
        ((None, "b"), "({key} < {high} OR {key} IS NULL)"),
        (("a", "b"), "{key} >= {low} AND {key} < {high}"),
        (("a", None), "{key} >= {low}"),
    ],
    ids=["first", "middle", "last"],
)
def test_a_range_is_compared_as_it_is_sorted(conn_type, bounds, condition):
    spoken = DATABASES_OF_OTHERS[conn_type]
    key, low, high = (spoken.key.format(each) for each in (spoken.quoted[0], "'a'", "'b'"))
    condition = condition.format(key=key, low=low, high=high)
    assert asked(conn_type, order_by=1, bounds=bounds) == [
        spoken.peek,
        f"SELECT {', '.join(spoken.quoted)} FROM (\n{SQL}\n) {spoken.alias} WHERE {condition} ORDER BY {key}",
    ]


@pytest.fixture
def stand_in(conn_type):
    """A source whose statements DuckDB runs, translated from the SQL of the database."""
    duckdb, sqlglot = pytest.importorskip("duckdb"), pytest.importorskip("sqlglot")
    database = duckdb.connect()
    # What these functions are said to return.
    database.execute("CREATE MACRO tostring(x) AS x::VARCHAR")
    database.execute("CREATE MACRO nlssort(x, y) AS CASE y WHEN 'NLS_SORT=BINARY' THEN encode(x) END")

    class Cursor:
        def __init__(self, **_):
            self._cursor = database.cursor()
            self.description = None

        def execute(self, statement):
            dialect = DATABASES_OF_OTHERS[conn_type].dialect or conn_type
            (translated,) = sqlglot.transpile(statement, read=dialect, write="duckdb")
            # DuckDB compares text by bytes.
            translated = translated.replace(" COLLATE Latin1_General_100_BIN2_UTF8", "")
            self._cursor.execute(re.sub(r"TEXT\(\d+\)", "TEXT", translated))
            self.description = self._cursor.description

        def fetchmany(self, count):
            return self._cursor.fetchmany(count)

        def nextset(self):
            """Have no other result."""

        def close(self):
            self._cursor.close()

    return source_of(conn_type, Cursor)


def selected(ids, more=""):
    """A SELECT of these profile IDs, which are text or numbers."""
    literals = (f"'{each}'" if isinstance(each, str) else each for each in ids)
    return " UNION ALL ".join(f"SELECT {each} AS profile_id{more}" for each in literals)


def by_text(ids):
    return sorted(ids, key=lambda each: str(each).encode())


@pytest.mark.parametrize("ids", [IDS, NUMBERS], ids=["text", "numbers"])
def test_ids_come_in_the_order_of_their_text(stand_in, ids):
    found = rows_of(stand_in, ["profile_id"], selected(ids, ", 1 AS x"), order_by=1)
    assert [row[0] for row in found] == by_text(ids)
    assert stand_in.sorts


@pytest.mark.parametrize("ids", [[*IDS, *"cdefghij"], NUMBERS], ids=["text", "numbers"])
def test_each_row_is_in_one_range(stand_in, ids):
    sql = f"{selected(ids)} UNION ALL SELECT NULL"
    bounds = range_bounds(stand_in, sql, "profile_id", None, 3)
    assert len(bounds) > 1
    ranges = [
        [row[0] for row in rows_of(stand_in, ["profile_id"], sql, order_by=1, bounds=each)]
        for each in pairwise([None, *bounds, None])
    ]
    assert None in ranges[0]
    found = [each for some in ranges for each in some if each is not None]
    assert found == by_text(ids)
