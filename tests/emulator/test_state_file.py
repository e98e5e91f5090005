"""The state file: comes back whole, is replaced as a whole, and is never silently taken for empty."""

import json
import threading
import time

import pytest

from airflow_provider_talon_cdp.emulator.exact_json import dumps, loads
from airflow_provider_talon_cdp.emulator.state_file import StateFile, StateFileError
from airflow_provider_talon_cdp.emulator.store import MembershipChange, Store


def filled():
    store = Store()
    store.create_audience("vip", "VIP \N{GRINNING FACE}", "Tests")
    store.create_audience(None, "By hand")
    store.create_audience("gone", "Gone")
    store.delete_audience("gone")
    store.change([MembershipChange('a/"b"', (1, 2))], loads(b'{"spend": 19.990, "list": [1, null]}'))
    store.change([MembershipChange("bert")], run_rules=True)
    return store


def test_everything_comes_back_digit_for_digit(tmp_path):
    store, again = filled(), Store()
    StateFile(tmp_path / "state.json", {"": store}).save()
    StateFile(tmp_path / "state.json", {"": again}).load()
    assert again.snapshot() == store.snapshot()
    assert dumps(again.attributes()['a/"b"']) == '{"spend": 19.990, "list": [1, null]}'
    assert again.create_audience("next", "Next").id == 4


def test_an_empty_state_comes_back_too(tmp_path):
    store = Store()
    StateFile(tmp_path / "state.json", {"": store}).save()
    StateFile(tmp_path / "state.json", {"": store}).load()
    assert store.snapshot() == ([], {}, 1)


def test_no_file_is_an_empty_start(tmp_path):
    store = Store()
    StateFile(tmp_path / "state.json", {"": store}).load()
    assert store.audiences() == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 1, "next_audience_id": 1, "audiences": [], "profiles": {}}',
        '{"format": 2}',
        '{"format": 2, "environments": []}',
        '{"format": 2, "environments": {"": {"next_id": 1, "audiences": []}}}',
        '{"format": 2, "environments": {"": {"next_id": 2, "audiences": [{"id": 1}], "profiles": {}}}}',
        '{"format": 2, "environments": {"": {"next_id": 1, "audiences": [], "profiles": {',
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateFileError, match=r"state\.json is damaged"):
        StateFile(path, {"": Store()}).load()
    assert path.read_text() == text


def test_every_environment_comes_back(tmp_path):
    stores = {"sandbox": filled(), "live": Store()}
    StateFile(tmp_path / "state.json", stores).save()
    again = {"live": Store(), "sandbox": Store()}
    StateFile(tmp_path / "state.json", again).load()
    assert {name: store.snapshot() for name, store in again.items()} == {
        name: store.snapshot() for name, store in stores.items()
    }


def test_a_file_with_an_environment_that_is_unknown_here_is_refused(tmp_path):
    StateFile(tmp_path / "state.json", {"sandbox": filled(), "": Store()}).save()
    with pytest.raises(StateFileError, match=r"environments \['sandbox'\]"):
        StateFile(tmp_path / "state.json", {"": Store()}).load()


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(StateFileError, match="cannot read"):
        StateFile(tmp_path, {"": Store()}).load()


def test_a_change_is_written_soon_and_leaves_no_other_file(tmp_path):
    path, store = tmp_path / "state.json", filled()
    file = StateFile(path, {"": store})
    file.start()
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    store.create_audience("late", "Late")
    file.stop()
    assert set(json.loads(path.read_text())["environments"][""]["profiles"]) == {'a/"b"', "bert"}
    assert "late" in path.read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]
    assert "talon-emulator-state" not in {thread.name for thread in threading.enumerate()}


def test_an_unchanged_state_is_not_written_again(tmp_path):
    path = tmp_path / "state.json"
    file = StateFile(path, {"": filled()})
    file.save()
    path.unlink()
    file.save()
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_reported_soon_and_at_the_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("airflow_provider_talon_cdp.emulator.state_file._INTERVAL", 0.01)
    path = tmp_path / "state.json"
    path.mkdir()
    file = StateFile(path, {"": filled()})
    file.start()
    deadline = time.monotonic() + 10
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(StateFileError, match="cannot write"):
        file.stop()
    assert "cannot write the state file" in caplog.text
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_a_directory_that_does_not_exist_is_an_error_at_the_start(tmp_path):
    with pytest.raises(StateFileError, match="no directory"):
        StateFile(tmp_path / "away" / "state.json", {"": Store()}).load()


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path, store = tmp_path / "state.json", filled()
    StateFile(path, {"": store}).save()
    before = path.read_text()
    store.create_audience("late", "Late")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateFileError, match="No space"):
        StateFile(path, {"": store}).save()
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]
