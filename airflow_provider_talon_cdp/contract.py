"""What Talon.One accepts as an ID, a name or a type, how much fits in one request, and shared defaults.

Source: Talon.One's Third-party API reference. Every layer needs these rules, so this module imports
nothing but the errors.
"""

from __future__ import annotations

from typing import Literal, get_args

from airflow_provider_talon_cdp.exceptions import InvalidInputError

MAX_LENGTH = 1000
"""Characters in a customer profile ID, an external audience ID or an audience name."""

MAX_CHANGES = 1000
"""Adds and deletes of one request, over all of its profiles together."""

_LARGEST_INTERNAL_ID = 2**63 - 1
# Byte order mark, zero-width space and word joiner, which files and web pages leave at the ends of a text.
_INVISIBLE = "\ufeff\u200b\u2060"

DOTS = frozenset((".", ".."))
"""Profile IDs that HTTP clients and proxies resolve in a path before they send it."""

FAULT_OF_DOTS = "profile ID '.' or '..', which does not survive in the path of a URL"

AudienceIdType = Literal["external", "internal"]
"""``external``: the ID in the CDP, a string. ``internal``: the number that Talon.One gave the audience."""
AUDIENCE_ID_TYPE: AudienceIdType = "external"

AttributeType = Literal[
    "string",
    "number",
    "boolean",
    "time",
    "location",
    "(list string)",
    "(list number)",
    "(list time)",
    "(list location)",
]
"""Type of a customer-profile attribute, spelt as Talon.One's own API does."""


OnUnclear = Literal["fail", "retry"]
"""When a call that runs rules gets no clear answer: ``fail``, or ``retry`` although they may run twice."""
ON_UNCLEAR: OnUnclear = "fail"

IN_FLIGHT = 64
"""Requests in flight at the most."""

KEEP_VERSIONS = 3
"""Versions of a ledger whose files and dead letters are kept."""


def fault_of_text(value: object) -> str | None:
    """Say why a value is no ID or name for Talon.One, or None when it is one.

    The answers are few and carry no part of the value, so they serve as keys to count by.
    """
    if value is None:
        return "null"
    if not isinstance(value, str):
        return f"{type(value).__name__} instead of a string"
    if not value:
        return "empty"
    if len(value) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if not is_unicode(value):
        return "not valid Unicode (a lone surrogate)"
    return None


def check_text(name: str, value: object) -> str:
    """Return a string of 1 to 1000 characters, or raise.

    Args:
        name: What the value is, as the user knows it, e.g. ``audience_id``.
        value: Anything.

    Raises:
        InvalidInputError: The value is not such a string. The text does not quote it: it may be personal
            data.
    """
    fault = fault_of_text(value)
    if fault:
        raise InvalidInputError(f"{name} must be a string of 1 to {MAX_LENGTH} characters, but is {fault}.")
    return str(value)


def check_audience_id(name: str, value: object, id_type: AudienceIdType) -> str | int:
    """Return an audience ID of the given type, or raise.

    Args:
        name: What the value is, as the user knows it, e.g. ``add_audiences``.
        value: Anything.
        id_type: ``external`` wants a string of 1 to 1000 characters without white space at its ends,
            ``internal`` an integer >= 1.

    Raises:
        InvalidInputError: The value is of the wrong type or out of range.
    """
    if id_type == "external":
        if isinstance(value, int) and not isinstance(value, bool):
            raise InvalidInputError(
                f"{name} is the integer {value}, but an external audience ID (its ID in the CDP) is text.\n"
                "Write it in quotes, or choose internal audience IDs if you mean Talon.One's own number."
            )
        text = check_text(name, value)
        if text != text.strip().strip(_INVISIBLE):
            raise InvalidInputError(
                f"{name} begins or ends with white space, a newline or an invisible character.\n"
                "Talon.One would take it for another audience. Take that character off."
            )
        return text
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_INTERNAL_ID:
        raise InvalidInputError(
            f"{name} must be an internal audience ID, the integer >= 1 that Talon.One gave the audience,\n"
            f"but is of type {type(value).__name__}. An external ID (a string) needs the external calls."
            if not isinstance(value, int)
            else f"{name} must be an internal audience ID, an integer from 1 to {_LARGEST_INTERNAL_ID}."
        )
    return value


def check_external_id(name: str, value: object) -> str:
    """Return an external audience ID, or raise as ``check_audience_id`` does."""
    return str(check_audience_id(name, value, "external"))


def check_in_path(name: str, identifier: str) -> None:
    """Refuse an ID that cannot stand in a path: clients and proxies resolve it away, percent-encoded too.

    Args:
        name: What it is, for the error.
        identifier: The ID.

    Raises:
        InvalidInputError: It is ``.`` or ``..``.
    """
    if identifier in DOTS:
        raise InvalidInputError(
            f"{name} is {identifier!r}, which cannot stand in the path of a request:\n"
            "a proxy on the way may take it for a step in the path and change another record.\n"
            "Give the record another ID. Members with such an ID can be added and removed in bulk."
        )


def check_attribute_type(name: str, kind: object) -> None:
    """Refuse what is not the type of an attribute.

    Args:
        name: The attribute's name, for the error.
        kind: Anything.

    Raises:
        InvalidInputError: It is not an ``AttributeType``.
    """
    if kind not in get_args(AttributeType):
        raise InvalidInputError(
            f"The type of the attribute {name!r} must be one of {', '.join(get_args(AttributeType))},\n"
            f"but is {kind!r}."
        )


def is_unicode(value: str) -> bool:
    """Whether a text can be written in UTF-8; lone surrogates cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
