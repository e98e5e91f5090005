"""The DAGs of ``bench/scale.py``."""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

HOW: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "default_args": {"retries": 3, "retry_delay": timedelta(seconds=1)},
}
WHAT: dict[str, Any] = {
    "sql": "SELECT profile_id FROM customers",
    "sql_conn_id": "warehouse",
    "audience_id": "vip",
}

with DAG("scale_single", schedule=None, **HOW):
    SqlToTalonAudienceOperator(task_id="sync", mode="mirror", **WHAT)

with DAG("scale_group", schedule=None, **HOW):
    talon_audience_sync("sync", workers=4, **WHAT)
