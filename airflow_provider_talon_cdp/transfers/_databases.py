"""What each database needs to be read in constant memory, sorted by bytes: one entry for each, at the end.

A new database is one entry in ``DATABASES``, and one row in ``docs/warehouses.md``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.exceptions import InvalidInputError

log = logging.getLogger(__name__)

FETCH = 5000
"""Rows that are in memory at once."""

_CURSOR = "airflow_provider_talon_cdp"


class Result(NamedTuple):
    """What a statement gives.

    Args:
        names: Of its columns.
        blocks: Its rows: lists of tuples or of mappings, or Arrow batches.
        json_columns: Positions of columns that hold JSON as text.
    """

    names: Sequence[str]
    blocks: Iterator[Any]
    json_columns: Collection[int] = ()


Read: TypeAlias = Callable[[Any, str, Any, ExitStack], Result]
"""Takes a connection, a statement, bind parameters and what closes cursors; reads as it is asked."""


@dataclass(frozen=True, kw_only=True)
class Database:
    """How rows come out of one database.

    Args:
        connection_types: Types of Airflow connections that lead to it.
        hook: Class of its hook where Airflow's own for the connection type is not a SQL hook.
        hook_params: Arguments for the hook that a DAG author may override.
        connect: Opens a connection, given the hook.
        read: How a statement is executed and its rows are streamed.
        sort_key: The text of a column's values as a key that sorts by bytes, given a connection, the quoted
            name of the column and a value of it. None where the database cannot be told so.
        peek: Makes a statement of another one that gives its columns at no cost.
        quotes: What stands before and after a name; the last is doubled inside.
        alias: How a subquery is named.
        doubles_percent: Whether a single % beside bind parameters is a placeholder.
    """

    connection_types: Collection[str]
    hook: str | None = None
    hook_params: Mapping[str, Any] = field(default_factory=dict)
    connect: Callable[[DbApiHook], Any] = lambda hook: hook.get_conn()
    read: Read
    sort_key: Callable[[Any, str, Any], str] | None = None
    peek: str = "SELECT * FROM (\n{}\n) {} WHERE 1 = 0"
    quotes: str = '""'
    alias: str = "AS talon_cdp_source"
    doubles_percent: bool = False

    def quoted(self, name: str) -> str:
        """Return a column's name as it stands in a statement."""
        first, last = self.quotes[0], self.quotes[1]
        return f"{first}{name.replace(last, last * 2)}{last}"

    def peek_at(
        self, connection: Any, statement: str, parameters: Any
    ) -> tuple[list[str], Sequence[Any] | None]:
        """Return the names of a statement's columns, and its first row where that costs nothing."""
        with ExitStack() as cleanup:
            result = self.read(connection, self.peek.format(statement, self.alias), parameters, cleanup)
            row = next((block[0] for block in result.blocks if len(block)), None)
            return list(result.names), row


def read_json(text: str | bytes) -> Any:
    """Read JSON; numbers keep their digits.

    Returns:
        What it holds; an ``InvalidInputError`` where it is not JSON, or nested too deep or has too long a
        number.
    """
    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        return InvalidInputError("holds JSON that is not valid, or nested too deep, or has too long a number")


def unreadable_time() -> InvalidInputError:
    """Return what stands in a row for a time that Python does not have."""
    return InvalidInputError("holds a time that Python has not: infinity, or before the year 1 or after 9999")


def quietly(close: Callable[[], Any]) -> None:
    """Close a cursor or a connection; what goes wrong then must not hide another error."""
    try:
        close()
    except Exception as error:  # noqa: BLE001 - of any driver
        # Not its text: drivers put values into theirs.
        log.warning("Closing the warehouse's cursor or connection failed: %s", type(error).__name__)


def _execute(cursor: Any, statement: str, parameters: Any) -> None:
    """Execute a statement, with parameters or without."""
    # Without parameters a driver must not look for placeholders: a % in the SQL is then a plain character.
    cursor.execute(*((statement,) if parameters is None else (statement, parameters)))


# ------------------------------------------------------------------ how rows are streamed, by driver


