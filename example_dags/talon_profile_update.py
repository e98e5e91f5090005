"""Attributes and audiences of one customer profile."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param, task
from airflow.providers.common.sql.hooks.handlers import fetch_one_handler
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.operators.profile import UpdateProfileAudiencesOperator, UpdateProfileOperator

WAREHOUSE = "warehouse"
BIG_SPENDERS = "cdnow-big-spenders"
SMALL_SPENDERS = "cdnow-small-spenders"
BIG_SPENDING = 150  # dollars

with DAG(
    dag_id="talon_profile_update",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"customer_id": Param("00111", type="string", pattern=r"^\d{5}$", title="Customer, e.g. 00111")},
    tags=["talon_cdp", "example"],
    doc_md="""
### One customer profile

Reads one customer's recency, frequency and monetary value from the warehouse, sets them as attributes of the
profile, and moves the profile to the audience of big or of small spenders. One step after the other, because
Talon.One refuses two requests on one profile at the same time.

The attributes `recency_days`, `purchases` and `total_spent` (numbers) and `last_purchase` (time) must exist
in Talon.One's Campaign Manager. The table comes from the DAG `talon_warehouse_to_audiences`: run that first.

Connections: `talon_cdp_default` and `warehouse`.
""",
) as dag:
    read_customer = SQLExecuteQueryOperator(
        task_id="read_customer",
        conn_id=WAREHOUSE,
        sql="sql/customer.sql",
        handler=fetch_one_handler,
    )

    @task
    def as_attributes(row: list[Any]) -> dict[str, Any]:
        """Turn the customer's row into attributes: names of Talon.One, values of Python."""
        purchases, cents, last_purchase, last_day = row
        if not purchases:
            raise ValueError("The warehouse has no purchase of this customer.")
        # SQLite gives a date as text, other databases as a date.
        last_purchase, last_day = (date.fromisoformat(str(day)) for day in (last_purchase, last_day))
        return {
            "recency_days": (last_day - last_purchase).days,
            "purchases": purchases,
            "total_spent": Decimal(cents) / 100,
            "last_purchase": datetime.combine(last_purchase, time(), tzinfo=UTC),
        }

    @task(multiple_outputs=True)
    def choose_audiences(attributes: dict[str, Any]) -> dict[str, list[str]]:
        """Return which audience the customer joins, and which it leaves."""
        big = attributes["total_spent"] >= BIG_SPENDING
        return {
            "join": [BIG_SPENDERS if big else SMALL_SPENDERS],
            "leave": [SMALL_SPENDERS if big else BIG_SPENDERS],
        }

    attributes = as_attributes(read_customer.output)
    audiences = choose_audiences(attributes)

    # --8<-- [start:set_attributes]
    set_attributes = UpdateProfileOperator(
        task_id="set_attributes",
        customer_profile_id="{{ params.customer_id }}",
        attributes=attributes,
    )
    # --8<-- [end:set_attributes]

    create_audiences = CreateAudienceOperator.partial(
        task_id="create_audiences",
        if_exists="skip",
    ).expand_kwargs(
        [
            {"audience_id": BIG_SPENDERS, "audience_name": "CDNOW: big spenders"},
            {"audience_id": SMALL_SPENDERS, "audience_name": "CDNOW: small spenders"},
        ]
    )

    # --8<-- [start:set_audiences]
    set_audiences = UpdateProfileAudiencesOperator(
        task_id="set_audiences",
        customer_profile_id="{{ params.customer_id }}",
        add_audiences=audiences["join"],
        remove_audiences=audiences["leave"],
    )
    # --8<-- [end:set_audiences]

    [set_attributes, create_audiences] >> set_audiences
