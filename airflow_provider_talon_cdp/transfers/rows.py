"""Rows of a SQL query through any Airflow SQL connection, in constant memory."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from operator import itemgetter
from typing import Any

from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.exceptions import InvalidInputError

log = logging.getLogger(__name__)
_FETCH = 5000


def sql_hook(conn_id: str) -> DbApiHook:
    """Return the SQL hook of an Airflow connection.

    Raises:
        InvalidInputError: The connection is of another kind.
    """
    hook = BaseHook.get_connection(conn_id).get_hook()  # type: ignore[no-untyped-call]
    if not isinstance(hook, DbApiHook):
        raise InvalidInputError(
            f"Connection {conn_id!r} leads to {type(hook).__name__}, which is no SQL hook. "
            "sql_conn_id must name a database or warehouse connection."
        )
    return hook


def stream_rows(
    hook: DbApiHook, sql: str, columns: Sequence[str], parameters: Any = None
) -> Generator[tuple[Any, ...], None, None]:
    """Yield the named columns of each row; a few thousand rows are in memory at a time.

    Call ``close()`` on it when you stop early. All of it must run in one thread.

    Args:
        hook: Where to read.
        sql: One SELECT.
        columns: Names of result columns; upper and lower case differ only where both exist.
        parameters: Bind parameters in the driver's style, or None.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice.
    """
    with closing(hook.get_conn()) as connection, closing(_cursor(connection)) as cursor:
        statement = sql.strip().rstrip(";")
        cursor.execute(*((statement,) if parameters is None else (statement, parameters)))
        # A server-side cursor of psycopg2 describes its columns after the first fetch.
        rows = cursor.fetchmany(_FETCH)
        names = [str(each[0]) for each in cursor.description or ()]
        found = [_position(column, names) for column in columns]
        keys: list[Any] = [names[each] for each in found] if rows and isinstance(rows[0], Mapping) else found
        # itemgetter of one key gives the bare value, so one key stands twice.
        pick = itemgetter(*keys) if len(keys) > 1 else itemgetter(*keys * 2)
        while rows:
            for row in rows:
                yield pick(row)[: len(keys)]
            rows = cursor.fetchmany(_FETCH)


def _cursor(connection: Any) -> Any:
    """Open a cursor that does not pull the whole result into the worker's memory."""
    if type(connection).__module__.startswith("psycopg"):
        return connection.cursor("airflow_provider_talon_cdp")
    return connection.cursor()


def _position(column: str, names: Sequence[str]) -> int:
    matches = [each for each, name in enumerate(names) if name == column]
    matches = matches or [each for each, name in enumerate(names) if name.lower() == column.lower()]
    if len(matches) != 1:
        raise InvalidInputError(
            f"The query's result has {'no' if not matches else 'more than one'} column {column!r}. "
            f"It has: {', '.join(names) or 'no columns at all'}. Name the column in SQL with AS, or pass its name."
        )
    return matches[0]
