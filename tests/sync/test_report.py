"""What a sync tells: in a small JSON object, and in lines that fit on a screen."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.exceptions import RejectedRecordsError
from airflow_provider_talon_cdp.sync.push import fail_if_rejected
from airflow_provider_talon_cdp.sync.report import Report


def report(**more):
    counts = {
        "read": 5000,
        "duplicate": 2,
        "unchanged": 1990,
        "known": Counter(vip=2500, gold=100),
        "additions": Counter(vip=3000, gold=3),
        "removals": Counter(vip=510),
        "added": Counter(vip=2990, gold=3),
        "removed": Counter(vip=510),
        "rejected": Counter({"profile ID null": 5, "refused by Talon.One (400)": 10}),
        "requests": 12,
        "retries": 2,
        "throttled": 1,
        "seconds": 61.2345,
        "dead_letters": "/state/dead-letters/x",
        "ledger_version": 7,
        "suspicious": {"null_text": 3},
    }
    return Report(**counts | more)


def test_the_summary_is_small_json_with_totals():
    summary = json.loads(json.dumps(report().summary()))
    assert summary == {
        "read": 5000,
        "removals": 510,
        "resumed": 0,
        "unchanged": 1990,
        "sent": 3503,
        "added": 2993,
        "removed": 510,
        "duplicate": 2,
        "rejected": {"profile ID null": 5, "refused by Talon.One (400)": 10},
        "unclear": 0,
        "unsent": 0,
        "requests": 12,
        "retries": 2,
        "throttled": 1,
        "seconds": 61.234,
        "dead_letters": "/state/dead-letters/x",
        "ledger_version": 7,
        "suspicious": {"null_text": 3},
        "verdict": None,
        "report_file": None,
    }
    assert report().balances


def test_a_report_comes_back_from_its_summary():
    for each in (report(), Report(), report(added=Counter(), unsent=2993, verdict="would be sent")):
        again = Report.of(json.loads(json.dumps(each.summary())))
        assert again.summary() == each.summary()
        assert again.balances


def test_what_a_newer_version_says_in_a_summary_is_left_out():
    summary = report().summary()
    assert Report.of({**summary, "of_a_newer_version": 1}).summary() == summary


def test_the_text_adds_up_line_by_line():
    assert str(report()).split("\n") == [
        "5,000 read + 510 to remove + 0 resumed",
        "= 1,990 unchanged + 3,503 sent + 2 duplicate + 15 rejected + 0 unsent",
        "sent: 2,993 added, 510 removed; 12 requests (2 retries, 1 throttled) in 61.2 s",
        "rejected: 5 x profile ID null",
        "rejected: 10 x refused by Talon.One (400)",
        "audience 'vip': 2,990 added, 510 removed, 4,980 members",
        "audience 'gold': 3 added, 0 removed, 103 members",
        "dead letters: /state/dead-letters/x",
    ]


def test_the_lines_of_large_numbers_fit_on_a_screen():
    many = 123_456_789
    large = report(
        read=many, unchanged=many, duplicate=many, unsent=many, resumed=many, requests=many, retries=many
    )
    assert max(map(len, large.lines())) <= 110


def test_the_audiences_of_a_report_are_told_with_what_they_have_now():
    by_audience = report(known=Counter(vip=2500, gold=100, same=7)).by_audience()
    assert by_audience == {
        "gold": {"added": 3, "removed": 0, "members": 103},
        "same": {"added": 0, "removed": 0, "members": 7},
        "vip": {"added": 2990, "removed": 510, "members": 4980},
    }


def test_what_was_sent_without_need_changes_no_number_of_members():
    again = report(
        known=Counter(vip=10),
        added=Counter(vip=10),
        repeated=Counter(vip=10),
        removed=Counter(vip=3),
        unacknowledged_removals=Counter(vip=2),
    )
    assert again.by_audience()["vip"] == {"added": 10, "removed": 3, "members": 9}
    # All was sent again, and not all of it was acknowledged.
    again = report(known=Counter(vip=10), added=Counter(vip=5), removed=Counter(), repeated=Counter(vip=10))
    assert again.by_audience()["vip"]["members"] == 10


def test_a_plan_that_follows_another_knows_what_that_one_sent():
    whole = Report(added=Counter(vip=5), removed=Counter(vip=1, gold=1), ledger_version=2)
    whole.plan_anew()
    whole += Counts(known=Counter(vip=14, gold=9), added=Counter(vip=1), removed=Counter(vip=2))
    assert {name: each["members"] for name, each in whole.by_audience().items()} == {"gold": 9, "vip": 13}


def test_one_audience_needs_no_line_and_of_many_the_first_ones_have_one():
    assert "audience" not in str(report(known=Counter(vip=1), added=Counter(vip=1)))
    lines = report(known=Counter({f"{number:03}": 1 for number in range(30)}), added=Counter()).lines()
    assert sum(line.startswith("audience") for line in lines) == 20
    assert "... and 11 more audiences" in lines


def test_changes_that_were_not_counted_by_audience_are_not_told_by_audience():
    again = Report.of(report().summary())
    again.known.update(report().known)
    assert again.by_audience() == {}
    assert "audience" not in str(again)


def test_stages_add_to_a_report():
    whole = Report(seconds=1.0)
    whole += Counts(read=2, added=Counter(vip=2), requests=1)
    whole += Counts(removals=Counter(vip=1), removed=Counter(vip=1), requests=1)
    assert (whole.total, whole.sent, whole.requests, whole.seconds) == (3, 3, 2, 1.0)
    assert whole.balances


# More rejections than are tolerated


def rejected(**reasons):
    return Report(read=5, added=Counter(vip=5 - sum(reasons.values())), rejected=Counter(reasons))


@pytest.mark.parametrize("max_rejected", [2, 3, None])
def test_rejections_up_to_a_limit_are_tolerated(max_rejected):
    fail_if_rejected(rejected(null=2), max_rejected)


def test_more_rejections_are_an_error_with_the_report_and_the_cure():
    with pytest.raises(RejectedRecordsError) as failure:
        fail_if_rejected(rejected(null=2), 1)
    first, _, cure, *_, last = str(failure.value).split("\n")
    assert first == "2 of 5 records were rejected, and max_rejected is 1."
    assert "5 read + 0 to remove" in str(failure.value)
    assert cure == "Leave such records out of the source, or raise max_rejected."
    assert last == "rejected: 2 x null"
    assert failure.value.report.balances


def test_a_reason_can_be_excused():
    fail_if_rejected(rejected(changed=2, bad=1), 1, excused=["changed"])
    with pytest.raises(RejectedRecordsError, match="1 of 5 records were rejected, and max_rejected is 0"):
        fail_if_rejected(rejected(changed=2, bad=1), 0, excused=["changed"])


@pytest.mark.parametrize(
    "reason, is_told", [("attribute 'Tier' is not defined", True), ("attribute 'Tier' was refused", False)]
)
def test_what_to_do_about_an_attribute_that_is_not_defined(reason, is_told):
    with pytest.raises(RejectedRecordsError) as error:
        fail_if_rejected(rejected(**{reason: 1}), 0)
    told = "Define missing attributes in the Campaign Manager,\nor pass skip_unknown_attributes=True."
    assert (told in str(error.value)) == is_told
