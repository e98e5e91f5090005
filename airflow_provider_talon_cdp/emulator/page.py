"""The pages for people: templates in ``templates/``, without a script or anything from elsewhere.

Everything that came over the wire is escaped by the templates; no key is handed to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2

from airflow_provider_talon_cdp.emulator.admin import page_of
from airflow_provider_talon_cdp.emulator.answers import EmulatorAnswer
from airflow_provider_talon_cdp.emulator.exact_json import dumps
from airflow_provider_talon_cdp.emulator.service import EmulatedEnvironment, Service
from airflow_provider_talon_cdp.emulator.store import AudienceKey, AudienceView, UnknownAudienceError

MEMBERS_SHOWN = 100
REQUESTS_SHOWN = 100
AUDIENCES_SHOWN = 500
PATH_SHOWN = 300
DIGITS = 18

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(service: Service, url: str, path: str, query: Mapping[str, str]) -> EmulatorAnswer | None:
    """The page at a path, or ``None`` when there is no page there.

    Args:
        service: what to show.
        url: where the emulator listens.
        path: ``/``, ``/audience`` or ``/profile``.
        query: ``id`` (``internal`` for an audience without an external ID), ``environment``, and for an
            audience ``q`` (part of a member's ID) and ``after`` (where to go on).
    """
    if path == "/favicon.ico":
        return EmulatorAnswer(204)
    if path not in ("/", "/audience", "/profile"):
        return None
    try:
        environment = service.environment(query.get("environment"))
    except LookupError:
        environment = service.environment()
    if path == "/":
        found: dict[str, Any] | None = _overview(service, environment)
    elif path == "/audience":
        found = _audience(environment, query)
    else:
        found = _profile(service, environment, query)
    template = "missing.html" if found is None else f"{path.strip('/') or 'overview'}.html"

    def link(to: str, **fields: object) -> str:
        """An address on this page, in the same environment."""
        fields = {"environment": environment.name or None} | fields
        text = urlencode({name: value for name, value in fields.items() if value is not None})
        return f"{to}?{text}" if text else to

    def link_audience(key: AudienceKey, **fields: object) -> str:
        return link("/audience", **{"id" if isinstance(key, str) else "internal": key}, **fields)

    html = _TEMPLATES.get_template(template).render(
        service=service,
        connection=_connection(service, url, environment),
        url=url,
        **(found or {"path": path, "sought": query.get("id") or query.get("internal", "")}),
        environment=environment,
        link=link,
        link_audience=link_audience,
    )
    return EmulatorAnswer(404 if found is None else 200, html.encode("utf-8"), "text/html", _HEADERS)


def _connection(service: Service, url: str, environment: EmulatedEnvironment) -> str:
    """The connection as JSON. Nothing in it has a single quote, so that a shell takes it between two."""
    extra = {
        "deployment_host": service.settings.deployment_host or "any.talon.one",
        "platform_name": "Local emulator",
    }
    if environment.name:
        extra["environment"] = environment.name
    fields = {
        "conn_type": "talon_cdp",
        "host": url,
        "password": "the API key of the emulator",
        "extra": extra,
    }
    return json.dumps(fields, indent=2).replace("'", "\\u0027")


def _overview(service: Service, environment: EmulatedEnvironment) -> dict[str, Any]:
    store = environment.store
    audiences: list[tuple[AudienceKey, AudienceView]] = [
        *store.audiences().items(),
        *store.campaign_manager_audiences().items(),
    ]
    requests = []
    for entry in reversed(service.log.last()[-REQUESTS_SHOWN:]):
        path = entry.path + (f"?{entry.query}" if entry.query else "")
        requests.append((entry, path if len(path) <= PATH_SHOWN else f"{path[:PATH_SHOWN]}..."))
    return {
        "audiences": audiences[:AUDIENCES_SHOWN],
        "audience_count": len(audiences),
        "profile_count": store.profile_count(),
        "faults": [dumps(fault) for fault in service.faults.pending()],
        "counters": service.log.counters(),
        "requests": requests,
    }


def _audience(environment: EmulatedEnvironment, query: Mapping[str, str]) -> dict[str, Any] | None:
    store = environment.store
    key: AudienceKey = query.get("id", "")
    internal = query.get("internal", "")
    if internal.isascii() and internal.isdigit() and len(internal) <= DIGITS:
        key = int(internal)
    search, after = query.get("q", ""), query.get("after", "")
    try:
        audience, members = store.audience(key), store.members(key)
    except UnknownAudienceError:
        return None
    found = page_of(members, after, MEMBERS_SHOWN + 1, search)
    return {
        "key": key,
        "audience": audience,
        "sought": search,
        "after": after,
        "members": found[:MEMBERS_SHOWN],
        "more": len(found) > MEMBERS_SHOWN,
        "shown": MEMBERS_SHOWN,
    }


def _profile(
    service: Service, environment: EmulatedEnvironment, query: Mapping[str, str]
) -> dict[str, Any] | None:
    profile_id = query.get("id", "")
    profile, stored = environment.store.profile(profile_id), environment.store.stored_profile(profile_id)
    if profile is None or stored is None:
        return None
    attributes = [
        (name, dumps(value), service.attributes.get(name, ""))
        for name, value in sorted(profile["attributes"].items())
    ]
    return {
        "profile_id": profile_id,
        "attributes": attributes,
        "audiences": profile["audiences"],
        "stored": stored,
    }
