"""The page of one sync: its numbers, from the report in its ledger's folder.

A report has counts, reasons and audience IDs, but no profile IDs. The template escapes all values and loads
no other files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from threading import BoundedSemaphore
from typing import Annotated, Any, Literal

import jinja2
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import ObjectStoragePath
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.storage import (
    Folder,
    as_folder,
    as_ledger_error,
    is_local,
    names_in,
    read_pieces,
)
from airflow_provider_talon_cdp.operators._base import REPORT_KEY

RUNS_SHOWN = 20
AUDIENCES_SHOWN = 20
CHARTS_SHOWN = 6
MAX_BYTES = 2**20
WIDTH, HEIGHT = 720, 140

# Requests that read reports at the same time. If the storage does not answer, the API server's other
# threads stay free.
_READERS = BoundedSemaphore(4)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# STATE_URI/<deployment host>/<name>-<digest of the identity>/reports/<time>-<digest of the run>.json
_NAME = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}\.json"
# Where the digest of the DAG run is in it.
_DAG_RUN = slice(17, 25)
_PLACE = re.compile(
    rf"(?P<ledger>(?:/|[a-z][a-z0-9]*://)(?:[^/]+/)*[\w.:-]+/[\w.-]+-[0-9a-f]{{16}})/reports/(?P<name>{_NAME})",
    re.ASCII,
)
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class ReportedRun(_Strict):
    """A try of a task instance."""

    dag_id: str | None = None
    try_number: int | None = None


class ReportedCounts(_Strict):
    """The counts of a report."""

    read: Count
    removals: Count
    unchanged: Count
    duplicate: Count
    added: Count
    removed: Count
    rejected: dict[str, Count]
    # Reports of earlier versions have none.
    unclear: Count = 0
    unsent: Count
    resumed: Count
    requests: Count
    retries: Count
    throttled: Count
    seconds: float


class ReportedAudience(_Strict):
    """What changed in one audience."""

    added: Count
    removed: Count
    members: int | None


class ReportedVerdict(_Strict):
    """The guard's text, and the arguments that would allow the plan."""

    verdict: str
    allow: str | None = None


class ReportFile(_Strict):
    """The content of a report's file; see ``sync/report.py``."""

    run: ReportedRun
    finished: Annotated[datetime, Field(strict=False)]
    state: Literal["done", "stopped", "refused", "planned"]
    counts: ReportedCounts
    audiences: dict[str, ReportedAudience]
    guard: ReportedVerdict | None
    ledger_version: int | None
    dead_letters: str | None
    throughput: list[tuple[float, int, int]]

    @field_validator("audiences", mode="before")
    @classmethod
    def _named(cls, audiences: Any, info: ValidationInfo) -> Any:
        """Leave out what the context does not name, as validation is most of the time that a page takes."""
        if not info.context or not isinstance(audiences, dict):
            return audiences
        return {key: audiences[key] for key in info.context if key in audiences}

    @property
    def is_plan(self) -> bool:
        """Whether the numbers by audience are planned changes."""
        return self.state in {"planned", "refused"}

    @property
    def verdict(self) -> list[str]:
        """The lines of the guard's text, without the arguments, which are shown separately."""
        if self.guard is None:
            return []
        lines, allow = self.guard.verdict.split("\n"), self.guard.allow
        return list(takewhile(lambda line: not allow or allow not in line, lines))


class NoReportError(Exception):
    """There is no report to show; the text says why."""


def app() -> FastAPI:
    """Return the app. Users who may read the task instance may read its page."""
    served = FastAPI(title="Talon.One sync", docs_url=None, redoc_url=None, openapi_url=None)
    allowed = requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)

    @served.get("/sync/{dag_id}/{task_id}/{map_index}/{run_id:path}", dependencies=[Depends(allowed)])
    def sync(dag_id: str, task_id: str, map_index: str, run_id: str, session: SessionDep) -> HTMLResponse:
        # The UI does not replace the placeholder if a task is not mapped.
        index = int(map_index) if re.fullmatch(r"\d{1,9}", map_index) else -1
        query = XComModel.get_many(
            run_id=run_id, key=REPORT_KEY, dag_ids=dag_id, task_ids=task_id, map_indexes=index, limit=1
        )
        found = session.scalars(query).first()
        # The value as it is: Airflow would make an object of any class that it names.
        place = getattr(found, "value", None)
        # It returns its connection to the pool, which all DAGs need, before the storage is read.
        session.close()
        try:
            return HTMLResponse(render(*_read_in_turn(place, dag_id)), headers=_HEADERS)
        except NoReportError as error:
            page = _TEMPLATES.get_template("nothing.html").render(lines=str(error).split("\n"))
            return HTMLResponse(page, headers=_HEADERS)

    return served


