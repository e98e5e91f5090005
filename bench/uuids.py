"""IDs as they are: UUIDs, in a table in no order with three more columns, as an export leaves it.

The measure is the CPU time of SQLite's own cursor with ORDER BY, which reads the IDs and does no more. The
stub answers within 50 ms, and there is no limit.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from harness import CHURN, Bench, Contender
from job import BATCH, Job
from mirror import FETCH, mirror
from report import Section, Target, results_table

SIZE, UNSORTED = 1_000_000, 3_000_000
SERVICE_TIME = ("--service-time", "0.05")
CURSOR, FIRST, CHURNED = "SQLite's ordered cursor", "first mirror", "mirror, 2 % churn"
READ, SORTED = "cursor in no order", "sorted on the worker's disk"


def ordered_cursor(job: Job) -> None:
    """Read the IDs in order, and do nothing with them."""
    _read(job, " ORDER BY profile_id")


def cursor(job: Job) -> None:
    """Read the IDs in no order, and do nothing with them."""
    _read(job)


def sorted_here(job: Job) -> None:
    """Read the IDs in no order, and sort them as a mirror does where no database can."""
    from airflow_provider_talon_cdp.changes.change import read_members
    from airflow_provider_talon_cdp.changes.spool import sorted_members

    with closing(sqlite3.connect(job.warehouse)) as database:
        rows = database.execute("SELECT profile_id FROM customers")
        blocks = iter(lambda: rows.fetchmany(FETCH), [])
        records = (each for block in blocks for each in read_members([row[0] for row in block], "vip", "add"))
        for _ in sorted_members(records):
            """Sorted."""


def run(bench: Bench) -> Section:
    """Measure a first mirror, one of 2 % churn and the sort beside SQLite's cursor."""
    size, unsorted = bench.rows(SIZE), bench.rows(UNSORTED)
    ledger = bench.folder / "ledger-uuids"
    first = _contender(FIRST, mirror, size, math.ceil(size / BATCH))
    bench.measure(first, keep=ledger)
    results = bench.medians(
        [
            _contender(CURSOR, ordered_cursor, size, 0),
            first,
            # One request more asks whether the audience is still there.
            _contender(
                CHURNED, mirror, size, math.ceil(2 * math.ceil(size / CHURN) / BATCH) + 1, start_from=ledger
            ),
            _contender(READ, cursor, unsorted, 0),
            _contender(SORTED, sorted_here, unsorted, 0),
        ]
    )
    least = results[CURSOR].cpu
    sort = (results[SORTED].cpu - results[READ].cpu) / unsorted * 1_000_000
    megabytes = sum(each.stat().st_size for each in ledger.rglob("*") if each.is_file()) / 1_000_000
    a_million = megabytes / size * 1_000_000
    targets = [
        _target("first mirror of 1,000,000 UUIDs: CPU", results[FIRST].cpu / least, 1.7),
        _target("mirror of 2 % churn: CPU", results[CHURNED].cpu / least, 1.5),
        Target("ledger on disk", "<= 19 MB a version a million", f"{a_million:.1f} MB", a_million <= 19, ""),
        Target(
            "sort of 3,000,000 UUIDs in no order",
            "<= 1.5 CPU s a million",
            f"{sort:.2f} CPU s a million over reading them",
            sort <= 1.5,
            "",
        ),
    ]
    return Section("UUIDs", "\n\n".join([str(__doc__).strip(), results_table(results)]), targets)


def _contender(
    label: str, function: Callable[[Job], None], size: int, requests: int, *, start_from: Path | None = None
) -> Contender:
    return Contender(
        label=label,
        function=function,
        size=size,
        requests=requests,
        stub=SERVICE_TIME,
        turn=int(start_from is not None),
        uuids=True,
        start_from=start_from,
    )


def _target(what: str, ratio: float, most: float) -> Target:
    return Target(what, f"<= {most} x SQLite's ordered cursor", f"{ratio:.2f} x", ratio <= most, "")


def _read(job: Job, order: str = "") -> None:
    with closing(sqlite3.connect(job.warehouse)) as database:
        rows = database.execute(f"SELECT profile_id FROM customers{order}")
        while rows.fetchmany(FETCH):
            """As the operator does."""
