"""The client for single calls; requests-mock stands in for the wire, a list for the clock."""

from __future__ import annotations

import logging

import pytest
import requests
from requests_mock import ANY

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.client import TalonCdpClient
from airflow_provider_talon_cdp.api.settings import Settings
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    FatalError,
    InvalidInputError,
    NotFoundError,
    RequestError,
    TransientError,
    UnclearError,
    UnexpectedAnswerError,
)

URL = "https://integration.talon.one"
AUDIENCE = {"id": 1, "integrationId": "vip", "name": "VIP"}


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self):
        self.now = 1000.0
        self.sleeps = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(clock):
    settings = Settings(api_key="0123456789abcdef", deployment_host="my.talon.one", timeout=7)
    with requests.Session() as session:
        yield TalonCdpClient(settings, session, clock=clock, sleep=clock.sleep, jitter=lambda: 1.0)


def test_a_call_carries_the_connections_headers_and_a_timeout(client, requests_mock):
    sent = requests_mock.post(f"{URL}/cdp/audiences", status_code=201, json=AUDIENCE)
    assert client.send(calls.create_audience("vip", "VIP")).id == 1
    assert sent.last_request.headers["Authorization"] == "ApiKey-v1 0123456789abcdef"
    assert sent.last_request.headers["destination-hostname"] == "my.talon.one"
    assert sent.last_request.headers["customer-data-platform-name"] == "Apache Airflow"
    assert sent.last_request.headers["Content-Type"] == "application/json"
    assert sent.last_request.timeout == (7, 7)


def test_redirects_are_not_followed(client, requests_mock):
    requests_mock.delete(
        f"{URL}/cdp/audiences/vip", status_code=307, headers={"Location": "https://evil.example/"}
    )
    elsewhere = requests_mock.delete("https://evil.example/", status_code=204)
    with pytest.raises(UnexpectedAnswerError, match="Redirects are not followed"):
        client.send(calls.delete_audience("vip"))
    assert not elsewhere.called


@pytest.mark.parametrize(
    "odd, segment", [("...", "..."), ("a/../b", "a%2F..%2Fb"), ("~%41", "~%2541"), ("a b", "a%20b")]
)
def test_an_id_stays_in_its_segment_as_it_was_encoded(client, requests_mock, odd, segment):
    sent = requests_mock.delete(ANY, status_code=204)
    client.send(calls.delete_audience(odd))
    assert sent.last_request.url == f"{URL}/cdp/audiences/{segment}"


def test_transient_failures_are_retried_with_growing_waits(client, clock, requests_mock, caplog):
    answers = [{"status_code": 503}, {"exc": requests.ConnectTimeout}, {"exc": requests.ConnectionError}]
    requests_mock.put(f"{URL}/cdp/audiences/vip", [*answers, {"status_code": 200, "json": AUDIENCE}])
    assert client.send(calls.update_audience("vip", "VIP")).name == "VIP"
    assert clock.sleeps == [0.5, 1.0, 2.0]
    # A 503, then two kinds of silence.
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "Attempt 2 in 0.5 s" in caplog.text


def test_the_same_failure_is_logged_once_in_ten_seconds_with_a_count(client, requests_mock, caplog):
    requests_mock.put(f"{URL}/cdp/audiences/vip", status_code=503)
    with pytest.raises(TransientError):
        client.send(calls.update_audience("vip", "VIP"))
    # Attempts at 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 and 60 s.
    assert [record.getMessage().partition("Attempt ")[2] for record in caplog.records] == [
        "2 in 0.5 s.",
        "7 in 16.0 s. (4 more of these since the last such line.)",
        "8 in 28.5 s.",
    ]


def test_retry_after_is_obeyed(client, clock, requests_mock):
    busy = {"status_code": 429, "headers": {"Retry-After": "11"}}
    requests_mock.delete(f"{URL}/cdp/audiences/vip", [busy, {"status_code": 204}])
    client.send(calls.delete_audience("vip"))
    assert clock.sleeps == [11.5]


def test_giving_up_says_how_often_it_was_tried(client, clock, requests_mock):
    requests_mock.delete(f"{URL}/cdp/audiences/vip", status_code=500)
    with pytest.raises(
        TransientError, match=r"Gave up on integration.talon.one after 8 attempt\(s\) in 60 s"
    ):
        client.send(calls.delete_audience("vip"))
    assert clock.sleeps == [0.5, 1, 2, 4, 8, 16, 28.5]


def test_a_wrong_key_is_not_retried(client, clock, requests_mock):
    sent = requests_mock.delete(f"{URL}/cdp/audiences/vip", status_code=401)
    with pytest.raises(AuthenticationError, match="expired"):
        client.send(calls.delete_audience("vip"))
    assert (sent.call_count, clock.sleeps) == (1, [])


@pytest.mark.parametrize(
    "first", [{"exc": requests.ReadTimeout}, {"exc": requests.ConnectionError}, {"status_code": 503}]
)
def test_a_409_after_an_unanswered_create_tells_that_it_may_be_ours(client, requests_mock, first):
    requests_mock.post(f"{URL}/cdp/audiences", [first, {"status_code": 409}])
    with pytest.raises(AudienceExistsError, match="may have created") as error:
        client.send(calls.create_audience("vip", "VIP"))
    assert error.value.repeated


