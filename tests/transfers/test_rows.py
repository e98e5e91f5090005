"""Streaming: a few rows in memory, one server-side cursor, and everything closed at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest
from airflow.exceptions import AirflowException  # type: ignore[attr-defined]
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.exceptions import AuthenticationError, InvalidInputError
from airflow_provider_talon_cdp.transfers._rows import sql_hook, stream_rows
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

ROOT = Path(__file__).parents[2]


class Watched:
    """Passes everything on to a connection or a cursor, and notes that it was closed."""

    def __init__(self, target, log, name):
        self._target, self._log, self._name = target, log, name

    def __getattr__(self, name):
        return getattr(self._target, name)

    def cursor(self, *args):
        self._log.append("cursor")
        return Watched(self._target.cursor(*args), self._log, "cursor")

    def close(self):
        self._log.append(f"{self._name} closed")
        self._target.close()


@pytest.fixture
def watched(sqlite, monkeypatch):
    """What happens to the connections that a hook opens."""
    sqlite("INSERT INTO customers (profile_id) VALUES (?)", [(f"p{each}",) for each in range(12_000)])
    log = []
    hook_class = type(BaseHook.get_connection("warehouse").get_hook())
    get_conn = hook_class.get_conn
    monkeypatch.setattr(hook_class, "get_conn", lambda hook: Watched(get_conn(hook), log, "connection"))
    return log


CLOSED = ["cursor", "cursor closed", "connection closed"]


def source():
    return sql_hook("warehouse")


def rows_of(*arguments):
    return list(chain.from_iterable(stream_rows(*arguments)))


def test_cursor_and_connection_are_closed_at_the_end(watched):
    assert len(rows_of(source(), "SELECT profile_id FROM customers", ["profile_id"])) == 12_000
    assert watched == CLOSED


def test_cursor_and_connection_are_closed_when_the_reader_stops_early(watched):
    with closing(stream_rows(source(), "SELECT profile_id FROM customers", ["profile_id"])) as rows:
        assert next(rows)[0] == ("p0",)
    assert watched == CLOSED


@pytest.mark.parametrize(
    "sql", ["SELECT nothing FROM customers", "SELECT profile_id AS x FROM customers", "nonsense"]
)
def test_cursor_and_connection_are_closed_on_an_error(watched, sql):
    with pytest.raises(Exception, match="nothing|no column|syntax"):
        rows_of(source(), sql, ["profile_id"])
    assert watched == CLOSED


def test_they_are_closed_after_a_transfer(watched, run, vip):
    run(operator())
    assert watched == CLOSED


def test_they_are_closed_when_talon_one_stops_a_transfer(watched, run, vip, talon):
    talon.fail_next("status", times=None, after=1, status=401)
    with pytest.raises(AuthenticationError):
        run(operator())
    assert watched == CLOSED


def test_they_are_closed_when_a_row_stops_a_transfer(watched, run, vip, sqlite):
    sqlite("INSERT INTO customers (profile_id) VALUES (?)", [(1.5,)])
    with pytest.raises(InvalidInputError):
        run(operator())
    assert watched == CLOSED


def test_nothing_is_opened_before_the_first_row_is_asked_for(watched):
    stream_rows(source(), "SELECT profile_id FROM customers", ["profile_id"]).close()
    assert watched == []


def operator():
    return SqlToTalonAudienceOperator(
        task_id="t",
        sql="SELECT profile_id FROM customers",
        sql_conn_id="warehouse",
        mode="add",
        audience_id="vip",
    )


def test_rows_hold_the_named_columns_in_the_named_order(sqlite):
    sqlite("INSERT INTO customers VALUES (?, ?)", [("anna", "vip")])
    assert rows_of(source(), "SELECT * FROM customers", ["audience_id", "profile_id"]) == [("vip", "anna")]
    assert rows_of(source(), "SELECT * FROM customers", ["profile_id", "profile_id"]) == [("anna", "anna")]


def open_cursors(postgres_hook):
    return [
        row[0]
        for row in postgres_hook.get_records("SELECT state FROM pg_stat_activity WHERE datname = 'postgres'")
    ]


def test_a_postgres_query_runs_in_a_cursor_on_the_server(postgres):
    """Seen from inside the query: a cursor of the session is open while its rows are read."""
    cursors = "(SELECT string_agg(name, ',') FROM pg_cursors) AS cursors"
    sql = f"SELECT n AS profile_id, {cursors} FROM generate_series(1, 9) n"
    rows = rows_of(source(), sql, ["profile_id", "cursors"])
    assert [row[0] for row in rows] == list(range(1, 10))
    assert all("talon" in row[1] for row in rows)


def test_postgres_sends_rows_as_they_are_asked_for(postgres):
    """The whole of this result would take longer than any test: only a client-side cursor waits for it."""
    sql = "SELECT generate_series(1, 3000000000) AS profile_id"
    with closing(stream_rows(source(), sql, ["profile_id"])) as rows:
        assert next(rows)[0] == (1,)


@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("second", ["SELECT 'b' AS profile_id", "SELECT 'b' AS profile_id; SET my.x = 1"])
def test_a_second_statement_of_postgres_is_refused(postgres, second, order_by):
    """psycopg2 would declare a cursor for the first one, and leave out the rows of the others."""
    sql = f"SELECT 'a' AS profile_id; {second}"
    with pytest.raises(Exception, match="more than one statement|multiple commands"):
        list(stream_rows(source(), sql, ["profile_id"], order_by=order_by))


@pytest.mark.parametrize("end", ["all", "early", "error"])
def test_no_postgres_session_is_left_behind(postgres, end):
    own = postgres()
    before = len(open_cursors(own))
    sql = "SELECT 1 / (n - 7000) AS profile_id FROM generate_series(1, 9000) n"
    if end == "all":
        rows_of(source(), sql.replace("7000", "99999"), ["profile_id"])
    elif end == "early":
        with closing(stream_rows(source(), sql, ["profile_id"])) as rows:
            next(rows)
    else:
        with pytest.raises(Exception, match="division by zero"):
            rows_of(source(), sql, ["profile_id"])
    # The server ends a session a moment after its client has closed it.
    deadline = time.monotonic() + 10
    while len(open_cursors(own)) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(open_cursors(own)) == before


LATIN = {"client_encoding": "latin1"}


@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("database, extra", [("ascii", {}), ("ascii", LATIN), ("postgres", LATIN)])
def test_text_of_postgres_is_read_in_its_encoding(postgres, monkeypatch, database, extra, order_by):
    """Latin1 lacks characters. Of a SQL_ASCII database, only the connection may say what its text is."""
    own = postgres()
    if not own.get_records("SELECT 1 FROM pg_database WHERE datname = 'ascii'"):
        how = "ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        own.run(f"CREATE DATABASE ascii {how}", autocommit=True)
    postgres(**extra)
    fields = json.loads(os.environ["AIRFLOW_CONN_WAREHOUSE"])
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(fields | {"schema": database}))
    # In hex, so that only its way back is tested.
    encoding, text, stored = "UTF8", "Zoë €", "utf-8"
    if database == "ascii":
        encoding, text, stored = ("SQL_ASCII", "Zoë", "latin1") if extra else ("SQL_ASCII", text, stored)
    sql = f"SELECT convert_from('\\x{text.encode(stored).hex()}'::bytea, '{encoding}') AS profile_id"
    with closing(stream_rows(source(), sql, ["profile_id"], order_by=order_by)) as blocks:
        assert list(chain.from_iterable(blocks)) == [(text,)]


GROWTH = textwrap.dedent(
    """
    import sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    from airflow.providers.postgres.hooks import postgres
    from airflow_provider_talon_cdp.transfers._rows import sql_hook, stream_rows
    driver = sys.argv[1]
    if driver == "psycopg2":
        postgres.USE_PSYCOPG3 = False
    sqlite = ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) "
              "SELECT 'customer-' || i || '@example.com' AS profile_id FROM n")
    other = "SELECT 'customer-' || i || '@example.com' AS profile_id FROM generate_series(1, {}) i"
    peaks = []
    for rows in (100_000, 1_000_000):
        sql = (sqlite if driver == "sqlite" else other).format(rows)
        count = sum(map(len, stream_rows(sql_hook("warehouse"), sql, ["profile_id"])))
        assert count == rows, count
        # Not ru_maxrss, which begins with what the parent process had.
        lines = Path("/proc/self/status").read_text().splitlines()
        peaks.append(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
    print("GROWTH", peaks[1] - peaks[0])
    """
)


def growth_in_megabytes(driver):
    """How much more memory a million rows need than a hundred thousand, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, driver],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.rsplit("GROWTH", 1)[1])


def test_memory_does_not_grow_with_the_rows_of_sqlite(sqlite):
    assert growth_in_megabytes("sqlite") < 10


def test_memory_does_not_grow_with_the_rows_of_postgres(postgres, request):
    assert growth_in_megabytes(request.node.callspec.params["postgres"]) < 10


def test_an_sql_hook_is_what_a_database_connection_leads_to(sqlite):
    assert isinstance(source().hook(), DbApiHook)
    assert json.loads(os.environ["AIRFLOW_CONN_WAREHOUSE"])["conn_type"] == "sqlite"


def test_a_connection_that_no_installed_provider_knows_names_its_type_and_what_to_install(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", '{"conn_type": "no_such_database"}')
    says = "(?s)'warehouse' is of the type 'no_such_database'.*install.*apache-airflow-providers-postgres"
    with pytest.raises(InvalidInputError, match=says):
        sql_hook("warehouse")


def test_what_else_a_provider_refuses_stays_its_own_error(sqlite, monkeypatch):
    def refuse(*_, **__):
        raise AirflowException("The database is asleep.")

    monkeypatch.setattr(type(source().hook()), "__init__", refuse)
    with pytest.raises(AirflowException, match="asleep"):
        sql_hook("warehouse")
