"""Reads the rows of a SQL query through any Airflow SQL connection, in constant memory; also as profiles."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from airflow.providers.common.compat.sdk import AirflowException, BaseHook
from airflow.providers.common.sql.hooks.sql import DbApiHook
from sqlparse.lexer import tokenize
from sqlparse.tokens import Comment, Whitespace

from airflow_provider_talon_cdp.changes.change import Profile, Rejection, read_profile_id
from airflow_provider_talon_cdp.contract import DOTS, FAULT_OF_DOTS
from airflow_provider_talon_cdp.exceptions import InvalidInputError, unreadable_time
from airflow_provider_talon_cdp.transfers._databases import (
    ANY,
    DATABASES,
    Database,
    Result,
    close_quietly,
    read_json,
)

log = logging.getLogger(__name__)

Rows: TypeAlias = Sequence[tuple[Any, ...]]

Columns: TypeAlias = Sequence[str] | Callable[[Sequence[str]], Sequence[str]]
"""Names of columns, or a function that selects them from the names of a result's columns."""

Bounds: TypeAlias = tuple[str | None, str | None]
"""The first text of a range, and the first text of the next range; None for no bound."""

Encode: TypeAlias = Callable[[Mapping[str, Any]], tuple[bytes, tuple[str, ...]]]
"""Returns attributes as JSON, and the names in it; raises ``InvalidInputError``."""

# The key in hook_params that selects a hook if a connection type has several.
_HOOK_CHOICE = "sql_hook"
# Characters that need no escape in a literal of any database, with bind parameters or without.
_PLAIN_CHARACTERS = re.compile(r"[0-9A-Za-z_.@+|=/~:-]*")


@dataclass
class SqlSource:
    """The database of one Airflow connection.

    Args:
        database: How its rows are read.
        hook: Creates a hook. Every read needs a new one, as some keep a connection that the last read closed.
        sorts: Whether the database can sort by bytes, as far as is known. If not, rows have the query's
            order.
    """

    database: Database
    hook: Callable[[], DbApiHook]
    sorts: bool = field(init=False)

    def __post_init__(self) -> None:
        self.sorts = self.database.sort_key is not None


def sql_hook(conn_id: str, hook_params: Mapping[str, Any] | None = None) -> SqlSource:
    """Return the database of an Airflow connection.

    For a connection of type ``aws``, ``sql_hook`` in ``hook_params`` selects the hook.

    Raises:
        InvalidInputError: The connection is not of a database, or of Druid, or no installed provider has its
            type.
    """
    connection = BaseHook.get_connection(conn_id)
    if connection.conn_type == "druid":
        raise InvalidInputError(
            f"Connection {conn_id!r} is of the type 'druid', which is refused.\n"
            "Druid's client does not notice when a response is cut off, so rows could be missing.\n"
            "Copy the rows to another database, and name its connection."
        )
    params = dict(hook_params or {})
    entry = _entry(conn_id, connection.conn_type, params.pop(_HOOK_CHOICE, None))
    if entry.hook is None:
        create_hook = partial(_hook_of_airflow, connection, params)
    else:
        create_hook = partial(_hook_of_entry, entry, connection, {**entry.hook_params, **params})
    hook = create_hook()
    if not isinstance(hook, DbApiHook):
        raise InvalidInputError(
            f"Connection {conn_id!r} leads to {type(hook).__name__}, which is not a SQL hook.\n"
            "sql_conn_id must name a database or warehouse connection."
        )
    if entry is ANY:
        # A custom connection type, whose hook may be a subclass of a known one.
        entry = next((database for database in DATABASES if hook.conn_type in database.connection_types), ANY)
    return SqlSource(entry, create_hook)


