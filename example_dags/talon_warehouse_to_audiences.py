"""Customer segments from a warehouse to Talon.One audiences, month by month."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, BaseHook, Param, task
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

WAREHOUSE = "warehouse"  # any SQL connection; the statements in sql/ run on SQLite and on Postgres
PURCHASES = Path(__file__).parent / "data" / "cdnow_purchases.csv"

# The IDs that sql/build_segments.sql gives to the segments. They stay the same from month to month.
AUDIENCES = [
    {"audience_id": "cdnow-champions", "audience_name": "CDNOW: champions"},
    {"audience_id": "cdnow-at-risk", "audience_name": "CDNOW: at risk"},
    {"audience_id": "cdnow-lapsed", "audience_name": "CDNOW: lapsed"},
]


def month_start(month: str, shift: int = 0) -> str:
    """Return the first day of a month, so many months later: ``("1998-05", 1)`` gives ``1998-06-01``."""
    year, number = map(int, month.split("-"))
    months = year * 12 + number - 1 + shift
    return f"{months // 12:04}-{months % 12 + 1:02}-01"


with DAG(
    dag_id="talon_warehouse_to_audiences",
    # In production: schedule="@monthly", and the month from data_interval_start instead of from a parameter.
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "month": Param(
            "1998-05", type="string", pattern=r"^\d{4}-(0[1-9]|1[0-2])$", title="Month, e.g. 1998-05"
        )
    },
    user_defined_macros={"month_start": month_start},
    tags=["talon_cdp", "example"],
    doc_md="""
### Segments from the warehouse to Talon.One

1. Loads the purchases of 2,357 customers into the warehouse, as your own pipeline would.
2. Sorts the customers into champions, at risk and lapsed, as of the end of `month` (a parameter; the data covers 1997-01
   to 1998-06). What happened later does not count.
3. Creates the three audiences, or puts their names right.
4. Removes from each audience who left its segment since the month before, then adds who is in it now. One after the
   other, because Talon.One refuses two requests on one profile at the same time.

A month may run again: the result is the same. Run the months in their order and leave none out, because a leaver is found
by comparing with the month before.

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

    create_audiences = CreateAudienceOperator.partial(
        task_id="create_audiences",
        if_exists="update",
        map_index_template="{{ task.audience_id }}",
    ).expand_kwargs(AUDIENCES)

    remove_leavers = SqlToTalonAudienceOperator(
        task_id="remove_leavers",
        sql="sql/segment_leavers.sql",
        sql_conn_id=WAREHOUSE,
        mode="remove",
        audience_column="audience_id",
        profile_id_column="customer_id",
    )

    add_members = SqlToTalonAudienceOperator(
        task_id="add_members",
        sql="sql/segment_members.sql",
        sql_conn_id=WAREHOUSE,
        mode="add",
        audience_column="audience_id",
        profile_id_column="customer_id",
    )

    create_tables >> load_purchases() >> build_segments >> create_audiences >> remove_leavers >> add_members
