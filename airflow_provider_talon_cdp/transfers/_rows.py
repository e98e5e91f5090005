"""Rows of a SQL query through any Airflow SQL connection, in constant memory: as they are, or as profiles."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from itertools import chain
from operator import itemgetter
from typing import Any, TypeAlias

# The oldest common-compat that is allowed has not got it.
from airflow.exceptions import AirflowException  # type: ignore[attr-defined]
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook
from sqlparse.lexer import tokenize
from sqlparse.tokens import Comment, Whitespace

from airflow_provider_talon_cdp.changes.change import Profile, Rejection, read_profile_id
from airflow_provider_talon_cdp.contract import DOTS, FAULT_OF_DOTS
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers._databases import (
    ANY,
    DATABASES,
    Database,
    Result,
    quietly,
    read_json,
    unreadable_time,
)

log = logging.getLogger(__name__)

Rows: TypeAlias = Sequence[tuple[Any, ...]]

Columns: TypeAlias = Sequence[str] | Callable[[Sequence[str]], Sequence[str]]
"""Names of columns, or a function that picks them from the names that a result has."""

Between: TypeAlias = tuple[str | None, str | None]
"""Where a range of texts begins and where the next one does; None before the first and after the last."""

Encode: TypeAlias = Callable[[Mapping[str, Any]], tuple[bytes, tuple[str, ...]]]
"""Makes JSON of attributes, and says which names are in it; raises ``InvalidInputError``."""

# Names of what hook_params may choose where a connection leads to several databases.
_CHOICE = "sql_hook"
# What means the same in a literal of every database, with bind parameters or without.
_PLAIN = re.compile(r"[0-9A-Za-z_.@+|=/~:-]*")


@dataclass
class SqlSource:
    """Where to read: the hooks of one Airflow connection.

    Args:
        database: What it leads to.
        hook: Makes a hook, anew for each reading, as some keep a connection that an earlier reading has
            closed.
        sorts: Whether the database sorts by bytes, as far as is known. Where not, rows come in the query's
            own order.
    """

    database: Database
    hook: Callable[[], DbApiHook]
    sorts: bool = field(init=False)

    def __post_init__(self) -> None:
        self.sorts = self.database.sort_key is not None


def sql_hook(conn_id: str, hook_params: Mapping[str, Any] | None = None) -> SqlSource:
    """Return where the SQL hook of an Airflow connection reads.

    Args:
        conn_id: Airflow connection of a database.
        hook_params: Arguments for its hook. For a connection of the type ``aws``, ``sql_hook`` in it says
            which one.

    Raises:
        InvalidInputError: The connection is of another kind, or of one that no installed provider knows.
    """
    connection = BaseHook.get_connection(conn_id)
    given = dict(hook_params or {})
    entry = _entry(conn_id, connection.conn_type, given.pop(_CHOICE, None))
    if entry.hook is None:
        make = partial(_hook_of_airflow, connection, given)
    else:
        make = partial(_hook_of_entry, entry, connection, {**entry.hook_params, **given})
    hook = make()
    if not isinstance(hook, DbApiHook):
        raise InvalidInputError(
            f"Connection {conn_id!r} leads to {type(hook).__name__}, which is not a SQL hook.\n"
            "sql_conn_id must name a database or warehouse connection."
        )
    if entry is ANY:
        # A connection type of somebody's own, whose hook is derived from one that we know.
        entry = next((each for each in DATABASES if hook.conn_type in each.connection_types), ANY)
    return SqlSource(entry, make)


def _entry(conn_id: str, conn_type: str | None, choice: Any) -> Database:
    found = [each for each in DATABASES if conn_type in each.connection_types]
    if len(found) < 2:  # noqa: PLR2004
        return found[0] if found else ANY
    by_name = {str(each.hook).rpartition(".")[2]: each for each in found}
    if choice not in by_name:
        ways = " or ".join(f"hook_params={{'{_CHOICE}': '{name}'}}" for name in sorted(by_name))
        raise InvalidInputError(
            f"Connection {conn_id!r} is of the type {conn_type!r}, which may lead to several databases.\n"
            f"Say which one: {ways}."
        )
    return by_name[choice]


def _hook_of_airflow(connection: Any, hook_params: Mapping[str, Any]) -> Any:
    try:
        return connection.get_hook(hook_params=hook_params)
    except (AirflowException, AttributeError) as error:
        # Airflow has no class of its own for it; types without a hook, such as generic, end as
        # AttributeError.
        if "Unknown hook type" not in str(error) and "rsplit" not in str(error):
            raise
        raise InvalidInputError(
            f"Connection {connection.conn_id!r} is of the type {connection.conn_type!r}, for which no\n"
            "installed provider has a SQL hook. Set the type of its database, and install that database's\n"
            "provider where the tasks run, e.g. apache-airflow-providers-postgres for 'postgres'."
        ) from error


def _hook_of_entry(database: Database, connection: Any, hook_params: Mapping[str, Any]) -> Any:
    module, _, name = str(database.hook).rpartition(".")
    try:
        hook_class = getattr(import_module(module), name)
    except ImportError as error:
        raise InvalidInputError(
            f"Connection {connection.conn_id!r} is of the type {connection.conn_type!r} and needs {name}.\n"
            f"It cannot be imported: {error}.\n"
            "Install its provider where the tasks run."
        ) from error
    own = {hook_class.conn_name_attr: connection.conn_id}
    if connection.conn_type == "aws":
        own["aws_conn_id"] = connection.conn_id
    return hook_class(**own, **hook_params)


def stream_rows(
    source: SqlSource,
    sql: str,
    columns: Columns,
    parameters: Any = None,
    *,
    order_by: int = 0,
    between: Between | None = None,
) -> Generator[Rows, None, None]:
    """Yield the named columns of the rows, in lists of a few thousand.

    Call ``close()`` on it when you stop early. All of it must run in one thread.

    Args:
        source: Where to read.
        sql: One SELECT.
        columns: Of the result; upper and lower case differ only where both exist.
        parameters: Bind parameters in the driver's style, or None.
        order_by: Have the database order by the bytes of the text of that many first columns, where we know
            how to tell it; elsewhere rows come as they come.
        between: Only the rows of this range of the text of the first column; null is in the first range. Each
            row is in one of the ranges of ``range_bounds``, whatever the database's order is.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice. Or only a range is wanted, and the
            database cannot tell it.
    """
    statement = bare(sql)
    with ExitStack() as cleanup:
        result = None
        if order_by:
            result = _read_sorted(source, statement, columns, parameters, order_by, between, cleanup)
        if result is None and between:
            raise _indivisible()
        if result is None:
            result = source.database.read(_connection(source, cleanup), statement, parameters, cleanup)
        positions = column_positions(columns, result.names)
        for block in result.blocks:
            yield _picked(block, positions, result)


def _connection(source: SqlSource, cleanup: ExitStack) -> Any:
    connection = source.database.connect(source.hook())
    cleanup.callback(quietly, connection.close)
    return connection


def range_bounds(source: SqlSource, sql: str, column: str, parameters: Any, ranges: int) -> list[str]:
    """Divide the rows of a query into ranges of the text of a column, about equally many in each.

    Args:
        source: Where to read.
        sql: One SELECT.
        column: Of its result.
        parameters: Bind parameters in the driver's style, or None.
        ranges: How many, at the most.

    Returns:
        Where each range but the first begins, ascending: the beginnings of values, as far as they have plain
        characters.

    Raises:
        InvalidInputError: The database cannot compare by bytes, or a column is missing or there twice.
    """
    database, statement = source.database, bare(sql)
    with ExitStack() as cleanup:
        connection = _connection(source, cleanup)
        names, _ = database.peek_at(connection, statement, parameters)
        (place,) = column_positions([column], names)
        if database.sort_key is None or _are_alike(names):
            raise _indivisible()
        name = _quoted(database, names[place], parameters)
        key, alias = database.sort_key(connection, name, None), database.alias
        # The statement is the DAG author's own, and the column name comes from its result.
        rows = f"FROM (\n{statement}\n) {alias}"
        keys = f"FROM (SELECT {key} AS talon_cdp_key {rows}) {alias}"
        tile = f"NTILE({ranges}) OVER (ORDER BY talon_cdp_key) AS talon_cdp_tile"
        tiles = f"FROM (SELECT talon_cdp_key, {tile} {keys}) {alias}"
        least = f"SELECT MIN(talon_cdp_key) {tiles} GROUP BY talon_cdp_tile"
        result = database.read(connection, least, parameters, cleanup)
        found = {_plain(row[0]) for block in result.blocks for row in _picked(block, [0], result)}
    # Before the least value there are no rows but those with null, which the first range has anyway.
    return sorted(found - {""})[1:]


def _plain(value: Any) -> str:
    """Return the beginning of a value, which may stand in a statement of any database."""
    text = (
        bytes(value).decode(errors="replace")
        if isinstance(value, bytes | bytearray | memoryview)
        else str(value or "")
    )
    found = _PLAIN.match(text)
    return found[0] if found else ""


def _indivisible() -> InvalidInputError:
    return InvalidInputError(
        "The database cannot divide this query into ranges of profile IDs. Nothing was sent.\n"
        "It has no entry that says how it compares by bytes, or two columns of the query have one name.\n"
        "Take plan_workers out, so that one task reads the query, or give each column a name of its own."
    )


def _read_sorted(
    source: SqlSource,
    statement: str,
    columns: Columns,
    parameters: Any,
    order_by: int,
    between: Between | None,
    cleanup: ExitStack,
) -> Result | None:
    """Read in the order of bytes; None where the database cannot, and nothing is left open then."""
    if not source.sorts:
        return None
    try:
        with ExitStack() as opened:
            connection = _connection(source, opened)
            wrapped = _sorted(source.database, connection, statement, columns, parameters, order_by, between)
            result = source.database.read(connection, wrapped, parameters, opened)
            cleanup.push(opened.pop_all())
            return result
    except InvalidInputError:
        raise
    except Exception as error:
        if between:
            raise
        # What a driver says may hold values.
        source.sorts = False
        log.warning(
            "The database did not sort the query by bytes (%s). It is read as it is written.",
            type(error).__name__,
        )
        return None


def _sorted(
    database: Database,
    connection: Any,
    statement: str,
    columns: Columns,
    parameters: Any,
    order_by: int,
    between: Between | None = None,
) -> str:
    """Wrap a statement so that its columns come sorted by the bytes of the first of them."""
    names, row = database.peek_at(connection, statement, parameters)
    positions = column_positions(columns, names)
    if database.sort_key is None or _are_alike(names):
        if between:
            raise _indivisible()
        return statement
    quoted = [_quoted(database, names[each], parameters) for each in positions]
    keys = [
        database.sort_key(connection, name, None if row is None else row[place])
        for name, place in zip(quoted[:order_by], positions, strict=False)
    ]
    # The statement is the DAG author's own, and the column names come from its result.
    source = f"FROM (\n{statement}\n) {database.alias}"
    if between and (condition := _within(database.sort_key, connection, quoted[0], between)):
        source += f" WHERE {condition}"
    return f"SELECT {', '.join(dict.fromkeys(quoted))} {source} ORDER BY {', '.join(keys)}"


def _within(sort_key: Callable[[Any, str, Any], str], connection: Any, name: str, between: Between) -> str:
    """Return the condition of a range; empty for all rows. Of ranges side by side each row meets one."""
    low, high = between
    # Whatever the rows hold, each range has to compare the same expression.
    key = sort_key(connection, name, None)
    ends = [(">=", low)] if low is not None else []
    ends += [("<", high)] if high is not None else []
    texts = [(sign, sort_key(connection, f"'{_plain(end)}'", end)) for sign, end in ends]
    condition = " AND ".join(f"{key} {sign} {text}" for sign, text in texts)
    return f"({condition} OR {key} IS NULL)" if ends and low is None else condition


def _are_alike(names: Sequence[str]) -> bool:
    """Whether columns of a subquery could not be told apart outside of it."""
    return len({name.lower() for name in names}) < len(names)


def _quoted(database: Database, name: str, parameters: Any) -> str:
    quoted = database.quoted(name)
    return quoted.replace("%", "%%") if parameters is not None and database.doubles_percent else quoted


def _picked(block: Any, positions: Sequence[int], result: Result) -> Rows:
    """Return these columns of some rows as tuples."""
    if hasattr(block, "num_rows"):
        columns: list[Any] = [_arrow_values(block.column(each)) for each in positions]
    else:
        if (
            not result.json_columns
            and positions == list(range(len(result.names)))
            and isinstance(block[0], tuple)
        ):
            return block  # type: ignore[no-any-return]
        by_name = isinstance(block[0], Mapping)
        keys: list[Any] = [result.names[each] if by_name else each for each in positions]
        columns = [map(itemgetter(key), block) for key in keys]
    for place, each in enumerate(positions):
        if each in result.json_columns:
            columns[place] = map(_from_json, columns[place])
    return list(zip(*columns, strict=True))


def _from_json(value: Any) -> Any:
    return read_json(value) if isinstance(value, str | bytes) else value


def _arrow_values(column: Any) -> list[Any]:
    """Return a column of Arrow as a list of Python's own values."""
    arrow = import_module("pyarrow")
    kind = column.type
    make: Callable[[Any], Any] | None = None
    if arrow.types.is_timestamp(kind):
        # Arrow's own way takes six times as long. Python's times end at microseconds.
        column = column.cast(arrow.timestamp("us", kind.tz), safe=False).cast(arrow.int64())
        make = partial(_moment, datetime(1970, 1, 1, tzinfo=UTC if kind.tz else None))
    elif arrow.types.is_map(kind):
        make = dict
    try:
        values: list[Any] = column.to_pylist()
        return [None if each is None else make(each) for each in values] if make else values
    except (ValueError, OverflowError):
        return [_arrow_value(each, make) for each in column]


