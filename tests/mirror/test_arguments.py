"""Arguments that cannot be right are refused when the DAG is parsed."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

WRONG = [
    ({"on_empty": "ignore"}, "on_empty must be one of 'fail', 'skip', 'allow', but is 'ignore'"),
    ({"on_empty": None}, "on_empty must be"),
    ({"max_removal_fraction": 1.01}, "max_removal_fraction must be a number from 0 to 1, but is 1.01"),
    ({"max_removal_fraction": -0.1}, "max_removal_fraction"),
    ({"max_removal_fraction": 20}, "max_removal_fraction"),
    ({"max_removal_fraction": "0.2"}, "max_removal_fraction"),
    ({"max_removal_fraction": True}, "max_removal_fraction"),
    ({"max_removal_fraction": float("nan")}, "max_removal_fraction"),
    ({"max_removals": -1}, "max_removals must be an integer >= 0 or None"),
    ({"max_removals": 1.5}, "max_removals"),
    ({"max_additions": "10"}, "max_additions"),
    ({"max_rejected": -1}, "max_rejected"),
    ({"in_flight": 0}, "in_flight"),
    ({"audience_name": ""}, "audience_name must be a string of 1 to 1000 characters"),
    ({"audience_name": "x" * 1001}, "audience_name"),
    ({"audience_id": ""}, "audience_id"),
    ({"audience_id": 7}, "audience_id is the integer 7"),
    (
        {"audience_id": 7, "audience_id_type": "internal", "audience_name": "VIP"},
        "audience_name is for external audience IDs",
    ),
    ({"verify": "always"}, "verify must be one of 'identity', 'exists', 'none', but is 'always'"),
    ({"min_removals": -1}, "min_removals must be an integer >= 0"),
    ({"on_older_run": "ask"}, "on_older_run must be one of 'fail', 'skip', 'allow'"),
    ({"retry_rejected": "sometimes"}, "retry_rejected must be one of 'always', 'never'"),
    ({"on_busy": "skip"}, "on_busy must be one of 'wait', 'fail'"),
    ({"audience_id_type": "outer"}, "audience_id_type must be one of 'external', 'internal'"),
    ({"dry_run": "yes"}, "dry_run must be True or False"),
    ({"dry_run": ""}, "dry_run must be True or False"),
    ({"keep_versions": 0}, "keep_versions must be an integer >= 1"),
]


def sql(**arguments):
    one = {} if "audience_column" in arguments else {"audience_id": "vip"}
    defaults = {"task_id": "sync", "sql": "SELECT 1", "sql_conn_id": "warehouse", "mode": "mirror"} | one
    return SqlToTalonAudienceOperator(**(defaults | arguments))


def from_list(**arguments):
    defaults = {"task_id": "sync", "audience_id": "vip", "members": ["anna"], "mode": "mirror"}
    return SyncAudienceMembersOperator(**(defaults | arguments))


def list_of_adds(**arguments):
    return SyncAudienceMembersOperator(task_id="sync", audience_id="vip", add=["anna"], **arguments)


@pytest.mark.parametrize("operator", [sql, from_list])
@pytest.mark.parametrize("arguments, complaint", WRONG)
def test_bad_literals(operator, arguments, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        operator(**arguments)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"mode": "mirrors"}, "mode must be one of 'mirror', 'add', 'remove', but is 'mirrors'"),
        ({"mode": None}, "mode must be one of"),
        ({"sql": ""}, "sql must be one SELECT"),
        ({"sql": " ; "}, "sql must be one SELECT"),
        ({"sql": ["SELECT 1"]}, "sql must be one SELECT"),
        ({"audience_id": None}, "Give either audience_id"),
        ({"audience_id": "vip", "audience_column": "a"}, "Give either audience_id"),
        ({"audience_column": "a", "audiences": "vip"}, "audiences must be a list, but is one string"),
        ({"audience_column": "a", "audience_name": "VIP"}, "use audience_name_column"),
        ({"audience_column": "a", "initial_members": "a.csv"}, "initial_members is for one audience"),
        ({"audiences": ["vip"]}, "audiences goes with mode='mirror' and audience_column"),
        ({"audience_name_column": "n"}, "audience_name_column goes with"),
        (
            {"audience_column": "a", "audience_name_column": "n", "audience_id_type": "internal"},
            "audience_name_column is for external audience IDs",
        ),
        ({"ledger": "nightly"}, "ledger goes with"),
        ({"state_uri": "None"}, "state_uri is the text 'None'"),
        ({"state_uri": "talon/state"}, "state_uri must be an absolute path or a URI, such as s3://"),
        ({"state_uri": "~/talon"}, "state_uri must be an absolute path or a URI.*but is '~/talon'"),
    ],
)
def test_bad_literals_of_the_transfer(arguments, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        sql(**arguments)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"mode": "add"}, "mode must be 'mirror' or None"),
        ({"mode": None}, "members and mode='mirror' go together"),
        ({"members": None}, "members and mode='mirror' go together"),
        ({"members": "anna"}, "members must be a list, but is one string"),
        ({"members": {"anna": 1}}, "members must be a list, not dict"),
        ({"add": ["bert"]}, "add and remove do not go with members"),
        ({"remove": ["bert"]}, "add and remove do not go with members"),
        ({"add": ["a"], "members": None}, "members and mode='mirror' go together"),
    ],
)
def test_bad_literals_of_the_list(arguments, complaint):
    with pytest.raises(InvalidInputError, match=complaint) as refusal:
        from_list(**arguments)
    assert "anna" not in str(refusal.value)


MIRROR_ONLY = {
    "audience_name": "VIP",
    "on_empty": "allow",
    "max_removal_fraction": 0.5,
    "min_removals": 5,
    "max_removals": 5,
    "max_additions": 5,
    "send": "all",
    "dry_run": True,
    "on_older_run": "allow",
    "retry_rejected": "never",
    "verify": "none",
    "on_busy": "fail",
    "busy_timeout": 5,
    "initial_members": "a.csv",
}


@pytest.mark.parametrize("name", MIRROR_ONLY)
@pytest.mark.parametrize("mode", ["add", "remove", "list"])
def test_arguments_of_a_mirror_alone_are_refused_elsewhere(name, mode):
    argument = {name: MIRROR_ONLY[name]}
    with pytest.raises(InvalidInputError, match=f"Only mode='mirror' takes {name}"):
        list_of_adds(**argument) if mode == "list" else sql(mode=mode, **argument)


@pytest.mark.parametrize("mode", ["add", "remove", "list"])
def test_dead_letters_have_a_place_in_every_mode(mode):
    given = {"state_uri": "/tmp/x", "keep_versions": 5}
    operator = list_of_adds(**given) if mode == "list" else sql(mode=mode, **given)
    assert (operator.state_uri, operator.keep_versions) == ("/tmp/x", 5)


@pytest.mark.parametrize(
    "name, value", [("audiences", ["vip"]), ("audience_name_column", "n"), ("ledger", "l")]
)
@pytest.mark.parametrize("mode", ["add", "remove"])
def test_many_audiences_of_a_mirror_alone(name, value, mode):
    with pytest.raises(InvalidInputError, match=f"{name} goes with mode='mirror'"):
        sql(mode=mode, audience_column="a", **{name: value})


def test_templates_pass_until_they_are_rendered():
    operator = sql(
        audience_id="{{ params.audience }}",
        audience_name="{{ params.name }}",
        dry_run="{{ params.dry }}",
        state_uri="{{ params.state }}",
        initial_members="{{ params.file }}",
        sql="{{ params.sql }}",
    )
    params = {"audience": "vip", "name": "VIP", "dry": True, "state": "s", "file": "f", "sql": "SELECT 2"}
    with DAG("mirrors", schedule=None):
        operator.render_template_fields({"params": params})
    assert (operator.audience_id, operator.audience_name, operator.sql) == ("vip", "VIP", "SELECT 2")
    assert (operator.is_dry_run, operator.state_uri, operator.initial_members) == ("True", "s", "f")


@pytest.mark.parametrize("name", ["audience_id", "audience_name", "sql"])
def test_templates_that_render_to_nothing_are_refused_before_the_first_request(
    sqlite, vip, state, context, calls, name
):
    sqlite.fill(["anna"])
    given = {"sql": "SELECT profile_id FROM customers", "state_uri": str(state), "audience_name": "VIP"}
    operator = sql(**(given | {name: "{{ params.nothing }}"}))
    with DAG("mirrors", schedule=None):
        operator.render_template_fields({"params": {"nothing": ""}})
    with pytest.raises(InvalidInputError, match=name):
        operator.execute(context)
    assert calls() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"state_uri": "{{ params.x }}"}, "state_uri is the text 'None'"),
        (
            {"audience_id": None, "audience_column": "a", "ledger": "{{ params.x }}"},
            "ledger is the text 'None'",
        ),
    ],
)
def test_a_place_or_name_of_the_ledger_that_renders_to_none_is_refused(
    sqlite, talon, context, calls, arguments, complaint
):
    operator = sql(**arguments)
    with DAG("mirrors", schedule=None):
        operator.render_template_fields({"params": {"x": None}})
    with pytest.raises(InvalidInputError, match=complaint):
        operator.execute(context)
    assert calls() == 0


def rendered(operator, **params):
    """Render an operator's templates to native objects."""
    with DAG("mirrors", schedule=None, render_template_as_native_obj=True) as dag:
        dag.add_task(operator)
    operator.render_template_fields({"params": params}, jinja_env=dag.get_template_env())
    return operator


