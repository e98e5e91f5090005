"""The file of a run's numbers, which a page about the task reads, whether the run was green or red."""

from __future__ import annotations

import itertools
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    LedgerBusyError,
    OlderRunError,
    RejectedRecordsError,
)
from airflow_provider_talon_cdp.operators._base import REPORT_KEY
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.sync.report import Report
from tests.mirror.conftest import spelt_out

TEN = [f"customer-{number}" for number in range(10)]
PAIRS = [(member, audience) for member in TEN for audience in ("vip", "gold")]


class Instance(SimpleNamespace):
    """A task instance, with the XComs that it pushed."""

    def xcom_push(self, key, value):
        self.pushed[key] = value


@pytest.fixture
def instance():
    return Instance(dag_id="dag", task_id="sync", run_id="run-1", map_index=-1, try_number=2, pushed={})


@pytest.fixture
def told(instance):
    """What is in the file of the last run's report, which must hold no profile ID."""

    def read():
        text = Path(instance.pushed[REPORT_KEY]).read_text()
        assert "customer" not in text
        return json.loads(text)

    return read


@pytest.fixture
def mirror_pairs(mirror_many, instance, sqlite):
    """Mirror these pairs of a member and an audience."""

    def run(pairs, **arguments):
        sqlite.fill_pairs(pairs)
        return mirror_many(context={"ti": instance}, min_removals=0, **arguments)

    return run


def test_a_green_mirror_of_many_audiences_tells_the_numbers_of_each(mirror_pairs, told):
    mirror_pairs(PAIRS)
    summary = mirror_pairs([*PAIRS[2:], ("customer-x", "gold")])
    content = told()
    assert content["run"] == {
        "dag_id": "dag",
        "run_id": "run-1",
        "task_id": "sync",
        "map_index": -1,
        "try_number": 2,
    }
    assert (content["state"], content["guard"], content["ledger_version"]) == ("done", None, 2)
    assert content["audiences"] == {
        "gold": {"added": 1, "removed": 1, "members": 10},
        "vip": {"added": 0, "removed": 1, "members": 9},
    }
    counts = content["counts"]
    assert counts == {name: summary[name] for name in counts}
    assert (counts["read"], counts["unchanged"], counts["sent"], counts["unsent"]) == (19, 18, 3, 0)
    assert summary["report_file"].endswith(".json")
    assert content["finished"].endswith("+00:00")


def test_of_more_audiences_than_the_log_names_all_are_in_the_file_that_it_names(mirror_pairs, told, said):
    mirror_pairs([(member, f"a-{number:02}") for number in range(25) for member in TEN[:2]])
    assert len(told()["audiences"]) == 25
    log = said()
    assert "audience 'a-19': 2 added, 0 removed, 2 members" in log
    assert "\naudience 'a-20'" not in log
    assert "... and 5 more audiences\nall audiences: /" in log


def test_a_refused_plan_says_what_it_would_do_and_what_would_allow_it(mirror_pairs, told):
    mirror_pairs(PAIRS)
    with pytest.raises(GuardError) as error:
        mirror_pairs(PAIRS[8:])
    content = told()
    assert content["state"] == "refused"
    assert content["guard"] == {"verdict": str(error.value), "allow": "max_removal_fraction=0.41"}
    assert content["audiences"]["vip"] == {"added": 0, "removed": 4, "members": 6}
    counts = content["counts"]
    assert (counts["read"], counts["removals"], counts["unsent"], counts["sent"]) == (12, 8, 8, 0)
    assert counts["requests"] == 0


@pytest.mark.parametrize(
    "arguments, allow",
    [
        ({"max_removal_fraction": 1, "max_removals": 1}, "max_removals=20"),
        ({"max_removal_fraction": 1, "max_additions": 0}, "max_additions=1"),
        ({}, "max_removal_fraction=1.0"),
    ],
)
def test_each_limit_names_the_argument_that_would_allow_the_plan(mirror_pairs, told, arguments, allow):
    mirror_pairs(PAIRS)
    with pytest.raises(GuardError):
        mirror_pairs([("customer-x", "vip")], **arguments)
    assert told()["guard"]["allow"] == allow


