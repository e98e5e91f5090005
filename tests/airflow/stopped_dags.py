"""The DAGs of ``test_stopped_tasks.py``: one for each way to stop a task, with a Talon.One of its own."""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

TIMEOUTS = {"marked": None, "cleared": None, "timed_out": timedelta(seconds=25)}
START = datetime(2026, 1, 1, tzinfo=UTC)
WHAT: dict[str, Any] = {
    "task_id": "sync",
    "sql": "SELECT profile_id FROM customers",
    "sql_conn_id": "warehouse",
    "mode": "mirror",
    "audience_id": "vip",
    "audience_name": "VIP",
}

for name, timeout in TIMEOUTS.items():
    # Slow enough to be stopped; the try after that is fast.
    speed = "_{{ 'slow' if ti.try_number == 1 else 'fast' }}"
    with DAG(name, schedule=None, start_date=START):
        SqlToTalonAudienceOperator(talon_cdp_conn_id=f"{name}{speed}", execution_timeout=timeout, **WHAT)

with DAG("added", schedule=None, start_date=START):
    SqlToTalonAudienceOperator(
        talon_cdp_conn_id="added_{{ 'slow' if ti.try_number == 1 else 'fast' }}",
        execution_timeout=timedelta(seconds=15),
        retries=1,
        retry_delay=timedelta(0),
        **WHAT | {"mode": "add", "audience_name": None},
    )

with DAG("next_run", schedule=None, start_date=START, params={"of": Param("marked")}):
    SqlToTalonAudienceOperator(talon_cdp_conn_id="{{ params.of }}_fast", **WHAT)
