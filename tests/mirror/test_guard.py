"""What a mirror refuses to send, and what lets it."""

from __future__ import annotations

import logging
from functools import partial

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError, RejectedRecordsError
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

TEN = [f"customer-{each}" for each in range(10)]


@pytest.fixture
def mirror(mirror):
    """A mirror whose guard lets no small removal pass by: the audiences here are small."""
    return partial(mirror, min_removals=0)


@pytest.fixture
def full(sqlite, vip, mirror):
    """A warehouse of ten customers that were mirrored."""
    sqlite.fill(TEN)
    mirror()
    return sqlite


def test_an_emptied_table_is_refused_with_the_numbers_and_the_argument(full, mirror, agrees, calls):
    full.fill([])
    before = calls()
    with pytest.raises(GuardError, match=r"(?s)no rows.*ledger has 10.*on_empty='allow'"):
        mirror()
    assert calls() == before
    agrees(TEN)


def test_an_empty_source_of_a_new_audience_is_refused_too(sqlite, vip, mirror, calls):
    sqlite.fill([])
    with pytest.raises(GuardError, match="ledger has 0"):
        mirror()
    assert calls() == 0


def test_rows_without_a_single_valid_member_never_empty_the_audience(full, mirror, agrees):
    full.fill([None, "", "x" * 1001])
    with pytest.raises(GuardError, match="(?s)3 rows, and none .*\n1 x profile ID empty\n"):
        mirror(max_rejected=None, on_empty="allow", max_removal_fraction=1)
    agrees(TEN)


def test_an_empty_source_can_be_skipped(full, mirror, agrees, caplog):
    caplog.set_level(logging.INFO)
    full.fill([])
    summary = mirror(on_empty="skip")
    assert (summary["sent"], summary["removals"], summary["requests"]) == (0, 10, 0)
    assert "on_empty is 'skip'" in caplog.text
    agrees(TEN)


def test_an_empty_source_can_empty_the_audience(full, mirror, agrees):
    full.fill([])
    with pytest.raises(GuardError, match=r"(?s)100\.0%.*max_removal_fraction=1\.0"):
        mirror(on_empty="allow")
    mirror(on_empty="allow", max_removal_fraction=1)
    agrees([])


@pytest.mark.parametrize("removed, passes", [(2, True), (3, False)])
def test_a_fifth_may_leave(full, mirror, agrees, calls, removed, passes):
    full.fill(TEN[removed:])
    before = calls()
    if passes:
        assert mirror()["removals"] == removed
        return agrees(TEN[removed:])
    with pytest.raises(GuardError, match=r"(?s)3 of 10 members \(30\.0%\).*max_removal_fraction=0\.31"):
        mirror()
    assert calls() == before
    return agrees(TEN)


@pytest.mark.parametrize("floor", [3, 4])
def test_few_removals_are_less_than_the_share_is_about(full, mirror, agrees, floor):
    full.fill(TEN[3:])
    if floor == 3:
        with pytest.raises(GuardError, match="would lose 3 of 10 members"):
            mirror(min_removals=floor)
        return agrees(TEN)
    assert mirror(min_removals=floor)["removals"] == 3
    return agrees(TEN[3:])


def test_few_are_fewer_than_ten_where_nothing_else_is_said(full, vip, state, context, agrees):
    def run():
        SqlToTalonAudienceOperator(
            task_id="sync",
            sql="SELECT profile_id FROM customers",
            sql_conn_id="warehouse",
            audience_id="vip",
            mode="mirror",
            on_empty="allow",
            state_uri=str(state),
        ).execute(context)

    full.fill([])
    with pytest.raises(GuardError, match="would lose 10 of 10 members"):
        run()
    full.fill(TEN[:1])
    run()
    agrees(TEN[:1])


