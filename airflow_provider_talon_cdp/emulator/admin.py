"""Reading back and switching faults over HTTP, for other processes: everything under ``/emulator/``. No key needed."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from airflow_provider_talon_cdp.emulator import faults
from airflow_provider_talon_cdp.emulator.answers import Answer, Refusal, json_answer
from airflow_provider_talon_cdp.emulator.exact_json import Json, JsonError, loads
from airflow_provider_talon_cdp.emulator.service import Service
from airflow_provider_talon_cdp.emulator.store import UnknownAudience


def handle(
    service: Service, method: str, parts: tuple[str, ...], query: Mapping[str, str], body: bytes
) -> Answer:
    """Answer a request under ``/emulator/``; errors are ``{"error": "..."}``.

    :param parts: the decoded segments of the path.
    """
    try:
        return _route(service, method, parts, query, body)
    except Refusal as refusal:
        return json_answer(refusal.status, {"error": refusal.message}, refusal.headers)


def page_of(ids: frozenset[str], after: str = "", limit: int | None = None, search: str = "") -> list[str]:
    """IDs in order: those greater than ``after`` that contain ``search``, at most ``limit``."""
    found = (value for value in ids if value > after and search in value)
    return sorted(found) if limit is None else heapq.nsmallest(limit, found)


def _route(
    service: Service, method: str, parts: tuple[str, ...], query: Mapping[str, str], body: bytes
) -> Answer:
    match parts[1:]:
        case ("state",):
            _only(method, "GET")
            return _answer(service.state())
        case ("requests",):
            _only(method, "GET")
            return _answer(
                {"requests": [entry.as_dict() for entry in service.log.last()], **service.log.counters()}
            )
        case ("audiences", external_id, "members"):
            _only(method, "GET")
            return _members(service, external_id, query)
        case ("profiles", profile_id):
            _only(method, "GET")
            profile = service.store.profile(profile_id)
            if profile is None:
                raise Refusal(404, "no such profile")
            return _answer({"profile": profile_id, **profile})
        case ("faults",):
            _only(method, "GET", "POST", "DELETE")
            return _faults(service, method, body)
        case ("reset",):
            _only(method, "POST")
            service.reset()
            return Answer(204)
        case _:
            raise Refusal(404, "not found")


def _members(service: Service, external_id: str, query: Mapping[str, str]) -> Answer:
    try:
        members = service.store.members(external_id)
    except UnknownAudience:
        raise Refusal(404, "no such audience") from None
    limit = query.get("limit")
    if limit is not None and not (limit.isascii() and limit.isdigit() and 1 <= len(limit) <= 9):
        raise Refusal(400, "limit must be a whole number")
    shown = page_of(members, query.get("after", ""), None if limit is None else int(limit))
    return _answer({"audience": external_id, "total": len(members), "members": shown})


def _faults(service: Service, method: str, body: bytes) -> Answer:
    if method == "DELETE":
        service.clear_faults()
        return Answer(204)
    if method == "POST":
        _set_fault(service, body)
    state = service.state()
    status = 201 if method == "POST" else 200
    return _answer({name: state[name] for name in ("faults", "rejected_profiles")}, status)


def _set_fault(service: Service, body: bytes) -> None:
    try:
        data = loads(body)
        if not isinstance(data, dict):
            raise ValueError("a fault is an object")
        if set(data) == {"reject_profiles"}:
            service.reject_profiles(_strings(data["reject_profiles"]))
        else:
            service.faults.add(faults.from_json(data))
    except JsonError as error:
        raise Refusal(400, f"not valid JSON: {error}") from None
    except ValueError as error:
        raise Refusal(400, str(error)) from None


def _strings(value: Json) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("reject_profiles must be a list of profile IDs")
    strings = [item for item in value if isinstance(item, str)]
    if len(strings) != len(value):
        raise ValueError("reject_profiles must be a list of profile IDs")
    return strings


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise Refusal(405, "method not allowed", headers={"Allow": ", ".join(allowed)})


def _answer(value: dict[str, Any], status: int = 200) -> Answer:
    return json_answer(status, value)
