"""The seven calls, over a socket: statuses, bodies and effects as the contract has them."""

import threading
import time
import uuid

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator

STATE = {"effects": [], "createdCoupons": [], "createdReferrals": []}


def refused(answer, status):
    """The error of an answer in the usual shape."""
    body = answer.json()
    assert (answer.status_code, body["StatusCode"]) == (status, status)
    assert set(body) == {"StatusCode", "Error", "RequestUUID"}
    assert uuid.UUID(body["RequestUUID"]).version == 4
    return body["Error"]


def test_an_audience_is_created_renamed_and_deleted(emulator, call):
    created = call.create("vip/1 %", "VIP")
    audience = created.json()
    assert created.status_code == 201
    assert audience == {
        "id": 1,
        "created": emulator.audiences()["vip/1 %"]["created"],
        "accountId": 1,
        "name": "VIP",
        "integration": "Tests",
        "integrationId": "vip/1 %",
    }
    renamed = call.send(
        "PUT", "/cdp/audiences/vip%2F1%20%25", {"audienceId": "vip/1 %", "audienceName": "New"}
    )
    assert (renamed.status_code, renamed.json()) == (200, {**audience, "name": "New"})
    deleted = call.send("DELETE", "/cdp/audiences/vip%2F1%20%25", headers={"Content-Type": None})
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert emulator.audiences() == {}


def test_creating_an_existing_audience_is_a_409_and_changes_nothing(emulator, call):
    call.create("vip", "First")
    refused(call.create("vip", "Second"), 409)
    assert emulator.audiences()["vip"]["name"] == "First"


def test_an_unknown_audience_is_a_404(call):
    refused(call.send("PUT", "/cdp/audiences/x", {"audienceId": "x", "audienceName": "n"}), 404)
    refused(call.send("DELETE", "/cdp/audiences/x"), 404)
    refused(call.external(("p", ["x"])), 404)
    refused(call.external(("p", None, ["x"])), 404)
    refused(call.internal(("p", [1])), 404)
    refused(call.profile_audiences("p", deletes=["x"]), 404)
    refused(call.profile("p", audiencesChanges={"adds": [10**30]}), 404)


def test_many_profiles_change_audiences_by_external_and_by_internal_ids(emulator, call):
    call.create("vip")
    call.create("new")
    answers = [call.external(("anna", ["vip"]), ("bert", ["vip", "new"])), call.internal(("anna", [2], [1]))]
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
    assert (emulator.members("vip"), emulator.members("new")) == ({"bert"}, {"anna", "bert"})


def test_a_request_with_an_unknown_audience_has_no_effect_at_all(emulator, call):
    call.create("vip")
    refused(call.external(("anna", ["vip"]), ("bert", ["gone"])), 404)
    assert (emulator.members("vip"), emulator.profiles()) == (set(), set())


def test_a_profile_changes_its_audiences_by_external_ids(emulator, call):
    call.create("vip")
    answer = call.profile_audiences("ann/a", adds=["vip"])
    assert answer.status_code == 200
    profile = answer.json().pop("customerProfile")
    assert answer.json() == {**STATE, "customerProfile": profile}
    assert profile == {
        "id": 1,
        "created": profile["lastActivity"],
        "accountId": 1,
        "integrationId": "ann/a",
        "attributes": {},
        "closedSessions": 0,
        "totalSales": 0,
        "lastActivity": emulator._service.environment().store.stored_profile("ann/a").last_activity,
    }
    assert emulator.profile("ann/a") == {"attributes": {}, "audiences": ["vip"]}


def test_a_profile_keeps_its_numbers_digit_for_digit(emulator, call):
    answer = call.send("PUT", "/cdp/customer_profile/anna", b'{"attributes": {"spend": 19.990, "old": 1}}')
    assert '"spend": 19.990' in answer.text
    assert call.profile("anna", attributes={"old": None}).json()["customerProfile"]["attributes"].keys() == {
        "spend"
    }
    assert '"spend": 19.990' in call.send("GET", "/emulator/profiles/anna").text


def test_attributes_and_audiences_change_together_or_not_at_all(emulator, call):
    call.create("vip")
    refused(call.profile("anna", attributes={"a": 1}, audiencesChanges={"adds": [1, 2]}), 404)
    assert emulator.profile("anna") is None
    call.profile("anna", attributes={"a": 1}, audiencesChanges={"adds": [1]})
    assert emulator.profile("anna") == {"attributes": {"a": 1}, "audiences": ["vip"]}
    assert emulator.requests()[-1]["run_rule_engine"] is True
    call.profile("anna", runRuleEngine=False)
    assert emulator.requests()[-1]["run_rule_engine"] is False


