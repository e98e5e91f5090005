"""The life of one audience: created, filled, renamed, deleted."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_talon_cdp.operators.audience import (
    CreateAudienceOperator,
    DeleteAudienceOperator,
    UpdateAudienceOperator,
)
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator

AUDIENCE = "example-newsletter"

with DAG(
    dag_id="talon_audience_lifecycle",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Two runs at once would change the same profiles at once, which Talon.One refuses.
    max_active_runs=1,
    tags=["talon_cdp", "example"],
    doc_md="""
### One audience from its creation to its end

Creates an audience, adds members that another task found, lets some join and others leave in one go, renames
the audience and deletes it. Members that Talon.One does not know yet become customer profiles there.

Connection: `talon_cdp_default`.
""",
) as dag:
    # --8<-- [start:create]
    create = CreateAudienceOperator(
        task_id="create",
        audience_id=AUDIENCE,
        audience_name="Newsletter (example)",
        if_exists="skip",
    )
    # --8<-- [end:create]

    @task
    def subscribers() -> list[str]:
        """Stand in for any task that returns profile IDs, from a file or an API, say."""
        return ["anna", "bert", "carla"]

    add_members = SyncAudienceMembersOperator(
        task_id="add_members",
        audience_id=AUDIENCE,
        add=subscribers(),
    )

    # --8<-- [start:change_members]
    change_members = SyncAudienceMembersOperator(
        task_id="change_members",
        audience_id=AUDIENCE,
        add=["dora", "emil"],
        remove=["bert"],
    )
    # --8<-- [end:change_members]

    # --8<-- [start:rename]
    rename = UpdateAudienceOperator(
        task_id="rename",
        audience_id=AUDIENCE,
        audience_name="Newsletter subscribers (example)",
    )
    # --8<-- [end:rename]

    # --8<-- [start:delete]
    delete = DeleteAudienceOperator(
        task_id="delete",
        audience_id=AUDIENCE,
        if_missing="skip",
    )
    # --8<-- [end:delete]

    create >> add_members >> change_members >> rename >> delete
