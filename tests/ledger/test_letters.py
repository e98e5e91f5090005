"""Dead letters are personal data: they go with the versions that are not kept."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger import letters as module
from airflow_provider_talon_cdp.ledger.letters import DeadLetters, letters_name, read_letters
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.storage import names_in, remove, write_bytes
from tests.ledger.conftest import FACTS, identified, plan_of


@pytest.fixture
def run(open_ledger, clock):
    """Run once, a minute after the run before; the name of the folder of its dead letters."""

    def once(*texts, letter=True, after=60, **options):
        clock.now += after
        ledger = open_ledger(**options)
        with ledger.held("me"):
            draft = ledger.draft(plan_of(*texts))
            if letter:
                ledger.letters.add({"profile_id": f"p{clock.now:.0f}"})
            if texts:
                ledger.make_current(draft, facts=FACTS)
                share = ledger.share()
                for batch in range(share.left):
                    share.note_sending(batch)
                    share.landed(batch)
                share.end()
            else:
                ledger.discard(draft)
            ledger.flush()
        return ledger.letters.place and ledger.letters.place.rpartition("/")[2]

    return once


def folders(loaded):
    return names_in(loaded().folder / "dead-letters")


def test_those_of_versions_that_are_not_kept_are_deleted(run, loaded):
    names = [run(f"+{number}", keep=2) for number in range(4)]
    assert folders(loaded) == names[2:]
    for number in range(4, 6):
        run(f"+{number}", letter=False, keep=2)
    assert folders(loaded) == []


def test_runs_that_sent_nothing_leave_no_more_than_the_last_ones(run, loaded):
    first = run("+a")
    names = [run() for _ in range(6)]
    assert folders(loaded) == [first, *names[-2:]]


def test_of_runs_in_one_second_the_oldest_go(run, loaded):
    first = run("+a")
    names = [run(after=0.01) for _ in range(12)]
    assert folders(loaded) == [first, *names[-2:]]


@pytest.mark.parametrize("texts", [[], ["+x"]])
def test_a_run_keeps_its_own_though_the_clocks_of_later_ones_are_ahead(run, loaded, texts):
    run("+a")
    for _ in range(6):
        run()
    own = run(*texts, after=-3600)
    assert own in folders(loaded)
    assert len(folders(loaded)) == 3


def test_a_run_that_waited_for_the_lock_has_the_newest_ones(run, open_ledger, clock, loaded):
    waited = open_ledger()
    run("+a")
    names = [run() for _ in range(2)]
    clock.now += 60
    with waited.held("me"):
        waited.letters.add({"profile_id": "late"})
        waited.flush()
    assert folders(loaded)[-1] == waited.letters.place.rpartition("/")[2] > names[-1]


def test_explicit_changes_keep_their_own_though_later_runs_have_ended_before(state, clock):
    def opened():
        clock.now += 60
        return OutsideChanges(state, identified(name="calls:d.t"), f"d/t/{clock.now}", keep=2, clock=clock)

    journals = [opened() for _ in range(4)]
    for journal in reversed(journals):
        journal.letters.add({"profile_id": "a"})
        journal.flush()
        assert list(read_letters(journal.letters._folder))
    assert len(names_in(journals[0].folder / "dead-letters")) == 2


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000000000a1b2c3", "dead-letters"])
def test_a_file_that_is_no_run_of_letters_is_left_and_counts_as_none(run, loaded, capsys, name):
    names = [run("+a"), run("+b")]
    write_bytes(loaded().folder / "dead-letters" / name, b"")
    names.append(run("+c"))
    assert folders(loaded) == sorted([*names, name])
    assert len(list(read_letters(loaded().folder))) == 3


def test_those_of_kept_versions_stay(run, loaded):
    names = [run("+a"), run("+b", letter=False), run("+c")]
    assert folders(loaded) == [names[0], names[2]]


def test_the_command_prints_them_by_path_and_by_name(run, loaded, capsys, state):
    run("+a")
    run()
    place = ["--state-uri", str(state), "--deployment-host", "acme.talon.one", "--audience-id", "vip"]
    for which in ([str(loaded().folder)], place):
        assert main(["ledger", "letters", *which]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == ['{"profile_id": "p1790000060"}', '{"profile_id": "p1790000120"}']


def test_the_command_prints_those_of_one_run_by_the_path_that_the_log_has(run, loaded, capsys):
    run("+a")
    run()
    for name in folders(loaded):
        assert main(["ledger", "letters", str(loaded().folder / "dead-letters" / name)]) == 0
    assert capsys.readouterr().out.count("profile_id") == 2


def test_the_command_prints_those_of_explicit_changes_which_have_no_ledger(capsys, tmp_path):
    letters = DeadLetters(tmp_path / "calls", letters_name(0, "run"), keep=3)
    letters.add({"profile_id": "anna"})
    letters.flush()
    for place in (tmp_path / "calls", tmp_path / "calls" / "dead-letters" / letters_name(0, "run")):
        assert main(["ledger", "letters", str(place)]) == 0
        assert capsys.readouterr().out == '{"profile_id": "anna"}\n'


def test_letters_that_could_not_be_written_are_written_later(tmp_path, monkeypatch):
    letters = DeadLetters(tmp_path, letters_name(0, "run"), keep=3)
    letters.add({"profile_id": "anna"})

    def full(*_):
        raise LedgerError("full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", full)
        with pytest.raises(LedgerError):
            letters.flush()
    letters.add({"profile_id": "bo"})
    letters.flush()
    assert [json.loads(line)["profile_id"] for line in read_letters(tmp_path)] == ["anna", "bo"]


@pytest.mark.parametrize("name", [".00000.ndjson.5f2b", ".00000.ndjson", "00000.ndjson~", "notes.txt"])
def test_what_a_killed_worker_or_a_person_left_beside_letters_is_none(tmp_path, name):
    """A file is written under such a name, and may end in the middle of a line."""
    letters = DeadLetters(tmp_path, letters_name(0, "run"), keep=3)
    letters.add({"profile_id": "anna"})
    letters.flush()
    write_bytes(letters._folder / name, b'{"profile_id": "bo')
    assert list(read_letters(tmp_path)) == ['{"profile_id": "anna"}']


def test_letters_that_a_newer_run_deletes_meanwhile_are_an_error(state):
    """What was printed is not all that there was, nor all that there is."""
    letters = DeadLetters(state, letters_name(0, "run"), keep=3)
    for profile in ("anna", "bo"):
        letters.add({"profile_id": profile})
        letters.flush()
    lines = read_letters(state)
    assert "anna" in next(lines)
    remove(letters._folder / "00001.ndjson")
    with pytest.raises(LedgerError, match="(?s)deleted while they were read.*Run the command again"):
        next(lines)


def test_a_reader_of_the_commands_output_may_end_early(tmp_path):
    letters = DeadLetters(tmp_path, letters_name(0, "run"), keep=3)
    for number in range(20_000):
        letters.add({"profile_id": f"{number:05}"})
    letters.flush()
    command = [sys.executable, "-m", "airflow_provider_talon_cdp", "ledger", "letters", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == '{"profile_id": "00000"}\n'
        process.stdout.close()
        told = process.stderr.read()
    assert "BrokenPipe" not in told
    assert process.returncode == 0


@pytest.mark.parametrize("command", ["show", "letters", "repair"])
def test_a_folder_without_a_ledger_is_one_clear_error(command, tmp_path, capsys):
    assert main(["ledger", command, str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"There is no ledger in this folder.\nFolder: {tmp_path}\n"


def test_a_ledger_that_was_copied_elsewhere_is_not_taken_for_the_one_that_it_was(
    run, loaded, capsys, tmp_path
):
    run("+a")
    here = loaded()
    for name in names_in(here.folder):
        if name.startswith("manifest"):
            (tmp_path / name).write_bytes((here.folder / name).read_bytes())
    assert main(["ledger", "show", str(tmp_path)]) == 1
    assert "written for another folder" in capsys.readouterr().err


def test_the_command_needs_a_place(capsys):
    assert main(["ledger", "show", "--audience-id", "vip"]) == 1
    assert "Give the folder of the ledger, or --state-uri and --deployment-host." in capsys.readouterr().err


def test_the_command_finds_the_ledger_of_an_environment(open_ledger, commit, capsys, state):
    commit(open_ledger(environment="live"), "+a")
    place = ["--state-uri", str(state), "--deployment-host", "acme.talon.one", "--audience-id", "vip"]
    assert main(["ledger", "show", *place]) == 1
    assert main(["ledger", "show", *place, "--environment", " live "]) == 0
    assert "version 1, 1 members" in capsys.readouterr().out
