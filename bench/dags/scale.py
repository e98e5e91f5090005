"""The DAGs of ``bench/scale.py``."""

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

with DAG(
    "scale_single",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    schedule=None,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=1)},
):
    SqlToTalonAudienceOperator(
        task_id="sync",
        sql="SELECT profile_id FROM customers",
        sql_conn_id="warehouse",
        audience_id="vip",
        mode="mirror",
    )
