"""The page for people: plain HTML, made on the server, without a script or anything from elsewhere.

Everything that came over the wire goes through :func:`_code` or :func:`escape`; a key is nowhere near.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from urllib.parse import urlencode

from airflow_provider_talon_cdp.emulator.admin import page_of
from airflow_provider_talon_cdp.emulator.answers import Answer
from airflow_provider_talon_cdp.emulator.exact_json import dumps
from airflow_provider_talon_cdp.emulator.request_log import NO_ANSWER, LoggedRequest
from airflow_provider_talon_cdp.emulator.routes import UPDATE_PROFILE
from airflow_provider_talon_cdp.emulator.service import Service
from airflow_provider_talon_cdp.emulator.store import UnknownAudienceError

MEMBERS_SHOWN = 100
REQUESTS_SHOWN = 100
AUDIENCES_SHOWN = 500
PATH_SHOWN = 300

_STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_GOOD, _OTHER = range(200, 300), range(300, 500)
_BACK = '<nav><a href="/">All audiences and requests</a></nav>'


def render(service: Service, url: str, path: str, query: Mapping[str, str]) -> Answer | None:
    """The page at a path, or ``None`` when there is no page there.

    Args:
        service: what to show.
        url: where the emulator listens.
        path: ``/``, ``/audience`` or ``/profile``.
        query: ``id``, and for an audience ``q`` (part of a member's ID) and ``after`` (where to go on).
    """
    if path == "/":
        return _page(service, url, "", _overview(service))
    if path == "/audience":
        return _audience(service, url, query.get("id", ""), query.get("q", ""), query.get("after", ""))
    if path == "/profile":
        return _profile(service, url, query.get("id", ""))
    if path == "/favicon.ico":
        return Answer(204)
    return None


def _page(service: Service, url: str, title: str, body: str, status: int = 200) -> Answer:
    settings = service.settings
    connection = {
        "conn_type": "talon_cdp",
        "host": url,
        "password": "the emulator's API key",
        "extra": {
            "deployment_host": settings.deployment_host or "any.talon.one",
            "platform_name": "Local emulator",
        },
    }
    shown = "AIRFLOW_CONN_TALON_CDP_DEFAULT='" + json.dumps(connection, indent=2).replace("'", "'\\''") + "'"
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(f"{title} - " if title else "")}Talon.One emulator</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1><a href="/">Talon.One emulator</a></h1>
<p class="faint">A local stand-in for Talon.One's CDP API at <code>{escape(url)}</code>. Nothing here reaches Talon.One.</p>
<details><summary>Point an Airflow connection at it</summary>
<p>Put this in the environment of Airflow, or enter the same fields in the connection form.</p>
<pre>{escape(shown)}</pre>
</details>
</header>
<main>
{body}
</main>
<footer class="faint">For programs: <a href="/emulator/state">state</a>, <a href="/emulator/requests">requests</a>,
<a href="/openapi.json">OpenAPI document</a>.</footer>
</body>
</html>
"""
    return Answer(status, html.encode("utf-8"), "text/html", _HEADERS)


def _overview(service: Service) -> str:
    audiences = service.store.audiences()
    counters = service.log.counters()
    rows = [
        f"<tr><td>{escape(audience['name'])}</td><td class=id>{_link('audience', external_id)}</td>"
        f"<td class=num>{audience['id']}</td><td class=num>{audience['members']:,}</td>"
        f"<td class=still>{_time(audience['created'])}</td></tr>"
        for external_id, audience in list(audiences.items())[:AUDIENCES_SHOWN]
    ]
    more = (
        f"<p class=faint>The first {len(rows)} of {len(audiences):,}.</p>"
        if len(audiences) > len(rows)
        else ""
    )
    table = _table(("Name", "External ID", "Internal ID|num", "Members|num", "Created (UTC)"), rows)
    waiting = service.faults.pending()
    faults = ""
    if waiting:
        items = "".join(f"<li><code>{escape(dumps(fault))}</code></li>" for fault in waiting)
        faults = f"<section><h2>Faults to come</h2><ol>{items}</ol></section>"
    requests = [_request(entry) for entry in reversed(service.log.last()[-REQUESTS_SHOWN:])]
    columns = ("Time (UTC)", "Method", "Path", "Status", "Changes|num", "RequestUUID")
    counts = "".join(
        f"<span>{_badge(None if status == NO_ANSWER else int(status))} {count:,}</span>"
        for status, count in counters["by_status"].items()
    )
    kept = f"<p class=counts>{counts}<span class=faint>Shown: the last {len(requests)}.</span></p>"
    return f"""<div class=top><dl class=sum>
<div><dt>audiences</dt><dd>{len(audiences):,}</dd></div>
<div><dt>profiles</dt><dd>{service.store.profile_count():,}</dd></div>
<div><dt>requests</dt><dd>{counters["total"]:,}</dd></div>
</dl>{_search("/profile", "id", "", "Find a profile by its ID", {})}</div>
<section><h2>Audiences</h2>{table or "<p class=faint>None yet: create one.</p>"}{more}</section>
{faults}
<section><h2>Requests</h2>{kept + _table(columns, requests) if requests else "<p class=faint>None yet.</p>"}
</section>"""


def _audience(service: Service, url: str, external_id: str, search: str, after: str) -> Answer:
    view = service.store.audiences().get(external_id)
    try:
        members = service.store.members(external_id)
    except UnknownAudienceError:
        view = None
    if view is None:
        return _missing(service, url, f"There is no audience with the ID {_code(external_id)}.")
    found = page_of(members, after, MEMBERS_SHOWN + 1, search)
    shown = found[:MEMBERS_SHOWN]
    items = "".join(f"<li>{_link('profile', member)}</li>" for member in shown)
    links = [("From the start", {"id": external_id, "q": search})] if after else []
    if len(found) > len(shown):
        links.append((f"Next {MEMBERS_SHOWN}", {"id": external_id, "q": search, "after": shown[-1]}))
    nav = "".join(f'<a href="/audience?{escape(urlencode(fields))}">{label}</a>' for label, fields in links)
    body = f"""{_BACK}<section><h2>{escape(view["name"])}</h2>
<p class=faint>External ID {_code(external_id)}, internal ID <code>{view["id"]}</code>,
created {_time(view["created"])} UTC, <strong>{len(members):,}</strong> {_plural(len(members), "member")}</p></section>
<section><h2>Members</h2>{_search("/audience", "q", search, "Part of a profile ID", {"id": external_id})}
<nav>{nav}</nav><ul class=ids>{items}</ul>{"" if shown else "<p class=faint>No member here.</p>"}
<nav>{nav}</nav></section>"""
    return _page(service, url, view["name"], body)


def _profile(service: Service, url: str, profile_id: str) -> Answer:
    profile = service.store.profile(profile_id)
    if profile is None:
        return _missing(service, url, f"The profile {_code(profile_id)} has not been seen here.")
    declared = service.settings.attributes
    attributes = [
        f"<tr><td>{_code(name)}</td><td>{_code(dumps(value))}</td><td class=faint>{escape(declared.get(name, ''))}</td></tr>"
        for name, value in sorted(profile["attributes"].items())
    ]
    table = _table(("Attribute", "Value, as JSON", "Type" if declared else ""), attributes)
    inside = "".join(f"<li>{_link('audience', audience)}</li>" for audience in profile["audiences"])
    body = f"""{_BACK}<section><h2>Profile {_code(profile_id)}</h2>{_search("/profile", "id", "", "Another profile ID", {})}</section>
<section><h2>Audiences</h2><ul class=ids>{inside}</ul>{"" if inside else "<p class=faint>In none.</p>"}</section>
<section><h2>Attributes</h2>{table or "<p class=faint>None set.</p>"}</section>"""
    return _page(service, url, profile_id, body)


def _missing(service: Service, url: str, sentence: str) -> Answer:
    form = _search("/profile", "id", "", "Profile ID", {})
    return _page(
        service, url, "Not found", f"<section><h2>Not found</h2><p>{sentence}</p><p></p>{form}</section>", 404
    )


def _request(entry: LoggedRequest) -> str:
    note = f"fault: {entry.fault}" if entry.fault else ""
    if entry.operation == UPDATE_PROFILE and entry.path == "/cdp/customer_profile/audiences":
        # The trap in the path: this looks like a multi-profile call, and is none.
        note = "the profile named audiences"
    path = entry.path + (f"?{entry.query}" if entry.query else "")
    path = path if len(path) <= PATH_SHOWN else f"{path[:PATH_SHOWN]}..."
    return (
        f'<tr><td class=still title="{escape(entry.time)}">{escape(entry.time[11:19])}</td>'
        f"<td>{escape(entry.method)}</td><td class=id>{_code(path)}</td>"
        f"<td>{_badge(entry.status)} <span class=faint>{escape(note)}</span></td>"
        f"<td class=num>{entry.changes:,}</td><td class=still>{_code(entry.request_uuid)}</td></tr>"
    )


def _badge(status: int | None) -> str:
    shade = "good" if status in _GOOD else "warn" if status in _OTHER else "bad"
    return f'<span class="status {shade}">{"no answer" if status is None else status}</span>'


def _table(columns: Iterable[str], rows: list[str]) -> str:
    """A table, or nothing without rows; a column that ends in ``|num`` is aligned as numbers are."""
    if not rows:
        return ""
    cells = (column.partition("|") for column in columns)
    head = "".join(f"<th class={kind}>{name}</th>" if kind else f"<th>{name}</th>" for name, _, kind in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _search(action: str, name: str, value: str, label: str, hidden: Mapping[str, str]) -> str:
    fields = "".join(
        f'<input type=hidden name="{key}" value="{escape(text)}">' for key, text in hidden.items()
    )
    return (
        f'<form action="{action}">{fields}<input name="{name}" value="{escape(value)}" placeholder="{label}" '
        f'aria-label="{label}"><button>Search</button></form>'
    )


def _link(kind: str, identifier: str) -> str:
    return f'<a href="/{kind}?{escape(urlencode({"id": identifier}))}">{_code(identifier)}</a>'


def _code(text: str) -> str:
    # <bdi> keeps right-to-left characters of an ID from turning the rest of the line around.
    return f"<code><bdi>{escape(text)}</bdi></code>"


def _time(rfc3339: str) -> str:
    return escape(rfc3339[:19].replace("T", " "))


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