def test_declared_attributes_are_checked_in_the_deployments_shape(caller):
    with Emulator(attributes={"Tier": "string"}) as emulator:
        call = caller(emulator)
        wrong = call.profile("anna", attributes={"Tier": "Gold", "Language": "de"})
        assert wrong.status_code == 400
        assert wrong.json()["errors"] == [
            {
                "title": "Unknown attribute",
                "details": "no customer profile attribute has this name",
                "source": {"pointer": "/attributes/Language"},
            }
        ]
        assert "StatusCode" not in wrong.json()
        assert call.profile("anna", attributes={"Tier": 1}).json()["errors"][0]["source"] == {
            "pointer": "/attributes/Tier"
        }
        assert emulator.profile("anna") is None
        skipped = call.profile(
            "anna", "?skipNonExistingAttributes=true", attributes={"Tier": "Gold", "Language": "de"}
        )
        assert skipped.json()["customerProfile"]["attributes"] == {"Tier": "Gold"}
        refused(call.profile("anna", "?skipNonExistingAttributes=yes"), 400)


def test_a_missing_or_wrong_header_is_refused(emulator, caller):
    call = caller(emulator)
    missing = call.send("POST", "/cdp/audiences", {}, headers={"Authorization": None})
    assert refused(missing, 401) == "Missing Session Token"
    refused(call.send("POST", "/cdp/audiences", {}, headers={"Authorization": "ApiKey-v1 other"}), 401)
    refused(call.send("POST", "/cdp/audiences", {}, headers={"customer-data-platform-name": None}), 400)
    missing = call.send("POST", "/cdp/audiences", {}, headers={"destination-hostname": None})
    assert refused(missing, 400) == "No Deployment URL specified"
    refused(
        call.send("POST", "/cdp/audiences", {}, headers={"destination-hostname": "https://x.talon.one"}), 400
    )
    refused(call.send("POST", "/cdp/audiences", {}, headers={"destination-hostname": "x.talon.one"}), 404)
    assert emulator.state()["requests"]["by_status"] == {"400": 3, "401": 2, "404": 1}


def test_without_a_configured_key_and_host_any_of_the_right_form_will_do(caller):
    with Emulator(api_key=None, deployment_host=None) as emulator:
        call = caller(emulator, Authorization="ApiKey-v1 whatever", **{"destination-hostname": "x.talon.one"})
        assert call.create("vip").status_code == 201
        refused(call.send("POST", "/cdp/audiences", {}, headers={"Authorization": "whatever"}), 401)


def test_the_singular_path_loses_a_whole_sync_on_a_plural_deployment(emulator, call):
    call.create("vip")
    body = {"data": [{"customerProfileId": "anna", "adds": [1]}]}
    answer = call.send("PUT", "/cdp/customer_profile/audiences", body)
    assert (answer.status_code, answer.json()["customerProfile"]["integrationId"]) == (200, "audiences")
    assert (emulator.members("vip"), emulator.profiles()) == (set(), {"audiences"})
    refused(call.send("PUT", "/cdp/v2/customer_profile/audiences", body), 404)


def test_a_singular_deployment_knows_only_the_singular_path(caller):
    with Emulator(multi_profile_path="singular") as emulator:
        call = caller(emulator)
        call.create("vip")
        for path, audience in (("", 1), ("v2/", "vip")):
            body = {"data": [{"customerProfileId": f"anna{path}", "adds": [audience]}]}
            assert call.send("PUT", f"/cdp/{path}customer_profile/audiences", body).status_code == 204
            refused(call.send("PUT", f"/cdp/{path}customer_profiles/audiences", body), 404)
        assert emulator.members("vip") == {"anna", "annav2/"}


@pytest.mark.parametrize(
    ("path", "profile_id"),
    [
        ("a%2Fb", "a/b"),
        ("%2E%2E", ".."),
        ("a%3Fb%23%25", "a?b#%"),
        ("%C3%BC%20x", "ü x"),
        ("audiences", "audiences"),
    ],
)
def test_a_profile_id_may_hold_anything(emulator, call, path, profile_id):
    call.create("vip")
    status, _ = call.raw("PUT", f"/cdp/customer_profile/{path}/audiences", b'{"data": {"adds": ["vip"]}}')
    assert (status, emulator.members("vip")) == (200, {profile_id})


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/cdp/customer_profile/%FF", b"{}", 400),
        ("/cdp/customer_profile/%zz", b"{}", 400),
        ("/cdp/customer_profile/a", b'{"a": "\xff"}', 400),
        ("/cdp/customer_profile/a", b"[" * 200_000, 400),
        ("/cdp/customer_profile/a", b"", 400),
        ("/cdp/nothing", b"{}", 404),
        ("/", b"{}", 404),
    ],
)
def test_nonsense_gets_an_error_and_no_500(call, path, body, status):
    assert call.raw("PUT", path, body)[0] == status


