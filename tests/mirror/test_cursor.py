"""Airflow 3.3's task state store, which a retry of the same task run finds as the try before it left it."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_talon_cdp.exceptions import AuthenticationError

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


def test_a_retry_resumes_the_plan(failed, mirror, with_store, agrees, said):
    summary = mirror(context=with_store)
    assert RESUMING in said()
    assert summary["sent"] == 3000
    agrees(MANY)


def test_nothing_is_left_in_the_store_after_success(failed, mirror, with_store):
    mirror(context=with_store)
    assert not with_store["task_state_store"].values


def test_a_warehouse_that_changed_before_the_retry(failed, mirror, with_store, agrees):
    """A green mirror is equal to the query."""
    wanted = [*MANY[100:], "new"]
    failed.fill(wanted)
    mirror(context=with_store, max_removal_fraction=1)
    agrees(wanted)


def test_a_query_that_was_mended_before_the_retry(failed, mirror, with_store, agrees, vip):
    """Whoever finds the wrong plan stops the task, mends the query and clears the task: same run, new plan."""
    mirror(
        sql="SELECT profile_id FROM customers WHERE profile_id LIKE 'customer-000%'",
        context=with_store,
        max_removal_fraction=1,
    )
    agrees(MANY[:100])


def test_a_guard_that_was_tightened_before_the_retry_speaks(failed, mirror, with_store, calls):
    before = calls()
    with pytest.raises(Exception, match="max_additions"):
        mirror(context=with_store, max_additions=10)
    assert calls() == before


def test_a_cleared_task_reads_the_query_anew_though_a_try_died_after_its_last_note(
    sqlite, vip, mirror, with_store, agrees
):
    """The worker may die between the last acknowledgement and the deletion of the cursor."""
    sqlite.fill(MANY)
    mirror(context=with_store)
    with_store["task_state_store"].values.update(with_store["task_state_store"].last)
    mirror(context=with_store)
    sqlite.fill([*MANY, "new"])
    mirror(context=with_store)
    agrees([*MANY, "new"])
