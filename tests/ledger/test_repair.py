"""Manifests that are torn or lost, and the command that rebuilds a ledger from what can be read."""

from __future__ import annotations

import random
import shutil
import time

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.ledger import Ledger, RunFacts
from airflow_provider_talon_cdp.ledger.outside import (
    ATTRIBUTES,
    NoteWriter,
    OutsideChanges,
    write_mark,
)
from airflow_provider_talon_cdp.ledger.repair import DamagedLedger
from airflow_provider_talon_cdp.ledger.storage import DamagedError, names_in
from tests.ledger.conftest import FACTS, VIP, Clock, members, names, plan_of, planned, profiles

MANY = [f"{number:05}" for number in range(20_000)]


def run(ledger, changes, *, landed=None, facts=FACTS, names=()):
    """Put a plan in force and let some batches land; all of them leave."""
    with ledger.held("me"):
        ledger.make_current(ledger.draft(planned(changes)), facts=facts, names=names)
        share = ledger.share()
        for batch in range(share.left):
            share.note_sending(batch)
        for batch in range(share.left) if landed is None else landed:
            share.landed(batch)
        share.end()


def adds(*ids):
    return [Change(each, "vip", "add") for each in ids]


def removes(*ids):
    return [Change(each, "vip", "remove") for each in ids]


@pytest.fixture(scope="module")
def four_versions(tmp_path_factory):
    """A folder with a ledger of four versions, the last of which is pushed in part."""
    folder, clock = tmp_path_factory.mktemp("worn"), Clock()

    def ledger():
        return Ledger(folder, VIP, keep=3, clock=clock, sleep=lambda _: None)

    run(ledger(), adds(*MANY))
    run(ledger(), [*removes(*MANY[:3000]), *adds(*(f"x{number:04}" for number in range(3000)))])
    run(ledger(), removes(*MANY[3000:3100]))
    run(ledger(), adds(*(f"y{number:04}" for number in range(2000))), landed=[0])
    return folder


@pytest.fixture
def worn(four_versions, state):
    """A copy of the ledger of four versions in ``state``; who is a member, and who may be."""
    for file in four_versions.rglob("*"):
        if file.is_file():
            copy = state / str(file.relative_to(four_versions))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    known = {
        *MANY[3100:],
        *(f"x{number:04}" for number in range(3000)),
        *(f"y{number:04}" for number in range(1000)),
    }
    return known, {f"y{number:04}" for number in range(1000, 2000)}


def repaired(state):
    ledger = DamagedLedger(state, VIP)
    return ledger.repair("repair")


def in_force(loaded, kind):
    """The file of a kind in force, and what it is called."""
    manifest = loaded().manifest
    name = {
        "members": manifest.members.file,
        "plan": manifest.plan.parts[0].file,
        "acks": manifest.plan.acks[0],
        "since": manifest.since[0].parts[0].file,
        "since acks": manifest.since[0].acks[0],
        "manifest": manifest.file,
    }[kind]
    return loaded().folder / name


# Manifests


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_torn_or_lost_manifest_falls_back_to_the_one_before_and_all_that_was_sent_is_uncertain(
    worn, open_ledger, loaded, damage, caplog
):
    known, _ = worn
    path = in_force(loaded, "manifest")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    ledger = loaded()
    assert ledger.version == 3
    assert ("manifest is damaged" in caplog.text) == (damage is not None)
    sent = {f"y{number:04}" for number in range(2000)}
    assert set(profiles(ledger.known())) == known - sent
    assert set(profiles(ledger.uncertain())) == sent
    ledger.at_least = 4
    ledger.load()
    seen = []
    following = open_ledger()
    with following.held("me"):
        following.make_current(
            following.draft(lambda _, uncertain, carry: seen.extend(profiles(uncertain)) or []), facts=FACTS
        )
    assert set(seen) == sent
    assert loaded().version == (5 if damage is not None else 4)
    assert len([name for name in names(loaded()) if name.startswith("manifest")]) == 3