def _entry(conn_id: str, conn_type: str | None, choice: Any) -> Database:
    found = [database for database in DATABASES if conn_type in database.connection_types]
    if len(found) < 2:  # noqa: PLR2004
        return found[0] if found else ANY
    by_name = {str(database.hook).rpartition(".")[2]: database for database in found}
    if choice not in by_name:
        options = " or ".join(f"hook_params={{'{_HOOK_CHOICE}': '{name}'}}" for name in sorted(by_name))
        raise InvalidInputError(
            f"Connection {conn_id!r} is of the type {conn_type!r}, which may lead to several databases.\n"
            f"Pass {options}."
        )
    return by_name[choice]


def _hook_of_airflow(connection: Any, hook_params: Mapping[str, Any]) -> Any:
    try:
        return connection.get_hook(hook_params=hook_params)
    except (AirflowException, AttributeError) as error:
        # Airflow has no error class for an unknown type; a type without a hook gives an AttributeError.
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
    conn_ids = {hook_class.conn_name_attr: connection.conn_id}
    if connection.conn_type == "aws":
        conn_ids["aws_conn_id"] = connection.conn_id
    return hook_class(**conn_ids, **hook_params)


class _Order(NamedTuple):
    """How the database sorts, and which rows it leaves out; see ``stream_rows``.

    Args:
        columns: Number of columns to sort by.
        bounds: The range of the first column.
        after: Where to continue in the first column.
    """

    columns: int
    bounds: Bounds | None
    after: str | None


def stream_rows(
    source: SqlSource,
    sql: str,
    columns: Columns,
    parameters: Any = None,
    *,
    order_by: int = 0,
    bounds: Bounds | None = None,
    after: str | None = None,
) -> Generator[Rows, None, None]:
    """Yield the named columns of the rows, in lists of a few thousand.

    Call ``close()`` on it if you stop early. It must be read and closed in one thread.

    The database sorts by the bytes of the text of the first ``order_by`` columns, if it can. Otherwise rows
    have the query's order. With ``bounds``, only the rows of this range of the first column's text are
    yielded; nulls are in the first range. Every row is in exactly one of the ranges of ``range_bounds``,
    whatever the database's order is.

    With ``after``, a text of the first column, the rows from that text on are yielded, and nulls, and maybe
    rows shortly before it; all are sorted by that column. If the database does not sort, all rows are.

    Raises:
        InvalidInputError: The result lacks a column or has it twice, or ``bounds`` are given and the database
            cannot compare by bytes.
    """
    # As in Airflow's own hooks: a driver that gets an empty mapping looks for placeholders, and fails at a %.
    statement, parameters = bare(sql), parameters or None
    with ExitStack() as cleanup:
        result = None
        if order_by or after is not None:
            order = _Order(order_by or 1, bounds, after)
            result = _read_sorted(source, statement, columns, parameters, order, cleanup)
        if result is None and bounds:
            raise _cannot_divide()
        if result is None:
            result = source.database.read(_connection(source, cleanup), statement, parameters, cleanup)
        positions = column_positions(columns, result.names)
        for block in filter(len, result.blocks):
            yield _selected(block, positions, result)


def in_order(
    source: SqlSource, records: Generator[Any, None, None], sort: Callable[[Iterable[Any]], Iterable[Any]]
) -> Generator[Any, None, None]:
    """Yield the records of a query's rows in the order of bytes. The query is read once.

    Args:
        source: The database that the records come from.
        records: The records; closed with this generator.
        sort: Sorts records on this worker's disk, if the database did not.
    """
    with closing(records):
        # The query runs only now, and then it is known whether the database sorts its rows.
        first = list(islice(records, 1))
        if first and not source.sorts:
            log.info("The rows are sorted on this worker's disk.")
            yield from sort(chain(first, records))
        else:
            yield from chain(first, records)


def _connection(source: SqlSource, cleanup: ExitStack) -> Any:
    connection = source.database.connect(source.hook())
    cleanup.callback(close_quietly, connection.close)
    return connection


