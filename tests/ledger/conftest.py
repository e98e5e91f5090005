"""State folders on a local disk and behind an S3 API, which moto serves on loopback."""

from __future__ import annotations

import sys
from uuid import uuid4

import pytest

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, RunFacts, Sizes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VIP = LedgerIdentity(
    deployment_host="acme.talon.one", base_url="https://integration.talon.one", name="audience:vip"
)
FACTS = RunFacts()


def compressed(text):
    """Make one frame of a ledger's file."""
    return zstd.compress(text, options={zstd.CompressionParameter.checksum_flag: 1})


def uncompressed(data):
    """Read the frames of a ledger's file."""
    return zstd.decompress(data).decode()


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

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def identified(**parts):
    """Name a ledger as ``VIP`` is, but for some parts."""
    return LedgerIdentity(**(VIP.parts | parts))


@pytest.fixture
def open_ledger(state, clock):
    """Open the ledger anew, as another process would."""

    def opened(place=state, keep=3, sleep=lambda _: None, **parts):
        sizes = {name: parts.pop(name) for name in ("batch", "part", "ahead") if name in parts}
        return Ledger(place, identified(**parts), keep=keep, sizes=Sizes(**sizes), clock=clock, sleep=sleep)

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


def plan_of(*texts):
    """Make a planner of changes."""
    return planned(changes(*texts))


def planned(plan):
    """Make a planner of changes that are spelt out."""
    return lambda known, uncertain, carry: [Chunk.of(plan)] if plan else []


def spelt(chunks):
    """All changes of chunks."""
    return [change for chunk in chunks for change in chunk.changes()]


def members(chunks):
    """All members of chunks."""
    return [change[:2] for change in spelt(chunks)]


def profiles(chunks):
    """The profiles of all members of chunks."""
    return [profile for profile, _ in members(chunks)]


@pytest.fixture
def commit():
    """Put a plan in force and acknowledge some of its batches."""

    def committed(ledger, *texts, landed=None, refused=None, left=0, owner="me"):
        with ledger.held(owner):
            ledger.make_current(ledger.draft(plan_of(*texts)), facts=FACTS)
            share = ledger.share()
            if left:
                share.note_sending(left - 1)
            for batch in range(share.left) if landed is None else landed:
                share.landed(batch, (refused or {}).get(batch, ()))
            share.flush()

    return committed


def names(ledger):
    """All files of a ledger, below its folder."""
    root = str(ledger.folder)
    found = [path for path in ledger.folder.rglob("*") if path.is_file()]
    return sorted(str(path).removeprefix(root).lstrip("/") for path in found)
