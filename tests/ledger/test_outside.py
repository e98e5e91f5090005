"""Changes of an audience that were made outside its ledger."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import suppress

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_talon_cdp.changes import spool
from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    InvalidInputError,
    LedgerError,
    LedgerUnavailableError,
)
from airflow_provider_talon_cdp.ledger import outside as module
from airflow_provider_talon_cdp.ledger.format import Manifest
from airflow_provider_talon_cdp.ledger.ledger import RunFacts, ledger_name
from airflow_provider_talon_cdp.ledger.lock import LOCK_LASTS
from airflow_provider_talon_cdp.ledger.outside import (
    ATTRIBUTES,
    NOTES,
    REQUEST_LASTS,
    WRITER_LASTS,
    NoteWriter,
    OutsideChanges,
)
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    names_in,
    read_json,
    remove,
    write_bytes,
    write_json,
)
from tests.ledger.conftest import FACTS, identified, members, plan_of, planned, profiles, spelt
from tests.storage import Storage


@pytest.fixture
def outside(state, clock):
    """The journal of a task that adds and removes explicitly."""

    def opened(owner="dag/explicit/run", **parts):
        identity = identified(name=ledger_name("calls", "dag.explicit"), **parts)
        return OutsideChanges(state, identity, owner, clock=clock)

    return opened


def acknowledged(calls):
    """Have the changes of a journal end, after Talon.One acknowledged some."""
    calls.counts.added["vip"] += 1
    calls.end()


def ends(ledger, clock):
    """Seconds until the writers of a ledger's notes end."""
    folder = ledger.folder / NOTES
    ends = [read_json(folder / name)["until"] for name in names_in(folder) if name.endswith(".json")]
    return [until - clock() for until in ends]


def push(ledger, plan, owner="me"):
    """Put a plan in force and send it; what was uncertain before."""
    with ledger.held(owner):
        uncertain = members(ledger.uncertain())
        ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
        share = ledger.share()
        for batch in range(share.left):
            share.note_sending(batch)
            share.landed(batch)
        share.end()
    return uncertain


def adds(*ids, key="vip"):
    return [Change(each, key, "add") for each in ids]


class _LateErrors(Storage):
    """Reports one write of a mark as failed after it was stored.

    Args:
        fails: Number of that write.
    """

    def __init__(self, fails):
        super().__init__()
        self.left = fails

    def put(self, name, data):
        super().put(name, data)
        self.left -= "/rule-calls/" in name
        if not self.left:
            self.left = -1
            raise TimeoutError("The answer was lost.")


def next_try(storage, *, again=False):
    """Begin a call that runs rules, as the next try of one task."""
    identity = identified(name=ledger_name("calls", "dag.call"))
    return OutsideChanges(storage.folder(), identity, "dag/call/run").calling_with_rules(again=again)


def test_a_mark_whose_write_was_reported_as_failed_does_not_keep_the_retry_from_its_call():
    storage = _LateErrors(1)
    with pytest.raises(LedgerUnavailableError, match="The answer was lost"), next_try(storage):
        pytest.fail("The call is made without a mark.")
    with next_try(storage) as was_sent:
        assert not was_sent


def test_the_mark_of_an_earlier_call_outlives_a_retry_that_cannot_write_its_own():
    storage = _LateErrors(2)
    with suppress(KeyboardInterrupt), next_try(storage, again=True):
        raise KeyboardInterrupt
    with pytest.raises(LedgerUnavailableError, match="The answer"), next_try(storage, again=True):
        pytest.fail("The call is made without a mark.")
    with next_try(storage, again=True) as was_sent:
        assert was_sent


def test_an_explicit_change_is_uncertain_for_the_next_plan_of_the_audience_and_certain_then(
    open_ledger, outside, loaded
):
    push(open_ledger(), adds("a", "b"))
    calls = outside()
    calls.note(Chunk(["b", "x", "a"], "vip", "remove"))
    # x was not a member.
    assert profiles(loaded().uncertain()) == ["a", "b"]
    assert loaded().other_writers == ["dag/explicit/run"]
    acknowledged(calls)
    assert profiles(loaded().known()) == ["a", "b"]
    assert push(open_ledger(), adds("a", "b")) == [("a", "vip"), ("b", "vip")]
    assert push(open_ledger(), []) == []
    assert loaded().other_writers == []
    assert not names_in(loaded().folder / NOTES)


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_temporary_files_of_killed_writers_are_deleted_after_a_day(open_ledger, clock):
    push(open_ledger(), adds("a"))
    notes = open_ledger().folder / NOTES
    notes.mkdir(exist_ok=True)
    name = f".0123456789ab-00000-{'0' * 16}.tsv.zst."
    for age in (WRITER_LASTS - 60, WRITER_LASTS + 60):
        (notes / f"{name}{age:.0f}").touch()
        os.utime(notes / f"{name}{age:.0f}", (clock() - age, clock() - age))
    push(open_ledger(), adds("b"))
    assert names_in(notes) == [f"{name}{WRITER_LASTS - 60:.0f}"]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_change_that_was_made_succeeds_though_its_end_cannot_be_noted(open_ledger, outside, loaded, caplog):
    """Another try would send it again, and its rules may run twice. The note only stays longer."""
    push(open_ledger(), adds("a"))
    with outside().noting(Chunk(["a"], "vip", "remove")):
        notes = loaded().folder / NOTES
        notes.rename(notes.with_name("kept"))
        notes.touch()
    assert "The outcome of this change was not recorded." in caplog.text
    notes.unlink()
    notes.with_name("kept").rename(notes)
    assert profiles(loaded().uncertain()) == ["a"]


