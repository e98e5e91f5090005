"""Customer segments and attributes from a warehouse to Talon.One, month by month."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, BaseHook, Param, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

WAREHOUSE = "warehouse"  # any SQL connection; the statements in sql/ run on SQLite and on Postgres
PURCHASES = Path(__file__).parent / "data" / "cdnow_purchases.csv"


def month_start(month: str, shift: int = 0) -> str:
    """Return the first day of a month, so many months later: ``("1998-05", 1)`` gives ``1998-06-01``."""
    year, number = map(int, month.split("-"))
    months = year * 12 + number - 1 + shift
    return f"{months // 12:04}-{months % 12 + 1:02}-01"


with DAG(
    dag_id="talon_warehouse_to_audiences",
    # In production: schedule="@monthly", and instead of the parameter the month before the logical date (on
    # Airflow 2, the month of data_interval_start).
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "month": Param(
            "1998-05", type="string", pattern=r"^\d{4}-(0[1-9]|1[0-2])$", title="Month, e.g. 1998-05"
        ),
        "dry_run": Param(default=False, type="boolean", title="Only plan, and send nothing"),
    },
    user_defined_macros={"month_start": month_start},
    tags=["talon_cdp", "example"],
    doc_md="""
### Segments from the warehouse to Talon.One

1. Loads the purchases of 2,357 customers into the warehouse, as your own pipeline would.
2. Sorts the customers into champions, at risk and lapsed, as of the end of `month` (a parameter; the data
covers 1997-01
   to 1998-06). What happened later does not count.
3. Makes the three audiences in Talon.One equal to the segments: creates those that do not exist, adds who
came, removes
   who left, and sends nothing for the others. When the query is empty, or when an audience would lose more
   than half of its members, it refuses before anything is sent.
4. Sends each customer's recency, number of purchases, money spent and last purchase as attributes of the
profile, where
   they have changed. `recency` (string), `purchases` and `total_spent` (numbers) and `last_purchase` (time)
   must exist in Talon.One's Campaign Manager.

A month may run again: there is nothing to send then. Set `dry_run` to see a plan without sending it.

Connections: `talon_cdp_default` (Talon.One) and `warehouse` (any SQL database).
""",
) as dag:
    create_tables = SQLExecuteQueryOperator(
        task_id="create_tables",
        conn_id=WAREHOUSE,
        sql="sql/create_tables.sql",
        split_statements=True,
    )

    @task
    def load_purchases() -> int:
        """Replace the purchases in the warehouse by those of the file."""
        with PURCHASES.open(newline="") as file:
            rows = [
                (
                    number,
                    purchase["customer_id"],
                    purchase["purchased_on"],
                    int(purchase["cds"]),
                    int(Decimal(purchase["dollars"]) * 100),
                )
                for number, purchase in enumerate(csv.DictReader(file), start=1)
            ]
        warehouse = BaseHook.get_connection(WAREHOUSE).get_hook()
        warehouse.run("DELETE FROM cdnow_purchases")
        columns = ["purchase_id", "customer_id", "purchased_on", "cds", "cents"]
        warehouse.insert_rows("cdnow_purchases", rows, columns, commit_every=len(rows), executemany=True)
        return len(rows)

    build_segments = SQLExecuteQueryOperator(
        task_id="build_segments",
        conn_id=WAREHOUSE,
        sql="sql/build_segments.sql",
        split_statements=True,
    )

    # --8<-- [start:mirror_segments]
    mirror_segments = SqlToTalonAudienceOperator(
        task_id="mirror_segments",
        sql="sql/segment_members.sql",
        sql_conn_id=WAREHOUSE,
        mode="mirror",
        audience_column="audience_id",
        audience_name_column="audience_name",
        profile_id_column="customer_id",
        # Segments change more from month to month than most audiences do from day to day.
        max_removal_fraction=0.5,
        dry_run="{{ params.dry_run }}",
    )
    # --8<-- [end:mirror_segments]

    # --8<-- [start:send_attributes]
    send_attributes = SqlToTalonProfilesOperator(
        task_id="send_attributes",
        sql="sql/customer_attributes.sql",
        sql_conn_id=WAREHOUSE,
        profile_id_column="customer_id",
        types={"total_spent": "number", "last_purchase": "time"},
        dry_run="{{ params.dry_run }}",
    )
    # --8<-- [end:send_attributes]

    # One after the other: Talon.One refuses two requests on one profile at the same time.
    create_tables >> load_purchases() >> build_segments >> mirror_segments >> send_attributes
