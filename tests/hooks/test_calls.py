"""Every method of the hook sends the documented request and reads the documented answer."""

from __future__ import annotations

import asyncio
import json
import traceback
from decimal import Decimal
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, XCom

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    InvalidInputError,
    NotFoundError,
    RejectedError,
    TransientError,
    UnclearError,
    UnexpectedAnswerError,
)

AUDIENCE = {
    "id": 4711,
    "created": "2026-01-02T03:04:05Z",
    "accountId": 9,
    "name": "VIP",
    "integration": "Apache Airflow",
    "integrationId": "vip",
}
STATE = {"effects": [], "createdCoupons": [], "createdReferrals": []}
HOST = "https://api.example.com"


@pytest.fixture
def hook(connect):
    return connect(host="api.example.com")


def _sent(requests_mock):
    sent = requests_mock.last_request
    return sent.method, sent.url.removeprefix(HOST), sent.json() if sent.body else None


def test_create_audience(hook, requests_mock):
    requests_mock.post(f"{HOST}/cdp/audiences", status_code=201, json=AUDIENCE)
    audience = hook.create_audience("vip", "VIP")
    assert _sent(requests_mock) == ("POST", "/cdp/audiences", {"audienceId": "vip", "audienceName": "VIP"})
    assert (audience.id, audience.integration_id, audience.name) == (4711, "vip", "VIP")
    assert (audience.created, audience.account_id) == ("2026-01-02T03:04:05Z", 9)


def test_update_audience(hook, requests_mock):
    requests_mock.put(f"{HOST}/cdp/audiences/vip%2F1", json=AUDIENCE)
    assert hook.update_audience("vip/1", "VIP").id == 4711
    body = {"audienceId": "vip/1", "audienceName": "VIP"}
    assert _sent(requests_mock) == ("PUT", "/cdp/audiences/vip%2F1", body)


def test_delete_audience(hook, requests_mock):
    requests_mock.delete(f"{HOST}/cdp/audiences/vip", status_code=204)
    assert hook.delete_audience("vip") is None
    assert _sent(requests_mock) == ("DELETE", "/cdp/audiences/vip", None)


def test_update_customer_profile(hook, requests_mock):
    requests_mock.put(f"{HOST}/cdp/customer_profile/anna", json=STATE)
    state = hook.update_customer_profile(
        "anna",
        attributes={"Tier": "gold", "Points": Decimal("19.90"), "Old": None},
        run_rule_engine=True,
        add_audiences=[1, 2],
        remove_audiences=[3],
        skip_unknown_attributes=True,
    )
    assert state == STATE
    assert _sent(requests_mock) == (
        "PUT",
        "/cdp/customer_profile/anna?skipNonExistingAttributes=true",
        {
            "attributes": {"Tier": "gold", "Points": 19.9, "Old": None},
            "runRuleEngine": True,
            "audiencesChanges": {"adds": [1, 2], "deletes": [3]},
        },
    )
    assert b'"Points":19.9,' in requests_mock.last_request.body


def test_update_customer_profile_leaves_out_what_was_not_given(hook, requests_mock):
    """An empty ``audiencesChanges`` would switch the rule engine on for nothing."""
    requests_mock.put(f"{HOST}/cdp/customer_profile/anna", json=STATE)
    hook.update_customer_profile("anna")
    assert _sent(requests_mock) == (
        "PUT",
        "/cdp/customer_profile/anna?skipNonExistingAttributes=false",
        {"runRuleEngine": False},
    )


def test_update_customer_profile_audiences(hook, requests_mock):
    requests_mock.put(f"{HOST}/cdp/customer_profile/anna/audiences", json=STATE)
    assert (
        hook.update_customer_profile_audiences("anna", add_audiences=["vip"], remove_audiences=["new"])
        == STATE
    )
    assert _sent(requests_mock) == (
        "PUT",
        "/cdp/customer_profile/anna/audiences",
        {"data": {"adds": ["vip"], "deletes": ["new"]}},
    )


