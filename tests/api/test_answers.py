"""How answers are told apart, by Talon.One's Third-party API reference."""

from __future__ import annotations

import gzip
import html
import json
import ssl
import time
import zlib
from urllib.parse import quote, quote_plus

import pytest
from requests.structures import CaseInsensitiveDict

from airflow_provider_talon_cdp import exceptions
from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.answers import MAX_ANSWER, connection_error, read_answer, tls_error
from airflow_provider_talon_cdp.api.calls import Audience

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
    assert read(PROFILE_AUDIENCES, 200, STATE) == STATE
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
        (MEMBERS, 423, exceptions.TransientError),
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
    error = fail(CREATE, 201, body, {"Content-Length": str(len(body))})
    assert type(error) is exceptions.UnexpectedAnswerError
    assert "Base URL" in str(error)


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("request_, status, content", [(CREATE, 201, AUDIENCE), (PROFILE, 200, STATE)])
def test_a_success_that_is_cut_off_is_no_clear_answer(request_, status, content, is_compressed):
    """Without a length, the end of the connection is the end of the answer."""
    body = json.dumps(content).encode()
    # Without its last 8 bytes, a checksum and the length, a compressed answer can be read.
    sent, end = (gzip.compress(body), -9) if is_compressed else (body, -1)
    for length in range(len(sent[:end])):
        headers = {"Content-Encoding": "gzip"} if is_compressed else {}
        error = fail(request_, status, sent[:length], headers)
        assert type(error) is exceptions.TransientError
        assert error.is_unclear
        assert error.reason == "the answer was cut off"
        assert "Base URL" in str(error)
    complete = {"Content-Length": str(len(body) - 1)}
    assert type(fail(request_, status, body[:-1], complete)) is exceptions.UnexpectedAnswerError


@pytest.mark.parametrize(
    "body", [{}, {"status": "ok"}, {"effects": None}, {"effects": {}}, {**CDP_ERROR, "StatusCode": 400}]
)
@pytest.mark.parametrize("request_", [PROFILE, PROFILE_AUDIENCES])
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
    said = "profile anna.k@example.com: City 'Zürich' is wrong, Age 41 too, see "
    said += "/cdp/customer_profile/anna.k%40example.com"
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


ODD = "Zoë O'Brien <z@x.de>/& ü+1"


@pytest.mark.parametrize(
    "spelled",
    [
        ODD,
        ODD.upper(),
        quote(ODD),
        quote(ODD, safe="").lower(),
        quote_plus(ODD),
        "Zo%C3%AB%20O'Brien%20%3Cz%40x.de%3E%2F%26%20%C3%BC%2B1",
        "Zo%C3%AB%20O%27Brien%20%3Cz@x.de%3E%2F&%20%C3%BC+1",
        html.escape(ODD),
        html.escape(ODD).replace("&#x27;", "&#39;"),
        json.dumps(ODD)[1:-1],
        r"Zoë O'Brien \u003cz@x.de\u003e/\u0026 ü+1",
    ],
)
def test_what_was_sent_is_masked_however_it_is_spelled(spelled):
    said = {**CDP_ERROR, "Error": f"profile {spelled} is wrong"}
    assert "It says: profile *** is wrong" in str(fail(calls.update_customer_profile(ODD), 400, said))
    of_value = calls.update_customer_profile("a", attributes={"Name": ODD})
    assert "It says: profile *** is wrong" in str(fail(of_value, 400, said))


@pytest.mark.parametrize("sent", ["İstanbul", "KİRAZ-7", "x" * 300_000, "a b " * 100_000])
def test_what_was_sent_is_masked_whatever_its_characters_and_its_length(sent):
    request = calls.update_customer_profile("anna", attributes={"City": sent})
    assert "It says: too long: ***" in str(fail(request, 400, {**CDP_ERROR, "Error": f"too long: {sent}"}))


def test_a_plain_word_hides_no_word_of_talon_one_in_another_case():
    request = calls.update_customer_profile("anna", attributes={"Gender": "Unknown", "Country": "NOT"})
    said = {**CDP_ERROR, "Error": "unknown attribute: Tier is not defined, value Unknown"}
    assert "It says: unknown attribute: Tier is not defined, value ***" in str(fail(request, 400, said))


@pytest.mark.parametrize(
    "number, printed",
    [(1500000, "1.5e+06"), (-0.0000012, "-1.2e-06"), (123456789.25, "1.2345678925e+08"), (41, "41")],
)
def test_a_number_is_masked_as_go_prints_it(number, printed):
    request = calls.update_customer_profile("anna", attributes={"n": number})
    assert "It says: bad *** here" in str(fail(request, 400, {**CDP_ERROR, "Error": f"bad {printed} here"}))


