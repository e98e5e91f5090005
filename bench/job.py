"""What a contender is asked to do, and the measurement of one in this process.

Usage: ``python bench/job.py MODULE.FUNCTION JOB WARM_UP``, the jobs as JSON; prints what it took as JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sqlite3
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imports import import_all

BATCH = 1000
NO_LIMIT = 1_000_000.0
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Job:
    """What a contender is asked to do.

    Args:
        url: Of the stub.
        warehouse: Path of a SQLite file with a table ``customers``.
        folder: For what it keeps: new, or a copy of what an earlier job left.
        rate: Requests a second that it is set to, if it can be set.
    """

    url: str
    warehouse: str
    folder: str
    rate: float = NO_LIMIT

    def batches(self, size: int = BATCH) -> Iterator[list[Any]]:
        """Read the customers as each alternative does: IDs, or whole rows where they have attributes."""
        with closing(sqlite3.connect(self.warehouse)) as database:
            cursor = database.execute("SELECT * FROM customers")
            one = len(cursor.description) == 1
            while rows := cursor.fetchmany(size):
                yield [row[0] for row in rows] if one else rows


def talon_connection(job: Job) -> None:
    """Tell Airflow the connections ``talon_cdp_default`` and ``warehouse``."""
    talon = {
        "conn_type": "talon_cdp",
        "host": job.url,
        "password": "local-key-1234567890",
        "extra": {"deployment_host": "demo.europe-west1.talon.one", "requests_per_second": job.rate},
    }
    os.environ["AIRFLOW_CONN_TALON_CDP_DEFAULT"] = json.dumps(talon)
    os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps({"conn_type": "sqlite", "host": job.warehouse})


def measured(contender: Callable[[Job], None], job: Job, warm_up: Job) -> dict[str, float]:
    """Run a contender in this process, first on few rows; return what it took, its memory over both runs."""
    memory = _memory("VmRSS")
    # What is compiled and cached at the first use takes time that is not measured.
    contender(warm_up)
    gc.collect()
    before = _counts(job.url)
    _forget_peak()
    began, cpu = time.monotonic(), time.process_time()
    contender(job)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    peak = _memory("VmHWM")
    after = _counts(job.url)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "megabytes": (peak - memory) / 1024,
        "requests": after["requests"] - before["requests"],
        "throttled": after["throttled"] - before["throttled"],
        "first_after": (after["first_at"] or math.nan) - began,
        "stub_busy": (after["cpu"] - before["cpu"]) / seconds,
    }


def _counts(url: str) -> dict[str, Any]:
    with _NO_PROXY.open(url, timeout=30) as answer:
        counts: dict[str, Any] = json.load(answer)
    return counts


def _forget_peak() -> None:
    # From here on Linux counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> float:
    """KiB from the table of this process that Linux keeps."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1])
    raise LookupError(field)


if __name__ == "__main__":
    _module, _, _function = sys.argv[1].partition(".")
    _contender = getattr(importlib.import_module(_module), _function)
    _job, _warm_up = (Job(**json.loads(each)) for each in sys.argv[2:])
    import_all(lambda: _contender(replace(_warm_up, folder=f"{_warm_up.folder}-apart")))
    print(json.dumps(measured(_contender, _job, _warm_up)))
