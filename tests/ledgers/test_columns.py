"""Changes as lines of a file, and back."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.ledgers.columns import Columns
from airflow_provider_talon_cdp.sync.blocks import Block
from airflow_provider_talon_cdp.sync.changes import Change

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
IDS |= st.text("\\\t\n\r\0\u2028\x85 aA?", min_size=1, max_size=4)
ACTIONS = st.sampled_from(["add", "remove"])
CHANGES = st.lists(
    st.builds(Change, IDS, st.sampled_from(["vip", "vip", "x\ty", "add"]), ACTIONS, st.booleans()),
    min_size=1,
    max_size=8,
    unique_by=lambda change: change[:2],
)
ALIKE = st.builds(
    lambda ids, *rest: [Change(each, *rest) for each in ids],
    st.lists(IDS, min_size=1, max_size=8, unique=True),
    st.just("vip"),
    ACTIONS,
    st.booleans(),
)


@given(CHANGES | ALIKE, st.sampled_from(["vip", "x\ty"]))
@example([Change("add\tb", "vip", "add"), Change("\nadd\t", "vip", "add")], "vip")
@example([Change("add", "vip", "add"), Change("remove?", "vip", "remove", uncertain=True)], "vip")
def test_changes_come_back_from_their_lines(changes, audience):
    text = Columns.of(Block.of(changes)).lines(audience)
    assert text.count("\n") == len(changes)
    read = Columns.read(text, audience)
    assert read.changes() == changes
    assert list(read.block().changes()) == [change._replace(uncertain=False) for change in changes]
    assert [change[:3] for change in read.batch(alone=True).changes] == [change[:3] for change in changes]


@given(st.lists(CHANGES | ALIKE, min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_changes_are_joined_and_cut(several, start, more):
    joined = Columns.joined([Columns.of(Block.of(changes)) for changes in several])
    changes = [change for changes in several for change in changes]
    assert joined.changes() == changes
    cut = joined.between(start, start + more)
    assert cut.changes() == changes[start : start + more]
    if more == 1 and start < len(changes):
        assert (cut.audiences, cut.verbs) == (changes[start].audience_id, cut.lines("").partition("\t")[0])


@given(CHANGES | ALIKE, st.sets(st.integers(0, 7)))
def test_some_changes_can_be_left_out(changes, positions):
    kept = [change for at, change in enumerate(changes) if at not in positions]
    assert Columns.of(Block.of(changes)).without(positions).changes() == kept


@pytest.mark.parametrize("action, uncertain, verb", [("add", False, "add"), ("remove", True, "remove?")])
def test_an_audience_stands_only_where_it_is_another_one(action, uncertain, verb):
    columns = Columns.of(Block.of([Change(each, "vip", action, uncertain) for each in "ab"]))
    assert columns.lines("vip") == f"{verb}\ta\n{verb}\tb\n"
    assert columns.lines("gold") == f"{verb}\ta\tvip\n{verb}\tb\tvip\n"


def test_a_batch_of_one_kind_is_a_list_of_ids():
    assert Columns.read("add\ta\nadd\tb\n", "vip").batch(alone=True).groups() == [(["a", "b"], "vip", "add")]
    assert Columns.read("add?\ta\tx\nadd?\tb\tx\n", "vip").batch(alone=True).groups() == [
        (["a", "b"], "x", "add")
    ]
    assert Columns.read("add\ta\nremove\tb\n", "vip").batch(alone=True).groups() == [
        (["a"], "vip", "add"),
        (["b"], "vip", "remove"),
    ]


@pytest.mark.parametrize(
    "lines",
    ["what\ta\n", "add\n", "\n", "add\ta\tb\tc\td\n", "add\t\\x\n", "add\ta\nx\tb\n", "add\ta\tb\nx\n"],
)
def test_lines_that_are_none_are_an_error(lines):
    with pytest.raises(ValueError):
        Columns.read(lines, "vip")
