"""How each database is read in constant memory and sorted by bytes; ``DATABASES`` has an entry for each.

A new database needs an entry in ``DATABASES``, and a row in ``docs/warehouses.md``.
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from itertools import chain, takewhile
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4
from zoneinfo import ZoneInfo

from airflow.providers.common.sql.hooks.sql import DbApiHook
from packaging.version import Version

from airflow_provider_talon_cdp.exceptions import InvalidInputError, unreadable_time

log = logging.getLogger(__name__)

FETCH = 5000
"""Number of rows that are fetched at once."""

_REDSHIFT_FETCH = 1000
"""The most that Redshift lets a cursor fetch at once where it has a single node."""

_CURSOR = "airflow_provider_talon_cdp"


Convert: TypeAlias = Callable[[Any], Any]


class Result(NamedTuple):
    """The result of a statement.

    Args:
        names: Names of the columns.
        blocks: The rows: lists of tuples or of mappings, or Arrow batches.
        converters: By position of a column, a function that converts the driver's value.
    """

    names: Sequence[str]
    blocks: Iterator[Any]
    converters: Mapping[int, Convert] = MappingProxyType({})


Read: TypeAlias = Callable[[Any, str, Any, ExitStack], Result]
"""Executes a statement, given a connection, the statement, bind parameters and a stack that closes cursors.
The rows are fetched while the result's blocks are read."""


@dataclass(frozen=True, kw_only=True)
class Database:
    """How the rows of one database are read.

    Args:
        connection_types: Types of the database's Airflow connections.
        hook: Class of the hook, if Airflow's hook of the connection type is not a SQL hook.
        hook_params: Default arguments of the hook, which a DAG author may override.
        connect: Opens a connection, given the hook.
        read: Executes a statement and streams its rows.
        sort_key: Returns a SQL expression of a column's text that sorts by bytes, given a connection, the
            quoted name of the column and one of its values. None if the database cannot sort by bytes.
        peek: Format of a statement that returns another statement's columns without reading its rows, or a
            function that returns their names.
        quotes: The characters before and after a quoted name; the second one is doubled in a name.
        alias: The alias of a subquery.
        doubles_percent: Whether a % must be doubled if there are bind parameters.
    """

    connection_types: Collection[str]
    hook: str | None = None
    hook_params: Mapping[str, Any] = field(default_factory=dict)
    connect: Callable[[DbApiHook], Any] = lambda hook: hook.get_conn()
    read: Read
    sort_key: Callable[[Any, str, Any], str] | None = None
    peek: str | Callable[[Any, str, Any], list[str]] = "SELECT * FROM (\n{}\n) {} WHERE 1 = 0"
    quotes: str = '""'
    alias: str = "AS talon_cdp_source"
    doubles_percent: bool = False

    def quoted(self, name: str) -> str:
        """Quote a column's name for a statement."""
        first, last = self.quotes[0], self.quotes[1]
        return f"{first}{name.replace(last, last * 2)}{last}"

    def peek_at(
        self, connection: Any, statement: str, parameters: Any
    ) -> tuple[list[str], Sequence[Any] | None]:
        """Return the names of a statement's columns, and its first row if ``peek`` reads it."""
        if not isinstance(self.peek, str):
            return self.peek(connection, statement, parameters), None
        with ExitStack() as cleanup:
            result = self.read(connection, self.peek.format(statement, self.alias), parameters, cleanup)
            row = next((block[0] for block in result.blocks if len(block)), None)
            return list(result.names), row


def read_json(value: Any) -> Any:
    """Parse JSON text, with fractions as Decimal; what is neither str nor bytes is returned as it is.

    Returns:
        The value. An ``InvalidInputError`` if it is not JSON, nested too deep, or has a number that is too
        long: only the row is rejected.
    """
    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        return InvalidInputError(
            "holds JSON that is not valid, or is nested too deep, or has too many digits"
        )


