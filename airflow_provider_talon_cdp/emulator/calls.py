"""From a request to a call that was checked: path, headers, query and body. Pure.

The rules are those of Talon.One's Third-party API reference; where it is silent, the docstring says
what was chosen. Names that a body has beyond the known ones are ignored, as the real API does. A path
is cut at its slashes before it is decoded, because an ID may hold a slash (``%2F``), and nothing in it
is normalised, because an ID may be ``..``.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import unquote_to_bytes

from airflow_provider_talon_cdp.emulator.answers import TEXTS, RefusedError
from airflow_provider_talon_cdp.emulator.exact_json import Json, JsonError, depth, loads
from airflow_provider_talon_cdp.emulator.store import AudienceKey, MembershipChange

CREATE_AUDIENCE = "create_audience"
UPDATE_AUDIENCE = "update_audience"
DELETE_AUDIENCE = "delete_audience"
UPDATE_PROFILE = "update_profile"
UPDATE_PROFILE_AUDIENCES = "update_profile_audiences"
UPDATE_PROFILES_INTERNAL = "update_profiles_internal"
UPDATE_PROFILES_EXTERNAL = "update_profiles_external"

MULTI_PROFILE_WORDS = {"plural": "customer_profiles", "singular": "customer_profile"}

MAX_CHANGES = 1000
MAX_TEXT = 1000
MAX_DEPTH = 32

_KEY = re.compile(r"ApiKey-v1 (\S+)")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ID = None
_Table = Sequence[tuple[tuple[str | None, ...], Mapping[str, str]]]


@dataclass(frozen=True)
class Route:
    """An operation (one of the constants above) and the decoded ID of its path, empty when it has none."""

    operation: str
    path_id: str = ""


@dataclass(frozen=True)
class CheckedCall:
    """A request that passed every check that needs no state.

    ``changes`` has the profiles of the call, also those whose memberships stay as they are;
    ``run_rules`` says what Talon.One does, not what was asked for.
    """

    operation: str
    audience_id: str = ""
    audience_name: str = ""
    attributes: Mapping[str, Json] = field(default_factory=dict)
    changes: tuple[MembershipChange, ...] = ()
    skip_unknown: bool = False
    run_rules: bool = False

    @property
    def profiles(self) -> frozenset[str]:
        """The profile IDs that this call touches."""
        return frozenset(change.profile_id for change in self.changes)

    @property
    def size(self) -> int:
        """How many changes it asks for: memberships and attributes, to add and to delete."""
        return _count(self.changes) + len(self.attributes)


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


def find_route(method: str, raw_path: bytes, multi_profile_path: str) -> Route:
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
    raise RefusedError(404, TEXTS[404])


def check_headers(
    headers: Mapping[str, str], keys: Mapping[str, str | None], deployment_host: str | None
) -> str:
    """The three headers that every call needs.

    Args:
        headers: a mapping that ignores case.
        keys: the key of each environment; ``None`` accepts any that is not empty and has no space.
        deployment_host: the only host that is accepted; ``None`` accepts any bare host name. A platform
            name must be printable ASCII, which is this emulator's choice.

    Returns:
        The environment of the key.

    Raises:
        RefusedError: 401 for the key, 404 for the host of another deployment, 400 for anything else.
    """
    sent = _KEY.fullmatch(headers.get("authorization", ""))
    environments = [
        name
        for name, key in keys.items()
        if sent is not None and (key is None or hmac.compare_digest(sent[1].encode(), key.encode()))
    ]
    if not environments:
        raise RefusedError(401, TEXTS[401])
    platform = headers.get("customer-data-platform-name", "").strip()
    if not platform:
        raise RefusedError(400, "No customer data platform name specified")
    if not (platform.isascii() and platform.isprintable()):
        raise RefusedError(400, "Invalid customer data platform name: printable ASCII is expected")
    host = headers.get("destination-hostname", "").strip()
    if not host:
        raise RefusedError(400, "No Deployment URL specified")
    if not _HOST.fullmatch(host):
        raise RefusedError(
            400, "Invalid Deployment URL: a bare host name is expected, without scheme or path"
        )
    if deployment_host is not None and host.lower() != deployment_host.lower():
        raise RefusedError(404, TEXTS[404])
    return environments[0]


def read_call(route: Route, skip: Sequence[str], content_type: str, body: bytes) -> CheckedCall:
    """Turn query and body into a :class:`CheckedCall`.

    Chosen where the reference is silent: a body that is not declared as JSON, a name twice in an
    object, ``null`` for a list, an object or a flag, and one membership both added and deleted in one
    request are all a 400: each is a mistake that a test should show. *Update audience* goes by the ID
    in the path; its ``audienceId`` may be another, as in the reference's example.

    Args:
        route: the operation and the ID in its path.
        skip: every value of ``skipNonExistingAttributes`` in the query.
        content_type: the header, empty when it is missing.
        body: as it came.

    Raises:
        RefusedError: 400.
    """
    operation, path_id = route.operation, route.path_id
    if operation != CREATE_AUDIENCE and not operation.startswith("update_profiles"):
        _text(path_id, "The ID in the path")
    if operation == DELETE_AUDIENCE:
        return CheckedCall(operation, audience_id=path_id)
    data = _body(content_type, body)
    if operation in (CREATE_AUDIENCE, UPDATE_AUDIENCE):
        audience_id, name = _member(data, "audienceId"), _member(data, "audienceName")
        return CheckedCall(operation, path_id or audience_id, name)
    if operation == UPDATE_PROFILE:
        return _profile(path_id, skip, data)
    if operation == UPDATE_PROFILE_AUDIENCES:
        single = _change(path_id, _object(data, "data", required=True), str)
        return CheckedCall(operation, changes=_limited((single,)), run_rules=True)
    kind = int if operation == UPDATE_PROFILES_INTERNAL else str
    entries = [_entry(item) for item in _array(data, "data", required=True)]
    return CheckedCall(
        operation, changes=_limited(tuple(_change(name, entry, kind) for name, entry in entries))
    )


def _profile(profile_id: str, skip: Sequence[str], data: Mapping[str, Json]) -> CheckedCall:
    if not set(skip) <= {"true", "false"}:
        raise RefusedError(400, "skipNonExistingAttributes must be true or false")
    attributes = _object(data, "attributes")
    if depth(attributes, MAX_DEPTH) >= MAX_DEPTH:
        raise RefusedError(400, "attributes are nested too deeply")
    asked = data.get("runRuleEngine", False)
    if not isinstance(asked, bool):
        raise RefusedError(400, "runRuleEngine must be a boolean")
    change = _change(profile_id, _object(data, "audiencesChanges"), int)
    return CheckedCall(
        UPDATE_PROFILE,
        attributes=attributes,
        changes=_not_both((change,)),
        skip_unknown=list(skip[-1:]) == ["true"],
        # Talon.One runs the rule engine for every change of audiences, whatever the request asks for.
        run_rules=asked or bool(change.adds or change.deletes),
    )


def _body(content_type: str, body: bytes) -> dict[str, Json]:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(400, "The Content-Type must be application/json")
    try:
        data = loads(body)
    except JsonError as error:
        raise RefusedError(400, f"The body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise RefusedError(400, "The body must be a JSON object")
    return data


def _text(value: Json, name: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT:
        raise RefusedError(400, f"{name} must be a string of 1 to {MAX_TEXT} characters")
    return value


def _member(data: Mapping[str, Json], name: str) -> str:
    return _text(data.get(name), name)


def _object(data: Mapping[str, Json], name: str, *, required: bool = False) -> dict[str, Json]:
    value = data.get(name) if required else data.get(name, {})
    if not isinstance(value, dict):
        raise RefusedError(400, f"{name} must be an object")
    return value


def _array(data: Mapping[str, Json], name: str, *, required: bool = False) -> list[Json]:
    value = data.get(name) if required else data.get(name, [])
    if not isinstance(value, list):
        raise RefusedError(400, f"{name} must be an array")
    return value


def _entry(item: Json) -> tuple[str, dict[str, Json]]:
    if not isinstance(item, dict):
        raise RefusedError(400, "Every entry of data must be an object")
    return _member(item, "customerProfileId"), item


def _change(profile_id: str, data: Mapping[str, Json], kind: type[AudienceKey]) -> MembershipChange:
    return MembershipChange(profile_id, _ids(data, "adds", kind), _ids(data, "deletes", kind))


def _ids(data: Mapping[str, Json], name: str, kind: type[AudienceKey]) -> tuple[AudienceKey, ...]:
    if name not in data:
        return ()
    values = _array(data, name)
    for value in values:
        # The exact type: bool is an int in Python, but true is not an ID.
        if type(value) is not kind:
            raise RefusedError(
                400, f"Every ID in {name} must be {'an integer' if kind is int else 'a string'}"
            )
        if isinstance(value, str) and not 1 <= len(value) <= MAX_TEXT:
            _text(value, f"Every ID in {name}")
    return tuple(cast("list[AudienceKey]", values))


def _limited(changes: tuple[MembershipChange, ...]) -> tuple[MembershipChange, ...]:
    total = _count(changes)
    if total > MAX_CHANGES:
        raise RefusedError(
            400, f"Too many changes: {total} adds and deletes, at most {MAX_CHANGES} are allowed"
        )
    return _not_both(changes)


def _count(changes: tuple[MembershipChange, ...]) -> int:
    return sum(len(change.adds) + len(change.deletes) for change in changes)


def _not_both(changes: tuple[MembershipChange, ...]) -> tuple[MembershipChange, ...]:
    deletes = {(change.profile_id, audience) for change in changes for audience in change.deletes}
    adds = ((change.profile_id, audience) for change in changes for audience in change.adds)
    if deletes and not deletes.isdisjoint(adds):
        raise RefusedError(400, "A membership is both added and deleted")
    return changes


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
