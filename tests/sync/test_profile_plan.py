"""Fingerprints of attributes, and which profiles a plan sends."""

from __future__ import annotations

import json

import pytest
from airflow_provider_talon_cdp.sync.diff import PlanCounts
from airflow_provider_talon_cdp.sync.fingerprints import (
    Names,
    digest_of,
    doubted,
    fingerprint,
    holds,
    mask_of,
)
from airflow_provider_talon_cdp.sync.profile_diff import Bodies, diff_profiles
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync import fingerprints
from airflow_provider_talon_cdp.sync.profiles import Profile

NAMES = ["tier", "score", "a/b", "ü"]


def wanted(profile_id, **attributes):
    return Profile(
        profile_id, json.dumps(attributes, sort_keys=True).encode() if attributes else b"", tuple(attributes)
    )


def ledger_line(profile, names, *, partial=False):
    digest = digest_of(profile.profile_id, profile.attributes)
    return profile.profile_id, fingerprint(digest, names.mask(profile.names), partial=partial)


class Plan:
    """One diff, and all that came of it."""

    def __init__(self, known, source, names=None, **how):
        self.counts = PlanCounts()
        self.names = names or Names()
        bodies = Bodies()
        self.changes = list(
            diff_profiles(known, source, self.counts, names=self.names, write=bodies.write, **how)
        )
        self.bodies = [json.loads(body) for body in bodies]

    @property
    def sends(self):
        return {change.profile_id: body for change, body in zip(self.changes, self.bodies, strict=True)}

    def ledger(self, known):
        """The ledger after all is acknowledged."""
        lines = dict(known)
        for profile_id, line, action, _ in self.changes:
            if action == "add":
                lines[profile_id] = line
            else:
                del lines[profile_id]
        return sorted(lines.items())


def test_new_and_changed_profiles_are_sent_and_others_are_not():
    names = Names()
    known = [ledger_line(wanted(each, tier="gold"), names) for each in ("a", "b", "d")]
    source = [wanted("a", tier="gold"), wanted("b", tier="silver"), wanted("c", tier="gold")]
    plan = Plan(known, source, names)
    assert plan.sends == {"b": {"tier": "silver"}, "c": {"tier": "gold"}}
    counts = plan.counts
    assert (counts.unchanged, counts.additions.total(), counts.removals.total()) == (1, 2, 0)
    assert counts.known.total() == 3
    assert Plan(plan.ledger(known), source, names).changes == []


def test_everything_is_sent_where_that_is_asked_for():
    names = Names()
    known = [ledger_line(wanted("a", tier="gold"), names)]
    assert Plan(known, [wanted("a", tier="gold")], names, sends_all=True).sends == {"a": {"tier": "gold"}}


def test_a_row_without_a_value_sends_nothing_and_leaves_the_ledger_alone():
    names = Names()
    known = [ledger_line(wanted("a", tier="gold"), names)]
    plan = Plan(known, [wanted("a"), wanted("b")], names, clears=True, sends_all=True)
    assert (plan.changes, plan.counts.unchanged) == ([], 2)


def test_a_profile_that_left_the_source_loses_the_attributes_that_were_ever_sent_for_it_and_no_other():
    names = Names()
    first = [wanted("a", tier="gold"), wanted("b", score=1)]
    known = Plan([], first, names).ledger([])
    known = Plan(known, [wanted("a", tier="gold", score=3), wanted("b", score=1)], names).ledger(known)
    # A value that became null is left out, which leaves it in Talon.One.
    second = Plan(known, [wanted("a", tier="silver"), wanted("b", score=1)], names)
    known = second.ledger(known)
    left = Plan(known, [], names, clears=True)
    assert left.sends == {"a": {"tier": None, "score": None}, "b": {"score": None}}
    assert [change.action for change in left.changes] == ["remove", "remove"]
    assert left.ledger(known) == []
    assert Plan(known, [], names).changes == []


