"""The emulator as an object: starts, stops, reads back, and leaves nothing behind."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import uvicorn

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.emulator.serving import ServerThread, is_loopback
from airflow_provider_talon_cdp.emulator.state_file import StateFileError
from airflow_provider_talon_cdp.emulator.store import UnknownAudienceError


def threads():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("talon")}


def test_it_answers_inside_the_block_and_is_gone_after_it():
    before = set(threading.enumerate())
    with Emulator() as talon:
        url = talon.url
        assert requests.get(f"{url}/emulator/state", timeout=5).status_code == 200
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/emulator/state", timeout=5)
    # A thread of an earlier test may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_it_can_be_started_again_and_remembers(caller):
    talon = Emulator(service_time=0.01)
    for number in range(2):
        with talon:
            assert len(talon.audiences()) == number
            assert caller(talon).create(f"a{number}").status_code == 201


def test_it_is_started_once_at_a_time():
    talon = Emulator()
    with talon, pytest.raises(RuntimeError, match="running"):
        talon.__enter__()
    talon.__exit__(None, None, None)


def test_it_has_a_url_only_while_it_runs():
    with pytest.raises(RuntimeError, match="URL"):
        _ = Emulator().url


def test_two_run_side_by_side(caller):
    with Emulator() as one, Emulator() as two:
        caller(one).create("vip")
        assert (list(one.audiences()), list(two.audiences())) == (["vip"], [])


def test_a_port_in_use_is_an_error():
    with (
        Emulator() as talon,
        pytest.raises(OSError, match="in use"),
        Emulator(port=int(talon.url.split(":")[2])),
    ):
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "0.0.0.0"},
        {"host": "192.0.2.1"},
        {"host": "example.com"},
        {"multi_profile_path": "both"},
        {"requests_per_second": 0},
        {"burst": 3},
        {"service_time": -1},
        {"service_time": float("nan")},
        {"attributes": {"a": "text"}},
        {"environments": {"live": "a", "sandbox": "a"}},
        {"environments": {"live": ""}},
        {"environments": {"": "a"}},
        {"environments": {"live": "a"}, "api_key": "b"},
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=r"\w"):
        Emulator(**settings)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_what_is_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_another_machine_may_reach_it_when_that_is_wanted():
    with Emulator(host="0.0.0.0", allow_remote=True) as talon:
        assert talon.url.startswith("http://127.0.0.1:")
        assert requests.get(talon.url, timeout=5).status_code == 200


def test_it_listens_on_ipv6_too():
    with Emulator(host="::1") as talon:
        assert talon.url.startswith("http://[::1]:")
        assert requests.get(talon.url, timeout=5).status_code == 200


def test_the_connection_has_what_airflow_needs():
    with Emulator(api_key="key", deployment_host="a.talon.one") as talon:
        assert talon.connection() == {
            "conn_type": "talon_cdp",
            "host": talon.url,
            "password": "key",
            "extra": {"deployment_host": "a.talon.one", "platform_name": "Local emulator"},
        }
    with Emulator(api_key=None, deployment_host=None) as talon:
        assert json.dumps(talon.connection())
        assert talon.connection()["password"]


def test_the_connection_of_an_environment_has_its_key_and_its_name():
    with Emulator(environments={"sandbox": "one", "live": "two"}) as talon:
        for name, key in (("sandbox", "one"), ("live", "two")):
            connection = talon.connection(environment=name)
            assert (connection["password"], connection["extra"]["environment"]) == (key, name)
        assert talon.connection() == talon.connection(environment="sandbox")
        with pytest.raises(LookupError, match="'test', but sandbox, live"):
            talon.connection(environment="test")


def test_the_key_is_in_no_repr():
    for talon in (Emulator(api_key="hush"), Emulator(environments={"live": "hush"})):
        assert "hush" not in repr(talon._service.settings) + repr(talon._service.environments)


def test_it_is_read_back_in_plain_values(emulator, call):
    call.create("vip", "VIP")
    call.external(("anna", ["vip"]))
    audience = emulator.audiences()["vip"]
    assert {**audience, "created": ""} == {"id": 1, "name": "VIP", "created": "", "members": 1}
    assert emulator.members("vip") == frozenset({"anna"})
    assert emulator.profiles() == frozenset({"anna"})
    assert emulator.profile("anna") == {"attributes": {}, "audiences": ["vip"]}
    assert emulator.profile("bert") is None
    with pytest.raises(UnknownAudienceError):
        emulator.members("gone")


def test_reset_forgets_everything(emulator, call):
    call.create("vip")
    call.profile("anna")
    emulator.fail_next("status")
    emulator.reset()
    assert (emulator.audiences(), emulator.profiles(), emulator.requests()) == ({}, set(), [])
    assert call.create("vip").json()["id"] == 1


def test_reset_forgets_requests_that_are_under_way(emulator, caller):
    emulator.fail_next("slow", seconds=1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(caller(emulator).profile, "anna")
        under_way = emulator._service.environment().in_flight._profiles
        for _ in range(500):
            if under_way:
                break
            time.sleep(0.01)
        emulator.reset()
        with pytest.raises(requests.ConnectionError):
            slow.result()
    assert (emulator.profiles(), emulator.requests()) == (set(), [])


def test_a_fault_with_a_wrong_name_is_an_error(emulator):
    with pytest.raises(ValueError, match="reset_before"):
        emulator.fail_next("reset")


def test_the_state_outlives_a_restart(tmp_path, caller):
    with Emulator(state_file=tmp_path / "state.json") as talon:
        caller(talon).create("vip")
        caller(talon).external(("anna", ["vip"]))
    with Emulator(state_file=str(tmp_path / "state.json")) as talon:
        assert talon.members("vip") == {"anna"}
        talon.reset()
    with Emulator(state_file=tmp_path / "state.json") as talon:
        assert talon.audiences() == {}


def test_a_damaged_state_file_stops_the_start(tmp_path):
    (tmp_path / "state.json").write_text("{")
    before = threads()
    with pytest.raises(StateFileError), Emulator(state_file=tmp_path / "state.json"):
        pass
    assert threads() <= before


def test_a_slow_answer_does_not_hold_up_the_end(caller):
    started = time.monotonic()
    with Emulator() as talon:
        talon.fail_next("slow", seconds=600)
        answers = []
        client = threading.Thread(target=lambda: answers.append(caller(talon).profile("anna").status_code))
        client.start()
        while not talon._service.environment().in_flight._profiles:
            time.sleep(0.005)
    client.join()
    assert answers == [200]
    assert time.monotonic() - started < 5


def test_a_client_that_never_finishes_does_not_hold_up_the_end(caplog):
    with Emulator() as talon:
        host, port = talon.url.removeprefix("http://").split(":")
        half = socket.create_connection((host, int(port)))
        half.sendall(b"PUT /cdp/audiences HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.05)
        started = time.monotonic()
    with half:
        assert time.monotonic() - started < 1.5
    assert caplog.records == []


def test_idle_connections_are_closed_at_the_end():
    with requests.Session() as session, Emulator() as talon:
        assert session.get(talon.url, timeout=5).status_code == 200


def test_a_server_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr("airflow_provider_talon_cdp.emulator.serving._PATIENCE", 0.0)
    startup = uvicorn.Server.startup

    async def late(self, sockets=None):
        await asyncio.sleep(0.2)
        await startup(self, sockets=sockets)

    monkeypatch.setattr(uvicorn.Server, "startup", late)
    server = ServerThread("127.0.0.1", 0)
    with pytest.raises(RuntimeError, match="did not start"):
        server.start(never)
    server._thread.join(5)
    assert not server._thread.is_alive()


async def never(scope, receive, send):
    """Answer nothing."""


@pytest.mark.slow
def test_two_hundred_thousand_members_take_seconds(caller):
    with Emulator() as talon:
        call = caller(talon)
        call.create("vip")
        started = time.monotonic()
        for block in range(200):
            assert call.external(*((f"{block}-{n}", ["vip"]) for n in range(1000))).status_code == 204
        assert talon.audiences()["vip"]["members"] == 200_000
        assert time.monotonic() - started < 60
        assert (len(talon.requests()), talon.state()["requests"]["total"]) == (201, 201)
