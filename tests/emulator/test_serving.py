"""Faults as a client meets them on the wire."""

import asyncio
import json
import socket
import time

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.emulator.service import EmulatorSettings, Service
from airflow_provider_talon_cdp.emulator.serving import App

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


HEADERS = {
    "Authorization": "ApiKey-v1 local-key-1234567890",
    "customer-data-platform-name": "Tests",
    "destination-hostname": "demo.europe-west1.talon.one",
    "Content-Type": "application/json",
}


def scope(**fields):
    return {"type": "http", "method": "GET", "query_string": b"", "headers": [], "path": "/", **fields}


def run(application_scope):
    """What the application sends, without a server around it."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(App(Service(EmulatorSettings()), "http://x")(application_scope, receive, send))
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


def read(emulator, call, size, **fault):
    """Ask for one answer under a fault, and read at most so many bytes of it."""
    emulator.fail_next(**fault)
    url = f"{emulator.url}/cdp/customer_profile/anna"
    with call.session.put(url, data=b"{}", headers=call.headers, stream=True, timeout=5) as answer:
        body = b""
        for piece in answer.iter_content(1 << 16):
            body += piece
            if len(body) >= size:
                break
        return answer, body


def test_an_endless_answer_goes_on_until_the_client_leaves(emulator, call):
    answer, body = read(emulator, call, 3_000_000, kind="endless")
    assert (answer.status_code, len(body) >= 3_000_000, body[:12]) == (200, True, b'{"effects": ')
    assert emulator.profiles() == {"anna"}
    assert call.profile("bert").status_code == 200


def test_an_endless_answer_ends_with_the_emulator(caller):
    with Emulator() as emulator:
        emulator.fail_next("endless")
        call = caller(emulator)
        stream = call.session.put(
            f"{emulator.url}/cdp/customer_profile/anna",
            data=b"{}",
            headers=call.headers,
            stream=True,
            timeout=5,
        )
        assert next(stream.iter_content(10))
        started = time.monotonic()
    with stream:
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["large", "gzip_bomb"])
def test_an_answer_of_many_megabytes_is_valid_json(emulator, call, kind):
    answer, body = read(emulator, call, 1 << 30, kind=kind, megabytes=3)
    assert 3 << 20 < len(body) < 4 << 20
    assert set(json.loads(body)) == {"effects", "padding"}
    assert answer.headers.get("Content-Encoding") == ("gzip" if kind == "gzip_bomb" else None)
    assert answer.raw.tell() < (100_000 if kind == "gzip_bomb" else 4 << 20)
    assert emulator.profiles() == {"anna"}


@pytest.mark.parametrize("kind", ["endless", "large", "gzip_bomb"])
def test_with_an_error_status_nothing_happened(emulator, call, kind):
    answer, _ = read(emulator, call, 1, kind=kind, status=503)
    assert (answer.status_code, emulator.profiles()) == (503, set())


def raw_answer(emulator, **fault):
    """What comes over the wire, byte by byte, with the time of each read."""
    emulator.fail_next(**fault)
    host, port = emulator.url.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        first = "PUT /cdp/customer_profile/anna HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{first}{head}Content-Length: 2\r\n\r\n{{}}".encode())
        pieces = []
        while piece := connection.recv(1000):
            pieces.append(piece)
        return pieces


def test_an_answer_drips_byte_by_byte_from_its_first_on(emulator, caplog):
    pieces = raw_answer(emulator, kind="drip", seconds=0.002)
    assert len(pieces) > 100
    whole = b"".join(pieces)
    assert whole.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: ")
    head, _, body = whole.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["customerProfile"]["integrationId"] == "anna"
    assert caplog.records == []


def test_a_client_that_leaves_a_dripping_answer_stops_it(emulator, call):
    emulator.fail_next("drip", seconds=0.05)
    with pytest.raises(requests.Timeout):
        call.send("PUT", "/cdp/customer_profile/anna", {}, timeout=0.02)
    assert emulator.profiles() == {"anna"}
    assert call.profile("anna").status_code == 200


def test_an_answer_is_cut_in_its_middle(emulator, call, caplog):
    emulator.fail_next("cut")
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        call.profile("anna")
    assert emulator.profiles() == {"anna"}
    call.create("vip")
    emulator.fail_next("cut")
    with pytest.raises(requests.ConnectionError):
        call.external(("anna", ["vip"]))
    assert emulator.members("vip") == {"anna"}
    assert caplog.records == []


def test_a_conflict_on_demand(emulator, call):
    emulator.fail_next("status", status=409)
    assert call.profile("anna").json()["Error"] == "Conflict"
    assert emulator.profiles() == set()
