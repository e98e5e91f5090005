"""Mirrors between a ledger in memory and a stand-in for Talon.One."""

from __future__ import annotations

import json

from airflow_provider_talon_cdp.changes.diff import Scope
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, Sizes
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.members import Members
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.push import Limits
from airflow_provider_talon_cdp.sync.report import Report
from tests.changes.strategies import spelt_out
from tests.storage import Storage
from tests.sync.fakes import FakeTalon, adds, opened

OPEN = Guard(on_empty="allow", max_removal_fraction=1.0)
STRICT = Guard(min_removals=0)


class Cursor:
    version = 0

    def get(self):
        return self.version

    def set(self, version):
        self.version = version


class Sync:
    """A ledger, a Talon.One, and mirrors between them."""

    ahead = 64
    now = 1_790_000_000.0
    identity = LedgerIdentity(deployment_host="acme.talon.one", base_url="u", name="sync:x")

    def __init__(self):
        self.storage = Storage()
        self.talon = FakeTalon()
        self.reads = 0
        self.cursor = Cursor()

    def ledger(self):
        # No two runs begin in one second.
        self.now += 1
        return Ledger(
            self.storage.folder(), self.identity, sizes=Sizes(ahead=self.ahead), clock=lambda: self.now
        )

    def loaded(self):
        ledger = self.ledger()
        ledger.load()
        return ledger

    @property
    def known(self):
        return set(spelt_out(self.loaded().known()))

    @property
    def uncertain(self):
        return set(spelt_out(self.loaded().uncertain()))

    def mirror(self, *rows, guard=OPEN, managed=None, sends_all=False, **options):
        """Make a mirror of chunks and rejections."""

        def source():
            self.reads += 1
            return iter(rows)

        limits = {name: options.pop(name) for name in ("in_flight", "max_rejected") if name in options}
        return Mirror(
            **{
                "source": source,
                "ledger": self.ledger(),
                "guard": guard,
                "sender": lambda: opened(self.talon),
                "kind": Members(scope=Scope(managed=managed, sends_all=sends_all)),
                "limits": Limits(**limits),
            }
            | options
        )

    def run(self, *rows, retry=False, **options):
        """Run a mirror: of a new task instance, or the next try of the one before."""
        if not retry:
            self.cursor = Cursor()
        self.report = Report()
        self.mirror(*rows, **options).run("task", self.cursor, self.report)
        assert self.report.balances
        return self.report

    def letters(self):
        found = [data for name, data in sorted(self.storage.objects.items()) if "dead-letters" in name]
        return [json.loads(line) for data in found for line in data.decode().splitlines()]


def vip(*profiles):
    return {(profile, "vip") for profile in profiles}


def names(*span):
    return [f"{number:06}" for number in range(*span)]


def numbers(*span):
    return adds(*names(*span))
