"""Faults of the service or the network under single calls."""

from __future__ import annotations

import email.utils
import time

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    NotFoundError,
    RequestError,
    TalonCdpError,
    TransientError,
    UnclearError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.operators.audience import (
    CreateAudienceOperator,
    DeleteAudienceOperator,
    UpdateAudienceOperator,
)
from airflow_provider_talon_cdp.operators.profile import UpdateProfileAudiencesOperator, UpdateProfileOperator


def create(**more):
    return CreateAudienceOperator(task_id="t", audience_id="vip", audience_name="VIP", **more)


def update():
    return UpdateAudienceOperator(task_id="t", audience_id="old", audience_name="New")


def delete(**more):
    return DeleteAudienceOperator(task_id="t", audience_id="old", **more)


def profile():
    return UpdateProfileOperator(task_id="t", customer_profile_id="anna", attributes={"x": 1})


def member(**more):
    return UpdateProfileAudiencesOperator(
        task_id="t", customer_profile_id="anna", add_audiences=["old"], **more
    )


ALL = {"create": create, "update": update, "delete": delete, "profile": profile, "member": member}


@pytest.fixture(params=ALL)
def operator(request, run, talon):
    run(CreateAudienceOperator(task_id="setup", audience_id="old", audience_name="Old"))
    return ALL[request.param]


def state(talon):
    return {each: (view["name"], talon.members(each)) for each, view in talon.audiences().items()}, {
        each: talon.profile(each) for each in talon.profiles()
    }


@pytest.fixture
def wanted(operator, run, talon):
    """The state after the call where nothing goes wrong; the talon is as it was before."""
    run(operator())
    after = state(talon)
    talon.reset()
    run(CreateAudienceOperator(task_id="setup", audience_id="old", audience_name="Old"))
    return after


@pytest.fixture
def again(operator):
    """The operator; where its call runs rules, it is told to repeat it after an unclear answer."""
    return (lambda: member(on_unclear="retry")) if operator is member else operator


@pytest.mark.parametrize("status", [408, 429])
def test_a_passing_failure_without_an_effect_is_overcome(operator, wanted, run, talon, status):
    talon.fail_next("status", times=2, status=status)
    run(operator())
    assert state(talon) == wanted


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_a_passing_failure_is_overcome(again, wanted, run, talon, status):
    talon.fail_next("status", times=2, status=status)
    run(again())
    assert state(talon) == wanted


def test_a_lost_connection_before_the_effect_is_overcome(again, wanted, run, talon):
    talon.fail_next("reset_before", times=2)
    run(again())
    assert state(talon) == wanted


@pytest.mark.parametrize("fault", ["reset_before", "reset_after", "status"])
def test_a_call_that_runs_rules_fails_where_its_answer_is_unclear(run, talon, fault):
    run(CreateAudienceOperator(task_id="setup", audience_id="old", audience_name="Old"))
    talon.fail_next(fault, times=2)
    with pytest.raises(UnclearError, match="The rules may have run"):
        run(member())
    assert len(talon.requests()) == 2
    assert talon.members("old") == ({"anna"} if fault == "reset_after" else frozenset())


@pytest.mark.parametrize("call", [update, profile, lambda: member(on_unclear="retry")])
def test_a_lost_answer_of_an_idempotent_call_is_overcome(run, talon, call):
    run(CreateAudienceOperator(task_id="setup", audience_id="old", audience_name="Old"))
    talon.fail_next("reset_after", times=2)
    run(call())
    assert len(talon.requests()) == 4


def test_a_conflict_on_a_profile_is_overcome(run, talon):
    talon.fail_next("status", times=2, status=409)
    run(profile())
    assert talon.profile("anna")["attributes"] == {"x": 1}


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_waited_for(run, talon, kind):
    retry_after = 1 if kind == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    talon.fail_next("status", status=429, retry_after=retry_after)
    began = time.monotonic()
    run(profile())
    assert 0.9 <= time.monotonic() - began < 5
    assert len(talon.requests()) == 2


@pytest.mark.parametrize("retry_after", ["soon", "-1", "1.5", "Wed, 99 Foo 2026 00:00:00 GMT"])
def test_a_retry_after_that_makes_no_sense_is_ignored(run, talon, retry_after):
    talon.fail_next("status", status=429, retry_after=retry_after)
    run(profile())
    assert talon.profile("anna")["attributes"] == {"x": 1}


