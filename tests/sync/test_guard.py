"""What may be sent, by the counts of a plan."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.exceptions import GuardError
from airflow_provider_talon_cdp.sync.guard import Guard, ProfileGuard


def counts(*, known=0, removals=0, additions=0, unacknowledged=0, **more):
    """Counts of a plan of one audience."""
    unchanged = known - (removals - unacknowledged)
    return Counts(
        known=Counter(vip=known),
        removals=Counter(vip=removals) if removals else Counter(),
        additions=Counter(vip=additions) if additions else Counter(),
        unacknowledged_removals=Counter(vip=unacknowledged) if unacknowledged else Counter(),
        unchanged=unchanged,
        wanted=unchanged + additions,
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
    with pytest.raises(
        GuardError, match="(?s)3 rows, and none .*\n1 x profile ID empty\n2 x profile ID null"
    ):
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
        Guard(on_empty="skip", min_removals=0).check(counts(known=10, removals=9))


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
            "Audience 'vip' would lose 201 of 1,000 members (20.1%). Nothing was sent.\n"
            "max_removal_fraction is 20.0%.\nIf that is right, pass max_removal_fraction=0.21."
        ),
    ):
        Guard().check(plan)


def test_each_audience_is_judged_on_its_own():
    plan = Counts(
        known=Counter(big=100_000, small=10),
        removals=Counter(small=10),
        additions=Counter(big=1),
        unchanged=100_000,
        wanted=100_001,
    )
    with pytest.raises(GuardError, match="'small' would lose 10 of 10"):
        Guard().check(plan)


@pytest.mark.parametrize("emptied", [1, 99])
def test_small_audiences_are_also_judged_together(emptied):
    plan = Counts(
        known=Counter({f"a{number:02}": 9 for number in range(100)}),
        removals=Counter({f"a{number:02}": 9 for number in range(emptied)}),
        unchanged=9 * (100 - emptied),
        wanted=9 * (100 - emptied),
    )
    if emptied == 1:
        assert Guard().check(plan) == "send"
        return
    with pytest.raises(GuardError) as refused:
        Guard().check(plan)
    assert str(refused.value) == (
        "All audiences together would lose 891 of 900 members (99.0%). Nothing was sent.\n"
        "max_removal_fraction is 20.0%.\n"
        "If that is right, pass max_removal_fraction=1.0."
    )
    assert Guard(max_removal_fraction=1.0).check(plan) == "send"
    assert Guard(min_removals=892).check(plan) == "send"


def test_the_argument_that_is_named_allows_the_loss_of_all_audiences_together_too():
    plan = Counts(
        known=Counter(big=40, **{f"a{number}": 9 for number in range(10)}),
        removals=Counter(big=12, **{f"a{number}": 9 for number in range(10)}),
        unchanged=28,
        wanted=28,
    )
    with pytest.raises(GuardError) as refused:
        Guard().check(plan)
    assert str(refused.value).startswith(
        "Audience 'big' would lose 12 of 40 members (30.0%). Nothing was sent.\n"
        "All audiences together would lose 102 of 130 members (78.5%).\n"
    )
    assert refused.value.allow == "max_removal_fraction=0.79"
    assert Guard(max_removal_fraction=0.79).check(plan) == "send"


@pytest.mark.parametrize("name, other", [("removals", "additions"), ("additions", "removals")])
def test_counts_have_limits_that_are_inclusive(name, other):
    plan = counts(known=100_000, **{name: 1234, other: 5678})
    assert Guard(**{f"max_{name}": 1234}).check(plan) == "send"
    with pytest.raises(
        GuardError,
        match=rf"The plan has 1,234 {name}, and max_{name} is 1,233\. Nothing was sent\.\n.* max_{name}=1234",
    ):
        Guard(**{f"max_{name}": 1233}).check(plan)
    with pytest.raises(GuardError, match=f"max_{name} is 0"):
        Guard(**{f"max_{name}": 0}).check(plan)
    assert Guard(**{f"max_{name}": 0}).check(counts(known=10)) == "send"


def test_no_removal_fits_a_share_of_0():
    strict = Guard(max_removal_fraction=0, min_removals=0)
    assert strict.check(counts(known=10, additions=1)) == "send"
    with pytest.raises(GuardError, match=r"max_removal_fraction=0\.11"):
        strict.check(counts(known=10, removals=1))


@pytest.mark.parametrize("removals, sent", [(9, True), (10, False)])
def test_a_share_says_nothing_about_few_removals(removals, sent):
    plan = counts(known=11, removals=removals)
    if sent:
        assert Guard().check(plan) == "send"
    else:
        with pytest.raises(GuardError, match="would lose 10 of 11 members"):
            Guard().check(plan)
    with pytest.raises(GuardError, match=f"would lose {removals} of 11 members"):
        Guard(min_removals=removals).check(plan)
    assert Guard(min_removals=removals + 1).check(plan) == "send"


def test_the_floor_is_for_the_share_only():
    with pytest.raises(GuardError, match="max_removals is 1"):
        Guard(max_removals=1, min_removals=100).check(counts(known=100, removals=2))
    with pytest.raises(GuardError, match="no rows"):
        Guard(min_removals=100).check(counts(known=2, removals=2))


def test_what_was_never_acknowledged_is_nothing_to_protect():
    # As after a first run with a wrong key: it may have added some, and nothing says that it did.
    plan = counts(removals=64_000, unacknowledged=64_000, additions=1)
    assert Guard().check(plan) == "send"
    plan = counts(known=1000, removals=64_200, unacknowledged=64_000)
    assert Guard().check(plan) == "send"
    with pytest.raises(GuardError, match="would lose 201 of 1,000 members"):
        Guard().check(counts(known=1000, removals=64_201, unacknowledged=64_000))
    with pytest.raises(GuardError, match="The plan has 200 removals, and max_removals is 199"):
        Guard(max_removals=199).check(plan)
    assert Guard(max_removals=200).check(plan) == "send"


def test_all_audiences_that_would_lose_too_many_are_named_and_the_worst_one_decides():
    plan = Counts(
        known=Counter({f"a{number:02}": 40 for number in range(60)}),
        removals=Counter(a00=12, a07=8, a55=39),
        unchanged=2341,
        wanted=2341,
    )
    with pytest.raises(GuardError) as refused:
        Guard(max_removals=50).check(plan)
    assert str(refused.value) == (
        "Audience 'a55' would lose 39 of 40 members (97.5%). Nothing was sent.\n"
        "Audience 'a00' would lose 12 of 40 members (30.0%).\n"
        "max_removal_fraction is 20.0%.\n"
        "The plan has 59 removals, and max_removals is 50.\n"
        "If that is right, pass max_removal_fraction=0.98, max_removals=59."
    )
    assert refused.value.allow == "max_removal_fraction=0.98, max_removals=59"
    assert Guard(max_removal_fraction=0.98, max_removals=59).check(plan) == "send"


@pytest.mark.parametrize(("audiences", "rest"), [(10, []), (30, ["... and 20 more audiences."])])
def test_of_many_audiences_that_would_lose_too_many_the_worst_ten_are_named(audiences, rest):
    plan = Counts(
        known=Counter({f"a{number:02}": 100 for number in range(audiences)}),
        removals=Counter({f"a{number:02}": 79 - number for number in range(audiences)}),
        unchanged=1,
        wanted=1,
    )
    with pytest.raises(GuardError) as refused:
        Guard().check(plan)
    lines = str(refused.value).split("\n")
    assert lines[0].startswith("Audience 'a00' would lose 79 of 100")
    assert lines[9].startswith("Audience 'a09' would lose 70 of 100")
    assert lines[10:-2] == rest


def test_the_argument_that_allows_an_empty_source_comes_with_all_others_that_it_needs():
    plan = counts(known=1200, removals=1200)
    with pytest.raises(GuardError) as refused:
        Guard(max_removals=1000).check(plan)
    assert refused.value.allow == "on_empty='allow', max_removal_fraction=1.0, max_removals=1200"
    assert f"pass {refused.value.allow} to empty the audience,\nor on_empty='skip'" in str(refused.value)
    assert Guard(on_empty="allow", max_removal_fraction=1.0, max_removals=1200).check(plan) == "send"


@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1))
def test_the_argument_that_is_named_allows_the_plan(known, share, limit):
    plan = counts(known=known, removals=max(1, int(known * share)), additions=1)
    try:
        Guard(max_removal_fraction=limit, min_removals=0).check(plan)
    except GuardError as refused:
        named = float(re.search(r"pass max_removal_fraction=([\d.]+)\.$", str(refused))[1])
        assert Guard(max_removal_fraction=named, min_removals=0).check(plan) == "send"


def test_the_limits_of_attributes_speak_of_profiles():
    with pytest.raises(GuardError, match="no rows, and the ledger has 50 profiles"):
        ProfileGuard().check(counts(known=50, removals=50))
    with pytest.raises(
        GuardError, match=r"^20 of 50 profiles would lose their attributes \(40.0%\)\. Nothing"
    ):
        ProfileGuard().check(counts(known=50, removals=20))
    assert ProfileGuard(min_removals=21).check(counts(known=50, removals=20)) == "send"