@pytest.mark.parametrize("emptied", [1, 99])
def test_many_small_audiences_are_not_emptied_by_one_run(sqlite, talon, mirror_many, calls, emptied):
    rows = [(f"customer-{each}", f"store-{each % 100}") for each in range(900)]
    sqlite.fill_pairs(rows)
    mirror_many(audience_name_column="audience_id", min_removals=10)
    sqlite.fill_pairs([row for row in rows if int(row[1].removeprefix("store-")) >= emptied])
    before = calls()
    if emptied == 1:
        assert mirror_many(audience_name_column="audience_id", min_removals=10)["removed"] == 9
        return
    said = r"All audiences together would lose 891 of 900 members \(99\.0%\)\. Nothing was sent\."
    with pytest.raises(GuardError, match=said) as refusal:
        mirror_many(audience_name_column="audience_id", min_removals=10)
    assert refusal.value.allow == "max_removal_fraction=1.0"
    assert calls() == before


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 56, 57, 58])
def test_a_fraction_allows_exactly_itself(sqlite, vip, mirror, agrees, percent):
    ids = [f"{each:03}" for each in range(100)]
    sqlite.fill(ids)
    mirror()
    sqlite.fill(ids[percent:])
    mirror(max_removal_fraction=percent / 100)
    agrees(ids[percent:])


def test_what_the_refusal_says_is_what_allows_it(full, mirror, agrees):
    full.fill(TEN[7:])
    with pytest.raises(GuardError) as refusal:
        mirror()
    allowed = float(str(refusal.value).rsplit("max_removal_fraction=", 1)[1].rstrip("."))
    mirror(max_removal_fraction=allowed)
    agrees(TEN[7:])


HUNDRED = [f"customer-{each:03}" for each in range(100)]


@pytest.fixture
def lost(sqlite, vip, mirror):
    """A hundred customers that were mirrored; call it to have another ID, or none, for some of them."""
    sqlite.fill(HUNDRED)
    mirror()

    def lost(number, bad=None):
        sqlite.fill([*HUNDRED[number:], *[bad] * number])
        return HUNDRED[number:]

    return lost


@pytest.mark.parametrize("bad", [None, "", "nan", "None"])
@pytest.mark.parametrize("tolerated", [0, 14])
def test_rows_that_lost_their_ids_do_not_remove_those_they_belonged_to(
    lost, mirror, agrees, calls, bad, tolerated
):
    lost(15, bad)
    before = calls()
    text = "15 of them have the text of a null, such as 'None' or 'nan'.\n" if bad else ""
    allow = "suspicious_ids='ignore'" if bad else "max_rejected=15"
    said = f"(?s)Rows without a profile ID: 15. Nothing was sent.\n{text}The 15 that.*pass {allow}"
    with pytest.raises(GuardError, match=said) as refusal:
        mirror(min_removals=10, max_rejected=tolerated)
    assert refusal.value.allow == allow
    assert calls() == before
    agrees(HUNDRED)


@pytest.mark.parametrize("tolerated", [15, None])
def test_rows_without_ids_that_are_tolerated_stop_no_removal(lost, mirror, agrees, tolerated):
    left = lost(15)
    report = mirror(min_removals=10, max_rejected=tolerated)
    assert (report["removed"], report["rejected"]) == (15, {"profile ID null": 15})
    agrees(left)


def test_rows_without_ids_and_with_the_text_of_a_null_are_counted_together(sqlite, lost, mirror, agrees):
    sqlite.fill([*HUNDRED[15:], *[None] * 8, *["nan"] * 7])
    said = "Rows without a profile ID: 15. Nothing was sent.\n7 of them have the text of a null"
    with pytest.raises(GuardError, match=said) as refusal:
        mirror(min_removals=10)
    assert refusal.value.allow == "max_rejected=8, suspicious_ids='ignore'"
    agrees(HUNDRED)


@pytest.mark.parametrize(
    "nulls, texts, allow", [(50, 1, "max_rejected=50"), (1, 50, "suspicious_ids='ignore'")]
)
def test_no_argument_is_named_that_is_not_needed(sqlite, lost, mirror, nulls, texts, allow):
    sqlite.fill([*HUNDRED[15:], *[None] * nulls, *["nan"] * texts])
    with pytest.raises(GuardError) as refusal:
        mirror(min_removals=10)
    assert refusal.value.allow == allow


