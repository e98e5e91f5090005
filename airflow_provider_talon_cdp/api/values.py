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
# Objects and arrays in one another; orjson writes 254 of them, and some stand around an attribute.
_DEEPEST = 200


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
    return {name: _value(value, name, zone) for name, value in row.items()}


def encode_json(value: Any, *, sort_keys: bool = False) -> bytes:
    """Encode JSON in UTF-8; a Decimal becomes a number with exactly its digits.

    Args:
        value: What ``attribute_values`` returns, and anything else that is JSON.
        sort_keys: Write the names of each object in order, so that equal objects are equal bytes.

    Raises:
        InvalidInputError: Something in it is not JSON.
    """
    try:
        return orjson.dumps(value, default=_exact_number, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError as error:
        raise InvalidInputError(f"The request's body is not JSON: {error}.") from error


def is_finite(value: Any) -> bool:
    """Whether a value is none of NaN and the infinities."""
    # As a float a Decimal of 400 digits would be infinite.
    return (
        value.is_finite()
        if isinstance(value, Decimal)
        else not isinstance(value, float) or math.isfinite(value)
    )


def _value(value: Any, name: str, zone: tzinfo | None, depth: int = 0) -> Any:
    match value:
        case str():
            # Most values are plain text; the long way is for the others.
            return value if type(value) is str and value.isascii() else _text(value, name)
        case None | bool():
            return value
        case int():
            # orjson writes integers of 64 bits; a Decimal has any number of digits.
            return int(value) if -_INT64 <= value < _INT64 else Decimal(int(value))
        case float() | Decimal():
            if not is_finite(value):
                raise InvalidInputError(
                    f"Attribute {name!r} is {value}, which JSON has no number for. Send null instead."
                )
            return float(value) if isinstance(value, float) else value
        case datetime():
            return _timestamp(value, name, zone)
        case date():
            return _timestamp(datetime.combine(value, time()), name, zone)
        case UUID():
            return str(value)
        case list() | tuple():
            depth = _deeper(depth, name)
            return [_value(each, name, zone, depth) for each in value]
        case dict():
            depth = _deeper(depth, name)
            return {_text(key, name): _value(each, name, zone, depth) for key, each in value.items()}
        case bytes() | bytearray() | memoryview():
            raise InvalidInputError(
                f"Attribute {name!r} is bytes, which JSON cannot carry. Decode it in SQL, e.g. to hex."
            )
        case _:
            raise InvalidInputError(
                f"Attribute {name!r} is of type {type(value).__name__}, which no Talon.One attribute takes. "
                "Cast it in SQL to text, a number, a boolean or a timestamp."
            )


def _deeper(depth: int, name: str) -> int:
    if depth == _DEEPEST:
        raise InvalidInputError(f"Attribute {name!r} is nested more than {_DEEPEST} levels deep.")
    return depth + 1


def _text(value: Any, name: str) -> str:
    try:
        value.encode()
    except AttributeError as error:
        raise InvalidInputError(f"Attribute {name!r} has a key that is no string.") from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"Attribute {name!r} is not valid Unicode (a lone surrogate).") from error
    return str.__str__(value)


def _timestamp(value: datetime, name: str, zone: tzinfo | None) -> str:
    # pandas.NaT is a datetime whose parts are NaN.
    if value != value:  # noqa: PLR0124
        raise InvalidInputError(f"Attribute {name!r} is not a time (NaT). Send null instead.")
    if value.utcoffset() is None:
        if zone is None:
            raise InvalidInputError(
                f"Attribute {name!r} is a date or a timestamp without a time zone. Set 'Time zone for naive timestamps' on the "
                "connection, or convert it to a timestamp with time zone in SQL."
            )
        value = value.replace(tzinfo=zone)
    offset = value.utcoffset()
    # Local mean times of the 19th century have offsets with seconds, which RFC 3339 cannot write.
    if offset is not None and offset.total_seconds() % 60:
        try:
            value = value.astimezone(UTC)
        except OverflowError as error:
            raise InvalidInputError(
                f"Attribute {name!r} is a time at the edge of the calendar, which is before the year 1 or after the year 9999 "
                "in UTC. Send null instead."
            ) from error
    return value.isoformat()


def _exact_number(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value).encode())
    raise TypeError(f"{type(value).__name__} is no JSON type")