def range_bounds(source: SqlSource, sql: str, column: str, parameters: Any, ranges: int) -> list[str]:
    """Divide the rows of a query into at most ``ranges`` ranges of a column's text, of about the same size.

    Returns:
        The lower bound of every range but the first, sorted: values, cut off at the first character that
        needs an escape in SQL.

    Raises:
        InvalidInputError: The database cannot compare by bytes, or the result lacks the column or has it
            twice.
    """
    database, statement, parameters = source.database, bare(sql), parameters or None
    with ExitStack() as cleanup:
        connection = _connection(source, cleanup)
        names, _ = database.peek_at(connection, statement, parameters)
        position = column_position(column, names)
        if database.sort_key is None or _has_same_names(names):
            raise _cannot_divide()
        name = _quoted(database, names[position], parameters)
        key, alias = database.sort_key(connection, name, None), database.alias
        # No injection: the statement is the DAG author's, and the column name comes from its result.
        rows = f"FROM (\n{statement}\n) {alias}"
        keys = f"FROM (SELECT {key} AS talon_cdp_key {rows}) {alias}"
        tile = f"NTILE({ranges}) OVER (ORDER BY talon_cdp_key) AS talon_cdp_tile"
        tiles = f"FROM (SELECT talon_cdp_key, {tile} {keys}) {alias}"
        least = f"SELECT MIN(talon_cdp_key) {tiles} GROUP BY talon_cdp_tile"
        result = database.read(connection, least, parameters, cleanup)
        found = {_plain_prefix(row[0]) for block in result.blocks for row in _selected(block, [0], result)}
    # The least value is no bound: below it are only nulls, which are in the first range.
    return sorted(found - {""})[1:]


def _plain_prefix(value: Any) -> str:
    """Return the text of a value up to the first character that needs an escape in SQL."""
    text = (
        bytes(value).decode(errors="replace")
        if isinstance(value, bytes | bytearray | memoryview)
        else str(value or "")
    )
    found = _PLAIN_CHARACTERS.match(text)
    return found[0] if found else ""


def _cannot_divide() -> InvalidInputError:
    return InvalidInputError(
        "The database cannot divide this query into ranges of profile IDs. Nothing was sent.\n"
        "It is not known how to sort by bytes in this database, or two columns have the same name.\n"
        "Remove plan_workers, so that one task reads the query, or give every column another name."
    )


def _read_sorted(
    source: SqlSource,
    statement: str,
    columns: Columns,
    parameters: Any,
    order: _Order,
    cleanup: ExitStack,
) -> Result | None:
    """Read in the order of bytes. If the database cannot, return None and close what was opened."""
    if not source.sorts:
        return None
    try:
        with ExitStack() as opened:
            connection = _connection(source, opened)
            wrapped = _ordered(source.database, connection, statement, columns, parameters, order)
            source.sorts = wrapped is not None
            result = source.database.read(connection, wrapped or statement, parameters, opened)
            cleanup.push(opened.pop_all())
            return result
    except InvalidInputError:
        raise
    except Exception as error:
        if order.bounds:
            raise
        # The error's text is not logged, as drivers may quote values in it.
        source.sorts = False
        log.warning(
            "The database did not sort the query by bytes (%s). It runs unchanged, and the worker sorts.",
            type(error).__name__,
        )
        return None


def _ordered(
    database: Database,
    connection: Any,
    statement: str,
    columns: Columns,
    parameters: Any,
    order: _Order,
) -> str | None:
    """Wrap a statement so that the database sorts its rows by the bytes of the first columns, if it can."""
    names, row = database.peek_at(connection, statement, parameters)
    positions = column_positions(columns, names)
    if database.sort_key is None or _has_same_names(names):
        if order.bounds:
            raise _cannot_divide()
        return None
    if order.after is not None:
        # The expression must not depend on a value, as two readings may begin with different rows.
        row = None
    quoted = [_quoted(database, names[position], parameters) for position in positions]
    keys = [
        database.sort_key(connection, name, None if row is None else row[position])
        for name, position in zip(quoted[: order.columns], positions, strict=False)
    ]
    # No injection: the statement is the DAG author's, and the column names come from its result.
    source = f"FROM (\n{statement}\n) {database.alias}"
    if condition := _condition(database.sort_key, connection, quoted[0], order):
        source += f" WHERE {condition}"
    return f"SELECT {', '.join(dict.fromkeys(quoted))} {source} ORDER BY {', '.join(keys)}"


