"""What a sync did, in counts that balance; and a file of it, for whoever looks at a task later.

```
<ledger's folder>/reports/<UTC time of the start>-<digest of the DAG run><random>.json
{"run": {"dag_id", "run_id", "task_id", "map_index", "try_number"},   null where it is not known
 "finished": time in ISO 8601,
 "state": "done" | "stopped" | "refused" | "planned",                 see Report
 "counts": {"read", "removals", "resumed", "unchanged", "sent", "added", "removed", "duplicate",
            "rejected": {reason: number}, "unclear", "unsent", "requests", "retries", "throttled",
            "seconds"},
 "audiences": {ID: {"added", "removed", "members"}},                  of a plan and of a refused one: planned
 "guard": null | {"verdict", "allow"},                                why nothing was sent
 "ledger_version": null | number,
 "dead_letters": null | folder,
 "throughput": [[seconds since the start, acknowledged, throttled], ...]}
```

Attributes of profiles count as one audience, ``profiles``. ``members`` is null where no ledger tells. The
file has no profile ID and no attribute's value.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.storage import Folder, names_in, read_pieces, remove, write_bytes

log = logging.getLogger(__name__)

State = Literal["done", "stopped", "refused", "planned"]
REPORTS = "reports"
RUN = ("dag_id", "run_id", "task_id", "map_index", "try_number")

# Audiences that a log names one by one.
_NAMED = 20
# DAG runs whose reports are kept: a mapped task has several in one run.
_KEPT = 20
# A larger share of throttled requests is worth a warning.
_MOST_THROTTLED = 0.02
# Points of a curve, at the most.
_POINTS = 200
# What the names of a DAG run's reports have in common: a digest, after the time and a hyphen.
_TIME, _DIGEST = 17, 8
_NOT_COUNTS = {"dead_letters", "ledger_version", "suspicious", "verdict", "report_file"}


@dataclass(kw_only=True)
class Report(Counts):
    """The counts of a sync, and where it left what.

    Args:
        seconds: Wall-clock duration.
        dead_letters: Folder of the rejected records, or None.
        ledger_version: Version of the ledger after a mirror, or None.
        suspicious: Profile IDs that are valid and look wrong, by kind; see ``suspicious``.
        verdict: What the guard says to a dry run, or why a run did nothing; else None.
        allow: The argument that would allow what was refused, or None.
        state: ``done``: it ran to its end, whatever was rejected. ``stopped``: it ended early. ``refused``:
            the guard, or newer data in the ledger, let nothing be sent. ``planned``: a plan is in force, for
            other processes to push.
        report_file: Where the report is written, or None.
        began: When the sync began, on the monotonic clock.
        throughput: Seconds since then, acknowledged changes and answers 429, from time to time.
    """

    seconds: float = 0.0
    dead_letters: str | None = None
    ledger_version: int | None = None
    suspicious: Mapping[str, int] = field(default_factory=dict)
    verdict: str | None = None
    allow: str | None = None
    state: State = "stopped"
    report_file: str | None = None
    began: float = field(default_factory=time.monotonic, compare=False)
    throughput: list[tuple[float, int, int]] = field(default_factory=list, compare=False)

    def summary(self) -> dict[str, Any]:
        """Return the report as a small JSON object, fit for XCom."""
        return {
            "read": self.read,
            "removals": self.removals.total(),
            "resumed": self.resumed,
            "unchanged": self.unchanged,
            "sent": self.sent,
            "added": self.added.total(),
            "removed": self.removed.total(),
            "duplicate": self.duplicate,
            "rejected": dict(self.rejected),
            "unclear": self.unclear,
            "unsent": self.unsent,
            "requests": self.requests,
            "retries": self.retries,
            "throttled": self.throttled,
            "seconds": round(self.seconds, 3),
            "dead_letters": self.dead_letters,
            "ledger_version": self.ledger_version,
            "suspicious": dict(self.suspicious),
            "verdict": self.verdict,
            "report_file": self.report_file,
        }

    @classmethod
    def of(cls, summary: Mapping[str, Any], planned: Mapping[str, Mapping[str, int]] = {}) -> Report:
        """Make a report of its summary.

        Args:
            summary: Of a report.
            planned: Of a plan's report, the audiences in its file; without them, nothing is divided by
                audience.
        """
        given = {name: value for name, value in summary.items() if name != "sent"}
        for name in ("removals", "added", "removed"):
            given[name] = Counter({"": given[name]} if given[name] else {})
        report = cls(**given | {"rejected": Counter(given["rejected"])})
        if planned:
            report.removals = Counter({each: numbers["removed"] for each, numbers in planned.items()})
            for audience, numbers in planned.items():
                report.known[audience] = numbers["members"] - numbers["added"] + numbers["removed"]
        return report

    def document(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the report's file holds.

        Args:
            run: Which try of which task.
        """
        summary = self.summary()
        return {
            "run": {name: run.get(name) for name in RUN},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": self.state,
            "counts": {name: number for name, number in summary.items() if name not in _NOT_COUNTS},
            "audiences": self.by_audience(),
            "guard": None if self.verdict is None else {"verdict": self.verdict, "allow": self.allow},
            "ledger_version": self.ledger_version,
            "dead_letters": self.dead_letters,
            "throughput": self.throughput,
        }

    @property
    def throttling(self) -> str:
        """What to do where many requests were throttled; else empty."""
        if self.throttled <= _MOST_THROTTLED * self.requests:
            return ""
        share = self.throttled / self.requests
        return (
            f"{self.throttled:,} of {self.requests:,} requests were throttled ({share:.0%}): Talon.One takes "
            "fewer than were sent.\n"
            "Other tasks may use the same API key at the same time: have them follow one another, with\n"
            "pool= on these tasks or [talon_cdp] pool in Airflow's configuration.\n"
            "If there are none, lower Requests per second on the connection."
        )

    def note_throughput(self, throttled: int, *, ends: bool = False) -> None:
        """Keep a point of the curve, unless the last one is close.

        Args:
            throttled: Answers 429 that are not counted here yet.
            ends: Whether this is the last point, which is kept in any case.
        """
        points, seconds = self.throughput, round(time.monotonic() - self.began, 2)
        if points and not ends and seconds - points[-1][0] < seconds / _POINTS:
            return
        if len(points) >= _POINTS:
            del points[1::2]
        points.append((seconds, self.sent, self.throttled + throttled))

    def plan_anew(self) -> None:
        """Count the members from the next plan on, whose ``known`` has what was sent so far."""
        self.known = Counter(self.removed)
        self.known.subtract(self.added)

    def by_audience(self) -> dict[str, dict[str, int | None]]:
        """Return what changed in each audience, and how many members it has now as far as the ledger knows.

        Of a plan and of a refused one, what it would change. Empty where the changes were not counted by
        audience.
        """
        is_plan = self.state in ("planned", "refused")
        added, removed = (self.additions, self.removals) if is_plan else (self.added, self.removed)
        if "" in added or "" in removed:
            return {}
        # What is sent without need changes no number; where not all was acknowledged, that is taken to come
        # last.
        return {
            audience: {
                "added": added[audience],
                "removed": removed[audience],
                "members": None
                if self.ledger_version is None
                else self.known[audience]
                + max(0, added[audience] - self.repeated[audience])
                - max(0, removed[audience] - self.unacknowledged_removals[audience]),
            }
            for audience in sorted(self.known.keys() | added.keys() | removed.keys())
        }

    def lines(self) -> list[str]:
        """Return the report in lines that fit on a screen."""
        unchanged = f"{self.unchanged:,} unchanged + {self.sent:,} sent + {self.duplicate:,} duplicate"
        unclear = f" + {self.unclear:,} unclear" if self.unclear else ""
        sent = f"sent: {self.added.total():,} added, {self.removed.total():,} removed"
        attempts = f"({self.retries:,} retries, {self.throttled:,} throttled)"
        lines = [
            f"{self.read:,} read + {self.removals.total():,} to remove + {self.resumed:,} resumed",
            f"= {unchanged} + {self.rejected.total():,} rejected{unclear} + {self.unsent:,} unsent",
            f"{sent}; {self.requests:,} requests {attempts} in {self.seconds:.1f} s",
        ]
        lines += [f"rejected: {count:,} x {reason}" for reason, count in sorted(self.rejected.items())]
        by_audience = self.by_audience()
        if len(by_audience) > 1:
            lines += [
                f"audience {audience!r}: {numbers['added']:,} added, {numbers['removed']:,} removed"
                + ("" if numbers["members"] is None else f", {numbers['members']:,} members")
                for audience, numbers in list(by_audience.items())[:_NAMED]
            ]
            if len(by_audience) > _NAMED:
                lines.append(f"... and {len(by_audience) - _NAMED:,} more audiences")
        if self.dead_letters:
            lines.append(f"dead letters: {self.dead_letters}")
        if len(by_audience) > _NAMED and self.report_file:
            lines.append(f"all audiences: {self.report_file}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def report_path(folder: Folder, run: Mapping[str, Any]) -> Folder:
    """Name the file of a report that begins now.

    Args:
        folder: The ledger's.
        run: Which try of which task.
    """
    of_dag_run = json.dumps([run.get("dag_id"), run.get("run_id") or uuid4().hex])
    digest = hashlib.sha256(of_dag_run.encode()).hexdigest()[:_DIGEST]
    return folder / REPORTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest}{uuid4().hex[:_DIGEST]}.json"


def write_report(report: Report, path: Folder, run: Mapping[str, Any]) -> None:
    """Write a report into its file, and delete those of old DAG runs. Where that fails, a sync is not red."""
    try:
        write_bytes(path, json.dumps(report.document(run)).encode() + b"\n")
        names = sorted(names_in(path.parent), reverse=True)
        runs = list(dict.fromkeys(map(_dag_run, names)))
        for name in names:
            if _dag_run(name) in runs[_KEPT:]:
                remove(path.parent / name)
    except LedgerError as error:
        log.warning("The report cannot be written.\n%s", error)


def planned_audiences(path: Folder) -> Mapping[str, Mapping[str, int]]:
    """Read what a plan would change in each audience from the file of its report; empty where it is lost."""
    try:
        audiences: Mapping[str, Mapping[str, int]] = json.loads(b"".join(read_pieces(path)))["audiences"]
    except (FileNotFoundError, LedgerError, ValueError, LookupError, TypeError) as error:
        log.warning(
            "The numbers of single audiences are lost, as the plan's report cannot be read.\n%s", error
        )
        return {}
    return audiences


def _dag_run(name: str) -> str:
    return name[_TIME : _TIME + _DIGEST]