@pytest.mark.parametrize(
    "spelling, id_type, audience, path",
    [
        ("plural", "external", "vip", "/cdp/v2/customer_profiles/audiences"),
        ("plural", "internal", 1, "/cdp/customer_profiles/audiences"),
        ("singular", "external", "vip", "/cdp/v2/customer_profile/audiences"),
        ("singular", "internal", 1, "/cdp/customer_profile/audiences"),
    ],
)
def test_update_customer_profiles_audiences(connect, requests_mock, spelling, id_type, audience, path):
    requests_mock.put(f"{HOST}{path}", status_code=204)
    hook = connect({"multi_profile_path": spelling}, host="api.example.com")
    assert (
        hook.update_customer_profiles_audiences([("anna", [audience], [])], audience_id_type=id_type) is None
    )
    body = {"data": [{"customerProfileId": "anna", "adds": [audience], "deletes": []}]}
    assert _sent(requests_mock) == ("PUT", path, body)


def test_naive_times_are_sent_in_the_zone_of_the_connection(connect, talon):
    from datetime import datetime  # noqa: PLC0415

    connect({"timezone": "Europe/Berlin"}).update_customer_profile(
        "anna", attributes={"At": datetime(2026, 7, 1)}
    )
    assert talon.profile("anna")["attributes"] == {"At": "2026-06-30T22:00:00Z"}


def test_the_calls_have_their_effect(connect, talon):
    hook = connect()
    vip = hook.create_audience("vip", "VIP").id
    hook.create_audience("new", "New")
    hook.update_customer_profiles_audiences([("anna", ["vip", "new"], []), ("bert", ["vip"], [])])
    hook.update_customer_profile_audiences("anna", remove_audiences=["new"])
    hook.update_customer_profile("carl", attributes={"Tier": "gold"}, add_audiences=[vip])
    hook.update_customer_profiles_audiences([("bert", [], [vip])], audience_id_type="internal")
    assert talon.members("vip") == {"anna", "carl"}
    assert talon.members("new") == frozenset()
    assert talon.profile("carl") == {"attributes": {"Tier": "gold"}, "audiences": ["vip"]}
    hook.delete_audience("vip")
    assert list(talon.audiences()) == ["new"]


def test_what_a_method_returns_can_go_through_xcom(connect, talon):
    hook = connect()
    made = hook.create_audience("vip", "VIP")
    renamed = hook.update_audience("vip", "Best")
    state = hook.update_customer_profile("anna", attributes={"Tier": "gold"})
    for returned in (made, renamed, state, hook.delete_audience("vip")):
        found = XCom.deserialize_value(SimpleNamespace(value=XCom.serialize_value(returned)))
        assert type(found) in (dict, type(None))
        assert found == returned
    assert (made["id"], made["integration_id"], made["name"]) == (made.id, "vip", "VIP")


def test_errors_say_what_to_do_by_their_class(connect, talon):
    hook = connect()
    hook.create_audience("vip", "VIP")
    with pytest.raises(AudienceExistsError, match="409"):
        hook.create_audience("vip", "VIP")
    with pytest.raises(NotFoundError, match="404"):
        hook.delete_audience("none")
    with pytest.raises(AuthenticationError, match="expire"):
        connect(password="wrong").delete_audience("vip")
    with pytest.raises(NotFoundError, match="Deployment host") as error:
        connect({"deployment_host": "other.talon.one"}).delete_audience("vip")
    assert error.value.request_uuid == talon.requests()[-1]["request_uuid"]
    assert error.value.request_uuid in str(error.value)
    talon.fail_next("status", status=400, body={"Error": "no", "RequestUUID": "u-1"})
    with pytest.raises(RejectedError, match="RequestUUID u-1"):
        hook.delete_audience("vip")
    talon.fail_next("html")
    with pytest.raises(UnexpectedAnswerError):
        hook.delete_audience("vip")
    assert list(talon.audiences()) == ["vip"]


def _bulk(hook):
    async def send():
        async with hook.members_sender() as sender:
            await sender.create_audience("vip", "VIP")

    asyncio.run(send())