def test_texts_of_a_null_that_were_there_in_the_last_run_stop_no_removal(sqlite, vip, mirror, agrees):
    """As of a guest who has no ID: no member has lost its row."""
    sqlite.fill([*HUNDRED, *["nan"] * 15])
    mirror()
    for left in (HUNDRED[15:], HUNDRED[30:]):
        sqlite.fill([*left, *["nan"] * 15])
        assert mirror()["removed"] == 15
        assert mirror()["unchanged"] == len(left) + 1
    sqlite.fill([*HUNDRED[45:], *["nan"] * 30])
    for _ in range(2):
        with pytest.raises(GuardError, match="15 of them have the text of a null"):
            mirror(max_removal_fraction=0.5)
    agrees([*HUNDRED[30:], "nan"])


def test_texts_of_a_null_that_are_ignored_stop_no_removal(lost, mirror, agrees):
    left = lost(15, "nan")
    assert mirror(min_removals=10, suspicious_ids="ignore")["removed"] == 15
    agrees([*left, "nan"])


@pytest.mark.parametrize("few", ["rows without an ID", "removals"])
def test_few_rows_without_ids_or_few_removals_are_sent_and_red(sqlite, lost, mirror, agrees, few):
    removed, nameless = (15, 9) if few == "rows without an ID" else (9, 15)
    sqlite.fill([*HUNDRED[removed:], *[None] * nameless])
    with pytest.raises(RejectedRecordsError, match=f"{nameless} of {100 + nameless} records"):
        mirror(min_removals=10)
    agrees(HUNDRED[removed:])


def test_without_min_removals_one_row_without_an_id_stops_one_removal(lost, mirror, agrees):
    lost(1)
    with pytest.raises(GuardError, match="Rows without a profile ID: 1. Nothing was sent.\nThe 1 that"):
        mirror(min_removals=0)
    agrees(HUNDRED)


def test_rows_without_ids_stop_no_addition(sqlite, lost, mirror, agrees):
    sqlite.fill([*HUNDRED, "new", *[None] * 15])
    with pytest.raises(RejectedRecordsError):
        mirror(min_removals=0)
    agrees([*HUNDRED, "new"])


def test_rows_that_are_rejected_for_another_reason_stop_no_removal(lost, mirror, agrees):
    left = lost(15, "x" * 1001)
    with pytest.raises(RejectedRecordsError, match="15 of 115 records"):
        mirror(min_removals=10)
    agrees(left)


def test_a_dry_run_says_that_rows_without_ids_would_be_refused(lost, mirror):
    lost(15)
    verdict = mirror(dry_run=True, min_removals=10)["verdict"]
    assert verdict.startswith("would be refused: Rows without a profile ID: 15")


def test_rows_that_lost_their_ids_clear_no_profiles(sqlite, send, attributes):
    people = [(each, "gold") for each in HUNDRED]
    sqlite.fill_people("id text, tier text", people)
    send(on_missing="clear")
    before = attributes()
    sqlite.fill_people("id text, tier text", [*people[15:], *[(None, "gold")] * 15])
    with pytest.raises(GuardError, match="Rows without a profile ID: 15. Nothing was sent.\nThe 15 that"):
        send(on_missing="clear")
    assert attributes() == before
    assert send(on_missing="clear", max_rejected=15)["removed"] == 15
    assert attributes()[HUNDRED[0]] == {}


@pytest.mark.parametrize(
    "argument, change", [("max_removals", TEN[2:]), ("max_additions", [*TEN, "new", "newer"])]
)
def test_counts_have_limits_too(full, mirror, agrees, calls, argument, change):
    full.fill(change)
    before = calls()
    with pytest.raises(GuardError, match=rf"(?s){argument} is 1.*{argument}=2"):
        mirror(**{argument: 1})
    assert calls() == before
    agrees(TEN)
    mirror(**{argument: 2})
    agrees(change)


