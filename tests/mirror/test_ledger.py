"""What a mirror remembers, and what it does when its memory is hurt."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from uuid import uuid4

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    InvalidInputError,
    LedgerError,
    RejectedRecordsError,
    TalonCdpError,
)
from airflow_provider_talon_cdp.ledger import storage

TEN = [f"customer-{each}" for each in range(10)]


@pytest.fixture
def full(sqlite, vip, mirror):
    """A warehouse of ten customers that were mirrored."""
    sqlite.fill(TEN)
    mirror()
    return sqlite


def files(state, name):
    found = sorted(state.rglob(name))
    assert found
    return found


def members_in(ledger):
    return [profile_id for chunk in ledger.known() for profile_id in chunk.ids]


def run_of(run_id, task_id="sync"):
    return {"ti": SimpleNamespace(dag_id="dag", task_id=task_id, run_id=run_id, map_index=-1)}


def test_only_changes_travel(full, mirror, agrees, talon):
    wanted = [*TEN[1:], "new"]
    full.fill(wanted)
    summary = mirror()
    assert (summary["read"], summary["unchanged"], summary["removals"], summary["sent"]) == (10, 9, 1, 2)
    assert talon.requests()[-1]["changes"] == 2
    agrees(wanted)


def test_members_that_the_mirror_did_not_add_stay(full, mirror, vip, ledger_of):
    vip.add_members("vip", ["by hand"])
    full.fill(TEN[1:])
    mirror()
    assert vip.members("vip") == {*TEN[1:], "by hand"}
    assert members_in(ledger_of()) == TEN[1:]


def test_a_lost_ledger_means_adds_alone(full, mirror, vip, state, ledger_of):
    full.fill(TEN[5:])
    state.rename(state.with_name("lost"))
    summary = mirror()
    assert (summary["sent"], summary["removals"]) == (5, 0)
    assert vip.members("vip") == set(TEN)
    assert members_in(ledger_of()) == TEN[5:]


def test_the_summary_is_small_and_holds_no_id(sqlite, vip, mirror, said):
    sqlite.fill([f"customer-{each}@example.com" for each in range(3000)])
    summary = mirror()
    assert summary["ledger_version"] == 1
    assert (summary["sent"], summary["requests"]) == (3000, 3)
    text = json.dumps(summary)
    assert len(text) < 1000
    assert "@example" not in text
    assert "Done:\n3,000 read" in said()
    assert "@example" not in said()


def test_the_key_is_in_no_log_and_no_file(full, mirror, vip, state, said):
    full.fill(TEN[1:])
    mirror()
    key = vip.connection()["password"]
    assert key not in said()
    assert not any(key.encode() in each.read_bytes() for each in state.rglob("*") if each.is_file())


def test_a_refused_member_is_left_out_and_tried_again_in_the_next_run(sqlite, vip, mirror, ledger_of, state):
    sqlite.fill(TEN)
    vip.reject_profiles(["customer-3"])
    with pytest.raises(RejectedRecordsError, match="1 of 10 records were rejected") as refusal:
        mirror()
    good = [each for each in TEN if each != "customer-3"]
    assert vip.members("vip") == set(good)
    assert members_in(ledger_of()) == good
    assert "customer-3" not in str(refusal.value)
    letter = json.loads(files(state, "*.ndjson")[0].read_text())
    assert (letter["profile_id"], letter["audience_id"], letter["status"]) == ("customer-3", "vip", 400)
    assert letter["request_uuid"]
    assert letter["time"]
    assert str(files(state, "*.ndjson")[0].parent) in str(refusal.value)
    vip.clear_faults()
    assert mirror()["sent"] == 1
    assert vip.members("vip") == set(TEN)


def test_files_are_for_the_eyes_of_the_owner(full, mirror, vip, state):
    full.fill([*TEN, "y"])
    vip.reject_profiles(["y"])
    mirror(max_rejected=None)
    assert {each.stat().st_mode & 0o777 for each in state.rglob("*") if each.is_file()} == {0o600}


def test_an_expired_key_stops_the_run_and_the_next_one_goes_on(full, mirror, vip, agrees):
    wanted = [*TEN, *(f"more-{each:04}" for each in range(3000))]
    full.fill(wanted)
    vip.fail_next("status", status=401, after=1, times=None)
    with pytest.raises(AuthenticationError):
        mirror(in_flight=1)
    vip.clear_faults()
    mirror()
    agrees(wanted)


def test_changes_of_the_warehouse_after_a_failure_count(full, mirror, vip, agrees):
    first = [*TEN, *(f"more-{each:04}" for each in range(3000))]
    full.fill(first)
    vip.fail_next("status", status=401, after=1, times=None)
    with pytest.raises(AuthenticationError):
        mirror(in_flight=1)
    vip.clear_faults()
    second = [*TEN, *(f"more-{each:04}" for each in range(0, 3000, 7)), "at last"]
    full.fill(second)
    mirror(max_removal_fraction=1)
    agrees(second)


def test_answers_that_are_lost_are_sent_again(full, mirror, vip, agrees):
    """The emulator applies a request and cuts the connection; the try gives up at the next fault."""
    full.fill([*TEN, *(f"more-{each:04}" for each in range(3000))])
    vip.fail_next("reset_after", after=1)
    vip.fail_next("status", status=401, times=None)
    with pytest.raises(AuthenticationError):
        mirror(in_flight=2)
    vip.clear_faults()
    full.fill(TEN)
    mirror(max_removal_fraction=1)
    agrees(TEN)


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "emptied": lambda data: b"",
    "other text": lambda data: b"hello",
}


@pytest.mark.parametrize("name", ["acks-*.json", "plan-00000.tsv.zst", "members.tsv.zst"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_a_clear_error_and_never_an_empty_audience(
    full, mirror, vip, state, calls, name, how
):
    full.fill([*TEN, "eleventh"])
    mirror()
    path = files(state, name)[-1]
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    full.fill(TEN)
    before = calls()
    with pytest.raises(LedgerError, match=r"(?s)is damaged\..*ledger repair .*Or restore a backup"):
        mirror(max_removal_fraction=1, on_empty="allow")
    assert calls() == before
    assert len(vip.members("vip")) == 11


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_manifest_is_replaced_by_the_one_before_and_nothing_is_forgotten(
    full, mirror, state, agrees, how, said
):
    """What was sent since the manifest before is in doubt, so a member that was added then is removed
    again."""
    full.fill([*TEN, "eleventh"])
    mirror()
    path = files(state, "manifest-*.json")[-1]
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    full.fill(TEN)
    mirror()
    assert "last manifest is damaged, so the one before it is used" in said()
    agrees(TEN)


@pytest.mark.parametrize("name", ["plan-00000.tsv.zst", "members.tsv.zst", "acks-*.json"])
def test_a_file_that_is_gone_is_no_empty_audience(full, mirror, vip, state, calls, name):
    full.fill([*TEN, "eleventh"])
    mirror()
    files(state, name)[-1].unlink()
    full.fill(TEN)
    before = calls()
    with pytest.raises(LedgerError, match=r"(?s)is missing\..*ledger repair "):
        mirror()
    assert calls() == before
    assert len(vip.members("vip")) == 11


def test_a_newer_format_asks_for_a_newer_provider(full, mirror, state, calls):
    path = files(state, "manifest-*.json")[-1]
    storage.write_json(path, storage.read_json(path) | {"format": 3})
    before = calls()
    with pytest.raises(LedgerError, match=r"(?s)format 3.*Upgrade"):
        mirror()
    assert calls() == before


@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only", "no such protocol", "no rights"])
def test_a_state_uri_that_does_not_work_is_one_clear_error(sqlite, vip, mirror, tmp_path, calls, kind):
    sqlite.fill(TEN)
    (tmp_path / "file").write_text("x")
    uri = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "below",
        "read-only": "/proc/talon",
        "no such protocol": "carrier-pigeon://coop/talon",
        "no rights": "/sys/kernel/talon",
    }[kind]
    with pytest.raises(TalonCdpError, match=r"[Ss]tate.URI"):
        mirror(state_uri=str(uri))
    assert calls() == 0


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", ["manifest-*.json", "acks-*.json", "plan-00000.tsv.zst", "members.tsv.zst"])
def test_a_state_uri_that_cannot_be_read_is_one_clear_error(full, mirror, state, calls, name, dry_run):
    full.fill([*TEN, "eleventh"])
    mirror()
    path = files(state, name)[-1]
    path.unlink()
    # What nobody can read, not even root.
    path.mkdir()
    before = calls()
    with pytest.raises(LedgerError, match=r"(?s)Cannot read .*Check the state URI and the permissions on it"):
        mirror(dry_run=dry_run)
    assert calls() == before


def test_a_dry_run_with_a_state_uri_that_does_not_work(sqlite, vip, mirror, calls):
    sqlite.fill(TEN)
    with pytest.raises(TalonCdpError, match=r"[Ss]tate.URI"):
        mirror(state_uri="carrier-pigeon://coop/talon", dry_run=True)


def test_the_state_uri_may_be_a_uri_of_the_local_disk(sqlite, vip, mirror, tmp_path, agrees, state):
    sqlite.fill(TEN)
    mirror(state_uri=f"file://{state}")
    agrees(TEN)


def test_the_state_uri_may_be_in_an_object_store(sqlite, vip, mirror, s3, state):
    uri = f"s3://storage@ledgers/{uuid4().hex}"
    for wanted, sent in ((TEN, 10), ([*TEN[1:], "new"], 2), ([*TEN[1:], "new"], 0)):
        sqlite.fill(wanted)
        assert mirror(state_uri=uri)["sent"] == sent
        assert vip.members("vip") == set(wanted)
    assert not state.exists()


def test_the_state_uri_can_be_a_setting_of_airflow(sqlite, vip, mirror, state, agrees, monkeypatch):
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(state))
    sqlite.fill(TEN)
    mirror(state_uri=None)
    agrees(TEN)


def test_without_any_setting_the_state_is_in_the_home_of_airflow(sqlite, vip, mirror, monkeypatch, tmp_path):
    home = tmp_path / "air flow #1 100%"
    monkeypatch.setenv("AIRFLOW_HOME", str(home))
    monkeypatch.delenv("AIRFLOW__TALON_CDP__STATE_URI")
    sqlite.fill(TEN)
    mirror(state_uri=None)
    assert files(home / "talon_cdp", "manifest-*.json")


def test_two_connections_never_share_a_ledger(full, mirror, vip, talon, monkeypatch):
    connection = talon.connection()
    connection["extra"]["deployment_host"] = "other.europe-west1.talon.one"
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(connection))
    with pytest.raises(TalonCdpError):
        mirror(talon_cdp_conn_id="other")
    assert mirror(talon_cdp_conn_id="other", dry_run=True)["unsent"] == 10
    assert mirror(dry_run=True)["unsent"] == 0


def test_two_runs_at_once_the_later_one_fails(full, mirror, agrees, ledger_of, calls):
    before = calls()
    with (
        ledger_of().held("dag/sync/another run/-1"),
        pytest.raises(LedgerError, match="in use by dag/sync/another"),
    ):
        mirror(on_busy="fail")
    assert calls() == before
    mirror()


def test_a_retry_does_not_wait_for_the_lock_of_the_try_that_was_killed(full, mirror, ledger_of):
    ledger_of().lock.take("dag/sync/run-1/-1")
    mirror(context=run_of("run-1"))


def test_a_run_whose_lock_was_taken_over_stops(full, mirror, agrees, ledger_of, vip):
    """As when the scheduler believes a task dead and starts its next try beside it."""
    full.fill([*TEN, *(f"more-{each:05}" for each in range(200_000))])
    vip.fail_next("slow", seconds=0.02, times=None)

    class Thief(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Plan:"):
                ledger_of().lock.take("dag/sync/run-1/-1")

    log = logging.getLogger("airflow_provider_talon_cdp.sync.mirror")
    thief = Thief()
    log.addHandler(thief)
    log.setLevel(logging.INFO)
    try:
        with pytest.raises(LedgerError, match="has lost the ledger's lock"):
            mirror()
    finally:
        log.removeHandler(thief)
    assert vip.members("vip") == set(TEN)


@pytest.mark.parametrize("keep", [1, 2])
def test_old_versions_are_deleted(full, mirror, state, keep):
    for each in range(5):
        full.fill([*TEN, f"new-{each}"])
        mirror(keep_versions=keep)
    named = {each.parent.name.split("-")[0] for each in files(state, "plan-*.tsv.zst")}
    assert named == {f"{version:08}" for version in range(7 - keep, 7)}


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, None])
def test_a_number_of_versions_that_cannot_be_is_named_as_the_argument_is(full, mirror, calls, keep):
    before = calls()
    with pytest.raises(InvalidInputError, match="keep_versions must be an integer >= 1"):
        mirror(keep_versions=keep)
    assert calls() == before


def test_the_owner_is_the_task_of_the_run(full, mirror, ledger_of):
    ledger_of().lock.take("dag/sync/run-2/-1")
    with pytest.raises(LedgerError, match="in use by dag/sync/run-2/-1"):
        mirror(context=run_of("run-1"), on_busy="fail")
    mirror(context=run_of("run-2"))
