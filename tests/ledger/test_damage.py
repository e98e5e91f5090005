"""Damaged files of a ledger, interrupted writes, and a storage that does not work."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import stat
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError, TalonCdpError
from airflow_provider_talon_cdp.ledger import format as format_module
from airflow_provider_talon_cdp.ledger import storage
from tests.ledger.conftest import compressed, members, names, plan_of, profiles, spelt


@pytest.fixture
def worn(open_ledger, commit, tmp_path):
    """A ledger on disk with one file of each kind, and all that it says."""
    commit(open_ledger(tmp_path / "worn"), "+a", "+b", "+c")
    commit(open_ledger(tmp_path / "worn"), "+d", "-a", left=1)

    def read():
        ledger = open_ledger(tmp_path / "worn")
        ledger.load()
        return members(ledger.known()), members(ledger.uncertain()), spelt(ledger.changes())

    return open_ledger(tmp_path / "worn").folder, read


IN_FORCE = ["00000002-*/acks-*.json", "00000002-*/members*.zst", "00000002-*/plan-*.zst"]


@pytest.mark.parametrize("pattern", IN_FORCE)
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_with_one_byte_changed_is_an_error_or_says_the_same(worn, pattern):
    folder, read = worn
    truth = read()
    (path,) = folder.glob(pattern)
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        for bits in (0x01, 0x20, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :])
            try:
                said = read()
            except LedgerError as error:
                noticed += str(path) in str(error)
            else:
                assert said == truth, f"byte {position}"
    assert noticed > len(whole)


@pytest.mark.parametrize("pattern", IN_FORCE)
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_cut_short_or_grown_is_damaged(worn, pattern):
    folder, read = worn
    (path,) = folder.glob(pattern)
    whole = path.read_bytes()
    cuts = [whole[:size] for size in range(len(whole.rstrip()))]
    for damaged in [*cuts, whole + b"x", whole + whole]:
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match="is damaged"):
            read()


@pytest.mark.parametrize("pattern", IN_FORCE)
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_that_is_gone_is_an_error_and_not_an_empty_audience(worn, pattern):
    folder, read = worn
    (path,) = folder.glob(pattern)
    path.unlink()
    with pytest.raises(LedgerError, match="is missing"):
        read()


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_lines_that_are_none_in_a_file_with_a_fitting_checksum_are_damage(worn):
    """Garbage is met while it is read, long before the checksum can be compared."""
    folder, read = worn
    for pattern in IN_FORCE[1:]:
        (path,) = folder.glob(pattern)
        whole = path.read_bytes()
        for text in (
            b"one\n",
            b"add\ta\tb\tc\td\n",
            b"a\tvip\twhat\n",
            b"a\t\\x\tadd\n",
            b"\xff\xfe\n",
            b"\n",
        ):
            path.write_bytes(compressed(text))
            with pytest.raises(LedgerError, match="is damaged"):
                read()
        path.write_bytes(whole)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"\xff", b'{"content": 1}', b'"x"', b"0"])
def test_json_of_another_shape_is_damaged(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(LedgerError, match=r"x\.json is damaged\.\nRepair the ledger"):
        storage.read_json(tmp_path / "x.json")


# Writing whole or not at all


def interrupt(_):
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_what_was_there(state):
    path = state / "folder" / "file"
    storage.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), storage.replacing(path) as file:
        interrupt(file.write(b"n" * 100_000))
    with pytest.raises(KeyboardInterrupt), format_module.writing_lines(state / "folder" / "new") as writer:
        interrupt(writer.write(Chunk([str(each) for each in range(100_000)], "vip")))
    assert path.read_bytes() == b"old"
    assert [each.name for each in (state / "folder").iterdir()] == ["file"]


def test_an_interrupted_upload_in_parts_leaves_nothing(s3):
    path = s3 / "parts"
    path.fs.default_block_size = 5 << 20
    with pytest.raises(KeyboardInterrupt), storage.replacing(path) as file:
        interrupt([file.write(b"x" * (5 << 20)) for _ in range(4)])
    assert not path.exists()
    assert not path.fs.call_s3("list_multipart_uploads", Bucket="ledgers").get("Uploads")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_files_are_for_the_owners_eyes_alone(open_ledger, commit):
    ledger = open_ledger()
    ledger.letters.add({"profile_id": "a"})
    commit(ledger, "+a")
    commit(ledger, "+b")
    for path in (each for each in ledger.folder.rglob("*") if each.is_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_dead_letters_are_lines_of_json_in_the_folder_that_is_named(open_ledger):
    ledger = open_ledger()
    with ledger.held("me"):
        assert ledger.letters.place is None
        ledger.letters.add({"profile_id": "ü\n\u2028", "reason": "x"})
        ledger.letters.add({"profile_id": "\udcff", "reason": "y"})
        ledger.share().flush()
        ledger.letters.add({"profile_id": "z"})
        ledger.share().flush()
        ledger.share().flush()
    folder = ledger.folder / "dead-letters" / str(ledger.letters.place).rpartition("/")[2]
    assert str(folder) == ledger.letters.place
    texts = {path.name: path.read_bytes().decode() for path in folder.iterdir()}
    assert sorted(texts) == ["00000.ndjson", "00001.ndjson"]
    first = [json.loads(line) for line in texts["00000.ndjson"].removesuffix("\n").split("\n")]
    assert first == [{"profile_id": "ü\n\u2028", "reason": "x"}, {"profile_id": "\udcff", "reason": "y"}]


def test_a_folder_into_which_another_process_writes_meanwhile_is_left(tmp_path, monkeypatch):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "acks").touch()
    remove = storage.remove

    def removed(path):
        remove(path)
        path.with_name("late").touch()

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", removed)
        storage.remove_folder(tmp_path / "plan")
    assert storage.names_in(tmp_path / "plan") == ["late"]
    storage.remove_folder(tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_an_object_that_marks_a_folder_is_no_file_in_it(s3):
    folder = s3 / uuid4().hex
    storage.write_bytes(folder / "file", b"")
    s3.fs.call_s3("put_object", Bucket="ledgers", Key=f"{folder.name}/", Body=b"")
    assert storage.names_in(folder) == ["file"]


# A state URI that does not work


def test_a_bucket_that_does_not_exist_is_one_clear_error_also_for_an_upload_in_parts(s3):
    path = type(s3)("s3://storage@no-such-bucket/parts")
    path.fs.default_block_size = 5 << 20
    with pytest.raises(LedgerError, match=r"Cannot write parts, .*\nCheck the state URI"):
        storage.write_bytes(path, b"x" * (11 << 20))


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_state_folder_below_a_file_is_one_clear_error(open_ledger, commit, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="Check the state URI"):
        commit(open_ledger(tmp_path / "file" / "state"), "+a")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("step", ["fsync", "open"])
def test_a_full_disk_is_one_clear_error_and_leaves_no_draft(open_ledger, commit, monkeypatch, step):
    commit(open_ledger(), "+a")

    def full(*_):
        raise OSError(28, "No space left on device")

    ledger = open_ledger()
    before = names(ledger)
    with ledger.held("me"), monkeypatch.context() as patch:
        patch.setattr(f"os.{step}", full)
        with pytest.raises(LedgerError, match=r"No space left on device\.\nIts disk or its quota is full"):
            ledger.draft(plan_of("+b"))
    assert names(ledger) == before


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "number, cure",
    [
        (errno.ENOSPC, "disk or its quota is full"),
        (errno.EDQUOT, "disk or its quota is full"),
        (errno.EROFS, "Check the state URI"),
        (errno.EACCES, "Check the state URI"),
        (errno.EIO, "Check the state URI"),
    ],
)
@pytest.mark.parametrize("step", ["open", "fsync", "write", "flush", "replace"])
def test_an_error_of_the_disk_at_any_write_is_one_clear_error_that_names_the_folder(
    open_ledger, commit, loaded, monkeypatch, number, cure, step
):
    commit(open_ledger(), "+a")
    for fails_at in range(100):
        steps = itertools.count(-fails_at)

        def fails(really, left=steps):
            def called(*args, **how):
                if next(left) >= 0 and not (step == "open" and args[1] == os.O_RDONLY):
                    raise OSError(number, os.strerror(number), args[0])
                return really(*args, **how)

            return called

        with monkeypatch.context() as patch:
            if step == "write":
                patch.setattr(storage, "open", partial(Unwritable, fails), raising=False)
            elif step == "flush":
                patch.setattr(storage, "open", partial(unflushable, fails), raising=False)
            elif step == "replace":
                patch.setattr(Path, "replace", fails(Path.replace))
            else:
                patch.setattr(os, step, fails(getattr(os, step)))
            try:
                commit(open_ledger(), "+b", "-c")
            except LedgerError as error:
                raised = error
            else:
                break
        assert raised.retryable == (number not in (errno.EROFS, errno.EACCES))
        lines = str(raised).split("\n")
        assert "a file of the ledger: " in lines[0]
        assert cure in lines[1]
        assert lines[2].startswith(f"Folder: {open_ledger().folder}")
        assert all(len(line) <= 110 for line in lines[:-1])
        assert profiles(loaded().known())[0] == "a"
        assert not [name for name in names(loaded()) if Path(name).name.startswith(".")]
    # Without fsync of the folder a file system does what it can.
    assert fails_at > 4


def unflushable(fails, descriptor, _):
    """Open a file that takes data into its buffer, and cannot write the buffer."""

    class Raw(io.FileIO):
        def write(self, data):
            return fails(super().write)(data)

    return io.BufferedWriter(Raw(descriptor, "wb"))


class Unwritable:
    """A file that cannot be written."""

    def __init__(self, fails, *how):
        self._file = open(*how)  # noqa: PTH123, SIM115
        self.write = fails(self._file.write)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_bucket_that_does_not_exist_is_one_clear_error(s3, open_ledger, commit):
    with pytest.raises(LedgerError, match=r"bucket does not exist.*\nCheck the state URI"):
        commit(open_ledger(type(s3)("s3://storage@nowhere")), "+a")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_an_object_store_that_cannot_be_reached_is_one_clear_error(bucket, open_ledger, commit):
    once = {"retries": {"max_attempts": 1}, "connect_timeout": 1}
    unreachable = bucket("unreachable", "http://127.0.0.1:9", config_kwargs=once)
    with pytest.raises(LedgerError, match=r"Could not connect.*\nCheck the state URI"):
        commit(open_ledger(unreachable), "+a")


def test_every_error_of_a_ledger_is_one_of_ours():
    assert issubclass(LedgerError, TalonCdpError)
