"""What happens to a lock that is damaged, not renewed, slept through, or held by another run."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from uuid import uuid4

import pytest

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import LedgerBusyError, LedgerError, LedgerUnavailableError
from airflow_provider_talon_cdp.ledger import lock as lock_module
from airflow_provider_talon_cdp.ledger import storage
from airflow_provider_talon_cdp.ledger.lock import LEASE, LOCK_LASTS, LOCK_RENEWED
from airflow_provider_talon_cdp.ledger.storage import names_in, write_bytes
from tests.faults.s3_proxy import FaultyProxy
from tests.ledger.conftest import FACTS, plan_of, profiles, spelt


def files_of(ledger):
    locks = ledger.folder / "locks"
    return {
        "claim": locks / f"all-{ledger.run}.json",
        "heartbeat": locks / f"all-{ledger.run}.heartbeat.json",
    }


# Damage


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b'{"content": {}, "sha256": "x"}'])
@pytest.mark.parametrize("which", [["claim"], ["heartbeat"], ["claim", "heartbeat"]])
def test_damaged_lock_files_of_a_dead_run_are_taken_over(open_ledger, clock, commit, which, damage):
    dead = open_ledger()
    dead.lock.take("dead")
    for name in which:
        write_bytes(files_of(dead)[name], damage)
    clock.now += LOCK_LASTS + 1
    commit(open_ledger(), "+a", owner="other")
    assert not names_in(dead.folder / "locks")


def test_a_run_with_a_damaged_claim_is_alive_as_long_as_its_heartbeat_says_so(open_ledger, clock):
    alive = open_ledger()
    alive.lock.take("alive")
    write_bytes(files_of(alive)["claim"], b"")
    with pytest.raises(LedgerBusyError, match="in use"):
        open_ledger().lock.take("other")
    assert alive.lock.is_ours()


def test_a_run_whose_claim_is_damaged_goes_on_and_gives_the_lock_back(open_ledger):
    ledger = open_ledger()
    with ledger.held("me"):
        write_bytes(files_of(ledger)["claim"], b"torn")
        ledger.make_current(ledger.draft(plan_of("+a")), facts=FACTS)
        ledger.share().flush()
    assert not names_in(ledger.folder / "locks")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_locks_of_the_version_before_are_respected_and_cleaned_up(open_ledger, clock, commit):
    locks = open_ledger().folder / "locks"
    claim = {"owner": "old", "host": "h", "pid": 1, "time": clock.now}
    storage.write_json(locks / "all-0123456789ab.json", claim)
    storage.write_json(locks / "all-0123456789ab.beat.json", {"time": clock.now, "turn": 7, "rests": False})
    with pytest.raises(LedgerBusyError, match="in use by old"):
        commit(open_ledger(), "+a")
    clock.now += LOCK_LASTS
    commit(open_ledger(), "+a")
    commit(open_ledger(), "+b")
    assert not names_in(locks)


# A storage that does not delete


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_where_s3_refuses_to_delete_a_claim_no_run_takes_over(s3, bucket, open_ledger, clock):
    """S3 answers 200 to a deletion of several objects, and says in the body which of them it refuses."""
    with FaultyProxy(s3.fs.endpoint_url, seed=0, share=0) as proxy:
        proxy.denies_deletions = True
        place = bucket("undeletable", proxy.url) / uuid4().hex
        dead, other = open_ledger(place), open_ledger(place)
        dead.lock.take("dead")
        clock.now += LOCK_LASTS
        with pytest.raises(LedgerError, match="Cannot delete all-.*: Access ?Denied"):
            other.lock.take("other")
        assert dead.lock.is_ours()
        assert not other.lock.fencing_token


def test_a_run_does_not_take_over_a_claim_that_a_deletion_has_left(open_ledger, clock, monkeypatch):
    dead, other = open_ledger(), open_ledger()
    dead.lock.take("dead")
    clock.now += LOCK_LASTS
    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "remove", lambda path: None)
        with pytest.raises(LedgerBusyError, match="in use by dead"):
            other.lock.take("other")
    assert not other.lock.fencing_token


# A thread that cannot renew


def renew_once(lock):
    turns = iter([False, True])
    lock.renew(SimpleNamespace(wait=lambda _: next(turns)))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd"), MemoryError()])
def test_the_thread_survives_any_error_and_the_lock_is_lost_after_the_lease(
    open_ledger, clock, monkeypatch, error, caplog
):
    ledger = open_ledger()
    ledger.lock.take("me")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "write_json", fail)
        with caplog.at_level(logging.WARNING):
            renew_once(ledger.lock)
        assert "could not be renewed" in caplog.text
    clock.now += LOCK_RENEWED
    ledger.lock.raise_if_lost()
    renew_once(ledger.lock)
    assert ledger.lock.confirmed == clock.now


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_run_goes_on_while_the_storage_is_away_for_less_than_the_lease(open_ledger, clock, monkeypatch):
    ledger = open_ledger()
    ledger.lock.take("me")

    def fail(*_):
        raise LedgerError("The storage is away.")

    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "read_json", fail)
        clock.now += LEASE - 1
        ledger.lock.raise_if_lost()
        clock.now += 1
        with pytest.raises(LedgerError, match="This run has lost the ledger's lock"):
            ledger.lock.raise_if_lost()
    # Whoever stopped does not begin again.
    with pytest.raises(LedgerError, match="has lost the ledger's lock"):
        ledger.lock.raise_if_lost()
    assert LEASE + 2 * LOCK_RENEWED < LOCK_LASTS


# A process that slept


@pytest.mark.parametrize("slept", [40, 180, 10_000])
def test_a_process_that_slept_while_its_retry_took_over_sends_nothing_more(open_ledger, clock, slept):
    ledger, retry = open_ledger(), open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a", "+b")), facts=FACTS)
        share = ledger.share()
        share.note_sending(0)
        clock.now += slept
        retry.lock.take("me")
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            share.raise_if_lost()
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            share.note_sending(0)
    assert retry.lock.is_ours()


def test_a_process_that_slept_between_a_look_at_its_claim_and_its_heartbeat_sends_nothing_more(
    open_ledger, clock, monkeypatch
):
    ledger, retry = open_ledger(), open_ledger()
    ledger.lock.take("me")
    clock.now += LEASE

    def write(path, content):
        monkeypatch.undo()
        clock.now += LEASE
        retry.lock.take("me")
        storage.write_json(path, content)

    monkeypatch.setattr(lock_module, "write_json", write)
    with pytest.raises(LedgerError, match="has lost the ledger's lock"):
        ledger.lock.raise_if_lost()
    assert retry.lock.is_ours()


def test_a_process_that_slept_in_the_last_look_at_its_claim_makes_no_call_that_runs_rules(
    open_ledger, clock, monkeypatch
):
    ledger, retry = open_ledger(), open_ledger()
    ledger.lock.take("me")
    ledger.load()
    ledger.make_current(ledger.draft(lambda *_: [Chunk(["a"], "vip", "add!")]), facts=FACTS)
    share = ledger.share()
    assert spelt(share.batches()) == [Change("a", "vip", "add", runs_rules=True)]

    def read(path):
        monkeypatch.undo()
        content = storage.read_json(path)
        clock.now += LOCK_LASTS
        retry.lock.take("me")
        return content

    monkeypatch.setattr(lock_module, "read_json", read)
    with pytest.raises(LedgerError, match="has lost the ledger's lock"):
        share.note_sending(0, [0])
    assert retry.lock.is_ours()


def test_files_that_the_run_which_took_over_has_deleted_are_not_damage(open_ledger, commit):
    ledger = open_ledger()
    commit(ledger, "+a", "+b")

    def read_late():
        with ledger.held("me"):
            for member in "cdef":
                commit(open_ledger(keep=1), f"+{member}")
            list(ledger.known())

    with pytest.raises(LedgerUnavailableError, match="has lost the ledger's lock"):
        read_late()


@pytest.mark.parametrize("slept", [40, 180, 10_000])
def test_a_process_that_slept_while_nobody_took_over_goes_on_and_counts_as_alive_again(
    open_ledger, clock, slept
):
    ledger = open_ledger()
    ledger.lock.take("me")
    clock.now += slept
    ledger.lock.raise_if_lost()
    with pytest.raises(LedgerBusyError, match=r"last heartbeat was 0 s ago"):
        open_ledger().lock.take("other")


def test_a_fresh_confirmation_needs_no_look_at_the_storage(open_ledger, clock, monkeypatch):
    ledger = open_ledger()
    ledger.lock.take("me")

    def fail(*_):
        raise AssertionError("it looked")

    monkeypatch.setattr(lock_module, "read_json", fail)
    for _ in range(3):
        clock.now += LOCK_RENEWED - 0.1
        ledger.lock.raise_if_lost()


def test_time_is_measured_by_a_clock_that_goes_on_in_suspension(tmp_path):
    lock = lock_module.Lock(tmp_path, "0123456789ab")
    assert lock.now is lock_module.since_boot
    before = lock.now()
    threading.Event().wait(0.01)
    assert 0.005 < lock.now() - before < 10


# Another run holds the lock


def test_a_run_that_is_refused_leaves_no_files(open_ledger):
    first = open_ledger()
    first.lock.take("first")
    with pytest.raises(LedgerBusyError, match="in use by first"), open_ledger().held("second"):
        pass
    assert len(names_in(first.folder / "locks")) == 2


def test_eleven_runs_that_wait_all_get_their_turn(open_ledger, loaded):
    """As catch-up runs do, each a thread here."""
    failed = []

    def run(number):
        # Eleven that look more often keep the server of the storage from its work.
        ledger = open_ledger(sleep=lambda _: threading.Event().wait(0.25))
        try:
            while not add(ledger, number):
                threading.Event().wait(0.5)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    def add(ledger, number):
        try:
            with ledger.held(f"run {number}"):
                ledger.make_current(ledger.draft(plan_of(f"+{number:02}")), facts=FACTS)
                share = ledger.share()
                share.note_sending(0)
                share.landed(0)
                share.end()
        except LedgerBusyError:
            return False
        return True

    threads = [threading.Thread(target=run, args=(number,)) for number in range(11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not failed
    assert profiles(loaded().known()) == [f"{number:02}" for number in range(11)]
    assert loaded().version == 11


def test_a_lock_that_cannot_be_given_back_does_not_hide_why_the_run_ended(open_ledger, monkeypatch, caplog):
    def fail(*_):
        raise LedgerError("No space left.")

    ledger = open_ledger()
    with pytest.raises(RuntimeError, match="the cause"), ledger.held("me"):  # noqa: PT012
        monkeypatch.setattr(lock_module, "remove", fail)
        raise RuntimeError("the cause")
    assert "The ledger's lock was not released. Other runs must wait 120 s" in caplog.text
