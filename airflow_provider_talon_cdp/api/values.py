"""Converts values of a warehouse to JSON for Talon.One's attributes. Pure.

Source: Talon.One's Third-party API reference: an attribute is a string, a number, a boolean, a time (an RFC
3339 string), a location, or a list of strings, numbers, times or locations; null deletes it. The types are
spelled as in Talon.One's own API. It does not define how a location is written, so two numbers are accepted
in a list or in an object.

Equal values become equal bytes, so that a profile is not sent again because a session has another time zone
or a column another scale:

- a time with an offset, or in the connection's zone, is written in UTC: ``2026-06-30T10:00:00Z``;
- a date is the first moment of that day in the connection's zone;
- a number is written without trailing zeros and without a fraction of zero: 1, 1.0 and 1.00 are ``1``. It has
  an exponent only if it would have 40 digits or more before the point, or 40 places or more after it.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, tzinfo
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import orjson

from airflow_provider_talon_cdp.contract import AttributeType
from airflow_provider_talon_cdp.exceptions import InvalidInputError, unreadable_time

_Convert: TypeAlias = Callable[[Any], Any]

_INT64 = 2**63
# Levels of nested objects and arrays. orjson's limit is 254, of which the request's body takes a few.
_DEEPEST = 200
# Numbers with so many digits are written with an exponent.
_LONG_NUMBER = 40
# Between these limits Python and orjson write a float in the same way, without an exponent.
_PLAIN_FLOATS = (1e-4, 1e15)
# Numbers in text. Decimal would also accept "NaN", "1_000" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_COORDINATES = 2
# As many as _NUMBER allows. Without a limit, 1E+1000000 would become a text of a megabyte.
_MOST_DIGITS = 10_000
_PYTHON_TYPES = frozenset(
    {str, int, float, bool, Decimal, datetime, date, UUID, list, tuple, dict, type(None)}
)


@dataclass(frozen=True, kw_only=True)
class AttributesEncoder:
    """Encodes the values of a row as the JSON object of a profile's attributes.

    Args:
        types: Declared types by attribute name; other attributes get the type of their value.
        zone: Time zone of timestamps without an offset, and of dates; None refuses them.
        skip_nulls: Leave nulls out. Otherwise a null deletes the attribute.
    """

    types: Mapping[str, AttributeType] = field(default_factory=dict)
    zone: tzinfo | None = None
    skip_nulls: bool = True

    def __call__(self, row: Mapping[str, Any]) -> tuple[bytes, tuple[str, ...]]:
        """Encode the attributes of one profile.

        Args:
            row: Values by attribute name, as a database driver returns them.

        Returns:
            The JSON object with sorted names, and its names; ``b""`` if there is nothing to send.

        Raises:
            InvalidInputError: A value cannot be sent. The text names the attribute and quotes no value.
        """
        row = {name: _plain(value) for name, value in row.items()}
        if self.skip_nulls:
            row = {name: value for name, value in row.items() if value is not None}
        values = attribute_values(row, types=self.types, zone=self.zone)
        if not values:
            return b"", ()
        # A copy, as orjson's result keeps its buffer of a kilobyte or more in memory.
        return memoryview(encode_json(values, sort_keys=True)).tobytes(), tuple(values)


def attribute_values(
    row: Mapping[str, Any], *, types: Mapping[str, AttributeType] = {}, zone: tzinfo | None = None
) -> dict[str, Any]:
    """Convert values of a database driver to values for ``encode_json``.

    Args:
        row: Values by attribute name. None stays None: it deletes the attribute.
        types: Declared types by attribute name; other attributes get the type of their value.
        zone: Time zone of timestamps without an offset, and of dates; None refuses them.

    Raises:
        InvalidInputError: A value cannot be sent. The text names the attribute and does not quote the value.
    """
    if not isinstance(row, Mapping):
        raise InvalidInputError(f"attributes must be a mapping of names to values, not {type(row).__name__}.")
    for name in row:
        if not isinstance(name, str) or not name:
            raise InvalidInputError(
                f"An attribute name must be a non-empty string, not {type(name).__name__}."
            )
    if types:
        row = {
            name: declared_value(value, types[name], name) if name in types else value
            for name, value in row.items()
        }
    return {name: _value(value, name, zone) for name, value in row.items()}


def encode_json(value: Any, *, sort_keys: bool = False) -> bytes:
    """Encode JSON in UTF-8; a Decimal becomes a number with exactly its value.

    Args:
        value: A result of ``attribute_values``, or any other JSON value.
        sort_keys: Sort the names of every object, so that equal objects become equal bytes.

    Raises:
        InvalidInputError: It contains something that JSON does not have.
    """
    try:
        return orjson.dumps(value, default=_exact_number, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError as error:
        raise InvalidInputError(f"The request's body is not JSON: {error}.") from error


def _is_finite(value: Any) -> bool:
    # Not float(): a Decimal of 400 digits would become infinite.
    return (
        value.is_finite()
        if isinstance(value, Decimal)
        else not isinstance(value, float) or math.isfinite(value)
    )


def _plain(value: Any) -> Any:
    """Convert scalars and arrays of numpy and pandas to Python's types; their NA becomes None."""
    if type(value) in _PYTHON_TYPES:
        return value
    kind = type(value).__name__
    if kind == "NAType":
        return None
    if type(value).__module__ == "numpy":
        if getattr(value, "dtype", None) == "float32":
            # Text has no digits that only 64 bits have: 19.99, not 19.989999771118164.
            value = value.astype(str).astype(float)
        dtype_kind = getattr(getattr(value, "dtype", None), "kind", None)
        if dtype_kind == "M":
            # tolist() converts nanoseconds, and times that Python does not have, to integers.
            return _times(value.astype("datetime64[us]").tolist())
        plain = value.tolist()
        # Also intervals of nanoseconds, months and years. Such a value stays numpy's, and is refused.
        return value if dtype_kind == "m" and plain is not None else plain
    if isinstance(value, numbers.Integral) and not isinstance(value, int):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return float(value)
    return value


