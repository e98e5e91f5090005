"""One process plans, others push a part each, a last one looks whether all is in."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    LedgerBusyError,
    LedgerError,
    TransientError,
)
from airflow_provider_talon_cdp.ledger.ledger import Ledger, RunFacts, Sizes
from airflow_provider_talon_cdp.ledger.lock import LOCK_LASTS
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.storage import names_in
from tests.ledger.conftest import FACTS, VIP, members, plan_of, profiles, spelt
from tests.ledger.conftest import planned as spelt_out
from tests.ledger.test_crashes import deaths
from tests.storage import KilledError, Process, Storage

TWELVE = [f"+{number:02}" for number in range(12)]


@pytest.fixture
def opened(open_ledger):
    """Open the ledger as a process of its own would; plans have batches of 2 and parts of 4."""

    def new(**options):
        return open_ledger(batch=2, part=4, ahead=1, **options)

    return new


@pytest.fixture
def planned(opened):
    """Put a plan in force for others to push; which it is."""

    def plan(*texts, owner="me"):
        ledger = opened()
        with ledger.held(owner):
            staged = ledger.draft(plan_of(*texts))
            ledger.make_current(staged, facts=FACTS, handed_over=True)
        return ledger.plan

    return plan


@pytest.fixture
def push(opened):
    """Push a part, or some batches of it; what was sent."""

    def pushed(plan, part, *, batches=None, refused=None, owner="me"):
        sent = []
        with opened().pushing(owner, plan, [part]) as pushing:
            for number, batch in enumerate(pushing.batches()):
                if batches is not None and number >= batches:
                    break
                pushing.note_sending(number)
                sent.append(list(batch.ids))
                bad = (refused or {}).get(number, ())
                for at in bad:
                    pushing.letters.add({"profile_id": sent[-1][at]})
                pushing.landed(number, bad)
            pushing.flush()
        return sent

    return pushed


def test_parts_are_pushed_one_by_one_and_committed(planned, push, opened, loaded):
    plan = planned(*TWELVE)
    assert loaded().parts == 3
    assert push(plan, 1) == [["04", "05"], ["06", "07"]]
    assert profiles(loaded().known()) == ["04", "05", "06", "07"]
    assert push(plan, 0, refused={1: [0]}) == [["00", "01"], ["02", "03"]]
    assert push(plan, 2) == [["08", "09"], ["10", "11"]]
    outcome = opened().commit("me", plan)
    assert (outcome.changes, outcome.acknowledged, outcome.refused) == (12, 11, 1)
    assert outcome.changes == outcome.acknowledged + outcome.refused
    assert profiles(loaded().known()) == [text[1:] for text in TWELVE if text != "+02"]
    assert not spelt(loaded().unacknowledged())
    assert not names_in(loaded().folder / "locks")


def test_parts_are_pushed_at_once(planned, push, opened, loaded):
    plan = planned(*TWELVE)
    with ThreadPoolExecutor(3) as tasks:
        sent = list(tasks.map(lambda part: push(plan, part), range(3)))
    assert [each for part in sent for batch in part for each in batch] == [text[1:] for text in TWELVE]
    assert opened().commit("me", plan).acknowledged == 12


def test_dead_letters_of_all_parts_are_in_one_folder(planned, push, opened, state):
    plan = planned(*TWELVE)
    push(plan, 0, refused={0: [1]})
    push(plan, 1)
    push(plan, 2, refused={1: [0, 1]})
    outcome = opened().commit("me", plan)
    folder = opened().folder / "dead-letters"
    (name,) = names_in(folder)
    assert outcome.dead_letters == str(folder / name)
    files = [(folder / name / each).read_bytes() for each in names_in(folder / name)]
    letters = [json.loads(line) for data in files for line in data.splitlines()]
    assert [letter["profile_id"] for letter in letters] == ["01", "10", "11"]


def test_without_refusals_there_is_no_place_of_dead_letters(planned, push, opened):
    plan = planned("+a")
    push(plan, 0)
    assert opened().commit("me", plan).dead_letters is None


def test_a_part_that_is_pushed_again_sends_what_is_left_of_it(planned, push, opened, loaded):
    plan = planned(*TWELVE)
    assert push(plan, 0, batches=1) == [["00", "01"]]
    assert push(plan, 0) == [["02", "03"]]
    assert push(plan, 0) == []
    push(plan, 1)
    push(plan, 2)
    assert opened().commit("me", plan).acknowledged == 12
    # A task that is cleared after all is done.
    assert push(plan, 1) == []
    assert opened().commit("me", plan).acknowledged == 12


def test_parts_that_are_not_in_are_named_and_can_be_pushed_then(planned, push, opened, loaded):
    plan = planned(*TWELVE)
    push(plan, 1)
    push(plan, 2, batches=1)
    with pytest.raises(LedgerError, match=r"2 of 3 parts .* \(0, 2\)\.\nThey lack 6 of 12 changes\. Push"):
        opened().commit("me", plan)
    push(plan, 0)
    push(plan, 2)
    assert opened().commit("me", plan).acknowledged == 12


def test_many_parts_that_are_not_in_are_named_in_part(planned, opened):
    plan = planned(*(f"+{number:03}" for number in range(100)))
    with pytest.raises(
        LedgerError, match=r"25 of 25 parts .* not complete \(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\)"
    ):
        opened().commit("me", plan)


def test_a_part_is_not_committed_while_it_is_pushed(planned, push, opened, loaded):
    plan = planned("+a", "+b")
    with opened().pushing("me", plan, [0]) as pushing:
        with pytest.raises(LedgerError, match="in use by me"):
            opened().commit("me", plan)
        pushing.note_sending(0)
        pushing.landed(0, [])
        pushing.flush()
    assert opened().commit("me", plan).acknowledged == 2


def test_a_part_of_a_plan_that_is_not_in_force_any_more_is_not_pushed(planned, push, opened):
    old = planned(*TWELVE)
    push(old, 0)
    new = planned("+x")
    for part in range(3):
        with pytest.raises(
            LedgerError, match=r"was replaced: another run.*\n.*version 2 now\. Nothing was sent"
        ):
            push(old, part)
    with pytest.raises(LedgerError, match="was replaced"):
        opened().commit("me", old)
    push(new, 0)
    assert opened().commit("me", new).acknowledged == 1


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_worker_that_does_not_reach_the_ledger_of_the_plan_says_so(planned, opened):
    """The state URI is on the planner's disk, or the connection leads to another deployment now."""
    plan = planned(*TWELVE)
    elsewhere = opened(name="audience:other")
    for work in (
        lambda: elsewhere.pushing("me", plan, [0]).__enter__(),
        lambda: elsewhere.commit("me", plan),
        lambda: elsewhere.deciding("me", plan, FACTS).__enter__(),
    ):
        with pytest.raises(LedgerError, match=r"finds no ledger of the plan .*\n.*state URI") as error:
            work()
        assert "was replaced" not in str(error.value)