def test_a_profile_with_a_fault_stays_as_it_is():
    names = Names()
    known = [ledger_line(wanted("a", tier="gold"), names)]
    plan = Plan(known, [Profile("a", fault="bad"), Profile("b", fault="bad")], names, clears=True)
    assert (plan.changes, plan.counts.unchanged, plan.counts.known.total()) == ([], 0, 1)


def test_a_doubtful_profile_is_sent_again_and_cleared_with_all_that_may_have_been_set():
    names = Names()
    profile_id, line = ledger_line(wanted("a", tier="gold"), names)
    known = [(profile_id, doubted(line))]
    assert Plan(known, [wanted("a", tier="gold")], names).sends == {"a": {"tier": "gold"}}
    assert Plan(known, [], names, clears=True).sends == {"a": {"tier": None}}
    assert Plan(known, [], names).changes == []
    assert doubted(doubted(line)) == doubted(line)


def test_what_was_accepted_with_unknown_attributes_ignored_is_sent_again_when_they_are_not():
    names = Names()
    source = [wanted("a", tier="gold")]
    strict, lax = ([ledger_line(source[0], names, partial=partial)] for partial in (False, True))
    assert not Plan(strict, source, names, partial=True).changes
    assert not Plan(lax, source, names, partial=True).changes
    assert not Plan(strict, source, names).changes
    assert Plan(lax, source, names).sends == {"a": {"tier": "gold"}}


def test_a_new_column_touches_the_profiles_that_have_a_value_in_it():
    names = Names()
    known = Plan([], [wanted("a", tier="gold"), wanted("b", tier="gold")], names).ledger([])
    plan = Plan(known, [wanted("a", tier="gold", score=1), wanted("b", tier="gold")], names)
    assert plan.sends == {"a": {"tier": "gold", "score": 1}}


def test_equal_attributes_of_two_profiles_do_not_look_alike_in_the_ledger():
    assert digest_of("a", b"{}") != digest_of("b", b"{}")
    assert digest_of("a", b"b") != digest_of("ab", b"")


def test_too_many_names_are_taken_for_data(monkeypatch):
    monkeypatch.setattr(fingerprints, "MAX_NAMES", 2)
    with pytest.raises(InvalidInputError, match="more than 2 attribute names"):
        Names(["a"]).mask(["a", "b", "c"])


@given(st.lists(st.sampled_from(NAMES), unique=True), st.booleans(), st.booleans())
def test_a_fingerprint_says_what_was_put_into_it(chosen, partial, doubt):
    names = Names(NAMES)
    digest = digest_of("a", b"{}")
    text = fingerprint(digest, names.mask(chosen), partial=partial)
    text = doubted(text) if doubt else text
    assert set(names.of(mask_of(text))) == set(chosen)
    assert holds(text, digest, partial=True) == (not doubt)
    assert holds(text, digest, partial=False) == (not doubt and not partial)
    assert not holds(text, digest_of("b", b"{}"), partial=True)
    assert list(Names(names)) == NAMES


ATTRIBUTES = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2), max_size=3)
SOURCES = st.dictionaries(st.sampled_from("abcde"), ATTRIBUTES, max_size=5)


@given(st.lists(st.tuples(SOURCES, st.booleans()), min_size=1, max_size=5))
def test_talon_one_follows_the_source_through_any_plans(runs):
    names, known, talon, ours = Names(), [], {}, {}
    for source, clears in runs:
        plan = Plan(known, [wanted(each, **source[each]) for each in sorted(source)], names, clears=clears)
        for profile_id, body in plan.sends.items():
            there = talon.setdefault(profile_id, {"by_hand": 1})
            there.update(body)
            talon[profile_id] = {name: value for name, value in there.items() if value is not None}
        known = plan.ledger(known)
        if clears:
            ours = {each: value for each, value in ours.items() if each in source}
        for each, attributes in source.items():
            if attributes:
                ours[each] = ours.get(each, {}) | attributes
        there = {each: {k: v for k, v in value.items() if k != "by_hand"} for each, value in talon.items()}
        assert {each: value for each, value in there.items() if value} == ours
        assert all(value["by_hand"] == 1 for value in talon.values())
        assert [each for each, _ in known] == sorted(ours)
