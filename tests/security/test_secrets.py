"""The API key, profile IDs and attribute values stay out of logs, errors, results and pages."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import traceback
import urllib.request
from dataclasses import replace
from decimal import Decimal

import pytest

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.client import AsyncTalonCdpClient, TalonCdpClient, Transport, open_client
from airflow_provider_talon_cdp.exceptions import TalonCdpError
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator, DeleteAudienceOperator
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.operators.profile import UpdateProfileAudiencesOperator, UpdateProfileOperator

KEY = "local-key-1234567890"
PERSON = "anna.secret@example.com"
VALUE = "Wonderland-Street-77"


def once(hook):
    """Settings of the hook's connection, for one attempt."""
    return replace(hook.settings, call_retry_seconds=0, bulk_retry_seconds=0)


def text_of(error):
    """Everything that a log may show of an exception: causes and notes too."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


def leaks(text, *more):
    from urllib.parse import quote  # noqa: PLC0415

    return [each for each in (KEY, PERSON, quote(PERSON, safe=""), VALUE, *more) if each in text]


def _single(hook, request):
    with hook.get_conn() as session:
        return TalonCdpClient(once(hook), session).send(request)


def _bulk(hook, request):
    with hook.get_conn() as session:
        transport = Transport.of(session, hook.settings.base_url)

    async def send():
        async with open_client(once(hook), transport, AsyncTalonCdpClient) as client:
            return await client.send(request)

    return asyncio.run(send())


@pytest.fixture(params=[_single, _bulk], ids=["single", "bulk"])
def send(request):
    return request.param


REQUESTS = {
    "profile": lambda: calls.update_customer_profile(PERSON, attributes={"Street": VALUE}),
    "profile audiences": lambda: calls.update_customer_profile_audiences(PERSON, add_audiences=["vip"]),
    "profiles audiences": lambda: calls.update_customer_profiles_audiences([(PERSON, ["vip"], [])]),
}


@pytest.fixture(params=REQUESTS.values(), ids=REQUESTS)
def request_one(request):
    return request.param()


def _run(operator):
    return operator.execute({})


def test_a_successful_run_of_every_operator_leaks_nothing(connect, talon, everything_logged):
    connect()
    results = [
        _run(CreateAudienceOperator(task_id="a", audience_id="vip", audience_name="VIP")),
        _run(SyncAudienceMembersOperator(task_id="b", audience_id="vip", add=[PERSON, PERSON])),
        _run(
            UpdateProfileAudiencesOperator(task_id="c", customer_profile_id=PERSON, remove_audiences=["vip"])
        ),
        _run(UpdateProfileOperator(task_id="d", customer_profile_id=PERSON, attributes={"Street": VALUE})),
        _run(DeleteAudienceOperator(task_id="e", audience_id="vip")),
    ]
    assert talon.profile(PERSON)["attributes"] == {"Street": VALUE}
    assert leaks(json.dumps(results)) == []
    assert leaks(everything_logged()) == []


def test_nothing_that_can_be_printed_shows_the_key(connect, talon):
    hook = connect({"proxies": {"http": "http://me:proxy-secret@127.0.0.1:1"}, "trust_env": False})
    with hook.get_conn() as session:
        transport = Transport.of(session, hook.settings.base_url)
        shown = [hook, hook.settings, hook.client, transport, hook.members_sender(), session]
        text = "".join(repr(each) + str(each) for each in shown)
    assert leaks(text, "proxy-secret") == []


def test_a_request_that_is_printed_shows_neither_key_nor_values(request_one):
    """Its path may hold the ID, which is why it is never printed; the body is kept out of its repr."""
    assert VALUE not in repr(request_one)
    assert KEY not in repr(request_one)


def test_rendered_template_fields_hold_no_key(connect, talon):
    connect()
    operator = SyncAudienceMembersOperator(task_id="b", audience_id="vip", add=["{{ 'anna' }}"])
    operator.render_template_fields({})
    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    assert KEY not in repr(rendered)
    assert rendered["add"] == ["anna"]


def test_the_emulators_pages_and_logs_hold_no_key(connect, talon):
    hook = connect()
    hook.create_audience("vip", "VIP")
    for path in ("/", "/openapi.json", "/emulator/state", "/emulator/requests", "/emulator/faults"):
        with urllib.request.urlopen(talon.url + path, timeout=5) as answer:
            assert KEY not in answer.read().decode(), path
    assert KEY not in repr(talon.requests()) + repr(talon.state())


def test_numbers_are_not_quoted_in_the_form_in_which_they_were_sent(connect, talon):
    connect()
    talon.fail_next("status", status=400, body={"Error": "1234.5, 100 and 7 are not of type string"})
    operator = UpdateProfileOperator(
        task_id="d",
        customer_profile_id=PERSON,
        attributes={"balance": Decimal("1234.50"), "parts": [Decimal("100.00"), {"n": 7.0}]},
    )
    with pytest.raises(TalonCdpError, match=r"\*\*\*, \*\*\* and \*\*\* are not of type string") as error:
        _run(operator)
    assert leaks(text_of(error.value), "1234.5") == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        {"Error": f"profile {PERSON} is not valid"},
        {"Error": f"profile '{PERSON}' is not valid", "StatusCode": 400},
        {"message": f"bad {PERSON}", "errors": [{"title": "t", "details": f"value {VALUE} of {PERSON}"}]},
        {"errors": [{"title": VALUE, "source": {"pointer": "/attributes/Street"}}]},
        f"<html>{PERSON} {VALUE}</html>",
        f"plain {PERSON} {VALUE}",
    ],
    ids=["error", "quoted", "errors", "title", "html", "text"],
)
def test_an_error_answer_that_quotes_the_record_does_not_leak_it(connect, talon, status, body):
    hook = connect()
    talon.fail_next("status", status=status, body=body)
    with pytest.raises(TalonCdpError) as error:
        _single(hook, REQUESTS["profile"]())
    assert leaks(text_of(error.value)) == []


def test_a_refused_bulk_record_is_not_quoted(connect, talon, everything_logged):
    hook = connect()
    hook.create_audience("vip", "VIP")
    talon.fail_next("status", times=1, status=400, body={"Error": f"profile {PERSON} is not valid"})
    with pytest.raises(TalonCdpError) as error:
        _run(SyncAudienceMembersOperator(task_id="b", audience_id="vip", add=[PERSON]))
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


def test_a_refused_id_that_the_answer_escapes_is_not_quoted(connect, talon):
    r"""Servers quote with escapes: ``a"b`` is answered as ``"a\"b"``."""
    hook = connect()
    escaped = PERSON.replace("secret", '\\"secret')
    talon.fail_next("status", status=400, body={"Error": f'profile "{escaped}" is not valid'})
    with pytest.raises(TalonCdpError) as error:
        _single(hook, calls.update_customer_profile(PERSON.replace("secret", '"secret')))
    assert escaped not in text_of(error.value)


def test_an_answer_that_quotes_the_key_does_not_leak_it(connect, talon, send, request_one, everything_logged):
    """Gateways like to say which key they do not know."""
    talon.fail_next("status", status=401, body={"Error": f"unknown key {KEY}", "RequestUUID": f"u-{KEY}"})
    with pytest.raises(TalonCdpError) as error:
        send(connect(), request_one)
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_lost_connection_leaks_nothing(connect, talon, send, request_one, everything_logged, kind):
    hook = connect()
    hook.create_audience("vip", "VIP")
    # Two, as aiohttp sends an idempotent request again by itself.
    talon.fail_next(kind, times=2)
    with pytest.raises(TalonCdpError) as error:
        send(hook, request_one)
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


def test_a_timeout_leaks_nothing(connect, send, request_one, everything_logged):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hook = connect({"timeout": 0.2}, host=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TalonCdpError, match="timed out") as error:
            send(hook, request_one)
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


def test_a_host_that_refuses_connections_leaks_nothing(connect, send, request_one, everything_logged):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(TalonCdpError) as error:
            send(connect(host=f"http://127.0.0.1:{port}"), request_one)
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


def test_a_host_that_does_not_exist_leaks_nothing(connect, send, request_one, everything_logged):
    with pytest.raises(TalonCdpError) as error:
        send(connect(host="https://no-such-host.invalid"), request_one)
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nVia 1.1 proxy\r\nX-Path: /cdp/customer_profile/%b\r\n\r\n" % PERSON.encode(),
        b"",
    ],
    ids=[
        "no http",
        "bad status",
        "short body",
        "bad chunk",
        "bad gzip",
        "long header",
        "no colon",
        "nothing",
    ],
)
def test_a_broken_answer_is_our_own_error_and_leaks_nothing(
    connect, send, request_one, everything_logged, answer
):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)
                if not answer:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        hook = connect({"timeout": 2}, host=f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(TalonCdpError) as error:
            send(hook, request_one)
        thread.join(5)
    assert leaks(text_of(error.value)) == []
    assert leaks(everything_logged()) == []


def test_the_password_of_a_proxy_is_in_no_error(connect, send, request_one, everything_logged, serve):
    refusing = serve(status=407, headers={"Proxy-Authenticate": "Basic"})
    proxy = f"http://me:proxy-secret@127.0.0.1:{refusing.port}"
    hook = connect({"proxies": {"http": proxy, "https": proxy}}, host="https://api.example.com")
    with pytest.raises(TalonCdpError) as error:
        send(hook, request_one)
    assert leaks(text_of(error.value), "proxy-secret") == []
    assert leaks(everything_logged(), "proxy-secret") == []


def test_the_password_of_an_unusable_proxy_is_in_no_error(connect, send, request_one, everything_logged):
    extra = {"proxies": {"https": "http://me:proxy-secret@["}}
    hook = connect(extra, host="https://api.example.com")
    with pytest.raises(TalonCdpError) as error:
        send(hook, request_one)
    assert leaks(text_of(error.value), "proxy-secret") == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_redirects_are_not_followed(connect, send, request_one, serve, status, scheme):
    other = serve()
    front = serve(status=status, headers={"Location": f"{scheme}://127.0.0.1:{other.port}/cdp/audiences"})
    with pytest.raises(TalonCdpError, match="(?i)redirects are not followed"):
        send(connect(host=front.url), request_one)
    assert len(front.seen) == 1
    assert other.seen == []


def test_a_redirect_to_the_same_host_is_not_followed(connect, send, request_one, serve):
    front = serve(status=308, headers={"Location": "/elsewhere"})
    with pytest.raises(TalonCdpError, match="(?i)redirects"):
        send(connect(host=front.url), request_one)
    assert len(front.seen) == 1


def test_cookies_are_not_sent_back(connect, serve):
    front = serve(status=204, headers={"Set-Cookie": "session=1; Path=/"})
    hook = connect(host=front.url)
    with hook.get_conn() as session:
        client = TalonCdpClient(once(hook), session)
        client.send(calls.delete_audience("a"))
        client.send(calls.delete_audience("b"))
    assert [name for _, _, headers in front.seen for name in headers if name.lower() == "cookie"] == []


@pytest.mark.parametrize(
    "value", ["x\r\nX-Evil: 1", "x\nX-Evil: 1", "x\rX-Evil: 1", "x\x00y", "x\x7fy", "x\u2028y"]
)
@pytest.mark.parametrize("where", ["platform_name", "deployment_host", "password"])
def test_no_field_of_the_connection_can_inject_a_header(connect, talon, where, value):
    hook = connect(password=value) if where == "password" else connect({where: value})
    with pytest.raises(TalonCdpError):
        hook.delete_audience("vip")
    assert talon.requests() == []
