"""A sync that a person approves."""

from airflow.sdk import DAG

from airflow_provider_talon_cdp import talon_audience_sync

SQL = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {{ params.members }})
SELECT printf('p%07d', n) AS profile_id FROM numbers
"""

for approval in ("always", "beyond_guard"):
    with DAG(f"approved_{approval}", schedule=None, params={"members": 3000}):
        talon_audience_sync(
            "vip",
            sql=SQL,
            sql_conn_id="warehouse",
            audience_id=f"vip-{approval}",
            audience_name="VIP",
            approval=approval,
        )
