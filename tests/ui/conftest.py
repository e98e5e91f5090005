"""Reports as a sync leaves them beside its ledger."""

from __future__ import annotations

import json
from functools import partial

import pytest

FOLDER = "demo.europe-west1.talon.one/audience_vip-0123456789abcdef/reports"
COUNTS = {
    "read": 1000,
    "removals": 30,
    "resumed": 0,
    "unchanged": 900,
    "sent": 110,
    "added": 80,
    "removed": 30,
    "duplicate": 5,
    "rejected": {"the profile ID is empty": 12, "Talon.One refused it": 3},
    "unsent": 0,
    "requests": 4,
    "retries": 1,
    "throttled": 1,
    "seconds": 2.5,
}


def leave_report(root, name="20261128T200000Z-0123456789abcdef.json", folder=FOLDER, **fields):
    """Write a report into a ledger's folder, and return its place."""
    run = {"dag_id": "sync", "run_id": "r", "task_id": "vip", "map_index": -1, "try_number": 1}
    report = {
        "run": run | fields.pop("run", {}),
        "finished": "2026-11-28T20:00:02+00:00",
        "state": "done",
        "counts": COUNTS | fields.pop("counts", {}),
        "audiences": {"vip": {"added": 80, "removed": 30, "members": 980}},
        "guard": None,
        "ledger_version": 7,
        "dead_letters": None,
        "throughput": [[1.0, 50, 0], [2.0, 60, 1], [2.5, 110, 1]],
    }
    file = root / folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report | fields))
    return str(file)


@pytest.fixture
def leave(tmp_path):
    """``leave_report`` below a folder of this test."""
    return partial(leave_report, tmp_path)
