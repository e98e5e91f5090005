"""Whatever blocks sorted members and changes come in, the plan and the fold are those of single ones."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from operator import itemgetter

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.sync.blocks import Block, Changes, Members, blocks_of_changes
from airflow_provider_talon_cdp.sync.changes import Change, Ids, Rejection
from airflow_provider_talon_cdp.sync.diff import PlanCounts, diff, members
from airflow_provider_talon_cdp.sync.fold import fold

IDS = st.text("ab\t\n\\\0é😀", min_size=1, max_size=3)
MEMBERS = st.sets(st.tuples(IDS, st.sampled_from(["vip", "vip", "vip", "gold"])), max_size=25)
ONE_AUDIENCE = st.sets(st.tuples(IDS, st.just("vip")), max_size=25)
EITHER = MEMBERS | ONE_AUDIENCE
CUTS = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6)


def stretches(items, cuts):
    """Cut a list into pieces of such lengths, again and again; whether each may be in its quick form."""
    at, turn = 0, 0
    while at < len(items):
        length, quick = cuts[turn % len(cuts)]
        yield items[at : at + length], quick
        at += length
        turn += 1


def in_blocks(found, cuts):
    for some, quick in stretches(sorted(found), cuts):
        if quick and len({audience for _, audience in some}) == 1:
            yield Block([profile for profile, _ in some], some[0][1])
        else:
            yield Block(some, None)


def as_records(found, cuts):
    """A source that yields its quick form where it can."""
    for some, quick in stretches(sorted(found), cuts):
        for audience, group in groupby(some, key=itemgetter(1)):
            ids = [profile for profile, _ in group]
            if quick:
                yield Ids(ids, audience, "add")
            else:
                yield from (Change(profile, audience, "add") for profile in ids)
        yield Rejection("null")
        yield Ids([], "vip", "add")


@given(EITHER, EITHER, EITHER, st.tuples(CUTS, CUTS, CUTS))
def test_the_plan_is_the_same_in_any_blocks(known, wanted, uncertain, cuts):
    counts, expected_counts = PlanCounts(), PlanCounts()
    expected = list(diff(sorted(known), sorted(wanted), expected_counts, uncertain=sorted(uncertain)))
    changes = diff(
        Members(in_blocks(known, cuts[0])),
        Members(in_blocks(wanted, cuts[1])),
        counts,
        uncertain=Members(in_blocks(uncertain, cuts[2])),
    )
    assert list(changes) == expected
    assert counts == expected_counts


@given(EITHER, CUTS)
def test_a_source_is_the_same_in_any_form(wanted, cuts):
    counts = PlanCounts()
    found = members(as_records(wanted, cuts), counts)
    assert list(found) == sorted(wanted)
    assert counts.read == len(wanted) + counts.rejected["null"]
    assert counts.duplicate == 0


@given(st.lists(st.tuples(IDS, st.just("vip")), min_size=1, max_size=25), CUTS)
def test_equal_records_of_a_source_fold_wherever_its_lists_end(wanted, cuts):
    counts, expected = PlanCounts(), sorted(set(wanted))
    assert list(members(as_records(wanted, cuts), counts)) == expected
    assert counts.duplicate == len(wanted) - len(expected)


@given(EITHER, st.dictionaries(st.tuples(IDS, st.sampled_from(["vip", "gold"])), st.booleans()), CUTS, CUTS)
def test_the_fold_is_the_same_in_any_blocks(snapshot, changes, cuts, changes_cuts):
    expected = sorted({*snapshot, *(each for each, adds in changes.items() if adds)})
    expected = [each for each in expected if changes.get(each, True)]
    leaving = {each for each, adds in changes.items() if not adds}

    def change_blocks():
        for keys, audience, _, _ in in_blocks(changes, changes_cuts):
            gone = {profile for profile, of in leaving if of == audience} if audience else leaving
            yield Block(keys, audience, gone)

    folded = fold(Members(in_blocks(snapshot, cuts)), Changes(change_blocks()))
    assert list(folded) == expected
    assert all(block.keys for block in fold(sorted(snapshot), Changes(change_blocks())).blocks)


@given(
    st.dictionaries(st.tuples(IDS, st.sampled_from(["vip", "gold"])), st.tuples(st.booleans(), st.booleans()))
)
def test_changes_come_back_from_blocks(changes):
    spelt_out = [
        Change(*member, "add" if adds else "remove", unsure)  # type: ignore[call-arg]
        for member, (adds, unsure) in sorted(changes.items())
    ]
    assert list(Changes(blocks_of_changes(spelt_out))) == spelt_out


def test_a_plan_of_one_audience_is_made_of_bare_ids():
    """Tuples for ten million members would take most of the time."""
    counts = PlanCounts()
    changes = diff(
        Members([Block(["a", "b", "c"], "vip")]), members([Ids(["b", "d"], "vip", "add")], counts), counts
    )
    blocks = list(changes.blocks)
    assert [block.audience for block in blocks] == ["vip"] * len(blocks)
    assert sorted(key for block in blocks for key in block.keys) == ["a", "c", "d"]
    assert counts.removals == Counter(vip=2)
