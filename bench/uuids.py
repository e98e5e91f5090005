"""IDs as they are: UUIDs, in a table in no order with three more columns, as an export leaves it.

The measure is the CPU time of the database's own cursor with ORDER BY, which reads the IDs and does no more:
SQLite's, and a server-side cursor of PostgreSQL, of which only the client's time counts. The stub answers
within 50 ms, and there is no limit. The plan lasts from the query to the first request.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
from harness import CHURN, Bench, Contender, Result
from job import BATCH, Job
from mirror import FETCH, mirror
from report import Section, Target, results_table

SIZE, UNSORTED, LARGE = 1_000_000, 3_000_000, 10_000_000
SERVICE_TIME = ("--service-time", "0.05")
CURSOR, FIRST, CHURNED = "SQLite's ordered cursor", "first mirror", "mirror, 2 % churn"
NEXT = "the mirror after it, 2 % churn"
POSTGRES = "PostgreSQL's ordered cursor"
OF_POSTGRES = " of PostgreSQL"
WHY = (
    "by py-spy, SQLite has five ninths of the time of a mirror of 2 % churn; reading the ledger and "
    "comparing have two ninths, checking the IDs and their order one, sending the rest. The second mirror of "
    "a ledger also writes a file of all members, and after it about one in four does, at 2 % churn."
)
WHY_POSTGRES = (
    "the client's cursor takes less than what Python does about an ID after it: check, compare, write down, "
    "send. That is the same as with SQLite."
)
READ, SORTED = "cursor in no order", "sorted on the worker's disk"


def ordered_cursor(job: Job) -> None:
    """Read the IDs in order, and do nothing with them."""
    _read(job, " ORDER BY profile_id")


def ordered_postgres(job: Job) -> None:
    """The same from PostgreSQL, with a server-side cursor."""
    with _connect() as connection, connection.cursor("ids") as rows:
        rows.execute(f'SELECT profile_id FROM {_table(job)} ORDER BY profile_id COLLATE "C"')
        while rows.fetchmany(FETCH):
            """As the operator does."""


def cursor(job: Job) -> None:
    """Read the IDs in no order, and do nothing with them."""
    _read(job)


def mirror_of_postgres(job: Job) -> None:
    """Make the audience equal to a table in PostgreSQL."""
    server = {"conn_type": "postgres", "login": "postgres", "host": _server(), "schema": "warehouse"}
    os.environ["AIRFLOW_CONN_POSTGRES"] = json.dumps(server)
    mirror(job, table=_table(job))


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
    """Measure mirrors and the sort beside the cursors of SQLite and PostgreSQL."""
    from place import postgres_server

    size, unsorted, large = bench.rows(SIZE), bench.rows(UNSORTED), bench.rows(LARGE)
    ledger, large_ledger = bench.folder / "ledger-uuids", bench.folder / "ledger-uuids-large"
    first = _contender(FIRST, mirror, size, math.ceil(size / BATCH))
    bench.measure(first, keep=ledger)
    churned, next_ledger = _churned(CHURNED, mirror, size, ledger), bench.folder / "ledger-uuids-next"
    bench.measure(churned, keep=next_ledger)
    results = bench.medians(
        [
            _contender(CURSOR, ordered_cursor, size, 0),
            first,
            churned,
            replace(_churned(NEXT, mirror, size, next_ledger), turn=2),
            _contender(READ, cursor, unsorted, 0),
            _contender(SORTED, sorted_here, unsorted, 0),
        ]
    )
    with postgres_server(bench.folder) as (folder, _):
        os.environ["BENCH_POSTGRES"] = folder
        for turn in (0, 1):
            for rows in (size, first.warm_up):
                _copy(bench.warehouse(rows, turn, uuids=True))
        of_postgres = bench.medians(
            [
                _contender(POSTGRES, ordered_postgres, size, 0),
                _contender(FIRST + OF_POSTGRES, mirror_of_postgres, size, math.ceil(size / BATCH)),
                _churned(CHURNED + OF_POSTGRES, mirror_of_postgres, size, ledger),
            ]
        )
    bench.measure(_contender(FIRST, mirror, large, math.ceil(large / BATCH)), keep=large_ledger)
    of_large = bench.medians(
        [_contender(CURSOR, ordered_cursor, large, 0), _churned(CHURNED, mirror, large, large_ledger)]
    )
    sort = (results[SORTED].cpu - results[READ].cpu) / unsorted * 1_000_000
    megabytes = sum(each.stat().st_size for each in ledger.rglob("*") if each.is_file()) / 1_000_000
    a_million = megabytes / size * 1_000_000
    plan = of_large[CHURNED].first_after / of_large[CURSOR].seconds
    peak = of_large[CHURNED].megabytes
    targets = [
        _target("first mirror of 1,000,000 UUIDs: CPU", results[FIRST], results[CURSOR], 1.7),
        _target("mirror of 2 % churn: CPU", results[CHURNED], results[CURSOR], 1.5),
        _target("the mirror after it: CPU", results[NEXT], results[CURSOR], 1.5),
        *(
            _target(f"{label}: CPU", of_postgres[label], of_postgres[POSTGRES], 2, WHY_POSTGRES)
            for label in (FIRST + OF_POSTGRES, CHURNED + OF_POSTGRES)
        ),
        Target("ledger on disk", "<= 19 MB a version a million", f"{a_million:.1f} MB", a_million <= 19, ""),
        Target(
            "10,000,000 UUIDs, 2 % churn: plan",
            "<= 1.5 x the ordered cursor, <= 16 MB",
            f"{plan:.2f} x, {peak:.1f} MB",
            plan <= 1.5 and peak <= 16,
            f"{WHY} SQLite's cursor alone has {of_large[CURSOR].megabytes:.1f} MB.",
        ),
        Target(
            "sort of 3,000,000 UUIDs in no order",
            "<= 1.5 CPU s a million",
            f"{sort:.2f} CPU s a million over reading them",
            sort <= 1.5,
            "",
        ),
    ]
    of_large = {f"{label}, {large:,}": result for label, result in of_large.items()}
    text = "\n\n".join([str(__doc__).strip(), results_table({**results, **of_postgres, **of_large})])
    return Section("UUIDs", text, targets)


def _churned(label: str, function: Callable[[Job], None], size: int, ledger: Path) -> Contender:
    # One request more asks whether the audience is still there.
    requests = math.ceil(2 * math.ceil(size / CHURN) / BATCH) + 1
    return _contender(label, function, size, requests, start_from=ledger)


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


def _target(what: str, result: Result, cursor: Result, most: float, why: str | None = None) -> Target:
    ratio = result.cpu / cursor.cpu
    return Target(what, f"<= {most} x the ordered cursor", f"{ratio:.2f} x", ratio <= most, why or WHY)


def _read(job: Job, order: str = "") -> None:
    with closing(sqlite3.connect(job.warehouse)) as database:
        rows = database.execute(f"SELECT profile_id FROM customers{order}")
        while rows.fetchmany(FETCH):
            """As the operator does."""


def _server() -> str:
    """The folder of PostgreSQL's socket."""
    return os.environ["BENCH_POSTGRES"]


def _connect() -> psycopg.Connection:
    return psycopg.connect(f"host={_server()} user=postgres dbname=warehouse")


def _table(job: Job) -> str:
    return f'"{Path(job.warehouse).stem}"'


def _copy(warehouse: Path) -> None:
    """Copy a SQLite file's customers into a table of PostgreSQL."""
    table = _table(Job("", str(warehouse), ""))
    with closing(sqlite3.connect(warehouse)) as database, _connect() as connection:
        connection.execute(
            f"CREATE TABLE {table} (profile_id TEXT, country TEXT, tier TEXT, spend DOUBLE PRECISION)"
        )
        with connection.cursor() as rows, rows.copy(f"COPY {table} FROM STDIN") as copy:
            for row in database.execute("SELECT * FROM customers"):
                copy.write_row(row)
        connection.execute(f"ANALYZE {table}")