def shortest(value: Any) -> Any:
    """Return a float of 32 bits with the fewest digits that identify it: 19.99, as databases show it."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    bits = struct.pack("f", value)
    texts = (f"{value:.{digits}g}" for digits in range(6, 10))
    return next((float(text) for text in texts if struct.pack("f", float(text)) == bits), value)


def _refused(text: str) -> Convert:
    """Return a converter that rejects the row of each value but null."""
    return lambda value: None if value is None else InvalidInputError(text)


_refuse_interval = _refused(
    "is an interval, which no Talon.One attribute takes: CAST it in SQL to text or to a number"
)


_refuse_json_inside = _refused(
    "holds JSON inside a struct, a map or a list of lists: convert the whole value to JSON in SQL, "
    "with CAST or TO_JSON"
)

# Quoted names of fields and quoted values of an enumeration, which may hold anything.
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")
_JSON_LIST = re.compile(r"json\[\d*\]|array\(json\)")
# As a type. The name of a field is followed by a space.
_JSON_INSIDE = re.compile(r"\bjson(?=[\[,)])")


def _read_json_items(value: Any) -> Any:
    return value if value is None else [read_json(item) for item in value]


def _json_converters(types: Iterable[Any]) -> dict[int, Convert]:
    """Return converters by the position of the columns whose type is JSON or contains JSON.

    Args:
        types: Types as DuckDB or Trino writes them: ``JSON[]``, ``array(json)``, ``row(name json)``.
    """
    converters: dict[int, Convert] = {}
    for at, kind in enumerate(_QUOTED.sub('""', str(each)).lower() for each in types):
        if kind == "json":
            converters[at] = read_json
        elif _JSON_LIST.fullmatch(kind):
            converters[at] = _read_json_items
        elif _JSON_INSIDE.search(kind):
            converters[at] = _refuse_json_inside
    return converters


def close_quietly(close: Callable[[], Any]) -> None:
    """Close a cursor or a connection. An error is only logged, as it must not hide an earlier one."""
    try:
        close()
    except Exception as error:  # noqa: BLE001 - drivers have their own errors
        # The error's text is not logged, as drivers may quote values in it.
        log.warning("Closing the warehouse's cursor or connection failed: %s", type(error).__name__)


def _execute(cursor: Any, statement: str, parameters: Any, cleanup: ExitStack | None = None) -> Any:
    """Execute a statement, and return the cursor; the stack closes it."""
    if cleanup is not None:
        cleanup.callback(close_quietly, cursor.close)
    # Without the argument, drivers do not look for placeholders, so that a % in the SQL is a plain character.
    cursor.execute(*((statement,) if parameters is None else (statement, parameters)))
    return cursor


# ------------------------------------------------------------------ streaming, by driver


def _rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with the driver's default cursor, which streams."""
    return _fetched(_execute(connection.cursor(), statement, parameters, cleanup))


def _fetched(
    cursor: Any, converters: Mapping[Any, Convert] = MappingProxyType({}), fetch: int = FETCH
) -> Result:
    # A server-side cursor of psycopg2 describes its columns after the first fetch.
    blocks = _blocks(partial(cursor.fetchmany, fetch))
    return _result(cursor, blocks, converters)


def _result(
    cursor: Any, blocks: Iterator[Any], converters: Mapping[Any, Convert] = MappingProxyType({})
) -> Result:
    """Return a result; the converters are by the driver's type of a column."""
    columns = enumerate(cursor.description or ())
    found = {at: converters[column[1]] for at, column in columns if converters and column[1] in converters}
    return Result(_names_of(cursor), blocks, found)


def _blocks(fetch: Callable[[], Any]) -> Iterator[Any]:
    # An Arrow table without rows is false, too.
    return _with_first_fetched(takewhile(bool, iter(fetch, None)))