@pytest.mark.parametrize("environment", ["", "live"])
def test_a_plan_for_another_key_is_not_pushed_unless_the_environment_is_known(opened, environment):
    """A key may be of another environment, where nothing of the plan's ledger is true."""
    ledger = opened(environment=environment)
    made, other = RunFacts(key_fingerprint="1"), RunFacts(key_fingerprint="2")
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a")), facts=made, handed_over=True)

    def left(facts):
        with opened(environment=environment).pushing("me", ledger.plan, [0], facts) as share:
            return share.changes

    assert left(made) == left(RunFacts()) == 1
    if environment:
        assert left(other) == 1
    else:
        with pytest.raises(LedgerError, match=r"has changed since this plan was made(.*\n)+Nothing was sent"):
            left(other)


@pytest.mark.parametrize("part", [-1, 3, 1.0, "0", True, None])
def test_a_part_that_the_plan_does_not_have_is_refused(planned, push, part):
    plan = planned(*TWELVE)
    with pytest.raises(InvalidInputError, match=r"Parts must be numbers from 0 to 2"):
        push(plan, part)


def test_an_answer_about_a_plan_that_was_replaced_does_not_wait_for_the_newer_run(planned, opened):
    old = planned(*TWELVE)
    ledger = opened()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+z")), facts=FACTS, handed_over=True)
        with pytest.raises(LedgerError, match="was replaced"), opened().deciding("another", old, FACTS):
            pytest.fail("It decides nothing.")