def _moment(start: datetime, microseconds: int) -> datetime:
    return start + timedelta(microseconds=microseconds)


def _arrow_value(scalar: Any, make: Callable[[Any], Any] | None) -> Any:
    try:
        value = scalar.as_py()
        return value if value is None or make is None else make(value)
    except (ValueError, OverflowError):
        return unreadable_time()


def bare(sql: str) -> str:
    """Take off what a statement around this one could not hold: semicolons and comments at its end, a BOM."""
    # Not parsed: sqlparse refuses to group statements that are long or deep.
    tokens = list(tokenize(sql.removeprefix("\ufeff")))  # type: ignore[no-untyped-call]
    while tokens and (tokens[-1][0] in Whitespace or tokens[-1][0] in Comment or tokens[-1][1] == ";"):
        tokens.pop()
    return "".join(text for _, text in tokens)


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
            f"The query's result has {'no' if not matches else 'more than one'} column {column!r}.\n"
            f"It has: {', '.join(names) or 'no columns at all'}.\n"
            "Name the column in SQL with AS, or pass its name."
        )
    return matches[0]


@dataclass(frozen=True, kw_only=True)
class ProfileColumns:
    """Which columns of a query make a profile.

    Args:
        profile_id: The column of profile integration IDs.
        attributes: Attribute name by column; None for each other column under its own name, or none
            where there is an ``attributes_column``.
        attributes_column: A column of JSON objects of attributes, or None.
        order_by: The column that says which of two rows of a profile is the last, or None.
        declared: Attributes with a declared type.
    """

    profile_id: str
    attributes: Mapping[str, str] | None = None
    attributes_column: str | None = None
    order_by: str | None = None
    declared: Collection[str] = ()

    @property
    def special(self) -> list[str]:
        """The columns that are not attributes."""
        return [each for each in (self.profile_id, self.order_by, self.attributes_column) if each is not None]

    def mapping(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return attribute name by column for a result with these columns.

        Raises:
            InvalidInputError: There is no attribute, or one with a declared type is not there.
        """
        if self.attributes is not None or self.attributes_column is not None:
            mapping = self.attributes or {}
        else:
            mapping = self._others(names)
        unknown = sorted(set(self.declared) - set(mapping.values()))
        # What is in a JSON column differs from row to row.
        if unknown and self.attributes_column is None:
            raise InvalidInputError(
                f"types has the attribute {unknown[0]!r}, which the query does not give. It gives: "
                f"{', '.join(mapping.values())}."
            )
        return mapping

    def _others(self, names: Sequence[str]) -> Mapping[str, str]:
        special = {column_position(each, names) for each in self.special}
        others = [name for position, name in enumerate(names) if position not in special]
        if not others:
            raise InvalidInputError(
                f"The query's result has no column for attributes. It has: {', '.join(names)}."
            )
        return dict(zip(others, others, strict=True))


def read_profiles(
    source: SqlSource, sql: str, columns: ProfileColumns, encode: Encode, parameters: Any = None
) -> Generator[Profile | Rejection, None, None]:
    """Yield a profile for each row, sorted by the bytes of its ID where the database can be told so.

    Call ``close()`` on it when you stop early. All of it must run in one thread.

    Args:
        source: Where to read.
        sql: One SELECT.
        columns: What its columns mean.
        encode: Makes JSON of a row's attributes.
        parameters: Bind parameters in the driver's style, or None.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice, or no profile ID can be of a column's
            type.
    """
    attributes: list[str] = []

    def pick(names: Sequence[str]) -> list[str]:
        mapping = columns.mapping(names)
        attributes[:] = mapping.values()
        return [*columns.special, *mapping]

    ordered = columns.order_by is not None
    first = len(columns.special)
    with closing(stream_rows(source, sql, pick, parameters, order_by=1)) as blocks:
        for row in chain.from_iterable(blocks):
            profile_id = read_profile_id(row[0])
            if isinstance(profile_id, Rejection):
                yield profile_id
                continue
            if profile_id in DOTS:
                yield Rejection(FAULT_OF_DOTS, profile_id)
                continue
            order = row[1] if ordered else None
            try:
                if isinstance(order, InvalidInputError):
                    order = None
                    raise InvalidInputError(f"order_by_column {row[1]}.")  # noqa: TRY301
                values = dict(zip(attributes, row[first:], strict=True))
                if columns.attributes_column is not None:
                    values = _joined(values, row[first - 1])
                yield Profile(profile_id, *encode(values), order)
            except InvalidInputError as error:
                yield Profile(profile_id, order=order, fault=str(error))


def _joined(values: dict[str, Any], column: Any) -> dict[str, Any]:
    """Add the attributes of a JSON column."""
    if isinstance(column, str):
        column = read_json(column)
    if column is None:
        return values
    if isinstance(column, InvalidInputError):
        raise InvalidInputError(f"attributes_column {column}.")
    if not isinstance(column, dict):
        raise InvalidInputError("attributes_column holds JSON that is not an object.")
    both = sorted(values.keys() & column.keys())
    if both:
        raise InvalidInputError(f"Attribute {both[0]!r} stands in attributes_column and in another column.")
    return values | column
