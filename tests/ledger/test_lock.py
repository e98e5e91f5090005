"""Who may work on a ledger: one run at a time, whatever others do at the same moment."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from types import SimpleNamespace

import pytest

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger import lock as lock_module
from airflow_provider_talon_cdp.ledger.ledger import Ledger, Sizes
from airflow_provider_talon_cdp.ledger.lock import LOCK_LASTS, LOCK_RENEWED, Lock
from airflow_provider_talon_cdp.ledger.storage import names_in, read_json
from tests.ledger.conftest import FACTS, VIP, plan_of, profiles
from tests.storage import Process, Storage


def test_a_second_run_is_refused_and_told_who_is_at_work(open_ledger, clock, commit):
    with open_ledger().held("dag/task/run-1"):
        clock.now += 5
        with (
            pytest.raises(
                LedgerError,
                match=r"in use by dag/task/run-1\non .* \(process \d+\), .* 5 s ago\. Nothing was sent",
            ),
            open_ledger().held("dag/task/run-2"),
        ):
            pass
    commit(open_ledger(), "+a", owner="dag/task/run-2")


def test_the_refused_run_leaves_the_lock_alone(open_ledger):
    first = open_ledger()
    with first.held("one"):
        with pytest.raises(LedgerError), open_ledger().held("two"):
            pass
        assert first.lock.is_ours()
        assert len(names_in(first.folder / "locks")) == 2, "the claim and its beat"
    assert not names_in(first.folder / "locks")


def test_after_a_takeover_runs_without_a_manifest_leave_one_heartbeat_and_no_fencing_token_comes_again(
    open_ledger, commit
):
    commit(open_ledger(), "+a")
    open_ledger().lock.take("me")
    for token in range(3, 6):
        ledger = open_ledger()
        with ledger.held("me"):
            assert ledger.lock.fencing_token == token
        assert names_in(ledger.folder / "locks") == [f"all-{ledger.run}.heartbeat.json"]
    commit(open_ledger(), "+b")
    assert not names_in(ledger.folder / "locks")


def test_a_retry_takes_over_from_the_try_before_it(open_ledger):
    ledger = open_ledger()
    with ledger.held("dag/task/run-1"), open_ledger().held("dag/task/run-1"):
        staged = ledger.draft(plan_of())
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            ledger.share().flush()
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            ledger.make_current(staged, facts=FACTS)


def test_a_killed_runs_lock_ends_after_a_while(open_ledger, clock, commit):
    open_ledger().lock.take("killed")
    clock.now += LOCK_LASTS - 1
    with pytest.raises(LedgerError, match="in use by killed"):
        commit(open_ledger(), "+a")
    clock.now += 2
    commit(open_ledger(), "+a")


def test_a_run_that_lost_its_lock_does_not_take_it_from_the_other(open_ledger):
    ledger = open_ledger()
    with ledger.held("me"):
        other = open_ledger()
        other.lock.take("me")
    assert other.lock.is_ours()


def test_the_lock_is_renewed_while_the_run_goes_on(open_ledger, clock, monkeypatch):
    monkeypatch.setattr(lock_module, "LOCK_RENEWED", 0.01)
    ledger = open_ledger()
    with ledger.held("me"):
        clock.now += 1000
        beat = ledger.folder / "locks" / f"all-{ledger.run}.heartbeat.json"
        for _ in range(500):
            if read_json(beat)["time"] == clock.now:
                break
            threading.Event().wait(0.01)
        with pytest.raises(LedgerError, match="in use by me"):
            open_ledger().lock.take("other")
    assert not [each for each in threading.enumerate() if each.name == "talon-cdp-lock"]


def test_a_lost_lock_is_not_renewed_and_the_next_batch_does_not_leave(open_ledger):
    """A push that lost its lock finds out with its next renewal, though it writes nothing itself."""
    ledger, other = open_ledger(ahead=10), open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of(*(f"+{n:05}" for n in range(5000)))), facts=FACTS)
        ledger.share().note_sending(0)
        other.lock.take("me")
        ledger.share().note_sending(1)
        ledger.share().landed(0, [])
        turns = iter([False, True])
        ledger.lock.renew(SimpleNamespace(wait=lambda _: next(turns)))
        assert next(turns, None) is True, "it went on"
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            ledger.share().note_sending(2)
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            ledger.share().landed(1, [])
    assert other.lock.is_ours()
    assert LOCK_RENEWED < LOCK_LASTS / 2


def test_a_run_that_was_overtaken_does_no_harm_to_the_files_of_the_other(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    overtaken, winner = open_ledger(), open_ledger()
    with overtaken.held("me"), winner.held("me"):
        staged = winner.draft(plan_of("+b"))
        stale = overtaken.draft(plan_of("+x", "+y"))
        winner.make_current(staged, facts=FACTS)
        winner.share().landed(0, [])
        winner.share().flush()
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            overtaken.make_current(stale, facts=FACTS)
        overtaken.discard(stale)
        assert profiles(loaded().known()) == ["a", "b"]


def test_a_try_that_was_killed_while_it_asked_is_taken_over_by_the_next(open_ledger, clock):
    killed = open_ledger()
    killed.lock.take("me")
    (killed.folder / "locks" / f"all-{killed.run}.heartbeat.json").unlink()
    with pytest.raises(LedgerError, match="in use by me"), open_ledger().held("other"):
        pass
    for later in (0, -5, 5):
        # Clocks of two workers differ.
        clock.now += later
        with open_ledger().held("me"):
            assert not killed.lock.is_ours()
        killed.lock.take("me")
        (killed.folder / "locks" / f"all-{killed.run}.heartbeat.json").unlink()


@pytest.mark.parametrize("owners", ["different", "the same"])
def test_of_many_runs_that_ask_at_once_one_gets_the_ledger(tmp_path, owners):
    for turn in range(10):
        barrier = threading.Barrier(8)
        locks = [Lock(tmp_path / str(turn), f"{n:012x}", sleep=lambda _: time.sleep(0.02)) for n in range(8)]

        def ask(lock, number, barrier=barrier):
            barrier.wait()
            try:
                lock.take(f"owner {number if owners == 'different' else ''}")
            except LedgerError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            got = list(threads.map(ask, locks, range(8)))
        assert sum(lock.is_ours() for lock in locks) == 1
        if owners == "different":
            assert sum(got) == 1


# One run stalls at any request to the storage, and another one works meanwhile


class Stall:
    """Does something else at the n-th request of a run."""

    def __init__(self, storage, at, act):
        self.left = at
        self.act = act
        self.happened = False
        storage.before_effect = self.request

    def request(self, doing, name):
        self.left -= 1
        if self.left == -1:
            self.happened = True
            self.act()


def taken(lock, owner):
    try:
        lock.take(owner)
    except LedgerError:
        return False
    return True


@pytest.mark.parametrize("other", ["one", "two"])
@pytest.mark.parametrize("earlier", [0, 1, -1])
def test_no_two_runs_hold_the_lock_wherever_one_of_them_stalls(other, earlier):
    """The clocks of two workers may differ: ``earlier`` is by how much."""
    nobody = 0
    for at in count():
        storage = Storage(Process())
        locks = [
            Lock(storage.folder(), run, clock=lambda now=now: 1000.0 + now, sleep=lambda _: None)
            for run, now in (("aaaaaaaaaaaa", 0), ("bbbbbbbbbbbb", -earlier))
        ]
        stall = Stall(storage, at, lambda locks=locks: taken(locks[1], other))
        taken(locks[0], "one")
        if not stall.happened:
            break
        holders = sum(lock.is_ours() for lock in locks)
        assert holders <= 1, f"stalled at {at}"
        nobody += not holders
    assert at >= 4
    # Between a last look at its own claim and the deletion of the other one.
    assert nobody <= (other == "one")


def ledger_in(storage):
    return Ledger(storage.folder(), VIP, sizes=Sizes(batch=2, ahead=1), sleep=lambda _: None)


def test_a_manifest_whose_write_fails_may_arrive_later_so_its_fencing_token_does_not_come_again():
    storage = Storage(Process())

    def fails(doing, name):
        if doing == "write" and "/manifest-" in name:
            raise OSError("timed out")

    tokens = []
    for before_effect in (fails, fails, lambda *_: None):
        storage.before_effect = before_effect
        ledger = ledger_in(storage)
        with suppress(LedgerError), ledger.held("me"):
            ledger.make_current(ledger.draft(plan_of("+a")), facts=FACTS)
        tokens.append(ledger.lock.fencing_token)
    assert tokens == [1, 2, 3]
    assert not names_in(ledger.folder / "locks")


def test_a_manifest_that_arrives_after_two_other_runs_held_the_lock_is_not_the_current_one():
    """The first of them ends without a manifest, such as one that the guard refuses."""
    storage = Storage(Process())
    late, refused, last = (ledger_in(storage) for _ in range(3))

    def two_runs(doing, name):
        if doing == "write" and "/manifest-" in name:
            storage.before_effect = lambda *_: None
            with refused.held("me"):
                """It writes nothing."""
            with last.held("me"):
                last.make_current(last.draft(plan_of("+c", "+d")), facts=FACTS)
                last.share().landed(0, [])
                last.share().flush()

    storage.before_effect = two_runs
    with pytest.raises(LedgerError, match="has lost the ledger's lock"), late.held("me"):
        late.make_current(late.draft(plan_of("+x")), facts=FACTS)
    assert late.lock.fencing_token < refused.lock.fencing_token < last.lock.fencing_token
    after = ledger_in(storage)
    after.load()
    assert after.manifest.run == last.run
    assert profiles(after.known()) == ["c", "d"]


def test_wherever_a_run_is_overtaken_it_sends_nothing_that_the_other_does_not_know_of():
    """It plans c to f and sends two batches of them; its retry takes over meanwhile and plans e and g."""
    for at in count():
        storage = Storage(Process())
        first = ledger_in(storage)
        with first.held("me"):
            first.make_current(first.draft(plan_of("+a", "+b")), facts=FACTS)
            first.share().note_sending(0)
            first.share().landed(0, [])
            first.share().flush()
        overtaken = ledger_in(storage)
        seen, sent, had_it = set(), [], []

        def retry(storage=storage, overtaken=overtaken, seen=seen, had_it=had_it):
            storage.before_effect = lambda *_: None
            had_it.append(overtaken.lock.is_ours())
            ledger = ledger_in(storage)
            with ledger.held("me"):
                seen |= {*profiles(ledger.known()), *profiles(ledger.uncertain())}
                ledger.make_current(ledger.draft(plan_of("+e", "+g")), facts=FACTS)
                ledger.share().note_sending(0)
                ledger.share().landed(0, [])
                ledger.share().flush()

        stall = Stall(storage, at, retry)
        failure = "has lost the ledger's lock"
        try:
            with overtaken.held("me"):
                overtaken.make_current(overtaken.draft(plan_of("+c", "+d", "+e", "+f")), facts=FACTS)
                overtaken.share().note_sending(0)
                sent.append("c")
                overtaken.share().landed(0, [])
                overtaken.share().note_sending(1)
                sent.append("e")
                overtaken.share().landed(1, [])
                overtaken.share().flush()
        except LedgerError as error:
            failure = str(error)
        assert "has lost the ledger's lock" in failure
        if not stall.happened:
            break
        if had_it == [False]:
            # The other one had come and gone before.
            continue
        assert set(sent) <= seen, f"stalled at {at}"
        after = ledger_in(storage)
        after.load()
        assert {"a", "b", "e", "g"} <= set(profiles(after.known())) <= {"a", "b", "e", "g"} | seen, (
            f"stalled at {at}"
        )
        assert not list(after.unacknowledged())
    assert at > 20
