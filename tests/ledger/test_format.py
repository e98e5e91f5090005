"""Changes as lines of text, and files of lines, larger than one frame and smaller."""

from __future__ import annotations

import hashlib
import itertools
import re
import resource
import shutil
import subprocess
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger import format as format_module
from airflow_provider_talon_cdp.ledger.format import (
    File,
    chunk_of,
    lines_of,
    read_chunks,
    saved_chunks,
    writing_lines,
)
from airflow_provider_talon_cdp.ledger.storage import DamagedError
from tests.ledger.conftest import compressed, spelt

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
def test_changes_come_back_from_their_lines(changes, key):
    text = lines_of(Chunk.of(changes), key)
    assert text.count("\n") == len(changes)
    assert "\r" not in text
    assert list(chunk_of(text, key).changes()) == changes


@pytest.mark.parametrize(
    "verb, key, lines",
    [
        ("add", "vip", "a\nb\n"),
        ("add", "gold", "a\tvip\nb\tvip\n"),
        ("remove?", "vip", "a\tvip\tremove?\nb\tvip\tremove?\n"),
        ("add", None, "a\tvip\nb\tvip\n"),
    ],
)
def test_what_is_as_it_mostly_is_is_left_out(verb, key, lines):
    assert lines_of(Chunk(["a", "b"], "vip", verb), key) == lines


def test_what_is_escaped_is_as_documented():
    assert lines_of(Chunk(["a\\b", "c\td\ne\rf", "ü\0\u2028"], "vip"), "vip") == (
        "a\\\\b\nc\\td\\ne\\rf\nü\0\u2028\n"
    )


def test_a_chunk_of_equal_keys_and_verbs_has_them_once():
    assert chunk_of("a\tx\tadd?\nb\tx\tadd?\n", "vip") == Chunk(["a", "b"], "x", "add?")


@pytest.mark.parametrize(
    "lines", ["", "a\tvip\twhat\n", "a\tb\tadd\td\n", "\\x\n", "a\\\n", "a\nb\tvip\tadd\nc\n"]
)
def test_lines_that_are_none_are_an_error(lines):
    with pytest.raises(ValueError):
        chunk_of(lines, "vip")


# Files

MANY = [f"customer-{number * 7919 % 100_003:06}-ü" for number in range(60_000)]


def write(path, *chunks):
    with writing_lines(path) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return writer.as_file(path.name)


@pytest.fixture
def large(state):
    """A file of many frames."""
    ids = sorted(MANY)
    return state, write(
        state / "large.zst", *(Chunk(ids[at : at + 777], "vip") for at in range(0, len(ids), 777))
    )


def test_what_is_written_is_read(large):
    folder, file = large
    chunks = list(read_chunks(folder, file))
    assert len(chunks) > 10
    assert [each for chunk in chunks for each in chunk.ids] == sorted(MANY)
    assert {chunk.keys for chunk in chunks} == {"vip"}
    assert file.lines == 60_000


def test_a_file_tells_its_key_without_a_manifest(large):
    folder, file = large
    unnamed = File(file=file.file, sha256="", lines=0, key="")
    assert spelt(read_chunks(folder, unnamed)) == spelt(read_chunks(folder, file))


@pytest.mark.skipif(not shutil.which("zstdcat"), reason="zstdcat is not installed")
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_common_tools_read_it(large):
    folder, file = large
    text = subprocess.run(["zstdcat", folder / file.file], capture_output=True, check=True).stdout.decode()
    assert [line.split("\t")[0] for line in text.splitlines()] == sorted(MANY)


@settings(deadline=None)
@given(st.lists(CHANGES | ALIKE, max_size=5))
def test_any_changes_come_back(tmp_path_factory, several):
    folder = tmp_path_factory.mktemp("lines")
    changes = [sorted(changes) for changes in several]
    file = write(folder / "x.zst", *(Chunk.of(some) for some in changes))
    # Without changes there is no file.
    assert (folder / "x.zst").exists() == (file is not None)
    # One frame, so that there is no order between frames to break.
    assert spelt(read_chunks(folder, file) if file else ()) == list(itertools.chain.from_iterable(changes))


