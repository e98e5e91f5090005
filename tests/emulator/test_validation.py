"""What is refused before anything happens: headers, lengths, types, limits."""

import json

import pytest

from airflow_provider_talon_cdp.emulator.answers import RefusedError
from airflow_provider_talon_cdp.emulator.routes import (
    CREATE_AUDIENCE,
    DELETE_AUDIENCE,
    UPDATE_AUDIENCE,
    UPDATE_PROFILE,
    UPDATE_PROFILE_AUDIENCES,
    UPDATE_PROFILES_EXTERNAL,
    UPDATE_PROFILES_INTERNAL,
    Route,
)
from airflow_provider_talon_cdp.emulator.validation import Change, check_headers, read_call

GOOD = {
    "authorization": "ApiKey-v1 key",
    "customer-data-platform-name": "x",
    "destination-hostname": "a.talon.one",
}
LONG = "x" * 1001


def read(operation, data, path_id="", skip=(), content_type="application/json"):
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return read_call(Route(operation, path_id), skip, content_type, body)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("authorization", "", 401),
        ("authorization", "key", 401),
        ("authorization", "ApiKey-v1", 401),
        ("authorization", "ApiKey-v1 ", 401),
        ("authorization", "ApiKey-v1  key", 401),
        ("authorization", "ApiKey-v1 kez", 401),
        ("authorization", "ApiKey-v1 keyé", 401),
        ("authorization", "apikey-v1 key", 401),
        ("authorization", "Bearer key", 401),
        ("customer-data-platform-name", "", 400),
        ("customer-data-platform-name", " ", 400),
        ("destination-hostname", "", 400),
        ("destination-hostname", "https://a.talon.one", 400),
        ("destination-hostname", "a.talon.one/", 400),
        ("destination-hostname", "a.talon.one/path", 400),
        ("destination-hostname", "b.talon.one", 400),
        ("destination-hostname", "a b", 400),
    ],
)
def test_a_wrong_header_is_refused(header, value, status):
    with pytest.raises(RefusedError) as caught:
        check_headers({**GOOD, header: value}, "key", "a.talon.one")
    assert caught.value.status == status


def test_good_headers_pass():
    check_headers(GOOD, "key", "A.talon.one")
    check_headers(
        {**GOOD, "authorization": "ApiKey-v1 other", "destination-hostname": "b.c:8080"}, None, None
    )


def test_the_missing_deployment_has_the_words_of_the_contract():
    with pytest.raises(RefusedError, match=r"^No Deployment URL specified$"):
        check_headers({**GOOD, "destination-hostname": ""}, None, None)


def test_the_key_is_looked_at_first():
    with pytest.raises(RefusedError) as caught:
        check_headers({}, None, None)
    assert caught.value.status == 401


@pytest.mark.parametrize(
    ("operation", "data", "path_id"),
    [
        (CREATE_AUDIENCE, b"", ""),
        (CREATE_AUDIENCE, b"{}x", ""),
        (CREATE_AUDIENCE, [], ""),
        (CREATE_AUDIENCE, {}, ""),
        (CREATE_AUDIENCE, {"audienceId": "a"}, ""),
        (CREATE_AUDIENCE, {"audienceId": "", "audienceName": "n"}, ""),
        (CREATE_AUDIENCE, {"audienceId": LONG, "audienceName": "n"}, ""),
        (CREATE_AUDIENCE, {"audienceId": 1, "audienceName": "n"}, ""),
        (CREATE_AUDIENCE, {"audienceId": "a", "audienceName": None}, ""),
        (UPDATE_AUDIENCE, {"audienceName": "n"}, "a"),
        (UPDATE_AUDIENCE, {"audienceId": "b", "audienceName": "n"}, "a"),
        (DELETE_AUDIENCE, b"", ""),
        (DELETE_AUDIENCE, b"", LONG),
        (UPDATE_PROFILE, {}, ""),
        (UPDATE_PROFILE, {}, LONG),
        (UPDATE_PROFILE, {"attributes": []}, "p"),
        (UPDATE_PROFILE, {"attributes": None}, "p"),
        (UPDATE_PROFILE, {"runRuleEngine": "true"}, "p"),
        (UPDATE_PROFILE, {"runRuleEngine": 1}, "p"),
        (UPDATE_PROFILE, {"audiencesChanges": []}, "p"),
        (UPDATE_PROFILE, {"audiencesChanges": {"adds": ["a"]}}, "p"),
        (UPDATE_PROFILE, {"audiencesChanges": {"adds": [True]}}, "p"),
        (UPDATE_PROFILE, {"audiencesChanges": {"adds": [1.0]}}, "p"),
        (UPDATE_PROFILE, {"audiencesChanges": {"adds": [1], "deletes": [1]}}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {"data": []}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {"data": {"adds": "a"}}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {"data": {"adds": [""]}}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {"data": {"adds": [LONG]}}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {"data": {"adds": [1]}}, "p"),
        (UPDATE_PROFILE_AUDIENCES, {"data": {"adds": ["a"] * 501, "deletes": ["b"] * 500}}, "p"),
        (UPDATE_PROFILES_EXTERNAL, {}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": {}}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": [1]}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": [{}]}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": [{"customerProfileId": 7}]}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": [{"customerProfileId": ""}]}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": [{"customerProfileId": LONG}]}, ""),
        (UPDATE_PROFILES_EXTERNAL, {"data": [{"customerProfileId": "p", "adds": None}]}, ""),
        (UPDATE_PROFILES_INTERNAL, {"data": [{"customerProfileId": "p", "adds": ["a"]}]}, ""),
        (
            UPDATE_PROFILES_EXTERNAL,
            {
                "data": [
                    {"customerProfileId": "p", "adds": ["a"]},
                    {"customerProfileId": "p", "deletes": ["a"]},
                ]
            },
            "",
        ),
    ],
)
def test_a_body_or_an_id_outside_the_contract_is_a_400(operation, data, path_id):
    with pytest.raises(RefusedError) as caught:
        read(operation, data, path_id)
    assert caught.value.status == 400