def test_a_pusher_whose_plan_is_replaced_stops_at_its_next_note(planned, opened, loaded):
    plan = planned(*TWELVE)
    with opened().pushing("me", plan, [0]) as pushing:
        pushing.note_sending(0)
        pushing.landed(0, [])
        # Somebody cleared the task that plans.
        planned("+x")
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            pushing.note_sending(1)


def test_the_pushers_of_one_part_take_over_from_one_another_and_none_forgets(planned, opened, loaded):
    """As when the scheduler believes a task dead and starts its next try beside it."""
    plan = planned("+a", "+b", "+c", "+d")
    with opened().pushing("me", plan, [0]) as zombie:
        zombie.note_sending(0)
        with opened().pushing("me", plan, [0]) as retry:
            retry.note_sending(0)
            retry.landed(0, [1])
            retry.note_sending(1)
            retry.landed(1, [])
            retry.flush()
            zombie.landed(0, [])
            with pytest.raises(LedgerError, match="has lost the ledger's lock"):
                zombie.flush()
    # The zombie's request was accepted: what it says late counts all the same.
    assert profiles(loaded().known()) == ["a", "b", "c", "d"]


def test_a_refusal_is_uncertain_where_a_killed_pusher_may_have_sent_the_batch(planned, push, opened, loaded):
    plan = planned("+a", "+b", "+c", "+d")
    killed = opened().pushing("me", plan, [0])
    killed.__enter__().note_sending(0)
    push(plan, 0, refused={0: [1], 1: [0]})
    assert profiles(loaded().known()) == ["a", "d"]
    assert profiles(loaded().uncertain()) == ["b"]


# Two runs at once


def test_another_run_is_kept_out_between_plan_push_and_commit(planned, push, opened, clock):
    plan = planned(*TWELVE, owner="run-1")

    def refused():
        clock.now += LOCK_LASTS / 2
        with pytest.raises(LedgerError, match=r"in use by run-1\n.* 60 s ago\. Nothing was sent"):
            planned("+x", owner="run-2")

    refused()
    push(plan, 0, owner="run-1")
    refused()
    push(plan, 2, owner="run-1")
    push(plan, 1, owner="run-1")
    refused()
    clock.now += LOCK_LASTS
    push(plan, 1, owner="run-1")
    opened().commit("run-1", plan)
    push(planned("+x", owner="run-2"), 0, owner="run-2")


@pytest.mark.parametrize("owner", ["run-1", "run-2"])
def test_no_part_is_pushed_while_somebody_plans(planned, push, opened, clock, owner):
    plan = planned(*TWELVE, owner="run-1")
    clock.now += LOCK_LASTS + 1
    with opened().held(owner), pytest.raises(LedgerError, match=f"in use by {owner}"):
        push(plan, 0, owner="run-1")


def test_a_run_without_a_sign_of_life_is_planned_over(planned, push, clock, loaded):
    plan = planned(*TWELVE, owner="run-1")
    push(plan, 0, owner="run-1")
    clock.now += LOCK_LASTS + 1
    new = planned("+x", owner="run-2")
    push(new, 0, owner="run-2")
    with pytest.raises(LedgerError, match="was replaced"):
        push(plan, 1, owner="run-1")
    assert profiles(loaded().known()) == ["00", "01", "02", "03", "x"]


def test_a_part_that_fails_keeps_the_ledger_for_its_retry(planned, opened, push, clock):
    plan = planned(*TWELVE, owner="run-1")
    with pytest.raises(RuntimeError), opened().pushing("run-1", plan, [0]):
        raise RuntimeError
    with pytest.raises(LedgerError, match="in use by run-1"):
        planned("+x", owner="run-2")
    assert len(push(plan, 0, owner="run-1")) == 2


def test_a_commit_whose_check_fails_keeps_the_ledger_for_its_retry(planned, push, opened):
    plan = planned("+a", owner="run-1")
    push(plan, 0, owner="run-1")

    def check():
        raise TransientError("Talon.One does not answer.", method="PUT", path="/")

    with pytest.raises(TransientError):
        opened().commit("run-1", plan, check)
    with pytest.raises(LedgerBusyError, match="in use by run-1"):
        planned("+x", owner="run-2")
    assert opened().commit("run-1", plan).acknowledged == 1
    planned("+x", owner="run-2")


