"""What a person reads in Airflow's UI about a task that failed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests

PATIENCE = 240
ENDED = ("success", "failed", "upstream_failed", "skipped")


@pytest.fixture(scope="module")
def red(airflow_3, tmp_path_factory):
    """The URL of a run of the DAG ``red``, whose tasks have ended."""
    api, talon = f"{airflow_3.url}/api/v2", urlsplit(airflow_3.talon_url)
    connection = {
        "connection_id": "wrong_key",
        "conn_type": "talon_cdp",
        "host": f"http://{talon.hostname}",
        "port": talon.port,
        "password": "an-expired-key",
        "extra": json.dumps({"deployment_host": "demo.europe-west1.talon.one"}),
    }
    requests.post(f"{api}/connections", json=connection, timeout=60).raise_for_status()
    deadline = time.monotonic() + PATIENCE
    # The DAG processor may not have come to the file yet.
    while requests.get(f"{api}/dags/red", timeout=60).status_code == 404 and time.monotonic() < deadline:
        time.sleep(1)
    run = {"logical_date": None, "conf": {"home": str(tmp_path_factory.mktemp("red"))}}
    answer = requests.post(f"{api}/dags/red/dagRuns", json=run, timeout=60)
    answer.raise_for_status()
    run_id = quote(answer.json()["dag_run_id"])
    states: dict[str, str] = {}
    while not states or not all(state in ENDED for state in states.values()):
        assert time.monotonic() < deadline, states
        time.sleep(1)
        found = requests.get(f"{api}/dags/red/dagRuns/{run_id}/taskInstances", timeout=60).json()
        states = {each["task_id"]: each["state"] for each in found["task_instances"]}
    failed = {task for task, state in states.items() if state == "failed"}
    assert failed == {"wrong_key", "refused_plan", "rejected_record", "busy_ledger"}
    return f"{airflow_3.url}/dags/red/runs/{run_id}/tasks"


# Where each line with a text begins and ends, and how wide the page is.
EXTENT = """text => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.data.indexOf(text);
    if (at < 0) continue;
    const range = document.createRange();
    range.setStart(walker.currentNode, at);
    range.setEnd(walker.currentNode, at + text.length);
    const box = range.getBoundingClientRect();
    found.push([box.left, box.right]);
  }
  return [found, document.documentElement.clientWidth];
}"""


@pytest.mark.parametrize(
    ("task", "texts"),
    [
        ("wrong_key", ["The API key is missing, wrong or expired", "Put a valid key into the connection."]),
        (
            "refused_plan",
            ["would lose 99 of 100 members", "If that is right, pass max_removal_fraction=1.0."],
        ),
        ("rejected_record", ["1 of 101 records were rejected", "or raise max_rejected.", "longer than 1000"]),
        ("busy_ledger", ["The ledger is in use by red/another_task/another_run/-1", "Wait until it ends."]),
    ],
)
def test_cause_and_cure_are_read_without_scrolling_sideways(red, page, task, texts):
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"{red}/{task}", wait_until="domcontentloaded")
    page.get_by_text(texts[0]).last.wait_for()
    for text in texts:
        found, width = page.evaluate(EXTENT, text)
        assert any(left >= 0 and right <= width for left, right in found), (text, found, width)


@pytest.mark.parametrize(
    ("task", "texts"),
    [
        (
            "refused_plan",
            [
                "Refused, nothing sent finished",
                "requests 0",
                "would lose 99 of 100 members (99.0%). Nothing was sent. max_removal_fraction is 20.0%.",
                "What would allow this plan, if it is right: max_removal_fraction=1.0",
                "99 to remove 1 unchanged 1.0% 99 to change 99.0% Of that: 99 to remove 100.0%",
                "What it would change audience to add to remove members then refused_plan 0 99 1",
            ],
        ),
        (
            "rejected_record",
            [
                "Partly rejected finished",
                "101 records read 101 to change 100.0% Of that: 100 added 99.0% 1 rejected 1.0%",
                "Rejected, by reason reason records profile ID longer than 1000 characters 1 Dead letters",
                "Members after the last runs rejected_record 100",
            ],
        ),
    ],
)
def test_the_tab_of_a_red_task_has_its_numbers_and_no_profile_id(red, tab, task, texts):
    opened = tab(f"{red}/{task}")
    for text in texts:
        assert text in opened.text
    assert "customer-" not in opened.html
    assert "xxx" not in opened.html
    # The page itself, and nothing that it loads.
    assert len(opened.loaded) == 1
    assert opened.hosts == {urlsplit(red).netloc}


def test_links_lead_to_the_deployment_and_to_the_dead_letters(red, links):
    found = links(f"{red}/rejected_record/details")
    assert found["Talon.One Campaign Manager"] == "https://demo.europe-west1.talon.one"
    assert "longer than 1000 characters" in Path(found["Dead letters"], "00000.ndjson").read_text()


def test_without_dead_letters_there_is_no_link_to_them(red, links):
    assert list(links(f"{red}/refused_plan/details")) == ["Talon.One Campaign Manager"]
