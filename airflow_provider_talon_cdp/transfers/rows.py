"""Rows of a SQL query through any Airflow SQL connection, in constant memory."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from operator import itemgetter
from typing import Any, TypeAlias

import sqlparse
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook
from sqlparse.tokens import Comment

from airflow_provider_talon_cdp.exceptions import InvalidInputError

Rows: TypeAlias = Sequence[tuple[Any, ...]]

_FETCH = 5000
# How databases, by connection type, order text by its bytes.
_BY_BYTES = {
    "postgres": 'CAST({} AS TEXT) COLLATE "C"',
    "sqlite": "CAST({} AS TEXT) COLLATE BINARY",
}


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
    hook: DbApiHook, sql: str, columns: Sequence[str], parameters: Any = None, *, order_by: int = 0
) -> Generator[Rows, None, None]:
    """Yield the named columns of the rows, in lists of a few thousand.

    Call ``close()`` on it when you stop early. All of it must run in one thread.

    Args:
        hook: Where to read.
        sql: One SELECT.
        columns: Names of result columns; upper and lower case differ only where both exist.
        parameters: Bind parameters in the driver's style, or None.
        order_by: Have the database order by the bytes of the text of that many first columns, where we know how to
            tell it; elsewhere rows come as they come.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice.
    """
    statement = _bare(sql)
    by_bytes = _BY_BYTES.get(hook.conn_type) if order_by else None
    with closing(hook.get_conn()) as connection:
        if by_bytes:
            # The statement is the DAG author's own, and the column names come from its result.
            source = f"FROM (\n{statement}\n) AS talon_cdp_source"
            is_sqlite = hook.conn_type == "sqlite"
            # SQLite renames columns of a subquery, and does not run a query before the first fetch.
            names = _names(
                connection, statement if is_sqlite else f"SELECT * {source} WHERE 1 = 0", parameters
            )
            found = [names[_position(column, names)] for column in columns]
            if not is_sqlite or len({name.lower() for name in names}) == len(names):
                quoted = [_quoted(name, escape=parameters is not None and not is_sqlite) for name in found]
                keys = ", ".join(by_bytes.format(name) for name in quoted[:order_by])
                statement = f"SELECT {', '.join(quoted)} {source} ORDER BY {keys}"
        yield from _fetch(connection, statement, columns, parameters)


def _bare(sql: str) -> str:
    """Take off semicolons and comments at the end, which a statement around this one could not bear."""
    tokens = [token for statement in sqlparse.parse(sql) for token in statement.flatten()]  # type: ignore[no-untyped-call]
    while tokens and (tokens[-1].is_whitespace or tokens[-1].ttype in Comment or tokens[-1].value == ";"):
        tokens.pop()
    return "".join(token.value for token in tokens)


def _quoted(name: str, *, escape: bool) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    # Beside bind parameters, psycopg reads a single % as a placeholder.
    return quoted.replace("%", "%%") if escape else quoted


def _fetch(
    connection: Any, statement: str, columns: Sequence[str], parameters: Any
) -> Generator[Rows, None, None]:
    with closing(_cursor(connection)) as cursor:
        _execute(cursor, statement, parameters)
        # A server-side cursor of psycopg2 describes its columns after the first fetch.
        rows = cursor.fetchmany(_FETCH)
        names = [str(each[0]) for each in cursor.description or ()]
        found = [_position(column, names) for column in columns]
        keys: list[Any] = [names[each] for each in found] if rows and isinstance(rows[0], Mapping) else found
        # itemgetter of one key gives the bare value, so one key stands twice.
        pick = itemgetter(*keys) if len(keys) > 1 else itemgetter(*keys * 2)
        as_they_are = keys == list(range(len(names)))
        while rows:
            yield rows if as_they_are else [pick(row)[: len(keys)] for row in rows]
            rows = cursor.fetchmany(_FETCH)


def _names(connection: Any, statement: str, parameters: Any) -> list[str]:
    with closing(connection.cursor()) as cursor:
        _execute(cursor, statement, parameters)
        return [str(each[0]) for each in cursor.description or ()]


def _execute(cursor: Any, statement: str, parameters: Any) -> None:
    # Without parameters a driver must not look for placeholders: a % in the SQL is then a plain character.
    cursor.execute(*((statement,) if parameters is None else (statement, parameters)))


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
