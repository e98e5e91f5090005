"""Mirror a SQLite table in this process and print how far its memory grew over the imports, in KiB.

Arguments: database file, folder of the ledgers, SQL, and what it yields: ``valid``, ``over-long`` or ``no audience``; or
``profiles`` to send attributes, ``profiles planned`` to plan that.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace


def memory(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise LookupError(field)


def main():
    database, state, sql, kind = sys.argv[1:]
    os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps({"conn_type": "sqlite", "host": database})
    from airflow_provider_talon_cdp.transfers.sql_to_audience import (  # noqa: PLC0415 - the imports are not measured
        SqlToTalonAudienceOperator,
    )
    from airflow_provider_talon_cdp.transfers.sql_to_profiles import (  # noqa: PLC0415 - as above
        SqlToTalonProfilesOperator,
    )

    task = SimpleNamespace(dag_id="dag", task_id="sync", run_id="run", map_index=-1)
    audience = {"audience_column": "audience_id"} if kind == "no audience" else {"audience_id": "vip"}

    def mirror(sql, state):
        operator = SqlToTalonAudienceOperator(
            task_id="sync",
            sql=sql,
            sql_conn_id="warehouse",
            mode="mirror",
            state_uri=state,
            # Few, so that the smaller mirror too has all of them in flight.
            in_flight=8,
            max_rejected=0 if kind == "valid" else None,
            on_empty="fail" if kind == "valid" else "skip",
            **audience,
        )
        return operator.execute({"ti": task})

    def send(sql, state):
        operator = SqlToTalonProfilesOperator(
            task_id="sync",
            sql=sql,
            sql_conn_id="warehouse",
            state_uri=state,
            in_flight=8,
            dry_run=kind == "profiles planned",
        )
        return operator.execute({"ti": task})

    run = send if kind.startswith("profiles") else mirror
    # The first run imports drivers and file systems.
    run("SELECT 'anna' AS profile_id, 'vip' AS audience_id", f"{state}-first")
    gc.collect()
    # From here on the peak is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    summary = run(sql, state)
    sys.stdout.write(json.dumps({"grown": memory("VmHWM") - before, **summary}) + "\n")


main()