def _names_of(cursor: Any) -> list[str]:
    # redshift_connector returns bytes.
    names = [column[0] for column in cursor.description or ()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _postgres_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with a server-side cursor. A value that the driver cannot convert becomes an error in its row."""
    driver = type(connection).__module__.partition(".")[0]
    if driver == "psycopg":
        if _reads_utf8(connection):
            connection.execute("SET client_encoding TO 'UTF8'")
        import_module("psycopg.types.json").set_json_loads(read_json, connection)
        _tolerate_times_of_psycopg(connection)
    elif driver == "psycopg2":
        if _reads_utf8(connection):
            connection.set_client_encoding("UTF8")
        extras = import_module("psycopg2.extras")
        extras.register_default_json(connection, loads=read_json)
        extras.register_default_jsonb(connection, loads=read_json)
        _read_uuid_arrays_of_psycopg2(connection)
        _tolerate_times_of_psycopg2(connection)
    else:
        return _rows(connection, statement, parameters, cleanup)
    cursor = _execute(connection.cursor(_CURSOR), statement, parameters, cleanup)
    # psycopg2 sends all statements behind one DECLARE, which declares a cursor for the first. The status is
    # that of the last.
    if driver == "psycopg2" and not cursor.statusmessage.startswith("DECLARE"):
        raise _several_statements()
    if not _is_redshift(connection):
        return _fetched(cursor)
    return _fetched(cursor, _REDSHIFT_TYPES, _REDSHIFT_FETCH)


def _reads_utf8(connection: Any) -> bool:
    """Whether to read text as UTF-8: a connection's client_encoding may lack characters.

    Of a SQL_ASCII database, in which text would be bytes, only that setting says how text is encoded.
    """
    encoding = connection.info.parameter_status
    return not _is_redshift(connection) and (
        encoding("server_encoding") != "SQL_ASCII" or encoding("client_encoding") == "SQL_ASCII"
    )


# PostgreSQL 9.1. Redshift reports version 8.0.2.
_FIRST_WITH_COLLATE = 90_100
# SUPER and REAL. Its own driver makes 19.989999771118164 of the REAL 19.99.
_REDSHIFT_TYPES: Mapping[Any, Convert] = {4000: read_json, 700: shortest}


def _is_redshift(connection: Any) -> bool:
    """Whether a connection of psycopg leads to Redshift."""
    version: int = connection.info.server_version
    return version < _FIRST_WITH_COLLATE


# OID of PostgreSQL's uuid[].
_UUIDS = 2951


def _read_uuid_arrays_of_psycopg2(connection: Any) -> None:
    """Read uuid[] as a list of texts. By default it is one text: ``{...,...}``."""
    extensions = import_module("psycopg2.extensions")
    array = extensions.new_array_type((_UUIDS,), "TALON_UUIDS", extensions.UNICODE)
    extensions.register_type(array, connection)


# OIDs of PostgreSQL's types of times and of their arrays.
_TIMES = {"DATE": (1082, 1182), "DATETIME": (1114, 1115), "DATETIMETZ": (1184, 1185)}


def _tolerate_times_of_psycopg2(connection: Any) -> None:
    extensions = import_module("psycopg2.extensions")

    def tolerant(cast: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def read(text: Any, cursor: Any) -> Any:
            # psycopg2 converts infinity to the first or last date or time of Python.
            if text is not None and "infinity" in text:
                return unreadable_time()
            try:
                return cast(text, cursor)
            except (ValueError, OverflowError):
                return unreadable_time()

        return read

    for name, (oid, array_oid) in _TIMES.items():
        scalar = extensions.new_type((oid,), f"TALON_{name}", tolerant(getattr(extensions, f"PY{name}")))
        array = extensions.new_array_type((array_oid,), f"TALON_{name}S", scalar)
        extensions.register_type(scalar, connection)
        extensions.register_type(array, connection)


def _tolerate_times_of_psycopg(connection: Any) -> None:
    psycopg: Any = import_module("psycopg")
    base: Any = psycopg.adapt.Loader

    def tolerant(loader: Any) -> Any:
        class Tolerant(base):  # type: ignore[misc]
            def __init__(self, oid: int, context: Any = None) -> None:
                super().__init__(oid, context)
                self._loader = loader(oid, context)

            def load(self, data: Any) -> Any:
                try:
                    return self._loader.load(data)
                except psycopg.DataError:
                    return unreadable_time()

        return Tolerant

    for oid, _ in _TIMES.values():
        loader = connection.adapters.get_loader(oid, psycopg.pq.Format.TEXT)
        connection.adapters.register_loader(oid, tolerant(loader))


def _redshift_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with DECLARE and FETCH, as redshift_connector's cursor keeps all rows in memory."""
    cursor = connection.cursor()
    if parameters is None:
        # This driver looks for placeholders even without parameters. Redshift has no operator "?".
        cursor.paramstyle = "qmark"
    cleanup.callback(close_quietly, cursor.close)
    # It closes the server's cursor, as Redshift allows one at a time in a connection.
    cleanup.callback(close_quietly, connection.rollback)
    # Older drivers remember the columns of a statement by its text, so each result needs another FETCH.
    name = f"{_CURSOR}_{uuid4().hex}"
    try:
        _execute(cursor, f"DECLARE {name} CURSOR FOR\n{statement}", parameters)
    except Exception as error:  # noqa: BLE001 - drivers have their own errors
        connection.rollback()
        log.warning(
            "Redshift did not accept DECLARE CURSOR for the query (%s), so all its rows are kept in memory.",
            type(error).__name__,
        )
        return _fetched(_execute(cursor, statement, parameters), _REDSHIFT_TYPES)

    def fetch() -> Any:
        cursor.execute(f"FETCH FORWARD {_REDSHIFT_FETCH} FROM {name}")
        return cursor.fetchall()

    return _result(cursor, _blocks(fetch), _REDSHIFT_TYPES)


# Types of columns in the protocol of MySQL. DATETIME is another one.
_MYSQL_JSON, _MYSQL_TIMESTAMP = 245, 7


def _mysql_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with an unbuffered cursor. Only its connection is closed: closing the cursor reads all rows."""
    if type(connection).__module__.startswith("MySQLdb"):
        # The server sends "?" for a character that the connection's character set lacks.
        connection.set_character_set("utf8mb4")
        cursor = connection.cursor(import_module("MySQLdb.cursors").SSCursor)
    else:
        cursor = connection.cursor(buffered=False)
        # Closing a connection of mysql-connector-python would read them too, unless it is shut down before.
        cleanup.callback(lambda: close_quietly(connection.shutdown) if connection.unread_result else None)
    # The zone is read first, as no other statement can run until all rows of this one are read.
    converters = {_MYSQL_JSON: read_json, _MYSQL_TIMESTAMP: _mysql_timestamp(cursor)}
    _execute(cursor, statement, parameters)
    blocks = _of_one_statement(_blocks(partial(cursor.fetchmany, FETCH)), cursor)
    return _result(cursor, blocks, converters)


def _mysql_timestamp(cursor: Any) -> Convert:
    """Return a converter of TIMESTAMP, which MySQL converts to the session's time zone and sends without it.

    If the session's zone is not known, the value stays a time without a zone.
    """
    try:
        cursor.execute("SELECT @@session.time_zone, @@system_time_zone")
        ((name, system),) = cursor.fetchall()
        if name == "SYSTEM" and system == "UTC":
            # Other names of the system's zone are abbreviations: EST may be New York, with EDT in summer.
            name = system
        zone = datetime.strptime(name, "%z").tzinfo if name[0] in "+-" else ZoneInfo(name)
    except Exception as error:  # noqa: BLE001 - other databases that speak this protocol lack the variables
        log.debug("The session's time zone is not known: %s", error)
        return lambda value: value

    def read(value: Any) -> Any:
        if not isinstance(value, datetime):
            return value
        first, second = (value.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() == second.utcoffset():
            return first
        return InvalidInputError(
            "is a TIMESTAMP that happens twice in the session's time zone (clocks go back). Pass "
            """hook_params={"init_command": "SET time_zone = '+00:00'"}"""
        )

    return read


def _of_one_statement(blocks: Iterator[Any], cursor: Any) -> Iterator[Any]:
    """Raise after the last block if there is another statement, whose rows the cursor would leave out."""
    yield from blocks
    while cursor.nextset():
        # After the rows of a procedure comes a status without columns.
        if cursor.description:
            raise _several_statements()


def _several_statements() -> InvalidInputError:
    return InvalidInputError("sql has more than one statement. Pass one SELECT.")


def _duckdb_names(connection: Any, statement: str, parameters: Any) -> list[str]:
    # Not of a subquery, in which DuckDB renames equal columns. The parentheses make several statements an
    # error.
    with closing(connection.cursor()) as cursor:
        rows = _execute(cursor, f"DESCRIBE (\n{statement}\n)", parameters).fetchall()
        return [name for name, *_ in rows]


def _duckdb_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    if not find_spec("pyarrow"):
        # DuckDB's own rows have other floats, and the year 9999 for infinity.
        raise InvalidInputError("DuckDB is read through Arrow: install pyarrow.")
    cursor = connection.cursor()
    cleanup.callback(close_quietly, cursor.close)
    # DuckDB runs all statements and returns the rows of the last one. MULTI is a PIVOT.
    kinds = [each.type.name for each in cursor.extract_statements(statement)]
    if not {"SELECT", "MULTI"}.isdisjoint(kinds[:-1]):
        raise _several_statements()
    # With execute() instead of sql(), DuckDB would copy the rows once more.
    relation = cursor.sql(statement, params=parameters)
    if relation is None:
        raise InvalidInputError("sql has no SELECT at its end, so that it has no rows. Add one.")
    # The second name is of DuckDB before 2.
    read = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
    types = list(map(str, relation.types))
    converters = _json_converters(types)
    for at, kind in enumerate(types):
        if "UHUGEINT" in kind:
            converters[at] = partial(_refuse_unsigned, relation.columns[at])
    return Result(relation.columns, _with_first_fetched(iter(read(FETCH))), converters)


def _refuse_unsigned(name: str, _: Any) -> Any:
    raise InvalidInputError(
        f"Column {name!r} has the type UHUGEINT, whose large values DuckDB returns as negative numbers.\n"
        "CAST it AS VARCHAR in SQL."
    )


# A string of JSON, or how Snowflake writes a SQL NULL beside them.
_UNDEFINED = re.compile(r"""("(?:[^"\\]|\\.)*")|\bundefined\b""")