def test_a_plan_whose_manifest_is_lost_and_that_was_never_sent_is_forgotten(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+b")), facts=FACTS)
    (ledger.folder / ledger.manifest.file).unlink()
    assert (profiles(loaded().known()), profiles(loaded().uncertain())) == (["a"], [])


def test_the_first_manifest_that_is_lost_leaves_what_was_sent_uncertain(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b")
    in_force_ = loaded()
    (in_force_.folder / in_force_.manifest.file).unlink()
    ledger = loaded()
    assert (ledger.version, profiles(ledger.known()), profiles(ledger.uncertain())) == (0, [], ["a", "b"])


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_fingerprints_of_a_plan_whose_manifest_is_torn_have_doubts_that_stay(open_ledger, loaded):
    how = {"holds": "profiles"}
    run(open_ledger(**how), [Change(each, "1.1", "add") for each in "abc"], names=["tier"])
    run(open_ledger(**how), [Change("a", "2.1", "add"), Change("c", "1.1", "remove")], names=["tier"])
    ledger = loaded(**how)
    (ledger.folder / ledger.manifest.file).write_bytes(b"")
    doubts = [("a", "?2.1"), ("b", "1.1"), ("c", "?1.1")]
    assert members(loaded(**how).known()) == doubts
    run(open_ledger(**how), [Change("d", "1.1", "add")], names=["tier"])
    assert members(loaded(**how).known()) == [*doubts, ("d", "1.1")]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_note_about_attributes_hides_no_doubt_of_a_plan_whose_manifest_is_lost(open_ledger, loaded):
    how = {"holds": "profiles"}
    run(open_ledger(**how), [Change("a", "1.1", "add")], names=["tier"])
    run(open_ledger(**how), [Change("b", "1.1", "add")], names=["tier"])
    ledger = loaded(**how)
    (ledger.folder / ledger.manifest.file).unlink()
    NoteWriter(ledger.folder, "another", "other", time.time).write(Chunk(["b"], ATTRIBUTES))
    assert members(loaded(**how).known()) == [("a", "1.1"), ("b", "?1.1")]


def test_a_ledger_whose_manifests_are_all_damaged_is_an_error(open_ledger, loaded, commit, state):
    for text in ("+a", "+b"):
        commit(open_ledger(), text)
    folder = loaded().folder
    for name in names_in(folder):
        if name.startswith("manifest"):
            (folder / name).write_bytes(b"")
    with pytest.raises(LedgerError, match=r"is damaged\.\nRepair the ledger"):
        loaded()
    with pytest.raises(LedgerError, match=r"No version of the ledger can be read"):
        repaired(state)


def test_a_commit_that_is_torn_falls_back_to_the_plan_as_it_was_handed_over(open_ledger, loaded):
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a")), facts=FACTS, handed_over=True)
    with open_ledger().pushing("me", ledger.plan, [0]) as share:
        share.note_sending(0)
        share.landed(0)
        share.end()
    committing = open_ledger()
    committing.commit("me", ledger.plan)
    (ledger.folder / committing.manifest.file).write_bytes(b"torn")
    assert profiles(loaded().known()) == ["a"]


# Repair


def test_a_ledger_without_damage_is_left_as_it_is(worn, loaded, state):
    before = names(loaded())
    assert repaired(state) == ["Nothing is damaged."]
    assert names(loaded()) == before


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("how", ["gone", "flipped", "empty", "half"])
@pytest.mark.parametrize("kind", ["members", "since acks", "since", "plan", "acks", "manifest"])
def test_a_damaged_file_is_rebuilt_and_nobody_is_claimed_or_forgotten_without_a_word(
    worn, loaded, state, kind, how, open_ledger
):
    known, unsure = worn
    path = in_force(loaded, kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2]}.get(how, data))
    if how == "gone":
        path.unlink()
    said = "\n".join(repaired(state))
    ledger = loaded()
    claimed = set(profiles(ledger.known())) - set(profiles(ledger.uncertain()))
    if kind == "since":
        assert claimed - known == set(MANY[3000:3100])
        assert 'run the task once with send="all"' in said
    else:
        assert claimed <= known
    if (kind, how) == ("manifest", "gone"):
        assert said == "Nothing is damaged."
    else:
        assert said.endswith("The ledger has version 5 now.")
    forgotten = (known | unsure) - set(profiles(ledger.known())) - set(profiles(ledger.uncertain()))
    assert not forgotten or (kind == "plan" and "are lost" in said)
    run(open_ledger(), adds("z"))
    assert set(profiles(loaded().known())) >= claimed | {"z"}