@pytest.mark.parametrize("piece", ["a", "1", "a1", "'a", "'a' ", "a@", "+", "'a 1"])
@pytest.mark.parametrize("request_", [PROFILE, MEMBERS])
def test_a_long_text_takes_no_quadratic_time(request_, piece):
    began = time.process_time()
    fail(request_, 500, {"message": piece * (100_000 // len(piece))})
    assert time.process_time() - began < 5


@pytest.mark.parametrize("end", [0, 1, 500])
def test_a_part_of_an_id_at_the_end_of_what_is_read_is_not_shown(end):
    request = calls.update_customer_profile("Z" * 1000)
    said = "." * end + ("Z" * 1000 + ",") * 900
    assert "Z" not in str(fail(request, 400, {"StatusCode": 400, "Error": said})).partition("says")[2]


def test_a_long_error_text_is_cut():
    assert len(str(fail(MEMBERS, 400, {**CDP_ERROR, "Error": "word " * 1000}))) < 700


OTHERS = "bob@example.com"


@pytest.mark.parametrize(
    "said, shown",
    [
        ("profile 'bobby' has no account", "profile '***' has no account"),
        ('bad entries: "bobby", "lizzie"', 'bad entries: "***", "***"'),
        (f"conflict with {OTHERS}.", "conflict with ***"),
        ("conflict with p4711 and 123456", "conflict with *** and ***"),
        ("a body of 2 MB is over the limit of 1000", "a body of 2 MB is over the limit of 1000"),
        ("this can't work, and won't", "this can't work, and won't"),
    ],
)
def test_ids_of_other_records_that_an_answer_to_many_quotes_are_masked(said, shown):
    text = str(fail(MEMBERS, 400, {**CDP_ERROR, "Error": said}))
    assert f"It says: {shown}" in text


def test_an_answer_to_one_profile_keeps_its_words_but_no_email():
    said = f"attribute 'Language' is unknown; profile {OTHERS} too"
    text = str(fail(PROFILE, 400, {**CDP_ERROR, "Error": said}))
    assert "attribute 'Language' is unknown; profile *** too" in text


@pytest.mark.parametrize(
    "source, shown",
    [
        ({"parameter": "skipNonExistingAttributes"}, "at parameter skipNonExistingAttributes"),
        ({"line": 7}, "at line 7"),
        ({"resource": "audience"}, "at resource audience"),
        ({}, "Wrong: see the docs."),
    ],
)
def test_an_error_says_where_its_source_is(source, shown):
    error = fail(
        PROFILE, 400, {"errors": [{"title": "Wrong:", "details": "see the docs.", "source": source}]}
    )
    assert shown in str(error)
    assert error.blames == ()


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_5xx_names_the_deployment_host_as_the_likeliest_cause(status):
    assert "Check Deployment host on the connection first" in str(fail(MEMBERS, status, CDP_ERROR))


@pytest.mark.parametrize("body", [b"", json.dumps(CDP_ERROR).encode()])
@pytest.mark.parametrize("request_", [CREATE, PROFILE, MEMBERS, calls.delete_audience("vip")])
def test_a_404_names_the_deployment_host_as_the_likeliest_cause(request_, body):
    text = str(fail(request_, 404, body))
    assert "Deployment host" in text
    assert "most likely" in text


@pytest.mark.parametrize(
    "said",
    ["The plain HTTP request was sent to HTTPS port", "Client sent an HTTP request to an HTTPS server."],
)
def test_a_server_that_wants_tls_is_told_as_such(said):
    error = fail(MEMBERS, 400, said.encode())
    assert type(error) is exceptions.FatalError
    assert "Write https:// in Base URL" in str(error)


@pytest.mark.parametrize("status", [408, 409, 423, 425, 429, 500, 503, 599])
def test_only_an_error_of_the_server_leaves_open_whether_the_call_had_its_effect(status):
    error = fail(MEMBERS, status)
    assert type(error) is exceptions.TransientError
    assert error.is_unclear is (status >= 500)


@pytest.mark.parametrize("sent", [True, False])
def test_a_call_without_an_answer_may_have_had_its_effect_if_it_was_sent(sent):
    assert connection_error(MEMBERS, TLS_URL, "timed out", sent=sent).is_unclear is sent


@pytest.mark.parametrize(
    "request_, status, body, unclear",
    [
        (MEMBERS, 200, STATE, False),
        (MEMBERS, 200, b"<html>", False),
        (MEMBERS, 200, b"", True),
        (MEMBERS, 302, b"", False),
        (MEMBERS, 404, b"nginx", False),
        (PROFILE, 202, b"", True),
        (PROFILE, 200, b"<html>", True),
    ],
)
def test_an_answer_from_elsewhere_shows_that_the_call_had_no_effect(request_, status, body, unclear):
    assert fail(request_, status, body).is_unclear is unclear


@pytest.mark.parametrize(
    "encoding, compress",
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body, wbits=-15)),
        ("", lambda body: body),
        ("identity", lambda body: body),
    ],
)
def test_a_compressed_answer_is_read(encoding, compress):
    body = compress(json.dumps(AUDIENCE).encode())
    assert read(CREATE, 201, body, {"content-encoding": encoding}).id == 12


