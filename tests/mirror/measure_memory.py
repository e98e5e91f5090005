"""Send a SQLite table in this process and print how far its memory grew over the imports, in KiB.

Arguments: database file, folder of the ledgers, SQL, and what to do with it, one of ``KINDS``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_provider_talon_cdp.transfers._rows import sql_hook, stream_rows
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from imports import import_all

KINDS: dict[str, dict[str, Any]] = {
    "mirror": {"mode": "mirror", "audience_id": "vip"},
    "mirror of rejected records": {"mode": "mirror", "audience_id": "vip", "max_rejected": None},
    "add of rejected records": {"mode": "add", "audience_column": "audience_id", "max_rejected": None},
    "profiles": {},
    "profiles planned": {"dry_run": True},
    "reading alone": {},
}


def memory(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise LookupError(field)


def run(kind, sql, state):
    if kind == "reading alone":
        rows = stream_rows(sql_hook("warehouse"), sql, ["profile_id"], order_by=1)
        return {"read": sum(map(len, rows))}
    operator = SqlToTalonProfilesOperator if kind.startswith("profiles") else SqlToTalonAudienceOperator
    arguments = KINDS[kind] | ({} if KINDS[kind].get("mode") == "add" else {"state_uri": state})
    # Few in flight, so that the smaller table too has all of them in flight.
    task = operator(task_id="sync", sql=sql, sql_conn_id="warehouse", in_flight=8, **arguments)
    instance = SimpleNamespace(dag_id=task.dag_id, task_id="sync", run_id="run", map_index=-1)
    return task.execute({"ti": instance})


def main():
    database, state, sql, kind = sys.argv[1:]
    os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps({"conn_type": "sqlite", "host": database})
    # A run imports drivers and file systems.
    import_all(lambda: run(kind, "SELECT 'anna' AS profile_id, 'vip' AS audience_id", f"{state}-first"))
    # From here on the peak is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    summary = run(kind, sql, state)
    sys.stdout.write(json.dumps({"grown": memory("VmHWM") - before, **summary}) + "\n")


if __name__ == "__main__":
    main()
