"""Setting four attributes of each customer profile, one request a profile: us beside the alternatives.

All of them read the same SQLite table. Ours sends every profile, as none was acknowledged before, and keeps a
fingerprint of each; the next run, in which 2 % of the rows have changed, sends those. The slow ones get fewer
rows; what counts is rows a second and CPU seconds.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from threading import local
from typing import Any
from urllib.parse import quote

from harness import CHURN, Bench, Contender, Result
from job import Job, talon_connection
from members import HEADERS, in_threads
from report import Section, Target, results_table

OURS, NEXT = "ours", "ours, the next run"
THREADS, LOOP = "requests.Session, 16 threads", "HttpHook.run, loop"
MODULE = "airflow_provider_talon_cdp.transfers.sql_to_profiles"


def ours(job: Job) -> None:
    """This provider's operator, with its ledger, report and progress."""
    talon_connection(job)
    from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

    SqlToTalonProfilesOperator(
        task_id="bench",
        sql="SELECT profile_id, tier, points, spend, city FROM customers",
        sql_conn_id="warehouse",
        state_uri=f"{job.folder}/state",
    ).execute({})


def call(row: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    """The documented path and body."""
    attributes = dict(zip(("tier", "points", "spend", "city"), row[1:], strict=True))
    path = f"/cdp/customer_profile/{quote(row[0], safe='')}?skipNonExistingAttributes=false"
    return path, {"attributes": attributes, "runRuleEngine": False}


def session_threads(job: Job) -> None:
    """A ``requests.Session`` in each of 16 threads."""
    import requests

    own = local()

    def send(rows: list[tuple[Any, ...]]) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        for row in rows:
            path, body = call(row)
            assert own.session.put(job.url + path, json=body, headers=HEADERS).status_code == 200

    in_threads(send, job.batches(10))


def http_hook(job: Job) -> None:
    """Airflow's ``HttpHook.run``, once for each profile."""
    os.environ["AIRFLOW_CONN_TALON"] = json.dumps({"conn_type": "http", "host": job.url})
    from airflow.providers.http.hooks.http import HttpHook

    hook = HttpHook(method="PUT", http_conn_id="talon")
    for rows in job.batches():
        for row in rows:
            path, body = call(row)
            assert hook.run(path, json=body, headers=HEADERS).status_code == 200


def run(bench: Bench) -> Section:
    """Measure all of them at 50 ms and at 0 ms, and our memory for ten times the rows."""
    parts = [__doc__.partition("\n\n")[2].strip()]
    results: dict[str, Result] = {}
    for service_time, (threads, loop) in ((0.05, (10_000, 1_000)), (0.0, (100_000, 10_000))):
        results = bench.medians(
            [
                _contender(bench, OURS, 100_000, service_time),
                _contender(bench, THREADS, threads, service_time),
                _contender(bench, LOOP, loop, service_time),
            ],
        )
        parts.append(f"{service_time * 1000:g} ms service time:\n\n{results_table(results, per=100_000)}")
    large = bench.medians([_contender(bench, OURS, 1_000_000, 0.0)])
    parts.append(f"Ten times the rows:\n\n{results_table(large, per=100_000)}")
    first = _contender(bench, OURS, 100_000, 0.0)
    if first.is_installed:
        ledger = bench.folder / "ledger-of-profiles"
        bench.measure(first, keep=ledger)
        changed = replace(
            first, label=NEXT, turn=1, start_from=ledger, requests=math.ceil(first.size / CHURN)
        )
        results_of_next = results_table(bench.medians([changed]), per=100_000)
        parts.append(f"The next run, 0 ms service time:\n\n{results_of_next}")
    return Section("Profiles: set attributes", "\n\n".join(parts), _targets(results))


def _contender(bench: Bench, label: str, size: int, service_time: float) -> Contender:
    return Contender(
        label=label,
        function={OURS: ours, THREADS: session_threads, LOOP: http_hook}[label],
        size=bench.rows(size),
        requests=bench.rows(size),
        stub=("--service-time", str(service_time)),
        attributes=True,
        needs=MODULE if label == OURS else None,
    )


def _targets(without_service_time: dict[str, Result]) -> list[Target]:
    work, wanted = "profiles, 0 ms", f">= 2.5 x {THREADS}"
    if OURS not in without_service_time:
        return [Target(work, wanted, "", None)]
    times = without_service_time[OURS].per_second / without_service_time[THREADS].per_second
    return [Target(work, wanted, f"{times:.2f} x", times >= 2.5)]
