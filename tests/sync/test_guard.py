from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError
from airflow_provider_talon_cdp.sync.diff import PlanCounts
from airflow_provider_talon_cdp.sync.guard import Guard


def counts(*, known=0, removals=0, additions=0, unchanged=None, **more):
    return PlanCounts(
        known=Counter(vip=known),
        removals=Counter(vip=removals) if removals else Counter(),
        additions=Counter(vip=additions) if additions else Counter(),
        unchanged=known - removals if unchanged is None else unchanged,
        **more,
    )


def test_a_usual_plan_is_sent():
    assert Guard().check(counts(known=1000, removals=20, additions=20)) == "send"


def test_a_first_run_is_sent():
    assert Guard().check(counts(additions=5_000_000)) == "send"


def test_an_empty_source_is_refused_with_the_numbers_and_the_arguments():
    with pytest.raises(GuardError) as refused:
        Guard().check(counts(known=1200, removals=1200))
    text = str(refused.value)
    assert "no rows, and the ledger has 1,200 members. Nothing was sent." in text
    assert "on_empty='allow'" in text
    assert "on_empty='skip'" in text


@pytest.mark.parametrize("on_empty", ["fail", "skip", "allow"])
def test_rows_that_are_all_rejected_are_no_empty_source(on_empty):
    rejected = Counter({"profile ID null": 2, "profile ID empty": 1})
    with pytest.raises(GuardError, match="3 rows, and none .* 1 x profile ID empty; 2 x profile ID null"):
        Guard(on_empty=on_empty, max_removal_fraction=1).check(
            counts(known=10, removals=10, read=3, rejected=rejected)
        )


def test_an_empty_source_and_an_empty_ledger_are_refused_too():
    with pytest.raises(GuardError, match="on_empty"):
        Guard().check(counts())


def test_an_empty_source_may_be_skipped():
    assert Guard(on_empty="skip").check(counts(known=10, removals=10)) == "skip"


def test_skip_is_for_an_empty_source_alone():
    with pytest.raises(GuardError, match="max_removal_fraction"):
        Guard(on_empty="skip").check(counts(known=10, removals=9))


def test_the_allowed_emptying_is_still_under_the_removal_limits():
    with pytest.raises(GuardError, match=r"max_removal_fraction=1\.0"):
        Guard(on_empty="allow").check(counts(known=10, removals=10))
    allowing = Guard(on_empty="allow", max_removal_fraction=1.0)
    assert allowing.check(counts(known=10, removals=10)) == "send"
    assert allowing.check(counts()) == "send"


@pytest.mark.parametrize("removals, sent", [(199, True), (200, True), (201, False)])
def test_the_share_of_removals_has_a_limit(removals, sent):
    plan = counts(known=1000, removals=removals)
    if sent:
        assert Guard().check(plan) == "send"
        return
    with pytest.raises(
        GuardError,
        match=re.escape(
            "Audience 'vip' would lose 201 of 1,000 members (20.1%), and max_removal_fraction is 20.0%. Nothing was "
            "sent. If that is right, pass max_removal_fraction=0.21."
        ),
    ):
        Guard().check(plan)


def test_each_audience_is_judged_on_its_own():
    plan = PlanCounts(
        known=Counter(big=100_000, small=10),
        removals=Counter(small=10),
        additions=Counter(big=1),
        unchanged=100_000,
    )
    with pytest.raises(GuardError, match="'small' would lose 10 of 10"):
        Guard().check(plan)


@pytest.mark.parametrize("name, other", [("removals", "additions"), ("additions", "removals")])
def test_counts_have_limits_that_are_inclusive(name, other):
    plan = counts(known=100_000, **{name: 1234, other: 5678})
    assert Guard(**{f"max_{name}": 1234}).check(plan) == "send"
    with pytest.raises(
        GuardError,
        match=rf"The plan has 1,234 {name}, and max_{name} is 1,233\. Nothing was sent\. .* max_{name}=1234\.",
    ):
        Guard(**{f"max_{name}": 1233}).check(plan)
    with pytest.raises(GuardError, match=f"max_{name} is 0"):
        Guard(**{f"max_{name}": 0}).check(plan)
    assert Guard(**{f"max_{name}": 0}).check(counts(known=10)) == "send"


def test_no_removal_fits_a_share_of_0():
    assert Guard(max_removal_fraction=0).check(counts(known=10, additions=1)) == "send"
    with pytest.raises(GuardError, match=r"max_removal_fraction=0\.11"):
        Guard(max_removal_fraction=0).check(counts(known=10, removals=1))


@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1))
def test_the_argument_that_is_named_allows_the_plan(known, share, limit):
    plan = counts(known=known, removals=max(1, int(known * share)), additions=1)
    try:
        Guard(max_removal_fraction=limit).check(plan)
    except GuardError as refused:
        named = float(re.search(r"pass max_removal_fraction=([\d.]+)\.$", str(refused))[1])
        assert Guard(max_removal_fraction=named).check(plan) == "send"


@pytest.mark.parametrize(
    "arguments",
    [
        {"on_empty": "maybe"},
        {"on_empty": None},
        {"max_removal_fraction": -0.01},
        {"max_removal_fraction": 1.01},
        {"max_removal_fraction": 20},
        {"max_removal_fraction": float("nan")},
        {"max_removal_fraction": True},
        {"max_removal_fraction": "0.2"},
        {"max_removal_fraction": None},
        {"max_removals": -1},
        {"max_removals": 1.5},
        {"max_removals": True},
        {"max_additions": "7"},
        {"max_additions": -1},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_by_name(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(InvalidInputError, match=rf"^{name} must be .* but is {re.escape(repr(value))}\."):
        Guard(**arguments)
