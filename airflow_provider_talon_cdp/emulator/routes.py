"""Which call a method and a raw path mean. Pure.

The path is cut at its slashes before it is decoded, because an ID may hold a slash (``%2F``), and
nothing in it is normalised, because an ID may be ``..``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from airflow_provider_talon_cdp.emulator.answers import RefusedError

CREATE_AUDIENCE = "create_audience"
UPDATE_AUDIENCE = "update_audience"
DELETE_AUDIENCE = "delete_audience"
UPDATE_PROFILE = "update_profile"
UPDATE_PROFILE_AUDIENCES = "update_profile_audiences"
UPDATE_PROFILES_INTERNAL = "update_profiles_internal"
UPDATE_PROFILES_EXTERNAL = "update_profiles_external"
OPERATIONS = (
    CREATE_AUDIENCE,
    UPDATE_AUDIENCE,
    DELETE_AUDIENCE,
    UPDATE_PROFILE,
    UPDATE_PROFILE_AUDIENCES,
    UPDATE_PROFILES_INTERNAL,
    UPDATE_PROFILES_EXTERNAL,
)

MULTI_PROFILE_WORDS = {"plural": "customer_profiles", "singular": "customer_profile"}

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ID = None
_Table = Sequence[tuple[tuple[str | None, ...], Mapping[str, str]]]


@dataclass(frozen=True)
class Route:
    """An operation (one of :data:`OPERATIONS`) and the decoded ID of its path, empty when it has none."""

    operation: str
    path_id: str = ""


def segments(raw_path: bytes) -> tuple[str, ...]:
    """The decoded segments of a percent-encoded path.

    Raises:
        RefusedError: 400 for a percent sign without two hex digits, or bytes that are not UTF-8.
    """
    if _BAD_ESCAPE.search(raw_path):
        raise RefusedError(400, "Invalid percent-encoding in the path")
    try:
        return tuple(unquote_to_bytes(part).decode("utf-8") for part in raw_path.split(b"/")[1:])
    except UnicodeDecodeError:
        raise RefusedError(400, "The path is not UTF-8") from None


def find(method: str, raw_path: bytes, multi_profile_path: str) -> Route:
    """The operation for a request.

    Args:
        method: HTTP method.
        raw_path: the path as it was sent, without the query.
        multi_profile_path: ``plural`` or ``singular``. Talon.One's tutorial has one spelling and its
            API reference the other; where a deployment knows the plural, the singular one is an update
            of the profile ``audiences``.

    Raises:
        RefusedError: 404 for an unknown path, 405 for a method it does not have, 400 for one that
            cannot be decoded.
    """
    parts = segments(raw_path)
    for pattern, methods in _TABLES[multi_profile_path]:
        if len(pattern) == len(parts) and all(
            want in (_ID, got) for want, got in zip(pattern, parts, strict=True)
        ):
            if method not in methods:
                raise RefusedError(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(methods))})
            ids = [got for want, got in zip(pattern, parts, strict=True) if want is _ID]
            return Route(methods[method], ids[0] if ids else "")
    raise RefusedError(404, "Not Found")


def _table(word: str) -> _Table:
    # First match wins: with the singular spelling the multi-profile call shadows the profile ID "audiences".
    return (
        (("cdp", "audiences"), {"POST": CREATE_AUDIENCE}),
        (("cdp", "audiences", _ID), {"PUT": UPDATE_AUDIENCE, "DELETE": DELETE_AUDIENCE}),
        (("cdp", word, "audiences"), {"PUT": UPDATE_PROFILES_INTERNAL}),
        (("cdp", "v2", word, "audiences"), {"PUT": UPDATE_PROFILES_EXTERNAL}),
        (("cdp", "customer_profile", _ID), {"PUT": UPDATE_PROFILE}),
        (("cdp", "customer_profile", _ID, "audiences"), {"PUT": UPDATE_PROFILE_AUDIENCES}),
    )


_TABLES = {spelling: _table(word) for spelling, word in MULTI_PROFILE_WORDS.items()}
