"""Reading back and faults over HTTP, as another process uses them: without a key."""

from urllib.parse import quote

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator

ODD = 'a/b ?#%"ü..'


def test_the_state_is_read_over_http(emulator, call):
    call.create("vip", "VIP")
    call.external(("anna", ["vip"]))
    emulator.fail_next("slow", seconds=1.5)
    emulator.reject_profiles(["bad"])
    state = requests.get(f"{emulator.url}/emulator/state", timeout=5).json()
    assert state == emulator.state()
    assert state["audiences"]["vip"]["members"] == state["profiles"] == 1
    assert state["requests"]["by_operation"] == {"create_audience": 1, "update_profiles_external": 1}
    assert (state["faults"][0]["seconds"], state["rejected_profiles"]) == (1.5, ["bad"])


def test_members_are_read_over_http_in_pages(emulator, call):
    call.create(ODD)
    call.external(*((f"p{n}", [ODD]) for n in range(5)))
    url = f"{emulator.url}/emulator/audiences/{quote(ODD, safe='')}/members"
    assert requests.get(url, timeout=5).json() == {
        "audience": ODD,
        "total": 5,
        "members": ["p0", "p1", "p2", "p3", "p4"],
    }
    assert requests.get(url, {"after": "p1", "limit": 2}, timeout=5).json()["members"] == ["p2", "p3"]
    assert requests.get(url, {"limit": "many"}, timeout=5).status_code == 400


def test_a_profile_is_read_over_http(emulator, call):
    call.profile(ODD, attributes={"a": [1, None, True]})
    answer = requests.get(f"{emulator.url}/emulator/profiles/{quote(ODD, safe='')}", timeout=5)
    assert answer.json() == {"profile": ODD, "attributes": {"a": [1, None, True]}, "audiences": []}


def test_all_profiles_are_read_over_http_in_pages(emulator, call):
    for number in range(3):
        call.profile(f"p{number}", attributes={"a": number})
    url = f"{emulator.url}/emulator/profiles"
    everything = {"p0": {"a": 0}, "p1": {"a": 1}, "p2": {"a": 2}}
    assert requests.get(url, timeout=5).json() == {"total": 3, "profiles": everything}
    page = requests.get(url, {"after": "p0", "limit": 1}, timeout=5).json()
    assert page == {"total": 3, "profiles": {"p1": {"a": 1}}}
    assert requests.get(url, {"limit": "x"}, timeout=5).status_code == 400


def test_an_environment_is_read_over_http():
    with Emulator(environments={"sandbox": "one", "live": "two"}) as emulator:
        emulator.create_audience("vip", "VIP", environment="live")
        emulator.add_members("vip", ["anna"], environment="live")
        base, live = f"{emulator.url}/emulator", {"environment": "live"}
        assert requests.get(f"{base}/state", timeout=5).json() == emulator.state()
        assert requests.get(f"{base}/state", live, timeout=5).json() == emulator.state("live")
        assert emulator.state()["environments"] == ["sandbox", "live"]
        assert requests.get(f"{base}/profiles", live, timeout=5).json()["total"] == 1
        members = requests.get(f"{base}/audiences/vip/members", live, timeout=5)
        assert members.json()["members"] == ["anna"]
        assert requests.get(f"{base}/audiences/vip/members", timeout=5).status_code == 404
        unknown = requests.get(f"{base}/state", {"environment": "x"}, timeout=5)
        assert (unknown.status_code, "sandbox, live" in unknown.json()["error"]) == (404, True)


def test_members_by_internal_id_are_read_over_http(emulator):
    internal = emulator.create_campaign_manager_audience("By hand")
    emulator.add_members(internal, ["anna"])
    url = f"{emulator.url}/emulator/campaign_manager_audiences"
    assert requests.get(f"{url}/{internal}/members", timeout=5).json()["members"] == ["anna"]
    assert requests.get(f"{url}/x/members", timeout=5).status_code == 400
    assert emulator.state()["campaign_manager_audiences"][0]["name"] == "By hand"


def test_requests_are_read_over_http(emulator, call):
    call.profile("anna")
    answer = requests.get(f"{emulator.url}/emulator/requests", timeout=5).json()
    assert (answer["requests"], answer["total"]) == (emulator.requests(), 1)


def test_faults_are_switched_over_http(emulator, call):
    url = f"{emulator.url}/emulator/faults"
    fault = {"kind": "status", "status": 418, "body": {"price": 19.99}, "times": 1, "after": 0}
    assert requests.post(url, json=fault, timeout=5).status_code == 201
    assert requests.post(url, json={"reject_profiles": ["bad"]}, timeout=5).status_code == 201
    assert requests.get(url, timeout=5).json() == {"faults": [fault], "rejected_profiles": ["bad"]}
    answer = call.profile("anna")
    assert (answer.status_code, answer.text) == (418, '{"price": 19.99}')
    assert call.profile("bad").status_code == 400
    requests.post(url, json={"kind": "slow", "times": None}, timeout=5)
    assert requests.delete(url, timeout=5).status_code == 204
    assert requests.get(url, timeout=5).json() == {"faults": [], "rejected_profiles": []}


def test_everything_is_forgotten_over_http(emulator, call):
    call.create("vip")
    emulator.fail_next("slow")
    assert requests.post(f"{emulator.url}/emulator/reset", timeout=5).status_code == 204
    assert (emulator.audiences(), emulator.requests(), emulator.state()["faults"]) == ({}, [], [])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/emulator/", 404),
        ("GET", "/emulator/nothing", 404),
        ("GET", "/emulator/profiles/nobody", 404),
        ("GET", "/emulator/audiences/none/members", 404),
        ("GET", "/emulator/profiles/%FF", 400),
        ("GET", "/emulator/reset", 405),
        ("POST", "/emulator/state", 405),
        ("PUT", "/emulator/profiles", 405),
        ("PUT", "/emulator/faults", 405),
    ],
)
def test_what_is_not_there_is_an_error(emulator, method, path, status):
    assert requests.request(method, emulator.url + path, timeout=5).status_code == status


def test_a_web_page_changes_nothing_here(emulator, call):
    call.create("vip")
    foreign = {"Origin": "https://example.com"}
    assert requests.post(f"{emulator.url}/emulator/reset", headers=foreign, timeout=5).status_code == 403
    assert requests.get(f"{emulator.url}/emulator/state", headers=foreign, timeout=5).status_code == 200
    assert list(emulator.audiences()) == ["vip"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kind": "x"}',
        b'{"kind": "slow", "seconds": 1e999}',
        b'{"reject_profiles": "a"}',
        b'{"reject_profiles": [1]}',
        b'{"kind": "slow", "reject_profiles": []}',
        b'{"kind": null}',
    ],
)
def test_a_fault_that_cannot_be_is_a_400_that_says_why(emulator, body):
    answer = requests.post(f"{emulator.url}/emulator/faults", data=body, timeout=5)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert emulator.state()["faults"] == []
