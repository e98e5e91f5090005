"""Memory does not grow with the number of members. Measured in a process of its own, against a server in
another one."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from operator import itemgetter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def stub():
    """A server in a process of its own that takes every change and costs less than the emulator; its Airflow
    connection as JSON."""
    command = [sys.executable, ROOT / "bench" / "stub.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.dumps(
                {
                    "conn_type": "talon_cdp",
                    "host": process.stdout.readline().strip(),
                    "password": "any-key-1234567890",
                    "extra": {"deployment_host": "demo.europe-west1.talon.one", "requests_per_second": 2000},
                }
            )
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def measure(stub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")

    def grown(rows, sql, kind="mirror"):
        database = folder / f"{rows}.db"
        if not database.exists():
            with closing(sqlite3.connect(database)) as connection, connection:
                # With an index to read along: SQLite would sort in this process, in memory of its own.
                connection.execute("CREATE TABLE customers (profile_id text PRIMARY KEY) WITHOUT ROWID")
                connection.execute(
                    "WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n < ?) "
                    "INSERT INTO customers SELECT printf('customer-%08d@example.com', n) FROM number",
                    (rows - 1,),
                )
        result = subprocess.run(
            [
                sys.executable,
                HERE / "measure_memory.py",
                database,
                tempfile.mkdtemp(dir=folder),
                sql,
                kind,
            ],
            env={
                # With its bytecode cache: what the compiler has freed would hide growth.
                **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
                # Python's own allocator takes a MiB at once, and one more or less in equal runs. The C
                # library's takes less at once, but it fragments under the many objects of single requests.
                "PYTHONMALLOC": "default" if kind == "profiles" else "malloc",
                "PYTHONPATH": str(ROOT),
                # A profile is one request, a thousand members are one.
                "AIRFLOW_CONN_TALON_CDP_DEFAULT": stub.replace("2000", "100000")
                if "profiles" in kind
                else stub,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        return json.loads(result.stdout.splitlines()[-1])

    return grown


ATTRIBUTES = (
    "SELECT profile_id, substr(profile_id, 10, 4) AS tier, length(profile_id) AS score, 0.5 AS rate, "
    "'a text of some length' "
    "AS note FROM customers"
)


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak that can be set back"
)


def test_ten_times_the_members_take_no_more_memory(measure, record_property):
    """The smaller number fills all buffers; a fourth of it does not."""
    sql = "SELECT profile_id FROM customers"
    small, large = (measure(rows, sql) for rows in (400_000, 4_000_000))
    assert (small["sent"], large["sent"]) == (400_000, 4_000_000)
    if large["grown"] >= small["grown"] + 1024:
        # A run of ten times the length meets ten times as many chance peaks. Growth would be in every run.
        large = min(large, measure(4_000_000, sql), key=itemgetter("grown"))
    record_property(
        "KiB over the imports at 400,000 and 4,000,000 members", f"{small['grown']}, {large['grown']}"
    )
    assert large["grown"] < 64 * 1024
    # Equal runs differ by half of it; it is a fourth of a byte a member.
    assert large["grown"] < small["grown"] + 1024


@pytest.mark.parametrize(
    "sql, kind",
    [
        ("SELECT '' AS profile_id FROM customers UNION ALL SELECT 'anna'", "mirror of rejected records"),
        ("SELECT profile_id, NULL AS audience_id FROM customers", "add of rejected records"),
    ],
    ids=["no profile", "no audience"],
)
def test_ten_times_the_rejections_take_no_more_memory(measure, sql, kind):
    small, large = (measure(rows, sql, kind) for rows in (100_000, 1_000_000))
    assert sum(large["rejected"].values()) == 1_000_000
    assert large["grown"] < 64 * 1024
    assert large["grown"] < small["grown"] * 1.1 + 1024


def test_ten_times_the_dead_letters_take_no_more_memory(measure):
    """Of IDs that are too long, which make 300 MB; SQLite, which sorts them in this process, needs more for
    more."""
    sql = "SELECT profile_id || printf('%0980d', 1) AS profile_id FROM customers UNION ALL SELECT 'anna'"
    small, large = (measure(rows, sql, "mirror of rejected records") for rows in (30_000, 300_000))
    assert sum(large["rejected"].values()) == 300_000
    sorting = [measure(rows, sql, "reading alone")["grown"] for rows in (30_000, 300_000)]
    assert large["grown"] < 64 * 1024
    assert large["grown"] - sorting[1] < (small["grown"] - sorting[0]) * 1.1 + 1024


def test_three_times_the_profiles_take_no_more_memory(measure, record_property):
    """Fewer of them, as each is a request; the smaller number has all buffers nearly full."""
    small, large = (measure(rows, ATTRIBUTES, "profiles") for rows in (60_000, 180_000))
    assert (small["sent"], large["sent"]) == (60_000, 180_000)
    record_property(
        "KiB over the imports at 60,000 and 180,000 profiles", f"{small['grown']}, {large['grown']}"
    )
    assert large["grown"] < small["grown"] * 1.1 + 1024


def test_a_plan_of_ten_times_the_profiles_takes_no_more_memory(measure, record_property):
    small, large = (measure(rows, ATTRIBUTES, "profiles planned") for rows in (100_000, 1_000_000))
    assert (small["unsent"], large["unsent"]) == (100_000, 1_000_000)
    record_property("KiB of a plan of 100,000 and 1,000,000 profiles", f"{small['grown']}, {large['grown']}")
    assert large["grown"] < 64 * 1024
    assert large["grown"] < small["grown"] * 1.1