def test_a_source_without_rows_is_allowed_or_skipped_by_on_empty(mirror_pairs, told):
    mirror_pairs(PAIRS)
    with pytest.raises(GuardError):
        mirror_pairs([])
    assert told()["guard"]["allow"] == "on_empty='allow', max_removal_fraction=1.0"
    mirror_pairs([], on_empty="skip")
    content = told()
    assert (content["state"], content["guard"]["allow"]) == ("refused", None)
    assert content["guard"]["verdict"].startswith("skipped: The source has no rows")


def test_older_data_is_refused_with_the_argument_that_would_allow_it(mirror, sqlite, vip, instance, told):
    sqlite.fill(TEN)
    newer, older = (
        {"ti": instance, "data_interval_end": datetime(year, 1, 1, tzinfo=UTC)} for year in (2026, 2025)
    )
    mirror(context=newer)
    with pytest.raises(OlderRunError):
        mirror(context=older)
    content = told()
    assert (content["state"], content["guard"]["allow"]) == ("refused", "on_older_run='allow'")


def test_a_run_that_stopped_tells_how_far_it_came(mirror_pairs, told, talon):
    mirror_pairs(PAIRS[:2])
    talon.fail_next("status", status=401, only="update_profiles_external", times=None)
    with pytest.raises(AuthenticationError):
        mirror_pairs(PAIRS)
    content = told()
    assert (content["state"], content["guard"]) == ("stopped", None)
    counts = content["counts"]
    assert (counts["read"], counts["unchanged"], counts["unsent"], counts["sent"]) == (20, 2, 18, 0)
    assert content["audiences"]["vip"] == {"added": 0, "removed": 0, "members": 1}


def test_a_run_that_could_not_ask_about_its_audiences_balances_too(mirror_pairs, told, talon):
    talon.fail_next("status", status=401, times=None)
    with pytest.raises(AuthenticationError):
        mirror_pairs(PAIRS)
    counts = told()["counts"]
    assert (counts["read"], counts["unsent"]) == (20, 20)


def test_a_busy_ledger_is_told_too(mirror, sqlite, vip, ledger_of, instance, told):
    sqlite.fill(TEN)
    with ledger_of().held("another"), pytest.raises(LedgerBusyError):
        mirror(context={"ti": instance}, on_busy="fail")
    content = told()
    assert (content["state"], content["counts"]["read"], content["audiences"]) == ("stopped", 0, {})


def test_rejected_records_are_told_by_reason_with_their_folder(mirror_pairs, told, talon):
    talon.reject_profiles(["customer-3"])
    with pytest.raises(RejectedRecordsError):
        mirror_pairs([*PAIRS, (None, "vip")])
    content = told()
    assert content["state"] == "done"
    assert content["counts"]["rejected"] == {"profile ID null": 1, "refused by Talon.One (400)": 2}
    assert content["audiences"]["gold"] == {"added": 9, "removed": 0, "members": 9}
    assert Path(content["dead_letters"]).is_dir()


def test_explicit_changes_have_a_report_without_members(talon, state, instance, told):
    talon.create_audience("vip", "VIP")
    operator = SyncAudienceMembersOperator(task_id="sync", audience_id="vip", add=TEN, remove=["customer-x"])
    summary = operator.execute({"ti": instance})
    content = told()
    assert (content["state"], content["ledger_version"]) == ("done", None)
    assert content["audiences"] == {"vip": {"added": 10, "removed": 1, "members": None}}
    assert content["counts"]["sent"] == summary["sent"] == 11


def test_attributes_count_as_one_audience(sqlite, send, instance, told):
    sqlite.fill_people("id, tier", [(each, "gold") for each in TEN])
    send(context={"ti": instance})
    assert told()["audiences"] == {"profiles": {"added": 10, "removed": 0, "members": 10}}