def _times(value: Any) -> Any:
    if isinstance(value, list):
        return [_times(item) for item in value]
    return unreadable_time() if isinstance(value, int) else value


def _value(value: Any, name: str, zone: tzinfo | None, depth: int = 0) -> Any:
    match value:
        case str():
            # Most values are ASCII text, which needs no check.
            return value if type(value) is str and value.isascii() else _text(value, name)
        case None | bool():
            return value
        case int():
            # orjson only encodes integers of 64 bits.
            return int(value) if -_INT64 <= value < _INT64 else Decimal(int(value))
        case float() | Decimal():
            if not _is_finite(value):
                raise InvalidInputError(
                    f"Attribute {name!r} is {value}, which JSON has no number for. Send null instead."
                )
            return _float(float(value)) if isinstance(value, float) else value
        case datetime():
            return _timestamp(value, name, zone)
        case date():
            return _timestamp(datetime.combine(value, time()), name, zone, is_date=True)
        case UUID():
            return str(value)
        case tuple() if names := _names_of_row(value):
            return _value(dict(zip(names, value, strict=True)), name, zone, depth)
        case list() | tuple() if not _is_interval(value):
            depth = _deeper(depth, name)
            return [_value(item, name, zone, depth) for item in value]
        case dict():
            depth = _deeper(depth, name)
            return {_text(key, name): _value(item, name, zone, depth) for key, item in value.items()}
        case _:
            return _value(_known(value, name), name, zone, depth)


def _names_of_row(value: tuple[Any, ...]) -> list[str] | None:
    """Return the names of a ROW as Trino's driver returns it; None if it has none, or one of them twice."""
    if type(value).__name__ != "NamedRowTuple":
        return None
    names: list[str] = value.__annotations__["names"]
    return names if all(names) and len(set(names)) == len(names) else None


def _is_interval(value: Any) -> bool:
    """Whether a value is an interval of Arrow or of Oracle, which are tuples of numbers."""
    return type(value).__name__ in {"MonthDayNano", "IntervalYM"}


def _known(value: Any, name: str) -> Any:
    """Convert a value to one of Python's types, or raise."""
    plain = _plain(value)
    if type(plain) in _PYTHON_TYPES:
        return plain
    # A reader returns the error as the value if the driver cannot represent the database's value.
    if isinstance(plain, InvalidInputError):
        raise InvalidInputError(f"Attribute {name!r} {plain}.")
    if isinstance(value, bytes | bytearray | memoryview):
        raise InvalidInputError(
            f"Attribute {name!r} is bytes, which JSON cannot carry. Decode it in SQL, e.g. to hex."
        )
    raise InvalidInputError(
        f"Attribute {name!r} is of type {type(value).__name__}, which no Talon.One attribute takes. "
        "Cast it in SQL to text, a number, a boolean or a timestamp."
    )


def _float(value: float) -> int | float | Decimal:
    if value.is_integer():
        return int(value) if abs(value) < _PLAIN_FLOATS[1] else Decimal(repr(value))
    return value if _PLAIN_FLOATS[0] <= abs(value) < _PLAIN_FLOATS[1] else Decimal(repr(value))


def _deeper(depth: int, name: str) -> int:
    if depth == _DEEPEST:
        raise InvalidInputError(f"Attribute {name!r} is nested more than {_DEEPEST} levels deep.")
    return depth + 1


def _text(value: Any, name: str) -> str:
    try:
        value.encode()
    except AttributeError as error:
        raise InvalidInputError(f"Attribute {name!r} has a key that is not a string.") from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"Attribute {name!r} is not valid Unicode (a lone surrogate).") from error
    return str.__str__(value)


