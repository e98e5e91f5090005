"""SQL statements of DAG authors: wrapped so that a database sorts their rows by the bytes of their IDs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeAlias

from sqlparse.lexer import tokenize
from sqlparse.tokens import Comment, Whitespace

from airflow_provider_talon_cdp.exceptions import InvalidInputError

Columns: TypeAlias = Sequence[str] | Callable[[Sequence[str]], Sequence[str]]
"""Names of columns, or a function that picks them from the names that a result has."""


def bare(sql: str) -> str:
    """Take off semicolons and comments at the end, which a statement around this one could not bear."""
    # Not parsed: sqlparse refuses to group statements that are long or deep.
    tokens = list(tokenize(sql))  # type: ignore[no-untyped-call]
    while tokens and (tokens[-1][0] in Whitespace or tokens[-1][0] in Comment or tokens[-1][1] == ";"):
        tokens.pop()
    return "".join(text for _, text in tokens)


def _by_postgres(
    connection: Any, statement: str, columns: Columns, parameters: Any, order_by: int
) -> tuple[str, list[str]]:
    source = _as_source(statement)
    names, _ = _peek(connection, f"SELECT * {source} WHERE 1 = 0", parameters)
    found = [names[each] for each in column_positions(columns, names)]
    quoted = [_quoted(name) for name in found]
    # Beside bind parameters, psycopg reads a single % as a placeholder.
    quoted = [name.replace("%", "%%") if parameters is not None else name for name in quoted]
    keys = [f'CAST({name} AS TEXT) COLLATE "C"' for name in quoted[:order_by]]
    return f"SELECT {', '.join(dict.fromkeys(quoted))} {source} ORDER BY {', '.join(keys)}", found


def _by_sqlite(
    connection: Any, statement: str, columns: Columns, parameters: Any, order_by: int
) -> tuple[str, list[str]]:
    # The statement itself, as SQLite renames columns of a subquery.
    names, row = _peek(connection, statement, parameters)
    positions = column_positions(columns, names)
    found = [names[each] for each in positions]
    if len({name.lower() for name in names}) < len(names):
        return statement, found
    # A cast keeps SQLite from using an index, and text needs none. Its columns may mix types: the order is checked.
    are_text = [row is not None and isinstance(row[each], str) for each in positions]
    quoted = [_quoted(name) for name in found]
    keys = [
        f"{name if is_text else f'CAST({name} AS TEXT)'} COLLATE BINARY"
        for name, is_text in zip(quoted[:order_by], are_text, strict=False)
    ]
    selected = ", ".join(dict.fromkeys(quoted))
    return f"SELECT {selected} {_as_source(statement)} ORDER BY {', '.join(keys)}", found


def _as_source(statement: str) -> str:
    # The statement is the DAG author's own, and the column names come from its result.
    return f"FROM (\n{statement}\n) AS talon_cdp_source"


def _peek(connection: Any, statement: str, parameters: Any) -> tuple[list[str], Sequence[Any] | None]:
    """Return the names of the columns and the first row, if there is one."""
    with closing(connection.cursor()) as cursor:
        execute(cursor, statement, parameters)
        row = cursor.fetchone()
        return [str(each[0]) for each in cursor.description or ()], row


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


SORTED_BY_BYTES: Mapping[str, Callable[[Any, str, Columns, Any, int], tuple[str, list[str]]]] = {
    "postgres": _by_postgres,
    "sqlite": _by_sqlite,
}
"""By connection type: takes a connection, a statement, columns of its result, parameters, and how many of the columns to sort
by; returns a statement with these columns, sorted by the bytes of their text, and their names."""


def execute(cursor: Any, statement: str, parameters: Any) -> None:
    """Execute a statement, with parameters or without."""
    # Without parameters a driver must not look for placeholders: a % in the SQL is then a plain character.
    cursor.execute(*((statement,) if parameters is None else (statement, parameters)))


def column_positions(columns: Columns, names: Sequence[str]) -> list[int]:
    """Find columns of a result.

    Raises:
        InvalidInputError: The result lacks one, or has it twice.
    """
    return [column_position(column, names) for column in (columns(names) if callable(columns) else columns)]


def column_position(column: str, names: Sequence[str]) -> int:
    """Find a column of a result; upper and lower case differ only where both exist.

    Raises:
        InvalidInputError: The result lacks it, or has it twice.
    """
    matches = [each for each, name in enumerate(names) if name == column]
    matches = matches or [each for each, name in enumerate(names) if name.lower() == column.lower()]
    if len(matches) != 1:
        raise InvalidInputError(
            f"The query's result has {'no' if not matches else 'more than one'} column {column!r}. "
            f"It has: {', '.join(names) or 'no columns at all'}. Name the column in SQL with AS, or pass its name."
        )
    return matches[0]
