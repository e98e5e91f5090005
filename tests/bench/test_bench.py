"""The bench scripts run: each subject in its quick form, without the packages of the alternatives."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

BENCH = Path(__file__).parents[2] / "bench"
RESULTS = BENCH / "results.md"
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="only Linux tells a peak of memory that can be set back",
)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(BENCH.parent), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def stub(*arguments):
    with subprocess.Popen(
        [sys.executable, BENCH / "stub.py", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def ask():
    """Send a request to a stub, and read status, headers and body."""

    def request(url, method, path, body=None):
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    return request


def test_every_subject_runs_in_its_quick_form_and_writes_no_results():
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    done = run(BENCH / "all.py", "--quick")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    headings = [line for line in done.stdout.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Members: add a million to an audience",
        "## The rate limit",
        "## Profiles: set attributes",
        "## The mirror",
        "## UUIDs",
    ]
    # A measurement fails unless the stub got as many requests as the work takes.
    assert done.stdout.count("\n| requests.Session, loop ") == 2
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before


def test_a_contender_is_measured_in_a_process_of_its_own(tmp_path):
    database = tmp_path / "customers.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE customers (profile_id TEXT)")
        connection.executemany("INSERT INTO customers VALUES (?)", ((f"c{n}",) for n in range(2500)))
    with stub("--service-time", "0.05") as url:
        job = json.dumps({"url": url, "warehouse": str(database), "folder": str(tmp_path), "rate": 1000})
        done = run(BENCH / "job.py", "members.session_loop", job, job)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert numbers["requests"] == 3
    assert numbers["throttled"] == 0
    assert numbers["seconds"] >= 0.15
    assert 0 < numbers["cpu"] < numbers["seconds"]


def test_the_stub_answers_as_the_api_does_and_counts(ask):
    with stub() as url:
        changes = "/cdp/v2/customer_profiles/audiences"
        assert ask(url, "PUT", changes, b"x" * 300_000)[::2] == (204, b"")
        status, _, body = ask(url, "PUT", "/cdp/customer_profile/anna?skipNonExistingAttributes=false", b"{}")
        assert (status, json.loads(body)["effects"]) == (200, [])
        status, _, body = ask(url, "POST", "/cdp/audiences", b"{}")
        assert (status, json.loads(body)["integrationId"]) == (201, "vip")
        counts = json.loads(ask(url, "GET", "/")[2])
    assert (counts["requests"], counts["throttled"]) == (3, 0)
    assert 0 <= time.monotonic() - counts["first_at"] < 10


def test_the_stub_limits_and_says_when_to_come_back(ask):
    with stub("--rate", "0.01", "--burst", "2", "--retry-after", "7") as url:
        answers = [ask(url, "PUT", "/cdp/customer_profiles/audiences", b"{}") for _ in range(3)]
    assert [status for status, _, _ in answers] == [204, 204, 429]
    assert answers[2][1]["Retry-After"] == "7"


def test_a_section_takes_the_place_of_the_one_with_its_title(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    report = importlib.import_module("report")
    path = tmp_path / "results.md"
    target = report.Target("work", ">= 2 x", "1 x", reached=False)
    for title, text in (("A", "old"), ("B", "other"), ("A", "new")):
        report.save(report.Section(title, text, [target]), path)
    text = path.read_text()
    assert (text.count("## A"), text.count("## B")) == (1, 1)
    assert "new" in text
    assert "old" not in text
    assert text.count("**not reached**") == 2
    assert text.startswith("# What was measured")
