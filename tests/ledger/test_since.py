"""Few changes are kept as plans on top of the members file; many make a new one."""

from __future__ import annotations

import random

import pytest

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.storage import names_in
from tests.ledger.conftest import FACTS, changes, members, planned, profiles

HUNDRED = [f"{number:03}" for number in range(100)]


@pytest.fixture
def hundred(open_ledger, commit):
    """A ledger with a hundred members in a file of theirs, one of them new; what it is kept as."""

    def opened(**options):
        return open_ledger(keep=1, batch=2, ahead=1, **options)

    commit(opened(), *(f"+{each}" for each in HUNDRED[1:]))
    commit(opened(), f"+{HUNDRED[0]}")
    return opened


def members_files(ledger):
    folders = [each for each in names_in(ledger.folder) if each[0] == "0"]
    return [folder for folder in folders if "members.tsv.zst" in names_in(ledger.folder / folder)]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_members_are_written_anew_when_the_plans_on_top_of_them_have_many_changes(hundred, loaded, commit):
    written = members_files(loaded())
    expected = set(HUNDRED)
    versions = []
    for number in range(30):
        commit(hundred(), f"-{number:03}", f"+x{number:02}")
        expected = expected - {f"{number:03}"} | {f"x{number:02}"}
        assert profiles(loaded().known()) == sorted(expected)
        if members_files(loaded()) != written:
            written = members_files(loaded())
            versions.append(number)
        assert len(written) == 1, "only the version in force is kept"
        assert len(loaded().manifest.since) <= 7
    # With the thirteenth change they are more than an eighth of a hundred.
    assert versions == [6, 13, 20, 27]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_plans_on_top_of_members_are_never_very_many(hundred, loaded, commit, open_ledger):
    commit(hundred(), *(f"+y{number:04}" for number in range(1000)))
    commit(hundred(), "+z")
    most = 0
    for number in range(20):
        commit(hundred(), f"+x{number:02}")
        most = max(most, len(loaded().manifest.since))
    assert most == 8
    assert len(profiles(loaded().known())) == 1121


def test_the_last_plan_that_changed_a_member_counts(hundred, loaded, commit):
    for texts in (["-001", "+a"], ["+001", "-a"], ["-002", "+a"], ["-002", "+b"], ["+002", "-a"]):
        commit(hundred(), *texts)
    assert len(loaded().manifest.since) > 3
    assert profiles(loaded().known()) == [*HUNDRED, "b"]


def test_the_plan_starts_from_members_and_plans_together(hundred, loaded, commit):
    commit(hundred(), "-001", "+a")
    commit(hundred(), "-002", "+b")
    seen = []

    def plan(known, *_):
        seen.extend(members(known))
        return []

    ledger = hundred()
    with ledger.held("me"):
        ledger.discard(ledger.draft(plan))
    assert [profile for profile, _ in seen] == ["000", *HUNDRED[3:], "a", "b"]


def test_what_was_refused_or_never_left_is_no_change_of_an_earlier_plan(hundred, loaded, commit):
    commit(hundred(), "+a", "+b", "+c", "+d", landed=[0], refused={0: [1]})
    commit(hundred(), "+e", "+f")
    assert len(loaded().manifest.since) == 2
    assert profiles(loaded().known()) == [*HUNDRED, "a", "e", "f"]
    assert not members(loaded().uncertain())


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("name", ["plan-00000.tsv.zst", "acks-"])
@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_file_of_an_earlier_plan_is_needed(hundred, loaded, commit, name, how):
    commit(hundred(), "+a")
    commit(hundred(), "+b")
    ledger = loaded()
    (plan,) = [each for each in ledger.manifest.since if each.parts[0].lines == 1 and each.folder[7] == "3"]
    (path,) = [each for each in (ledger.folder / plan.folder).iterdir() if each.name.startswith(name)]
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LedgerError, match="is missing" if how == "gone" else "is damaged"):
        members(loaded().known())


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("holds", ["members", "profiles"])
def test_any_history_gives_the_members_that_it_should(open_ledger, holds):
    """Against a dict; most versions keep plans on top of the members."""
    chance = random.Random(7)
    expected = {}
    ids = [f"{number:03}" for number in range(150)]

    def opened():
        return open_ledger(holds=holds, keep=2, batch=3, part=6)

    kept = 0
    for turn in range(25):
        plan = []
        for profile in sorted(chance.sample(ids, 150 if turn < 2 else chance.randrange(8))):
            action = "remove" if profile in expected and chance.random() < 0.5 else "add"
            what = f"f{chance.randrange(3)}" if holds == "profiles" else "vip"
            plan += [
                change._replace(key=what) for change in changes(f"{'+' if action == 'add' else '-'}{profile}")
            ]
        ledger = opened()
        with ledger.held("me"):
            ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
            share = ledger.share()
            for number, batch in enumerate(share.batches()):
                share.note_sending(number)
                share.landed(number)
                for change in batch.changes():
                    if change.action == "add":
                        expected[change.profile_id] = change.key
                    else:
                        expected.pop(change.profile_id, None)
            share.flush()
        reader = opened()
        reader.load()
        assert members(reader.known()) == sorted(expected.items())
        kept += bool(reader.manifest.since)
    assert kept > 10
