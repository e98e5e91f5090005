"""The links of a task instance on Airflow 2.11. Those on Airflow 3 are in ``test_red_logs.py``."""

from __future__ import annotations

import time
from pathlib import Path

PATIENCE = 240


def test_links_lead_to_the_deployment_and_to_the_dead_letters(window, airflow_2, links):
    api, deadline = f"{airflow_2.url}/api/v1/dags/partly", time.monotonic() + PATIENCE
    while window.request.get(api).status == 404 and time.monotonic() < deadline:
        time.sleep(0.5)
    run = window.request.post(f"{api}/dagRuns", data={"dag_run_id": "once"}).json()
    while run.get("state") != "success":
        assert time.monotonic() < deadline, run
        time.sleep(0.5)
        run = window.request.get(f"{api}/dagRuns/once").json()
    found = links(f"{airflow_2.url}/dags/partly/grid?dag_run_id=once&task_id=partly")
    assert found["Talon.One Campaign Manager"] == "https://demo.europe-west1.talon.one"
    assert "longer than 1000 characters" in Path(found["Dead letters"], "00000.ndjson").read_text()
