"""How answers are told apart, by Talon.One's Third-party API reference."""

from __future__ import annotations

import json

import pytest
from requests.structures import CaseInsensitiveDict

from airflow_provider_talon_cdp import exceptions
from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.answers import read_answer
from airflow_provider_talon_cdp.api.request import Audience

CREATE = calls.create_audience("vip", "VIP")
PROFILE = calls.update_customer_profile("anna.k@example.com", attributes={"City": "Zürich", "Age": 41})
MEMBERS = calls.update_customer_profiles_audiences([("anna.k@example.com", ["vip"], [])])
AUDIENCE = {
    "id": 12,
    "created": "2026-01-01T00:00:00Z",
    "accountId": 3,
    "name": "VIP",
    "integration": "mine",
    "integrationId": "vip",
}
STATE = {"effects": [], "createdCoupons": [], "createdReferrals": []}
CDP_ERROR = {"StatusCode": 400, "Error": "Something is off", "RequestUUID": "fd2f7c55-0000"}
DEPLOYMENT_ERROR = {
    "message": "Invalid request",
    "errors": [
        {
            "title": "Unknown attribute",
            "details": "Language is not defined",
            "source": {"pointer": "/attributes/Language"},
        }
    ],
}


def read(request, status, body=b"", headers=None, secret=""):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(request, status, CaseInsensitiveDict(headers or {}), content, now=0.0, secret=secret)


def fail(request, status, body=b"", headers=None, secret=""):
    with pytest.raises(exceptions.RequestError) as failure:
        read(request, status, body, headers, secret)
    return failure.value


def test_the_documented_successes_are_read():
    audience = Audience(12, "vip", "VIP", "mine", "2026-01-01T00:00:00Z", 3)
    assert read(CREATE, 201, AUDIENCE) == audience
    assert read(calls.update_audience("vip", "VIP"), 200, AUDIENCE) == audience
    assert read(calls.delete_audience("vip"), 204) is None
    assert read(PROFILE, 200, STATE) == STATE
    assert read(calls.update_customer_profile_audiences("anna"), 200, STATE) == STATE
    assert read(MEMBERS, 204) is None


def test_an_answer_may_repeat_a_number_beyond_a_double():
    body = b'{"effects": [], "customerProfile": {"attributes": {"Score": 1e400}}}'
    assert read(PROFILE, 200, body)["effects"] == []


@pytest.mark.parametrize(
    "request_, status, kind",
    [
        (PROFILE, 400, exceptions.RejectedError),
        (PROFILE, 405, exceptions.RejectedError),
        (PROFILE, 401, exceptions.AuthenticationError),
        (PROFILE, 403, exceptions.AuthenticationError),
        (PROFILE, 404, exceptions.NotFoundError),
        (PROFILE, 407, exceptions.FatalError),
        (CREATE, 409, exceptions.AudienceExistsError),
        (PROFILE, 408, exceptions.TransientError),
        (PROFILE, 409, exceptions.TransientError),
        (MEMBERS, 409, exceptions.TransientError),
        (MEMBERS, 429, exceptions.TransientError),
        (MEMBERS, 500, exceptions.TransientError),
        (MEMBERS, 503, exceptions.TransientError),
        (MEMBERS, 599, exceptions.TransientError),
        (MEMBERS, 302, exceptions.UnexpectedAnswerError),
        (CREATE, 200, exceptions.UnexpectedAnswerError),
        (calls.delete_audience("vip"), 202, exceptions.UnexpectedAnswerError),
    ],
)
def test_each_status_is_the_error_that_says_what_to_do(request_, status, kind):
    error = fail(request_, status, CDP_ERROR)
    assert type(error) is kind
    assert (error.status, error.request_uuid) == (status, "fd2f7c55-0000")
    assert error.method == request_.method
    assert error.path == request_.path
    assert json.loads(error.body) == CDP_ERROR
    assert "Something is off" in str(error)
    assert "RequestUUID fd2f7c55-0000" in str(error)


@pytest.mark.parametrize("status", [200, 201, 202])
def test_a_membership_update_succeeds_with_204_alone(status):
    error = fail(MEMBERS, status, STATE)
    assert type(error) is exceptions.UnexpectedAnswerError
    assert "Multi-profile path" in str(error)


def test_the_deployments_error_shape_names_the_attribute():
    error = fail(PROFILE, 400, DEPLOYMENT_ERROR)
    assert [each.pointer for each in error.blames] == ["/attributes/Language"]
    assert "Language is not defined at /attributes/Language" in str(error)
    assert error.request_uuid is None


def test_a_400_that_blames_the_connection_stops_the_run():
    error = fail(
        MEMBERS, 400, {"StatusCode": 400, "Error": "No Deployment URL specified", "RequestUUID": "u"}
    )
    assert type(error) is exceptions.FatalError
    assert "Deployment host" in str(error)