def test_while_the_changes_may_still_arrive_they_stay_uncertain_whoever_plans(open_ledger, outside, clock):
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["x"], "vip"))
    for _ in range(2):
        assert push(open_ledger(), []) == [("x", "vip")]
    calls.note(Chunk(["y"], "vip"))
    calls.note_sending(1)
    calls.end()
    assert push(open_ledger(), []) == [("x", "vip"), ("y", "vip")]
    clock.now += REQUEST_LASTS
    assert push(open_ledger(), []) == [("x", "vip"), ("y", "vip")]
    assert push(open_ledger(), []) == []


def test_notes_of_a_killed_task_end_after_a_day(open_ledger, outside, clock):
    push(open_ledger(), adds("a"))
    outside().note(Chunk(["a"], "vip", "remove"))
    assert push(open_ledger(), []) == [("a", "vip")]
    clock.now += WRITER_LASTS
    assert push(open_ledger(), []) == [("a", "vip")]
    assert push(open_ledger(), []) == []


def test_a_draft_that_never_came_into_force_spends_no_note(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["a"], "vip", "remove"))
    acknowledged(calls)
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.discard(ledger.draft(plan_of("+a")))
    assert profiles(loaded().uncertain()) == ["a"]


@pytest.mark.parametrize("damage", [b"", None])
def test_a_note_is_deleted_by_the_version_after_the_one_that_covered_it(
    open_ledger, outside, loaded, caplog, damage
):
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["a"], "vip", "remove"))
    acknowledged(calls)
    ledger = open_ledger()
    with ledger.held("me"):
        # It is stopped before it sends anything.
        ledger.make_current(ledger.draft(plan_of("+a?")), facts=FACTS)
    assert loaded().other_writers == []
    manifest = ledger.folder / ledger.manifest.file
    if damage is None:
        manifest.unlink()
    else:
        manifest.write_bytes(damage)
    assert profiles(loaded().uncertain()) == ["a"]
    assert loaded().other_writers == ["dag/explicit/run"]
    assert push(open_ledger(), adds("a")) == [("a", "vip")]
    assert len(names_in(ledger.folder / NOTES)) == 2
    assert push(open_ledger(), []) == []
    assert not names_in(ledger.folder / NOTES)


def test_a_note_about_attributes_outlives_the_manifest_of_a_plan_that_was_never_sent(
    open_ledger, loaded, clock
):
    how = {"name": "profiles:x", "holds": "profiles"}
    first = open_ledger(**how)
    with first.held("me"):
        first.make_current(
            first.draft(planned([Change("a", "1.1", "add"), Change("b", "2.1", "add")])),
            facts=FACTS,
            names=["tier"],
        )
        first.share().note_sending(0)
        first.share().landed(0)
        first.share().end()
    writer = NoteWriter(first.folder, "another", "other", clock)
    writer.write(Chunk(["a"], ATTRIBUTES))
    writer.end()
    second = open_ledger(**how)
    with second.held("me"):
        second.make_current(second.draft(planned([Change("a", "1.1", "add")])), facts=FACTS, names=["tier"])
    (second.folder / second.manifest.file).unlink()
    assert members(loaded(**how).known()) == [("a", "?1.1+"), ("b", "2.1")]


def test_ledgers_of_many_audiences_are_told_of_their_own_only(open_ledger, outside, loaded):
    plan = sorted([*adds("a", "b", key="vip"), *adds("a", key="gold")])
    push(open_ledger(name="sync:x"), plan)
    push(open_ledger(), adds("a"))
    push(open_ledger(name="audience:silver"), adds("a", key="silver"))
    calls = outside()
    calls.note(Chunk(["a", "c", "d"], ["gold", "vip", "bronze"]))
    acknowledged(calls)
    assert members(loaded(name="sync:x").uncertain()) == [("c", "vip")]
    assert members(loaded().uncertain()) == [("c", "vip")]
    assert not members(loaded(name="audience:silver").uncertain())


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"environment": "live"},
        {"base_url": "https://elsewhere.talon.one"},
        {"deployment_host": "other.talon.one"},
    ],
)
def test_other_environments_and_deployments_are_not_told(open_ledger, outside, loaded, elsewhere):
    push(open_ledger(), adds("a"))
    outside(**elsewhere).note(Chunk(["a"], "vip"))
    assert not members(loaded().uncertain())