def test_a_retry_after_beyond_all_patience_ends_at_once(run, talon):
    talon.fail_next("status", times=None, status=503, retry_after=86_400)
    with pytest.raises(
        TransientError, match=r"(?s)503.*Gave up on 127.0.0.1:\d+ after 1 attempt.*wait 86,400 s"
    ) as error:
        run(profile())
    assert error.value.retry_after == 86_400
    assert len(talon.requests()) == 1


def test_a_slow_answer_is_given_up_and_asked_for_again(run, connect, talon):
    connect({"timeout": 0.3})
    talon.fail_next("slow", seconds=0.6)
    run(profile())
    assert talon.profile("anna")["attributes"] == {"x": 1}
    assert len(talon.requests()) > 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_a_lasting_failure_is_not_tried_again(operator, run, talon, status):
    before = state(talon)
    talon.fail_next("status", times=None, status=status)
    with pytest.raises(TalonCdpError, match=str(status)):
        run(operator())
    assert len(talon.requests()) == 2
    assert state(talon) == before


def test_a_401_says_that_keys_expire(operator, run, talon):
    talon.fail_next("status", status=401)
    with pytest.raises(AuthenticationError, match="expire"):
        run(operator())


# A documented 200 or 201 has a wrong body here; a 204 has none to be wrong.
@pytest.mark.parametrize(
    "operator, status",
    [(name, status) for name in ALL for status in (200, 201, 202, 204) if (name, status) != ("delete", 204)],
    indirect=["operator"],
)
def test_another_success_than_the_documented_one_is_no_success(operator, run, talon, status):
    documented = {create: 201, delete: 204}.get(operator, 200)
    before = state(talon)
    talon.fail_next("status", status=status, body={} if status != documented else [])
    with pytest.raises(UnexpectedAnswerError):
        run(operator())
    assert len(talon.requests()) == 2
    assert state(talon) == before


def test_a_200_page_is_no_success(operator, run, talon):
    talon.fail_next("html")
    with pytest.raises(UnexpectedAnswerError, match="(HTML|JSON)"):
        run(operator())
    assert len(talon.requests()) == 2


def test_an_html_error_page_is_told_as_such(run, talon):
    talon.fail_next("status", status=404, html="<html>nginx</html>")
    with pytest.raises(UnexpectedAnswerError, match="HTML"):
        run(profile())


def test_a_create_whose_answer_was_lost_fails_with_a_hint(run, talon):
    """The retry's 409 may be the first attempt's own doing; nobody can know."""
    talon.fail_next("reset_after")
    with pytest.raises(AudienceExistsError, match="earlier attempt.*may have created"):
        run(create())
    assert list(talon.audiences()) == ["vip"]


def test_a_skipped_create_whose_answer_was_lost_is_no_plain_success_and_keeps_the_hint(run, talon, logged):
    talon.fail_next("reset_after")
    result = run(create(if_exists="skip"))
    assert result["outcome"] != "created"
    assert "may have created" in logged()


def test_an_updated_create_whose_answer_was_lost_ends_in_the_wanted_state(run, talon):
    talon.fail_next("reset_after")
    result = run(create(if_exists="update"))
    assert (result["outcome"], result["internal_id"]) == ("updated", 1)
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_a_delete_whose_answer_was_lost_fails_with_a_hint(run, talon):
    run(CreateAudienceOperator(task_id="setup", audience_id="old", audience_name="Old"))
    talon.fail_next("reset_after")
    with pytest.raises(NotFoundError, match="earlier attempt.*may have deleted"):
        run(delete())
    assert talon.audiences() == {}


def test_a_delete_whose_answer_was_lost_is_green_with_if_missing_skip(run, talon):
    run(CreateAudienceOperator(task_id="setup", audience_id="old", audience_name="Old"))
    talon.fail_next("reset_after")
    run(delete(if_missing="skip"))
    assert talon.audiences() == {}


def test_an_error_keeps_what_support_asks_for(run, talon):
    talon.fail_next("status", status=400, body={"StatusCode": 400, "Error": "No", "RequestUUID": "u-1"})
    with pytest.raises(RequestError, match="RequestUUID u-1") as error:
        run(profile())
    assert (error.value.status, error.value.request_uuid, error.value.method) == (400, "u-1", "PUT")
    assert '"Error": "No"' in error.value.body
