"""What Talon.One checks before it acts: headers, query and body of a request. Pure.

The rules are those of Talon.One's Third-party API reference; where it is silent, the docstring says
what was chosen. Names that a body has beyond the known ones are ignored, as the real API does.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar, cast

from airflow_provider_talon_cdp.emulator import routes
from airflow_provider_talon_cdp.emulator.answers import RefusedError
from airflow_provider_talon_cdp.emulator.exact_json import Json, JsonError, depth, loads

MAX_CHANGES = 1000
MAX_TEXT = 1000
MAX_DEPTH = 32

_KEY = re.compile(r"ApiKey-v1 (\S+)")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")

AudienceId = TypeVar("AudienceId", int, str)


class Change(NamedTuple, Generic[AudienceId]):
    """One profile and the audiences it joins and leaves: internal IDs (int) or external ones (str)."""

    profile_id: str
    adds: tuple[AudienceId, ...] = ()
    deletes: tuple[AudienceId, ...] = ()


@dataclass(frozen=True)
class Call:
    """A request that passed every check that needs no state."""

    operation: str
    audience_id: str = ""
    audience_name: str = ""
    attributes: Mapping[str, Json] = field(default_factory=dict)
    internal: tuple[Change[int], ...] = ()
    external: tuple[Change[str], ...] = ()
    skip_unknown: bool = False
    run_rule_engine: bool | None = None

    @property
    def profiles(self) -> frozenset[str]:
        """The profile IDs that this call touches."""
        return frozenset(
            [change.profile_id for change in self.internal] + [change.profile_id for change in self.external]
        )

    @property
    def size(self) -> int:
        """How many changes it asks for: memberships and attributes, to add and to delete."""
        return _count(self.internal) + _count(self.external) + len(self.attributes)


def check_headers(headers: Mapping[str, str], api_key: str | None, deployment_host: str | None) -> None:
    """The three headers that every call needs.

    Args:
        headers: a mapping that ignores case.
        api_key: the only key that is accepted; ``None`` accepts any that is not empty and has no space.
        deployment_host: the only host that is accepted; ``None`` accepts any bare host name. The
            reference asks for a bare host; that another deployment's host is a 400 as well is this
            emulator's choice.

    Raises:
        RefusedError: 401 for the key, 400 for the other two.
    """
    key = _KEY.fullmatch(headers.get("authorization", ""))
    if key is None or (api_key is not None and not hmac.compare_digest(key[1].encode(), api_key.encode())):
        raise RefusedError(401, "Unauthorized: missing or invalid API key")
    if not headers.get("customer-data-platform-name", "").strip():
        raise RefusedError(400, "No customer data platform name specified")
    host = headers.get("destination-hostname", "").strip()
    if not host:
        raise RefusedError(400, "No Deployment URL specified")
    if not _HOST.fullmatch(host):
        raise RefusedError(
            400, "Invalid Deployment URL: a bare host name is expected, without scheme or path"
        )
    if deployment_host is not None and host.lower() != deployment_host.lower():
        raise RefusedError(400, "Invalid Deployment URL: this host is not known here")


def read_call(route: routes.Route, skip: Sequence[str], content_type: str, body: bytes) -> Call:
    """Turn query and body into a :class:`Call`.

    Chosen where the reference is silent: a body that is not declared as JSON, a name twice in an
    object, ``null`` for a list, an object or a flag, an ``audienceId`` that differs from the one in the
    path, and one membership both added and deleted in one request are all a 400: each is a mistake that
    a test should show.

    Args:
        route: the operation and the ID in its path.
        skip: every value of ``skipNonExistingAttributes`` in the query.
        content_type: the header, empty when it is missing.
        body: as it came.

    Raises:
        RefusedError: 400.
    """
    operation, path_id = route.operation, route.path_id
    if operation != routes.CREATE_AUDIENCE and not operation.startswith("update_profiles"):
        _text(path_id, "The ID in the path")
    if operation == routes.DELETE_AUDIENCE:
        return Call(operation, audience_id=path_id)
    data = _body(content_type, body)
    if operation == routes.CREATE_AUDIENCE:
        return Call(operation, _member(data, "audienceId"), _member(data, "audienceName"))
    if operation == routes.UPDATE_AUDIENCE:
        if _member(data, "audienceId") != path_id:
            raise RefusedError(400, "audienceId differs from the ID in the path")
        return Call(operation, path_id, _member(data, "audienceName"))
    if operation == routes.UPDATE_PROFILE:
        return _profile(path_id, skip, data)
    if operation == routes.UPDATE_PROFILE_AUDIENCES:
        single = _change(path_id, _object(data, "data", required=True), str)
        return Call(operation, external=_limited((single,)))
    entries = [_entry(item) for item in _array(data, "data", required=True)]
    if operation == routes.UPDATE_PROFILES_INTERNAL:
        return Call(operation, internal=_limited(tuple(_change(name, entry, int) for name, entry in entries)))
    return Call(operation, external=_limited(tuple(_change(name, entry, str) for name, entry in entries)))


def _profile(profile_id: str, skip: Sequence[str], data: Mapping[str, Json]) -> Call:
    if not set(skip) <= {"true", "false"}:
        raise RefusedError(400, "skipNonExistingAttributes must be true or false")
    attributes = _object(data, "attributes")
    if depth(attributes, MAX_DEPTH) >= MAX_DEPTH:
        raise RefusedError(400, "attributes are nested too deeply")
    rule_engine = data.get("runRuleEngine", False)
    if not isinstance(rule_engine, bool):
        raise RefusedError(400, "runRuleEngine must be a boolean")
    change = _change(profile_id, _object(data, "audiencesChanges"), int)
    _not_both((change,))
    return Call(
        routes.UPDATE_PROFILE,
        attributes=attributes,
        internal=(change,),
        skip_unknown=list(skip[-1:]) == ["true"],
        # Talon.One runs the rule engine for every change of audiences, whatever the request asks for.
        run_rule_engine=rule_engine or bool(change.adds or change.deletes),
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


def _change(profile_id: str, data: Mapping[str, Json], kind: type[AudienceId]) -> Change[AudienceId]:
    return Change(profile_id, _ids(data, "adds", kind), _ids(data, "deletes", kind))


def _ids(data: Mapping[str, Json], name: str, kind: type[AudienceId]) -> tuple[AudienceId, ...]:
    if name not in data:
        return ()
    values = _array(data, name)
    for value in values:
        # The exact type: bool is an int in Python, but true is no ID.
        if type(value) is not kind:
            raise RefusedError(
                400, f"Every ID in {name} must be {'an integer' if kind is int else 'a string'}"
            )
        if isinstance(value, str) and not 1 <= len(value) <= MAX_TEXT:
            _text(value, f"Every ID in {name}")
    return tuple(cast("list[AudienceId]", values))


def _limited(changes: tuple[Change[AudienceId], ...]) -> tuple[Change[AudienceId], ...]:
    total = _count(changes)
    if total > MAX_CHANGES:
        raise RefusedError(
            400, f"Too many changes: {total} adds and deletes, at most {MAX_CHANGES} are allowed"
        )
    return _not_both(changes)


def _count(changes: tuple[Change[AudienceId], ...]) -> int:
    return sum(len(change.adds) + len(change.deletes) for change in changes)


def _not_both(changes: tuple[Change[AudienceId], ...]) -> tuple[Change[AudienceId], ...]:
    deletes = {(change.profile_id, audience) for change in changes for audience in change.deletes}
    adds = ((change.profile_id, audience) for change in changes for audience in change.adds)
    if deletes and not deletes.isdisjoint(adds):
        raise RefusedError(400, "A membership is both added and deleted")
    return changes
