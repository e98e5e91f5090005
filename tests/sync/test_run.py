from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager

import pytest

from airflow_provider_talon_cdp.exceptions import AuthenticationError, RejectedRecordsError
from airflow_provider_talon_cdp.sync import run as run_module
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.report import SyncReport
from airflow_provider_talon_cdp.sync.run import fail_if_rejected, run_sync

RECORDS = [Change("anna", "vip", "add"), Change("bo", "vip", "add"), Rejection("profile ID null")]


class Sender:
    requests = 0
    retries = 2
    throttled = 1
    error = None

    async def __call__(self, batch):
        self.requests += 1
        if self.error:
            raise self.error


@asynccontextmanager
async def opened(sender):
    yield sender


def test_the_report_counts_records_and_requests():
    report = run_sync(RECORDS, opened(Sender()), max_rejected=1)
    assert report.balances
    summary = report.summary()
    assert summary.pop("seconds") >= 0
    assert json.loads(json.dumps(summary)) == {
        "read": 3,
        "sent": 2,
        "duplicate": 0,
        "rejected": {"profile ID null": 1},
        "unsent": 0,
        "requests": 1,
        "retries": 2,
        "throttled": 1,
        "unchanged": 0,
        "removals": 0,
        "resumed": 0,
        "dead_letters": None,
        "ledger_version": None,
        "verdict": None,
    }


def test_the_log_ends_with_the_counts_and_holds_no_id(caplog):
    caplog.set_level(logging.DEBUG)
    run_sync(RECORDS, opened(Sender()), max_rejected=None)
    assert "3 read = 2 sent + 0 duplicate + 1 rejected + 0 unsent" in caplog.text
    assert "1 x profile ID null" in caplog.text
    assert "anna" not in caplog.text


def test_rejections_above_the_limit_fail_the_run_after_everything_good_was_sent():
    sender = Sender()
    with pytest.raises(
        RejectedRecordsError, match="1 of 3 records were rejected and max_rejected is 0"
    ) as failure:
        run_sync(RECORDS, opened(sender))
    assert sender.requests == 1
    assert failure.value.report.sent == 2


def test_a_run_that_stops_early_says_how_far_it_came(caplog):
    sender = Sender()
    sender.error = AuthenticationError("no", method="PUT", path="/")
    with pytest.raises(AuthenticationError):
        run_sync(RECORDS, opened(sender))
    assert "Stopped early: 3 read = 0 sent + 0 duplicate + 1 rejected + 2 unsent" in caplog.text


def test_a_long_run_tells_its_progress(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(run_module, "_SECONDS_BETWEEN_PROGRESS_LINES", 0.0)
    run_sync([Change(str(number), "vip", "add") for number in range(2000)], opened(Sender()))
    assert "2,000 read, 2,000 sent, " in caplog.text


def test_a_reason_can_be_excused():
    counts = {"read": 5, "sent": 2, "duplicate": 0, "unsent": 0, "requests": 5, "retries": 0, "throttled": 0}
    report = SyncReport(**counts, rejected={"changed": 2, "bad": 1}, seconds=0.0)
    fail_if_rejected(report, 1, excused="changed")
    with pytest.raises(
        RejectedRecordsError, match="1 of 5 records were rejected and max_rejected is 0"
    ) as error:
        fail_if_rejected(report, 0, excused="changed")
    assert error.value.report.balances


@pytest.mark.parametrize(
    "reason, is_told", [("attribute 'Tier' is not defined", True), ("attribute 'Tier' was refused", False)]
)
def test_what_to_do_about_an_attribute_that_is_not_defined(reason, is_told):
    counts = {"read": 1, "sent": 0, "duplicate": 0, "unsent": 0, "requests": 1, "retries": 0, "throttled": 0}
    with pytest.raises(RejectedRecordsError) as error:
        fail_if_rejected(SyncReport(**counts, rejected={reason: 1}, seconds=0.0), 0)
    told = "Define missing attributes in the Campaign Manager, or pass skip_unknown_attributes=True."
    assert (told in str(error.value)) == is_told