def test_members_are_rebuilt_from_an_earlier_version_and_the_plans_since(worn, loaded, state):
    known, unsure = worn
    in_force(loaded, "members").unlink()
    (line,) = repaired(state)
    assert line == "The ledger has version 5 now."
    assert set(profiles(loaded().known())) == known
    assert set(profiles(loaded().uncertain())) == unsure


def test_a_rebuilt_ledger_knows_of_a_note_whose_plan_was_never_sent(open_ledger, loaded, state, clock):
    run(open_ledger(), adds("a", "b"))
    writer = NoteWriter(loaded().folder, "another", "other", clock)
    writer.write(Chunk(["a"], "vip", "remove"))
    writer.end()
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a?")), facts=FACTS)
    (ledger.folder / ledger.manifest.members.file).unlink()
    (line,) = repaired(state)
    assert line == "The ledger has version 3 now."
    assert (profiles(loaded().known()), profiles(loaded().uncertain())) == (["a", "b"], ["a"])


@pytest.mark.parametrize("sent", [None, 2])
def test_what_was_uncertain_and_has_not_been_sent_again_is_uncertain_in_a_rebuilt_ledger(
    open_ledger, loaded, state, sent
):
    run(open_ledger(), adds("a", "b"))
    run(open_ledger(), removes("a"), landed=[])
    older = loaded().folder / loaded().manifest.file
    ledger = open_ledger(batch=1)
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a?", "+c", "+d")), facts=FACTS)
        share = ledger.share()
        if sent:
            share.note_sending(sent)
            share.landed(sent)
            share.end()
    older.write_bytes(b"")
    assert profiles(loaded().uncertain()) == ["a"]
    (line, _) = repaired(state)
    assert line.startswith(older.name)
    assert profiles(loaded().known()) == ["a", "b", *(["d"] if sent else [])]
    assert profiles(loaded().uncertain()) == ["a"]


def test_a_damaged_plan_that_was_never_sent_withholds_nothing_and_says_what_may_be_lost(
    open_ledger, loaded, state
):
    run(open_ledger(), adds("a", "b"))
    ledger = open_ledger()
    with ledger.held("me"):
        plan = [Change("c", "vip", "add", runs_rules=True)]
        ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
    path = ledger.folder / ledger.manifest.plan.parts[0].file
    path.write_bytes(path.read_bytes() + b"x")
    (line, _) = repaired(state)
    assert "is damaged, and nothing of it was sent." in line
    assert line.endswith('run the task once with send="all".')
    assert (profiles(loaded().known()), profiles(loaded().uncertain())) == (["a", "b"], [])
    assert not loaded().withheld()


def run_with_rules(ledger, *landed, unclear):
    """Put calls that run rules in force; the last one gets no clear answer."""
    with ledger.held("me"):
        plan = [Change(each, "vip", "add", runs_rules=True) for each in (*landed, unclear)]
        ledger.make_current(ledger.draft(planned(plan)), facts=FACTS)
        share = ledger.share()
        for number, chunk in enumerate(share.batches()):
            share.note_sending(number)
            share.landed(number, unclear=[at for at, each in enumerate(chunk.ids) if each == unclear])
        share.end()


