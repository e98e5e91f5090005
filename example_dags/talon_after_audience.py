"""A DAG that runs whenever another one has changed an audience in Talon.One."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import DAG, BaseHook, task

from airflow_provider_talon_cdp.assets import audience_asset

# The deployment host of the connection talon_cdp_default.
DEPLOYMENT_HOST = "demo.europe-west1.talon.one"

with DAG(
    dag_id="talon_after_audience",
    schedule=[audience_asset(DEPLOYMENT_HOST, "example-everybody")],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["talon_cdp", "example"],
    doc_md="""
### After an audience has changed

Runs after each green sync of the audience `example-everybody` by `talon_across_workers`, also one without
changes: its task `commit` emits the asset `talon-cdp://<deployment host>/audiences/example-everybody`. Then
keeps every tenth customer in an audience of its own, which a campaign can leave out to measure its effect.
The decorated function yields profile IDs, which are streamed.

Connections: `talon_cdp_default` (Talon.One) and `warehouse` (any SQL database).
""",
) as dag:

    @task.talon_audience(audience_id="example-holdout", audience_name="Holdout (example)")
    def holdout() -> Iterator[Any]:
        """Yield every tenth customer."""
        warehouse = BaseHook.get_connection("warehouse").get_hook()
        with closing(warehouse.get_conn()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT profile_id FROM customers ORDER BY profile_id")
            for number, (profile_id,) in enumerate(cursor):
                if number % 10 == 0:
                    yield profile_id

    holdout()