def test_without_a_ledger_nothing_is_written(outside, state):
    calls = outside()
    calls.note(Chunk(["a"], "vip"))
    calls.end()
    assert not state.exists() or not list(state.iterdir())
    assert calls.letters.place is None


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_an_unregistered_ledger_of_one_audience_is_told_too(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    registry = loaded().folder.parent / "registry"
    for name in names_in(registry):
        (registry / name).unlink()
    outside().note(Chunk(["a"], "vip", "remove"))
    assert profiles(loaded().uncertain()) == ["a"]


def test_many_changes_in_any_order_are_merged(open_ledger, outside, loaded):
    push(open_ledger(), adds("z"))
    calls = outside()
    ids = [f"{number * 7919 % 5000:04}" for number in range(5000)]
    for start in range(0, 5000, 100):
        calls.note(Chunk(ids[start : start + 200], "vip"))
    uncertain = loaded().uncertain()
    assert profiles(uncertain) == sorted(ids)


def test_dead_letters_of_explicit_changes_stay_for_some_runs(outside, clock, state):
    places = []
    for number in range(5):
        calls = outside(f"dag/explicit/run-{number}/-1")
        calls.letters.add({"profile_id": str(number)})
        calls.end()
        places.append(calls.letters.place.rpartition("/")[2])
        clock.now += 60
    folder = identified(name=ledger_name("calls", "dag.explicit")).folder(state)
    assert names_in(folder / "dead-letters") == places[2:]


# Two mirrors of one audience


def test_dead_letters_of_all_instances_of_a_mapped_task_stay(outside, clock):
    for run in range(5):
        for index in range(6):
            calls = outside(f"dag/explicit/run-{run}/{index}")
            calls.letters.add({"profile_id": "a"})
            calls.end()
            clock.now += 1
    assert len(names_in(calls.folder / "dead-letters")) == 3 * 6


def test_a_guest_is_told_from_a_member_of_which_this_ledger_is_not_sure(open_ledger, outside, loaded, clock):
    push(open_ledger(), adds("a", "b"))
    calls = outside()
    calls.note(Chunk(["a", "x"], "vip", ["remove", "add"]))
    acknowledged(calls)
    # A run that lost its lock leaves notes in its own ledger, which have no owner.
    own = NoteWriter(loaded().folder, "another", "", clock)
    own.write(Chunk(["y"], "vip"))
    own.end()
    assert spelt(loaded().uncertain()) == [
        Change("a", "vip", "add"),
        Change("x", "vip", "remove"),
        Change("y", "vip", "add"),
    ]


def test_members_that_nobody_has_added_are_left_alone(open_ledger, outside, loaded):
    """They may be members for another reason, and a mirror removes nobody whom no task has added."""
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["x"], "vip"))
    assert spelt(loaded().uncertain()) == [Change("x", "vip", "remove")]
    calls.note_sending(0)
    calls.without_effect(0)
    calls.end()
    assert not spelt(loaded().uncertain())
    with pytest.raises(AuthenticationError), outside("dag/call/run").noting(Chunk(["y"], "vip")):
        raise AuthenticationError("401", method="PUT", path="", status=401)
    with outside("dag/call/run").noting(Chunk(["z"], "vip")):
        """The call is answered."""
    assert spelt(loaded().uncertain()) == [Change("z", "vip", "remove")]


def test_changes_that_were_refused_after_a_lost_answer_may_have_been_made(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["x"], "vip"))
    calls.note_sending(0)
    calls.landed(0, [0], had_unclear_attempt=True)
    calls.end()
    assert spelt(loaded().uncertain()) == [Change("x", "vip", "remove")]


def test_unsent_changes_of_others_leave_guests_what_they_are(open_ledger, outside, loaded):
    """As of a task whose first try fails, and whose retry adds the members."""
    push(open_ledger(), adds("a"))
    for has_effect in (False, True):
        calls = outside()
        calls.note(Chunk(["x"], "vip"))
        acknowledged(calls) if has_effect else calls.end()
    assert spelt(loaded().uncertain()) == [Change("x", "vip", "remove")]


def test_guests_of_a_plan_whose_answers_were_lost_are_guests(open_ledger, loaded):
    push(open_ledger(), adds("a"))
    other = open_ledger(name="sync:x")
    with other.held("dag/other/run/-1"):
        other.make_current(other.draft(planned(adds("b"))), facts=FACTS)
        share = other.share()
        share.note_sending(0)
        share.end()
    assert spelt(loaded().uncertain()) == [Change("b", "vip", "remove")]


def test_guests_of_a_plan_of_which_nothing_arrived_are_none(open_ledger, loaded):
    push(open_ledger(), adds("a"))
    other = open_ledger(name="sync:x")
    with other.held("dag/other/run/-1"):
        other.make_current(other.draft(planned(adds("b"))), facts=FACTS)
        assert spelt(loaded().uncertain()) == [Change("b", "vip", "remove")]
    assert not spelt(loaded().uncertain())