@pytest.mark.parametrize("operation", [UPDATE_PROFILES_INTERNAL, UPDATE_PROFILES_EXTERNAL])
def test_a_thousand_changes_pass_and_one_more_does_not(operation):
    audience = 1 if operation == UPDATE_PROFILES_INTERNAL else "a"
    data = [{"customerProfileId": f"p{n}", ("adds", "deletes")[n % 2]: [audience]} for n in range(1000)]
    assert read(operation, {"data": data}).size == 1000
    with pytest.raises(RefusedError, match="1001"):
        read(operation, {"data": [*data, {"customerProfileId": "last", "adds": [audience]}]})


def test_ids_of_a_thousand_characters_of_any_kind_pass():
    wide = "\N{GRINNING FACE}" * 1000
    call = read(UPDATE_PROFILES_EXTERNAL, {"data": [{"customerProfileId": wide, "adds": [wide]}]})
    assert call.external == (Change(wide, (wide,), ()),)


@pytest.mark.parametrize(
    ("data", "runs"),
    [
        ({}, False),
        ({"runRuleEngine": True}, True),
        ({"audiencesChanges": {}}, False),
        ({"audiencesChanges": {"adds": [1]}, "runRuleEngine": False}, True),
        ({"audiencesChanges": {"deletes": [1]}}, True),
    ],
)
def test_a_change_of_audiences_runs_the_rule_engine(data, runs):
    assert read(UPDATE_PROFILE, data, "p").run_rule_engine is runs


@pytest.mark.parametrize(("skip", "expected"), [((), False), (("false",), False), (("true",), True)])
def test_skipping_unknown_attributes_is_off_unless_asked_for(skip, expected):
    assert read(UPDATE_PROFILE, {}, "p", skip).skip_unknown is expected


@pytest.mark.parametrize("skip", [("",), ("1",), ("True",)])
def test_a_flag_in_the_query_is_true_or_false(skip):
    with pytest.raises(RefusedError, match="skipNonExistingAttributes"):
        read(UPDATE_PROFILE, {}, "p", skip)


def test_unknown_names_in_a_body_are_ignored():
    assert read(UPDATE_PROFILE, {"data": [{"customerProfileId": "x"}]}, "p").size == 0


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_must_be_declared_as_json(content_type):
    with pytest.raises(RefusedError, match="Content-Type"):
        read(UPDATE_PROFILE, {}, "p", content_type=content_type)


def test_a_declared_charset_does_no_harm():
    assert read(UPDATE_PROFILE, {}, "p", content_type="Application/JSON; charset=utf-8").profiles == {"p"}


def test_bottomless_attributes_are_refused():
    with pytest.raises(RefusedError, match="nested too deeply"):
        read(UPDATE_PROFILE, b'{"attributes": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}", "p")