@pytest.mark.parametrize(
    "first",
    [{"status_code": 429}, {"status_code": 425}, {"status_code": 408}, {"exc": requests.ConnectTimeout}],
)
def test_a_409_after_an_attempt_that_did_nothing_is_not_ours(client, requests_mock, first):
    requests_mock.post(f"{URL}/cdp/audiences", [first, {"status_code": 409}])
    with pytest.raises(AudienceExistsError) as error:
        client.send(calls.create_audience("vip", "VIP"))
    assert not error.value.repeated
    assert "may have created" not in str(error.value)


def test_one_unclear_attempt_among_others_is_remembered(client, requests_mock):
    missing = {"status_code": 404, "json": {"Error": "no such audience"}}
    answers = [{"status_code": 500}, {"status_code": 429}, missing]
    requests_mock.delete(f"{URL}/cdp/audiences/vip", answers)
    with pytest.raises(NotFoundError, match="may have deleted"):
        client.send(calls.delete_audience("vip"))


def test_a_409_at_the_first_attempt_does_not_speak_of_earlier_ones(client, requests_mock):
    requests_mock.post(f"{URL}/cdp/audiences", status_code=409)
    with pytest.raises(AudienceExistsError) as error:
        client.send(calls.create_audience("vip", "VIP"))
    assert "may have created" not in str(error.value)


@pytest.mark.parametrize(
    "cause, kind, says",
    [
        (requests.exceptions.SSLError("bad"), FatalError, "TLS"),
        (requests.exceptions.InvalidSchema("socks"), InvalidInputError, "proxy"),
    ],
)
def test_what_waiting_cannot_mend_is_not_retried(client, clock, requests_mock, cause, kind, says):
    requests_mock.delete(f"{URL}/cdp/audiences/vip", exc=cause)
    with pytest.raises(kind, match=says):
        client.send(calls.delete_audience("vip"))
    assert clock.sleeps == []


def test_a_client_without_a_session_makes_its_own(requests_mock):
    requests_mock.delete(f"{URL}/cdp/audiences/vip", status_code=204)
    client = TalonCdpClient(Settings(api_key="0123456789abcdef", deployment_host="my.talon.one"))
    client.send(calls.delete_audience("vip"))


RULES = calls.update_customer_profile("anna", run_rule_engine=True)
STATE = {"effects": [{}], "createdCoupons": [], "createdReferrals": []}
PROFILE = f"{URL}/cdp/customer_profile/anna"
UNCLEAR = [
    {"exc": requests.ReadTimeout},
    {"exc": requests.ConnectionError},
    {"status_code": 500},
    {"status_code": 503},
]


@pytest.mark.parametrize("first", UNCLEAR, ids=str)
@pytest.mark.parametrize(
    "request_", [RULES, calls.update_customer_profile_audiences("anna", add_audiences=["vip"])]
)
def test_a_call_that_runs_rules_is_not_repeated_after_an_unclear_answer(
    client, clock, requests_mock, first, request_
):
    sent = requests_mock.put(ANY, [first, {"json": STATE}])
    with pytest.raises(UnclearError, match="The rules may have run") as error:
        client.send(request_)
    assert (sent.call_count, clock.sleeps) == (1, [])
    assert error.value.is_unclear
    assert not error.value.retryable
    assert 'on_unclear="retry"' in str(error.value)
    assert error.value.status == first.get("status_code")


def test_an_unclear_answer_tells_its_request_uuid(client, requests_mock):
    requests_mock.put(PROFILE, status_code=500, json={"RequestUUID": "uuid-1"})
    with pytest.raises(UnclearError, match=r"\nRequestUUID uuid-1\.$"):
        client.send(RULES)


@pytest.mark.parametrize("first", UNCLEAR, ids=str)
def test_a_call_that_runs_rules_is_repeated_if_that_was_asked_for_and_says_so(client, requests_mock, first):
    sent = requests_mock.put(PROFILE, [first, {"status_code": 429}, {"json": STATE}])
    state = client.send(RULES, on_unclear="retry")
    assert (state, sent.call_count) == (STATE, 3)
    assert state.may_have_run_twice


@pytest.mark.parametrize(
    "first", [{"status_code": 429}, {"status_code": 409}, {"exc": requests.ConnectTimeout}]
)
def test_what_surely_ran_no_rules_is_retried(client, requests_mock, first):
    sent = requests_mock.put(PROFILE, [first, {"json": STATE}])
    state = client.send(RULES)
    assert sent.call_count == 2
    assert not state.may_have_run_twice


def test_an_unclear_answer_after_a_clear_failure_ends_the_attempts_too(client, requests_mock):
    sent = requests_mock.put(PROFILE, [{"status_code": 429}, {"status_code": 502}, {"json": STATE}])
    with pytest.raises(UnclearError):
        client.send(RULES)
    assert sent.call_count == 2


def test_the_last_error_of_a_repeated_call_says_that_rules_may_have_run(client, requests_mock):
    requests_mock.put(PROFILE, [{"status_code": 502}, {"status_code": 400}])
    with pytest.raises(RequestError, match="runs rules, and they may have run") as error:
        client.send(RULES, on_unclear="retry")
    assert error.value.repeated


def test_a_page_in_place_of_a_state_says_that_rules_may_have_run(client, requests_mock):
    requests_mock.put(PROFILE, text="<html>")
    with pytest.raises(UnexpectedAnswerError, match="runs rules, and they may have run"):
        client.send(RULES)


def test_a_call_without_rules_is_repeated_and_has_run_nothing_twice(client, requests_mock):
    requests_mock.put(PROFILE, [{"status_code": 502}, {"json": STATE}])
    assert not client.send(calls.update_customer_profile("anna")).may_have_run_twice