def _read_json_of_snowflake(value: Any) -> Any:
    if isinstance(value, str) and "undefined" in value:
        value = _UNDEFINED.sub(lambda found: found[1] or "null", value)
    return read_json(value)


# VARIANT, OBJECT and ARRAY.
_SNOWFLAKE_TYPES: Mapping[Any, Convert] = dict.fromkeys((5, 9, 10), _read_json_of_snowflake)


def _snowflake_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    if hasattr(type(connection), "arrow_number_to_decimal_setter"):
        # Otherwise NUMBER(38, 2) becomes a float.
        connection.arrow_number_to_decimal_setter = True
    cursor = _execute(connection.cursor(), statement, parameters, cleanup)
    if find_spec("pyarrow"):
        try:
            tables = cursor.fetch_arrow_batches()
        except import_module("snowflake.connector").NotSupportedError:
            # Statements that are not queries, such as SHOW, have no Arrow results.
            pass
        else:
            batches = (batch for table in tables for batch in table.to_batches(max_chunksize=FETCH))
            blocks = _with_first_fetched(_complete(batches, cursor))
            return _result(cursor, _of_one_statement(blocks, cursor), _SNOWFLAKE_TYPES)
    blocks = _of_one_statement(_complete(_blocks(partial(cursor.fetchmany, FETCH)), cursor), cursor)
    return _result(cursor, blocks, _SNOWFLAKE_TYPES)