CALLS = {
    "create": lambda hook: hook.create_audience("vip", "VIP"),
    "update": lambda hook: hook.update_audience("vip", "VIP"),
    "delete": lambda hook: hook.delete_audience("vip"),
    "profile": lambda hook: hook.update_customer_profile("anna", attributes={"x": 1}),
    "its audiences": lambda hook: hook.update_customer_profile_audiences("anna", add_audiences=["vip"]),
    "profiles": lambda hook: hook.update_customer_profiles_audiences([("anna", ["vip"], [])]),
    "sender": _bulk,
    "deployment": lambda hook: hook.check_deployment(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_that_no_retry_can_fix_ends_the_retries_of_a_task(connect, talon, call):
    with pytest.raises(AuthenticationError) as error:
        call(connect(password="wrong"))
    assert isinstance(error.value, AirflowFailException)
    with pytest.raises(InvalidInputError, match="Connection 'talon_cdp_default'") as error:
        call(connect({"timezone": "Mars"}))
    assert isinstance(error.value, AirflowFailException)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_may_pass_does_not_end_them(connect, talon, call):
    hook = connect({"call_retry_seconds": 0, "bulk_retry_seconds": 0})
    talon.fail_next("status", status=429)
    with pytest.raises(TransientError) as error:
        call(hook)
    assert not isinstance(error.value, AirflowFailException)


def test_a_call_that_runs_rules_is_not_made_again_by_a_retry(connect, talon):
    talon.fail_next("reset_after")
    with pytest.raises(UnclearError) as error:
        connect().update_customer_profile("anna", run_rule_engine=True)
    assert isinstance(error.value, AirflowFailException)
    frames = [each.name for each in traceback.extract_tb(error.value.__traceback__)]
    assert "update_customer_profile" in frames
    assert type(error.value.__cause__) is UnclearError
    assert error.value.__cause__.__traceback__ is None


def test_what_the_api_would_refuse_is_refused_before_it_is_sent(connect, talon):
    hook = connect()
    too_many = [(f"p{each}", ["vip"], []) for each in range(1001)]
    for call in (
        lambda: hook.create_audience("", "VIP"),
        lambda: hook.create_audience("vip", "x" * 1001),
        lambda: hook.create_audience(5, "VIP"),
        lambda: hook.delete_audience(None),
        lambda: hook.update_customer_profile("\ud800"),
        lambda: hook.update_customer_profile("anna", add_audiences=["vip"]),
        lambda: hook.update_customer_profile("anna", add_audiences=[0]),
        lambda: hook.update_customer_profile("anna", add_audiences=[True]),
        lambda: hook.update_customer_profile("anna", add_audiences=[1], remove_audiences=[1]),
        lambda: hook.update_customer_profile("anna", attributes={"x": float("nan")}),
        lambda: hook.update_customer_profile("anna", attributes=["x"]),
        lambda: hook.update_customer_profile("anna", run_rule_engine=True, on_unclear="Fail"),
        lambda: hook.update_customer_profile("anna", attributes={"x": "5"}, types={"x": "int"}),
        lambda: hook.update_customer_profile("anna", attributes={"x": None}, types={"x": "int"}),
        lambda: hook.attributes_encoder({"x": "int"}, skip_nulls=True),
        lambda: hook.update_customer_profile_audiences("anna", add_audiences=["vip"], on_unclear=None),
        lambda: hook.update_customer_profile_audiences("anna", add_audiences="vip"),
        lambda: hook.update_customer_profile_audiences("anna", add_audiences=[1]),
        lambda: hook.update_customer_profiles_audiences(too_many),
        lambda: hook.update_customer_profiles_audiences([("anna", [1], [])]),
        lambda: hook.update_customer_profiles_audiences([("anna", [2**63], [])], audience_id_type="internal"),
    ):
        with pytest.raises(InvalidInputError) as error:
            call()
        assert isinstance(error.value, AirflowFailException)
    assert talon.requests() == []


def test_the_bulk_sender_sends_external_and_internal_ids(connect, talon):
    from airflow_provider_talon_cdp.changes.change import Change, Chunk  # noqa: PLC0415

    hook = connect()
    vip = str(hook.create_audience("vip", "VIP").id)

    async def send():
        async with hook.members_sender() as sender:
            await sender(Chunk(["anna", "bert"], "vip"))
            assert (sender.requests, sender.retries, sender.throttled) == (1, 0, 0)
        async with hook.members_sender(audience_id_type="internal", in_flight=1) as sender:
            await sender(Chunk.of([Change("anna", vip, "remove"), Change("carl", vip, "add")]))

    asyncio.run(send())
    assert talon.members("vip") == {"bert", "carl"}


def test_the_members_sender_creates_and_renames_audiences_and_changes_one_profile(connect, talon):
    """All through one client, so that one pacer and one set of counters hold for them."""
    hook = connect()

    async def send():
        async with hook.members_sender() as sender:
            made = await sender.create_audience("vip", "VIP")
            renamed = await sender.update_audience("vip", "Best")
            await sender.create_audience("old", "Old")
            await sender.update_profile_audiences("anna", ["vip"], [])
            await sender.update_profile_audiences("anna", ["old"], ["vip"])
            assert sender.requests == 5
            return made, renamed

    made, renamed = asyncio.run(send())
    assert (made.id, made.created) == (renamed.id, renamed.created)
    assert renamed.name == "Best"
    assert talon.members("old") == {"anna"}
    assert talon.members("vip") == frozenset()


@pytest.mark.parametrize("fault", ["reset_after", "status"])
def test_the_members_sender_does_not_repeat_a_change_that_runs_rules(connect, talon, fault):
    hook = connect()
    hook.create_audience("vip", "VIP")
    talon.fail_next("status", status=429)
    talon.fail_next(fault)

    async def send():
        async with hook.members_sender() as sender:
            try:
                await sender.update_profile_audiences("anna", ["vip"], [])
            finally:
                assert (sender.requests, sender.retries, sender.throttled) == (2, 1, 1)

    with pytest.raises(UnclearError):
        asyncio.run(send())


@pytest.mark.parametrize("runs_rules", [False, True])
def test_the_attributes_sender_repeats_what_may_be_repeated(connect, talon, runs_rules):
    hook = connect()
    talon.fail_next("reset_after")

    async def send():
        async with hook.attributes_sender(run_rule_engine=runs_rules) as sender:
            await sender("anna", b'{"x":1}')
            return sender.requests

    if runs_rules:
        with pytest.raises(UnclearError):
            asyncio.run(send())
    else:
        assert asyncio.run(send()) == 2
    assert talon.profile("anna")["attributes"] == {"x": 1}
    assert {each["run_rule_engine"] for each in talon.requests()} == {runs_rules}


@pytest.mark.parametrize("profile_id", [".", ".."])
def test_the_attributes_sender_refuses_an_id_that_cannot_stand_in_a_path(connect, talon, profile_id):
    hook = connect()

    async def send():
        async with hook.attributes_sender() as sender:
            await sender(profile_id, b"{}")

    with pytest.raises(InvalidInputError, match="part of a request's path"):
        asyncio.run(send())
    assert talon.requests() == []


def test_a_state_says_whether_rules_may_have_run_twice(connect, talon):
    hook = connect()
    assert not hook.update_customer_profile("anna", run_rule_engine=True).may_have_run_twice
    talon.fail_next("reset_after")
    with pytest.raises(UnclearError):
        hook.update_customer_profile("anna", run_rule_engine=True)
    talon.fail_next("reset_after")
    state = hook.update_customer_profile("anna", run_rule_engine=True, on_unclear="retry")
    assert state.may_have_run_twice
    assert state == json.loads(json.dumps(state))


def test_only_the_word_retry_repeats_a_call_that_runs_rules(connect, talon):
    talon.fail_next("status", status=503)
    request = calls.update_customer_profile("anna", run_rule_engine=True)
    with pytest.raises(UnclearError):
        connect().client.send(request, on_unclear="Fail")
    assert len(talon.requests()) == 1
