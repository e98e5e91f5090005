"""A process that dies at any step of a ledger's work leaves the old state or the new one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.adopt import members_of_csv
from airflow_provider_talon_cdp.ledger.ledger import Ledger, RunFacts, Sizes
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.repair import DamagedLedger
from tests.ledger.conftest import FACTS, VIP, plan_of, profiles
from tests.storage import KilledError, Process, Storage


def ledger_in(storage, keep=1):
    sizes = Sizes(batch=2, part=4, ahead=2)
    return Ledger(storage.folder(), VIP, keep=keep, sizes=sizes, sleep=lambda _: None)


def said_by(storage):
    ledger = ledger_in(storage)
    ledger.load()
    return ledger.version, profiles(ledger.known()), profiles(ledger.uncertain())


def deaths(storage, work):
    """Do the work from the same start again and again, and die one step later each time."""
    start = dict(storage.objects)
    dies_at = 0
    while True:
        storage.objects = dict(start)
        storage.process = Process(dies_at)
        try:
            work()
        except KilledError:
            storage.process = Process()
            yield dies_at
        else:
            storage.process = Process()
            return
        dies_at += 1


def first_version(storage):
    ledger = ledger_in(storage)
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a", "+b", "+c", "+d")), facts=FACTS)
        ledger.share().note_sending(0)
        ledger.share().landed(0, [])
        ledger.share().landed(1, [1])
        ledger.share().flush()


@pytest.fixture
def storage():
    return Storage()


def test_a_state_is_the_old_or_the_new_one_at_any_step(storage):
    first_version(storage)
    assert said_by(storage) == (1, ["a", "b", "c"], [])
    states = []

    def second_version():
        ledger = ledger_in(storage)
        with ledger.held("me"):
            ledger.make_current(ledger.draft(plan_of("-a", "+e", "+f", "+g", "+h")), facts=FACTS)
            ledger.letters.add({"profile_id": "x"})
            ledger.share().note_sending(0)
            ledger.share().landed(0, [])
            ledger.share().flush()

    for _ in deaths(storage, second_version):
        state = said_by(storage)
        if not states or states[-1] != state:
            states.append(state)
    assert states == [
        (1, ["a", "b", "c"], []),
        (2, ["a", "b", "c"], []),
        (2, ["a", "b", "c"], ["a", "e", "f", "g"]),
        (2, ["b", "c", "e"], ["f", "g"]),
    ]


def test_after_a_death_at_any_step_the_next_version_leaves_no_stray_file(storage):
    first_version(storage)

    def again():
        first_version(storage)

    for dies_at in deaths(storage, again):
        first_version(storage)
        there = {name.split("/", 3)[3] for name in storage.objects}
        ledger = ledger_in(storage)
        ledger.load()
        manifest = ledger.manifest
        plans = [*manifest.since, manifest.plan]
        named = {part.file for plan in plans for part in plan.parts} | {
            each for plan in plans for each in plan.acks
        }
        named |= {manifest.members.file} if manifest.members else set()
        assert {name for name in there if name[0] == "0"} == named, f"dead at {dies_at}"
        assert len([name for name in there if name.startswith("manifest")]) == 1
        assert not [name for name in there if name.startswith("locks")]


def test_a_death_while_members_are_adopted_leaves_none_or_all(storage, tmp_path):
    file = tmp_path / "members.csv"
    file.write_text("profileintegrationid\nc\na\nb\n")

    def adopt():
        ledger_in(storage).adopt("me", members_of_csv(file, "vip", "warn"))

    versions = []
    for dies_at in deaths(storage, adopt):
        version, known, _ = said_by(storage)
        versions.append(version)
        if version:
            assert known == ["a", "b", "c"], f"dead at {dies_at}"
            with pytest.raises(LedgerError, match="exists already"):
                adopt()
        else:
            assert known == [], f"dead at {dies_at}"
            adopt()
        assert said_by(storage) == (1, ["a", "b", "c"], []), f"dead at {dies_at}"
        claims = [name for name in storage.objects if "/locks/" in name and "heartbeat" not in name]
        assert not claims, f"dead at {dies_at}"
    assert set(versions) == {0, 1}


def test_facts_are_the_old_or_the_new_ones_at_any_step(storage):
    first_version(storage)
    facts = set()

    def remember():
        ledger = ledger_in(storage)
        with ledger.held("me"):
            ledger.remember(RunFacts(data_until="new"))

    for dies_at in deaths(storage, remember):
        ledger = ledger_in(storage)
        ledger.load()
        facts.add(ledger.facts.data_until)
        assert said_by(storage) == (1, ["a", "b", "c"], []), f"dead at {dies_at}"
        assert not list(ledger.unacknowledged())
    assert facts == {"", "new"}


def test_whatever_an_explicit_change_sent_before_it_died_is_uncertain(storage):
    first_version(storage)
    world = set()

    def remove():
        world.clear()
        calls = OutsideChanges(storage.folder(), replace(VIP, name="calls:x"), "calls")
        for profile in "abx":
            calls.note(Chunk([profile], "vip", "remove"))
            storage.process.step()
            world.add(profile)
            calls.counts.removed["vip"] += 1
            storage.process.step()
        calls.end()

    most = 0
    for dies_at in deaths(storage, remove):
        _, known, uncertain = said_by(storage)
        assert known == ["a", "b", "c"]
        assert world & {"a", "b"} <= set(uncertain), f"dead at {dies_at}"
        most = max(most, len(world))
        # The next plan sends it; what a killed task may still send stays uncertain for a day.
        second_version(storage)
        _, known, uncertain = said_by(storage)
        assert known == ["b"]
        assert uncertain in ([], ["b"])
    assert most == 3


def second_version(storage):
    ledger = ledger_in(storage)
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("-a", "+b", "-c")), facts=FACTS)
        share = ledger.share()
        for batch in range(share.left):
            share.note_sending(batch)
            share.landed(batch)
        share.end()


@pytest.mark.parametrize("first_is_sent", [True, False])
@pytest.mark.parametrize("damage", [None, b"torn"])
def test_an_explicit_change_is_not_forgotten_if_the_last_manifest_is_lost_after_any_step_of_two_mirrors(
    storage, first_is_sent, damage
):
    first_version(storage)
    calls = OutsideChanges(storage.folder(), replace(VIP, name="calls:x"), "calls")
    calls.note(Chunk(["a"], "vip", "remove"))
    calls.counts.removed["vip"] += 1
    calls.end()
    world = set()

    def add_uncertain(known, uncertain, carry):
        return [Chunk(chunk.ids, "vip", "add?") for chunk in uncertain]

    def two_mirrors():
        world.clear()
        for is_sent in (first_is_sent, True):
            ledger = ledger_in(storage, keep=2)
            with ledger.held("me"):
                ledger.make_current(ledger.draft(add_uncertain), facts=FACTS)
                share = ledger.share()
                for batch, chunk in enumerate(share.batches() if is_sent else ()):
                    share.note_sending(batch)
                    world.update(chunk.ids)
                    share.landed(batch)
                share.end()

    seen = set()
    for dies_at in deaths(storage, two_mirrors):
        manifests = sorted(name for name in storage.objects if "/manifest-" in name)
        if len(manifests) > 1:
            if damage is None:
                del storage.objects[manifests[-1]]
            else:
                storage.objects[manifests[-1]] = damage
        version, known, uncertain = said_by(storage)
        assert known == ["a", "b", "c"]
        assert "a" in world or "a" in uncertain, f"dead at {dies_at}"
        seen.add((version, *uncertain))
    assert seen >= {(1, "a"), (2,) if first_is_sent else (2, "a")}


def test_whatever_another_ledger_sent_before_it_died_is_known_to_be_uncertain(storage):
    first_version(storage)
    world = set()

    def other_mirror():
        world.clear()
        ledger = Ledger(storage.folder(), replace(VIP, name="sync:x"), sizes=Sizes(batch=1, ahead=1))
        with ledger.held("other"):
            ledger.make_current(ledger.draft(plan_of("-a", "+b", "+x")), facts=FACTS)
            share = ledger.share()
            for batch, chunk in enumerate(share.batches()):
                share.note_sending(batch)
                storage.process.step()
                world.update(chunk.ids)
                storage.process.step()
                share.landed(batch)
            share.end()

    most = 0
    for dies_at in deaths(storage, other_mirror):
        _, known, uncertain = said_by(storage)
        assert known == ["a", "b", "c"]
        # It has b too.
        assert world - {"b"} <= set(uncertain), f"dead at {dies_at}"
        most = max(most, len(world))
    assert most == 3


def test_a_repair_that_dies_at_any_step_can_be_done_again(storage):
    first_version(storage)
    ledger = ledger_in(storage)
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+e", "+f")), facts=FACTS)
        ledger.share().note_sending(0)
        ledger.share().landed(0)
        ledger.share().end()
    (acks,) = [name for name in storage.objects if "00000002-" in name and "acks" in name]
    storage.objects[acks] = b"damaged"

    def repair():
        DamagedLedger(storage.folder(), VIP, keep=1, sleep=lambda _: None).repair("me")

    died = 0
    for _ in deaths(storage, repair):
        repair()
        version, known, uncertain = said_by(storage)
        assert version in (3, 4)
        assert (known, uncertain) == (["a", "b", "c"], ["e", "f"])
        died += 1
    assert died > 20
    assert said_by(storage) == (3, ["a", "b", "c"], ["e", "f"])


def test_storage_that_fails_at_any_step_is_a_ledger_error_and_no_other(storage):
    first_version(storage)
    start = dict(storage.objects)
    for fails_at in range(200):
        storage.objects = dict(start)
        done = []

        def fail(doing, name, fails_at=fails_at, done=done):
            done.append(name)
            if len(done) > fails_at:
                raise PermissionError(13, "Access Denied", name)

        storage.before_effect = fail
        try:
            first_version(storage)
        except LedgerError as error:
            text = str(error)
        else:
            break
        assert "Access Denied" in text
        storage.before_effect = lambda doing, name: None
        said_by(storage)
    assert fails_at > 5
