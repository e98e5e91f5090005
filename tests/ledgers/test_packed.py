"""Gzip files of lines, larger than one piece and smaller."""

from __future__ import annotations

import gzip
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledgers import packed

LINES = [f"customer-{number * 7919 % 100_003:06}-ü\n" for number in range(60_000)]


@pytest.fixture
def large(state):
    """A file of many pieces; its path and its checksum."""
    path = state / "large.gz"
    with packed.writing_lines(path) as file:
        for start in range(0, len(LINES), 777):
            file.write("".join(LINES[start : start + 777]))
    return path, file.sha256


def test_what_is_written_is_read_in_whole_lines(large):
    path, sha256 = large
    texts = list(packed.read_texts(path, sha256))
    assert len(texts) > 10
    assert all(text.endswith("\n") for text in texts)
    assert "".join(texts) == "".join(LINES) == gzip.decompress(path.read_bytes()).decode()


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=9), max_size=20
    )
)
def test_any_lines_come_back(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("packed") / "x.gz"
    text = "".join(f"{line}\n" for line in lines)
    with packed.writing_lines(path) as file:
        file.write(text)
    assert "".join(packed.read_texts(path, file.sha256)) == text


@pytest.mark.parametrize("size", [1, packed._PIECE - 1, packed._PIECE, packed._PIECE + 1, 3 * packed._PIECE])
def test_lines_of_any_length_come_back(tmp_path, size):
    text = f"{'x' * size}\ny\n" * 3
    with packed.writing_lines(tmp_path / "x.gz") as file:
        file.write(text)
    assert "".join(packed.read_texts(tmp_path / "x.gz", file.sha256)) == text


def test_equal_lines_make_equal_files(large, tmp_path):
    path, sha256 = large
    with packed.writing_lines(tmp_path / "again.gz") as file:
        for line in LINES:
            file.write(line)
    assert file.sha256 == sha256
    assert (tmp_path / "again.gz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_damage_anywhere_in_a_large_file_is_noticed(large):
    path, sha256 = large
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 97):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 0x20]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(LedgerError, match=r"large\.gz is damaged"):
                list(packed.read_texts(path, sha256))
    path.write_bytes(whole + b"x")
    with pytest.raises(LedgerError, match="is damaged"):
        list(packed.read_texts(path, sha256))


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_that_is_gone_is_an_error(large):
    path, sha256 = large
    path.unlink()
    with pytest.raises(LedgerError, match="is gone"):
        list(packed.read_texts(path, sha256))


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_disk_that_is_full_on_the_way_is_one_clear_error_and_leaves_nothing(state):
    def write():
        with packed.writing_lines(state / "x.gz") as file:
            for line in LINES:
                file.write(line)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(LedgerError, match=r"Cannot write .*x\.gz .*Check the state URI"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(state.iterdir())
