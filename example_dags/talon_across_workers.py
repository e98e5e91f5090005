"""Many members and profiles, sent by several tasks at once."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync, talon_profiles_sync

with DAG(
    dag_id="talon_across_workers",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"dry_run": Param(default=False, type="boolean", title="Only plan, and send nothing")},
    # In production: default_args={"retries": 3}; a task that is tried again sends what is left of its share.
    tags=["talon_cdp", "example"],
    doc_md="""
### Syncs that spread over workers

In each of the two groups, `plan` compares the table `customers` with what Talon.One acknowledged. `push` has
an instance for each 100,000 changes, four at the most; each sends its share at an equal part of the
connection's rate, and may be cleared on its own. `commit` checks that all is in and returns the report. One
group keeps an audience, the other one the attribute `points` (a number), which must exist in Talon.One's
Campaign Manager; it waits for the first, as Talon.One refuses two requests on one profile at the same time.

Where workers run on several machines, set `[talon_cdp] state_uri` to a place that all of them reach.

Connections: `talon_cdp_default` (Talon.One) and `warehouse` (any SQL database).
""",
) as dag:
    # --8<-- [start:everybody]
    everybody = talon_audience_sync(
        "everybody",
        sql="SELECT profile_id FROM customers",
        sql_conn_id="warehouse",
        audience_id="example-everybody",
        audience_name="Everybody (example)",
        dry_run="{{ params.dry_run }}",
        workers=4,
    )
    # --8<-- [end:everybody]
    # --8<-- [start:points]
    points = talon_profiles_sync(
        "points",
        sql="SELECT profile_id, points FROM customers",
        sql_conn_id="warehouse",
        dry_run="{{ params.dry_run }}",
        workers=4,
    )
    # --8<-- [end:points]
    everybody >> points
