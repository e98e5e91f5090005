"""Rows of a SQL query through any Airflow SQL connection, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from importlib import import_module
from operator import itemgetter
from typing import Any, TypeAlias

# The oldest common-compat that is allowed has not got it.
from airflow.exceptions import AirflowException  # type: ignore[attr-defined]
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers.statements import (
    SORTED_BY_BYTES,
    Columns,
    bare,
    column_positions,
    execute,
)

Rows: TypeAlias = Sequence[tuple[Any, ...]]

_FETCH = 5000


class UnreadableJson:
    """Stands for text that Python cannot read as JSON; no attribute takes it, so that it is the fault of its row alone."""


def read_json(text: str | bytes) -> Any:
    """Read JSON; numbers keep their digits.

    Returns:
        What it holds; ``UnreadableJson`` where it is no JSON, or is nested too deep or has too long a number for Python.
    """
    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        return UnreadableJson()


def sql_hook(conn_id: str, hook_params: Mapping[str, Any] | None = None) -> DbApiHook:
    """Return the SQL hook of an Airflow connection.

    Args:
        conn_id: The connection.
        hook_params: Arguments of the hook, or None.

    Raises:
        InvalidInputError: The connection is of another kind, or of one that no installed provider knows.
    """
    connection = BaseHook.get_connection(conn_id)
    try:
        hook = connection.get_hook(hook_params=dict(hook_params or {}))  # type: ignore[no-untyped-call]
    except AirflowException as error:
        # Airflow has no class of its own for it.
        if "Unknown hook type" not in str(error):
            raise
        raise InvalidInputError(
            f"Connection {conn_id!r} is of the type {connection.conn_type!r}, which no installed provider knows. Install the "
            "provider of the database where the tasks run, e.g. apache-airflow-providers-postgres for 'postgres'."
        ) from error
    if not isinstance(hook, DbApiHook):
        raise InvalidInputError(
            f"Connection {conn_id!r} leads to {type(hook).__name__}, which is no SQL hook. "
            "sql_conn_id must name a database or warehouse connection."
        )
    return hook


def stream_rows(
    hook: DbApiHook,
    sql: str,
    columns: Columns,
    parameters: Any = None,
    *,
    order_by: int = 0,
) -> Generator[Rows, None, None]:
    """Yield the named columns of the rows, in lists of a few thousand.

    Call ``close()`` on it when you stop early. All of it must run in one thread.

    Args:
        hook: Where to read.
        sql: One SELECT.
        columns: Of the result; upper and lower case differ only where both exist.
        parameters: Bind parameters in the driver's style, or None.
        order_by: Have the database order by the bytes of the text of that many first columns, where we know how to
            tell it; elsewhere rows come as they come.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice.
    """
    statement = bare(sql)
    with closing(hook.get_conn()) as connection:
        _keep_digits_of_json(connection)
        if order_by and hook.conn_type in SORTED_BY_BYTES:
            sort = SORTED_BY_BYTES[hook.conn_type]
            statement, columns = sort(connection, statement, columns, parameters, order_by)
        yield from _fetch(connection, statement, columns, parameters)


def _fetch(connection: Any, statement: str, columns: Columns, parameters: Any) -> Generator[Rows, None, None]:
    with closing(_cursor(connection)) as cursor:
        execute(cursor, statement, parameters)
        # A server-side cursor of psycopg2 describes its columns after the first fetch.
        rows = cursor.fetchmany(_FETCH)
        names = [str(each[0]) for each in cursor.description or ()]
        found = column_positions(columns, names)
        keys: list[Any] = [names[each] for each in found] if rows and isinstance(rows[0], Mapping) else found
        # itemgetter of one key gives the bare value, so one key stands twice.
        pick = itemgetter(*keys) if len(keys) > 1 else itemgetter(*keys * 2)
        as_they_are = keys == list(range(len(names)))
        while rows:
            yield rows if as_they_are else [pick(row)[: len(keys)] for row in rows]
            rows = cursor.fetchmany(_FETCH)


def _cursor(connection: Any) -> Any:
    """Open a cursor that does not pull the whole result into the worker's memory."""
    if type(connection).__module__.startswith("psycopg"):
        return connection.cursor("airflow_provider_talon_cdp")
    return connection.cursor()


def _keep_digits_of_json(connection: Any) -> None:
    """Have drivers of Postgres read numbers in json and jsonb as Decimals, which are what the database has there."""
    driver = type(connection).__module__.partition(".")[0]
    if driver == "psycopg":
        import_module("psycopg.types.json").set_json_loads(read_json, connection)
    elif driver == "psycopg2":
        extras = import_module("psycopg2.extras")
        extras.register_default_json(connection, loads=read_json)
        extras.register_default_jsonb(connection, loads=read_json)
