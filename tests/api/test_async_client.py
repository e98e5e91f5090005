"""The client for bulk calls, over a real socket to the emulator; waits are counted and not slept."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import asynccontextmanager

import pytest
import requests

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.client import AsyncTalonCdpClient, Transport, open_client
from airflow_provider_talon_cdp.api.settings import Settings
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    InvalidInputError,
    RejectedError,
    TransientError,
    UnexpectedAnswerError,
)


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.sleeps = []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def send(talon, clock):
    """Send requests one after another with a fresh client; return the results and the client."""

    def run(*requests_, **settings):
        return asyncio.run(_send_all(talon, clock, requests_, settings))

    return run


async def _send_all(talon, clock, requests_, settings):
    async with client_to(talon, clock, **settings) as client:
        return [await client.send(request) for request in requests_], client


def settings_of(talon, **changes):
    connection = talon.connection()
    fields = {
        "api_key": connection["password"],
        "deployment_host": connection["extra"]["deployment_host"],
        "base_url": talon.url,
    }
    return Settings(**fields | changes)


@asynccontextmanager
async def client_to(talon, clock, **changes):
    settings = settings_of(talon, **changes)
    async with open_client(settings, Transport(), AsyncTalonCdpClient) as opened:
        yield AsyncTalonCdpClient(
            settings, opened._session, clock=clock, sleep=clock.sleep, jitter=lambda: 1.0
        )


def test_all_seven_calls_work_over_it(send, talon):
    (created, renamed, state, _, _, _), client = send(
        calls.create_audience("vip", "VIP"),
        calls.update_audience("vip", "Very"),
        calls.update_customer_profile("anna", attributes={"City": "Zürich"}, add_audiences=[1]),
        calls.update_customer_profile_audiences("bo", add_audiences=["vip"]),
        calls.update_customer_profiles_audiences([("cem", ["vip"], []), ("anna", [], ["vip"])]),
        calls.update_customer_profiles_audiences([("dee", [1], [])], audience_id_type="internal"),
    )
    assert (created.id, renamed.name) == (1, "Very")
    assert state["effects"] == []
    assert talon.members("vip") == {"bo", "cem", "dee"}
    assert client.requests == 6
    send(calls.delete_audience("vip"))
    assert talon.audiences() == {}


@pytest.mark.parametrize("odd", ["...", "a/b?c#d%2F e+ü\n", "x" * 1000, "audiences"])
def test_any_id_reaches_its_own_profile(send, talon, odd):
    send(calls.update_customer_profile(odd, attributes={"seen": True}))
    assert talon.profile(odd)["attributes"] == {"seen": True}


def test_transient_failures_are_retried_and_counted(send, talon, clock):
    talon.fail_next("status", times=2, status=503)
    talon.fail_next("reset_before")
    talon.fail_next("reset_after")
    talon.fail_next("status", status=429)
    _, client = send(calls.update_customer_profile("anna", attributes={"n": 1}), requests_per_second=1000)
    assert talon.profile("anna")["attributes"] == {"n": 1}
    assert (client.requests, client.retries, client.throttled) == (6, 5, 1)
    assert [wait for wait in clock.sleeps if wait in (0.5, 1, 2, 4, 8)] == [0.5, 1, 2, 4, 8]


def test_a_429_slows_everything_down(send, talon, clock):
    talon.fail_next("status", status=429, retry_after=9)
    _, client = send(calls.update_customer_profile("anna"), calls.update_customer_profile("bo"))
    assert clock.sleeps[0] == pytest.approx(9.5)
    assert client._pacer.rate(1000.0) < 60


@pytest.mark.parametrize("budget, says", [(600, "asks to wait 3,600 s"), (0, "429")])
def test_a_429_that_asks_for_longer_than_the_retries_last_fails_the_next_calls_at_once(
    talon, clock, budget, says
):
    """They would otherwise wait for an hour, and no line of the log would say so."""
    talon.fail_next("status", status=429, retry_after=3600)

    async def run():
        async with client_to(talon, clock, bulk_retry_seconds=budget, requests_per_second=10) as client:
            for name in ("anna", "bo"):
                with pytest.raises(TransientError, match=says) as error:
                    await client.send(calls.update_customer_profile(name))
                assert (error.value.is_unclear, error.value.repeated) == (False, False)
            assert clock.now < 1100
            assert client.requests == 1
            clock.now += 3601
            # The second one waits for its turn.
            await client.send(calls.update_customer_profile("anna"))
            await client.send(calls.update_customer_profile("bo"))

    asyncio.run(run())


def test_so_does_it_a_call_whose_earlier_attempt_may_have_had_its_effect(talon, clock):
    talon.fail_next("status", status=503)
    talon.fail_next("status", status=429, retry_after=3600)

    async def run():
        async with client_to(talon, clock, bulk_retry_seconds=600) as client:

            async def sleep(seconds):
                client._sleep = clock.sleep
                with pytest.raises(TransientError):
                    await client.send(calls.update_customer_profile("anna"))

            client._sleep = sleep
            with pytest.raises(TransientError, match="asks to wait 3,600 s") as error:
                await client.send(calls.update_customer_profile("bo"))
            assert error.value.repeated

    asyncio.run(run())


def test_requests_are_paced(send, clock):
    send(*[calls.update_customer_profile(f"p{number}") for number in range(21)], requests_per_second=10)
    assert clock.now == pytest.approx(1002.0, abs=0.15)


def test_the_time_in_the_queue_is_no_time_of_retries(talon, clock):
    """Many wait for their turn at a low rate, longer than the retries of one request may take."""
    talon.fail_next("status", status=503, after=19)

    async def run():
        async with client_to(talon, clock, requests_per_second=1, bulk_retry_seconds=10) as client:
            names = [f"p{number}" for number in range(20)]
            await asyncio.gather(*[client.send(calls.update_customer_profile(name)) for name in names])
            return client.retries

    assert asyncio.run(run()) == 1
    assert len(talon.profiles()) == 20


@pytest.mark.parametrize(
    "fault, says",
    [
        ({"kind": "status", "status": 429}, "Talon.One has answered 429 (too many requests) for "),
        ({"kind": "status", "status": 503}, "Talon.One has answered 503 for "),
        ({"kind": "reset_before"}, "Talon.One has given no answer ("),
    ],
)
def test_a_client_says_what_it_waits_for_and_since_when(talon, clock, fault, says):
    talon.fail_next(fault.pop("kind"), times=4, **fault)

    async def run():
        seen = []
        async with client_to(talon, clock) as client:
            assert client.waiting is None
            sleep = clock.sleep

            async def watched(seconds):
                await sleep(seconds)
                seen.append((clock.now, client.waiting))

            client._sleep = watched
            await client.send(calls.update_customer_profile("anna"))
            assert client.waiting is None
        return seen

    seen = asyncio.run(run())
    began = seen[0][0]
    at, text = seen[-1]
    assert text.startswith(says)
    assert text.endswith(" s")
    assert abs(int(text.split()[-2]) - (at - began)) <= 2


def test_a_failure_among_successes_is_nothing_to_wait_for(send, talon):
    talon.fail_next("status", status=503)
    _, client = send(*[calls.update_customer_profile(f"p{number}") for number in range(3)])
    assert client.retries == 1
    assert client.waiting is None


def test_a_refusal_is_an_answer_that_ends_the_waiting(talon, clock):
    talon.fail_next("status", times=3, status=503)
    talon.fail_next("status", status=400)

    async def run():
        async with client_to(talon, clock) as client:
            with pytest.raises(RejectedError):
                await client.send(calls.update_customer_profile("anna"))
            clock.now += 60
            return client.waiting

    assert asyncio.run(run()) is None


def test_an_outage_in_bulk_is_one_line_in_ten_seconds(talon, clock, caplog):
    talon.fail_next("status", times=None, status=503)

    async def run():
        async with client_to(talon, clock, bulk_retry_seconds=60) as client:
            sends = [client.send(calls.update_customer_profile(f"p{number}")) for number in range(64)]
            await asyncio.gather(*sends, return_exceptions=True)
            return client.requests

    requests_ = asyncio.run(run())
    assert requests_ > 100
    assert 1 <= len(caplog.records) <= (clock.now - 1000) / 10 + 1
    assert "more of these since the last such line" in caplog.text


def test_giving_up_says_how_often_it_was_tried(send, talon):
    talon.fail_next("status", times=1000, status=500)
    with pytest.raises(TransientError, match=r"Gave up on 127.0.0.1:\d+ after 26 attempt\(s\) in \d+ s"):
        send(calls.update_customer_profile("anna"))


def test_a_slow_answer_times_out_and_is_retried(talon):
    talon.fail_next("slow", seconds=0.5, only="anna")

    async def send_slowly():
        settings = settings_of(talon, timeout=0.3)
        async with open_client(settings, Transport(), AsyncTalonCdpClient) as client:
            await client.send(calls.update_customer_profile("anna", attributes={"n": 1}))
            return client.retries

    assert asyncio.run(send_slowly()) >= 1
    assert talon.profile("anna")["attributes"] == {"n": 1}


def test_an_answer_that_came_while_the_event_loop_was_blocked_is_no_timeout(talon, clock):
    """A storage that stalls blocks it, and a call that runs rules would count as unclear."""
    talon.fail_next("slow", seconds=0.05, times=None)

    async def block():
        await asyncio.sleep(0.04)
        time.sleep(3)  # noqa: ASYNC251 - as the storage does

    async def run():
        async with client_to(talon, clock, timeout=2) as client:
            names = [f"p{number}" for number in range(5)]
            sent = [client.send(calls.update_customer_profile(each, run_rule_engine=True)) for each in names]
            await asyncio.gather(block(), *sent)
            return client.requests

    assert asyncio.run(run()) == 5


def test_a_resolver_that_hangs_has_sent_nothing_and_may_take_the_time_to_connect(talon, clock, monkeypatch):
    """So a call that runs rules is made again."""
    ended = threading.Event()

    def hang(*_args, **_options):
        ended.wait(10)
        raise socket.gaierror

    async def run():
        settings = {"base_url": "https://api.example.com", "timeout": 1, "bulk_retry_seconds": 0}
        async with client_to(talon, clock, **settings) as client:
            began = time.monotonic()
            try:
                with pytest.raises(TransientError, match="timed out") as error:
                    await client.send(calls.update_customer_profile("anna", run_rule_engine=True))
            finally:
                ended.set()
            return error.value, time.monotonic() - began

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    error, seconds = asyncio.run(run())
    assert not error.is_unclear
    # One second to connect, and two in all.
    assert seconds < 1.9


def test_the_wait_for_a_place_among_those_in_flight_is_no_time_to_connect(talon):
    talon.fail_next("slow", seconds=0.2, times=None)

    async def run():
        settings = settings_of(talon, timeout=0.5)
        async with open_client(settings, Transport(), AsyncTalonCdpClient, in_flight=1) as client:
            names = [f"p{number}" for number in range(6)]
            await asyncio.gather(*[client.send(calls.update_customer_profile(name)) for name in names])
            return client.retries

    assert asyncio.run(run()) == 0


def test_a_wrong_key_stops_at_once(send):
    with pytest.raises(AuthenticationError):
        send(calls.update_customer_profile("anna"), api_key="wrong-key")


def test_a_409_after_an_unanswered_create_tells_that_it_may_be_ours(send, talon):
    talon.fail_next("reset_after")
    with pytest.raises(AudienceExistsError, match="may have created") as error:
        send(calls.create_audience("vip", "VIP"))
    assert error.value.repeated


@pytest.mark.parametrize("status, repeated", [(429, False), (502, True)])
def test_a_409_after_another_answer_may_be_ours_if_that_was_unclear(send, talon, status, repeated):
    send(calls.create_audience("vip", "VIP"))
    talon.fail_next("status", status=status)
    with pytest.raises(AudienceExistsError) as error:
        send(calls.create_audience("vip", "VIP"))
    assert error.value.repeated is repeated
    assert ("may have created" in str(error.value)) is repeated


def test_a_409_at_the_first_attempt_does_not_speak_of_earlier_ones(send):
    send(calls.create_audience("vip", "VIP"))
    with pytest.raises(AudienceExistsError) as error:
        send(calls.create_audience("vip", "VIP"))
    assert "may have created" not in str(error.value)


def test_an_answer_200_to_a_membership_update_is_no_success(send, talon):
    send(calls.create_audience("vip", "VIP"))
    with pytest.raises(UnexpectedAnswerError, match="Multi-profile path"):
        send(
            calls.update_customer_profiles_audiences(
                [("anna", [1], [])], audience_id_type="internal", multi_profile_path="singular"
            )
        )
    assert talon.members("vip") == frozenset()


def test_a_refusal_is_not_retried(send, talon):
    talon.fail_next("status", status=400)
    with pytest.raises(RejectedError):
        send(calls.update_customer_profile("anna"))
    assert len(talon.requests()) == 1


def test_an_unreachable_host_is_transient(talon, clock):
    with pytest.raises(TransientError, match="connection refused"):
        asyncio.run(
            _send_all(
                talon, clock, [calls.update_customer_profile("anna")], {"base_url": "http://127.0.0.1:9"}
            )
        )


def test_the_transport_is_what_the_requests_session_would_use(monkeypatch):
    for name in (
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    url = "https://integration.talon.one"
    with requests.Session() as session:
        assert Transport.of(session, url) == Transport(None, True, None)
        session.proxies = {"https": "http://me:secret@proxy:3128"}
        session.verify = "/ca.pem"
        session.cert = ("/cert.pem", "/key.pem")
        transport = Transport.of(session, url)
        assert transport == Transport("http://me:secret@proxy:3128", "/ca.pem", ("/cert.pem", "/key.pem"))
        assert "secret" not in repr(transport)
    with requests.Session() as session:
        monkeypatch.setenv("HTTPS_PROXY", "http://other:3128")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/env.pem")
        assert Transport.of(session, url) == Transport("http://other:3128", "/env.pem", None)
        session.trust_env = False
        assert Transport.of(session, url) == Transport(None, True, None)


def test_a_proxy_that_aiohttp_cannot_speak_to_is_refused():
    with requests.Session() as session:
        session.proxies = {"https": "socks5://proxy:1080"}
        with pytest.raises(InvalidInputError, match="must be a URL such as"):
            Transport.of(session, "https://integration.talon.one")


def test_verify_false_accepts_any_certificate_and_a_folder_of_cas_is_taken(tmp_path):
    lax = Transport(verify=False).ssl_context()
    assert (lax.check_hostname, lax.verify_mode.name) == (False, "CERT_NONE")
    strict = Transport(verify=str(tmp_path)).ssl_context()
    assert (strict.check_hostname, strict.verify_mode.name) == (True, "CERT_REQUIRED")
    assert strict.cert_store_stats()["x509_ca"] == 0
    assert Transport().ssl_context().cert_store_stats()["x509_ca"] > 50
