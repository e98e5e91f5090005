"""The command line: five lines when it starts, one clear sentence when it cannot, and a quiet end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.emulator.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start():
    """Start the command line in a process of its own; gives the process and what it says."""
    processes = []

    def begin(*arguments):
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "airflow_provider_talon_cdp.emulator",
                "--port",
                "0",
                *arguments,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, "".join(process.stdout.readline() for _ in range(5))

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def url_of(line):
    return re.search(r"http://127\.0\.0\.1:\d+", line)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_a_signal_and_ends_quietly(start, number):
    process, line = start()
    assert max(map(len, line.splitlines())) <= 80
    assert "local-key-1234567890" in line
    assert requests.get(url_of(line), timeout=5).status_code == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")


def test_its_options_reach_the_emulator(start, tmp_path, caller):
    attributes = tmp_path / "attributes.json"
    attributes.write_text('{"Tier": "string"}')
    process, line = start(
        *("--api-key", "my-own-key", "--deployment-host", "x.talon.one", "--attributes", str(attributes)),
        *("--state-file", str(tmp_path / "state.json"), "--multi-profile-path", "singular"),
        *("--requests-per-second", "0.01", "--burst", "4", "--no-retry-after", "--service-time", "0.001"),
    )
    assert "my-own-key" not in line
    url = url_of(line)
    with Emulator() as other:
        call = caller(other, Authorization="ApiKey-v1 my-own-key", **{"destination-hostname": "x.talon.one"})
    call.url = url
    assert call.profile("anna", attributes={"Tier": 1}).status_code == 400
    assert call.profile("anna", attributes={"Tier": "Gold"}).status_code == 200
    assert call.send("PUT", "/cdp/v2/customer_profile/audiences", {"data": []}).status_code == 204
    assert call.send("PUT", "/cdp/v2/customer_profile/audiences", b"").status_code == 400
    limited = call.profile("anna")
    assert (limited.status_code, "Retry-After" in limited.headers) == (429, False)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert json.loads((tmp_path / "state.json").read_text())["environments"][""]["profiles"]["anna"][
        "attributes"
    ] == {"Tier": "Gold"}


@pytest.fixture
def fails(capsys, monkeypatch):
    """Run the command line here, where it must not start; gives its one line of complaint."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments):
        results = []
        thread = threading.Thread(target=lambda: results.append(main(arguments)), daemon=True)
        thread.start()
        thread.join(10)
        assert results == [1]
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    return run


def test_it_runs_in_the_main_thread_until_its_handler_is_called(capsys, monkeypatch):
    handlers = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    results = []
    thread = threading.Thread(target=lambda: results.append(main(["--port", "0"])))
    thread.start()
    out = ""
    for _ in range(500):
        out += capsys.readouterr().out
        if "Ctrl-C" in out:
            break
        time.sleep(0.01)
    assert requests.get(url_of(out), timeout=5).status_code == 200
    handlers[signal.SIGINT]()
    thread.join(10)
    assert results == [0]


def test_environments_come_from_the_command_line(start, emulator, caller):
    _, line = start("--environment", "sandbox=key-one", "--environment", "live=key=two")
    assert "key-one" not in line
    call = caller(emulator, Authorization="ApiKey-v1 key=two")
    call.url = url_of(line)
    assert call.create("vip").status_code == 201
    state = requests.get(f"{call.url}/emulator/state", {"environment": "live"}, timeout=5).json()
    assert list(state["audiences"]) == ["vip"]


def test_a_port_in_use_is_a_sentence(fails, emulator):
    port = emulator.url.split(":")[2]
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in fails("--port", port)


def test_a_port_that_cannot_be_is_a_sentence(fails):
    assert "cannot listen" in fails("--port", "99999")


def test_an_environment_has_a_key(fails):
    assert "a name and a key" in fails("--environment", "live")


def test_another_address_needs_a_yes(fails):
    assert "other machines" in fails("--host", "0.0.0.0")


def test_a_damaged_state_file_is_a_sentence(fails, tmp_path):
    (tmp_path / "state.json").write_text("")
    assert "state.json is damaged" in fails("--port", "0", "--state-file", str(tmp_path / "state.json"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ("[]", "object of name to type"),
        ('{"a": "b"}', "a type is one of"),
    ],
)
def test_an_attributes_file_that_will_not_do_is_a_sentence(fails, tmp_path, text, complaint):
    path = tmp_path / "attributes.json"
    if text is not None:
        path.write_text(text)
    assert complaint in fails("--attributes", str(path))


def test_a_state_file_that_cannot_be_written_is_an_error_at_the_end(start, tmp_path, caller, emulator):
    home = tmp_path / "home"
    home.mkdir()
    process, line = start("--state-file", str(home / "state.json"))
    call = caller(emulator)
    call.url = url_of(line)
    shutil.rmtree(home)
    call.create("vip")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert (
        err.splitlines()[-1]
        == f"talon emulator: cannot write the state file {home}/state.json: No such file or directory"
    )
    assert "Traceback" not in err
