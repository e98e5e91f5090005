"""IDs that break a wrong order, a wrong quotation or a wrong comparison."""

from __future__ import annotations

import logging
import uuid

import pytest

CASE_AND_ACCENTS = [
    "a", "A", "b", "B", "Z", "z", "ß", "ss", "SS", "I", "i", "İ", "\u0131",
    "\u00e9", "e\u0301", "\u00c9", "\u00c5", "\u212b",
]  # fmt: skip
# UTF-16 puts the first three of them before U+E000, UTF-8 and code points put them last.
BEYOND_THE_BMP = [
    "\U00010000", "\U0001f600", "\U0010fffd", "\ue000", "\uf8ff", "\ufb01", "\ufffd", "\uffff", "\ud7ff",
]  # fmt: skip
DIGITS = ["1", "2", "9", "10", "010", "100", "-1", "1.0", "1e1", "٣"]
SPACES = [
    "a ",
    "a  ",
    " a",
    "a\t",
    "\t",
    "a\n",
    "a\r",
    "a\r\n",
    "\n",
    " ",
    "\u00a0",
    "a\u2028b",
    "a\x85b",
    "a\x1fb",
]
PUNCTUATION = [
    "\\",
    "a\\",
    "a\\n",
    "\\t",
    "'",
    '"',
    "''",
    '"; --',
    "%",
    "%s",
    "%%",
    ":x",
    "{}",
    "{{ ds }}",
    "$1",
    "?",
]
IGNORED_BY_LANGUAGES = [
    "ab",
    "a-b",
    "a b",
    "a_b",
    "a.b",
    "A-B",
    "\u200d",
    "a\u00adb",
    "co-op",
    "coop",
    "Coop",
]
LONG = ["x" * 1000, "\U0001f600" * 1000, "y" * 999 + " "]
IDS = [
    *CASE_AND_ACCENTS, *BEYOND_THE_BMP, *DIGITS, *SPACES, *PUNCTUATION, *IGNORED_BY_LANGUAGES, *LONG,
]  # fmt: skip


def test_the_ids_are_distinct():
    assert len(set(IDS)) == len(IDS)


def test_every_id_is_its_own_member_and_the_database_orders_them(warehouse, vip, mirror, agrees, caplog):
    caplog.set_level(logging.DEBUG)
    warehouse.fill(IDS)
    assert mirror()["sent"] == len(IDS)
    agrees(IDS)
    assert "not sorted by bytes" not in caplog.text


def test_a_second_run_sends_nothing(warehouse, vip, mirror, agrees, calls):
    warehouse.fill(IDS)
    mirror()
    before = calls()
    summary = mirror()
    assert (summary["read"], summary["unchanged"], summary["sent"]) == (len(IDS), len(IDS), 0)
    assert calls() == before
    agrees(IDS)


def test_any_half_of_them_can_leave_and_come_back(warehouse, vip, mirror, agrees):
    for wanted in (IDS, IDS[::2], IDS[1::2], IDS[:30], IDS):
        warehouse.fill(wanted)
        mirror(max_removal_fraction=1)
        agrees(wanted)


def test_nul_characters_are_part_of_an_id(sqlite, vip, mirror, agrees, caplog):
    caplog.set_level(logging.INFO)
    ids = ["a", "a\0", "a\0b", "a\0c", "\0", "\0\0", "a\x01", "b"]
    sqlite.fill(ids)
    mirror()
    agrees(ids)
    assert "not sorted by bytes" not in caplog.text


def test_what_is_no_id_is_rejected_by_reason_and_the_rest_is_mirrored(warehouse, vip, mirror, agrees):
    warehouse.fill(["anna", None, "", "x" * 1001, "bert", None])
    summary = mirror(max_rejected=None)
    assert summary["rejected"] == {
        "profile ID null": 2,
        "profile ID empty": 1,
        "profile ID longer than 1000 characters": 1,
    }
    agrees(["anna", "bert"])


def test_an_over_long_id_becomes_a_dead_letter(warehouse, vip, mirror, agrees, state):
    warehouse.fill(["anna", "x" * 1001])
    summary = mirror(max_rejected=1)
    assert summary["dead_letters"].startswith(str(state))
    agrees(["anna"])


def test_duplicates_are_one_member(warehouse, vip, mirror, agrees):
    warehouse.fill(["anna", "bert", "anna", "bert ", "anna"])
    assert mirror()["duplicate"] == 2
    agrees(["anna", "bert", "bert "])


@pytest.mark.parametrize("column_type", ["integer", "bigint"])
def test_integers_are_their_text_in_the_order_of_text(warehouse, vip, mirror, agrees, caplog, column_type):
    caplog.set_level(logging.INFO)
    numbers = [*range(-12, 1002, 3), 2**31 - 1, *([2**63 - 1, -(2**63)] if column_type == "bigint" else [])]
    warehouse.fill(numbers, column_type=column_type)
    mirror()
    agrees([str(each) for each in numbers])
    assert "not sorted by bytes" not in caplog.text


def test_uuids_are_their_text(postgres, vip, mirror, agrees, caplog):
    caplog.set_level(logging.INFO)
    uuids = [str(uuid.UUID(int=each * 0x1234567890ABCDEF1234567890ABCDEF % 2**128)) for each in range(1, 300)]
    postgres.fill(uuids, column_type="uuid")
    mirror()
    agrees(uuids)
    assert "not sorted by bytes" not in caplog.text


@pytest.mark.parametrize("column_type", ["varchar(5)", "name"])
def test_other_text_types_of_postgres(postgres, vip, mirror, agrees, column_type):
    postgres.fill(["a", "A ", "b\t", "é"], column_type=column_type)
    mirror()
    agrees(["a", "A ", "b\t", "é"])


def test_char_n_is_what_the_driver_gives_padded_and_all_of_it_stable(postgres, vip, mirror, agrees):
    postgres.fill(["a", "a\t", "ab", "B"], column_type="char(4)")
    mirror()
    agrees(["a   ", "a\t  ", "ab  ", "B   "])
    assert mirror()["sent"] == 0


def test_a_nocase_column_of_sqlite_is_ordered_by_bytes_all_the_same(sqlite, vip, mirror, agrees, caplog):
    caplog.set_level(logging.INFO)
    sqlite.fill(IDS, column_type="text COLLATE NOCASE")
    mirror()
    agrees(IDS)
    assert mirror()["sent"] == 0
    assert "not sorted by bytes" not in caplog.text


def test_a_column_of_mixed_types_in_sqlite(sqlite, vip, mirror, agrees):
    sqlite.fill([10, "9", 1, "A", 2, "10 "], column_type="")
    mirror()
    agrees(["10", "9", "1", "A", "2", "10 "])


def test_sqlite_in_utf_16_is_sorted_on_the_worker(sqlite_utf16, vip, mirror, agrees, caplog):
    caplog.set_level(logging.INFO)
    # SQLite keeps no U+FFFF in UTF-16.
    ids = [each for each in IDS if each != "\uffff"]
    sqlite_utf16.fill(ids)
    mirror()
    agrees(ids)
    assert "not sorted by bytes" in caplog.text
    assert mirror()["sent"] == 0


@pytest.mark.parametrize("value", [1.5, b"anna"])
def test_an_id_column_of_floats_or_bytes_is_refused_before_the_first_request(
    warehouse, vip, mirror, calls, value
):
    kind = type(value).__name__
    warehouse.fill([value], column_type={"bytes": "bytea", "float": "float8"}[kind])
    with pytest.raises(ValueError, match=rf"type {kind}|type memoryview"):
        mirror()
    assert calls() == 0