def test_a_small_answer_that_becomes_huge_is_read_in_part():
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    error = fail(CREATE, 201, bomb, {"Content-Encoding": "gzip"})
    assert type(error) is exceptions.UnexpectedAnswerError
    assert len(error.body) == MAX_ANSWER
    assert "1,000,000 bytes were read" in str(error)


def test_a_broken_compression_is_an_answer_that_says_nothing():
    headers = {"Content-Encoding": "gzip", "Content-Length": "4"}
    assert type(fail(CREATE, 201, b"abcd", headers)) is exceptions.UnexpectedAnswerError


TLS_URL = "https://api.example.com"


def tls(cause):
    return str(tls_error(calls.delete_audience("vip"), TLS_URL, cause))


@pytest.mark.parametrize(
    "reason, over_certificates",
    [
        ("CERTIFICATE_VERIFY_FAILED", True),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("WRONG_VERSION_NUMBER", False),
        ("TLSV1_ALERT_PROTOCOL_VERSION", False),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", False),
        (None, False),
    ],
)
def test_certificates_are_blamed_for_their_own_errors_alone(reason, over_certificates):
    cause = ssl.SSLError()
    cause.reason = reason
    text = tls(cause)
    assert ("certificate was not accepted" in text) is over_certificates
    assert ("http://" in text) is not over_certificates
    assert (reason or "no reason") in text


@pytest.mark.parametrize(
    "code, says, cure",
    [
        (9, "is not valid yet", "clock"),
        (10, "has expired", "renew"),
        (18, "signed by an authority that this worker does not know", "'verify'"),
        (19, "signed by an authority that this worker does not know", "'verify'"),
        (20, "signed by an authority that this worker does not know", "'verify'"),
        (62, "is for another host name", "Base URL"),
        (64, "is for another IP address", "Base URL"),
    ],
)
def test_what_is_wrong_with_the_servers_certificate_is_said(code, says, cure):
    cause = ssl.SSLCertVerificationError()
    cause.reason, cause.verify_code = "CERTIFICATE_VERIFY_FAILED", code
    assert says in tls(cause)
    assert "TLS certificate of api.example.com" in tls(cause)
    assert cure in tls(cause)


@pytest.mark.parametrize(
    "cause, words",
    [
        (TimeoutError(), "timed out"),
        (ConnectionRefusedError(), "connection refused"),
        (ConnectionResetError(), "connection reset"),
        (EOFError(), "EOFError"),
    ],
)
def test_a_missing_answer_is_told_in_plain_words(cause, words):
    error = connection_error(MEMBERS, TLS_URL, cause, sent=True)
    assert error.reason == f"no answer ({words})"  # type: ignore[attr-defined]
    assert f"no answer ({words}).\nTalon.One was called at {TLS_URL}." in str(error)


def test_every_line_of_an_error_fits_on_the_screen():
    """Airflow's UI does not wrap lines; what the vendor says may be longer."""
    answers = [400, 401, 403, 404, 405, 407, 409, 429, 500, 503, 302, 202]
    errors = [fail(each, status, CDP_ERROR) for each in (CREATE, PROFILE, MEMBERS) for status in answers]
    errors += [fail(each, 404) for each in (CREATE, PROFILE, MEMBERS)]
    errors.append(connection_error(MEMBERS, "http://localhost:8080", "timed out", sent=True))
    errors.append(tls_error(MEMBERS, TLS_URL, None))
    lines = [line for error in errors for line in str(error).splitlines()]
    assert [line for line in lines if len(line) > 105] == []
