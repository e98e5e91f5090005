"""Tasks that fail, each for a reason that its log has to tell."""

import time
from pathlib import Path

from airflow.sdk import DAG, task

from airflow_provider_talon_cdp import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.operators._fields import open_hook
from airflow_provider_talon_cdp.operators._state import open_ledger, storage

MEMBERS = [f"customer-{number:03}" for number in range(100)]

with DAG("red", schedule=None, params={"home": "/nowhere"}):

    def mirror(task_id, members, **arguments):
        return SyncAudienceMembersOperator(
            task_id=task_id,
            **(
                {"audience_id": task_id, "audience_name": "VIP", "mode": "mirror", "members": members}
                | arguments
            ),
        )

    mirror("wrong_key", MEMBERS, talon_cdp_conn_id="wrong_key")
    mirror("rejected_record", [*MEMBERS, "x" * 1001])
    mirror("fill", MEMBERS, audience_id="refused_plan") >> mirror("refused_plan", MEMBERS[:1])

    @task
    def hold(home):
        """Have the ledger of ``busy_ledger``, as another run would."""
        ledger = open_ledger(
            storage("state URI", f"{home}/state"), open_hook("talon_cdp_default"), "audience:busy_ledger"
        )
        with ledger.held("red/another_task/another_run/-1"):
            Path(home, "held").touch()
            deadline = time.monotonic() + 120
            while not Path(home, "seen").exists() and time.monotonic() < deadline:
                time.sleep(0.2)

    @task
    def wait(home):
        deadline = time.monotonic() + 120
        while not Path(home, "held").exists() and time.monotonic() < deadline:
            time.sleep(0.2)

    @task(trigger_rule="all_done")
    def release(home):
        Path(home, "seen").touch()

    hold("{{ params.home }}")
    (
        wait("{{ params.home }}")
        >> mirror("busy_ledger", MEMBERS, on_busy="fail", state_uri="{{ params.home }}/state")
        >> release("{{ params.home }}")
    )