def _timestamp(value: datetime, name: str, zone: tzinfo | None, *, is_date: bool = False) -> str:
    # pandas.NaT is a datetime whose parts are NaN.
    if value != value:  # noqa: PLR0124
        raise InvalidInputError(f"Attribute {name!r} is not a time (NaT). Send null instead.")
    if value.utcoffset() is None:
        if zone is None:
            raise InvalidInputError(
                f"Attribute {name!r} is a date or a timestamp without a time zone. Set 'Time zone for naive "
                "timestamps' on the connection, or convert it to a timestamp with time zone in SQL."
            )
        if type(value) is not datetime:
            # A time of pandas raises OverflowError where the zone's offset would take it out of its range.
            value = datetime.combine(value.date(), value.time())
        # The first moment of a day is defined even if the clock skips or repeats midnight.
        value = value.replace(tzinfo=zone, fold=0) if is_date else _in_zone(value, name, zone)
    try:
        return _utc_text(value)
    except OverflowError as error:
        raise InvalidInputError(
            f"Attribute {name!r} is a time before the year 1 or after the year 9999 in UTC. "
            "Send null instead."
        ) from error


def _in_zone(value: datetime, name: str, zone: tzinfo) -> datetime:
    first, second = (value.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    before, after = first.utcoffset(), second.utcoffset()
    if before != after and before is not None and after is not None:
        what = "happens twice (clocks go back)" if before > after else "does not exist (clocks go forward)"
        raise InvalidInputError(
            f"Attribute {name!r} is a local time that {what} in the connection's zone. "
            "Convert it to a timestamp with time zone in SQL."
        )
    return first


def _utc_text(value: datetime) -> str:
    # datetime's own method, as that of pandas writes nanoseconds.
    return datetime.isoformat(value.astimezone(UTC)).replace("+00:00", "Z")


def _exact_number(value: Any) -> Any:
    if not isinstance(value, Decimal) or not value.is_finite():
        raise TypeError(f"{type(value).__name__} is not a JSON type")
    if not value:
        return 0
    if abs(value.adjusted()) < _LONG_NUMBER:
        text = format(value, "f")
        return orjson.Fragment((text.rstrip("0").rstrip(".") if "." in text else text).encode())
    sign, digits, exponent = value.as_tuple()
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    shortest = Decimal((sign, digits[: len(digits) - zeros], int(exponent) + zeros))
    return orjson.Fragment(f"{shortest:E}".encode())


class _UnfitError(Exception):
    """Why a value does not fit its declared type. The text does not quote the value."""


def declared_value(value: Any, kind: AttributeType, name: str) -> Any:
    """Convert a value to a declared type, if nothing is lost.

    Returns:
        A value for ``attribute_values``.

    Raises:
        InvalidInputError: The value cannot be converted. The text names its type and does not quote it.
    """
    if value is None:
        return None
    try:
        return _CONVERTERS[kind](_usable(_plain(value)))
    except _UnfitError as error:
        raise InvalidInputError(f"Attribute {name!r} is declared as {kind}, but {error}.") from None


def _usable(value: Any) -> Any:
    # A reader returns the error as the value if it could not read it.
    if isinstance(value, InvalidInputError):
        raise _UnfitError(f"it {value}")
    if not _is_finite(value):
        raise _UnfitError("it is not a finite number")
    # pandas' NaT is a datetime that raises ValueError when it is asked anything.
    if type(value).__name__ == "NaTType":
        raise _UnfitError("it is NaT, the null of pandas for times. Send null instead")
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
        case datetime() if value.utcoffset() is not None:
            try:
                return _utc_text(value)
            except OverflowError:
                raise _UnfitError("it is a time before the year 1 or after the year 9999 in UTC") from None
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
            raise _UnfitError("its text is not a number")
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
            for kind in (date, datetime):
                try:
                    return kind.fromisoformat(value.strip())
                except ValueError:
                    continue
            raise _UnfitError("its text is not a date or time of ISO 8601")
    raise _unfit(value)


def _location(value: Any) -> Any:
    location = _parsed(value)
    parts = list(location.values()) if isinstance(location, dict) else location
    if not isinstance(parts, list | tuple) or len(parts) != _COORDINATES:
        raise _UnfitError("it is not two numbers")
    if any(isinstance(part, bool) or not isinstance(part, int | float | Decimal) for part in parts):
        raise _UnfitError("one of its two parts is not a number")
    return location


def _list_of(convert: _Convert) -> _Convert:
    def converted(value: Any) -> list[Any]:
        parsed = _parsed(value)
        if not isinstance(parsed, list | tuple) or _is_interval(parsed):
            raise _UnfitError(
                "its text is not a JSON array"
                if isinstance(value, str)
                else "it is not a list: it is " + _type(value)
            )
        items = [_plain(item) for item in parsed]
        if any(item is None for item in items):
            raise _UnfitError("it contains a null")
        return [convert(_usable(item)) for item in items]

    return converted


def _parsed(value: Any) -> Any:
    """Parse text as JSON: databases without arrays store them as text, and some drivers return text."""
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
