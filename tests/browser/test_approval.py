"""Plans that a person approves, on a real scheduler: answered through Airflow's API, and seen in its UI."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
import requests

PATIENCE = 240
ENDED = {"success", "failed", "skipped", "upstream_failed"}


class Runs:
    """Starts runs of a DAG, and answers what they ask, through Airflow's API."""

    def __init__(self, airflow, approval):
        self.airflow, self.dag_id, self.audience = airflow, f"approved_{approval}", f"vip-{approval}"
        self.api = f"{airflow.url}/api/v2/dags/{self.dag_id}"

    def start(self, members):
        deadline = time.monotonic() + PATIENCE
        # The DAG processor may not have come to the file yet.
        while requests.get(self.api, timeout=60).status_code == 404 and time.monotonic() < deadline:
            time.sleep(1)
        run = {"logical_date": None, "conf": {"members": members}}
        answer = requests.post(f"{self.api}/dagRuns", json=run, timeout=60)
        answer.raise_for_status()
        return answer.json()["dag_run_id"]

    def states(self, run_id):
        answer = requests.get(f"{self.api}/dagRuns/{quote(run_id)}/taskInstances", timeout=60).json()
        return {each["task_id"]: each["state"] for each in answer["task_instances"]}

    def wait(self, run_id, task, states):
        deadline = time.monotonic() + PATIENCE
        while (found := self.states(run_id)).get(task) not in states:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        return found

    def asked(self, members):
        """Start a run, and wait until it asks; return its ID."""
        run_id = self.start(members)
        self.wait(run_id, "vip.approve", {"awaiting_input"})
        # Airflow 3.3.2 fails a task that is answered before its scheduler has heard that it waits. No person
        # is that fast.
        heard = f"TaskInstance Finished: dag_id={self.dag_id}, task_id=vip.approve, run_id={run_id},"
        deadline = time.monotonic() + PATIENCE
        while heard not in (log := (self.airflow.home / "airflow.log").read_text(errors="replace")):
            assert time.monotonic() < deadline, log[-5000:]
            time.sleep(0.3)
        return run_id

    def question(self, run_id):
        return f"{self.api}/dagRuns/{quote(run_id)}/taskInstances/vip.approve/-1/hitlDetails"

    def answer(self, run_id, option):
        answer = requests.patch(self.question(run_id), json={"chosen_options": [option]}, timeout=60)
        answer.raise_for_status()
        return self.wait(run_id, "vip.commit", ENDED)

    def task(self, run_id, name):
        """The URL of a task instance in the UI."""
        return f"{self.airflow.url}/dags/{self.dag_id}/runs/{quote(run_id)}/tasks/vip.{name}"

    def members(self):
        url = f"{self.airflow.talon_url}/emulator/audiences/{self.audience}/members"
        return requests.get(url, timeout=60).json().get("total", 0)


@pytest.fixture(scope="module")
def always(airflow_3):
    return Runs(airflow_3, "always")


@pytest.fixture(scope="module")
def guarded(airflow_3):
    return Runs(airflow_3, "beyond_guard")


def test_what_is_approved_is_pushed_and_what_is_rejected_is_not(always, tab):
    first = always.asked(3000)
    assert always.members() == 0
    body = requests.get(always.question(first), timeout=60).json()["body"]
    assert "| vip&#45;always | 3,000 | 0 | 3,000 |" in body
    states = always.answer(first, "Approve")
    assert states == dict.fromkeys(("vip.plan", "vip.approve", "vip.push", "vip.commit"), "success")
    assert always.members() == 3000

    second = always.asked(3100)
    states = always.answer(second, "Reject")
    assert (states["vip.push"], states["vip.commit"]) == ("skipped", "skipped")
    assert always.members() == 3000

    # The tab of the task that commits has what was pushed, that of the task that plans what was rejected.
    pushed = tab(always.task(first, "commit"))
    assert "In step" in pushed.text
    assert "3,000 added" in pushed.text
    planned = tab(always.task(second, "plan"))
    assert planned.text.startswith("Planned finished")
    assert "3,100 records read 3,000 unchanged 96.8% 100 to change 3.2%" in planned.text
    assert planned.text.endswith("audience to add to remove members then vip-always 100 0 3,100")
    assert "p0000001" not in planned.html
    assert "has left no report" in tab(always.task(second, "commit")).text


def test_a_plan_that_is_not_the_newest_any_more_is_refused(always):
    old = always.asked(2900)
    # The ledger counts as in use until the one that planned has been silent for two minutes. The plan of
    # another run replaces the first one then.
    for claim in always.airflow.home.rglob("locks/*"):
        claim.unlink()
    new = always.asked(2950)
    states = always.answer(old, "Approve")
    assert states["vip.approve"] == "failed"
    assert (states["vip.push"], states["vip.commit"]) == ("upstream_failed", "upstream_failed")
    assert always.answer(new, "Approve")["vip.commit"] == "success"
    assert always.members() == 2950


def test_with_a_content_guard_nobody_is_asked_and_beyond_it_somebody_is(guarded):
    run_id = guarded.start(3000)
    assert guarded.wait(run_id, "vip.commit", ENDED)["vip.commit"] == "success"
    assert guarded.members() == 3000
    run_id = guarded.asked(1000)
    body = requests.get(guarded.question(run_id), timeout=60).json()["body"]
    assert "would lose 2,000 of 3,000 members" in body
    assert guarded.members() == 3000
    assert guarded.answer(run_id, "Approve")["vip.commit"] == "success"
    assert guarded.members() == 1000