def test_a_change_that_failed_before_its_request_leaves_no_guest(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    with suppress(InvalidInputError), outside().noting(Chunk(["b"], "vip")):
        raise InvalidInputError("A value cannot be sent.")
    assert not spelt(loaded().uncertain())


def test_an_audience_is_not_empty_if_the_call_failed_before_its_request(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    with suppress(InvalidInputError), outside().emptying("vip"):
        raise InvalidInputError("A certificate is missing.")
    assert not loaded().suspected


def test_a_ledger_of_attributes_that_was_made_after_the_note_gets_it_too(open_ledger, outside, loaded):
    """The sync may have sent its value before the call that waited for a retry."""
    how = {"name": "profiles:x", "holds": "profiles"}
    calls = outside()
    calls.attributes = ["tier"]
    with calls.noting(Chunk(["a"], ATTRIBUTES)):
        ledger = open_ledger(**how)
        with ledger.held("me"):
            plan = [Change("a", "1.1", "add"), Change("b", "2.1", "add")]
            ledger.make_current(ledger.draft(planned(plan)), facts=FACTS, names=["tier"])
            ledger.share().note_sending(0)
            ledger.share().landed(0)
            ledger.share().end()
    assert members(loaded(**how).known()) == [("a", "?1.1+"), ("b", "2.1")]


@pytest.mark.parametrize("notes_again", [False, True])
def test_a_ledger_that_was_made_after_the_first_note_sends_all_members_of_the_audience_again(
    open_ledger, outside, loaded, notes_again
):
    """The first change may have arrived after the first mirror's."""
    calls = outside()
    calls.note(Chunk(["b"], "vip", "remove"))
    push(open_ledger(), adds("a", "b", "c"))
    push(open_ledger(name="sync:x"), sorted([*adds("b"), *adds("b", key="gold")]))
    if notes_again:
        calls.note(Chunk(["a"], "vip", "remove"))
        assert profiles(loaded().uncertain()) == ["a"]
    acknowledged(calls)
    assert profiles(loaded().uncertain()) == ["a", "b", "c"]
    assert members(loaded(name="sync:x").uncertain()) == [("b", "vip")]
    # It has members all the same: they are not its first ones.
    assert loaded().filled() == {"vip"}
    assert not loaded().suspected
    push(open_ledger(), [])
    assert not profiles(loaded().uncertain())


def test_notes_that_are_deleted_while_the_ledger_is_read_without_its_lock_damage_nothing(
    open_ledger, outside, monkeypatch
):
    how = {"name": "sync:x"}
    push(open_ledger(**how), sorted([*adds("a"), *adds("a", key="gold")]))
    calls = outside()
    calls.note(Chunk(["b"], "vip"))
    acknowledged(calls)
    find = open_ledger(**how)._find_notes.__func__

    def slowly(ledger):
        found = find(ledger)
        monkeypatch.setattr(type(ledger), "_find_notes", find)
        # The plan after the one that covers the note deletes it.
        push(open_ledger(**how), adds("c"))
        push(open_ledger(**how), adds("d"))
        return found

    reader = open_ledger(**how)
    reader.managed = {"vip"}
    monkeypatch.setattr(type(reader), "_find_notes", slowly)
    reader.load()
    assert reader.version == 3


def test_spent_notes_that_the_current_version_deletes_while_the_ledger_is_read_damage_nothing(
    open_ledger, outside, monkeypatch
):
    """A run makes a version current first, and then deletes the notes that the one before it has spent."""
    how = {"name": "sync:x"}
    push(open_ledger(**how), sorted([*adds("a"), *adds("a", key="gold")]))
    calls = outside()
    calls.note(Chunk(["b"], "vip"))
    acknowledged(calls)
    push(open_ledger(**how), adds("c"))
    notes = open_ledger(**how).folder / NOTES
    spent = {name: (notes / name).read_bytes() for name in names_in(notes)}
    push(open_ledger(**how), adds("d"))
    for name, content in spent.items():
        write_bytes(notes / name, content)
    reader = open_ledger(**how)
    reader.managed = {"vip"}
    find = reader._find_notes.__func__

    def slowly(ledger):
        found = find(ledger)
        for name in spent:
            remove(notes / name)
        return found

    monkeypatch.setattr(type(reader), "_find_notes", slowly)
    reader.load()
    assert reader.version == 3


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_note_that_stays_damaged_is_an_error_of_a_load_too(open_ledger, outside):
    how = {"name": "sync:x"}
    push(open_ledger(**how), adds("a"))
    outside().note(Chunk(["b"], "vip"))
    reader = open_ledger(**how)
    reader.managed = {"vip"}
    (note,) = (reader.folder / NOTES).glob("*.tsv.zst")
    note.write_bytes(b"x")
    with pytest.raises(DamagedError, match=note.name):
        reader.load()


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000000000a1b2c3", "registry", "internal-ids"])
def test_files_that_are_no_entries_stop_nobody(open_ledger, outside, loaded, state, name):
    push(open_ledger(), adds("a"))
    for folder in ("registry", "internal-ids"):
        write_bytes(state / "acme.talon.one" / folder / name, b"")
    outside().note(Chunk(["a"], "vip", "remove"))
    assert push(open_ledger(), adds("a")) == [("a", "vip")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (f"{0:016x}.json", b"{"),
        (f".{0:016x}.json.4a2b", b""),
        (f"{0:016x}.json", {"state_uri": "no-such-storage://bucket"}),
        (f"{0:016x}.json", {"state_uri": None}),
        (f"{0:016x}.json", []),
        (".DS_Store", b""),
    ],
)
def test_a_pointer_that_cannot_be_read_hides_no_other_one(open_ledger, loaded, clock, state, name, content):
    common = state / "common"
    ledger = open_ledger(state / "one")
    ledger.registry.common = common
    push(ledger, adds("a"))
    pointers = common / "acme.talon.one" / "elsewhere"
    if isinstance(content, bytes):
        write_bytes(pointers / name, content)
    else:
        write_json(pointers / name, content)
    assert names_in(pointers)[0] == name, "it is read first"
    calls = OutsideChanges(common, identified(name=ledger_name("calls", "d.t")), "d/t/r", clock=clock)
    calls.note(Chunk(["a"], "vip", "remove"))
    assert profiles(loaded(place=state / "one").uncertain()) == ["a"]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_ledger_is_found_once_however_its_state_uri_is_spelt(open_ledger, clock, state):
    common = state / "common"
    for place in (ObjectStoragePath(f"{state}/one"), ObjectStoragePath(f"file://{state}/one")):
        ledger = open_ledger(place)
        ledger.registry.common = ObjectStoragePath(str(common))
        push(ledger, adds("a"))
    assert len(names_in(common / "acme.talon.one" / "elsewhere")) == 2
    calls = OutsideChanges(
        ObjectStoragePath(str(common)), identified(name=ledger_name("calls", "d.t")), "d/t/r", clock=clock
    )
    assert list(calls.registry.ledgers_of(["vip"]).values()) == [[("vip", "vip")]]


def test_a_ledger_whose_plan_is_replaced_while_it_is_told_is_told_of_again(
    open_ledger, outside, loaded, monkeypatch
):
    calls = outside()
    calls.note(Chunk(["b"], "vip", "remove"))
    push(open_ledger(), adds("a", "b"))
    write = module.write_mark

    def late(*arguments):
        monkeypatch.setattr(module, "write_mark", write)
        push(open_ledger(), adds("c"))
        write(*arguments)

    monkeypatch.setattr(module, "write_mark", late)
    acknowledged(calls)
    assert profiles(loaded().uncertain()) == ["a", "b", "c"]


def test_what_this_ledger_did_to_an_audience_is_not_forgotten_where_a_run_may_not_change_it(
    open_ledger, loaded, clock
):
    """Of others it is known only that the audience must be sent again."""
    how = {"name": "sync:x"}
    push(open_ledger(**how), sorted([*adds("a"), *adds("a", key="gold")]))
    for owner, ids in (("", ["b"]), ("dag/other/run/-1", ["c"])):
        writer = NoteWriter(loaded(**how).folder, f"of{len(owner)}", owner, clock)
        writer.write(Chunk(ids, "gold"))
        writer.end()
    ledger = open_ledger(**how)
    ledger.managed = {"vip"}
    with ledger.held("me"):
        assert members(ledger.uncertain()) == [("b", "gold")]


@pytest.mark.parametrize(
    ("audiences", "days", "left"), [("gold", 2, 2), ("gold", 4, 0), ("gold and vip", 2, 0)]
)
def test_notes_about_audiences_that_a_run_may_not_change_are_kept_for_three_days(
    open_ledger, outside, clock, audiences, days, left
):
    how = {"name": "sync:x"}
    push(open_ledger(**how), sorted([*adds("a"), *adds("a", key="gold")]))
    calls = outside()
    for audience in audiences.split(" and "):
        calls.note(Chunk(["b"], audience))
    acknowledged(calls)
    clock.now += days * 86_400
    # The plan after the one that covers a note deletes it.
    for profile in ("c", "d"):
        ledger = open_ledger(**how)
        ledger.managed = {"vip"}
        ledger.load()
        assert ledger.must_be_replaced is (left == 0 and profile == "c")
        push(ledger, adds(profile))
    assert len(names_in(ledger.folder / NOTES)) == left


def test_a_ledger_that_was_made_after_a_note_is_not_told_of_what_had_no_effect(open_ledger, outside, loaded):
    calls = outside()
    calls.note(Chunk(["b"], "vip", "remove"))
    push(open_ledger(), adds("a", "b"))
    calls.end()
    assert not profiles(loaded().uncertain())


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_change_that_was_made_succeeds_though_new_ledgers_are_not_found(
    open_ledger, outside, caplog, monkeypatch
):
    calls = outside()
    calls.note(Chunk(["b"], "vip", "remove"))

    def fail(_):
        raise LedgerUnavailableError("The ledger cannot be read.")

    monkeypatch.setattr(calls.registry, "ledgers_of", fail)
    acknowledged(calls)
    assert "A mirror that runs for the first time may not know of these changes." in caplog.text


def test_a_sync_has_no_guests_in_an_audience_of_which_it_has_no_members(open_ledger, outside, loaded, clock):
    """By now the audience may be that of another mirror, which the sync would empty."""
    how = {"name": "sync:x"}
    push(open_ledger(**how), sorted([*adds("a"), *adds("a", key="gold")]))
    push(open_ledger(**how), [Change("a", "gold", "remove")])
    calls = outside()
    calls.note(Chunk(["b", "c"], ["gold", "vip"]))
    acknowledged(calls)
    assert members(loaded(**how).uncertain()) == [("c", "vip")]
    own = NoteWriter(loaded(**how).folder, "another", "", clock)
    own.write(Chunk(["d"], "gold"))
    own.end()
    assert members(loaded(**how).uncertain()) == [("c", "vip"), ("d", "gold")]


def test_a_note_may_have_a_member_twice(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    calls = outside()
    ids = [f"customer-{number:06}@mail.example.com" for number in range(10_000)]
    calls.note(Chunk([each for each in ids for _ in range(3)], "vip", ["add", "remove", "add"] * 10_000))
    assert profiles(loaded().uncertain()) == ids


def test_a_writer_may_write_more_notes_than_five_digits_count(open_ledger, loaded, clock):
    push(open_ledger(), adds("a"))
    writer = NoteWriter(loaded().folder, "another", "dag/other/run/-1", clock)
    writer.write(Chunk(["x"], "vip"))
    writer.written = 100_000
    writer.write(Chunk(["y"], "vip"))
    assert profiles(loaded().uncertain()) == ["x", "y"]


def test_changes_of_many_audiences_are_one_note_in_a_ledger(open_ledger, outside, loaded):
    audiences = [f"audience-{number:02}" for number in range(50)]
    push(open_ledger(name="sync:x"), [Change("a", each, "add") for each in audiences])
    outside().note(Chunk(["b"] * 50, audiences))
    assert members(loaded(name="sync:x").uncertain()) == [("b", each) for each in audiences]
    # The note, and its writer's end.
    assert len(names_in(loaded(name="sync:x").folder / NOTES)) == 2


def test_a_note_that_comes_while_the_ends_are_read_is_not_kept_for_ever(
    open_ledger, outside, loaded, monkeypatch
):
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["x"], "vip"))

    def slowly(path):
        monkeypatch.setattr(module, "read_json", read_json)
        calls.note(Chunk(["y"], "vip"))
        acknowledged(calls)
        return read_json(path)

    ledger = open_ledger()
    with ledger.held("me"):
        monkeypatch.setattr(module, "read_json", slowly)
        draft = ledger.draft(plan_of())
        assert profiles(ledger.uncertain()) == ["x"]
        ledger.make_current(draft, facts=FACTS)
    assert push(open_ledger(), []) == [("y", "vip")]
    assert push(open_ledger(), []) == []
    assert not names_in(loaded().folder / NOTES)