@pytest.mark.parametrize("ledger", ["2026", "{{ params.x }}"])
def test_the_name_of_a_ledger_that_looks_like_a_number_stays_text(sqlite, connect, state, context, ledger):
    """Also where a DAG renders native objects."""
    sqlite.fill_people("profile_id text, tier text", [("anna", "gold")])
    sqlite.fill_pairs([("anna", "vip")])
    how = {"sql_conn_id": "warehouse", "state_uri": str(state), "ledger": ledger}
    columns = {"audience_column": "audience_id", "audience_name_column": "audience_name"}
    for operator in (
        SqlToTalonProfilesOperator(task_id="p", sql="SELECT * FROM people", **how),
        sql(sql="SELECT * FROM memberships", **columns, **how),
    ):
        rendered(operator, x="2026")
        assert operator.ledger == "2026"
        assert operator.execute(context)["sent"] == 1


@pytest.mark.parametrize("kind", [SqlToTalonProfilesOperator, task.talon_profiles])
def test_the_name_of_a_ledger_of_profiles_that_renders_to_none_is_refused(
    sqlite, talon, context, calls, kind
):
    def no_rows():
        return []

    with DAG("mirrors", schedule=None):
        if kind is SqlToTalonProfilesOperator:
            operator = kind(task_id="p", sql="SELECT 1", sql_conn_id="warehouse", ledger="{{ params.x }}")
        else:
            operator = kind(ledger="{{ params.x }}")(no_rows)().operator
    operator.render_template_fields({"params": {"x": None}})
    with pytest.raises(InvalidInputError, match="ledger is the text 'None'"):
        operator.execute(context)
    assert calls() == 0


@pytest.mark.parametrize("setting", ["None", "talon/state"])
def test_a_state_uri_of_the_configuration_that_depends_on_the_worker_is_refused(
    sqlite, vip, mirror, calls, monkeypatch, tmp_path, setting
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", setting)
    sqlite.fill(["anna"])
    with pytest.raises(InvalidInputError, match=r"^\[talon_cdp\] state_uri in Airflow's configuration "):
        mirror(state_uri=None)
    assert calls() == 0
    assert not (tmp_path / setting).exists()
