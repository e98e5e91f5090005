"""An older state of a ledger that was put back: Airflow knows which version the run before wrote."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest

from airflow_provider_talon_cdp.exceptions import AuthenticationError, GuardError, LedgerError
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator

AUDIENCE = "example-everybody"


@pytest.fixture
def ledgers(tmp_path):
    """The folder of all ledgers, with what saves it and puts it back."""

    class Ledgers:
        def save(self):
            shutil.copytree(tmp_path / "ledgers", tmp_path / "saved")

        def put_back(self):
            self.delete()
            shutil.copytree(tmp_path / "saved", tmp_path / "ledgers")

        def delete(self):
            shutil.rmtree(tmp_path / "ledgers")

    return Ledgers()


def fill(warehouse, end):
    with closing(sqlite3.connect(warehouse)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS customers")
        connection.execute("CREATE TABLE customers (profile_id text PRIMARY KEY, points int)")
        connection.executemany(
            "INSERT INTO customers VALUES (?, 1)", [(f"c{each:02}",) for each in range(end)]
        )


def test_the_next_run_is_red_and_sends_nothing(run, talon, warehouse, ledgers):
    fill(warehouse, 10)
    assert run("talon_across_workers").state == "success"
    ledgers.save()
    fill(warehouse, 12)
    assert run("talon_across_workers").state == "success"
    ledgers.put_back()
    sent = talon.requests()
    dag_run = run("talon_across_workers")
    assert dag_run.state == "failed"
    states = {each.task_id: each.state for each in dag_run.get_task_instances()}
    assert states["everybody.plan"] == "failed"
    assert talon.requests() == sent


class TaskInstance:
    """What the operator needs of Airflow's, with the XComs of all runs of one task."""

    dag_id, task_id, run_id, map_index = "dag", "sync", "run", -1

    def __init__(self, xcoms):
        self.xcoms = xcoms

    def xcom_push(self, key, value):
        self.xcoms[key] = value

    def xcom_pull(self, *, task_ids, map_indexes, key, include_prior_dates):
        assert (task_ids, map_indexes, include_prior_dates) == ("sync", -1, True)
        return self.xcoms.get(key)


@pytest.fixture
def xcoms():
    """What the runs of the task have pushed."""
    return {}


@pytest.fixture
def sync(talon, xcoms):
    def sync(members, **how):
        operator = SyncAudienceMembersOperator(
            task_id="sync", audience_id=AUDIENCE, mode="mirror", members=members, audience_name="All", **how
        )
        return operator.execute({"ti": TaskInstance(xcoms)})

    return sync


def test_one_run_with_send_all_says_that_it_is_meant(sync, talon, ledgers):
    sync(["anna", "bo"])
    ledgers.save()
    sync(["anna", "cem"], max_removal_fraction=1)
    ledgers.put_back()
    for _ in range(2):
        with pytest.raises(LedgerError, match="has version 1, but this task last wrote version 2"):
            sync(["anna", "dan"])
    assert sync(["anna", "dan"], send="all", max_removal_fraction=1)["sent"] == 3
    assert sync(["anna", "dan"])["unchanged"] == 2
    # Of cem nobody knows any more.
    assert talon.members(AUDIENCE) == {"anna", "cem", "dan"}


@pytest.mark.parametrize("kept", [True, False], ids=["put back", "deleted"])
def test_after_it_a_run_that_finds_an_earlier_xcom_accepts_the_ledger_too(sync, talon, ledgers, xcoms, kept):
    """As a run that a person clears: its XComs before are those of earlier DAG runs."""
    sync(["anna"])
    ledgers.save()
    sync(["anna", "bo"])
    sync(["anna", "bo", "cem"])
    before = dict(xcoms)
    ledgers.put_back() if kept else ledgers.delete()
    assert sync(["anna", "dan"], send="all")["sent"] == 2
    xcoms.update(before)
    assert sync(["anna", "dan"])["unchanged"] == 2