def _rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with a plain cursor, which streams by itself."""
    return _from_cursor(connection.cursor(), statement, parameters, cleanup)


def _from_cursor(cursor: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    cleanup.callback(quietly, cursor.close)
    _execute(cursor, statement, parameters)
    # A server-side cursor of psycopg2 describes its columns after the first fetch.
    first = cursor.fetchmany(FETCH)
    return Result(_names_of(cursor), _blocks(first, partial(cursor.fetchmany, FETCH)))


def _blocks(first: Any, fetch: Callable[[], Any]) -> Iterator[Any]:
    while first:
        yield first
        first = fetch()


def _names_of(cursor: Any) -> list[str]:
    # redshift_connector gives bytes.
    names = [each[0] for each in cursor.description or ()]
    return [each.decode() if isinstance(each, bytes) else str(each) for each in names]


def _postgres_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with a cursor on the server; a value that a driver cannot make fails by itself."""
    driver = type(connection).__module__.partition(".")[0]
    if driver == "psycopg":
        import_module("psycopg.types.json").set_json_loads(read_json, connection)
        _tolerate_times_of_psycopg(connection)
    elif driver == "psycopg2":
        extras = import_module("psycopg2.extras")
        extras.register_default_json(connection, loads=read_json)
        extras.register_default_jsonb(connection, loads=read_json)
        _tolerate_times_of_psycopg2(connection)
    else:
        return _rows(connection, statement, parameters, cleanup)
    return _from_cursor(connection.cursor(_CURSOR), statement, parameters, cleanup)


# OIDs of PostgreSQL's types of times, and of arrays of them.
_TIMES = {"DATE": (1082, 1182), "DATETIME": (1114, 1115), "DATETIMETZ": (1184, 1185)}


