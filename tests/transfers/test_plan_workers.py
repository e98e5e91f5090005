"""``talon_audience_sync(plan_workers=...)``: tasks that read the query in ranges, and the plan of all."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    LedgerBusyError,
    LedgerError,
    NotFoundError,
    OlderRunError,
    RejectedRecordsError,
)
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.transfers._databases import ANY
from airflow_provider_talon_cdp.transfers._rows import SqlSource, range_bounds, sql_hook
from airflow_provider_talon_cdp.transfers.across_workers import (
    CompareRangeOperator,
    DivideQueryOperator,
    PlanAudienceOperator,
    PushShareOperator,
)
from tests.transfers.test_across_workers import commit, execute

RANGES = 4
# In the order of bytes of UTF-8.
IDS = [
    "",
    "!",
    "%s",
    "'; --",
    "10",
    "9",
    "A",
    "B",
    "a",
    "a b",
    "a%s",
    "aa",
    "ab",
    "b\\'",
    "z",
    "é",
    "￿",
    "😀",
]


class Group:
    """The tasks of ``talon_audience_sync`` with several readers."""

    def __init__(self, state, **how):
        self.how = {"sql": "SELECT * FROM customers", "sql_conn_id": "warehouse", "state_uri": str(state)}
        self.how |= {"audience_id": "vip", "audience_name": "VIP"} if "audience_column" not in how else {}
        self.how |= how

    def ranges(self):
        operator = DivideQueryOperator(task_id="ranges", plan_id="plan", ranges=RANGES, **self.how)
        return execute(operator)[0]

    def compare(self, spans):
        tasks = [
            CompareRangeOperator(task_id="compare", plan_id="plan", span=span, **self.how) for span in spans
        ]
        return [execute(task)[0] for task in tasks]

    def plan(self, reads, **how):
        return execute(PlanAudienceOperator(task_id="plan", workers=2, reads=reads, **self.how | how))

    def push(self, shares):
        return [execute(PushShareOperator(task_id="push", share=share))[0] for share in shares]

    def run(self, **how):
        """Run all tasks; the report."""
        return self.end(*self.plan(self.compare(self.ranges()), **how))

    def remove(self, member, audience="vip"):
        """Take a member out, as another task does."""
        how = {"audience_id": audience, "state_uri": self.how["state_uri"]}
        execute(SyncAudienceMembersOperator(task_id="remove", remove=[member], **how))

    def end(self, shares, planned):
        return commit(planned, self.push(shares), max_rejected=None)

    def run_in_one(self):
        """Plan in one task, as without several readers."""
        return self.end(*self.plan(None))


@pytest.fixture
def fill(sqlite):
    def fill(ids, audience="vip"):
        sqlite("DELETE FROM customers")
        if ids:
            sqlite("INSERT INTO customers VALUES (?, ?)", [(each, audience) for each in ids])

    return fill


@pytest.fixture
def group(fill, connect, tmp_path):
    """The group, and a hundred customers in the warehouse."""
    fill([f"c{number:03}" for number in range(100)])
    return Group(tmp_path / "state")


def files(group):
    return [each for each in Path(group.how["state_uri"]).rglob("readings/*/*") if each.is_file()]


def counts(report):
    other = {"seconds", "report_file", "dead_letters", "requests"}
    return {name: value for name, value in report.items() if name not in other}


# The same as in one task

MEMBERS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from([*IDS, None, "x" * 1001]), st.text("aé%'\\", max_size=3), st.integers(0, 120)
        ),
        st.sampled_from(["gold", "vip"]),
    ),
    max_size=30,
)
numbers = count()


def vips(ids):
    return [(each, "vip") for each in ids]


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=MEMBERS, after=MEMBERS, many=st.booleans(), outside=st.sampled_from([None, *IDS[1:]]))
@example(before=vips(IDS), after=vips(IDS[::2]), many=False, outside=None)
@example(before=vips(range(120)), after=[("9", "gold"), (9, "gold")], many=True, outside="9")
def test_what_is_sent_and_counted_is_the_same_as_in_one_task(
    sqlite, connect, talon, tmp_path, before, after, many, outside
):
    """Also where somebody else removes a member after the ranges were compared."""
    number = next(numbers)
    allow = {"on_empty": "allow", "max_removal_fraction": 1, "max_rejected": None}
    ends = []
    for way in ("ranges", "one"):
        name = f"-{way}-{number}"
        sql = f"SELECT profile_id, audience_id || '{name}' AS audience_id FROM customers"
        columns = {"audience_column": "audience_id", "audience_name_column": "audience_id"}
        group = Group(
            tmp_path / name, **allow | ({"sql": sql, **columns} if many else {"audience_id": f"vip{name}"})
        )
        for members in (before, after):
            sqlite("DELETE FROM customers")
            if members:
                sqlite("INSERT INTO customers VALUES (?, ?)", members)
            reads = group.compare(group.ranges()) if way == "ranges" else None
            if outside and members is after:
                with suppress(NotFoundError):
                    group.remove(outside, f"vip{name}")
            try:
                report = counts(group.end(*group.plan(reads)))
            except GuardError as error:
                # All rows are rejected.
                report = str(error)
            held = [
                set(talon.members(f"{audience}{name}")) if f"{audience}{name}" in talon.audiences() else set()
                for audience in ("gold", "vip")
            ]
            ends.append((report, held))
    assert ends[:2] == ends[2:]


@pytest.mark.parametrize("column", ["text", "integer", "numeric", "char(4)", "uuid"])
def test_columns_of_postgres(postgres, connect, talon, tmp_path, column):
    ids = {"uuid": "md5(n::text)::uuid", "text": "'c' || n"}.get(column, f"n::{column}")
    group = Group(tmp_path / "state", sql=f"SELECT {ids} AS profile_id FROM generate_series(1, 300) AS n")
    spans = group.ranges()
    assert len(spans) == RANGES
    report = group.end(*group.plan(group.compare(spans)))
    assert (report["read"], report["sent"]) == (300, 300)
    before = talon.members("vip")
    assert group.run_in_one()["unchanged"] == 300
    assert talon.members("vip") == before


def test_bind_parameters_and_signs_of_percent_reach_every_range(postgres, connect, talon, tmp_path):
    sql = "SELECT 'a%%' || n AS \"id%%\" FROM generate_series(1, 300) AS n WHERE n > %(least)s"
    how = {"parameters": {"least": 100}, "profile_id_column": "id%"}
    assert Group(tmp_path / "state", sql=sql, **how).run()["sent"] == 200
    assert len(talon.members("vip")) == 200


def test_empty_parameters_are_none_for_every_range(postgres, connect, talon, tmp_path):
    sql = "SELECT 'a' || n AS profile_id FROM generate_series(1, 300) AS n WHERE n % 3 = 0"
    assert Group(tmp_path / "state", sql=sql, parameters={}).run()["sent"] == 100


def test_ranges_have_about_as_many_rows_and_an_order_that_needs_no_sort(group, fill, caplog):
    ids = [f"c{number:05}" for number in range(1000)]
    random.Random(3).shuffle(ids)
    fill([*ids, *[None] * 10])
    assert range_bounds(sql_hook("warehouse"), group.how["sql"], "profile_id", None, RANGES) == [
        "c00243",
        "c00496",
        "c00748",
    ]
    assert group.run()["rejected"] == {"profile ID null": 10}
    assert "sorted on this worker's disk" not in caplog.text


def test_ids_that_no_literal_can_hold_are_one_range(group, fill, talon):
    fill(["'a", "'b", "'c", "'d", "\\"])
    (span,) = group.ranges()
    group.end(*group.plan(group.compare([span])))
    assert talon.members("vip") == {"'a", "'b", "'c", "'d", "\\"}


def test_a_source_in_another_order_is_sorted_on_disk(group, fill, talon, caplog):
    # Between texts, SQLite has numbers in their own order.
    ids = [*range(80, 120), "a", "b", "c"]
    fill(ids)
    group.how["sql"] = "SELECT profile_id FROM customers ORDER BY rowid DESC"
    reads = group.compare(group.ranges())
    # As a database in the order of a language would have it.
    group.end(*group.plan([{**each, "file": reads[-1 - at]["file"]} for at, each in enumerate(reads)]))
    assert "sorted on this worker's disk" in caplog.text
    assert talon.members("vip") == set(map(str, ids))


def test_many_audiences_have_their_names_and_their_assets(sqlite, connect, talon, tmp_path):
    sqlite("CREATE TABLE memberships (profile_id, audience_id, audience_name)")
    rows = [(f"p{number:02}", name, name.upper()) for number in range(40) for name in ("gold", "vip")]
    sqlite("INSERT INTO memberships VALUES (?, ?, ?)", [*rows, ("p99", "rare", "Rare")])
    columns = {"audience_column": "audience_id", "audience_name_column": "audience_name"}
    group = Group(tmp_path / "state", sql="SELECT * FROM memberships", **columns)
    shares, planned = group.plan(group.compare(group.ranges()))
    group.end(shares, planned)
    assert sorted(planned["assets"].values()) == ["gold", "rare", "vip"]
    assert talon.audiences()["rare"]["name"] == "Rare"
    assert len(talon.members("gold")) == len(talon.members("vip")) == 40
    # Its ledger is that of the task that plans.
    assert group.run_in_one()["unchanged"] == 81


@pytest.fixture
def named(sqlite, connect, tmp_path):
    """The group, and forty members of one audience with a name, each of whom may have another one."""
    sqlite("CREATE TABLE memberships (profile_id, audience_id, audience_name)")
    columns = {"audience_column": "audience_id", "audience_name_column": "audience_name"}

    def named(name_of):
        rows = [(f"p{number:02}", "vip", name_of(number)) for number in range(40)]
        sqlite("INSERT INTO memberships VALUES (?, ?, ?)", rows)
        return Group(tmp_path / "state", sql="SELECT * FROM memberships", **columns)

    return named


def test_two_names_for_one_audience_in_different_ranges_stop_the_plan(named, talon):
    group = named(lambda number: "Old" if number < 20 else "New")
    reads = group.compare(group.ranges())
    with pytest.raises(InvalidInputError, match="two names for the audience 'vip': 'New' and 'Old'"):
        group.plan(reads)
    assert talon.requests() == []


@pytest.mark.parametrize("has_name", [range(3), range(37, 40)], ids=["first range", "last range"])
def test_a_name_in_one_range_is_that_of_the_others_too(named, talon, has_name):
    group = named(lambda number: "VIP" if number in has_name else None)
    assert group.run()["sent"] == 40
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_an_audience_whose_name_no_range_has_is_told_by_the_plan(named, talon):
    group = named(lambda number: None)
    reads = group.compare(group.ranges())
    with pytest.raises(InvalidInputError, match="The audience_name of 'vip'"):
        group.plan(reads)
    assert talon.requests() == []


def test_rows_that_lost_their_ids_in_several_ranges_are_counted_together(group, fill, talon):
    group.run()
    before = len(talon.requests())
    fill([f"c{number:03}" for number in range(100) if number % 8] + [None, ""] * 6)
    reads = group.compare(group.ranges())
    with pytest.raises(GuardError, match="Rows without a profile ID: 12. Nothing was sent.\nThe 13 that"):
        group.plan(reads)
    assert len(talon.requests()) == before


# What was compared, and a ledger that changes

ANEW = "The ledger has changed since the ranges were compared"


def test_what_was_compared_is_planned_without_the_rows(group, fill, talon, caplog):
    group.run()
    fill([f"c{number:03}" for number in range(3, 101)])
    reads = group.compare(group.ranges())
    for each in files(group):
        if each.name in {read["file"] for read in reads}:
            each.unlink()
    report = group.end(*group.plan(reads))
    assert (report["read"], report["unchanged"], report["added"], report["removed"]) == (98, 97, 1, 3)
    assert len(talon.members("vip")) == 98
    assert ANEW not in caplog.text


def test_a_change_from_outside_after_the_comparison_is_planned_and_forgotten_by_no_run(group, talon, caplog):
    group.run()
    reads = group.compare(group.ranges())
    group.remove("c007")
    assert "c007" not in talon.members("vip")
    assert group.end(*group.plan(reads))["added"] == 1
    assert caplog.text.count(ANEW) == 1
    assert "c007" in talon.members("vip")
    assert group.run()["unchanged"] == 100


def test_what_an_earlier_run_left_is_sent_again(group, fill, talon, caplog):
    group.run()
    fill([f"c{number:03}" for number in range(5, 105)])
    shares, _ = group.plan(group.compare(group.ranges()))
    talon.fail_next("status", status=401)
    with pytest.raises(AuthenticationError):
        group.push(shares)
    assert ANEW not in caplog.text
    report = group.run()
    assert (report["added"], report["removed"]) == (5, 5)
    assert ANEW not in caplog.text
    assert talon.members("vip") == {f"c{number:03}" for number in range(5, 105)}


def test_an_acknowledgement_after_the_comparison_is_noticed(group, fill, talon, caplog):
    shares, _ = group.plan(None)
    reads = group.compare(group.ranges())
    # A process that was believed dead had sent all.
    group.push(shares)
    assert group.end(*group.plan(reads))["unchanged"] == 100
    assert ANEW in caplog.text


def test_an_audience_that_is_made_again_is_filled_again(group, talon, caplog):
    group.run()
    reads = group.compare(group.ranges())
    talon.delete_audience("vip")
    talon.create_audience("vip", "VIP")
    assert group.end(*group.plan(reads))["sent"] == 100
    assert caplog.text.count(ANEW) == 1
    assert len(talon.members("vip")) == 100


def test_changes_of_an_audience_that_a_plan_did_not_change_are_noted_for_the_next(
    sqlite, connect, talon, tmp_path, caplog
):
    rows = [(f"p{number:02}", name) for number in range(40) for name in ("gold", "vip")]
    sqlite("INSERT INTO customers VALUES (?, ?)", rows)
    columns = {"audience_column": "audience_id", "audience_name_column": "audience_id"}
    group = Group(tmp_path / "state", **columns)
    for number in range(50, 53):
        # The last of these runs writes no new file of members.
        sqlite(f"INSERT INTO customers VALUES ('p{number}', 'gold')")
        for file in Path(group.how["state_uri"]).rglob("registry/*"):
            file.unlink()
        group.run()
    group.remove("p07")
    assert ANEW not in caplog.text
    assert group.run()["added"] == 1
    assert "p07" in talon.members("vip")


@pytest.mark.parametrize("how", [{"rules": "changes"}, {"retry_rejected": "never"}])
def test_where_changes_may_be_left_out_the_plan_compares(group, talon, how):
    group.how |= how
    talon.reject_profiles(["c007"])
    reads = group.compare(group.ranges())
    assert [each["compared"] for each in reads] == [None] * RANGES
    assert group.end(*group.plan(reads))["sent"] == 99


# One guard


def test_the_guard_looks_at_all_ranges_together(group, fill):
    group.run()
    # Of each quarter a fifth may leave.
    fill([f"c{number:03}" for number in range(100) if number % 25 >= 5])
    report = group.run(max_removals=20)
    assert report["removed"] == 20
    fill([f"c{number:03}" for number in range(100) if number % 25 >= 10])
    with pytest.raises(GuardError, match="would lose 20 of 80"):
        group.run()
    with pytest.raises(GuardError, match="max_removals is 19"):
        group.run(max_removals=19, max_removal_fraction=1)


def test_an_empty_range_is_no_empty_source(group, fill, talon):
    group.run()
    spans = group.ranges()
    # The first range is empty by now.
    fill([f"c{number:03}" for number in range(25, 100)])
    group.end(*group.plan(group.compare(spans), max_removal_fraction=0.3))
    assert len(talon.members("vip")) == 75
    fill([])
    with pytest.raises(GuardError, match="on_empty='allow'"):
        group.run()
    assert group.run(on_empty="allow", max_removal_fraction=1)["removed"] == 75
    assert talon.members("vip") == set()


def test_after_the_guard_the_rows_need_not_be_read_again(group, fill, talon):
    group.run()
    fill([f"c{number:03}" for number in range(50)])
    reads = group.compare(group.ranges())
    with pytest.raises(GuardError):
        group.plan(reads)
    fill(["somebody"])
    group.end(*group.plan(reads, max_removal_fraction=0.5))
    assert len(talon.members("vip")) == 50


# Tasks that are killed, cleared and overtaken


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("at", [0, 2, RANGES - 1])
def test_a_reader_that_is_killed_is_tried_again_and_nothing_is_read_twice(group, talon, monkeypatch, at):
    spans = group.ranges()
    reads = group.compare(spans)

    def records(*_):
        yield from ()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CompareRangeOperator, "_records", records)
        with pytest.raises(Killed):
            group.compare([spans[at]])
    # One of the tries that Airflow believed dead had ended, too.
    reads[at] = group.compare([spans[at]])[0]
    report = group.end(*group.plan(reads))
    assert (report["read"], report["sent"], report["duplicate"]) == (100, 100, 0)
    assert len(talon.members("vip")) == 100
    assert files(group) == []


def test_a_plan_that_is_killed_is_made_again_of_the_same_rows(group, fill, talon, monkeypatch):
    reads = group.compare(group.ranges())
    with monkeypatch.context() as patch:
        patch.setattr("airflow_provider_talon_cdp.sync.audiences.Audiences.check", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            group.plan(reads)
    fill([])
    shares, _ = group.plan(reads)
    # Once more, as a scheduler that missed its end has it.
    newer, planned = group.plan(reads)
    with pytest.raises(LedgerError, match="was replaced"):
        group.push(shares)
    group.end(newer, planned)
    assert len(talon.members("vip")) == 100


def test_ranges_of_two_readings_are_not_planned(group, fill):
    first = group.compare(group.ranges())
    spans = group.ranges()
    second = group.compare(spans)
    for mixed in ([*first[:2], *second[2:]], second[:3], [*second, second[0]], [], [None, None]):
        with pytest.raises(InvalidInputError, match="ranges that do not go together"):
            group.plan(mixed)
    # The order in which they come says nothing.
    assert group.plan(second[::-1])[1]["report"]["unsent"] == 100


@pytest.mark.parametrize("damage", [None, b"", b"damaged", "cut"])
@pytest.mark.parametrize("which", ["rows", "changes", "facts"])
def test_files_that_are_not_as_they_were_written_are_an_error_and_nobody_is_removed(
    group, talon, damage, which
):
    group.run()
    reads = group.compare(group.ranges())
    if which == "rows":
        # So that they are needed.
        group.remove("c007")
    name = {"rows": reads[1]["file"], **dict(zip(["changes", "facts"], reads[1]["compared"], strict=True))}
    (file,) = [each for each in files(group) if each.name == name[which]]
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3] if damage == "cut" else damage)
    before = talon.members("vip")
    with pytest.raises(LedgerError, match=r"damaged or not there any more(.|\n)*\(ranges\)"):
        group.plan(reads, max_removal_fraction=1, on_empty="allow")
    assert talon.members("vip") == before


def test_a_reader_whose_ranges_are_gone_says_what_to_clear(group):
    spans = group.ranges()
    group.ranges()
    with pytest.raises(LedgerError, match="Clear the task that divides"):
        group.compare(spans)


def test_the_rows_are_deleted_by_the_commit_or_when_the_next_run_begins(group, fill):
    group.run()
    assert files(group) == []
    # A commit of nothing deletes them, too.
    group.run()
    assert files(group) == []
    fill(["one"])
    reads = group.compare(group.ranges())
    with pytest.raises(GuardError):
        group.plan(reads)
    kept = {each.name for each in files(group)}
    assert kept == {"bounds.json", *(name for each in reads for name in [each["file"], *each["compared"]])}
    spans = group.ranges()
    assert {each.parent.name for each in files(group)} == {spans[0]["reading"]}


def test_other_runs_are_kept_out_until_the_plan(group, monkeypatch):
    other = Group(group.how["state_uri"], on_busy="fail")
    monkeypatch.setattr(
        PlanAudienceOperator,
        "run_owner",
        lambda self, _: "d/plan/other/-1" if self.on_busy == "fail" else "d/plan/r/-1",
    )
    spans = group.ranges()
    with pytest.raises(LedgerBusyError):
        other.plan(None)
    reads = group.compare(spans)
    with pytest.raises(LedgerBusyError):
        other.plan(None)
    shares, planned = group.plan(reads)
    with pytest.raises(LedgerBusyError):
        other.plan(None)
    group.end(shares, planned)
    assert other.plan(None)[0] == []


def test_rows_that_were_read_before_another_run_planned_are_older_data(group, fill, talon):
    reads = group.compare(group.ranges())
    fill([f"c{number:03}" for number in range(90)])
    # The lock of this run had ended.
    group.run_in_one()
    with pytest.raises(OlderRunError):
        group.plan(reads)
    assert len(talon.members("vip")) == 90


# Arguments


def test_a_dry_run_keeps_nobody_out_and_leaves_nothing(group, talon):
    group.how["dry_run"] = True
    shares, planned = group.plan(group.compare(group.ranges()))
    assert shares == []
    report = commit(planned, None)
    assert (report["verdict"], report["unsent"], report["read"]) == ("would be sent", 100, 100)
    assert [each for each in Path(group.how["state_uri"]).rglob("*") if each.is_file()] == []
    assert talon.requests() == []


def test_all_is_sent_again_where_that_is_asked_for(group):
    group.run()
    group.how["send"] = "all"
    assert group.run()["sent"] == 100


def test_initial_members_can_leave(group, talon, tmp_path):
    talon.create_audience("vip", "VIP")
    file = tmp_path / "members.csv"
    file.write_text("profileintegrationid\n" + "\n".join(["gone", *(f"c{each:03}" for each in range(100))]))
    group.how["initial_members"] = str(file)
    report = group.run()
    assert (report["removed"], report["unchanged"]) == (1, 100)


def test_changes_run_rules_one_by_one(group, fill, talon):
    group.run()
    group.how["rules"] = "changes"
    fill([f"c{number:03}" for number in range(3, 101)])
    report = group.run()
    assert (report["added"], report["removed"], report["unclear"]) == (1, 3, 0)
    assert sum(map(talon.rule_runs, talon.profiles())) == 4


def test_rejected_rows_have_dead_letters(group, fill):
    fill(["a", "x" * 1001, None, "", "b"])
    shares, planned = group.plan(group.compare(group.ranges()))
    pushed = group.push(shares)
    with pytest.raises(RejectedRecordsError, match="3 of 5 records"):
        commit(planned, pushed)
    (letters,) = Path(group.how["state_uri"]).rglob("*.ndjson")
    assert letters.read_text().count("longer than 1000 characters") == 1


def test_no_profile_id_is_in_what_airflow_keeps_or_in_the_log(group, fill, caplog):
    fill([f"zoe-{number}" for number in range(100)])
    spans = group.ranges()
    assert len(spans) == RANGES
    reads = group.compare(spans)
    assert "zoe" not in repr([reads, group.plan(reads)]) + caplog.text


def test_a_null_audience_stops_the_reader(sqlite, connect, talon, tmp_path):
    sqlite("INSERT INTO customers VALUES ('a', 'vip'), ('b', NULL)")
    with pytest.raises(InvalidInputError, match="null, empty, or a null as text"):
        Group(tmp_path / "state", audience_column="audience_id").run()


@pytest.mark.parametrize(
    "sql",
    ["SELECT profile_id, 1 AS x, 2 AS X FROM customers", "SELECT profile_id, 1 AS x, 2 AS x FROM customers"],
)
def test_a_query_that_cannot_be_divided_says_so(group, sql):
    group.how["sql"] = sql
    with pytest.raises(InvalidInputError, match="Remove plan_workers"):
        group.ranges()


def test_a_database_without_an_entry_cannot_be_divided(group):
    source = SqlSource(ANY, sql_hook("warehouse").hook)
    with pytest.raises(InvalidInputError, match="not known how to sort by bytes"):
        range_bounds(source, group.how["sql"], "profile_id", None, RANGES)


# Tasks that are cleared


def test_ranges_that_are_divided_again_keep_an_instance_for_each_range_of_before(group, fill):
    """Airflow would remove surplus instances, and 2.11 and 3.1 then never start the task that plans."""
    fill(["a", "b"])
    operator = DivideQueryOperator(task_id="ranges", plan_id="plan", ranges=RANGES, **group.how)
    spans, _ = execute(operator, try_number=2)
    assert len(spans) == RANGES
    assert {} in spans
    assert group.end(*group.plan(group.compare(spans)))["sent"] == 2


def test_a_plan_does_not_take_ranges_of_an_earlier_division(group, fill):
    """Airflow 3.3 keeps the results of instances of ``compare`` that it has removed."""
    old = group.compare(group.ranges())
    fill(["a", "b"])
    new = group.compare(group.ranges())
    assert len(new) < len(old)
    assert group.end(*group.plan([*old[len(new) :], *new]))["sent"] == 2
