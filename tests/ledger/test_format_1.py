"""Ledgers that the version before wrote go on as ledgers of this one; ``data/`` holds files that it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.ledger import (
    Ledger,
    LedgerIdentity,
    RunFacts,
    ledger_name,
)
from tests.ledger.conftest import FACTS, changes, members, names, plan_of, spelt

DATA = Path(__file__).parent / "data" / "format-1"
MEMBERS = sorted([f"m{number:02}" for number in range(4, 60)] + ["a\tb\n\\", "n22", "ü", "x1", "x2", "😀"])
NAMES = [ledger_name("audience", "vip"), ledger_name("sync", "dag.task"), ledger_name("profiles", "dag.task")]


@pytest.fixture
def copied(tmp_path):
    """Open a copy of one of the old ledgers."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)

    def opened(name, **parts):
        identity = LedgerIdentity(
            deployment_host="acme.talon.one",
            base_url="https://integration.talon.one",
            name=name,
            holds="profiles" if name.startswith("profiles") else "members",
            **parts,
        )
        return Ledger(tmp_path, identity)

    return opened


def loaded(ledger):
    ledger.load()
    return ledger


def test_an_audience_is_read(copied):
    ledger = loaded(copied(NAMES[0]))
    assert (ledger.version, ledger.owner, ledger.facts) == (4, "old/task/run", RunFacts())
    assert len(ledger.manifest.since) == 2
    assert members(ledger.known()) == [(each, "vip") for each in MEMBERS]
    assert members(ledger.uncertain()) == [("n20", "vip"), ("n21", "vip")]
    assert spelt(ledger.unacknowledged()) == changes("+n20?", "+n21?")
    assert spelt(ledger.refused()) == changes("+n23")


def test_a_sync_of_many_audiences_is_read(copied):
    ledger = loaded(copied(NAMES[1]))
    assert members(ledger.known()) == [
        *((each, key) for each in "abc" for key in ("gold", "vip")),
        ("z", "vip"),
    ]
    assert ledger.suspected == {"gold"}
    assert members(ledger.uncertain()) == [("a", "gold"), ("b", "gold"), ("c", "gold")]
    assert [change[:3] for change in spelt(ledger.unacknowledged())] == [
        ("a", "gold", "remove"),
        ("b", "silver", "add"),
    ]


def test_a_sync_of_profiles_is_read(copied):
    ledger = loaded(copied(NAMES[2]))
    assert members(ledger.known()) == [("a", "d2.1"), ("c", "?d2.1"), ("d", "dd.1"), ("e", "de.1")]
    assert ledger.names == ("tier",)


@pytest.mark.parametrize("name", NAMES)
def test_the_next_version_is_of_this_format_and_knows_the_same(copied, name):
    before = members(loaded(copied(name)).known())
    for facts in (RunFacts(data_until="2026-11-28"), RunFacts(data_until="2026-11-29")):
        ledger = copied(name)
        with ledger.held("me"):
            ledger.make_current(ledger.draft(plan_of()), facts=facts)
        ledger = loaded(copied(name))
        assert ledger.facts == facts
        assert members(ledger.known()) == before
    assert not [each for each in names(ledger) if each.endswith(".gz") and each.startswith(ledger.plan)]


def test_an_old_version_is_what_counts_where_the_first_new_manifest_is_torn(copied):
    ledger = copied(NAMES[0])
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("-m04")), facts=FACTS)
        ledger.share().note_sending(0)
    (ledger.folder / ledger.manifest.file).write_bytes(b"")
    ledger = loaded(copied(NAMES[0]))
    assert ledger.version == 4
    assert members(ledger.known()) == [(each, "vip") for each in MEMBERS]
    assert members(ledger.uncertain()) == [("m04", "vip"), ("n20", "vip"), ("n21", "vip")]


def test_with_an_environment_a_ledger_without_one_is_not_taken(copied):
    ledger = loaded(copied(NAMES[0], environment="live"))
    assert ledger.version == 0
    (neighbour,) = ledger.neighbours()
    assert neighbour.startswith("environment is '' there and 'live' here: ")
    assert neighbour.endswith(str(copied(NAMES[0]).folder))


@pytest.mark.parametrize("kind", ["members", "plan"])
@pytest.mark.parametrize("at", range(0, 80, 3))
def test_a_flipped_bit_is_one_error_before_any_line_is_believed(copied, kind, at):
    ledger = loaded(copied(NAMES[0]))
    file = ledger.manifest.members if kind == "members" else ledger.manifest.plan.parts[0]
    path = ledger.folder / file.file
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 4
    path.write_bytes(data)
    stream = iter(ledger.known().snapshot if kind == "members" else ledger.share().batches())
    with pytest.raises(LedgerError, match=f"{path.name} is damaged"):
        next(stream)


def test_the_command_shows_it_by_its_folder(copied, capsys):
    assert main(["ledger", "show", str(copied(NAMES[0]).folder)]) == 0
    assert f"version 4, {len(MEMBERS)} members" in capsys.readouterr().out
    assert main(["ledger", "letters", str(copied(NAMES[0]).folder)]) == 0
    assert capsys.readouterr().out == '{"profile_id": "n23", "reason": "x"}\n'
