"""Reading back and switching faults over HTTP, for other processes: everything under ``/emulator/``.

None of it needs a key: the server is for this machine only, unless it was told otherwise.
``?environment=NAME`` chooses one of several environments; without it the first is read.

| call | answer |
| --- | --- |
| ``GET /emulator/state`` | audiences with their sizes, counters, waiting faults |
| ``GET /emulator/audiences/{external ID}/members?after=&limit=`` | profile IDs in order (all: no ``limit``) |
| ``GET /emulator/campaign_manager_audiences/{internal ID}/members`` | the same, without an external ID |
| ``GET /emulator/profiles?after=&limit=`` | attributes by profile ID, in order; all without ``limit`` |
| ``GET /emulator/profiles/{profile ID}`` | attributes and audiences |
| ``GET /emulator/requests`` | the last thousand requests, and counters over all |
| ``GET /emulator/faults`` | what is still to come |
| ``POST /emulator/faults`` | adds a fault (see ``Fault``) or sets ``{"reject_profiles": [...]}`` |
| ``DELETE /emulator/faults`` | forgets them |
| ``POST /emulator/reset`` | forgets everything |
"""

from __future__ import annotations

import copy
import heapq
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_talon_cdp.emulator import calls, faults
from airflow_provider_talon_cdp.emulator.answers import EmulatorAnswer, RefusedError, json_answer
from airflow_provider_talon_cdp.emulator.exact_json import Json, JsonError, loads
from airflow_provider_talon_cdp.emulator.service import EmulatorSettings, Service
from airflow_provider_talon_cdp.emulator.store import AudienceKey, Store, UnknownAudienceError

_MAX_DIGITS = 9
_OPENAPI: dict[str, Any] = json.loads(Path(__file__).with_name("openapi.json").read_bytes())


def openapi(settings: EmulatorSettings, url: str) -> EmulatorAnswer:
    """``/openapi.json``: the calls as this emulator takes them, with its paths, its host and its URL."""
    document = copy.deepcopy(_OPENAPI)
    document["servers"] = [{"url": url}]
    word = calls.MULTI_PROFILE_WORDS[settings.multi_profile_path]
    document["paths"] = {
        path.replace("/customer_profiles/", f"/{word}/"): call for path, call in document["paths"].items()
    }
    if settings.deployment_host is not None:
        host = {"type": "string", "enum": [settings.deployment_host]}
        document["components"]["parameters"]["DestinationHostname"]["schema"] = host
    return json_answer(200, document)


def handle(
    service: Service, method: str, parts: tuple[str, ...], query: Mapping[str, str], body: bytes
) -> EmulatorAnswer:
    """Answer a request under ``/emulator/``; errors are ``{"error": "..."}``.

    Args:
        service: what to read and to switch.
        method: HTTP method.
        parts: the decoded segments of the path.
        query: the decoded parameters of the query.
        body: the request's body, empty when it has none.
    """
    try:
        return _route(service, method, parts, query, body)
    except RefusedError as refusal:
        return json_answer(refusal.status, {"error": refusal.message}, refusal.headers)


def page_of(ids: frozenset[str], after: str = "", limit: int | None = None, search: str = "") -> list[str]:
    """IDs in order: those greater than ``after`` that contain ``search``, at most ``limit``."""
    found = (value for value in ids if value > after and search in value)
    return sorted(found) if limit is None else heapq.nsmallest(limit, found)


def _route(
    service: Service, method: str, parts: tuple[str, ...], query: Mapping[str, str], body: bytes
) -> EmulatorAnswer:
    try:
        environment = service.environment(query.get("environment"))
    except LookupError as error:
        raise RefusedError(404, str(error)) from None
    store = environment.store
    match parts[1:]:
        case ("state",):
            _only(method, "GET")
            return _answer(service.state(environment.name))
        case ("requests",):
            _only(method, "GET")
            return _answer(
                {"requests": [entry.as_dict() for entry in service.log.last()], **service.log.counters()}
            )
        case ("audiences", external_id, "members"):
            _only(method, "GET")
            return _members(store, external_id, query)
        case ("campaign_manager_audiences", internal_id, "members"):
            _only(method, "GET")
            return _members(store, _number(internal_id, "the internal ID"), query)
        case ("profiles",):
            _only(method, "GET")
            profiles = store.attributes()
            shown = {each: profiles[each] for each in _page(frozenset(profiles), query)}
            return _answer({"total": len(profiles), "profiles": shown})
        case ("profiles", profile_id):
            _only(method, "GET")
            profile = store.profile(profile_id)
            if profile is None:
                raise RefusedError(404, "no such profile")
            return _answer({"profile": profile_id, **profile})
        case ("faults",):
            _only(method, "GET", "POST", "DELETE")
            return _faults(service, method, body)
        case ("reset",):
            _only(method, "POST")
            service.reset()
            return EmulatorAnswer(204)
        case _:
            raise RefusedError(404, "not found")


def _members(store: Store, key: AudienceKey, query: Mapping[str, str]) -> EmulatorAnswer:
    try:
        members = store.members(key)
    except UnknownAudienceError:
        raise RefusedError(404, "no such audience") from None
    return _answer({"audience": key, "total": len(members), "members": _page(members, query)})


def _page(ids: frozenset[str], query: Mapping[str, str]) -> list[str]:
    limit = query.get("limit")
    return page_of(ids, query.get("after", ""), None if limit is None else _number(limit, "limit"))


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise RefusedError(400, f"{name} must be a whole number")
    return int(text)


def _faults(service: Service, method: str, body: bytes) -> EmulatorAnswer:
    if method == "DELETE":
        service.clear_faults()
        return EmulatorAnswer(204)
    if method == "POST":
        _set_fault(service, body)
    state = service.state()
    status = 201 if method == "POST" else 200
    return _answer({name: state[name] for name in ("faults", "rejected_profiles")}, status)


def _set_fault(service: Service, body: bytes) -> None:
    try:
        data = loads(body)
    except JsonError as error:
        raise RefusedError(400, f"not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise RefusedError(400, "a fault is an object")
    if set(data) == {"reject_profiles"}:
        service.reject_profiles(_strings(data["reject_profiles"]))
        return
    try:
        service.faults.add(faults.from_json(data))
    except ValueError as error:
        raise RefusedError(400, str(error)) from None


def _strings(value: Json) -> list[str]:
    strings = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(strings) != len(value):
        raise RefusedError(400, "reject_profiles must be a list of profile IDs")
    return strings


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise RefusedError(405, "method not allowed", headers={"Allow": ", ".join(allowed)})


def _answer(value: dict[str, Any], status: int = 200) -> EmulatorAnswer:
    return json_answer(status, value)