def _complete(blocks: Iterator[Any], cursor: Any) -> Iterator[Any]:
    """Raise after the last block if rows are missing, as Snowflake's connector before 4.7.4 may lose some."""
    read = 0
    for block in blocks:
        read += len(block)
        yield block
    total = cursor.rowcount
    if total is not None and total > read:
        # Not an error of this package, so that Airflow retries the task.
        raise RuntimeError(
            f"Snowflake reported {total:,} rows but returned {read:,}.\n"
            "Another try may get all of them. If not, install snowflake-connector-python>=4.7.4."
        )


_DATABRICKS_TYPES: Mapping[Any, Convert] = {
    "variant": read_json,
    "interval_day_time": _refuse_interval,
    "interval_year_month": _refuse_interval,
}


def _databricks_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    cursor = _execute(connection.cursor(), statement, parameters, cleanup)
    fetch = partial(cursor.fetchmany_arrow if find_spec("pyarrow") else cursor.fetchmany, FETCH)
    return _result(cursor, _blocks(fetch), _DATABRICKS_TYPES)


def _with_first_fetched(batches: Iterator[Any]) -> Iterator[Any]:
    """Fetch the first batch now, so that a statement that cannot run fails here, where it may be replaced."""
    first = next(batches, None)
    return batches if first is None else chain([first], batches)


