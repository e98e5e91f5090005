"""Mapped tasks of a DAG that renders native objects, as a whole DAG run."""

from __future__ import annotations

from airflow import settings

DAG_FILE = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task
from airflow_provider_talon_cdp import UpdateProfileOperator

with DAG("native", schedule=None, start_date=datetime(2026, 1, 1), render_template_as_native_obj=True):
    @task
    def ids():
        return ["4711", "{{ 1 }}"]

    given = {"attributes": {"points": "{{ 5 }}"}}
    UpdateProfileOperator.partial(task_id="result", **given).expand(customer_profile_id=ids())
    UpdateProfileOperator.partial(task_id="literal", **given).expand(customer_profile_id=["1_000", "{{ 2 }}"])
"""


def test_ids_stay_text_and_another_tasks_result_is_no_template(talon, load_dags, tmp_path, monkeypatch):
    file = tmp_path / "dags" / "native.py"
    file.parent.mkdir()
    file.write_text(DAG_FILE)
    # Where dag.test() looks for the DAG's file.
    monkeypatch.setattr(settings, "DAGS_FOLDER", str(file.parent))
    assert load_dags(file).dags["native"].test().state == "success"
    assert talon.profiles() == {"4711", "{{ 1 }}", "1_000", "2"}
    assert talon.profile("4711")["attributes"] == {"points": 5}