@pytest.mark.parametrize("stops", [False, True], ids=["", "stopped"])
@pytest.mark.parametrize("kept", [True, False], ids=["put back", "deleted"])
@pytest.mark.parametrize("rules", ["changes", "all"])
def test_that_run_and_what_is_left_of_it_run_no_rules_again(sync, talon, ledgers, rules, kept, stops):
    """The ledger does not know of bo, for whom the rules have run."""
    sync(["anna"])
    ledgers.save()
    sync(["anna", "bo"], rules=rules)
    ledgers.put_back() if kept else ledgers.delete()
    if stops:
        talon.fail_next("status", status=401, only="update_profiles_external")
        with pytest.raises(AuthenticationError):
            sync(["anna", "bo"], rules=rules, send="all")
        talon.clear_faults()
        sync(["anna", "bo"], rules=rules)
    else:
        sync(["anna", "bo"], rules=rules, send="all")
    assert talon.rule_runs("bo") == 1
    sync(["anna", "bo", "cem"], rules=rules)
    assert [talon.rule_runs(each) for each in ("anna", "bo", "cem")] == [0, 1, 1]


def test_a_run_with_send_all_that_replaces_nothing_does_not_accept_it_for_the_others(sync, talon, ledgers):
    members = [f"c{each:02}" for each in range(50)]
    sync(members)
    ledgers.save()
    sync(members[5:])
    ledgers.put_back()
    with pytest.raises(GuardError):
        sync(members[:1], send="all")
    with pytest.raises(LedgerError, match="has version 1, but this task last wrote version 2"):
        sync(members)
    assert talon.members(AUDIENCE) == set(members[5:])
    assert sync(members, send="all")["sent"] == 50
    assert sync(members)["unchanged"] == 50


def test_a_run_with_send_all_that_has_nothing_to_send_is_enough(sync, ledgers):
    sync(["anna"])
    sync([], on_empty="allow", max_removal_fraction=1)
    ledgers.save()
    sync(["anna"])
    ledgers.put_back()
    sync([], on_empty="allow", send="all")
    assert sync(["anna"])["sent"] == 1


def test_a_deleted_ledger_is_older_too(sync, ledgers):
    sync(["anna"])
    ledgers.delete()
    with pytest.raises(LedgerError, match="has version 0, .*\n.* the ledger was deleted"):
        sync(["anna"])


def test_another_ledger_is_not_compared(sync, talon, tmp_path):
    sync(["anna"])
    sync(["anna", "bo"])
    assert sync(["anna", "bo"], state_uri=str(tmp_path / "elsewhere"))["sent"] == 2


@pytest.mark.parametrize("kept", [True, False], ids=["put back", "deleted"])
@pytest.mark.parametrize("adopts", [False, True])
def test_a_dry_run_says_that_the_run_would_be_refused(sync, talon, ledgers, xcoms, tmp_path, kept, adopts):
    sync(["anna"])
    ledgers.save()
    sync(["anna", "bo"])
    ledgers.put_back() if kept else ledgers.delete()
    files, pushed, sent = sorted(tmp_path.rglob("*")), dict(xcoms), talon.requests()
    how = {"dry_run": True}
    if adopts:
        how["initial_members"] = str(tmp_path / "members.csv")
        (tmp_path / "members.csv").write_text("profileintegrationid\nanna\n")
        files = sorted(tmp_path.rglob("*"))
    version = 1 if kept else 0
    verdict = sync(["anna", "bo", "cem"], **how)["verdict"]
    assert verdict.startswith(f"would be refused: The ledger has version {version}, but this task last wrote")
    assert sync(["anna", "bo", "cem"], send="all", **how)["verdict"] == "would be sent"
    assert (sorted(tmp_path.rglob("*")), xcoms, talon.requests()) == (files, pushed, sent)


def test_a_run_that_the_guard_stops_changes_nothing_of_it(sync, ledgers):
    sync([f"c{each:02}" for each in range(50)])
    ledgers.save()
    sync([f"c{each:02}" for each in range(51)])
    with pytest.raises(Exception, match="would lose"):
        sync(["c01"])
    ledgers.put_back()
    with pytest.raises(LedgerError, match="older backup"):
        sync(["c01"])
