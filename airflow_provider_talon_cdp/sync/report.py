"""What a sync did, as counts that add up, and the file that keeps them for people who look at a task later.

The file is ``reports/<UTC time of the start>-<digest of the DAG run><random>.json`` in the ledger's folder;
docs/mirrors.md says what is in it. It has no profile ID and no attribute's value.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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

# Audiences that are named in a log.
_NAMED = 20
# DAG runs whose reports are kept. A mapped task and a group have several reports in one run.
_KEPT = 20
# Above this share of throttled requests there is a warning.
_MOST_THROTTLED = 0.02
# Most points of the throughput curve.
_POINTS = 200
# Where the DAG run's digest is in the name of a report's file, after the time and a hyphen.
_DIGEST_START, _DIGEST_LENGTH = 17, 8
_NOT_COUNTS = {"dead_letters", "ledger_version", "suspicious", "verdict", "report_file"}


@dataclass(kw_only=True)
class Report(Counts):
    """The counts of a sync, its result, and where its files are.

    Args:
        seconds: Wall-clock duration.
        dead_letters: Folder of the rejected records, or None.
        ledger_version: Version of the ledger after a mirror, or None.
        suspicious: Profile IDs that are valid but look wrong, by kind; see ``suspicious``.
        verdict: The guard's decision on a dry run, or why a run did not send its plan; else None.
        allow: The arguments that would allow what was refused, or None.
        state: ``done``: the sync was not interrupted, whatever was rejected; with a verdict, it finished the
            plan of an earlier try and skipped its own. ``stopped``: it ended early.
            ``refused``: the guard, or newer data in the ledger, prevented it. ``planned``: a plan is
            current, for other processes to push.
        report_file: Path of the report's file, or None.
        began: When the sync began, in seconds of the monotonic clock.
        throughput: Points of a curve: seconds since then, acknowledged changes, responses with status 429.
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
        """Return the report as a small JSON object for XCom."""
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
        """Rebuild a report from its summary.

        Args:
            summary: Summary of a report.
            planned: The ``audiences`` of a plan's report file. Without them there are no counts by audience.
        """
        # A worker with a newer version of this package may have put more into it.
        values = {each.name: summary[each.name] for each in fields(cls) if each.name in summary}
        for name in ("removals", "added", "removed"):
            values[name] = Counter({"": values[name]} if values[name] else {})
        report = cls(**values | {"rejected": Counter(values["rejected"])})
        if planned:
            report.removals = Counter({key: numbers["removed"] for key, numbers in planned.items()})
            for audience, numbers in planned.items():
                report.known[audience] = numbers["members"] - numbers["added"] + numbers["removed"]
        return report

    def document(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of the report's file."""
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
        """What to do if many requests were throttled; else empty."""
        if self.throttled <= _MOST_THROTTLED * self.requests:
            return ""
        share = self.throttled / self.requests
        return (
            f"{self.throttled:,} of {self.requests:,} requests were throttled ({share:.0%}): more were "
            "sent than Talon.One accepts.\n"
            "If other tasks use the same API key at the same time, let them run one after another, with\n"
            "pool= on these tasks or [talon_cdp] pool in Airflow's configuration.\n"
            "If no other tasks do, lower Requests per second on the connection."
        )

    def note_throughput(self, throttled: int, *, ends: bool = False) -> None:
        """Add a point to the throughput curve, unless the last one is recent.

        Args:
            throttled: Responses with status 429 that this report does not count yet.
            ends: Whether this is the last point, which is always added.
        """
        points, seconds = self.throughput, round(time.monotonic() - self.began, 2)
        if points and not ends and seconds - points[-1][0] < seconds / _POINTS:
            return
        if len(points) >= _POINTS:
            del points[1::2]
        points.append((seconds, self.sent, self.throttled + throttled))

    def plan_anew(self) -> None:
        """Prepare ``known`` for the next plan, whose known members include what was sent so far."""
        self.known = Counter(self.removed)
        self.known.subtract(self.added)

    def by_audience(self) -> dict[str, dict[str, int | None]]:
        """Return what changed in each audience, and how many members it has now according to the ledger.

        The audience with the most removals comes first. For a report that is planned or refused, what would
        change. Empty if the changes were not counted by audience.
        """
        is_plan = self.state in ("planned", "refused")
        added, removed = (self.additions, self.removals) if is_plan else (self.added, self.removed)
        if "" in added or "" in removed:
            return {}
        known = Counter(self.known)
        if is_plan:
            # Before the plan, that of an earlier try may have been sent.
            known.update(self.added)
            known.subtract(self.removed)
        # Repeated changes do not alter the number of members. If not all changes were acknowledged, the
        # repeated ones are assumed to be the missing ones.
        return {
            audience: {
                "added": added[audience],
                "removed": removed[audience],
                "members": None
                if self.ledger_version is None
                else known[audience]
                + max(0, added[audience] - self.repeated[audience])
                - max(0, removed[audience] - self.unacknowledged_removals[audience]),
            }
            for audience in sorted(
                known.keys() | added.keys() | removed.keys(),
                key=lambda audience: (-removed[audience], -added[audience], audience),
            )
        }

    def lines(self) -> list[str]:
        """Return the report as lines of a log."""
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
    """Return a path for the report of a sync that begins now."""
    of_dag_run = json.dumps([run.get("dag_id"), run.get("run_id") or uuid4().hex])
    digest = hashlib.sha256(of_dag_run.encode()).hexdigest()[:_DIGEST_LENGTH]
    return (
        folder / REPORTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest}{uuid4().hex[:_DIGEST_LENGTH]}.json"
    )


def write_report(report: Report, path: Folder, run: Mapping[str, Any]) -> None:
    """Write a report's file and delete those of old DAG runs. If that fails, there is only a warning."""
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
    """Read the planned changes by audience from the file of a plan's report; empty if it cannot be read."""
    try:
        audiences: Mapping[str, Mapping[str, int]] = json.loads(b"".join(read_pieces(path)))["audiences"]
    except (FileNotFoundError, LedgerError, ValueError, LookupError, TypeError) as error:
        log.warning("There are no numbers by audience, as the plan's report cannot be read.\n%s", error)
        return {}
    return audiences


def _dag_run(name: str) -> str:
    return name[_DIGEST_START : _DIGEST_START + _DIGEST_LENGTH]
