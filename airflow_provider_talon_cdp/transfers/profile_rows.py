"""Rows of a SQL query as profiles with their attributes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.changes.change import Profile, Rejection, read_profile_id
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers.rows import read_json, stream_rows
from airflow_provider_talon_cdp.transfers.statements import column_position

Encode: TypeAlias = Callable[[Mapping[str, Any]], tuple[bytes, tuple[str, ...]]]
"""Makes JSON of attributes, and says which names are in it; raises ``InvalidInputError``."""


@dataclass(frozen=True, kw_only=True)
class ProfileColumns:
    """Which columns of a query make a profile.

    Args:
        profile_id: The column of profile integration IDs.
        attributes: Attribute name by column; None for each other column under its own name, or for none of them where
            there is an ``attributes_column``.
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
        """The columns that are no attributes."""
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
    hook: DbApiHook, sql: str, columns: ProfileColumns, encode: Encode, parameters: Any = None
) -> Generator[Profile | Rejection, None, None]:
    """Yield a profile for each row, sorted by the bytes of its ID where the database can be told so.

    Call ``close()`` on it when you stop early. All of it must run in one thread.

    Args:
        hook: Where to read.
        sql: One SELECT.
        columns: What its columns mean.
        encode: Makes JSON of a row's attributes.
        parameters: Bind parameters in the driver's style, or None.

    Raises:
        InvalidInputError: The result lacks a column, or has it twice, or no profile ID can be of a column's type.
    """
    attributes: list[str] = []

    def pick(names: Sequence[str]) -> list[str]:
        mapping = columns.mapping(names)
        attributes[:] = mapping.values()
        return [*columns.special, *mapping]

    ordered = columns.order_by is not None
    first = len(columns.special)
    with closing(stream_rows(hook, sql, pick, parameters, order_by=1)) as blocks:
        for row in chain.from_iterable(blocks):
            profile_id = read_profile_id(row[0])
            if isinstance(profile_id, Rejection):
                yield profile_id
                continue
            order = row[1] if ordered else None
            try:
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
    if not isinstance(column, dict):
        raise InvalidInputError(
            "attributes_column holds no JSON object, or one that is nested too deep or has too long a number."
        )
    both = sorted(values.keys() & column.keys())
    if both:
        raise InvalidInputError(f"Attribute {both[0]!r} stands in attributes_column and in another column.")
    return values | column