def _bigquery_connection(hook: Any) -> Any:
    """Connect with Google's DB-API, as the cursor of Airflow's hook converts times to numbers."""
    client = hook.get_client(project_id=hook.project_id, location=hook.location)
    bigquery = import_module("google.cloud.bigquery")
    settings = {**hook.api_resource_configs, "labels": {**hook.labels}}
    configuration = bigquery.QueryJobConfig.from_api_repr(settings)
    configuration.use_legacy_sql = bool(hook.use_legacy_sql)
    if hook.priority != "INTERACTIVE":
        # Not set for the default, as a query with a priority takes two more requests.
        configuration.priority = hook.priority
    client.default_query_job_config = configuration
    return import_module("google.cloud.bigquery.dbapi").connect(client)


def _bigquery_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    # This driver reads %% as % even without parameters.
    statement = statement if parameters else statement.replace("%", "%%")
    cursor = _execute(connection.cursor(), statement, parameters or None, cleanup)
    rows = getattr(cursor, "_query_rows", None)
    if rows is None or not find_spec("pyarrow"):
        return _fetched(cursor, {"JSON": read_json})

    converters = _json_converters(map(_bigquery_type, rows.schema))
    storage = connection._bqstorage_client  # noqa: SLF001 - as the driver's cursor uses it
    try:
        return Result(_names_of(cursor), _bigquery_batches(rows, storage), converters)
    except Exception as error:
        job = None if storage is None else cursor.query_job
        if job is None:
            raise
        # The Storage API needs a separate permission. The job has the result, so no query runs again.
        log.warning("BigQuery's Storage API failed (%s), so rows are read over REST.", type(error).__name__)
        return Result(_names_of(cursor), _bigquery_batches(job.result(), None), converters)


def _bigquery_type(column: Any) -> str:
    """Write a column's type as Trino does, without the names of fields."""
    fields = ", ".join(map(_bigquery_type, column.fields))
    kind = f"row({fields})" if fields else column.field_type
    return f"array({kind})" if column.mode == "REPEATED" else kind


def _bigquery_batches(rows: Any, storage: Any) -> Iterator[Any]:
    # With several streams the order would be lost. Clients before 3.28 have no such argument, and take one
    # stream for a statement that sorts.
    has_limit = "max_stream_count" in signature(rows.to_arrow_iterable).parameters
    limit = {"max_stream_count": 1} if has_limit else {}
    batches = rows.to_arrow_iterable(bqstorage_client=storage, **limit)
    return _with_first_fetched(
        batch.slice(start, FETCH) for batch in batches for start in range(0, batch.num_rows, FETCH)
    )