def test_a_refused_plan_leaves_no_file_behind_but_its_report(full, mirror, state):
    before = {each for each in state.rglob("*") if each.is_file()}
    full.fill(TEN[5:])
    with pytest.raises(GuardError):
        mirror()
    (new,) = {each for each in state.rglob("*") if each.is_file()} - before
    assert new.parent.name == "reports"


def test_a_dry_run_tells_the_plan_and_does_nothing(
    full, talon, connect, mirror, agrees, calls, state, caplog
):
    connect(talon, requests_per_second=60)
    caplog.set_level(logging.INFO)
    full.fill([*TEN[1:], "new", "newer"])
    before, files = calls(), {each: each.stat().st_mtime_ns for each in state.rglob("*")}
    summary = mirror(dry_run=True)
    assert (summary["unchanged"], summary["removals"], summary["unsent"], summary["sent"]) == (9, 1, 3, 0)
    assert (summary["requests"], summary["verdict"]) == (1, "would be sent")
    assert "1 requests: 0.0 s at 60 a second" in caplog.text
    assert "2 to add, 1 to remove, 9 unchanged" in caplog.text
    assert calls() == before
    assert {each: each.stat().st_mtime_ns for each in state.rglob("*")} == files
    agrees(TEN)


def test_a_first_dry_run_makes_no_state(sqlite, talon, mirror, state, calls):
    sqlite.fill(TEN)
    assert mirror(dry_run=True, audience_name="VIP")["unsent"] == 10
    assert not state.exists()
    assert calls() == 0
    assert not talon.audiences()


def test_a_dry_run_of_a_refused_plan_is_green_and_says_so(full, mirror, agrees):
    full.fill([])
    assert mirror(dry_run=True)["verdict"].startswith("would be refused: The source has no rows")
    assert mirror(dry_run=True, on_empty="skip")["verdict"] == "would be skipped"
    full.fill(TEN[:2])
    assert "max_removal_fraction" in mirror(dry_run=True)["verdict"]
    agrees(TEN)


def test_a_dry_run_sees_the_members_that_would_be_adopted(sqlite, vip, mirror, tmp_path):
    members = tmp_path / "export.csv"
    members.write_text("profileintegrationid\n" + "\n".join(TEN))
    sqlite.fill(TEN[1:])
    assert mirror(dry_run=True, initial_members=str(members))["removals"] == 1


@pytest.mark.parametrize("place", ["common", "own"])
def test_a_dry_run_with_members_to_adopt_leaves_no_file(sqlite, vip, mirror, state, tmp_path, place):
    """Also none that leads other tasks to the ledger of the dry run."""
    members, common = tmp_path / "export.csv", tmp_path / "ledgers"
    members.write_text("profileintegrationid\n" + "\n".join(TEN))
    sqlite.fill(TEN[1:])
    own = {"state_uri": str(state)} if place == "own" else {"state_uri": None}
    assert mirror(dry_run=True, initial_members=str(members), **own)["unchanged"] == 9
    assert [each for folder in (common, state) for each in folder.rglob("*")] == []


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dry", [True, False])
def test_dry_run_can_come_from_the_params_of_a_run(sqlite, vip, state, context, native, dry):
    sqlite.fill(TEN)
    with DAG("mirrors", schedule=None, render_template_as_native_obj=native, params={"dry_run": False}):
        operator = SqlToTalonAudienceOperator(
            task_id="sync",
            sql="SELECT profile_id FROM customers",
            sql_conn_id="warehouse",
            audience_id="vip",
            mode="mirror",
            state_uri=str(state),
            dry_run="{{ params.dry_run }}",
        )
    operator.render_template_fields({"params": {"dry_run": dry}})
    operator.execute(context)
    assert len(vip.members("vip")) == (0 if dry else 10)


@pytest.mark.parametrize("value", ["yes", "None", 1, None])
def test_dry_run_is_true_or_false(full, mirror, agrees, value):
    with pytest.raises(InvalidInputError, match="dry_run must be True or False"):
        mirror(dry_run=value)
    agrees(TEN)
