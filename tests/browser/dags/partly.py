"""A task of which some records are rejected, on each release of Airflow."""

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp import SyncAudienceMembersOperator

with DAG("partly", schedule=None):
    SyncAudienceMembersOperator(
        task_id="partly",
        audience_id="partly",
        audience_name="VIP",
        mode="mirror",
        members=[*(f"customer-{number:03}" for number in range(100)), "x" * 1001],
        max_rejected=1,
    )
