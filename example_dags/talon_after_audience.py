"""A DAG that runs whenever another one has changed an audience in Talon.One."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from airflow.providers.common.compat.sdk import DAG, BaseHook, task
from packaging.version import Version

from airflow_provider_talon_cdp.assets import audience_asset
from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync

# The deployment host of the connection talon_cdp_default.
DEPLOYMENT_HOST = "demo.europe-west1.talon.one"
GOLD = 1000  # points
# Airflow 3.1 and newer ask people.
PEOPLE_CAN_BE_ASKED = Version(version("apache-airflow")) >= Version("3.1")


def rows(sql: str) -> Iterator[Any]:
    """Yield the rows of a query."""
    warehouse = BaseHook.get_connection("warehouse").get_hook()
    with closing(warehouse.get_conn()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        yield from cursor


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
changes: its task `commit` emits the asset `talon-cdp://<deployment host>/audiences/example-everybody`.
Then it

1. keeps every tenth customer in an audience of its own, which a campaign can leave out to measure its
   effect;
2. sends each customer's tier, where it has changed. The attribute `tier` (a string) must exist in Talon.One's
   Campaign Manager;
3. keeps an audience of the customers who have points. When that plan is beyond the guard's limits, a person
   is asked in the task `offer.approve`, on Airflow 3.1 and newer.

The first two are decorated functions. They yield, so what they give is streamed.

Connections: `talon_cdp_default` (Talon.One) and `warehouse` (any SQL database).
""",
) as dag:
    # --8<-- [start:holdout]
    @task.talon_audience(audience_id="example-holdout", audience_name="Holdout (example)")
    def holdout() -> Iterator[str]:
        """Yield every tenth customer."""
        customers = rows("SELECT profile_id FROM customers ORDER BY profile_id")
        for number, (profile_id,) in enumerate(customers):
            if number % 10 == 0:
                yield profile_id

    # --8<-- [end:holdout]

    # --8<-- [start:tiers]
    @task.talon_profiles(types={"tier": "string"})
    def tiers() -> Iterator[dict[str, Any]]:
        """Yield each customer's tier."""
        for profile_id, points in rows("SELECT profile_id, points FROM customers"):
            tier = "gold" if (points or 0) >= GOLD else "silver"
            yield {"profile_id": profile_id, "tier": tier}

    # --8<-- [end:tiers]

    # --8<-- [start:offer]
    offer = talon_audience_sync(
        "offer",
        sql="SELECT profile_id FROM customers WHERE points > 0",
        sql_conn_id="warehouse",
        audience_id="example-offer",
        audience_name="Offer (example)",
        # On Airflow 2.11 a plan beyond the guard's limits fails.
        approval="beyond_guard" if PEOPLE_CAN_BE_ASKED else "never",
    )
    # --8<-- [end:offer]

    # One after the other: Talon.One refuses two requests on one profile at the same time.
    holdout() >> tiers() >> offer
