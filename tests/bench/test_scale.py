"""``bench/scale.py`` on fewer members: a scheduler, an executor, PostgreSQL, and a task that is killed on the
way."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

BENCH = Path(__file__).parents[2] / "bench"
# Each of three tasks has a part of a plan.
MEMBERS = 300_000


@pytest.mark.skipif(
    Version(version("apache-airflow")) < Version("3.3") or sys.platform != "linux",
    reason="the script is for the release that everything but the matrix runs on",
)
def test_the_group_is_exact_after_one_of_its_pushing_tasks_was_killed(record_property):
    done = subprocess.run(
        [sys.executable, BENCH / "scale.py", "--group", "--members", str(MEMBERS), "--rate", "20"],
        env={**os.environ, "PYTHONPATH": str(BENCH.parent)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| first sync", "| mirror"))]
    first, mirror = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    record_property(
        "members sent when a pushing task was killed, and sent twice", f"{first[-1]}, {first[-3]}"
    )
    assert first[1] == mirror[1] == f"{MEMBERS:,}"
    # 2 % left and as many joined; one more change asks whether the audience is still there.
    assert mirror[7:9] == [f"{MEMBERS * 4 // 100 + 1:,}", "0"]