def test_a_planner_that_puts_nothing_in_force_keeps_nobody_out(opened, planned):
    ledger = opened()
    with ledger.held("run-1"):
        ledger.discard(ledger.draft(plan_of("+a")))
    planned("+x", owner="run-2")


def test_an_audience_that_a_pusher_finds_missing_is_suspected_by_all(planned, opened, loaded, push):
    plan = planned("+a", "+b", "+c", "+d", "+e")
    push(plan, 0)
    with opened().pushing("me", plan, [1]) as pushing:
        pushing.suspect(["vip"])
    assert loaded().suspected == {"vip"}
    assert profiles(loaded().uncertain()) == ["a", "b", "c", "d"]


def test_a_plan_with_a_suspected_audience_is_neither_pushed_nor_committed_but_planned_anew(
    planned, opened, push
):
    """Somebody may have made the audience again, and what is left of the plan would leave it nearly empty."""
    plan = planned(*TWELVE)
    push(plan, 0)
    push(plan, 2)
    with opened().pushing("me", plan, [1]) as pushing:
        pushing.suspect(["vip"])
    for again in (lambda: push(plan, 1), lambda: opened().commit("me", plan)):
        with pytest.raises(
            LedgerError,
            match=r"an audience was deleted or made again(.*\n)*.*clear the task that plans \(plan\)",
        ):
            again()
    new = planned(*TWELVE)
    for part in range(3):
        assert push(new, part)
    assert opened().commit("me", new).acknowledged == 12


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_the_deletion_of_an_audience_that_the_ledger_has_left_stops_no_plan(planned, opened, push):
    plan = planned(*TWELVE)
    with opened().pushing("me", plan, [1]) as pushing:
        pushing.suspect(["gold"])
    for part in range(3):
        push(plan, part)
    assert opened().commit("me", plan).acknowledged == 12


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_an_audience_that_the_plan_may_not_change_stops_nothing_and_stays_suspected(opened, loaded, state):
    how = {"name": "sync:x"}

    def run(*plan, managed=None):
        ledger = opened(**how)
        ledger.managed = managed
        with ledger.held("me"):
            ledger.make_current(ledger.draft(spelt_out(plan)), facts=FACTS, handed_over=True)
        with opened(**how).pushing("me", ledger.plan, [0]) as pushing:
            for number, _ in enumerate(pushing.batches()):
                pushing.note_sending(number)
                pushing.landed(number)
            pushing.flush()
        assert opened(**how).commit("me", ledger.plan).acknowledged == len(plan)

    run(Change("a", "vip", "add"), Change("b", "gold", "add"))
    with OutsideChanges(state, VIP.of_audience("x"), "dag/delete/run").emptying("gold"):
        """Talon.One deletes it."""
    for profile in "cd":
        run(Change(profile, "vip", "add"), managed=["vip"])
        assert loaded(**how).suspected == {"gold"}
    assert members(loaded(**how).uncertain()) == [("b", "gold")]
    run(Change("b", "gold", "add"), managed=["gold", "vip"])
    assert not loaded(**how).suspected


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_acknowledgements_that_go_missing_after_the_commit_are_noticed(planned, push, opened, loaded):
    plan = planned(*TWELVE)
    for part in range(3):
        push(plan, part)
    opened().commit("me", plan)
    folder = loaded().folder / plan
    files = [each for each in folder.iterdir() if each.name.startswith("acks-00001")]
    assert len(files) == 2, "the planner's and the pusher's"
    for file in files:
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(LedgerError, match="is missing"):
            loaded()
        file.write_bytes(data)
    assert len(profiles(loaded().known())) == 12


# Kills at any step


def ledger_in(storage):
    return Ledger(storage.folder(), VIP, sizes=Sizes(batch=2, part=4, ahead=1), sleep=lambda _: None)


def plan_in(storage, owner="me"):
    ledger = ledger_in(storage)
    with ledger.held(owner):
        ledger.make_current(ledger.draft(plan_of(*TWELVE)), facts=FACTS, handed_over=True)
    return ledger.plan


