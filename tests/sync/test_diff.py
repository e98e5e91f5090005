"""The plan's arithmetic, against Python's sets."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.diff import (
    OutOfOrderError,
    PlanCounts,
    diff,
    members,
)
from airflow_provider_talon_cdp.sync.fold import fold

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
IDS |= st.text("\\\t\n\r\0\u2028\x85 aA\uffff😀", min_size=1, max_size=3)
MEMBERS = st.sets(st.tuples(IDS, st.sampled_from(["vip", "VIP", "x\ty", "😀"])), max_size=15)


def as_changes(members):
    return [Change(*member, "add") for member in members]  # type: ignore[call-arg]


@given(MEMBERS, MEMBERS, MEMBERS)
@example({("a", "vip")}, set(), {("a", "vip")})
@example(set(), set(), {("b", "vip")})
@example({("a", "vip"), ("c", "vip")}, {("b", "vip")}, {("a", "vip"), ("b", "vip"), ("c", "vip")})
def test_the_changes_are_the_differences_of_the_sets_and_all_that_is_uncertain(known, wanted, uncertain):
    counts = PlanCounts()
    changes = list(diff(sorted(known), sorted(wanted), counts, uncertain=sorted(uncertain)))
    assert [change[:2] for change in changes] == sorted({change[:2] for change in changes})
    by_action = {
        action: {change[:2] for change in changes if change.action == action} for action in ("add", "remove")
    }
    assert by_action["add"] == (wanted - known) | (wanted & uncertain)
    assert by_action["remove"] == (known | uncertain) - wanted
    assert {change[:2] for change in changes if change.uncertain} == uncertain
    assert counts.unchanged == len((wanted & known) - uncertain)
    assert counts.known.total() == len(known | uncertain)
    assert counts.additions.total() == len(by_action["add"])
    assert counts.removals.total() == len(by_action["remove"])
    assert counts.changes == len(changes)
    assert counts.wanted == len(wanted)
    assert counts.audiences == sorted({change.audience_id for change in changes})
    # Counts by audience are the same sums, divided.
    for audience in {audience for _, audience in known | wanted | uncertain}:
        assert counts.known[audience] == sum(each[1] == audience for each in known | uncertain)


@given(MEMBERS, MEMBERS)
def test_the_ledgers_members_after_the_plan_are_the_sources(known, wanted):
    changes = diff(sorted(known), sorted(wanted), PlanCounts())
    assert list(fold(sorted(known), changes)) == sorted(wanted)


@given(MEMBERS, st.dictionaries(st.tuples(IDS, st.just("vip")), st.sampled_from(["add", "remove"])))
def test_fold_adds_and_removes_members_that_are_there_or_not(snapshot, changes):
    sorted_changes = [Change(*member, action) for member, action in sorted(changes.items())]  # type: ignore[call-arg]
    expected = snapshot | {member for member, action in changes.items() if action == "add"}
    expected -= {member for member, action in changes.items() if action == "remove"}
    assert list(fold(sorted(snapshot), sorted_changes)) == sorted(expected)


def test_a_plan_of_nothing_is_nothing():
    counts = PlanCounts()
    assert list(diff([], [], counts)) == []
    assert counts == PlanCounts()


def test_known_members_of_audiences_that_are_not_managed_stay():
    counts = PlanCounts()
    known = [("a", "gold"), ("a", "vip"), ("z", "gold")]
    changes = list(diff(known, [("b", "vip")], counts, uncertain=[("c", "vip")], managed=["vip"]))
    assert changes == [
        Change("a", "vip", "remove"),
        Change("b", "vip", "add"),
        Change("c", "vip", "remove", uncertain=True),
    ]
    assert counts.known == {"vip": 2}


@pytest.mark.parametrize("known", [[], [("c", "gold")]])
def test_an_uncertain_member_of_an_audience_that_is_not_managed_any_more_is_an_error(known):
    doubts = [("a", "vip"), ("c", "gold")]
    with pytest.raises(InvalidInputError, match=r"'gold', which is not in audiences now\. Let one run end"):
        list(diff(known, [("b", "vip")], PlanCounts(), uncertain=doubts, managed=["vip"]))


def test_a_managed_audience_that_the_source_lacks_is_emptied():
    changes = list(diff([("a", "gold")], [], PlanCounts(), managed=["gold", "vip"]))
    assert changes == [Change("a", "gold", "remove")]


def test_an_audience_of_the_source_that_is_not_managed_is_an_error():
    with pytest.raises(
        InvalidInputError, match=r"has the audience 'gold', which is not in audiences\. Add it"
    ):
        list(diff([], [("a", "gold")], PlanCounts(), managed=["vip"]))


def test_members_come_once_and_all_records_are_counted():
    counts, letters = PlanCounts(), []
    records = [
        Rejection("null"),
        *as_changes([("a", "x"), ("a", "x"), ("a", "y"), ("b", "x")]),
        Rejection("long", "l"),
    ]
    assert list(members(records, counts, on_rejected=letters.append)) == [("a", "x"), ("a", "y"), ("b", "x")]
    assert (counts.read, counts.duplicate, counts.rejected) == (6, 1, {"null": 1, "long": 1})
    assert letters == [Rejection("null"), Rejection("long", "l")]


@pytest.mark.parametrize(
    "first, second",
    [
        (("a", "x"), ("B", "x")),
        (("a", "y"), ("a", "x")),
        (("é", "x"), ("z", "x")),
        (("😀", "x"), ("\uffff", "x")),  # the order of UTF-16
        (("10", "x"), ("09", "x")),
        (("a\n", "x"), ("a", "x")),
        (("a ", "x"), ("a", "x")),
    ],
)
def test_an_order_other_than_that_of_bytes_is_noticed(first, second):
    if first < second:
        first, second = second, first
    assert first[0].encode() >= second[0].encode()
    with pytest.raises(OutOfOrderError):
        list(members(as_changes([first, second]), PlanCounts()))


FINGERPRINTS = st.dictionaries(IDS, st.sampled_from(["f1", "f2", "f\t3"]), max_size=15)


@given(
    FINGERPRINTS, st.dictionaries(IDS, st.tuples(st.sampled_from(["f1", "f4"]), st.booleans()), max_size=15)
)
@example(
    {"a": "f1", "b": "f1"}, {"a": ("f4", True), "b": ("f1", False), "c": ("f1", True), "d": ("f1", False)}
)
def test_with_one_line_per_profile_a_change_replaces_what_was_there(snapshot, changes):
    expected = dict(snapshot)
    for profile, (fingerprint, adds) in changes.items():
        expected.pop(profile, None)
        if adds:
            expected[profile] = fingerprint
    folded = fold(
        sorted(snapshot.items()),
        [
            Change(profile, fingerprint, "add" if adds else "remove")
            for profile, (fingerprint, adds) in sorted(changes.items())
        ],
        one_per_profile=True,
    )
    assert list(folded) == sorted(expected.items())


@given(MEMBERS, MEMBERS)
def test_all_of_the_source_is_sent_where_that_is_asked_for(known, wanted):
    counts = PlanCounts()
    changes = list(diff(sorted(known), sorted(wanted), counts, sends_all=True))
    assert {change[:2] for change in changes if change.action == "add"} == wanted
    assert {change[:2] for change in changes if change.action == "remove"} == known - wanted
    assert (counts.unchanged, counts.changes) == (0, len(wanted | known))