@pytest.mark.parametrize("size", [1, 1000, format_module._FRAME_TEXT])
def test_ids_of_any_length_come_back(tmp_path, size):
    ids = sorted(f"{number:04}{'ü' * size}" for number in range(300_000 // size + 2))
    file = write(tmp_path / "x.zst", Chunk(ids, "vip"))
    assert [each for chunk in read_chunks(tmp_path, file) for each in chunk.ids] == ids


def test_equal_changes_make_equal_files(large, tmp_path):
    folder, file = large
    again = write(tmp_path / "large.zst", *read_chunks(folder, file))
    assert again == file
    assert (tmp_path / "large.zst").read_bytes() == (folder / "large.zst").read_bytes()


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_damage_anywhere_in_a_large_file_is_noticed_and_no_damaged_line_is_ever_read(large):
    folder, file = large
    path = folder / file.file
    whole = path.read_bytes()
    truth = set(MANY)
    for position in range(0, len(whole), len(whole) // 29):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 0x20]) + whole[position + 1 :],
            whole[:position] + whole[position + 1 :],
            whole[:position] + bytes(len(whole) - position),
        ):
            path.write_bytes(damaged)
            read = set()
            chunks = read_chunks(folder, file)
            with pytest.raises(DamagedError, match=r"large\.zst is damaged"):
                read.update(each for chunk in chunks for each in chunk.ids)
            assert read <= truth
    path.write_bytes(whole + b"x")
    with pytest.raises(DamagedError, match="is damaged"):
        list(read_chunks(folder, file))


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_frames_in_another_order_are_damage(large):
    folder, file = large
    path = folder / file.file
    frames = re.split(rb"(?=\x28\xb5\x2f\xfd)", path.read_bytes())[1:]
    frames[3], frames[4] = frames[4], frames[3]
    path.write_bytes(b"".join(frames))
    chunks = read_chunks(folder, File(file=file.file, sha256="", lines=0, key="vip"))
    assert len(list(itertools.islice(chunks, 4))) == 4
    with pytest.raises(DamagedError, match="is damaged"):
        next(chunks)


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_frame_that_would_fill_the_memory_is_damage(state):
    state.mkdir()
    bomb = compressed(b"x" * (1 << 26) + b"\n")
    (state / "bomb.zst").write_bytes(bomb)
    file = File(file="bomb.zst", sha256=hashlib.sha256(bomb).hexdigest(), lines=1, key="vip")
    tracemalloc.start()
    with pytest.raises(DamagedError, match="is damaged"):
        list(read_chunks(state, file))
    assert not list(saved_chunks(state, file))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_all_but_the_damaged_frames_can_be_saved(large):
    folder, file = large
    path = folder / file.file
    whole = bytearray(path.read_bytes())
    for position in (100, len(whole) // 2, len(whole) - 9):
        whole[position] ^= 1
    path.write_bytes(whole)
    saved = [each for chunk in saved_chunks(folder, file) for each in chunk.ids]
    assert saved == sorted(set(saved))
    assert set(saved) <= set(MANY)
    assert 60_000 * 0.7 < len(saved) < 60_000


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_that_is_gone_is_an_error(large):
    folder, file = large
    (folder / file.file).unlink()
    with pytest.raises(DamagedError, match="is missing"):
        list(read_chunks(folder, file))


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_disk_that_is_full_on_the_way_is_one_clear_error_and_leaves_nothing(state):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(LedgerError, match=r"Cannot write x\.zst, .*\nCheck the state URI") as error:
            write(state / "x.zst", *(Chunk([each], "vip") for each in sorted(MANY)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value).endswith(f"Folder: {state}")
    assert not list(state.iterdir())


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_folder_that_vanishes_on_the_way_is_one_clear_error(state):
    with (  # noqa: PT012
        pytest.raises(LedgerError, match=r"Cannot write x\.zst, .*\nCheck the state URI"),
        writing_lines(state / "folder" / "x.zst") as writer,
    ):
        writer.write(Chunk(["a"], "vip"))
        writer.finish()
        shutil.rmtree(state / "folder")