def push_in(storage, plan, part, world, bad=()):
    with ledger_in(storage).pushing("me", plan, [part]) as pushing:
        for number, batch in enumerate(pushing.batches()):
            pushing.note_sending(number)
            storage.process.step()
            sent = list(batch.ids)
            world.update(set(sent).difference(bad))
            storage.process.step()
            pushing.landed(number, [at for at, profile in enumerate(sent) if profile in bad])
            pushing.flush()


def test_a_push_that_is_killed_at_any_step_is_made_good_by_its_retry():
    storage = Storage()
    plan = plan_in(storage)
    world = set()
    push_in(storage, plan, 0, world)
    push_in(storage, plan, 2, world)
    kills = 0
    for dies_at in deaths(storage, partial(push_in, storage, plan, 1, world, bad={"05"})):
        kills += 1
        reader = ledger_in(storage)
        reader.load()
        known, uncertain = set(profiles(reader.known())), set(profiles(reader.uncertain()))
        assert known - uncertain <= world, f"dead at {dies_at}"
        assert world <= known | uncertain, f"dead at {dies_at}"
        push_in(storage, plan, 1, world, bad={"05"})
        outcome = ledger_in(storage).commit("me", plan)
        assert (outcome.acknowledged, outcome.refused) == (11, 1), f"dead at {dies_at}"
        world -= {"04", "05", "06", "07"}
    assert kills > 20


def test_a_plan_that_is_killed_at_any_step_is_made_anew():
    storage = Storage()
    for dies_at in deaths(storage, lambda: plan_in(storage)):
        plan = plan_in(storage)
        world = set()
        for part in range(3):
            push_in(storage, plan, part, world)
        assert ledger_in(storage).commit("me", plan).acknowledged == 12, f"dead at {dies_at}"


def test_a_commit_that_is_killed_at_any_step_can_be_done_again():
    storage = Storage()
    plan = plan_in(storage)
    for part in range(3):
        push_in(storage, plan, part, set())
    for dies_at in deaths(storage, lambda: ledger_in(storage).commit("me", plan)):
        reader = ledger_in(storage)
        reader.load()
        assert len(profiles(reader.known())) == 12, f"dead at {dies_at}"
        assert ledger_in(storage).commit("me", plan).acknowledged == 12, f"dead at {dies_at}"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.none() | st.integers(0, 25), st.sets(st.sampled_from(TWELVE), max_size=3)
        ),
        max_size=8,
    )
)
def test_after_any_history_of_pushes_the_ledger_tells_the_truth(history):
    """Parts in any order, killed at any step or not, with any refusals; then each again, and the commit."""
    storage, world = Storage(), set()
    plan = plan_in(storage)
    for part, dies_at, bad in history:
        storage.process = Process(dies_at)
        with suppress(KilledError):
            push_in(storage, plan, part, world, {text[1:] for text in bad})
        storage.process = Process()
        reader = ledger_in(storage)
        reader.load()
        known, uncertain = set(profiles(reader.known())), set(profiles(reader.uncertain()))
        assert known - uncertain <= world
        assert world <= known | uncertain
    for part in range(3):
        push_in(storage, plan, part, world)
    outcome = ledger_in(storage).commit("me", plan)
    assert outcome.acknowledged + outcome.refused == 12


def test_a_process_can_push_several_parts(planned, opened, loaded):
    plan = planned(*TWELVE)
    for parts in ([0, 2], [1]):
        with opened().pushing("me", plan, parts) as pushing:
            assert pushing.changes == 4 * len(parts)
            for number, _ in enumerate(pushing.batches()):
                pushing.note_sending(number)
                pushing.landed(number, ())
            pushing.flush()
    assert opened().commit("me", plan).acknowledged == 12


def test_no_profile_is_in_two_parts(opened):
    plan = [Change(profile, audience, "add") for profile in ("a", "b", "c") for audience in ("1", "2", "3")]
    ledger = opened()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(lambda *_: [Chunk.of(plan)]), facts=FACTS)
    parts = [
        {profile for batch in ledger.manifest.plan.batches(ledger.folder, part) for profile in batch.ids}
        for part in range(ledger.parts)
    ]
    assert parts == [{"a", "b"}, {"c"}]
    assert spelt(ledger.changes()) == plan
