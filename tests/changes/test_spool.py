"""What does not fit in memory: sorting on disk, against Python's sort, and a queue."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes import spool
from airflow_provider_talon_cdp.changes.change import Chunk, Profile, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import in_order
from airflow_provider_talon_cdp.changes.spool import Spool, sorted_members, sorted_profiles
from airflow_provider_talon_cdp.exceptions import SpoolError
from tests.changes.strategies import IDS, KEYS, spelt_out

ROWS = st.lists(st.tuples(IDS, KEYS | IDS), max_size=40) | st.lists(
    st.tuples(IDS, st.just("vip")), max_size=40
)
RUNS = st.integers(1, 50)
LENGTHS = st.integers(1, 7)


def unsorted(rows, length=1):
    """Put rows into chunks as a source does: in its order, and of one audience where that is so."""
    for start in range(0, len(rows), length):
        ids, keys = map(list, zip(*rows[start : start + length], strict=True))
        yield Chunk(ids, keys[0] if len(set(keys)) == 1 else keys)


@given(ROWS, RUNS, LENGTHS, st.integers(1, 5))
@example([("b", "x"), ("a\n", "x"), ("a", "x"), ("a", "x")], 1, 1, 1)
@example([("\t", "A"), ("A", "\t"), ("\\t", "A"), ("\0", "\x85"), ("\u2028", "\r")], 2, 1, 1)
@example([("a", "z"), ("a\0", "y"), ("a\0\0", "x"), ("a\0\1", "w"), ("a\1", "v")], 2, 1, 1)
@example([("😀", "x"), ("\uffff", "x")], 1, 1, 1)
def test_the_sort_on_disk_is_pythons_sort(rows, run, length, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_BLOCK", block)
        found = list(sorted_members(unsorted(rows, length), run=run))
    assert spelt_out(found) == sorted(rows)
    assert all(len(chunk) for chunk in found)
    # Of one audience it is made of bare IDs.
    assert len({key for _, key in rows}) > 1 or all(isinstance(chunk.keys, str) for chunk in found)


@given(ROWS, st.integers(1, 3))
def test_the_sort_on_disk_is_pythons_sort_when_runs_are_merged_on_the_way(rows, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_MOST_RUNS", 2)
        assert spelt_out(sorted_members(unsorted(rows), run=run)) == sorted(rows)


@given(ROWS, st.integers(1, 5))
def test_sorted_on_disk_the_members_are_the_set(rows, run):
    counts = Counts()
    assert spelt_out(in_order(sorted_members(unsorted(rows), run=run), counts, print)) == sorted(set(rows))
    assert counts.duplicate == len(rows) - len(set(rows))


@given(st.lists(IDS, unique=True))
def test_the_order_is_that_of_utf8_bytes(ids):
    ordered = [each for chunk in sorted_members([Chunk(ids, "x")], run=4) for each in chunk.ids]
    assert ordered == sorted(ids, key=str.encode)


def test_rejections_pass_through_the_sort_once():
    records = [Chunk(["b"], "x"), Rejection("null"), Chunk(["a"], "x"), Rejection("long", "l")]
    result = list(sorted_members(records, run=2))
    assert result[:2] == [Rejection("null"), Rejection("long", "l")]
    assert spelt_out(result[2:]) == [("a", "x"), ("b", "x")]


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
    monkeypatch.setattr(spool, "_MOST_RUNS", 10)
    ids = [f"{number:04}" for number in range(300)]
    found = sorted_members((Chunk([each], "x") for each in reversed(ids)), run=1)
    assert [each for chunk in found for each in chunk.ids] == ids
    assert len(opened.files) > 300
    assert opened.most <= 11


def test_the_sort_closes_its_files(opened):
    stream = sorted_members((Chunk([str(n)], "x") for n in range(10)), run=3)
    next(stream)
    stream.close()
    assert len(opened.files) == 3
    assert all(file.closed for file in opened.files)


def test_what_fits_in_memory_needs_no_file(opened):
    assert spelt_out(sorted_members([Chunk(["b", "a"], "x")])) == [("a", "x"), ("b", "x")]
    assert not opened.files


# Profiles


NAMES = st.lists(st.sampled_from("abc"), unique=True).map(tuple)
ORDERS = st.none() | st.integers(0, 3) | st.floats(0, 1) | st.dates()
PROFILES = st.lists(
    st.tuples(IDS, st.binary(max_size=3), NAMES, ORDERS).map(lambda row: Profile(*row))
    | IDS.map(lambda each: Profile(each, fault="bad")),
    max_size=30,
)


@given(PROFILES, st.integers(1, 9))
@example([Profile("a\0b"), Profile("a"), Profile("a\0"), Profile("\uffff"), Profile("😀"), Profile("\0")], 2)
def test_profiles_come_back_in_the_order_of_their_ids(rows, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_ROWS", at_once)
        patch.setattr(spool, "_MOST_NAMES", 2)
        found = list(sorted_profiles([*rows, Rejection("profile ID null")]))
    assert found[0] == Rejection("profile ID null")
    assert [row.profile_id for row in found[1:]] == sorted(row.profile_id for row in rows)
    assert sorted(map(repr, found[1:])) == sorted(map(repr, rows))


def test_a_sort_of_profiles_that_is_left_early_leaves_nothing_open(recwarn):
    stream = sorted_profiles(iter([Profile(str(number)) for number in range(9)]))
    next(stream)
    stream.close()
    assert not recwarn.list


# The queue


def test_pieces_come_out_of_a_spool_in_the_order_in_which_they_went_in():
    queue = Spool()
    queue.write(b"a")
    queue.write(b"")
    assert queue.take() == b"a"
    queue.write(b"c" * 100_000)
    assert len(queue) == 4 + 100_004
    assert (queue.take(), queue.take()) == (b"", b"c" * 100_000)
    assert len(queue) == 0
    assert not queue


def test_a_spool_is_read_from_the_start_as_often_as_wanted():
    spooled = Spool()
    for piece in (b"a", b"b"):
        spooled.write(piece)
    assert list(spooled) == list(spooled) == [b"a", b"b"]
    # Half read, and written to meanwhile.
    stream = iter(spooled)
    assert next(stream) == b"a"
    spooled.write(b"c")
    assert list(stream) == [b"b", b"c"]


def test_the_file_of_a_spool_goes_with_it(opened, recwarn):
    closed, forgotten = Spool(), Spool()
    closed.close()
    del forgotten
    assert all(file.closed for file in opened.files)
    assert not recwarn.list


# A full disk


@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_is_an_error_that_names_the_folder(monkeypatch, tmp_path, opened, room):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_at = os.pwrite

    def pwrite(descriptor, data, at):
        if at + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_at(descriptor, data, at)

    ids = [f"{number:03}" for number in range(100)]
    said = rf"(?s)No space left on device\..*TMPDIR.*\nFolder: {tmp_path}$"
    spooled = Spool()
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(SpoolError, match=said):
        list(map(spooled.write, map(str.encode, ids)))
    # What fitted is there.
    assert [piece.decode() for piece in spooled] == ids[: room // 7]
    with pytest.raises(SpoolError, match=said):
        list(sorted_members([Chunk(ids, "x")], run=10))
    # A run of the sort that cannot be written is closed at once.
    assert opened.files[-1].closed


def test_no_folder_for_temporary_files_is_such_an_error(monkeypatch):
    def nowhere(**_):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    with pytest.raises(SpoolError, match="No usable temporary directory"):
        Spool()


def test_a_full_disk_under_a_sort_of_profiles_is_such_an_error(monkeypatch):
    connect = sqlite3.connect

    def small(*args, **options):
        database = connect(*args, **options)
        database.execute("PRAGMA max_page_count = 20")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    rows = (Profile(f"{number:06}", b"x" * 100) for number in range(5000))
    with pytest.raises(SpoolError, match="is full"):
        list(sorted_profiles(rows))
