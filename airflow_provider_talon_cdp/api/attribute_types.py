"""A value of a warehouse as the type that an attribute was declared with. Pure.

Source: Talon.One's Third-party API reference for the types; their spelling is that of its own API. It does not say how a
location is written, so two numbers pass in a list or under two names, as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from airflow_provider_talon_cdp.api.values import is_finite
from airflow_provider_talon_cdp.contract import AttributeType
from airflow_provider_talon_cdp.exceptions import InvalidInputError

_Convert: TypeAlias = Callable[[Any], Any]

# What a number in text may look like; Decimal alone would take "NaN", "1_000" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_COORDINATES = 2
# As many as _NUMBER allows; written out, 1E+1000000 would be a text of a megabyte.
_MOST_DIGITS = 10_000


class _UnfitError(Exception):
    """Why a value does not fit; the text holds no part of it."""


def declared_value(value: Any, kind: AttributeType, name: str) -> Any:
    """Convert a value to a declared type, as far as that loses nothing.

    Args:
        value: As a database driver gives it; None stays.
        kind: The type.
        name: The attribute's name, for the error.

    Returns:
        A value for ``attribute_values``.

    Raises:
        InvalidInputError: It has no such value. The text says of which type it is, and not what it is.
    """
    if value is None:
        return None
    try:
        return _CONVERTERS[kind](_finite(value))
    except _UnfitError as error:
        raise InvalidInputError(f"Attribute {name!r} is declared as {kind}, but {error}.") from None


def _finite(value: Any) -> Any:
    if not is_finite(value):
        raise _UnfitError("it is no finite number")
    return value


def _string(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case UUID():
            return str(value)
        case float():
            return repr(float(value))
        case int() | Decimal() if abs(Decimal(value).adjusted()) >= _MOST_DIGITS:
            raise _UnfitError(f"it is a number of more than {_MOST_DIGITS:,} digits")
        case int() | Decimal():
            return format(Decimal(value), "f")
        case date():
            return value.isoformat()
    raise _unfit(value)


def _number(value: Any) -> int | float | Decimal:
    match value:
        case bool():
            raise _unfit(value)
        case int() | float() | Decimal():
            return value
        case str() if _NUMBER.fullmatch(value.strip()):
            return Decimal(value.strip())
        case str():
            raise _UnfitError("its text is no number")
    raise _unfit(value)


def _boolean(value: Any) -> bool:
    match value:
        case bool():
            return value
        # Databases without booleans have 0 and 1.
        case int() | float() | Decimal() if value in (0, 1):
            return bool(value)
        case int() | float() | Decimal():
            raise _UnfitError("it is a number other than 0 and 1")
        case str() if value.strip().lower() in _BOOLEANS:
            return _BOOLEANS[value.strip().lower()]
        case str():
            raise _UnfitError("its text is neither true nor false")
    raise _unfit(value)


def _time(value: Any) -> date:
    match value:
        case date():
            return value
        case str():
            try:
                return datetime.fromisoformat(value.strip())
            except ValueError:
                raise _UnfitError("its text is no date or time of ISO 8601") from None
    raise _unfit(value)


def _location(value: Any) -> Any:
    place = _parsed(value)
    parts = list(place.values()) if isinstance(place, dict) else place
    if not isinstance(parts, list | tuple) or len(parts) != _COORDINATES:
        raise _UnfitError("it is not two numbers")
    if any(isinstance(each, bool) or not isinstance(each, int | float | Decimal) for each in parts):
        raise _UnfitError("one of its two parts is no number")
    return place


def _list_of(convert: _Convert) -> _Convert:
    def converted(value: Any) -> list[Any]:
        items = _parsed(value)
        if not isinstance(items, list | tuple):
            raise _UnfitError(
                "its text is no JSON array"
                if isinstance(value, str)
                else "it is no list: it is " + _type(value)
            )
        if None in items:
            raise _UnfitError("it has a null in it")
        return [convert(_finite(each)) for each in items]

    return converted


def _parsed(value: Any) -> Any:
    """Read text as JSON: databases without arrays keep them so, and some drivers give arrays so."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _unfit(value: Any) -> _UnfitError:
    return _UnfitError(f"it is {_type(value)}")


def _type(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


_CONVERTERS: Mapping[AttributeType, _Convert] = {
    "string": _string,
    "number": _number,
    "boolean": _boolean,
    "time": _time,
    "location": _location,
    "(list string)": _list_of(_string),
    "(list number)": _list_of(_number),
    "(list time)": _list_of(_time),
    "(list location)": _list_of(_location),
}
