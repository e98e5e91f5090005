"""Declared customer-profile attributes and their types. Pure.

Talon.One accepts only attributes that were defined in the Campaign Manager. The emulator has no
Campaign Manager, so they are declared when it starts, as an object of name to type, spelled as
Talon.One's own API spells its types::

    {"Tier": "string", "birthday": "time", "scores": "(list number)"}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal

from airflow_provider_talon_cdp.emulator.answers import FieldError, RefusedError
from airflow_provider_talon_cdp.emulator.exact_json import Json

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_COORDINATES = 2


def _is_string(value: Json) -> bool:
    return isinstance(value, str)


def _is_number(value: Json) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _is_boolean(value: Json) -> bool:
    return isinstance(value, bool)


def _is_time(value: Json) -> bool:
    """An RFC 3339 time with its offset: ``2026-02-28T23:59:59Z``."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return False
    try:
        datetime.fromisoformat(match[1] + match[2])
    except ValueError:
        return False
    return True


def _is_location(value: Json) -> bool:
    """Two numbers, in a list or under two names: the contract does not say which, so both will do."""
    parts = list(value.values()) if isinstance(value, dict) else value
    return isinstance(parts, list) and len(parts) == _COORDINATES and all(_is_number(part) for part in parts)


_SINGLE: Mapping[str, Callable[[Json], bool]] = {
    "string": _is_string,
    "number": _is_number,
    "boolean": _is_boolean,
    "time": _is_time,
    "location": _is_location,
}
_LISTS = {f"(list {name})": name for name in ("string", "number", "time", "location")}
TYPES = (*_SINGLE, *_LISTS)


def declare(types: object) -> dict[str, str]:
    """Check a mapping of attribute name to type.

    Raises:
        TypeError: not a mapping.
        ValueError: a type that is none of :data:`TYPES`; the message names the entry.
    """
    if not isinstance(types, Mapping):
        raise TypeError("attributes must be an object of name to type")
    for name, kind in types.items():
        if not isinstance(name, str) or kind not in TYPES:
            raise ValueError(f"attribute {name!r} has the type {kind!r}; a type is one of {', '.join(TYPES)}")
    return dict(types)


def has_type(value: Json, kind: str) -> bool:
    """Whether a JSON value fits a type of :data:`TYPES`."""
    if kind in _LISTS:
        return isinstance(value, list) and all(_SINGLE[_LISTS[kind]](item) for item in value)
    return _SINGLE[kind](value)


def accept(
    attributes: Mapping[str, Json], declared: Mapping[str, str], *, skip_unknown: bool
) -> Mapping[str, Json]:
    """The attributes to store: all of them, or an error that points at each wrong one.

    With nothing declared every attribute is accepted. ``null`` deletes, so it fits every type.

    Args:
        attributes: name to value, as they came.
        declared: name to type, one of :data:`TYPES`.
        skip_unknown: leave out unknown attributes, where otherwise they are an error.

    Raises:
        RefusedError: 400 in the deployment's shape.
    """
    if not declared:
        return attributes
    accepted: dict[str, Json] = {}
    errors = []
    for name, value in attributes.items():
        kind = declared.get(name)
        if kind is None:
            if not skip_unknown:
                errors.append(
                    FieldError("Unknown attribute", "no customer profile attribute has this name", name)
                )
        elif value is not None and not has_type(value, kind):
            errors.append(
                FieldError("Invalid attribute value", f"the value must be of the type {kind}", name)
            )
        else:
            accepted[name] = value
    if errors:
        raise RefusedError(400, "Invalid customer profile attributes", errors=tuple(errors))
    return accepted