def _condition(sort_key: Callable[[Any, str, Any], str], connection: Any, name: str, order: _Order) -> str:
    """Return the condition for the rows of a range, or for those that come after others; empty for all."""
    low, high = order.bounds or (order.after or None, None)
    # No value is passed, so that all ranges compare the same expression and no two ranges share a row.
    key = sort_key(connection, name, None)
    limits = [(">=", low)] if low is not None else []
    limits += [("<", high)] if high is not None else []
    texts = [(sign, sort_key(connection, f"'{_plain_prefix(limit)}'", limit)) for sign, limit in limits]
    condition = " AND ".join(f"{key} {sign} {text}" for sign, text in texts)
    has_nulls = low is None or order.after is not None
    return f"({condition} OR {key} IS NULL)" if limits and has_nulls else condition


def _has_same_names(names: Sequence[str]) -> bool:
    """Whether columns have the same name but for case, so that they are ambiguous outside of a subquery."""
    return len({name.lower() for name in names}) < len(names)


def _quoted(database: Database, name: str, parameters: Any) -> str:
    quoted = database.quoted(name)
    return quoted.replace("%", "%%") if parameters is not None and database.doubles_percent else quoted


def _selected(block: Any, positions: Sequence[int], result: Result) -> Rows:
    """Return the columns at some positions as tuples, one per row."""
    if hasattr(block, "num_rows"):
        columns: list[Any] = [_arrow_values(block.column(position)) for position in positions]
    else:
        if (
            not result.converters
            and positions == list(range(len(result.names)))
            and isinstance(block[0], tuple)
        ):
            return block  # type: ignore[no-any-return]
        by_name = isinstance(block[0], Mapping)
        keys: list[Any] = [result.names[position] if by_name else position for position in positions]
        columns = [map(itemgetter(key), block) for key in keys]
    for index, position in enumerate(positions):
        if convert := result.converters.get(position):
            columns[index] = map(convert, columns[index])
    return list(zip(*columns, strict=True))


def _arrow_values(column: Any) -> list[Any]:
    """Return an Arrow column as a list of Python values."""
    arrow = import_module("pyarrow")
    kind = column.type
    if (text := _replaced(arrow.string(), kind)) != kind:
        # Through text, which has no digits that only 64 bits have: 19.99, not 19.989999771118164.
        column = column.cast(text).cast(_replaced(arrow.float64(), kind))
    convert = _converter(kind)
    try:
        values: list[Any] = column.to_pylist()
        return [None if value is None else convert(value) for value in values] if convert else values
    except (ValueError, OverflowError):
        return [_arrow_value(scalar, convert) for scalar in column]


