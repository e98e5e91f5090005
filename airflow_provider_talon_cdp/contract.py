"""What Talon.One accepts as an ID, a name or a type, how much fits in one request, and shared defaults.

Source: Talon.One's Third-party API reference. Every layer needs these rules, so this module imports
only the errors.
"""

from __future__ import annotations

from decimal import Decimal
from numbers import Integral
from typing import Any, Literal, get_args

from airflow_provider_talon_cdp.exceptions import InvalidInputError

MAX_LENGTH = 1000
"""Most characters of a customer profile ID, an external audience ID or an audience name."""

MAX_CHANGES = 1000
"""Most adds and deletes of one request, of all its profiles together."""

_LARGEST_INTERNAL_ID = 2**63 - 1
# Byte order mark, zero-width space and word joiner: text from files and web pages may begin or end with them.
_INVISIBLE = "\ufeff\u200b\u2060"

NULL_AUDIENCES = frozenset(("None", "nan", "NaN", "null", "NULL", "<NA>", "NaT"))
"""Audience IDs that are a null that became text on the way: no audience is called so on purpose."""

DOTS = frozenset((".", ".."))
"""Profile IDs that HTTP clients and proxies remove from a path, as steps of a relative path."""

FAULT_OF_DOTS = "profile ID '.' or '..', which does not survive in the path of a URL"

AudienceIdType = Literal["external", "internal"]
"""``external``: the ID in the CDP, a string. ``internal``: Talon.One's ID, an integer."""
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
"""Type of a customer-profile attribute, spelled as in Talon.One's own API."""

SuspiciousIdsRule = Literal["warn", "fail", "ignore"]
"""What to do about profile IDs that are valid and look wrong."""

# What operators and the engine call these choices; the operators' docstrings say what each means.
OnDuplicate = Literal["error", "last"]
OnEmpty = Literal["fail", "skip", "allow"]
OnOlderRun = Literal["fail", "skip", "allow"]
RetryRejected = Literal["always", "never"]
Rules = Literal["none", "changes", "all"]
Verify = Literal["identity", "exists", "none"]

OnUnclear = Literal["fail", "retry"]
"""If a call that runs rules gets no clear answer: ``fail``, or ``retry``, with which they may run twice."""
ON_UNCLEAR: OnUnclear = "fail"

IN_FLIGHT = 64
"""Most requests in flight."""

KEEP_VERSIONS = 3
"""Number of a ledger's versions whose files and dead letters are kept."""


def fault_of_text(value: object) -> str | None:
    """Return why a value is not a valid ID or name in Talon.One, or None if it is valid.

    There are few different texts and they do not quote the value, so that they can be counted by.
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

    Raises:
        InvalidInputError: The value is not such a string. The text does not quote it, as it may be personal
            data.
    """
    fault = fault_of_text(value)
    if fault:
        raise InvalidInputError(f"{name} must be a string of 1 to {MAX_LENGTH} characters, but is {fault}.")
    return str(value)


def check_choice(name: str, value: object, choices: Any) -> Any:
    """Return a value of a ``Literal`` type, or raise if it is not one of its choices."""
    if value not in get_args(choices):
        raise InvalidInputError(
            f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, but is {value!r}."
        )
    return value


def check_bools(**values: Any) -> None:
    """Refuse values that are not booleans."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InvalidInputError(f"{name} must be True or False, but is {value!r}.")


def is_null_audience(value: object) -> bool:
    """Return whether a value says that there is no audience: a null, or the text of one."""
    return value is None or (isinstance(value, str) and value in NULL_AUDIENCES)


def check_audience_id(name: str, value: object, id_type: AudienceIdType) -> str | int:
    """Return an audience ID of the given type, or raise.

    An external ID is a string of 1 to 1000 characters without white space at its ends, an internal one an
    integer >= 1.

    Raises:
        InvalidInputError: The value is of the wrong type or out of range.
    """
    if id_type == "external":
        if isinstance(value, int) and not isinstance(value, bool):
            raise InvalidInputError(
                f"{name} is the integer {value}, but an external audience ID (its ID in the CDP) is text.\n"
                "Write it in quotes, or cast the column to text in SQL.\n"
                "Use internal audience IDs if you mean Talon.One's own ID."
            )
        text = check_text(name, value)
        if text != text.strip().strip(_INVISIBLE):
            raise InvalidInputError(
                f"{name} begins or ends with white space, a newline or an invisible character.\n"
                "Talon.One would treat it as another audience. Remove that character."
            )
        return text
    # The integers of some databases, such as Oracle, are decimals, and those of numpy have their own type.
    is_whole = isinstance(value, Decimal) and value.is_finite() and value.as_tuple().exponent == 0
    if is_whole or (isinstance(value, Integral) and not isinstance(value, bool)):
        value = int(value)  # type: ignore[call-overload]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_INTERNAL_ID:
        raise InvalidInputError(
            f"{name} must be an internal audience ID, the integer >= 1 that Talon.One assigned,\n"
            f"but is of type {type(value).__name__}. For an external ID (a string) use the external calls."
            if not isinstance(value, int)
            else f"{name} must be an internal audience ID, an integer from 1 to {_LARGEST_INTERNAL_ID}."
        )
    return value


def check_in_path(name: str, identifier: str) -> None:
    """Refuse an ID that clients and proxies would remove from a path, even if it is percent-encoded.

    Raises:
        InvalidInputError: The ID is ``.`` or ``..``.
    """
    if identifier in DOTS:
        raise InvalidInputError(
            f"{name} is {identifier!r}, which cannot be part of a request's path:\n"
            "a proxy may remove it from the path, so that the request changes another record.\n"
            "Give the record another ID. Members with such an ID can be added and removed in bulk."
        )


def is_unicode(value: str) -> bool:
    """Whether a text can be encoded in UTF-8, which lone surrogates cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
