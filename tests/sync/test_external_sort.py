"""Sorting on disk, against Python's sort."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.sync import external_sort
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.diff import PlanCounts, members
from airflow_provider_talon_cdp.sync.external_sort import externally_sorted
from tests.sync.test_diff import IDS, as_changes


@given(st.lists(st.tuples(IDS, IDS), max_size=40), st.integers(1, 50))
@example([("b", "x"), ("a\n", "x"), ("a", "x"), ("a", "x")], 1)
@example([("\t", "A"), ("A", "\t"), ("\\t", "A"), ("\0", "\x85"), ("\u2028", "\r")], 2)
def test_the_external_sort_is_pythons_sort(rows, run):
    assert [change[:2] for change in externally_sorted(as_changes(rows), run=run)] == sorted(rows)


@given(st.lists(st.tuples(IDS, IDS), max_size=40), st.integers(1, 3))
def test_the_external_sort_is_pythons_sort_when_runs_are_merged_on_the_way(rows, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "_MOST_RUNS", 2)
        assert [change[:2] for change in externally_sorted(as_changes(rows), run=run)] == sorted(rows)


@given(st.lists(st.tuples(IDS, IDS), max_size=40), st.integers(1, 5))
def test_sorted_externally_the_members_are_the_set(rows, run):
    counts = PlanCounts()
    assert list(members(externally_sorted(as_changes(rows), run=run), counts)) == sorted(set(rows))
    assert counts.duplicate == len(rows) - len(set(rows))


@given(st.lists(IDS, unique=True))
def test_the_order_is_that_of_utf8_bytes(ids):
    ordered = [
        change.profile_id for change in externally_sorted(as_changes((each, "x") for each in ids), run=4)
    ]
    assert ordered == sorted(ids, key=str.encode)


def test_rejections_pass_through_the_sort_once():
    records = [
        *as_changes([("b", "x")]),
        Rejection("null"),
        *as_changes([("a", "x")]),
        Rejection("long", "l"),
    ]
    result = list(externally_sorted(records, run=2))
    assert [each for each in result if isinstance(each, Rejection)] == [
        Rejection("null"),
        Rejection("long", "l"),
    ]
    assert [each[0] for each in result if isinstance(each, Change)] == ["a", "b"]


@pytest.fixture
def opened(monkeypatch):
    """The temporary files that were opened, and how many of them were open at most."""
    seen = SimpleNamespace(files=[], most=0)
    make = tempfile.TemporaryFile

    def watched(*args, **kwargs):
        seen.files.append(make(*args, **kwargs))
        seen.most = max(seen.most, sum(not file.closed for file in seen.files))
        return seen.files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    return seen


def test_the_sort_has_few_files_open_however_many_runs_there_are(opened, monkeypatch):
    monkeypatch.setattr(external_sort, "_MOST_RUNS", 10)
    ids = [f"{number:04}" for number in range(3000)]
    result = externally_sorted(as_changes((each, "x") for each in reversed(ids)), run=1)
    assert [change.profile_id for change in result] == ids
    assert opened.most <= 40


def test_the_sort_closes_its_files(opened):
    stream = externally_sorted(as_changes((str(n), "x") for n in range(10)), run=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(opened.files) == 4
    assert all(file.closed for file in opened.files)