def _read_in_turn(place: object, dag_id: str) -> tuple[ReportFile, list[ReportFile]]:
    if not _READERS.acquire(blocking=False):
        raise NoReportError(
            "The API server is reading other reports.\n"
            "Reload this page in a few seconds. If this persists, the ledgers' storage does not answer."
        )
    try:
        return read(place, dag_id)
    finally:
        _READERS.release()


def read(place: object, dag_id: str) -> tuple[ReportFile, list[ReportFile]]:
    """Return a report, and the reports of the DAG's last runs with that ledger, the oldest first.

    The report itself is the last one of those, too. In the list, reports have only the audiences that have
    a chart: a report of all audiences takes megabytes.

    Raises:
        NoReportError: There is no report at the path, or it is not a report of the DAG.
    """
    if place is None:
        raise NoReportError(
            "This task instance has left no report.\n"
            "A task that sends leaves one when it ends, also when it fails. A task that was skipped, and\n"
            "approve, have none: see the task plan of the group."
        )
    match = _PLACE.fullmatch(place) if isinstance(place, str) else None
    if match is None or ".." in match["ledger"].split("/"):
        raise NoReportError(
            "The path in this task instance's XCom is not that of a report.\n"
            "An XCom backend may keep the path elsewhere, as Airflow's object storage backend does. This\n"
            "page reads only Airflow's database: set [common.io] xcom_objectstorage_threshold to 2000, so\n"
            "that short XComs of the next runs stay there."
        )
    try:
        folder = as_folder(ObjectStoragePath(match["ledger"])) / "reports"
        report = _parsed(folder / match["name"])
        others = sorted(name for name in names_in(folder) if re.fullmatch(_NAME, name))
    except (LedgerError, OSError, ValueError, ImportError) as error:
        raise NoReportError(
            "The API server cannot read the folder of this task's ledger.\n"
            "Workers and the API server must both reach the ledgers: set [talon_cdp] state_uri to an\n"
            f"object store, and its connection for both.\nFolder: {match['ledger']}"
        ) from error
    if report is None and (not others or match["name"] > others[0]) and match["name"] not in others:
        raise NoReportError(
            "This task instance has written no report yet.\n"
            "A task writes it when it ends, also when it fails. Either the task is still running,\n"
            "or its process was killed. See its log."
        )
    if report is None or report.run.dag_id != dag_id:
        raise NoReportError(
            "The report of this task instance does not exist any more, or is not a report.\n"
            "A ledger keeps the reports of its last runs. One of more than 15,000 audiences is not shown."
        )
    # The tasks of a group leave several reports in a DAG run. The last one has the counts of the whole.
    last = {name[_DAG_RUN]: name for name in others if name < match["name"]}
    last.pop(match["name"][_DAG_RUN], None)
    audiences = _largest(report)
    shown = [_only(audiences, report)]
    for name in sorted(last.values(), reverse=True)[:RUNS_SHOWN]:
        earlier = None
        # This run's report is shown, whatever is wrong with an earlier one.
        with suppress(LedgerError, OSError):
            earlier = _parsed(folder / name, audiences if len(audiences) == CHARTS_SHOWN else ())
        if earlier and earlier.run.dag_id == dag_id:
            # This run may lack audiences, as it stopped before it read its ledger.
            audiences = list(dict.fromkeys([*audiences, *_largest(earlier)]))[:CHARTS_SHOWN]
            shown.append(_only(audiences, earlier))
    return report, shown[::-1]


def _largest(report: ReportFile) -> list[str]:
    """Return the audiences that have a chart."""
    members = {key: each.members for key, each in report.audiences.items() if each.members is not None}
    return sorted(members, key=lambda key: (-members[key], key))[:CHARTS_SHOWN]


def _only(audiences: Iterable[str], report: ReportFile) -> ReportFile:
    """Return a report with the numbers of some audiences only."""
    found = {key: report.audiences[key] for key in audiences if key in report.audiences}
    return report.model_copy(update={"audiences": found})


def _parsed(file: Folder, audiences: Collection[str] = ()) -> ReportFile | None:
    """Read a report, or return None if the file does not exist or is not a report.

    Args:
        file: The report's file.
        audiences: The audiences whose numbers are read, if not those of all.
    """
    # Before universal-pathlib 0.3, the question opens the file system.
    with as_ledger_error("read", file):
        is_on_disk = is_local(file)
    if is_on_disk and not Path(file).is_file():
        return None
    data = b""
    try:
        for piece in read_pieces(file):
            data += piece
            if len(data) > MAX_BYTES:
                return None
        return ReportFile.model_validate_json(data, context=audiences)
    except (FileNotFoundError, ValidationError):
        return None


