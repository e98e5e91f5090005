"""The example DAGs as Airflow parses them, and what it says to a mistake in a DAG."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "example_dags"


def test_every_example_dag_loads_without_an_import_error(examples):
    assert examples.import_errors == {}
    assert set(examples.dags) == {
        "talon_across_workers",
        "talon_after_audience",
        "talon_audience_lifecycle",
        "talon_profile_update",
        "talon_warehouse_to_audiences",
    }


def test_every_example_dag_says_what_it_does_and_which_connections_it_needs(examples):
    for dag_id, dag in examples.dags.items():
        assert "`talon_cdp_default`" in dag.doc_md, dag_id
        needs_warehouse = dag_id != "talon_audience_lifecycle"
        assert ("`warehouse`" in dag.doc_md) == needs_warehouse, dag_id


def test_the_data_has_every_purchase_to_the_cent():
    """The totals are those of the file that Fader and Hardie published."""
    with (EXAMPLES / "data" / "cdnow_purchases.csv").open(newline="") as file:
        purchases = list(csv.DictReader(file))
    assert len(purchases) == 6919
    assert len({purchase["customer_id"] for purchase in purchases}) == 2357
    assert sum(int(purchase["cds"]) for purchase in purchases) == 16479
    assert sum(Decimal(purchase["dollars"]) for purchase in purchases) == Decimal("244091.94")


@pytest.mark.parametrize(
    "operator, message",
    [
        (
            'SqlToTalonAudienceOperator(task_id="t", sql="SELECT 1", sql_conn_id="w", mode="x", audience_id="a")',  # noqa: E501
            "mode must be one of",
        ),
        (
            'SqlToTalonAudienceOperator(task_id="t", sql="SELECT 1", sql_conn_id="w", mode="add")',
            "either audience_id (one audience) or audience_column",
        ),
        (
            'CreateAudienceOperator(task_id="t", audience_id=7, audience_name="Seven")',
            "audience_id is the integer 7, but an external audience ID",
        ),
        (
            'CreateAudienceOperator(task_id="t", audience_id="a", audience_name="A", if_exists="replace")',
            "if_exists must be one of 'fail', 'skip', 'update'",
        ),
        (
            'SyncAudienceMembersOperator(task_id="t", audience_id="a", add="anna")',
            "add must be a list, but is one string",
        ),
    ],
)
def test_a_bad_literal_argument_is_an_import_error_that_says_why(load_dags, tmp_path, operator, message):
    file = tmp_path / "mistaken.py"
    file.write_text(
        f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

with DAG("mistaken", schedule=None, start_date=datetime(2026, 1, 1)):
    {operator}
"""
    )
    bag = load_dags(file)
    assert bag.dags == {}
    (error,) = bag.import_errors.values()
    assert message in error
