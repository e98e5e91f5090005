"""The plan's arithmetic and the fold, against Python's sets, whatever chunks the streams come in."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import REMOVING, VERBS, Change, Chunk, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import Folded, OutOfOrderError, Scope, diff, fold, in_order
from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError
from airflow_provider_talon_cdp.sync.guard import Guard
from tests.changes.strategies import CUTS, IDS, KEYS, MEMBERS, chunks_of, spelt_out

PLAIN = [(3, True)]
PLANS = st.lists(
    st.dictionaries(st.tuples(IDS, KEYS), st.sampled_from(sorted(VERBS)), max_size=8), max_size=2
)


def changes_of(chunks):
    return [change for chunk in chunks for change in chunk.changes()]


def after(members, changes):
    """What a set of members becomes by changes."""
    added = {member for member, verb in changes.items() if verb not in REMOVING}
    return (members | added) - (changes.keys() - added)


@given(MEMBERS, MEMBERS, MEMBERS, st.tuples(CUTS, CUTS, CUTS))
@example({("a", "vip")}, set(), {("a", "vip")}, [PLAIN] * 3)
@example(set(), set(), {("b", "vip")}, [PLAIN] * 3)
@example({("a", "vip"), ("c", "vip")}, {("b", "vip")}, {(e, "vip") for e in "abc"}, [PLAIN] * 3)
def test_the_changes_are_the_differences_of_the_sets_and_all_that_is_uncertain(
    known, wanted, uncertain, cuts
):
    counts, witnesses = Counts(), {}
    streams = [chunks_of(each, cut) for each, cut in zip((known, wanted, uncertain), cuts, strict=True)]
    chunks = list(diff(*streams[:2], counts, uncertain=streams[2], witnesses=witnesses))
    changes = changes_of(chunks)
    assert all(len(chunk) for chunk in chunks)
    assert [change[:2] for change in changes] == sorted({change[:2] for change in changes})
    added, removed = (
        {change[:2] for change in changes if change.action == action} for action in ("add", "remove")
    )
    unchanged = (wanted & known) - uncertain
    assert added == (wanted - known) | (wanted & uncertain)
    assert removed == (known | uncertain) - wanted
    assert {change[:2] for change in changes if change.uncertain} == uncertain
    assert counts.changes == len(changes)
    assert counts.wanted == len(wanted)
    assert counts.unchanged == len(unchanged)
    assert counts.audiences == sorted({change.key for change in changes})

    def by_audience(members):
        return Counter(key for _, key in members)

    # What was never acknowledged is nothing that the ledger has.
    assert counts.known == by_audience(known)
    assert counts.additions == by_audience(added)
    assert counts.removals == by_audience(removed)
    assert counts.unacknowledged_removals == by_audience(uncertain - known - wanted)
    assert counts.repeated == by_audience(known & uncertain & wanted)
    # One unchanged member of each audience that has one.
    assert {(profile, key) for key, profile in witnesses.items()} <= unchanged
    assert witnesses.keys() == by_audience(unchanged).keys()


@given(MEMBERS, PLANS, MEMBERS, MEMBERS, CUTS)
def test_a_ledger_in_layers_is_compared_as_if_it_were_one(snapshot, plans, wanted, uncertain, cuts):
    known = snapshot
    for plan in plans:
        known = after(known, plan)

    def layered():
        return Folded(list(chunks_of(snapshot, cuts)), [list(chunks_of(each, cuts, each)) for each in plans])

    assert spelt_out(layered()) == sorted(known)
    # It may be read as often as its layers.
    both = layered()
    assert spelt_out(both) == spelt_out(both)
    found = []
    for stream in (layered(), chunks_of(known)):
        counts, witnesses = Counts(), {}
        changes = diff(stream, chunks_of(wanted), counts, uncertain=chunks_of(uncertain), witnesses=witnesses)
        found.append((changes_of(changes), counts, witnesses.keys()))
    assert found[0] == found[1]


@given(MEMBERS, MEMBERS)
def test_the_ledgers_members_after_the_plan_are_the_sources(known, wanted):
    changes = diff(chunks_of(known), chunks_of(wanted), Counts())
    assert spelt_out(fold(chunks_of(known), changes)) == sorted(wanted)


CHANGES = st.dictionaries(st.tuples(IDS, KEYS), st.sampled_from(sorted(VERBS)), max_size=15)
CHANGES |= st.dictionaries(st.tuples(IDS, st.just("vip")), st.sampled_from(sorted(VERBS)), max_size=15)


@given(MEMBERS, CHANGES, CUTS, CUTS)
def test_fold_adds_and_removes_members_that_are_there_or_not(snapshot, changes, cuts, changes_cuts):
    folded = list(fold(chunks_of(snapshot, cuts), chunks_of(changes, changes_cuts, changes)))
    assert spelt_out(folded) == sorted(after(snapshot, changes))
    assert all(len(chunk) for chunk in folded)
    assert {chunk.verbs for chunk in folded} <= {"add"}


def test_a_plan_of_nothing_is_nothing():
    counts = Counts()
    assert list(diff([], [], counts)) == []
    assert counts == Counts()


def test_a_plan_of_one_audience_is_made_of_bare_ids():
    """Tuples for ten million members would take most of the time."""
    counts = Counts()
    known, wanted = [Chunk(["a", "b", "c"], "vip")], in_order([Chunk(["b", "d"], "vip")], counts, print)
    chunks = list(diff(known, wanted, counts))
    assert [chunk.keys for chunk in chunks] == ["vip"] * len(chunks)
    assert sorted(each for chunk in chunks for each in chunk.ids) == ["a", "c", "d"]
    assert counts.removals == Counter(vip=2)


# Scope


def members(*spelt):
    """Make a stream of members of ``profile.audience``."""
    return chunks_of([tuple(each.split(".")) for each in spelt])


def test_known_members_of_audiences_that_are_not_managed_stay():
    counts = Counts()
    changes = diff(
        members("a.gold", "a.vip", "z.gold"),
        members("b.vip"),
        counts,
        uncertain=members("c.vip"),
        scope=Scope(managed=["vip"]),
    )
    assert changes_of(changes) == [
        Change("a", "vip", "remove"),
        Change("b", "vip", "add"),
        Change("c", "vip", "remove", uncertain=True),
    ]
    assert counts.known == {"vip": 1}


@pytest.mark.parametrize("known", [[], ["c.gold"]])
def test_an_uncertain_member_of_an_audience_that_is_not_managed_any_more_is_an_error(known):
    doubts = members("a.vip", "c.gold")
    changes = diff(
        members(*known), members("b.vip"), Counts(), uncertain=doubts, scope=Scope(managed=["vip"])
    )
    with pytest.raises(InvalidInputError, match=r"'gold', which is not in audiences now\.\nAdd it again"):
        list(changes)


def test_a_guest_is_removed_and_protected_by_the_guard_as_a_known_member_is():
    counts = Counts()
    uncertain = Chunk(["b", "c", "d"], "vip", ["remove", "add", "remove"])
    changes = diff([Chunk(["a"], "vip")], [Chunk(["a", "d"], "vip")], counts, uncertain=[uncertain])
    assert [tuple(change[:3]) for chunk in changes for change in chunk.changes()] == [
        ("b", "vip", "remove"),
        ("c", "vip", "remove"),
        ("d", "vip", "add"),
    ]
    assert (counts.known, counts.removals) == ({"vip": 2}, {"vip": 2})
    assert counts.unacknowledged_removals == {"vip": 1}
    with pytest.raises(GuardError, match="would lose 1 of 2 members"):
        Guard(min_removals=1).check(counts)


def test_a_managed_audience_that_the_source_lacks_is_emptied():
    changes = diff(members("a.gold"), [], Counts(), scope=Scope(managed=["gold", "vip"]))
    assert changes_of(changes) == [Change("a", "gold", "remove")]


@pytest.mark.parametrize("known", [[], ["a.gold"]])
def test_an_audience_of_the_source_that_is_not_managed_is_an_error(known):
    with pytest.raises(InvalidInputError, match=r"has the audience 'gold', which is not in audiences\. Add"):
        list(diff(members(*known), members("a.gold"), Counts(), scope=Scope(managed=["vip"])))


@given(MEMBERS, MEMBERS, MEMBERS)
def test_all_of_the_source_is_sent_where_that_is_asked_for(known, wanted, uncertain):
    counts, witnesses = Counts(), {}
    changes = changes_of(
        diff(
            chunks_of(known),
            chunks_of(wanted),
            counts,
            uncertain=chunks_of(uncertain),
            scope=Scope(sends_all=True),
            witnesses=witnesses,
        )
    )
    assert {change[:2] for change in changes if change.action == "add"} == wanted
    assert {change[:2] for change in changes if change.action == "remove"} == (known | uncertain) - wanted
    assert (counts.unchanged, counts.changes, witnesses) == (0, len(wanted | known | uncertain), {})
    assert (counts.wanted, counts.repeated.total()) == (len(wanted), len(wanted & known))


# The order of a source


def test_members_come_once_and_all_records_are_counted():
    counts, letters = Counts(), []
    records = [
        Rejection("null"),
        *(Chunk([profile], key) for profile, key in ("ax", "ax", "ay", "bx")),
        Chunk([], "x"),
        Rejection("long", "l"),
        Rejection("null"),
    ]
    assert spelt_out(in_order(records, counts, letters.append)) == [("a", "x"), ("a", "y"), ("b", "x")]
    assert (counts.read, counts.duplicate, counts.rejected) == (7, 1, {"null": 2, "long": 1})
    assert letters == [Rejection("null"), Rejection("long", "l"), Rejection("null")]


@given(
    st.lists(st.tuples(IDS, KEYS), max_size=25) | st.lists(st.tuples(IDS, st.just("vip")), max_size=25), CUTS
)
def test_equal_records_of_a_source_fold_wherever_its_chunks_end(rows, cuts):
    counts = Counts()
    chunks = list(in_order(chunks_of(rows, cuts), counts, print))
    assert spelt_out(chunks) == sorted(set(rows))
    assert all(len(chunk) for chunk in chunks)
    assert (counts.read, counts.duplicate) == (len(rows), len(rows) - len(set(rows)))


@pytest.mark.parametrize("shape", ["one chunk", "chunk after chunk"])
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
def test_an_order_other_than_that_of_bytes_is_noticed(first, second, shape):
    assert first[0].encode() >= second[0].encode()
    chunks = [Chunk.of([Change(*each, "add")]) for each in (first, second)]  # type: ignore[call-arg]
    with pytest.raises(OutOfOrderError):
        list(in_order([Chunk.joined(chunks)] if shape == "one chunk" else chunks, Counts(), print))


# One line for each profile


FINGERPRINTS = st.dictionaries(IDS, st.sampled_from(["f1", "f2", "f\t3"]), max_size=15)


@given(
    FINGERPRINTS,
    st.dictionaries(
        IDS, st.tuples(st.sampled_from(["f1", "f4"]), st.sampled_from(sorted(VERBS))), max_size=15
    ),
    CUTS,
    CUTS,
)
@example(
    {"a": "f1", "b": "f1"},
    {"a": ("f4", "add"), "b": ("f1", "remove"), "c": ("f1", "add"), "d": ("f1", "remove")},
    PLAIN,
    PLAIN,
)
def test_with_one_line_per_profile_a_change_replaces_what_was_there(snapshot, changes, cuts, changes_cuts):
    expected = dict(snapshot)
    for profile, (fingerprint, verb) in changes.items():
        expected.pop(profile, None)
        if verb not in REMOVING:
            expected[profile] = fingerprint
    verbs = {(profile, fingerprint): verb for profile, (fingerprint, verb) in changes.items()}
    old, new = list(chunks_of(snapshot.items(), cuts)), list(chunks_of(verbs, changes_cuts, verbs))
    assert spelt_out(fold(old, new, one_per_profile=True)) == sorted(expected.items())
    assert spelt_out(Folded(old, [new], one_per_profile=True)) == sorted(expected.items())
