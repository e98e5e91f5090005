"""Create, rename and delete audiences."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    InvalidInputError,
    NotFoundError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.operators.audience import (
    CreateAudienceOperator,
    DeleteAudienceOperator,
    UpdateAudienceOperator,
)
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator

ODD_IDS = [
    "a/b",
    "a?b",
    "a#b",
    "100%",
    "%2F",
    "...",
    "a b",
    "\U0001f600",
    "x" * 1000,
    "a\nb",
    "\"'`\\",
    "audiences",
]


def create(**arguments):
    return CreateAudienceOperator(
        task_id="create", **({"audience_id": "vip", "audience_name": "VIP"} | arguments)
    )


def test_create_returns_the_new_audience(run, talon):
    assert run(create()) == {
        "audience_id": "vip",
        "audience_name": "VIP",
        "internal_id": 1,
        "outcome": "created",
    }
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_create_says_that_the_audience_may_need_connecting(run, caplog, capfd):
    caplog.set_level("INFO")
    run(create())
    # From Airflow 3 on an operator's log goes through structlog to the terminal, and not through logging.
    assert "Applications" in caplog.text + capfd.readouterr().out


def test_create_fails_when_the_audience_exists(run, talon):
    run(create())
    with pytest.raises(AudienceExistsError, match="already exists"):
        run(create(audience_name="Other"))
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_create_skips_an_existing_audience_and_leaves_its_name(run, talon):
    run(create())
    result = run(create(audience_name="Other", if_exists="skip"))
    assert (result["outcome"], result["internal_id"]) == ("skipped", None)
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_create_renames_an_existing_audience(run, talon):
    run(create())
    result = run(create(audience_name="Other", if_exists="update"))
    assert (result["outcome"], result["internal_id"]) == ("updated", 1)
    assert talon.audiences()["vip"]["name"] == "Other"


@pytest.mark.parametrize("if_exists", ["skip", "update"])
def test_if_exists_creates_what_does_not_exist(run, talon, if_exists):
    assert run(create(if_exists=if_exists))["outcome"] == "created"


def test_update_renames(run, talon):
    run(create())
    result = run(UpdateAudienceOperator(task_id="t", audience_id="vip", audience_name="Best"))
    assert result == {"audience_id": "vip", "audience_name": "Best", "internal_id": 1, "outcome": "updated"}
    assert talon.audiences()["vip"]["name"] == "Best"


def test_update_of_a_missing_audience_fails(run):
    with pytest.raises(NotFoundError, match="does not exist"):
        run(UpdateAudienceOperator(task_id="t", audience_id="vip", audience_name="Best"))


def test_delete_removes_the_audience(run, talon):
    run(create())
    assert run(DeleteAudienceOperator(task_id="t", audience_id="vip")) == {
        "audience_id": "vip",
        "outcome": "deleted",
    }
    assert talon.audiences() == {}


def test_delete_of_a_missing_audience_fails_or_skips(run):
    with pytest.raises(NotFoundError):
        run(DeleteAudienceOperator(task_id="t", audience_id="vip"))
    result = run(DeleteAudienceOperator(task_id="t", audience_id="vip", if_missing="skip"))
    assert result == {"audience_id": "vip", "outcome": "skipped"}


def test_an_audience_of_a_deployment_that_does_not_exist_is_no_missing_audience(run, talon, connect):
    """Talon.One answers both with 404, and a wrong Deployment host would be green."""
    run(create())
    connect({"deployment_host": "typo.europe-west1.talon.one"})
    with pytest.raises(NotFoundError, match="Deployment host"):
        run(DeleteAudienceOperator(task_id="t", audience_id="vip", if_missing="skip"))
    assert list(talon.audiences()) == ["vip"]


@pytest.mark.parametrize("page", [{"html": "<html>nginx</html>"}, {"body": ""}])
def test_a_web_server_that_knows_no_such_path_is_no_missing_audience(run, talon, page):
    """Else a wrong Base URL would be green."""
    run(create())
    talon.fail_next("status", status=404, **page)
    with pytest.raises(UnexpectedAnswerError, match="Base URL"):
        run(DeleteAudienceOperator(task_id="t", audience_id="vip", if_missing="skip"))
    assert list(talon.audiences()) == ["vip"]


@pytest.mark.parametrize("audience_id", ODD_IDS)
def test_an_audience_id_of_odd_characters_is_one_audience(run, talon, audience_id):
    run(create(audience_id=audience_id, audience_name=audience_id))
    assert {each: talon.audiences()[each]["name"] for each in talon.audiences()} == {audience_id: audience_id}
    run(UpdateAudienceOperator(task_id="t", audience_id=audience_id, audience_name="new"))
    assert talon.audiences()[audience_id]["name"] == "new"
    run(DeleteAudienceOperator(task_id="u", audience_id=audience_id))
    assert talon.audiences() == {}


@pytest.mark.parametrize("operator", [UpdateAudienceOperator, DeleteAudienceOperator])
@pytest.mark.parametrize("audience_id", [".", ".."])
def test_an_audience_id_that_is_a_step_in_a_path_is_refused(run, talon, operator, audience_id):
    more = {"audience_name": "x"} if operator is UpdateAudienceOperator else {}
    with pytest.raises(InvalidInputError, match="audience_id.*path"):
        run(operator(task_id="t", audience_id=audience_id, **more))
    assert talon.requests() == []


@pytest.mark.parametrize("audience_id", ["vip\n", " vip", "vip\t", " "])
@pytest.mark.parametrize("operator", [CreateAudienceOperator, UpdateAudienceOperator, DeleteAudienceOperator])
def test_a_literal_audience_id_with_white_space_at_an_end_fails_when_the_dag_is_parsed(operator, audience_id):
    more = {} if operator is DeleteAudienceOperator else {"audience_name": "x"}
    with pytest.raises(InvalidInputError, match="white space"):
        operator(task_id="t", audience_id=audience_id, **more)


def test_an_audience_id_from_a_template_with_white_space_at_its_end_is_refused(run, talon):
    """As from a mounted secret or a Variable; it would be a second audience."""
    with pytest.raises(InvalidInputError, match="white space"):
        run(create(audience_id="{{ params.id }}"), params={"id": "vip\n"})
    assert talon.requests() == []


def test_ids_names_and_connection_are_templates(run, talon):
    operator = create(
        audience_id="{{ params.id }}",
        audience_name="Buyers {{ ds }}",
        talon_cdp_conn_id="talon_{{ 'cdp' }}_default",
    )
    run(operator, params={"id": "vip"}, ds="2026-01-01")
    assert talon.audiences()["vip"]["name"] == "Buyers 2026-01-01"
    run(UpdateAudienceOperator(task_id="u", audience_id="{{ 'vip' }}", audience_name="{{ ds }}"), ds="today")
    assert talon.audiences()["vip"]["name"] == "today"
    run(DeleteAudienceOperator(task_id="d", audience_id="{{ 'vip' }}"))
    assert talon.audiences() == {}


@pytest.mark.parametrize("rename", [False, True])
def test_tasks_with_either_id_find_each_other_under_the_state_uri_of_the_task_that_named_the_audience(
    run, talon, tmp_path, monkeypatch, rename
):
    """As in pods: each task has an AIRFLOW_HOME of its own, and nothing is configured."""
    monkeypatch.delenv("AIRFLOW__TALON_CDP__STATE_URI", raising=False)
    state = str(tmp_path / "state")
    pods = iter(range(9))

    def in_pod(operator, **arguments):
        monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / f"pod-{next(pods)}"))
        return run(
            operator(task_id="t", state_uri="{{ params.state }}", **arguments), params={"state": state}
        )

    if rename:
        talon.create_audience("vip", "VIP")
        named = in_pod(UpdateAudienceOperator, audience_id="vip", audience_name="Best")
    else:
        named = in_pod(CreateAudienceOperator, audience_id="vip", audience_name="VIP")
    mirror = {"audience_id": named["internal_id"], "audience_id_type": "internal", "mode": "mirror"}
    mirror["members"] = ["anna", "bo", "cy"]
    in_pod(SyncAudienceMembersOperator, **mirror)
    # Not the first one, with which the mirror checks that the audience exists.
    in_pod(SyncAudienceMembersOperator, audience_id="vip", remove=["bo", "cy"])
    in_pod(SyncAudienceMembersOperator, **mirror)
    assert talon.members("vip") == {"anna", "bo", "cy"}


def test_a_state_uri_that_cannot_be_used_fails_no_task_that_has_renamed_its_audience(run, talon):
    talon.create_audience("vip", "VIP")
    rename = {"task_id": "t", "audience_id": "vip", "audience_name": "Best"}
    with pytest.raises(InvalidInputError, match="state_uri must be an absolute path"):
        run(UpdateAudienceOperator(**rename, state_uri="{{ 'relative' }}"))
    assert talon.audiences()["vip"]["name"] == "VIP"
    run(UpdateAudienceOperator(**rename, state_uri="no-such-storage://x"))
    assert talon.audiences()["vip"]["name"] == "Best"


@pytest.mark.parametrize(
    "arguments",
    [
        {"audience_id": ""},
        {"audience_id": 5},
        {"audience_id": None},
        {"audience_id": "x" * 1001},
        {"audience_name": ""},
        {"audience_name": None},
        {"audience_name": ["x"]},
        {"if_exists": "replace"},
        {"audience_id": "\ud800"},
    ],
)
def test_a_bad_literal_fails_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        create(**arguments)


@pytest.mark.parametrize("operator", [UpdateAudienceOperator, DeleteAudienceOperator])
def test_the_other_operators_check_their_literals_too(operator):
    names = {"audience_name": "x"} if operator is UpdateAudienceOperator else {}
    with pytest.raises(InvalidInputError, match="audience_id"):
        operator(task_id="t", audience_id="", **names)
    if not names:
        with pytest.raises(InvalidInputError, match="if_missing"):
            operator(task_id="t", audience_id="vip", if_missing="ignore")


@pytest.mark.parametrize("rendered", ["", "x" * 1001])
def test_a_bad_rendered_value_fails_before_anything_is_sent(run, talon, rendered):
    for operator in (
        create(audience_id="{{ params.x }}"),
        create(audience_name="{{ params.x }}"),
        UpdateAudienceOperator(task_id="u", audience_id="{{ params.x }}", audience_name="x"),
        DeleteAudienceOperator(task_id="d", audience_id="{{ params.x }}", if_missing="skip"),
    ):
        with pytest.raises(InvalidInputError, match="audience_(id|name)"):
            run(operator, params={"x": rendered})
    assert talon.requests() == []


def test_an_upstream_task_that_returned_nothing_fails_before_anything_is_sent(run, talon):
    with pytest.raises(InvalidInputError, match="audience_id.*null"):
        run(create(audience_id="{{ params.x }}"), native=True, params={"x": None})
    assert talon.requests() == []


def test_the_default_connection_is_the_hooks():
    operator = DeleteAudienceOperator(task_id="t", audience_id="vip")
    assert operator.talon_cdp_conn_id == TalonCdpHook().talon_cdp_conn_id == "talon_cdp_default"
