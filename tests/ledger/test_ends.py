"""What a push knows at its end: what landed, had no effect, is unclear, or is left behind."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError, LedgerUnavailableError
from airflow_provider_talon_cdp.ledger.format import FORMAT, Manifest
from airflow_provider_talon_cdp.ledger.ledger import Ledger, RunFacts, Sizes
from airflow_provider_talon_cdp.ledger.letters import read_letters
from airflow_provider_talon_cdp.ledger.lock import LOCK_LASTS
from airflow_provider_talon_cdp.ledger.outside import REQUEST_LASTS
from tests.ledger.conftest import FACTS, VIP, changes, members, plan_of, planned, profiles, spelt
from tests.storage import Storage

TEN = [f"+{number}" for number in range(10)]


@pytest.fixture
def pushing(open_ledger):
    """Put a plan of ten in force, in batches of 2; its share."""

    def enforced(*texts, **options):
        ledger = open_ledger(batch=2, part=6, ahead=3, **options)
        ledger.lock.take("me")
        ledger.load()
        ledger.make_current(ledger.draft(plan_of(*(texts or TEN))), facts=FACTS)
        return ledger.share()

    return enforced


def test_what_was_noted_ahead_and_never_left_is_taken_back_by_an_orderly_end(pushing, loaded):
    share = pushing()
    share.note_sending(0)
    assert profiles(loaded().uncertain()) == ["0", "1", "2", "3", "4", "5"]
    share.landed(0)
    share.end()
    assert profiles(loaded().known()) == ["0", "1"]
    assert not profiles(loaded().uncertain())
    assert profiles(loaded().unacknowledged()) == [text[1:] for text in TEN[2:]]


def test_what_surely_had_no_effect_is_not_uncertain(pushing, loaded):
    share = pushing()
    for batch in range(4):
        share.note_sending(batch)
    share.landed(1, [0])
    share.without_effect(0)
    share.without_effect(3)
    share.end()
    assert profiles(loaded().known()) == ["3"]
    assert profiles(loaded().uncertain()) == ["4", "5"], "batch 2 left and has no answer"
    # It may leave again, after a first attempt that had no effect.
    assert [change.uncertain for change in spelt(loaded().unacknowledged())] == [False] * 2 + [True] * 2 + [
        False
    ] * 4


def test_a_batch_that_leaves_again_after_an_attempt_without_effect_is_uncertain_again(pushing, loaded):
    share = pushing()
    share.note_sending(0)
    share.without_effect(0)
    share.note_sending(0)
    share.end()
    assert profiles(loaded().uncertain()) == ["0", "1"]


def test_a_doubt_of_an_earlier_run_outlives_an_attempt_without_effect(pushing, loaded):
    share = pushing("+a?", "+b")
    share.note_sending(0)
    share.without_effect(0)
    share.end()
    assert profiles(loaded().uncertain()) == ["a"]


def test_a_killed_try_stays_uncertain_whatever_its_retry_knows_of_its_own_requests(
    open_ledger, loaded, pushing
):
    killed = pushing()
    killed.note_sending(0)
    retry = open_ledger(batch=2)
    retry.lock.take("me")
    retry.load()
    share = retry.share()
    share.note_sending(0)
    share.without_effect(0)
    share.end()
    assert profiles(loaded().uncertain()) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("landed", [True, False])
def test_fingerprints_of_an_orderly_end_have_a_doubt_only_where_it_is_unclear(open_ledger, loaded, landed):
    plan = [Change(each, "1.1", "add") for each in "abcd"]
    ledger = open_ledger(holds="profiles", batch=1)
    with ledger.held("me"):
        ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
        share = ledger.share()
        for batch in range(3):
            share.note_sending(batch)
        share.without_effect(0)
        if landed:
            share.landed(1)
        share.end()
    known = [("b", "1.1" if landed else "?1.1"), ("c", "?1.1")]
    assert members(loaded(holds="profiles").known()) == known


def test_a_refused_removal_ends_the_doubt_about_a_fingerprint_that_never_arrived(open_ledger, loaded):
    def run(*plan, refused, skipped=()):
        ledger = open_ledger(holds="profiles")
        with ledger.held("me"):
            ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
            ledger.share().note_sending(0)
            if refused is not None:
                ledger.share().landed(0, refused, skipped)
            ledger.share().end()
        return members(loaded(holds="profiles").known())

    both = [("a", "?1.1"), ("b", "?1.1")]
    assert run(Change("a", "1.1", "add"), Change("b", "1.1", "add"), refused=None) == both
    plan = Change("a", "?1.1", "remove"), Change("b", "?1.1", "remove")
    assert run(*plan, refused=[0, 1], skipped=[1]) == both[1:], "b was never sent"
    assert run(plan[1], refused=[0]) == []


def test_notes_and_letters_that_cannot_be_written_are_written_by_the_next_flush():
    storage, failing = Storage(), ["/dead-letters/", "/acks-"]

    def fail(doing, name):
        if doing == "write" and failing and failing[0] in name:
            failing.pop(0)
            raise TimeoutError("The storage does not answer.")

    ledger = Ledger(storage.folder(), VIP, sizes=Sizes(batch=2), sleep=lambda _: None)
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of(*TEN[:2])), facts=FACTS)
        share = ledger.share()
        share.note_sending(0)
        share.letters.add({"profile_id": "1"})
        share.landed(0, [1])
        storage.before_effect = fail
        for _ in range(2):
            with pytest.raises(LedgerUnavailableError, match="does not answer"):
                share.flush()
        share.flush()
        # As if the process was killed now.
        after = Ledger(storage.folder(), VIP)
        after.load()
        assert profiles(after.known()) == ["0"]
        assert members(after.refused()) == [("1", "vip")]
        assert [json.loads(letter) for letter in read_letters(ledger.folder)] == [{"profile_id": "1"}]


# Refused changes


def test_refused_changes_are_known_until_a_plan_has_them(open_ledger, loaded):
    def run(*texts, refused=(), skipped=(), carries=()):
        ledger = open_ledger(batch=10)
        with ledger.held("me"):
            before = spelt(ledger.refused())

            def planner(known, uncertain, carry):
                if carries:
                    carry(Chunk.of(changes(*carries)))
                return plan_of(*texts)(known, uncertain, carry)

            ledger.make_current(ledger.draft(planner), facts=FACTS)
            share = ledger.share()
            share.note_sending(0)
            share.landed(0, refused, skipped)
            share.end()
            assert spelt(ledger.refused()) == spelt(loaded().refused())
        return before

    assert run("+a", "+b", "+c", "-d", refused=[0, 1, 3], skipped=[1]) == []
    assert run("+e", "+g", refused=[1], carries=["+a", "-d"]) == changes("+a", "-d")
    # One was tried again, one not.
    assert run("+d", "+h", carries=["+a", "+g"]) == changes("+a", "-d", "+g")
    assert run("+a", "+i", refused=[0], carries=["+g"]) == changes("+a", "+g")
    assert run("+j") == changes("+a", "+g")
    assert run("+k") == []


# Facts


def test_facts_are_remembered_with_a_plan_and_without(open_ledger, loaded, commit):
    facts = RunFacts(
        data_until="2026-11-28T00:00:00+00:00",
        key_fingerprint="f",
        platform_name="Apache Airflow",
        audiences={"vip": {"id": 7, "created": "2026-01-01"}},
    )
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.remember(facts)
        assert loaded().version == 0
        ledger.make_current(ledger.draft(plan_of("+a")), facts=facts)
        ledger.share().note_sending(0)
        ledger.share().landed(0)
        ledger.share().end()
    assert loaded().facts == facts
    later = RunFacts(data_until="2026-11-29T00:00:00+00:00")
    other = open_ledger()
    with other.held("another"):
        other.remember(later)
        other.remember(later)
    ledger = loaded()
    assert (ledger.facts, ledger.version, ledger.plan, ledger.owner) == (later, 1, other.plan, "me")
    assert profiles(ledger.known()) == ["a"]
    commit(open_ledger(), "+b")
    assert profiles(loaded().known()) == ["a", "b"]


def test_facts_of_a_later_version_of_this_package_are_passed_over(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.remember(FACTS)
        ledger.manifest.facts["unheard of"] = 1
        ledger.manifest.write(ledger.folder, ledger.identity.parts)
    assert loaded().facts == FACTS


def test_a_manifest_of_the_version_before_counts_as_reported(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    manifest = loaded().manifest
    assert not manifest.reported
    content = {
        name: value for name, value in vars(manifest).items() if name not in ("reported", "unreported")
    }
    parts = {
        name: part and vars(part) for name in ("members", "refused", "withheld") for part in [content[name]]
    }
    plans = {"plan": asdict(manifest.plan), "since": [asdict(plan) for plan in manifest.since]}
    assert Manifest.of({**content, **parts, **plans, "format": FORMAT}, manifest.file).reported


def test_an_error_of_ending_the_notes_does_not_fail_a_run_that_has_ended(open_ledger, monkeypatch, caplog):
    """A retry would be green for what this run reports."""

    def fails(seconds):
        raise LedgerUnavailableError("The other state URI does not answer.")

    ledger = open_ledger()
    monkeypatch.setattr(ledger, "_end_notes", fails)
    with ledger.held("me"):
        pass
    assert "The other state URI does not answer." in caplog.text


# A run that lost its lock


def test_what_was_in_flight_or_landed_after_a_takeover_is_sent_again_by_the_next_plan(
    pushing, open_ledger, clock
):
    share = pushing()
    for batch in range(4):
        share.note_sending(batch)
    share.landed(0)
    clock.now += 1
    share.flush()
    clock.now += 1
    retry = open_ledger()
    with retry.held("me"):
        # It has another plan: what is in flight contradicts it.
        retry.make_current(retry.draft(plan_of(*(f"-{number}" for number in range(10)))), facts=FACTS)
        for batch in range(retry.share().left):
            retry.share().note_sending(batch)
            retry.share().landed(batch)
        retry.share().end()
        # It does not know yet: the last confirmation was a second ago.
        share.landed(1)
        clock.now += 100
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            share.raise_if_lost()
        share.note_in_flight([Chunk(["4", "5"], "vip"), Chunk(["6", "7"], "vip")])
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            share.end()
    for seconds in (0, REQUEST_LASTS):
        clock.now += seconds
        following = open_ledger()
        with following.held("next"):
            # Those that landed before are known to the one that took over.
            assert profiles(following.uncertain()) == ["2", "3", "4", "5", "6", "7"]
            following.make_current(following.draft(plan_of()), facts=FACTS)
    following = open_ledger()
    with following.held("next"):
        assert not profiles(following.uncertain())


def test_what_a_sync_of_profiles_had_in_flight_becomes_a_doubt(open_ledger, loaded, clock):
    def run(*plan):
        ledger = open_ledger(holds="profiles")
        with ledger.held("me"):
            ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
            for batch in range(ledger.share().left):
                ledger.share().note_sending(batch)
                ledger.share().landed(batch)
            clock.now += 1
            ledger.share().end()
        return ledger

    ledger = run(Change("a", "1.1", "add"), Change("b", "1.1", "add"))
    ledger.share().note_in_flight([Chunk(["b", "c"], ["0.1", "?0.1"]), Chunk(["c"], "0.2")])
    doubts = [("a", "1.1"), ("b", "?0.1"), ("c", "?0.2")]
    for _ in range(3):
        # Whether the notes are still there or not.
        assert members(loaded(holds="profiles").known()) == doubts
        run()
        clock.now += REQUEST_LASTS + LOCK_LASTS
    run(Change("b", "1.1", "add"), Change("c", "?0.2", "remove"))
    assert members(loaded(holds="profiles").known()) == [("a", "1.1"), ("b", "1.1")]


# An older state that was put back


def test_a_state_that_is_older_than_what_was_committed_is_refused(open_ledger, commit):
    for text in ("+a", "+b"):
        commit(open_ledger(), text)
    ledger = open_ledger()
    for ledger.at_least in (0, 1, 2):
        ledger.load()
    ledger.at_least = 3
    with pytest.raises(
        LedgerError, match=r"has version 2, but .* version 3\.\n.*Nothing was sent\.\n.*send=\"all\""
    ):
        ledger.load()


def test_a_version_whose_manifest_alone_was_lost_is_not_an_older_state(open_ledger, commit):
    for text in ("+a", "+b"):
        commit(open_ledger(), text)
    ledger = open_ledger()
    max(ledger.folder.glob("manifest-*")).unlink()
    ledger.at_least = 2
    ledger.load()
    assert ledger.version == 1


def test_a_ledger_that_is_read_while_another_run_replaces_its_version_is_read_anew(
    open_ledger, commit, monkeypatch
):
    """That run has deleted the files that are about to be read."""
    commit(open_ledger(keep=1), "+a")
    ledger = open_ledger(keep=1)
    read_acks, versions = ledger._read_acks, ["+b"]

    def _read_acks(*arguments):
        while versions:
            commit(open_ledger(keep=1), versions.pop())
        return read_acks(*arguments)

    monkeypatch.setattr(ledger, "_read_acks", _read_acks)
    ledger.load()
    assert ledger.version == 2


def test_members_of_a_version_whose_manifests_are_lost_count_for_the_guard(open_ledger, commit):
    commit(open_ledger(), "+a", "+b")
    ledger = open_ledger()
    for manifest in ledger.folder.glob("manifest-*"):
        manifest.unlink()
    ledger.load()
    assert ledger.version == 0
    # As members that another task has added.
    assert [
        (change.profile_id, change.verb) for chunk in ledger.uncertain() for change in chunk.changes()
    ] == [
        ("a", "remove"),
        ("b", "remove"),
    ]
