"""Airflow 3.3's task state store, which a retry of the same task run finds as the try before it left it."""

from __future__ import annotations

import json
import logging

import pytest

from airflow_provider_talon_cdp.decorators import TalonAudienceTask
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    RejectedRecordsError,
)

RESUMING = "Resuming the plan of an earlier try"
MANY = [f"customer-{each:05}" for each in range(5000)]


class Store:
    """As ``context["task_state_store"]``."""

    def __init__(self):
        self.values = {}
        self.last = {}

    def get(self, key, default=None):
        return self.values.get(key, default)

    def set(self, key, value):
        self.values[key] = value
        self.last[key] = value

    def delete(self, key):
        self.values.pop(key, None)


class FailingStore:
    """A store whose service does not answer, or refuses."""

    def get(self, key, default=None):
        raise ConnectionError("The API server does not answer.")

    set = delete = get


@pytest.fixture
def with_store(context):
    return context | {"task_state_store": Store()}


@pytest.fixture
def failed(sqlite, vip, mirror, with_store, caplog):
    """A try that sent two of five batches."""
    caplog.set_level(logging.INFO)
    sqlite.fill(MANY)
    vip.fail_next("status", status=401, after=2, times=None)
    with pytest.raises(AuthenticationError):
        mirror(in_flight=1, context=with_store)
    vip.clear_faults()
    assert len(vip.members("vip")) == 2000
    return sqlite


def test_a_retry_sends_what_is_left_and_then_plans_anew(failed, mirror, with_store, agrees, said):
    summary = mirror(context=with_store)
    assert RESUMING in said()
    assert (summary["resumed"], summary["sent"], summary["read"], summary["unchanged"]) == (
        3000,
        3000,
        5000,
        5000,
    )
    agrees(MANY)


def test_a_list_resumes_too(vip, mirror_list, with_store, agrees):
    vip.fail_next("status", status=401, after=2, times=None)
    with pytest.raises(AuthenticationError):
        mirror_list(MANY, in_flight=1, context=with_store)
    vip.clear_faults()
    assert mirror_list(MANY, context=with_store)["resumed"] == 3000
    agrees(MANY)


def test_without_a_store_a_retry_plans_anew(sqlite, vip, mirror, agrees):
    sqlite.fill(MANY)
    vip.fail_next("status", status=401, after=2, times=None)
    with pytest.raises(AuthenticationError):
        mirror(in_flight=1)
    vip.clear_faults()
    summary = mirror()
    assert (summary["resumed"], summary["sent"], summary["unchanged"]) == (0, 3000, 2000)
    agrees(MANY)


def test_the_store_holds_json_without_any_id_and_nothing_after_success(failed, mirror, with_store):
    kept = json.dumps(with_store["task_state_store"].values)
    assert "vip" not in kept
    assert "customer" not in kept
    assert len(kept) < 200
    mirror(context=with_store)
    assert not with_store["task_state_store"].values


def test_nothing_is_left_in_the_store_after_a_run_that_rejected_records(sqlite, vip, mirror, with_store):
    sqlite.fill(MANY)
    vip.reject_profiles(MANY[:1])
    with pytest.raises(RejectedRecordsError):
        mirror(context=with_store)
    assert not with_store["task_state_store"].values


def test_a_warehouse_that_changed_before_the_retry(failed, mirror, with_store, agrees):
    """A green mirror is equal to the query."""
    wanted = [*MANY[100:], "new"]
    failed.fill(wanted)
    summary = mirror(context=with_store)
    assert (summary["resumed"], summary["removals"], summary["sent"]) == (3000, 100, 3101)
    agrees(wanted)


def test_a_query_that_was_mended_before_the_retry(failed, mirror, with_store, agrees, said):
    """Whoever finds the wrong plan stops the task, mends the query and clears the task: same run, new
    plan."""
    summary = mirror(
        sql="SELECT profile_id FROM customers WHERE profile_id LIKE 'customer-000%'",
        context=with_store,
        max_removal_fraction=1,
    )
    assert RESUMING not in said()
    assert summary["resumed"] == 0
    agrees(MANY[:100])


def test_a_guard_that_was_tightened_before_the_retry_speaks(failed, mirror, with_store, calls):
    before = calls()
    with pytest.raises(GuardError, match="max_additions"):
        mirror(context=with_store, max_additions=10)
    assert calls() == before


def test_a_check_that_was_added_before_the_retry_speaks(failed, mirror, with_store, calls):
    failed.fill([*MANY, "None"])
    before = calls()
    with pytest.raises(InvalidInputError, match="text of a null"):
        mirror(context=with_store, suspicious_ids="fail")
    assert calls() == before


def test_a_function_that_was_corrected_before_the_retry_is_called_anew(
    vip, connect, with_store, state, agrees
):
    """Nothing tells a corrected function from the one of the try before."""

    def send(ids, **how):
        how |= {"audience_id": "vip", "state_uri": str(state), "in_flight": 1}
        TalonAudienceTask(task_id="sync", python_callable=lambda: ids, **how).execute(with_store)

    vip.fail_next("status", status=401, after=2, times=None)
    with pytest.raises(AuthenticationError):
        send(MANY)
    vip.clear_faults()
    send(MANY[:1900])
    agrees(MANY[:1900])
    assert len(vip.requests()) < 8


def test_another_ledger_is_not_resumed(failed, mirror, with_store, tmp_path):
    assert mirror(context=with_store, state_uri=str(tmp_path / "other"))["resumed"] == 0


def test_a_cleared_task_reads_the_query_anew_though_a_try_died_after_its_last_note(
    sqlite, vip, mirror, with_store, agrees
):
    """The worker may die between the last acknowledgement and the deletion of the cursor."""
    sqlite.fill(MANY)
    mirror(context=with_store)
    with_store["task_state_store"].values.update(with_store["task_state_store"].last)
    sqlite.fill([*MANY, "new"])
    assert mirror(context=with_store)["resumed"] == 0
    agrees([*MANY, "new"])


def test_a_dry_run_leaves_the_store_alone(failed, mirror, with_store, calls):
    kept, before = dict(with_store["task_state_store"].values), calls()
    summary = mirror(context=with_store, dry_run=True)
    assert (summary["resumed"], summary["unsent"]) == (0, 3000)
    assert with_store["task_state_store"].values == kept
    assert calls() == before


def test_a_store_that_fails_does_not_fail_the_mirror(sqlite, vip, mirror, context, agrees, said):
    sqlite.fill(MANY)
    assert mirror(context=context | {"task_state_store": FailingStore()})["sent"] == 5000
    agrees(MANY)
    assert "task state store" in said()