def test_the_event_of_each_audience_has_its_own_numbers(mirror_many, sqlite, instance, talon):
    class Events:
        """What Airflow gives to a task: events by outlet."""

        def __init__(self):
            self.told = {}

        def __getitem__(self, outlet):
            extra = self.told.setdefault(_name(outlet.uri), {}) if hasattr(outlet, "uri") else {}
            return SimpleNamespace(add=self.add, extra=extra)

        def add(self, asset, extra):
            self.told[_name(asset.uri)] = extra

    def _name(uri):
        return uri.rpartition("/")[2]

    events = Events()
    sqlite.fill_pairs([*PAIRS, ("customer-x", "vip")])
    mirror_many(context={"ti": instance, "outlet_events": events})
    assert {name: (each["added"], each["members"]) for name, each in events.told.items()} == {
        "gold": (10, 10),
        "vip": (11, 11),
    }
    assert events.told["vip"]["run"] == "run-1"
    # An audience that is in the query no more has lost its members.
    events.told.clear()
    sqlite.fill_pairs([pair for pair in PAIRS if pair[1] == "gold"])
    mirror_many(context={"ti": instance, "outlet_events": events}, max_removal_fraction=1)
    assert {name: (each["removed"], each["members"]) for name, each in events.told.items()} == {
        "gold": (0, 10),
        "vip": (11, 0),
    }


def test_a_dry_run_writes_no_file(mirror_pairs, instance, state):
    assert mirror_pairs(PAIRS, dry_run=True)["report_file"] is None
    assert REPORT_KEY not in instance.pushed
    assert not state.exists()


def test_the_reports_of_twenty_dag_runs_are_kept(mirror_pairs, instance, state):
    mirror_pairs(PAIRS)
    (folder,) = state.rglob("reports")
    for number in range(25):
        (folder / f"20200101T{number:06}Z-{number:08}aaaaaaaa.json").write_text("{}")
        (folder / f"20200101T{number:06}Z-{number:08}bbbbbbbb.json").write_text("{}")
    mirror_pairs(PAIRS)
    # Of one run more than of 19 others, as both of this test are of one DAG run.
    names = sorted(each.name for each in folder.iterdir())
    assert len({name[17:25] for name in names}) == 20
    assert len(names) == 2 * 19 + 2
    assert names[0] == "20200101T000006Z-00000006aaaaaaaa.json"


def test_a_report_that_cannot_be_written_makes_no_run_red(mirror_pairs, state, said):
    mirror_pairs(PAIRS)
    (folder,) = state.rglob("reports")
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    folder.write_text("a file where a folder should be")
    assert mirror_pairs(PAIRS)["unchanged"] == 20
    assert "The report cannot be written." in said()


def test_a_report_without_a_ledger_does_not_make_explicit_adds_removable(
    mirror, sqlite, vip, talon, state, ledger_of
):
    """A mirror removes only what an earlier one added, whatever a refused run has left."""
    sqlite.fill([])
    with pytest.raises(GuardError):
        mirror()
    operator = SyncAudienceMembersOperator(task_id="t", audience_id="vip", add=["by hand"])
    operator.state_uri = str(state)
    operator.execute({})
    sqlite.fill(TEN)
    assert mirror()["removals"] == 0
    assert "by hand" in talon.members("vip")
    assert "by hand" not in dict(spelt_out(ledger_of().known()))


# The curve


def test_a_curve_has_at_most_two_hundred_points_which_stand_evenly(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    report = Report(began=0.0)
    for second in range(5000):
        clock[0] = float(second)
        report.added["vip"] = second * 100
        report.note_throughput(second)
    points = report.throughput
    assert 100 <= len(points) <= 200
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    assert max(gaps) <= 64
    assert points[0] == (0.0, 0, 0)
    assert points[-1][0] > 4900
    assert all(point == (point[0], point[0] * 100, point[0]) for point in points)


def test_a_run_has_a_point_at_its_beginning_and_its_end(mirror_pairs, told):
    mirror_pairs(PAIRS)
    points = told()["throughput"]
    assert points[0][1:] == [0, 0]
    assert points[-1][1:] == [20, 0]
