"""Faults as a client meets them on the wire."""

import asyncio
import socket
import time

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.emulator.app import App
from airflow_provider_talon_cdp.emulator.service import Service, Settings

INTEGRATION_STATE = {"effects": [], "createdCoupons": [], "createdReferrals": []}


def test_a_reset_before_the_effect_has_none(emulator, call, caplog):
    emulator.fail_next("reset_before")
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        call.profile("anna")
    assert emulator.profiles() == set()
    assert call.profile("anna").status_code == 200
    assert [(each["status"], each["fault"]) for each in emulator.requests()] == [
        (None, "reset_before"),
        (200, None),
    ]
    assert caplog.records == []


def test_a_reset_after_the_effect_leaves_it_in_place(emulator, call, caplog):
    call.create("vip")
    emulator.fail_next("reset_after")
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        call.external(("anna", ["vip"]))
    assert emulator.members("vip") == {"anna"}
    assert emulator.state()["requests"]["by_status"] == {"201": 1, "none": 1}
    assert caplog.records == []


def test_a_large_request_is_reset_cleanly_too(emulator, call):
    call.create("vip")
    emulator.fail_next("reset_before", times=3)
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            call.external(*((f"{n:0>500}", ["vip"]) for n in range(1000)))
    assert emulator.members("vip") == set()


def test_a_slow_answer_is_late_and_its_effect_happens(emulator, call):
    emulator.fail_next("slow", seconds=0.3)
    before = time.monotonic()
    assert call.profile("anna").status_code == 200
    assert 0.3 <= time.monotonic() - before < 3


def test_a_client_that_gives_up_does_not_undo_the_effect(emulator, call, caplog):
    call.create("vip")
    emulator.fail_next("slow", seconds=0.4)
    with pytest.raises(requests.Timeout):
        call.send("PUT", "/cdp/customer_profile/anna", {"audiencesChanges": {"adds": [1]}}, timeout=0.1)
    deadline = time.monotonic() + 5
    while not emulator.members("vip") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert emulator.members("vip") == {"anna"}
    assert caplog.records == []


def test_a_wrong_success_looks_well_and_does_nothing(emulator, call):
    call.create("vip")
    emulator.fail_next("wrong_success")
    answer = call.external(("anna", ["vip"]))
    assert (answer.status_code, answer.json()) == (200, INTEGRATION_STATE)
    assert emulator.members("vip") == set()


def test_a_page_instead_of_an_answer(emulator, call):
    emulator.fail_next("html")
    emulator.fail_next("status", status=502, html="<h1>Bad Gateway</h1>")
    answers = [call.profile("anna"), call.profile("anna")]
    assert [answer.status_code for answer in answers] == [200, 502]
    assert all(answer.headers["Content-Type"].startswith("text/html") for answer in answers)
    assert emulator.profiles() == set()


def test_an_error_status_with_retry_after(emulator, call):
    emulator.fail_next("status", times=2, status=429, retry_after=7)
    answers = [call.profile("anna") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert answers[0].json()["RequestUUID"] == emulator.requests()[0]["request_uuid"]
    assert answers[0].json()["RequestUUID"] != answers[1].json()["RequestUUID"]


def test_a_fault_for_one_audience_or_operation(emulator, call):
    emulator.fail_next("status", only="vip")
    emulator.fail_next("status", only="update_profile", status=503)
    assert [
        call.create("new").status_code,
        call.profile("x").status_code,
        call.create("vip").status_code,
    ] == [
        201,
        503,
        500,
    ]


def test_a_call_that_is_refused_anyway_uses_up_no_fault(emulator, call):
    emulator.fail_next("status")
    call.send("GET", "/emulator/state")
    call.send("POST", "/cdp/audiences", b"{")
    assert call.profile("anna").status_code == 500


def scope(**fields):
    return {"type": "http", "method": "GET", "query_string": b"", "headers": [], "path": "/", **fields}


def run(application_scope):
    """What the application sends, without a server around it."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(App(Service(Settings()), "http://x")(application_scope, receive, send))
    return sent[0]["status"]


def test_a_server_that_keeps_the_raw_path_to_itself_will_do():
    assert run(scope(path="/emulator/profiles/ü")) == 404
    assert run(scope(path="/emulator/state")) == 200


def test_it_speaks_http_only():
    with pytest.raises(RuntimeError, match="lifespan"):
        run({"type": "lifespan"})


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_request(emulator, caplog):
    host, port = emulator.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"PUT /cdp/audiences HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    with Emulator() as other:  # gives the first one time to notice
        assert other.requests() == []
    assert emulator.requests() == []
    assert caplog.records == []
