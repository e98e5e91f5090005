"""The tab over Airflow's own API server: a plugin, shown to whoever may read the task instance."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("airflow.api_fastapi.core_api.security", reason="Airflow 2.11 has no such tab")

from airflow import settings
from airflow.api_fastapi.app import create_app, get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi.testclient import TestClient

from airflow_provider_talon_cdp.ui import TalonCdpPlugin
from tests.ui.conftest import leave_report

DAGS = """
from airflow.sdk import DAG, task

for dag_id in ("sync", "other"):
    with DAG(dag_id, schedule=None):

        @task
        def vip(ti=None):
            ti.xcom_push("talon_cdp_report", {place!r})
            raise ValueError("red")

        @task
        def plain():
            return 1

        vip()
        plain()
"""


@pytest.fixture(scope="module")
def api():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "k" * 64)
        with TestClient(create_app(apps="core")) as client:
            yield client


@pytest.fixture(scope="module")
def red(load_dags, tmp_path_factory):
    """The IDs of runs of two DAGs whose task names a report of the first one and fails."""
    root = tmp_path_factory.mktemp("tab")
    file = root / "dags" / "sync.py"
    file.parent.mkdir()
    file.write_text(DAGS.replace("{place!r}", repr(leave_report(root))))
    bag = load_dags(file)
    assert not bag.import_errors
    with pytest.MonkeyPatch.context() as patch:
        # Where dag.test() looks for the DAG's file.
        patch.setattr(settings, "DAGS_FOLDER", str(file.parent))
        runs = {dag_id: dag.test() for dag_id, dag in bag.dags.items()}
    assert {run.state for run in runs.values()} == {"failed"}
    return {dag_id: run.run_id for dag_id, run in runs.items()}


def token(role):
    return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="u", role=role))


def get(api, run_id, *, dag_id="sync", task_id="vip", index="-1", role="viewer"):
    href = TalonCdpPlugin.external_views[0]["href"]
    path = href.format(DAG_ID=dag_id, TASK_ID=task_id, MAP_INDEX=index, RUN_ID=run_id)
    headers = {} if role == "nobody" else {"Authorization": f"Bearer {token(role)}"}
    return api.get(f"/{path}", headers=headers)


def test_airflow_finds_it_by_its_entry_point_and_shows_it_on_a_task_instance(api):
    plugins = api.get("/api/v2/plugins", headers={"Authorization": f"Bearer {token('admin')}"}).json()
    (ours,) = (each for each in plugins["plugins"] if each["name"] == "talon_cdp")
    (view,) = ours["external_views"]
    assert (view["destination"], view["name"]) == ("task_instance", "Talon.One sync")
    assert [each["url_prefix"] for each in ours["fastapi_apps"]] == ["/talon-cdp"]


# The UI leaves the placeholder for a task that is not mapped.
@pytest.mark.parametrize("index", ["-1", "{MAP_INDEX}"])
def test_a_red_task_has_its_numbers(api, red, index):
    answer = get(api, red["sync"], index=index)
    assert answer.status_code == 200
    assert re.search(r"<strong>80</strong>\s+added", answer.text)
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert answer.headers["cache-control"] == "no-store"


def test_whoever_is_not_logged_in_gets_nothing(api, red):
    answer = get(api, red["sync"], role="nobody")
    assert answer.status_code == 401
    assert "80" not in answer.text


def test_whoever_may_not_read_the_task_instance_gets_nothing(api, red):
    answer = get(api, red["sync"], role=None)
    assert answer.status_code == 403
    assert "80" not in answer.text


def test_a_task_that_names_the_report_of_another_dag_does_not_show_it(api, red):
    answer = get(api, red["other"], dag_id="other")
    assert answer.status_code == 200
    assert "is not a report" in answer.text
    assert "added" not in answer.text.partition("</style>")[2]


@pytest.mark.parametrize(
    "where", [{"task_id": "plain"}, {"task_id": "nothing"}, {"dag_id": "nothing"}, {"index": "5"}]
)
def test_what_is_no_sync_says_that_it_has_no_report(api, red, where):
    answer = get(api, red["sync"], **where)
    assert answer.status_code == 200
    assert "has left no report" in answer.text


def test_a_run_id_may_have_any_character(api, red):
    assert "has left no report" in get(api, "of/2026-11-28T20:00:00+00:00%20%3F").text
