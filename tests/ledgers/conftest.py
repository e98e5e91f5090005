"""State folders on a local disk and behind an S3 API, which moto serves on loopback."""

from __future__ import annotations

from uuid import uuid4

import pytest

from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.sync.changes import Change


@pytest.fixture(params=["disk", "S3"])
def state(request, tmp_path):
    """An empty folder for ledgers."""
    if request.param == "disk":
        return tmp_path / "state"
    return request.getfixturevalue("s3") / uuid4().hex


class Clock:
    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_ledger(state, clock):
    """Open the ledger anew, as another process would."""

    def opened(place=state, **options):
        defaults = {
            "deployment_host": "acme.talon.one",
            "base_url": "https://integration.talon.one",
            "name": "audience:vip",
            "clock": clock,
            "sleep": lambda _: None,
        }
        return FilesLedger(place, **defaults | options)

    return opened


@pytest.fixture
def loaded(open_ledger):
    def load(**options):
        ledger = open_ledger(**options)
        ledger.load()
        return ledger

    return load


def changes(*texts):
    """Write ``+a`` for an addition of a, ``-a`` for a removal, and ``?`` behind what is uncertain."""
    return [
        Change(text[1:].rstrip("?"), "vip", {"+": "add", "-": "remove"}[text[0]], text.endswith("?"))
        for text in texts
    ]


@pytest.fixture
def commit():
    """Put a plan in force and acknowledge some of its batches."""

    def committed(ledger, *texts, landed=None, refused=None, left=0, owner="me"):
        with ledger.locked(owner):
            ledger.enforce(ledger.stage(lambda *_: changes(*texts)))
            if left:
                ledger.leaving(left - 1)
            for batch in range(len(list(ledger.batches()))) if landed is None else landed:
                ledger.landed(batch, (refused or {}).get(batch, ()))
            ledger.flush()

    return committed


def names(ledger):
    """All files of a ledger, below its folder."""
    root = str(ledger.folder)
    found = [path for path in ledger.folder.rglob("*") if path.is_file()]
    return sorted(str(path).removeprefix(root).lstrip("/") for path in found)
