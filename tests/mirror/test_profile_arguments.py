"""What the profiles operator refuses before it does anything."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator


def operator(**arguments):
    defaults = {"task_id": "sync", "sql": "SELECT * FROM people", "sql_conn_id": "warehouse"}
    return SqlToTalonProfilesOperator(**(defaults | arguments))


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"sql": " ;"}, "sql must be one SELECT"),
        ({"nulls": "keep"}, "nulls must be one of 'skip', 'delete'"),
        ({"send": "new"}, "send must be one of 'changed', 'all'"),
        ({"on_missing": "delete"}, "on_missing must be one of 'ignore', 'clear'"),
        ({"on_duplicate": "first"}, "on_duplicate must be one of 'error', 'last'"),
        ({"on_duplicate": "last"}, "order_by_column and on_duplicate='last' go together"),
        ({"order_by_column": "at"}, "order_by_column and on_duplicate='last' go together"),
        ({"types": {"born": "date"}}, "'born' must be one of 'string', 'number'"),
        ({"types": ["born"]}, "types must be a mapping"),
        ({"attributes": [["tier"]]}, "Each column and each attribute in attributes must be a string"),
        ({"attributes": []}, "attributes is empty"),
        ({"attributes": {}}, "attributes is empty"),
        ({"attributes": "tier"}, "attributes must be a list, but is one string"),
        (
            {"attributes": {"tier": ""}},
            "Each column and each attribute in attributes must be a string of 1 to 1000",
        ),
        ({"attributes": {"tier": None}}, "Each column and each attribute in attributes"),
        ({"attributes": {"a": "x", "b": "x"}}, "two columns for the attribute 'x'"),
        ({"skip_unknown_attributes": "yes"}, "skip_unknown_attributes must be True or False"),
        ({"run_rule_engine": 1}, "run_rule_engine must be True or False"),
        ({"give_up_after": 0}, "give_up_after must be an integer >= 1 or None"),
        ({"give_up_after": True}, "give_up_after must be an integer >= 1 or None"),
        ({"max_removals": 5}, "for on_missing='clear' and nulls='delete' only"),
        ({"max_removal_fraction": 0.5}, "for on_missing='clear' and nulls='delete' only"),
        ({"max_removal_fraction": 2, "on_missing": "clear"}, "a number from 0 to 1"),
        ({"on_empty": "no"}, "on_empty must be"),
        ({"keep_versions": 0}, "keep_versions must be an integer >= 1"),
        ({"max_rejected": -1}, "max_rejected must be"),
        ({"in_flight": 0}, "in_flight must be"),
        ({"dry_run": "perhaps"}, "dry_run must be True or False"),
    ],
)
def test_what_cannot_work_is_refused_when_the_dag_is_parsed(arguments, says):
    with pytest.raises(InvalidInputError, match=says):
        operator(**arguments)


@pytest.mark.parametrize(
    "name", ["audience_id", "audience_column", "audiences", "add_audiences", "remove_audiences"]
)
def test_audiences_in_the_same_call_are_refused_with_the_reason(name):
    with pytest.raises(
        InvalidInputError,
        match=f"{name} cannot be used here: with attributes, Talon.One would run its rules for",
    ) as error:
        operator(**{name: "vip"})
    assert "SqlToTalonAudienceOperator" in str(error.value)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            {"types": {"scoer": "number"}},
            "types has the attribute 'scoer', which the query does not give. It gives: tier, score",
        ),
        ({"types": {"score": "number"}, "attributes": ["tier"]}, "types has the attribute 'score'"),
        ({"profile_id_column": "None"}, "profile_id_column is the text 'None'"),
        ({"profile_id_column": "nobody"}, "no column 'nobody'"),
        ({"ledger": ""}, "ledger must be a string of 1 to 1000"),
        ({"sql_conn_id": "talon_cdp_default"}, "is not a SQL hook"),
    ],
)
def test_what_turns_out_later_is_refused_before_anything_is_sent(sqlite, send, talon, arguments, says):
    sqlite.fill_people("id, tier, score", [("anna", "gold", 1)])
    with pytest.raises(InvalidInputError, match=says):
        send(**arguments)
    assert talon.requests() == []


def test_a_template_of_send_is_checked_when_it_is_rendered(sqlite, talon):
    task = operator(send="{{ params.send }}")
    task.send = "None"
    with pytest.raises(InvalidInputError, match="send must be one of"):
        task.execute({})


def test_templates_may_render_to_json(sqlite, send, attributes):
    sqlite.fill_people("id, tier, score", [("anna", "gold", "7.50")])
    send(attributes='{"score": "Score"}', types='{"Score": "number"}')
    assert str(attributes()["anna"]["Score"]) == "7.5"
    send(attributes='["tier"]', ledger="other")
    assert attributes()["anna"]["tier"] == "gold"