# Only of LIMIT 0 does the driver ask for the names of an empty result.
_CLICKHOUSE_PEEK = "SELECT * FROM (\n{}\n) LIMIT 0"
# The first version that raises an error if the connection breaks after the first rows.
_CLICKHOUSE_CONNECT = Version("1.4")


# Of Trino, Presto and Athena. Only Trino's client returns an interval as another type than text.
_TRINO_TYPES: Mapping[Any, Convert] = {
    "json": read_json,
    "interval day to second": _refuse_interval,
    "interval year to month": _refuse_interval,
}


def _trino_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    cursor = connection.cursor()
    with _values_hidden():
        result = _fetched(_execute(cursor, statement, parameters, cleanup), _TRINO_TYPES)
        json_converters = _json_converters(column[1] for column in cursor.description or ())

    def blocks() -> Iterator[Any]:
        with _values_hidden():
            yield from result.blocks

    return result._replace(blocks=blocks(), converters={**result.converters, **json_converters})


@contextmanager
def _values_hidden() -> Iterator[None]:
    """Replace the error of Trino's client for a value that it cannot convert, as its text has the value."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "TrinoDataError":
            raise
        raise InvalidInputError(
            "Trino's client cannot convert a value, e.g. a time before the year 1 or after the year 9999.\n"
            "Select null in its place, or CAST the column AS VARCHAR."
        ) from None


def _athena_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Refuse arrays, maps and rows: Athena writes them without quotes, so that the driver can only guess."""
    data_error: type[Exception] = import_module("pyathena.error").DataError

    def tolerant(convert: Convert) -> Convert:
        def read(text: Any) -> Any:
            try:
                return convert(text)
            except (ValueError, OverflowError):
                return unreadable_time()
            except data_error:
                return InvalidInputError(
                    "is a time whose offset is not clear: its zone repeats or skips it, or is not known. "
                    "Select it AT TIME ZONE 'UTC'"
                )

        return read

    converter = import_module("pyathena.converter").DefaultTypeConverter()
    unquoted = _refused(
        "is an array, a map or a row, which Athena writes without quotes: CAST it AS JSON in SQL"
    )
    converter.update({**_TRINO_TYPES, **dict.fromkeys(("array", "map", "row", "struct"), unquoted)})
    times = ("date", "timestamp", "timestamp with time zone")
    converter.update({kind: tolerant(converter.get(kind)) for kind in times})
    return _fetched(_execute(connection.cursor(converter=converter), statement, parameters, cleanup))


def _clickhouse_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read block by block, as the cursors of both drivers would wait for all rows."""
    client = getattr(connection, "_client", None)
    if client is not None and hasattr(client, "query_row_block_stream"):
        installed = version("clickhouse-connect")
        if Version(installed) < _CLICKHOUSE_CONNECT:
            raise InvalidInputError(
                f"clickhouse-connect {installed} takes a broken connection for the end of the rows.\n"
                f"Install clickhouse-connect>={_CLICKHOUSE_CONNECT}."
            )
        opened = ExitStack()
        cleanup.callback(close_quietly, opened.close)
        # By default, a time in UTC has no zone.
        stream = opened.enter_context(client.query_row_block_stream(statement, parameters, tz_mode="aware"))
        # An empty result has no names.
        names = (
            stream.source.column_names
            or client.query(_CLICKHOUSE_PEEK.format(statement), parameters).column_names
        )
        return Result(names, iter(stream))
    cursor = connection.cursor()
    if hasattr(cursor, "set_stream_results"):
        cursor.set_stream_results(stream_results=True, max_row_buffer=FETCH)
    return _fetched(_execute(cursor, statement, parameters, cleanup))


def _oracle_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read NUMBER as Decimal, as oracledb returns a float if it has a fraction."""
    cursor = connection.cursor()
    # By default, the driver asks the server for 100 rows at a time.
    cursor.arraysize = FETCH
    oracledb = import_module("oracledb")

    def refuse(_: Any) -> InvalidInputError:
        # The driver takes the offset away.
        return InvalidInputError(
            "is a TIMESTAMP WITH TIME ZONE, whose offset Oracle's driver drops. Select "
            """TO_CHAR(SYS_EXTRACT_UTC(...), 'YYYY-MM-DD"T"HH24:MI:SS.FF6"Z"')"""
        )

    def variable(cursor: Any, metadata: Any) -> Any:
        if metadata.type_code is oracledb.DB_TYPE_NUMBER:
            return cursor.var(Decimal, arraysize=cursor.arraysize)
        if metadata.type_code in (oracledb.DB_TYPE_TIMESTAMP_TZ, oracledb.DB_TYPE_TIMESTAMP_LTZ):
            return cursor.var(metadata.type_code, arraysize=cursor.arraysize, outconverter=refuse)
        return None

    cursor.outputtypehandler = variable
    return _fetched(_execute(cursor, statement, parameters, cleanup))