def test_a_wrong_method_is_a_405(call):
    answer = call.send("PATCH", "/cdp/audiences/vip", {})
    refused(answer, 405)
    assert answer.headers["Allow"] == "DELETE, PUT"


def in_background(work):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_two_requests_on_one_profile_at_once_are_a_conflict(caller):
    with Emulator(service_time=0.6) as emulator:
        call = caller(emulator)
        call.create("vip")
        thread, first = in_background(lambda: caller(emulator).external(("anna", ["vip"]), ("bert", ["vip"])))
        wait_for(lambda: emulator._service.environment().in_flight._profiles)
        refused(call.profile("anna"), 409)
        refused(call.profile_audiences("bert", adds=["vip"]), 409)
        refused(call.internal(("carl", [1]), ("anna", [1])), 409)
        assert call.profile("carl").status_code == 200
        thread.join()
        assert first[0].status_code == 204
        assert call.profile("anna").status_code == 200


def test_the_rate_limit_answers_429(caller):
    with Emulator(requests_per_second=0.5, burst=2) as emulator:
        call = caller(emulator)
        answers = [call.profile("anna") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        refused(answers[2], 429)
        assert answers[2].headers["Retry-After"] == "2"
        emulator.reset()
        assert call.profile("anna").status_code == 200


def test_rejected_profiles_spoil_a_request_without_being_named(emulator, call):
    call.create("vip")
    emulator.reject_profiles({"bad"})
    error = refused(call.external(("anna", ["vip"]), ("bad", ["vip"])), 400)
    assert "bad" not in error
    assert "anna" not in error
    refused(call.profile("bad"), 400)
    refused(call.profile_audiences("bad", adds=["vip"]), 400)
    assert (emulator.members("vip"), emulator.profiles()) == (set(), set())
    assert call.external(("anna", ["vip"])).status_code == 204
    emulator.clear_faults()
    assert call.profile("bad").status_code == 200


def test_profiles_rejected_from_the_start_stay_rejected(caller):
    with Emulator(reject_profiles=["bad"]) as emulator:
        emulator.reject_profiles(["worse"])
        emulator.reset()
        assert [caller(emulator).profile(each).status_code for each in ("bad", "worse")] == [400, 200]


def test_every_request_is_logged_without_its_headers_and_body(emulator, call):
    call.create("vip")
    call.external(("anna", ["vip"], []), ("bert", ["vip"]))
    call.profile("anna", "?skipNonExistingAttributes=true", attributes={"secret": "hush", "b": None})
    error = call.send("GET", "/cdp/nothing?x=1")
    log = emulator.requests()
    assert [(each["method"], each["path"], each["status"], each["changes"]) for each in log] == [
        ("POST", "/cdp/audiences", 201, 0),
        ("PUT", "/cdp/v2/customer_profiles/audiences", 204, 2),
        ("PUT", "/cdp/customer_profile/anna", 200, 2),
        ("GET", "/cdp/nothing", 404, 0),
    ]
    assert log[-1]["request_uuid"] == error.json()["RequestUUID"]
    assert (log[-1]["query"], log[-1]["operation"], log[-1]["run_rule_engine"]) == ("x=1", "", None)
    assert "local-key" not in str(log)
    assert "hush" not in str(log)


def test_the_documented_error_texts(emulator, call, caller):
    call.create("it's", "First")
    assert refused(call.create("it's", "Second"), 409) == "The audience with the ID 'it's' already exists"
    assert refused(call.external(("anna", ["gone"])), 404) == "Not Found"
    assert refused(call.send("PUT", "/cdp/nothing", {}), 404) == "Not Found"
    wrong = caller(emulator, Authorization="ApiKey-v1 other")
    assert refused(wrong.create("vip"), 401) == "Missing Session Token"
    with Emulator(requests_per_second=0.01) as limited:
        limited_call = caller(limited)
        limited_call.profile("anna")
        assert refused(limited_call.profile("anna"), 429) == "Too many requests"
    for status, text in ((401, "Missing Session Token"), (404, "Not Found"), (429, "Too many requests")):
        emulator.fail_next("status", status=status)
        assert refused(call.profile("anna"), status) == text


def test_the_path_says_which_audience_is_renamed(emulator, call):
    call.create("vip", "First")
    body = {"audienceId": "another", "audienceName": "Second"}
    assert call.send("PUT", "/cdp/audiences/vip", body).json()["integrationId"] == "vip"
    assert {key: each["name"] for key, each in emulator.audiences().items()} == {"vip": "Second"}


def test_an_audience_keeps_the_platform_that_created_it(emulator, call, caller):
    call.create("vip")
    other = caller(emulator, **{"customer-data-platform-name": "Other"})
    body = {"audienceId": "vip", "audienceName": "Second"}
    assert other.send("PUT", "/cdp/audiences/vip", body).json()["integration"] == "Tests"


def test_a_key_reaches_the_audiences_and_profiles_of_its_environment(caller):
    keys = {"sandbox": "sandbox-key", "live": "live-key"}
    with Emulator(environments=keys) as emulator:
        sandbox, live = (caller(emulator, Authorization=f"ApiKey-v1 {key}") for key in keys.values())
        assert sandbox.create("vip").json()["id"] == live.create("vip").json()["id"] == 1
        sandbox.external(("anna", ["vip"]))
        live.profile("bert", attributes={"tier": "gold"})
        assert emulator.members("vip") == emulator.members("vip", environment="sandbox") == {"anna"}
        assert emulator.members("vip", environment="live") == set()
        assert (emulator.profiles("live"), emulator.profile("anna", environment="live")) == ({"bert"}, None)  # type: ignore[comparison-overlap]
        assert [each["environment"] for each in emulator.requests()] == ["sandbox", "live", "sandbox", "live"]
        refused(caller(emulator).create("x"), 401)
        assert emulator.requests()[-1]["environment"] is None
        emulator.reset()
        assert (emulator.audiences("sandbox"), emulator.audiences("live")) == ({}, {})


def test_environments_have_their_own_limits(caller):
    keys = {"sandbox": "one", "live": "two"}
    with Emulator(environments=keys, requests_per_second=0.01) as emulator:
        sandbox, live = (caller(emulator, Authorization=f"ApiKey-v1 {key}") for key in keys.values())
        answers = [sandbox.profile("a"), sandbox.profile("a"), live.profile("a"), live.profile("a")]
        assert [answer.status_code for answer in answers] == [200, 429, 200, 429]


def test_a_replaced_key_is_refused_and_the_new_one_finds_the_same_audiences(caller):
    with Emulator(environments={"live": "old"}) as emulator:
        caller(emulator, Authorization="ApiKey-v1 old").create("vip")
        emulator.replace_key("new")
        refused(caller(emulator, Authorization="ApiKey-v1 old").create("new"), 401)
        refused(caller(emulator, Authorization="ApiKey-v1 new").create("vip"), 409)
        assert emulator.connection()["password"] == "new"


def test_an_audience_of_the_campaign_manager_has_an_internal_id_only(emulator, call):
    internal = emulator.create_campaign_manager_audience("By hand")
    assert call.internal(("anna", [internal])).status_code == 204
    assert call.profile("bert", audiencesChanges={"adds": [internal]}).status_code == 200
    assert emulator.members(internal) == {"anna", "bert"}
    assert emulator.campaign_manager_audiences()[internal]["name"] == "By hand"
    refused(call.external(("anna", ["By hand"])), 404)
    refused(call.send("DELETE", f"/cdp/audiences/{internal}"), 404)
    refused(call.send("PUT", f"/cdp/audiences/{internal}", {"audienceId": "x", "audienceName": "x"}), 404)
    assert (emulator.audiences(), emulator.profile("anna")["audiences"]) == ({}, [internal])


def test_an_audience_made_again_by_hand_has_another_internal_id_and_no_members(emulator, call):
    first = emulator.create_audience("vip", "VIP")
    call.external(("anna", ["vip"]))
    emulator.delete_audience("vip")
    refused(call.internal(("anna", [first])), 404)
    second = emulator.create_audience("vip", "VIP")
    assert second != first
    assert emulator.members(second) == emulator.members("vip") == set()
    refused(call.internal(("anna", [first])), 404)


def test_members_and_attributes_are_changed_by_hand(emulator):
    emulator.create_audience("vip", "VIP")
    emulator.add_members("vip", ["anna", "bert"])
    emulator.remove_members("vip", ["bert"])
    emulator.set_attributes("anna", {"tier": "gold", "old": None})
    assert emulator.profile("anna") == {"attributes": {"tier": "gold"}, "audiences": ["vip"]}
    assert (emulator.members("vip"), emulator.rule_runs("anna"), emulator.requests()) == ({"anna"}, 0, [])


def test_runs_of_the_rules_are_counted_by_profile(emulator, call):
    call.create("vip")
    call.profile("anna")
    call.external(("anna", ["vip"]), ("bert", ["vip"]))
    call.internal(("anna", [], [1]))
    assert (emulator.rule_runs("anna"), emulator.rule_runs("nobody")) == (0, 0)
    call.profile("anna", runRuleEngine=True)
    call.profile("anna", audiencesChanges={"adds": [1]}, runRuleEngine=False)
    call.profile_audiences("anna")
    refused(call.profile_audiences("anna", adds=["gone"]), 404)
    assert (emulator.rule_runs("anna"), emulator.rule_runs("bert")) == (3, 0)
    emulator.fail_next("reset_before")
    emulator.fail_next("reset_after")
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            call.profile_audiences("anna")
    assert emulator.rule_runs("anna") == 4
