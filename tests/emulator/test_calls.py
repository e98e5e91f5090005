"""From a request to a call: paths in both spellings, IDs that hold anything, and what is refused."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.emulator import calls
from airflow_provider_talon_cdp.emulator.answers import RefusedError
from airflow_provider_talon_cdp.emulator.calls import (
    CREATE_AUDIENCE,
    DELETE_AUDIENCE,
    UPDATE_AUDIENCE,
    UPDATE_PROFILE,
    UPDATE_PROFILE_AUDIENCES,
    UPDATE_PROFILES_EXTERNAL,
    UPDATE_PROFILES_INTERNAL,
    Route,
    check_headers,
    read_call,
)
from airflow_provider_talon_cdp.emulator.store import MembershipChange

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def status(method, path, spelling="plural"):
    with pytest.raises(RefusedError) as caught:
        calls.find_route(method, path, spelling)
    return caught.value.status


@given(ids)
def test_any_id_survives_the_path(value):
    path = f"/cdp/customer_profile/{quote(value, safe='')}/audiences".encode()
    for spelling in ("plural", "singular"):
        assert calls.find_route("PUT", path, spelling) == calls.Route(calls.UPDATE_PROFILE_AUDIENCES, value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"a%2Fb", "a/b"),
        (b"%2E%2E", ".."),
        (b"..", ".."),
        (b"%3F%23%25", "?#%"),
        (b"a+b", "a+b"),
        (b"%C3%BC", "ü"),
    ],
)
def test_a_segment_is_decoded_once_and_not_tidied(raw, value):
    assert calls.find_route("PUT", b"/cdp/customer_profile/" + raw, "plural").path_id == value


@pytest.mark.parametrize("raw", [b"%", b"%2", b"%zz", b"%FF", b"%C3%28", b"%ED%A0%80"])
def test_a_segment_that_cannot_be_decoded_is_a_400(raw):
    assert status("PUT", b"/cdp/customer_profile/" + raw) == 400


@pytest.mark.parametrize(
    ("spelling", "path", "operation", "path_id"),
    [
        ("plural", b"/cdp/customer_profiles/audiences", calls.UPDATE_PROFILES_INTERNAL, ""),
        ("plural", b"/cdp/v2/customer_profiles/audiences", calls.UPDATE_PROFILES_EXTERNAL, ""),
        ("plural", b"/cdp/customer_profile/audiences", calls.UPDATE_PROFILE, "audiences"),
        ("singular", b"/cdp/customer_profile/audiences", calls.UPDATE_PROFILES_INTERNAL, ""),
        ("singular", b"/cdp/v2/customer_profile/audiences", calls.UPDATE_PROFILES_EXTERNAL, ""),
        (
            "plural",
            b"/cdp/customer_profile/audiences/audiences",
            calls.UPDATE_PROFILE_AUDIENCES,
            "audiences",
        ),
        (
            "singular",
            b"/cdp/customer_profile/audiences/audiences",
            calls.UPDATE_PROFILE_AUDIENCES,
            "audiences",
        ),
    ],
)
def test_the_spelling_decides_what_is_a_multi_profile_call(spelling, path, operation, path_id):
    assert calls.find_route("PUT", path, spelling) == calls.Route(operation, path_id)


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("plural", b"/cdp/v2/customer_profile/audiences"),
        ("singular", b"/cdp/customer_profiles/audiences"),
        ("singular", b"/cdp/v2/customer_profiles/audiences"),
        ("plural", b"/cdp/customer_profile/a/b"),
        ("plural", b"/cdp"),
        ("plural", b"/CDP/audiences"),
        ("plural", b"//cdp/audiences"),
        ("plural", b"/cdp/audiences/a/b"),
        ("plural", b""),
    ],
)
def test_other_paths_are_a_404(spelling, path):
    assert status("PUT", path, spelling) == 404


@pytest.mark.parametrize("method", ["GET", "PATCH", "POST"])
def test_a_wrong_method_is_a_405_that_names_the_right_ones(method):
    with pytest.raises(RefusedError) as caught:
        calls.find_route(method, b"/cdp/audiences/vip", "plural")
    assert (caught.value.status, caught.value.headers) == (405, {"Allow": "DELETE, PUT"})


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
        ("destination-hostname", "b.talon.one", 404),
        ("destination-hostname", "a b", 400),
    ],
)
def test_a_wrong_header_is_refused(header, value, status):
    with pytest.raises(RefusedError) as caught:
        check_headers({**GOOD, header: value}, {"": "key"}, "a.talon.one")
    assert caught.value.status == status


def test_good_headers_pass():
    check_headers(GOOD, {"": "key"}, "A.talon.one")
    check_headers(
        {**GOOD, "authorization": "ApiKey-v1 other", "destination-hostname": "b.c:8080"}, {"": None}, None
    )


def test_the_missing_deployment_has_the_words_of_the_contract():
    with pytest.raises(RefusedError, match=r"^No Deployment URL specified$"):
        check_headers({**GOOD, "destination-hostname": ""}, {"": None}, None)


def test_the_key_is_looked_at_first():
    with pytest.raises(RefusedError) as caught:
        check_headers({}, {"": None}, None)
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
        (UPDATE_AUDIENCE, {"audienceId": "", "audienceName": "n"}, "a"),
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
    assert call.changes == (MembershipChange(wide, (wide,), ()),)


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
    assert read(UPDATE_PROFILE, data, "p").run_rules is runs


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


def test_an_update_of_one_profiles_audiences_always_runs_rules():
    assert read(UPDATE_PROFILE_AUDIENCES, {"data": {}}, "p").run_rules is True


@pytest.mark.parametrize("operation", [UPDATE_PROFILES_INTERNAL, UPDATE_PROFILES_EXTERNAL])
def test_a_multi_profile_call_runs_none(operation):
    assert read(operation, {"data": [{"customerProfileId": "p", "adds": []}]}).run_rules is False


def test_the_path_says_which_audience_is_renamed():
    call = read(UPDATE_AUDIENCE, {"audienceId": "b", "audienceName": "n"}, "a")
    assert (call.audience_id, call.audience_name) == ("a", "n")


def test_a_key_says_which_environment():
    keys = {"sandbox": "one", "live": "key"}
    assert check_headers(GOOD, keys, None) == "live"
    with pytest.raises(RefusedError, match=r"^Missing Session Token$"):
        check_headers({**GOOD, "authorization": "ApiKey-v1 two"}, keys, None)