def _tolerate_times_of_psycopg2(connection: Any) -> None:
    extensions = import_module("psycopg2.extensions")

    def tolerant(cast: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def read(text: Any, cursor: Any) -> Any:
            # As a date or a time, psycopg2 has infinity for the first or the last of Python's.
            if text is not None and "infinity" in text:
                return unreadable_time()
            try:
                return cast(text, cursor)
            except (ValueError, OverflowError):
                return unreadable_time()

        return read

    for name, (oid, array_oid) in _TIMES.items():
        one = extensions.new_type((oid,), f"TALON_{name}", tolerant(getattr(extensions, f"PY{name}")))
        extensions.register_type(one, connection)
        extensions.register_type(extensions.new_array_type((array_oid,), f"TALON_{name}S", one), connection)


def _tolerate_times_of_psycopg(connection: Any) -> None:
    psycopg: Any = import_module("psycopg")
    base: Any = psycopg.adapt.Loader

    def tolerant(own: Any) -> Any:
        class Tolerant(base):  # type: ignore[misc]
            def __init__(self, oid: int, context: Any = None) -> None:
                super().__init__(oid, context)
                self._own = own(oid, context)

            def load(self, data: Any) -> Any:
                try:
                    return self._own.load(data)
                except psycopg.DataError:
                    return unreadable_time()

        return Tolerant

    for oid, _ in _TIMES.values():
        loader = connection.adapters.get_loader(oid, psycopg.pq.Format.TEXT)
        connection.adapters.register_loader(oid, tolerant(loader))


def _redshift_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with DECLARE and FETCH: redshift_connector's own cursor keeps all rows."""
    cursor = connection.cursor()
    cleanup.callback(quietly, cursor.close)
    # It ends the cursor on the server, whose name the next statement needs.
    cleanup.callback(quietly, connection.rollback)
    try:
        _execute(cursor, f"DECLARE {_CURSOR} CURSOR FOR\n{statement}", parameters)
    except Exception as error:  # noqa: BLE001 - of any driver
        connection.rollback()
        log.warning(
            "Redshift declared no cursor for the query (%s): its rows are all in memory.",
            type(error).__name__,
        )
        return _from_cursor(cursor, statement, parameters, cleanup)

    def fetch() -> Any:
        cursor.execute(f"FETCH FORWARD {FETCH} FROM {_CURSOR}")
        return cursor.fetchall()

    first = fetch()
    return Result(_names_of(cursor), _blocks(first, fetch))


_MYSQL_JSON = 245


def _mysql_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read unbuffered. Its cursor is not closed, which would read all that is left: its connection is."""
    if type(connection).__module__.startswith("MySQLdb"):
        cursor = connection.cursor(import_module("MySQLdb.cursors").SSCursor)
    else:
        cursor = connection.cursor(buffered=False)
        # So would the orderly end of a connection of mysql-connector-python.
        cleanup.callback(lambda: quietly(connection.shutdown) if connection.unread_result else None)
    _execute(cursor, statement, parameters)
    first = cursor.fetchmany(FETCH)
    as_json = [place for place, each in enumerate(cursor.description or ()) if each[1] == _MYSQL_JSON]
    return Result(_names_of(cursor), _blocks(first, partial(cursor.fetchmany, FETCH)), as_json)


def _duckdb_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    cursor = connection.cursor()
    if not find_spec("pyarrow"):
        result = _from_cursor(cursor, statement, parameters, cleanup)
        return result._replace(json_columns=_json_columns(each[1] for each in cursor.description or ()))
    cleanup.callback(quietly, cursor.close)
    # A relation, not a result: of that, DuckDB would copy the rows once more.
    found = cursor.sql(statement, params=parameters)
    # Its name from DuckDB 2 on, and before.
    read = getattr(found, "to_arrow_reader", None) or found.fetch_record_batch
    return Result(found.columns, _peeked(iter(read(FETCH))), _json_columns(found.types))


def _json_columns(types: Iterable[Any]) -> list[int]:
    return [place for place, each in enumerate(types) if str(each) == "JSON"]


# Snowflake's VARIANT, OBJECT and ARRAY.
_SNOWFLAKE_JSON = {5, 9, 10}


def _snowflake_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    if hasattr(type(connection), "arrow_number_to_decimal_setter"):
        # Else NUMBER(38, 2) would come as float.
        connection.arrow_number_to_decimal_setter = True
    cursor = connection.cursor()
    cleanup.callback(quietly, cursor.close)
    _execute(cursor, statement, parameters)
    as_json = [place for place, each in enumerate(cursor.description or ()) if each[1] in _SNOWFLAKE_JSON]
    if find_spec("pyarrow"):
        try:
            tables = cursor.fetch_arrow_batches()
        except import_module("snowflake.connector").NotSupportedError:
            # Of what is not a query, such as SHOW, rows come as JSON.
            pass
        else:
            batches = (batch for table in tables for batch in table.to_batches(max_chunksize=FETCH))
            return Result(_names_of(cursor), _peeked(batches), as_json)
    return Result(
        _names_of(cursor), _blocks(cursor.fetchmany(FETCH), partial(cursor.fetchmany, FETCH)), as_json
    )


def _databricks_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    cursor = connection.cursor()
    cleanup.callback(quietly, cursor.close)
    _execute(cursor, statement, parameters)
    fetch = partial(cursor.fetchmany_arrow if find_spec("pyarrow") else cursor.fetchmany, FETCH)
    return Result(_names_of(cursor), _tables(fetch))


def _tables(fetch: Callable[[], Any]) -> Iterator[Any]:
    while len(block := fetch()):
        yield block


def _peeked(batches: Iterator[Any]) -> Iterator[Any]:
    """Fetch the first batch now: a statement that cannot run fails here, where it may be replaced."""
    return chain((each for each in [next(batches, None)] if each is not None), batches)


def _bigquery_connection(hook: Any) -> Any:
    """Connect with Google's own DB-API: the cursor of Airflow's hook makes numbers of times."""
    client = hook.get_client(project_id=hook.project_id, location=hook.location)
    bigquery = import_module("google.cloud.bigquery")
    settings = {**hook.api_resource_configs, "labels": {**hook.labels}}
    configuration = bigquery.QueryJobConfig.from_api_repr(settings)
    configuration.use_legacy_sql = bool(hook.use_legacy_sql)
    if hook.priority != "INTERACTIVE":
        # A query with a priority takes two more requests.
        configuration.priority = hook.priority
    client.default_query_job_config = configuration
    return import_module("google.cloud.bigquery.dbapi").connect(client)


def _bigquery_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    cursor = connection.cursor()
    cleanup.callback(quietly, cursor.close)
    # This driver reads %% as % also where there are no parameters.
    _execute(cursor, statement if parameters else statement.replace("%", "%%"), parameters or None)
    as_json = _json_columns(each[1] for each in cursor.description or ())
    found = getattr(cursor, "_query_rows", None)
    if found is None or not find_spec("pyarrow"):
        return Result(
            _names_of(cursor), _blocks(cursor.fetchmany(FETCH), partial(cursor.fetchmany, FETCH)), as_json
        )

    storage = connection._bqstorage_client  # noqa: SLF001 - its own cursor uses it so
    try:
        return Result(_names_of(cursor), _bigquery_batches(found, storage), as_json)
    except Exception as error:
        job = None if storage is None else cursor.query_job
        if job is None:
            raise
        # Reading with it is a permission of its own. The job's result is there: the query does not run again.
        log.warning("BigQuery's Storage API did not answer (%s). Rows come over REST.", type(error).__name__)
        return Result(_names_of(cursor), _bigquery_batches(job.result(), None), as_json)


def _bigquery_batches(found: Any, storage: Any) -> Iterator[Any]:
    # One stream, or the order would be lost.
    streams = found.to_arrow_iterable(bqstorage_client=storage, max_stream_count=1)
    return _peeked(part for batch in streams for part in _slices(batch))


def _slices(batch: Any) -> Iterator[Any]:
    return (batch.slice(start, FETCH) for start in range(0, batch.num_rows, FETCH))


def _clickhouse_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read block by block: the cursors of both drivers would wait for all rows."""
    client = getattr(connection, "_client", None)
    if client is not None and hasattr(client, "query_row_block_stream"):
        opened = ExitStack()
        cleanup.callback(quietly, opened.close)
        stream = opened.enter_context(client.query_row_block_stream(statement, parameters))
        return Result(stream.source.column_names, iter(stream))
    cursor = connection.cursor()
    if hasattr(cursor, "set_stream_results"):
        cursor.set_stream_results(stream_results=True, max_row_buffer=FETCH)
    return _from_cursor(cursor, statement, parameters, cleanup)


def _oracle_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read NUMBER as Decimal: oracledb gives a float where it has a fraction."""
    cursor = connection.cursor()
    number = import_module("oracledb").DB_TYPE_NUMBER

    def exact(cursor: Any, metadata: Any) -> Any:
        if metadata.type_code is number:
            return cursor.var(Decimal, arraysize=cursor.arraysize)
        return None

    cursor.outputtypehandler = exact
    return _from_cursor(cursor, statement, parameters, cleanup)


# ------------------------------------------------------------------ how the order of bytes is asked for


def _key(template: str) -> Callable[[Any, str, Any], str]:
    return lambda _, name, __: template.format(name)


# Redshift says that it is PostgreSQL 8.0.2. COLLATE came with 9.1.
_WITH_COLLATE = 90_100


def _postgres_key(connection: Any, name: str, _: Any) -> str:
    if connection.info.server_version < _WITH_COLLATE:
        return _REDSHIFT_KEY.format(name)
    return f'CAST({name} AS TEXT) COLLATE "C"'


# Its text is in the order of bytes, and a VARCHAR without a length has 256.
_REDSHIFT_KEY = "CAST({} AS VARCHAR(65535))"


def _sqlite_key(_: Any, name: str, value: Any) -> str:
    # A cast keeps SQLite from using an index, and text needs none. Its columns may mix types: the order is
    # checked.
    return f"{name if isinstance(value, str) else f'CAST({name} AS TEXT)'} COLLATE BINARY"


_AMAZON = "airflow.providers.amazon.aws.hooks"

DATABASES = (
    Database(
        connection_types=["postgres"], read=_postgres_rows, sort_key=_postgres_key, doubles_percent=True
    ),
    Database(
        connection_types=["redshift", "aws"],
        hook=f"{_AMAZON}.redshift_sql.RedshiftSQLHook",
        read=_redshift_rows,
        sort_key=_key(_REDSHIFT_KEY),
    ),
    # The statement itself, as SQLite renames columns of a subquery.
    Database(connection_types=["sqlite"], read=_rows, sort_key=_sqlite_key, peek="{}"),
    Database(
        connection_types=["mysql", "mariadb"],
        read=_mysql_rows,
        sort_key=_key("CAST(CONVERT({} USING utf8mb4) AS BINARY)"),
        doubles_percent=True,
        quotes="``",
    ),
    Database(
        connection_types=["snowflake"],
        read=_snowflake_rows,
        sort_key=_key("TO_VARCHAR({})"),
        doubles_percent=True,
    ),
    Database(
        connection_types=["gcpbigquery", "google_cloud_platform"],
        hook="airflow.providers.google.cloud.hooks.bigquery.BigQueryHook",
        hook_params={"use_legacy_sql": False},
        connect=_bigquery_connection,
        read=_bigquery_rows,
        sort_key=_key("CAST(CAST({} AS STRING) AS BYTES)"),
        doubles_percent=True,
        quotes="``",
    ),
    Database(
        connection_types=["databricks"],
        hook="airflow.providers.databricks.hooks.databricks_sql.DatabricksSqlHook",
        read=_databricks_rows,
        sort_key=_key("CAST({} AS STRING)"),
        quotes="``",
    ),
    Database(
        connection_types=["athena", "aws"],
        hook=f"{_AMAZON}.athena_sql.AthenaSQLHook",
        read=_rows,
        sort_key=_key("CAST({} AS VARCHAR)"),
    ),
    Database(connection_types=["duckdb"], read=_duckdb_rows, sort_key=_key("encode(CAST({} AS VARCHAR))")),
    Database(connection_types=["trino", "presto"], read=_rows, sort_key=_key("CAST({} AS VARCHAR)")),
    Database(connection_types=["clickhouse"], read=_clickhouse_rows, sort_key=_key("toString({})")),
    Database(
        connection_types=["oracle"],
        read=_oracle_rows,
        sort_key=_key("NLSSORT(TO_CHAR({}), 'NLS_SORT=BINARY')"),
        alias="talon_cdp_source",
    ),
    Database(
        connection_types=["mssql"],
        read=_rows,
        sort_key=_key("CAST({} AS VARCHAR(8000)) COLLATE Latin1_General_100_BIN2_UTF8"),
        quotes="[]",
    ),
)

ANY = Database(connection_types=(), read=_rows)
"""A database without an entry: its rows come with a plain cursor, in the order that the query has."""