def test_a_guest_that_was_removed_again_is_none_for_the_guard(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    for action in ("add", "remove"):
        calls = outside()
        calls.note(Chunk(["x"], "vip", action))
        acknowledged(calls)
    assert spelt(loaded().uncertain()) == [Change("x", "vip", "add")]


def test_guests_of_a_plan_that_was_never_approved_are_guests_of_the_next_one(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    calls = outside()
    calls.note(Chunk(["x"], "vip"))
    acknowledged(calls)
    for awaits in (True, False):
        ledger = open_ledger()
        with ledger.held("me"):
            assert spelt(ledger.uncertain()) == [Change("x", "vip", "remove")]
            facts = RunFacts(awaits_approval=awaits)
            ledger.make_current(ledger.draft(plan_of("-x?")), facts=facts)
    assert spelt(loaded().uncertain()) == [Change("x", "vip", "add")]


def test_a_note_without_its_writers_end_is_spent_once_it_is_covered(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    outside().note(Chunk(["x"], "vip"))
    (end,) = [name for name in names_in(loaded().folder / NOTES) if name.endswith(".json")]
    (loaded().folder / NOTES / end).unlink()
    assert push(open_ledger(), []) == [("x", "vip")]
    assert push(open_ledger(), []) == []


@pytest.mark.parametrize("noticed", [True, False])
def test_an_audience_that_is_deleted_during_the_planning_is_filled_by_the_next_plan(
    open_ledger, outside, loaded, monkeypatch, noticed
):
    """Whoever comes first: the plan looks for the deletion when it is in force, and the deletion for it."""
    push(open_ledger(), adds("a"))
    ledger = open_ledger()
    with ledger.held("me"):
        draft = ledger.draft(plan_of("+b"))
        if not noticed:
            monkeypatch.setattr(ledger, "_marked", lambda *_: frozenset())
        with outside().emptying("vip"):
            ledger.make_current(draft, facts=FACTS)
    assert loaded().suspected == {"vip"}


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_a_deletion_during_the_planning_is_not_lost_with_the_plan_before(
    open_ledger, outside, loaded, monkeypatch, keep, killed
):
    """Also if the run is killed after its manifest was written, and before it deletes older files."""
    push(open_ledger(keep=keep), adds("a", "b"))
    # So many changes that the next version has a file of members, and needs no earlier plan.
    push(open_ledger(keep=keep), adds("c", "d"))

    class Killed(BaseException):
        """As SIGKILL ends the run."""

    def die(*_):
        raise Killed

    ledger = open_ledger(keep=keep)
    with suppress(Killed), ledger.held("me"):
        draft = ledger.draft(plan_of("+e"))
        with outside().emptying("vip"):
            """It is made again after it."""
        if killed:
            monkeypatch.setattr(Manifest, "remove_others", die)
        ledger.make_current(draft, facts=FACTS)
    assert killed or ledger.suspected == {"vip"}
    assert loaded().suspected == {"vip"}


def test_a_deletion_is_not_lost_with_the_manifest_of_the_plan_that_knows_of_it(open_ledger, outside, loaded):
    push(open_ledger(), adds("a", "b"))
    push(open_ledger(), adds("c"))
    with outside().emptying("vip"):
        """It is made again after it."""
    max(loaded().folder.glob("manifest-*")).unlink()
    assert loaded().version == 1
    assert loaded().suspected == {"vip"}


def test_a_deletion_that_was_made_succeeds_though_the_storage_fails_after_it(
    open_ledger, outside, loaded, monkeypatch, caplog
):
    """Another try would find no audience, and be red for good."""
    push(open_ledger(), adds("a"))

    def fail(_):
        raise LedgerUnavailableError("The storage does not answer.")

    with outside().emptying("vip"):
        monkeypatch.setattr(module, "find_manifest", fail)
    assert "A mirror that is running may not notice that the audience is empty." in caplog.text
    assert loaded().suspected == {"vip"}


def test_a_mirror_tells_the_other_ledgers_of_its_audience(open_ledger, loaded):
    push(open_ledger(), adds("a", "b"), owner="team_a/mirror/1")
    other = open_ledger(name="sync:x")
    with other.held("team_b/mirror/1"):
        plan = sorted([*adds("b", "c"), *adds("z", key="gold")])
        other.make_current(other.draft(planned(plan)), facts=FACTS)
        first = loaded()
        assert members(first.uncertain()) == [("c", "vip")], "both have b"
        assert first.other_writers == ["team_b/mirror/1"]
        assert push(open_ledger(), [], owner="team_a/mirror/2") == [("c", "vip")]
        share = other.share()
        share.note_sending(0)
        share.landed(0)
    # While the other one was at work, a plan could not settle it.
    assert push(open_ledger(), [], owner="team_a/mirror/3") == [("c", "vip")]
    assert push(open_ledger(), [], owner="team_a/mirror/4") == []


def test_two_mirrors_of_one_truth_come_to_rest(open_ledger):
    for _ in range(2):
        for name in ("audience:vip", "sync:x"):
            push(open_ledger(name=name), adds("a", "b"))
    for name in ("audience:vip", "sync:x"):
        assert push(open_ledger(name=name), []) == []


def test_all_plans_of_a_run_end_with_it(open_ledger, loaded, clock):
    """A retry first resumes the plan of the try before."""
    push(open_ledger(), adds("a"))
    other = open_ledger(name="sync:x")
    with other.held("dag/other/run/-1"):
        for profile in ("b", "c"):
            other.make_current(other.draft(planned(adds(profile))), facts=FACTS)
            share = other.share()
            share.note_sending(0)
            share.landed(0)
            share.end()
    assert ends(loaded(), clock) == [0.0, 0.0]
    assert push(open_ledger(), []) == [("b", "vip"), ("c", "vip")]
    assert push(open_ledger(), []) == []


def test_a_plan_that_replaces_one_of_a_killed_run_ends_its_notes_too(open_ledger, loaded, clock):
    push(open_ledger(), adds("a"))
    killed = open_ledger(name="sync:x")
    with suppress(KeyboardInterrupt), killed.held("dag/other/run/-1"):
        killed.make_current(killed.draft(planned(adds("b"))), facts=FACTS)
        killed.share().note_sending(0)
        killed.lock.handed_over = True
        raise KeyboardInterrupt
    assert ends(loaded(), clock) == [WRITER_LASTS]
    with open_ledger(name="sync:x").held("dag/other/run/-1"):
        """A retry that ends before it plans."""
    assert ends(loaded(), clock) == [WRITER_LASTS]
    push(open_ledger(name="sync:x"), adds("b"), owner="dag/other/run/-1")
    assert ends(loaded(), clock) == [REQUEST_LASTS, 0.0]
    # What has ended is not ended again.
    clock.now += 60
    push(open_ledger(name="sync:x"), adds("c"), owner="dag/other/run/-1")
    assert ends(loaded(), clock) == [REQUEST_LASTS - 60, -60, 0.0]


def test_a_plan_that_others_push_tells_until_it_is_committed(open_ledger, clock):
    push(open_ledger(), adds("a"))
    other = open_ledger(name="sync:x")
    with other.held("planner"):
        other.make_current(other.draft(planned(adds("b"))), facts=FACTS, handed_over=True)
    pusher = open_ledger(name="sync:x")
    with pusher.pushing("planner", other.plan, [0]) as share:
        share.note_sending(0)
        share.landed(0)
        share.end()
    for _ in range(2):
        assert push(open_ledger(), []) == [("b", "vip")]
    assert open_ledger(name="sync:x").commit("planner", other.plan).acknowledged == 1
    assert push(open_ledger(), []) == [("b", "vip")]
    assert push(open_ledger(), []) == []


def plan_of_removals(open_ledger, how):
    """Plan the removal of two members, for others to push; return the plan's name."""
    push(open_ledger(**how), adds("b", "c"))
    ledger = open_ledger(**how)
    with ledger.held("dag/planner/run/-1"):
        removals = [change._replace(action="remove") for change in adds("b", "c")]
        ledger.make_current(ledger.draft(planned(removals)), facts=FACTS, handed_over=True)
    return ledger.plan


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("runs", [0, 1, 2])
def test_a_plan_that_is_pushed_days_after_it_was_made_tells_of_each_part_again(
    open_ledger, loaded, clock, runs
):
    """Until then the other ledger has covered its notes, and perhaps deleted them."""
    push(open_ledger(), adds("a", "b", "c"))
    how = {"name": "sync:x", "batch": 1, "part": 1}
    plan = plan_of_removals(open_ledger, how)

    def uncertain_after(runs):
        return [push(open_ledger(), adds("a", "b", "c")) for _ in range(runs)]

    uncertain_after(2)
    for part, profile in enumerate("bc"):
        clock.now += 1.5 * WRITER_LASTS
        uncertain_after(runs)
        pusher = open_ledger(**how)
        with pusher.pushing("dag/planner/run/-1", plan, [part]) as share:
            assert (profile, "vip") in members(loaded().uncertain())
            assert loaded().other_writers == ["dag/planner/run/-1"]
            share.note_sending(0)
            share.landed(0)
            share.end()
        assert all((profile, "vip") in found for found in uncertain_after(2))
    assert open_ledger(**how).commit("dag/planner/run/-1", plan).acknowledged == 2
    assert ("c", "vip") in uncertain_after(2)[0]
    assert uncertain_after(1) == [[]]
    assert not names_in(loaded().folder / NOTES)


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("days", [0, 3])
def test_a_ledger_that_was_made_after_a_plan_is_told_when_the_plan_is_pushed(
    open_ledger, loaded, clock, days
):
    how = {"name": "sync:x", "batch": 1, "part": 1}
    plan = plan_of_removals(open_ledger, how)
    clock.now += days * WRITER_LASTS
    push(open_ledger(), adds("b", "c"))
    assert not members(loaded().uncertain())
    for part, profile in enumerate("bc"):
        with open_ledger(**how).pushing("dag/planner/run/-1", plan, [part]) as share:
            assert (profile, "vip") in members(loaded().uncertain())
            share.note_sending(0)
            share.landed(0)
            share.end()
    assert loaded().other_writers == ["dag/planner/run/-1"]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("names, doubts", [(["tier"], ["?1.1+"]), (["other"], ["1.1"])])
def test_a_ledger_of_attributes_that_was_made_after_a_plan_is_told_of_those_that_it_deletes(
    open_ledger, loaded, names, doubts
):
    how = {"name": "profiles:x", "holds": "profiles"}
    later = {"name": "profiles:y", "holds": "profiles"}
    push_profiles(open_ledger(**how), Change("a", "1.1", "add"))
    other = open_ledger(**how)
    with other.held("planner"):
        removal = planned([Change("a", "-.1", "remove")])
        other.make_current(other.draft(removal), facts=FACTS, names=["tier"], handed_over=True)
    push_profiles(open_ledger(**later), Change("a", "1.1", "add"), names=names)
    assert [key for _, key in members(loaded(**later).known())] == ["1.1"]
    with open_ledger(**how).pushing("planner", other.plan, [0]):
        assert [key for _, key in members(loaded(**later).known())] == doubts


def push_profiles(ledger, *changes, names=("tier",)):
    with ledger.held("me"):
        ledger.make_current(ledger.draft(planned(list(changes))), facts=FACTS, names=names)
        ledger.share().note_sending(0)
        ledger.share().landed(0)
        ledger.share().end()


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_memory_does_not_grow_with_the_number_of_notes_about_attributes(
    open_ledger, loaded, clock, monkeypatch
):
    monkeypatch.setattr(spool.sorted_members, "__kwdefaults__", {"run": 5000})
    monkeypatch.setattr(spool, "_BLOCK", 100)
    how = {"name": "profiles:x", "holds": "profiles"}
    push_profiles(open_ledger(**how), Change("b", "1.1", "add"), Change("p00000500", "2.1", "add"))
    peaks, written = [], 0
    for total in (10_000, 100_000):
        writer = NoteWriter(loaded(**how).folder, f"another-{total}", "other", clock)
        for start in range(written, total, 5000):
            writer.write(Chunk([f"p{number:08}" for number in range(start, start + 5000)], ATTRIBUTES))
        writer.end()
        written = total
        ledger = loaded(**how)
        tracemalloc.start()
        assert members(ledger.known()) == [("b", "1.1"), ("p00000500", "?2.1+")]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_a_part_that_is_pushed_at_once_or_that_is_complete_tells_nobody_again(open_ledger, loaded, clock):
    push(open_ledger(), adds("a"))
    other = open_ledger(name="sync:x")
    with other.held("planner"):
        other.make_current(other.draft(planned(adds("b"))), facts=FACTS, handed_over=True)
    notes = names_in(loaded().folder / NOTES)
    for _ in range(2):
        with open_ledger(name="sync:x").pushing("planner", other.plan, [0]) as share:
            for batch in range(share.left):
                share.note_sending(batch)
                share.landed(batch)
            share.end()
        assert names_in(loaded().folder / NOTES) == notes
        clock.now += 2 * WRITER_LASTS


def test_a_new_ledger_says_which_others_there_are_of_the_audience(open_ledger, loaded):
    assert loaded().neighbours() == []
    push(open_ledger(), adds("a"))
    push(open_ledger(name="sync:x", environment="sandbox"), adds("a"))
    assert loaded(name="audience:gold").neighbours() == []
    in_other = loaded(environment="live").neighbours()
    assert [each.partition(": ")[0] for each in in_other] == [
        "environment is '' there and 'live' here",
        "name is 'sync:x' there and 'audience:vip' here; environment is 'sandbox' there and 'live' here",
    ]
    (base,) = [
        each
        for each in loaded(base_url="https://b.example").neighbours()
        if "base_url" in each and "sync" not in each
    ]
    assert base == (
        "base_url is 'https://integration.talon.one' there and 'https://b.example' here: "
        + str(loaded().folder)
    )


def test_a_new_ledger_says_that_the_same_one_is_under_another_state_uri(open_ledger, loaded, state):
    push(open_ledger(), adds("a"))
    moved = open_ledger(state / "elsewhere")
    moved.registry.common = state
    assert moved.neighbours() == [f"the same ledger under another state URI: {loaded().folder}"]


def test_a_new_ledger_of_an_internal_id_says_which_others_there_are_of_the_audience(open_ledger, loaded):
    facts = RunFacts(audiences={"vip": {"id": 7, "created": "2026-11-28"}})
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(planned(adds("a"))), facts=facts)
    name = "internal-audience:7"
    assert loaded(name=name).neighbours() == [
        f"name is 'audience:vip' there and '{name}' here: {loaded().folder}"
    ]


@pytest.mark.parametrize("earlier", ["sync:old.task", "audience:vip"])
def test_a_new_ledger_of_many_audiences_logs_which_others_there_are_of_them(open_ledger, caplog, earlier):
    """As after a DAG was renamed, or after a task of one audience became one of many."""
    push(open_ledger(name=earlier), adds("a"))
    push(open_ledger(name="sync:another"), adds("a", key="gold"))
    for _ in range(2):
        push(open_ledger(name="sync:new.task"), adds("a"))
    (text,) = [each.getMessage() for each in caplog.records if "begins beside" in each.getMessage()]
    place = open_ledger(name=earlier).folder
    assert text == (
        "A new ledger begins beside another one of the same audience:\n"
        f"name is '{earlier}' there and 'sync:new.task' here: {place}"
    )


def test_a_new_ledger_of_attributes_logs_which_others_there_are_of_them(open_ledger, caplog):
    for name, attribute in (("old", "tier"), ("other", "score"), ("new", "tier")):
        ledger = open_ledger(name=f"profiles:{name}", holds="profiles")
        with ledger.held("me"):
            ledger.make_current(
                ledger.draft(planned([Change("a", "1.1", "add")])), facts=FACTS, names=[attribute]
            )
    (text,) = [each.getMessage() for each in caplog.records if "begins beside" in each.getMessage()]
    place = open_ledger(name="profiles:old", holds="profiles").folder
    assert text == (
        "A new ledger begins beside another one of the same attributes:\n"
        f"name is 'profiles:old' there and 'profiles:new' here: {place}"
    )


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_damaged_note_is_one_clear_error(open_ledger, outside, loaded):
    push(open_ledger(), adds("a"))
    outside().note(Chunk([f"{number:05}" for number in range(3000)], "vip"))
    (note,) = (loaded().folder / NOTES).glob("*.zst")
    data = note.read_bytes()
    for damaged in (b"", data[:100], data[:100] + b"x" + data[101:], data + data):
        note.write_bytes(damaged)
        with pytest.raises(LedgerError, match=r"\.zst is damaged"):
            members(loaded().uncertain())


def test_a_plan_that_could_not_be_put_in_force_leaves_the_notes_of_the_plan_before_it(
    open_ledger, loaded, clock, monkeypatch
):
    """The plan before it may wait for approval: its changes are still to come."""
    push(open_ledger(name="sync:x"), adds("a"))
    push(open_ledger(), adds("a"))
    waiting = open_ledger(name="sync:x")
    with waiting.held("first"):
        waiting.make_current(
            waiting.draft(plan_of("-a")), facts=RunFacts(awaits_approval=True), handed_over=True
        )
    notes = loaded().folder / NOTES
    (end,) = [name for name in names_in(notes) if name.endswith(".json")]
    before = read_json(notes / end)
    assert before["had_effect"]
    clock.now += LOCK_LASTS
    later = open_ledger(name="sync:x")

    def fail(_):
        raise LedgerUnavailableError("the storage is away")

    monkeypatch.setattr(later, "_put_manifest", fail)
    with pytest.raises(LedgerUnavailableError), later.held("second"):
        later.make_current(later.draft(plan_of("+c")), facts=FACTS)
    assert read_json(notes / end) == before