def _mssql_rows(connection: Any, statement: str, parameters: Any, cleanup: ExitStack) -> Result:
    """Read with pymssql's cursor, which goes on to the rows of the next statement if it is asked for more."""
    cursor = _execute(connection.cursor(), statement, parameters, cleanup)
    is_end = False

    def fetch() -> Any:
        nonlocal is_end
        block = [] if is_end else cursor.fetchmany(FETCH)
        is_end = len(block) < FETCH
        return block

    return Result(_names_of(cursor), _of_one_statement(_blocks(fetch), cursor))


# ------------------------------------------------------------------ sorting by bytes


def _key(template: str) -> Callable[[Any, str, Any], str]:
    return lambda _, name, __: template.format(name)


def _postgres_key(connection: Any, name: str, _: Any) -> str:
    if _is_redshift(connection):
        return _REDSHIFT_KEY.format(name)
    return f'CAST({name} AS TEXT) COLLATE "C"'


# Redshift sorts text by bytes. A VARCHAR without a length has 256 bytes.
_REDSHIFT_KEY = "CAST({} AS VARCHAR(65535))"


def _sqlite_key(_: Any, name: str, value: Any) -> str:
    # Text is not cast, as SQLite does not use an index with a cast. If a column mixes types, the check of the
    # order finds out.
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
    # The statement itself is read, as SQLite renames columns of a subquery.
    Database(connection_types=["sqlite"], read=_rows, sort_key=_sqlite_key, peek="{}", quotes="``"),
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
        # LIMIT 0, as BigQuery bills a query by what it reads.
        peek="SELECT * FROM (\n{}\n) {} WHERE 1 = 0 LIMIT 0",
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
        read=_athena_rows,
        sort_key=_key("CAST({} AS VARCHAR)"),
    ),
    Database(
        connection_types=["duckdb"],
        read=_duckdb_rows,
        sort_key=_key("encode(CAST({} AS VARCHAR))"),
        peek=_duckdb_names,
    ),
    Database(connection_types=["trino", "presto"], read=_trino_rows, sort_key=_key("CAST({} AS VARCHAR)")),
    Database(
        connection_types=["clickhouse"],
        read=_clickhouse_rows,
        sort_key=_key("toString({})"),
        peek=_CLICKHOUSE_PEEK,
    ),
    Database(
        connection_types=["oracle"],
        read=_oracle_rows,
        sort_key=_key("NLSSORT(TO_CHAR({}), 'NLS_SORT=BINARY')"),
        alias="talon_cdp_source",
    ),
    Database(
        connection_types=["mssql"],
        read=_mssql_rows,
        # A cast from NVARCHAR straight to VARCHAR loses what the code page of the database lacks.
        sort_key=_key(
            "CAST(CAST({} AS NVARCHAR(4000)) COLLATE Latin1_General_100_BIN2_UTF8 AS VARCHAR(8000))"
        ),
        quotes="[]",
    ),
)

ANY = Database(connection_types=(), read=_rows)
"""A database without an entry: read with the driver's default cursor, in the query's order."""