@pytest.mark.parametrize(
    ("later", "damaged"),
    [
        ([], "manifest"),
        ([], "withheld"),
        ([adds("d")], "manifest"),
        ([adds("d"), adds("e")], "manifest"),
        ([adds("d"), adds("e")], "acks"),
    ],
)
def test_a_withheld_change_that_a_later_plan_settled_is_not_withheld_again(
    open_ledger, loaded, state, later, damaged
):
    run(open_ledger(keep=9), adds(*MANY[:100]))
    run_with_rules(open_ledger(keep=9), "c", unclear="x")
    assert loaded().withheld() == {("x", "vip"): "add"}
    for plan in (removes("x"), *later):
        run(open_ledger(keep=9), plan)
    before = loaded()
    assert not before.withheld()
    assert len(before.manifest.since) == 1 + len(later), "with the plan that was not answered"
    name = {
        "manifest": before.manifest.history[-1]["manifest"],
        "withheld": before.manifest.withheld and before.manifest.withheld.file,
        "acks": before.manifest.plan.acks[0],
    }[damaged]
    (before.folder / name).write_bytes(b"x")
    assert repaired(state) != ["Nothing is damaged."]
    assert not loaded().withheld()
    assert "x" not in [*profiles(loaded().known()), *profiles(loaded().uncertain())]


def test_of_a_plan_whose_outcome_is_lost_all_that_ran_rules_is_withheld_but_what_was_settled_later(
    open_ledger, loaded, state
):
    run(open_ledger(), adds(*MANY[:100]))
    run_with_rules(open_ledger(), "c", unclear="x")
    name = loaded().manifest.plan.acks[0]
    run(open_ledger(), removes("x"))
    (loaded().folder / name).write_bytes(b"x")
    repaired(state)
    assert loaded().withheld() == {("c", "vip"): "add"}


def test_a_change_that_is_still_withheld_stays_so_in_a_rebuilt_ledger(open_ledger, loaded, state):
    run(open_ledger(), adds(*MANY[:100]))
    run_with_rules(open_ledger(), unclear="x")
    run_with_rules(open_ledger(), "b", unclear="y")
    run(open_ledger(), adds("c"))
    (loaded().folder / loaded().manifest.plan.acks[0]).write_bytes(b"x")
    repaired(state)
    assert loaded().withheld() == {("x", "vip"): "add", ("y", "vip"): "add"}


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_where_no_earlier_members_are_left_all_but_the_damaged_frame_are_saved(open_ledger, loaded, state):
    run(open_ledger(keep=1), adds(*MANY))
    facts = RunFacts(data_until="2026-11-28")
    run(open_ledger(keep=1), removes("00000"), facts=facts)
    path = loaded().folder / loaded().manifest.members.file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    first, *_ = repaired(state)
    assert first.startswith("5,000 of 20,000 members are lost.\nA mirror adds those that its query has.")
    saved = profiles(loaded().known())
    assert len(saved) == 20_000 - 5000 - 1
    assert set(saved) < set(MANY)
    assert loaded().facts == facts


def test_deleted_audiences_are_not_forgotten_but_for_those_in_a_damaged_file(open_ledger, loaded, state):
    run(open_ledger(), adds("a"))
    folder, plan = loaded().folder, loaded().plan
    write_mark("suspects", folder, plan, "a1", ["gold"])
    write_mark("suspects", folder, plan, "a2", ["vip"]).write_bytes(b"{")
    with pytest.raises(DamagedError):
        loaded()
    assert any("suspects-a2.json is damaged" in message for message in repaired(state))
    assert loaded().suspected == {"gold"}
    assert repaired(state) == ["Nothing is damaged."]


def test_a_doubt_stays_a_doubt_in_a_rebuilt_ledger(open_ledger, loaded, commit, state):
    """Of a suspected audience, what got no clear answer would run rules again."""
    commit(open_ledger(), "+a")
    commit(open_ledger(), "+b")
    write_mark("doubts", loaded().folder, loaded().plan, "a1", ["vip"])
    min(loaded().folder.glob("manifest-*")).write_text("{")
    repaired(state)
    assert (loaded().resends, loaded().suspected) == ({"vip"}, set())


