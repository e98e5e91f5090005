"""Warehouse values to JSON values that Talon.One's attributes take. Pure.

Source: Talon.One's Third-party API reference: an attribute is a string, a number, a boolean, a time (an RFC 3339
string), a location, or a list of strings, numbers, times or locations; null deletes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from airflow_provider_talon_cdp.exceptions import InvalidInputError

_INT64 = 2**63


def attribute_values(row: Mapping[str, Any], *, zone: tzinfo | None = None) -> dict[str, Any]:
    """Turn values as a database driver gives them into values that ``encode_json`` takes.

    Args:
        row: Attribute name -> value. None stays: it deletes the attribute.
        zone: The zone of timestamps without an offset, and of dates, whose midnight is sent.

    Raises:
        InvalidInputError: A value that JSON or Talon.One cannot carry. The text names the attribute, not the value.
    """
    if not isinstance(row, Mapping):
        raise InvalidInputError(f"attributes must be a mapping of names to values, not {type(row).__name__}.")
    for name in row:
        if not isinstance(name, str) or not name:
            raise InvalidInputError(
                f"An attribute name must be a non-empty string, not {type(name).__name__}."
            )
    return {name: _value(value, f"Attribute {name!r}", zone) for name, value in row.items()}


def encode_json(value: Any) -> bytes:
    """Encode JSON in UTF-8; a Decimal becomes a number with exactly its digits.

    Raises:
        InvalidInputError: Something in it is not JSON.
    """
    try:
        return orjson.dumps(value, default=_exact_number)
    except TypeError as error:
        raise InvalidInputError(f"The request's body is not JSON: {error}.") from error


def _value(value: Any, where: str, zone: tzinfo | None) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, where)
        case int():
            # orjson writes integers of 64 bits; a Decimal has any number of digits.
            return int(value) if -_INT64 <= value < _INT64 else Decimal(int(value))
        case float() | Decimal():
            if not math.isfinite(value):
                raise InvalidInputError(
                    f"{where} is {value}, which JSON has no number for. Send null instead."
                )
            return float(value) if isinstance(value, float) else value
        case datetime():
            return _timestamp(value, where, zone)
        case date():
            return _timestamp(datetime.combine(value, time()), where, zone)
        case UUID():
            return str(value)
        case list() | tuple():
            return [_value(each, where, zone) for each in value]
        case dict():
            return {_text(key, where): _value(each, where, zone) for key, each in value.items()}
        case bytes() | bytearray() | memoryview():
            raise InvalidInputError(
                f"{where} is bytes, which JSON cannot carry. Decode it in SQL, e.g. to hex."
            )
        case _:
            raise InvalidInputError(
                f"{where} is of type {type(value).__name__}, which no Talon.One attribute takes. "
                "Cast it in SQL to text, a number, a boolean or a timestamp."
            )


def _text(value: Any, where: str) -> str:
    try:
        value.encode()
    except AttributeError as error:
        raise InvalidInputError(f"{where} has a key that is no string.") from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{where} is not valid Unicode (a lone surrogate).") from error
    return str.__str__(value)


def _timestamp(value: datetime, where: str, zone: tzinfo | None) -> str:
    # pandas.NaT is a datetime whose parts are NaN.
    if value != value:  # noqa: PLR0124
        raise InvalidInputError(f"{where} is not a time (NaT). Send null instead.")
    if value.utcoffset() is None:
        if zone is None:
            raise InvalidInputError(
                f"{where} is a date or a timestamp without a time zone. Set 'Time zone for naive timestamps' on the "
                "connection, or convert it to a timestamp with time zone in SQL."
            )
        value = value.replace(tzinfo=zone)
    offset = value.utcoffset()
    # Local mean times of the 19th century have offsets with seconds, which RFC 3339 cannot write.
    if offset is not None and offset.total_seconds() % 60:
        value = value.astimezone(UTC)
    return value.isoformat()


def _exact_number(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value).encode())
    raise TypeError(f"{type(value).__name__} is no JSON type")
