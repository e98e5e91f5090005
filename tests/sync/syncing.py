"""Mirrors between a ledger in memory and a stand-in for Talon.One."""

from __future__ import annotations

import json

from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.memberships import Memberships
from airflow_provider_talon_cdp.sync.mirror import Mirror
from tests.sync.fakes import FakeTalon, Storage, adds, opened

OPEN = Guard(on_empty="allow", max_removal_fraction=1.0)


class Cursor:
    version = 0

    def get(self):
        return self.version

    def set(self, version):
        self.version = version


class Sync:
    """A ledger, a Talon.One, and mirrors between them."""

    ahead = 64

    def __init__(self):
        self.storage = Storage()
        self.talon = FakeTalon()
        self.reads = 0
        self.cursor = Cursor()

    def ledger(self):
        return FilesLedger(
            self.storage.folder(), deployment_host="acme.talon.one", base_url="u", name="x", ahead=self.ahead
        )

    @property
    def ledger_version(self):
        ledger = self.ledger()
        ledger.load()
        return ledger.version

    @property
    def known(self):
        ledger = self.ledger()
        ledger.load()
        return set(ledger.known())

    @property
    def uncertain(self):
        ledger = self.ledger()
        ledger.load()
        return set(ledger.uncertain())

    def mirror(self, *rows, guard=OPEN, managed=None, **options):
        def source():
            self.reads += 1
            return iter([row for each in rows for row in (each if isinstance(each, list) else [each])])

        return Mirror(
            source=source,
            ledger=self.ledger(),
            guard=guard,
            sender=lambda: opened(self.talon),
            kind=Memberships(managed),
            **options,
        )

    def run(self, *rows, retry=False, **options):
        if not retry:
            self.cursor = Cursor()
        report = self.mirror(*rows, **options).run("task", self.cursor)
        assert report.balances
        return report

    def letters(self):
        found = [data for name, data in sorted(self.storage.objects.items()) if "dead-letters" in name]
        return [json.loads(line) for data in found for line in data.decode().splitlines()]


def vip(*profiles):
    return {(profile, "vip") for profile in profiles}


def numbers(*span):
    return adds(*(f"{number:06}" for number in range(*span)))