def _replaced(floats: Any, kind: Any) -> Any:
    """Return an Arrow type with another type for floats of 32 bits and integers for times, at any depth."""
    arrow = import_module("pyarrow")
    types, inside = arrow.types, partial(_replaced, floats)
    if types.is_float32(kind):
        return floats
    if types.is_timestamp(kind):
        # Arrow's conversion takes six times as long, and fails at nanoseconds where pandas is not installed.
        return arrow.int64()
    if types.is_map(kind):
        item = inside(kind.item_type)
        return kind if item == kind.item_type else arrow.map_(kind.key_type, item)
    if types.is_struct(kind):
        return arrow.struct([part.with_type(inside(part.type)) for part in kind])
    if types.is_list(kind):
        return arrow.list_(kind.value_field.with_type(inside(kind.value_type)))
    if types.is_large_list(kind):
        return arrow.large_list(kind.value_field.with_type(inside(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return arrow.list_(kind.value_field.with_type(inside(kind.value_type)), kind.list_size)
    return kind


def _converter(kind: Any) -> Callable[[Any], Any] | None:
    """Return a function that makes dictionaries of maps and times of ticks, at any depth; None for others."""
    types = import_module("pyarrow").types
    if types.is_timestamp(kind):
        epoch = datetime(1970, 1, 1, tzinfo=UTC if kind.tz else None)
        return partial(_time_since, epoch, *_MICROSECONDS[kind.unit])
    if types.is_map(kind):
        if types.is_nested(kind.key_type):
            # Python's dictionaries have no such keys.
            return lambda _: InvalidInputError("has a key that is not a string")
        item = _converter(kind.item_type) or (lambda value: value)
        return lambda pairs: {key: None if value is None else item(value) for key, value in pairs}
    if types.is_struct(kind):
        fields = {part.name: made for part in kind if (made := _converter(part.type))}
        if not fields:
            return None
        return lambda value: {
            name: fields[name](part) if name in fields and part is not None else part
            for name, part in value.items()
        }
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if (made := _converter(kind.value_type)) is None:
            return None
        return lambda values: [None if value is None else made(value) for value in values]
    return None


_INT64_MAX = 2**63 - 1
# Microseconds of a tick, and ticks of a microsecond.
_MICROSECONDS = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}


def _time_since(epoch: datetime, multiplier: int, divisor: int, ticks: int) -> datetime:
    if abs(ticks) == _INT64_MAX:
        # In nanoseconds, infinity would be a time in the year 2262 or 1677.
        raise OverflowError
    return epoch + timedelta(microseconds=ticks * multiplier // divisor)


def _arrow_value(scalar: Any, convert: Callable[[Any], Any] | None) -> Any:
    try:
        value = scalar.as_py()
        return value if value is None or convert is None else convert(value)
    except OverflowError:
        return unreadable_time()
    except UnicodeDecodeError:
        return InvalidInputError("holds text that is not UTF-8")
    except ValueError:
        return InvalidInputError(
            "holds a value that Python cannot represent, such as a struct with two fields of one name"
        )


def bare(sql: str) -> str:
    """Remove what a subquery must not contain: a BOM, and the last semicolon with the comments around it.

    Other comments stay, as what looks like one may be an operator: ``#`` in Postgres, ``--1`` in MySQL.
    """
    # Only tokenized, as sqlparse refuses to group long or deep statements.
    tokens = list(tokenize(sql.removeprefix("\ufeff")))  # type: ignore[no-untyped-call]
    end = len(tokens)
    while end and (
        tokens[end - 1][0] in Whitespace or tokens[end - 1][0] in Comment or tokens[end - 1][1] == ";"
    ):
        end -= 1
    ends = [at for at in range(end, len(tokens)) if tokens[at][1] == ";"]
    left = tokens[: ends[0] if ends else None]
    text = "".join(text for _, text in left).rstrip()
    # What looks like a comment may have the semicolon in it.
    return text.rstrip("; \n") if left and left[-1][0] in Comment else text


def column_positions(columns: Columns, names: Sequence[str]) -> list[int]:
    """Return the positions of columns in a result.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice.
    """
    return [column_position(column, names) for column in (columns(names) if callable(columns) else columns)]


def column_position(column: str, names: Sequence[str]) -> int:
    """Return the position of a column in a result. Case matters only if names differ by nothing else.

    Raises:
        InvalidInputError: The result lacks the column, or has it twice.
    """
    matches = [at for at, name in enumerate(names) if name == column]
    matches = matches or [at for at, name in enumerate(names) if name.lower() == column.lower()]
    if len(matches) != 1:
        raise InvalidInputError(
            f"The query's result has {'no' if not matches else 'more than one'} column {column!r}.\n"
            f"It has: {', '.join(names) or 'no columns'}.\n"
            "Name the column in SQL with AS, or pass its name."
        )
    return matches[0]


@dataclass(frozen=True, kw_only=True)
class ProfileColumns:
    """The columns of a query that make a profile.

    Args:
        profile_id: The column of profile integration IDs.
        attributes: Attribute name by column. None for all other columns under their own names, or for none
            of them if there is an ``attributes_column``.
        attributes_column: A column of JSON objects of attributes, or None.
        order_by: The column that decides which of two rows of a profile is the last, or None.
        declared: Names of attributes with a declared type.
    """

    profile_id: str
    attributes: Mapping[str, str] | None = None
    attributes_column: str | None = None
    order_by: str | None = None
    declared: Collection[str] = ()

    @property
    def special(self) -> list[str]:
        """The columns that are not attributes."""
        columns = (self.profile_id, self.order_by, self.attributes_column)
        return [column for column in columns if column is not None]

    def mapping(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return attribute name by column for a result with these columns.

        Raises:
            InvalidInputError: There is no column for attributes, or none for one with a declared type.
        """
        if self.attributes is not None or self.attributes_column is not None:
            mapping = self.attributes or {}
        else:
            mapping = self._others(names)
        unknown = sorted(set(self.declared) - set(mapping.values()))
        # A JSON column may have other attributes in every row.
        if unknown and self.attributes_column is None:
            raise InvalidInputError(
                f"types has the attribute {unknown[0]!r}, which the query does not give. It gives: "
                f"{', '.join(mapping.values())}."
            )
        return mapping

    def _others(self, names: Sequence[str]) -> Mapping[str, str]:
        special = {column_position(column, names) for column in self.special}
        others = [name for position, name in enumerate(names) if position not in special]
        if not others:
            raise InvalidInputError(
                f"The query's result has no column for attributes. It has: {', '.join(names)}."
            )
        return dict(zip(others, others, strict=True))


def read_profiles(
    source: SqlSource, sql: str, columns: ProfileColumns, encode: Encode, parameters: Any = None
) -> Generator[Profile | Rejection, None, None]:
    """Yield a profile for each row, sorted by the bytes of its ID if the database can sort so.

    Call ``close()`` on it if you stop early. It must be read and closed in one thread.

    Raises:
        InvalidInputError: The result lacks a column or has it twice, or the profile IDs have a wrong type.
    """
    attributes: list[str] = []

    def select(names: Sequence[str]) -> list[str]:
        mapping = columns.mapping(names)
        attributes[:] = mapping.values()
        return [*columns.special, *mapping]

    has_order = columns.order_by is not None
    first = len(columns.special)

    def attributes_of(row: Sequence[Any]) -> dict[str, Any]:
        values = dict(zip(attributes, row[first:], strict=True))
        return values if columns.attributes_column is None else with_json_attributes(values, row[first - 1])

    with closing(stream_rows(source, sql, select, parameters, order_by=1)) as blocks:
        for row in chain.from_iterable(blocks):
            yield read_profile(row, row[0], row[1] if has_order else None, attributes_of, encode)


def read_profile(
    row: Any, profile_id: Any, order: Any, attributes_of: Callable[[Any], dict[str, Any]], encode: Encode
) -> Profile | Rejection:
    """Return the profile of a row, or why there is none.

    Args:
        row: The row.
        profile_id: The value for its profile ID.
        order: The value for its order, or None.
        attributes_of: Returns the attributes of a row, or raises ``InvalidInputError``.
        encode: Encodes attributes.
    """
    profile_id = read_profile_id(profile_id)
    if isinstance(profile_id, Rejection):
        return profile_id
    if profile_id in DOTS:
        return Rejection(FAULT_OF_DOTS, profile_id)
    if isinstance(order, InvalidInputError):
        return Profile(profile_id, order=order, fault=f"order_by_column {order}.")
    try:
        return Profile(profile_id, *encode(attributes_of(row)), order)
    except InvalidInputError as error:
        return Profile(profile_id, order=order, fault=str(error))


def with_json_attributes(values: dict[str, Any], column: Any) -> dict[str, Any]:
    """Add the attributes of an ``attributes_column`` to those of other columns, or raise."""
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
        raise InvalidInputError(f"Attribute {both[0]!r} is in attributes_column and in another column.")
    return values | column