def funnel(report: ReportFile) -> dict[str, Any]:
    """Return two bars: all records by outcome, and below it the records to change by outcome."""
    counts = report.counts
    changes = {
        "added": counts.added,
        "removed": counts.removed,
        "rejected": sum(counts.rejected.values()),
        "unclear": counts.unclear,
    }
    to_add = sum(audience.added for audience in report.audiences.values())
    if report.is_plan and to_add <= counts.unsent:
        changes |= {"to add": to_add, "to remove": counts.unsent - to_add}
    else:
        changes |= {"unsent": counts.unsent}
    to_change = sum(changes.values())
    records = {"unchanged": counts.unchanged, "duplicate": counts.duplicate, "to change": to_change}
    first = _segments(records)
    return {
        "records": first,
        "changes": _segments(changes),
        # The segment of the first bar that the second bar divides.
        "from": first[-1] if to_change else None,
    }


def _segments(parts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Divide a bar into segments; every count above 0 gets a visible width."""
    total = sum(parts.values())
    shown = [(name, count, max(6.0, WIDTH * count / total)) for name, count in parts.items() if count]
    scale = WIDTH / (sum(width for _, _, width in shown) or 1)
    segments, at = [], 0.0
    for name, count, width in shown:
        segments.append(
            {"name": name, "count": count, "share": count / total, "x": at, "width": width * scale}
        )
        at += width * scale
    return segments


def throughput(points: Sequence[tuple[float, int, int]]) -> dict[str, Any] | None:
    """Return bars of the acknowledged changes a second, and marks for responses with status 429.

    Args:
        points: Seconds since the start of the run, acknowledged changes and 429 responses until then.
    """
    # A first point without acknowledged changes is the end of planning.
    began, points = (points[0][0], points[1:]) if points and not points[0][1] else (0.0, points)
    bars, marks = [], []
    for before, (end, acknowledged, throttled) in zip([(began, 0, 0), *points], points, strict=False):
        rate = max(0, acknowledged - before[1]) / max(end - before[0], 0.1)
        bars.append({"start": before[0] - began, "end": end - began, "rate": rate})
        if throttled > before[2]:
            marks.append({"at": (before[0] + end) / 2 - began, "count": throttled - before[2]})
    fastest = max((bar["rate"] for bar in bars), default=0)
    if not fastest:
        return None
    return {
        "bars": bars,
        "marks": marks,
        "top": _rounded(fastest),
        "seconds": max(points[-1][0] - began, 0.01),
    }


def sizes(reports: Sequence[ReportFile]) -> list[dict[str, Any]]:
    """Return a line chart by audience, the largest first: its members after each run that was not a plan."""
    by_audience: dict[str, list[tuple[int, ReportFile]]] = {}
    for report in reports:
        for audience, change in report.audiences.items():
            if not report.is_plan and change.members is not None:
                by_audience.setdefault(audience, []).append((change.members, report))
    charts = []
    for audience in sorted(by_audience, key=lambda key: (-by_audience[key][-1][0], key)):
        runs = by_audience[audience]
        top, last = _rounded(max(members for members, _ in runs)), max(1, len(runs) - 1)
        dots = [
            {
                "x": WIDTH / 2 * at / last if len(runs) > 1 else WIDTH / 4,
                "y": HEIGHT / 2 * (1 - members / top),
                "members": members,
                "state": report.state,
                "finished": report.finished,
            }
            for at, (members, report) in enumerate(runs)
        ]
        charts.append({"audience": audience, "dots": dots, "top": top, "members": runs[-1][0]})
    return charts


def _rounded(value: float) -> int:
    """Round up to a number with one or two significant digits, for an axis."""
    step = int("1".ljust(len(str(int(value))) - 1, "0"))
    return max(1, math.ceil(value / step) * step)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"number": "{:,}".format}


def render(report: ReportFile, reports: Iterable[ReportFile]) -> str:
    """Return the page of a report, with charts of the last runs, which ``read`` returns."""
    charts = sizes(list(reports))
    counted = {key for key, each in report.audiences.items() if each.members is not None}
    return _TEMPLATES.get_template("sync.html").render(
        report=report,
        funnel=funnel(report),
        throughput=throughput(report.throughput),
        charts=charts,
        more_charts=len(counted - {chart["audience"] for chart in charts}),
        audiences=list(report.audiences.items())[:AUDIENCES_SHOWN],
        reasons=sorted(report.counts.rejected.items(), key=lambda reason: (-reason[1], reason[0])),
        width=WIDTH,
        height=HEIGHT,
    )