@pytest.mark.parametrize(
    "request_, said",
    [
        (
            calls.update_customer_profiles_audiences([("deployment-7", ["vip"], []), ("a", ["vip"], [])]),
            "invalid customerProfileId deployment-7",
        ),
        (
            calls.update_customer_profile("anna", attributes={"Job": "Deployment lead"}),
            "'Deployment lead' is too long",
        ),
    ],
)
def test_a_400_that_quotes_a_record_with_a_word_of_the_connections_is_about_the_record(request_, said):
    assert type(fail(request_, 400, {**CDP_ERROR, "Error": said})) is exceptions.RejectedError


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[1]",
        b"null",
        b"{",
        b'{"errors": 5}',
        b'{"errors": [5, {"source": 5}]}',
        b"[" * 100_000,
        b'{"RequestUUID": 5}',
    ],
)
def test_an_error_body_of_any_shape_is_kept_and_never_breaks_the_reader(body):
    error = fail(MEMBERS, 503, body)
    assert type(error) is exceptions.TransientError
    assert error.body == body.decode(errors="replace")


PROFILE_AUDIENCES = calls.update_customer_profile_audiences("anna", add_audiences=["vip"])


@pytest.mark.parametrize(
    "request_, audience, spelling",
    [
        (CREATE, False, False),
        (PROFILE, False, False),
        (calls.update_customer_profiles_audiences([]), False, True),
        (MEMBERS, True, True),
        (PROFILE_AUDIENCES, True, False),
        (calls.update_audience("vip", "VIP"), True, False),
        (calls.delete_audience("vip"), True, False),
    ],
)
def test_a_404_names_what_may_be_wrong_with_that_call(request_, audience, spelling):
    text = str(fail(request_, 404, CDP_ERROR))
    assert "Base URL" in text
    assert ("audience does not exist" in text) is audience
    assert ("Multi-profile path" in text) is spelling


def test_a_409_to_create_says_how_to_keep_the_audience():
    text = str(fail(CREATE, 409, {**CDP_ERROR, "Error": "An audience with this ID exists already"}))
    assert text.count("exists already") == 1
    assert 'if_exists="skip" or "update"' in text


@pytest.mark.parametrize("body", [b"", b"<html>nginx</html>", b"404 page not found", b"[]"])
@pytest.mark.parametrize("request_", [calls.delete_audience("vip"), MEMBERS, PROFILE])
def test_a_404_that_is_no_json_object_does_not_say_that_an_audience_is_missing(request_, body):
    error = fail(request_, 404, body)
    assert type(error) is exceptions.UnexpectedAnswerError
    assert "Base URL" in str(error)
    assert ("Multi-profile path" in str(error)) is (request_ is MEMBERS)


def test_an_html_page_is_called_one():
    assert "an HTML page" in str(fail(MEMBERS, 502, b"\n<html>Bad gateway</html>"))


@pytest.mark.parametrize("body", [b"<html>login</html>", b"", b"[]", b'{"name": "VIP"}', b'{"id": "12"}'])
def test_a_success_without_the_documented_content_is_no_success(body):
    error = fail(CREATE, 201, body)
    assert type(error) is exceptions.UnexpectedAnswerError
    assert "Base URL" in str(error)


@pytest.mark.parametrize(
    "body", [{}, {"status": "ok"}, {"effects": None}, {"effects": {}}, {**CDP_ERROR, "StatusCode": 400}]
)
@pytest.mark.parametrize("request_", [PROFILE, calls.update_customer_profile_audiences("anna")])
def test_a_200_without_an_integration_state_is_no_success(request_, body):
    error = fail(request_, 200, body)
    assert type(error) is exceptions.UnexpectedAnswerError
    assert "Base URL" in str(error)


@pytest.mark.parametrize(
    "header, seconds", [("7", 7.0), ("Thu, 01 Jan 1970 00:00:09 GMT", 9.0), ("soon", None), (None, None)]
)
def test_retry_after_is_kept_on_the_error(header, seconds):
    assert fail(MEMBERS, 429, CDP_ERROR, {"retry-after": header} if header else {}).retry_after == seconds


def test_what_was_sent_is_masked_where_talon_one_quotes_it():
    said = "profile anna.k@example.com: City 'Zürich' is wrong, Age 41 too, see /cdp/customer_profile/anna.k%40example.com"
    text = str(fail(PROFILE, 400, {**CDP_ERROR, "Error": said}))
    assert "anna" not in text
    assert "Zürich" not in text
    assert "41" not in text
    assert "City '***' is wrong" in text


@pytest.mark.parametrize(
    "key, quoted",
    [
        ("abc/def+12345=", rb"abc/def+12345="),
        ("abc/def+12345=", rb"abc\/def+12345="),
        ("abc/def+12345=", rb"abc/def\u002b12345\u003D"),
        ("abc/def+12345=", rb"{\"key\": \"abc\\/def\\u002b12345=\"}"),
        ('a"b\\c&d', rb"a\"b\\c\u0026d"),
        ("abcdef12345", rb"\u0061bcdef12345"),
    ],
)
def test_the_key_is_masked_however_the_answer_spells_it(key, quoted):
    error = fail(MEMBERS, 400, b'{"Error": "bad key %b, sorry"}' % quoted, secret=key)
    for text in (str(error), error.body, json.loads(error.body)["Error"]):
        assert "***" in text
        assert "def" not in text
        assert key not in text
        assert "sorry" in text


def test_a_long_error_text_is_cut():
    assert len(str(fail(MEMBERS, 400, {**CDP_ERROR, "Error": "word " * 1000}))) < 700