def test_the_command_repairs_by_path_and_says_what_it_did(worn, loaded, capsys, state):
    in_force(loaded, "acks").write_bytes(b"x")
    assert main(["ledger", "show", loaded_place(loaded, state)]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert main(["ledger", "repair", loaded_place(loaded, state)]) == 0
    told = capsys.readouterr().out
    assert "It is unknown what became of the changes in" in told
    assert "The next mirror sends them again." in told
    assert told.splitlines()[-1].endswith("version 5, 19,900 members")
    assert main(["ledger", "show", loaded_place(loaded, state)]) == 0


def test_a_repair_keeps_all_versions_that_the_run_before_kept(open_ledger, loaded, commit, state):
    """Whoever keeps thirty versions may need the oldest of them after all."""
    for number in range(6):
        commit(open_ledger(keep=7), f"+{number}")
    (loaded().folder / loaded().manifest.plan.acks[0]).write_bytes(b"x")
    before = [name for name in names_in(open_ledger().folder) if name.startswith(("0", "manifest-"))]
    repaired(state)
    assert set(before) < set(names_in(loaded().folder))
    assert len(loaded().manifest.history) == 6


def test_the_command_repairs_no_ledger_that_is_not_there_and_makes_no_folder(capsys, tmp_path):
    place = ["--state-uri", str(tmp_path), "--deployment-host", "acme.talon.one", "--audience-id", "typo"]
    assert main(["ledger", "repair", *place]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("There is no ledger here.")
    assert not list(tmp_path.iterdir())


def loaded_place(loaded, state):
    return str(VIP.folder(state))


# Any damage


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_any_damage_of_any_file_ends_within_seconds_in_one_error_or_the_truth(
    worn, loaded, open_ledger, tmp_path
):
    """Bits, halves, emptiness and absence; a mirror plans on what is left, and no plan is ever wrong."""
    known, unsure = worn
    folder = loaded().folder
    shutil.copytree(folder, tmp_path / "copy")
    files = [name for name in names(loaded()) if "lock" not in name]
    chance = random.Random(5)
    noticed = 0
    for name in files:
        data = (folder / name).read_bytes()
        flips = [bytearray(data) for _ in range(3)]
        for each in flips:
            each[chance.randrange(len(each))] ^= 1 << chance.randrange(8)
        for damaged in (b"", data[: len(data) // 2], None, *flips):
            if damaged is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(damaged)
            began = time.monotonic()
            ledger = open_ledger()
            seen = set(), set()

            def plan(known, uncertain, carry, seen=seen):
                seen[0].update(profiles(known))
                seen[1].update(profiles(uncertain))
                return [Chunk(["z"], "vip")]

            try:
                with ledger.held("me"):
                    ledger.discard(ledger.draft(plan))
                    list(ledger.share().batches())
            except DamagedError:
                noticed += 1
            else:
                assert seen[0] - seen[1] <= known
                assert known | unsure <= seen[0] | seen[1]
            assert time.monotonic() - began < 10
            (folder / name).write_bytes(data)
    assert noticed > 20


def test_a_repair_knows_of_a_deletion_that_a_lost_version_knew_of(open_ledger, commit, state, clock):
    commit(open_ledger(), "+a", "+b")
    commit(open_ledger(), "+c")
    with OutsideChanges(state, VIP.of_audience("x"), "dag/delete/run", clock=clock).emptying("vip"):
        """It is made again after it."""
    ledger = open_ledger()
    max(ledger.folder.glob("manifest-*")).write_text("{")
    repaired(state)
    ledger.load()
    assert ledger.suspected == {"vip"}
    assert [change.profile_id for chunk in ledger.uncertain() for change in chunk.changes()] == [
        "a",
        "b",
        "c",
    ]
