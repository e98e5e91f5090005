"""Update one customer profile."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import pytest
import requests
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, XComArg

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    LedgerError,
    RejectedError,
    TransientError,
    UnclearError,
)
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.operators.profile import UpdateProfileAudiencesOperator, UpdateProfileOperator

pytestmark = pytest.mark.usefixtures("no_ledgers")

ODD_IDS = [
    "a/b",
    "a?b",
    "a#b",
    "100%",
    "%2F",
    "...",
    " ",
    "\U0001f600",
    "x" * 1000,
    "a\nb",
    "\"'`\\",
    "audiences",
]


def profile(**arguments):
    return UpdateProfileOperator(task_id="t", **({"customer_profile_id": "anna"} | arguments))


def audiences(**arguments):
    return UpdateProfileAudiencesOperator(task_id="t", **({"customer_profile_id": "anna"} | arguments))


@pytest.fixture
def vip(run):
    return run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))["internal_id"]


def test_attributes_arrive_with_their_types(run, talon):
    result = run(
        profile(
            attributes={
                "Text": 'a "quoted" \u00fc \n\U0001f600',
                "Int": 2**70,
                "Price": Decimal("19.90"),
                "Flag": True,
                "At": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
                "Id": UUID(int=7),
                "List": ["a", "b"],
                "Old": None,
            }
        )
    )
    assert result == {"attributes": 8, "added": 0, "removed": 0, "effects": 0, "may_have_run_twice": False}
    assert talon.profile("anna")["attributes"] == {
        "Text": 'a "quoted" \u00fc \n\U0001f600',
        "Int": 2**70,
        "Price": Decimal("19.90"),
        "Flag": True,
        "At": "2026-01-02T03:04:05Z",
        "Id": str(UUID(int=7)),
        "List": ["a", "b"],
    }


def test_a_template_of_text_becomes_the_declared_type(run, talon):
    attributes = {"Points": "{{ params.n }}", "Active": "{{ params.yes }}", "Tier": "{{ params.n }}"}
    types = {"Points": "number", "Active": "boolean"}
    run(profile(attributes=attributes, types=types), params={"n": 5, "yes": True})
    assert talon.profile("anna")["attributes"] == {"Points": 5, "Active": True, "Tier": "5"}
    run(profile(attributes={"Points": None}, types={"Points": "number"}))
    assert talon.profile("anna")["attributes"] == {"Active": True, "Tier": "5"}


@pytest.mark.parametrize(
    "attributes, types, text",
    [
        ({"Points": "{{ params.n }}"}, {"Points": "number"}, "'Points' is declared as number, but its text"),
        ({"Tier": "gold"}, {"Points": "number"}, "types has 'Points', which is not in attributes"),
        (None, {"Points": "number"}, "types has 'Points', which is not in attributes"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_not_sent(run, talon, attributes, types, text):
    with pytest.raises(InvalidInputError, match=text):
        run(profile(attributes=attributes, types=types, run_rule_engine=True), params={"n": "many"})
    assert talon.requests() == []


def test_null_deletes_an_attribute_and_others_stay(run, talon):
    run(profile(attributes={"a": 1, "b": 2}))
    run(profile(attributes={"a": None}))
    assert talon.profile("anna")["attributes"] == {"b": 2}


def test_a_profile_joins_and_leaves_audiences_by_internal_id(run, talon, vip):
    assert run(profile(add_audiences=[vip]))["added"] == 1
    assert talon.members("vip") == {"anna"}
    assert run(profile(remove_audiences=[vip], attributes={"x": 1})) == {
        "attributes": 1,
        "added": 0,
        "removed": 1,
        "effects": 0,
        "may_have_run_twice": False,
    }
    assert talon.members("vip") == frozenset()


def test_an_empty_state_uri_of_a_template_is_not_the_default(run, talon, vip):
    """A retry would look for the mark of a call that runs rules in another place."""
    operator, before = profile(run_rule_engine=True, state_uri="{{ params.x }}"), talon.requests()
    with pytest.raises(InvalidInputError, match="^state_uri is empty after rendering"):
        run(operator, params={"x": ""})
    assert talon.requests() == before


def test_a_profile_joins_and_leaves_audiences_by_external_id(run, talon, vip):
    assert run(audiences(add_audiences=["vip"])) == {
        "added": 1,
        "removed": 0,
        "effects": 0,
        "may_have_run_twice": False,
    }
    assert talon.members("vip") == {"anna"}
    run(audiences(remove_audiences=["vip"]))
    assert talon.members("vip") == frozenset()


def test_the_rule_engine_stays_off_unless_asked_for(run, talon):
    run(profile(attributes={"x": 1}))
    run(profile(run_rule_engine=True))
    assert [each["run_rule_engine"] for each in talon.requests()] == [False, True]


def test_unknown_attributes_are_refused_or_skipped_as_asked(run, connect):
    with Emulator(attributes={"Tier": "string"}) as emulator:
        connect(emulator=emulator)
        with pytest.raises(RejectedError, match="/attributes/Typo") as error:
            run(profile(attributes={"Tier": "gold", "Typo": 1}))
        assert [each.pointer for each in error.value.blames] == ["/attributes/Typo"]
        assert emulator.profile("anna") is None
        run(profile(attributes={"Tier": "gold", "Typo": 1}, skip_unknown_attributes=True))
        assert emulator.profile("anna")["attributes"] == {"Tier": "gold"}


@pytest.mark.parametrize("profile_id", ODD_IDS)
def test_a_profile_id_of_odd_characters_is_one_profile(run, talon, vip, profile_id):
    run(profile(customer_profile_id=profile_id, attributes={"x": 1}))
    run(audiences(customer_profile_id=profile_id, add_audiences=["vip"]))
    assert talon.profiles() == talon.members("vip") == {profile_id}


@pytest.mark.parametrize("profile_id", [7, 0, -7, 2**70, UUID(int=7)], ids=str)
def test_an_integer_or_a_uuid_is_a_profile_id_by_its_text(run, talon, vip, profile_id):
    run(profile(customer_profile_id=profile_id, attributes={"x": 1}))
    run(audiences(customer_profile_id=profile_id, add_audiences=["vip"]))
    assert talon.profiles() == talon.members("vip") == {str(profile_id)}


@pytest.mark.parametrize(
    "profile_id, said",
    [
        ("anna ", "white space at their ends"),
        ("nan", "text of a null"),
        ("123.0", "end with '.0'"),
        ("anna", ""),
    ],
)
def test_a_profile_id_that_looks_wrong_is_sent_with_a_warning(
    run, talon, vip, profile_id, said, capfd, caplog
):
    for operator in (
        profile(customer_profile_id=profile_id, attributes={"x": 1}),
        audiences(customer_profile_id=profile_id, add_audiences=["vip"]),
    ):
        caplog.clear()
        run(operator)
        text = caplog.text + "".join(capfd.readouterr())
        assert (said in text) if said else ("profile IDs" not in text)
    assert talon.profiles() == {profile_id}


@pytest.mark.parametrize("profile_id", [".", ".."])
def test_a_profile_id_that_is_a_step_in_a_path_is_refused(run, talon, profile_id):
    """A proxy may make ``customer_profile/audiences`` of it: another call, with 200."""
    with pytest.raises(InvalidInputError, match="customer_profile_id.*path"):
        run(profile(customer_profile_id=profile_id, attributes={"x": 1}))
    with pytest.raises(InvalidInputError, match="customer_profile_id.*path"):
        run(audiences(customer_profile_id=profile_id, add_audiences=["vip"]))
    assert talon.requests() == []


RUNS_RULES = {
    "asked for": lambda **more: profile(run_rule_engine=True, **more),
    "internal audiences": lambda **more: profile(add_audiences=[1], **more),
    "external audiences": lambda **more: audiences(add_audiences=["vip"], **more),
}


def sent(talon):
    return [each for each in talon.requests() if "profile" in each["operation"]]


@pytest.mark.parametrize("operator", RUNS_RULES.values(), ids=RUNS_RULES)
@pytest.mark.parametrize("fault", ["reset_after", "reset_before", "status"])
def test_a_call_that_runs_rules_is_sent_once_where_its_answer_is_unclear(run, talon, vip, operator, fault):
    talon.fail_next(fault, times=2)
    with pytest.raises(UnclearError, match="The rules may have run"):
        run(operator())
    assert len(sent(talon)) == 1


@pytest.mark.parametrize("operator", RUNS_RULES.values(), ids=RUNS_RULES)
def test_a_call_that_runs_rules_is_sent_again_if_that_was_asked_for_and_the_result_says_so(
    run, talon, vip, operator
):
    talon.fail_next("reset_after", times=2)
    assert run(operator(on_unclear="retry"))["may_have_run_twice"] is True
    assert len(sent(talon)) == 3


def instance(number=1, **other):
    parts = {"dag_id": "dag", "task_id": "t", "run_id": "run", "map_index": -1} | other
    return SimpleNamespace(**parts, try_number=number)


@pytest.fixture
def stopped(run, monkeypatch):
    """Run a try that ends after its request was sent and before the answer, as by execution_timeout."""

    def stopped(operator, **instance_of):
        def send_and_end(session, prepared, **options):
            send(session, prepared, **options)
            raise KeyboardInterrupt

        send = requests.Session.send
        with monkeypatch.context() as patched:
            patched.setattr(requests.Session, "send", send_and_end)
            with pytest.raises(KeyboardInterrupt):
                run(operator, ti=instance(**instance_of))

    return stopped


@pytest.fixture
def marks(tmp_path):
    return lambda: list((tmp_path / "ledgers").glob("*/rule-calls/*"))


@pytest.mark.parametrize("operator", RUNS_RULES.values(), ids=RUNS_RULES)
def test_a_call_that_runs_rules_is_not_repeated_after_its_try_ended_without_an_answer(
    run, talon, vip, operator, stopped, marks
):
    """The error ends the task's retries; a person who clears the task then has the call made."""
    stopped(operator())
    (mark,) = marks()
    assert "anna" not in mark.read_text()
    with pytest.raises(UnclearError, match="An earlier try of this task ended during its call") as error:
        run(operator(), ti=instance(2))
    assert isinstance(error.value, AirflowFailException)
    assert len(sent(talon)) == 1
    assert run(operator(), ti=instance(3))["may_have_run_twice"] is False
    assert len(sent(talon)) == 2
    assert marks() == []


@pytest.mark.parametrize("operator", RUNS_RULES.values(), ids=RUNS_RULES)
def test_a_try_that_may_repeat_the_call_of_an_earlier_one_does_and_its_result_says_so(
    run, talon, vip, operator, stopped, connect, marks
):
    stopped(operator(on_unclear="retry"))
    connect({"call_retry_seconds": 0})
    talon.fail_next("status", status=429)
    with pytest.raises(TransientError):
        run(operator(on_unclear="retry"), ti=instance(2))
    assert run(operator(on_unclear="retry"), ti=instance(3))["may_have_run_twice"] is True
    assert run(operator(on_unclear="retry"), ti=instance(4))["may_have_run_twice"] is False
    assert marks() == []


def test_a_try_whose_budget_ended_with_an_unclear_answer_is_told_of_by_the_next_one(run, talon, connect):
    connect({"call_retry_seconds": 0})
    talon.fail_next("reset_after")
    operator = RUNS_RULES["asked for"]
    with pytest.raises(TransientError):
        run(operator(on_unclear="retry"), ti=instance())
    assert run(operator(on_unclear="retry"), ti=instance(2))["may_have_run_twice"] is True


@pytest.mark.parametrize("other", [{"run_id": "another"}, {"map_index": 1}, {"task_id": "u"}], ids=str)
def test_another_task_instance_is_not_stopped_by_it(run, talon, stopped, other):
    operator = RUNS_RULES["asked for"]
    stopped(operator())
    assert run(operator(), ti=instance(**other))["may_have_run_twice"] is False


@pytest.mark.parametrize(
    ("status", "error"), [(400, RejectedError), (429, TransientError), (500, UnclearError)]
)
def test_after_an_answer_the_next_try_makes_the_call(run, talon, connect, status, error):
    """That of 429 had no effect, and the other errors ended the retries: a person has seen them."""
    connect({"call_retry_seconds": 0})
    talon.fail_next("status", status=status)
    operator = RUNS_RULES["asked for"]
    with pytest.raises(error):
        run(operator(), ti=instance())
    run(operator(), ti=instance(2))
    assert len(sent(talon)) == 2


def test_a_call_that_runs_no_rules_leaves_no_mark_and_is_repeated(run, talon, stopped, marks):
    stopped(profile(attributes={"x": 1}))
    assert marks() == []
    run(profile(attributes={"x": 1}), ti=instance(2))
    assert len(sent(talon)) == 2


def test_a_value_that_cannot_be_sent_leaves_no_mark(run, talon, marks):
    with pytest.raises(InvalidInputError, match="'Field'"):
        run(profile(attributes={"Field": object()}, run_rule_engine=True), ti=instance())
    assert marks() == []


def test_without_its_mark_a_call_that_runs_rules_is_not_sent(run, talon, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="Check the state URI"):
        run(profile(run_rule_engine=True, state_uri=str(tmp_path / "file")), ti=instance())
    assert talon.requests() == []


def test_a_retry_that_cannot_find_the_mark_of_another_worker_says_so(
    run, talon, monkeypatch, caplog, capfd, tmp_path
):
    monkeypatch.delenv("AIRFLOW__TALON_CDP__STATE_URI")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    text = "The rules of this call may run twice: CeleryExecutor"
    run(profile(run_rule_engine=True), ti=instance())
    run(profile(run_rule_engine=True, state_uri=str(tmp_path)), ti=instance(2))
    run(profile(attributes={"x": 1}), ti=instance(2))
    assert text not in caplog.text + capfd.readouterr().out
    run(profile(run_rule_engine=True), ti=instance(2))
    assert text in caplog.text + capfd.readouterr().out


@pytest.mark.parametrize("operator", RUNS_RULES.values(), ids=RUNS_RULES)
def test_a_failure_that_ran_no_rules_is_retried(run, talon, vip, operator):
    talon.fail_next("status", status=429)
    talon.fail_next("status", status=409)
    assert run(operator())["may_have_run_twice"] is False
    assert len(sent(talon)) == 3


def test_a_call_without_rules_is_sent_again_and_has_run_nothing_twice(run, talon):
    talon.fail_next("reset_after", times=2)
    assert run(profile(attributes={"x": 1}))["may_have_run_twice"] is False
    assert len(sent(talon)) == 3


@pytest.mark.parametrize("operator", [profile, audiences])
def test_on_unclear_is_one_of_two_words(operator):
    with pytest.raises(InvalidInputError, match="on_unclear must be one of 'fail', 'retry'"):
        operator(on_unclear="skip")


def test_fields_are_templates(run, talon, vip):
    run(
        profile(
            customer_profile_id="{{ params.id }}",
            attributes={"Tier": "{{ params.tier }}", "n": 5},
            add_audiences=["{{ params.vip }}"],
        ),
        params={"id": "anna", "tier": "gold", "vip": vip},
    )
    assert talon.profile("anna") == {"attributes": {"Tier": "gold", "n": 5}, "audiences": ["vip"]}
    run(audiences(customer_profile_id="{{ 'anna' }}", remove_audiences="{{ ['vip'] | tojson }}"))
    assert talon.members("vip") == frozenset()


def test_attributes_may_come_from_a_native_template(run, talon):
    run(profile(attributes="{{ params.row }}"), native=True, params={"row": {"Tier": "gold"}})
    assert talon.profile("anna")["attributes"] == {"Tier": "gold"}


def test_attributes_may_be_json_text_from_a_template_as_lists_may(run, talon):
    run(profile(attributes="{{ params.row | tojson }}"), params={"row": {"Tier": "gold"}})
    assert talon.profile("anna")["attributes"] == {"Tier": "gold"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"customer_profile_id": ""},
        {"customer_profile_id": None},
        {"customer_profile_id": 5.0},
        {"customer_profile_id": True},
        {"customer_profile_id": b"anna"},
        {"attributes": ["x"]},
        {"add_audiences": ["vip"]},
        {"add_audiences": [0]},
        {"add_audiences": [True]},
        {"add_audiences": "1"},
        {"remove_audiences": None},
        {"remove_audiences": 1},
        {"add_audiences": [None]},
        {"add_audiences": ["9" * 4400]},
        {"skip_unknown_attributes": "False"},
        {"run_rule_engine": "False"},
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_bad_literal_fails_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        profile(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"customer_profile_id": ""},
        {"customer_profile_id": 5.0},
        {"customer_profile_id": True},
        {"add_audiences": [1]},
        {"add_audiences": "vip"},
        {"remove_audiences": None},
    ],
    ids=str,
)
def test_a_bad_literal_of_external_audiences_fails_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        audiences(**arguments)


@pytest.mark.parametrize(
    "operator",
    [
        lambda: profile(customer_profile_id="{{ params.x }}", attributes={"x": 1}),
        lambda: profile(attributes="{{ params.x }}"),
        lambda: profile(add_audiences="{{ params.x }}"),
        lambda: profile(add_audiences=["{{ params.x }}"]),
        lambda: audiences(customer_profile_id="{{ params.x }}", add_audiences=["vip"]),
        lambda: audiences(add_audiences="{{ params.x }}"),
        lambda: audiences(add_audiences=["{{ params.x }}"]),
    ],
)
def test_none_from_an_upstream_task_fails_before_anything_is_sent(run, talon, operator):
    with pytest.raises(InvalidInputError):
        run(operator(), native=True, params={"x": None})
    assert talon.requests() == []


@pytest.mark.parametrize(
    "operator",
    [
        lambda: profile(customer_profile_id="{{ params.x }}", attributes={"x": 1}),
        lambda: profile(add_audiences="{{ params.x }}"),
        lambda: profile(add_audiences=["{{ params.x }}"]),
        lambda: audiences(customer_profile_id="{{ params.x }}", add_audiences=["vip"]),
        lambda: audiences(add_audiences="{{ params.x }}"),
        lambda: audiences(add_audiences=["{{ params.x }}"]),
    ],
)
def test_none_that_a_template_made_text_of_does_not_become_an_id(run, talon, operator):
    """Without native rendering an upstream task that returned nothing renders to the text "None"."""
    with pytest.raises(InvalidInputError):
        run(operator(), params={"x": None})
    assert talon.requests() == []


@pytest.mark.parametrize(
    "attributes",
    [
        {"Points": 1, "Tier": "{{ params.x }}"},
        {"Points": 1, "Tier": ["gold", "{{ params.x }}"]},
        '{"Points": 1, "Tier": "{{ params.x }}"}',
    ],
    ids=["value", "list", "JSON text"],
)
def test_none_that_a_template_made_text_of_does_not_become_a_value(run, talon, attributes):
    with pytest.raises(InvalidInputError, match="The attribute 'Tier' is the text 'None'"):
        run(profile(attributes=attributes), params={"x": None})
    assert talon.requests() == []


@pytest.mark.parametrize("none", ["None", "{{ params.x }}-None"], ids=["literal", "part of a template"])
def test_the_text_none_is_a_value_where_the_dag_says_so(run, talon, none):
    run(profile(attributes={"Tier": none, "Name": "{{ params.x }}"}), params={"x": "Anna"})
    assert talon.profile("anna")["attributes"] == {
        "Tier": none.replace("{{ params.x }}", "Anna"),
        "Name": "Anna",
    }


@pytest.mark.parametrize("more", [{"add_audiences": [1]}, {"run_rule_engine": True}], ids=str)
@pytest.mark.parametrize(
    "template, native, said",
    [
        ("{{ params.x }}", True, "attributes is null after rendering"),
        ("{{ params.x | tojson }}", False, "attributes must be a mapping"),
    ],
    ids=["native", "JSON text"],
)
def test_attributes_of_an_upstream_task_that_returned_nothing_are_not_left_out(
    run, talon, more, template, native, said
):
    with pytest.raises(InvalidInputError, match=said):
        run(profile(attributes=template, **more), native=native, params={"x": None})
    assert talon.requests() == []


@pytest.mark.parametrize("attributes", [{}, "{{ params.x | tojson }}"], ids=["literal", "template"])
def test_an_empty_mapping_is_no_attributes(run, talon, vip, attributes):
    with pytest.raises(InvalidInputError, match="nothing to do"):
        run(profile(attributes=attributes), params={"x": {}})
    assert sent(talon) == []
    assert run(profile(attributes=attributes, add_audiences=[vip]), params={"x": {}})["attributes"] == 0
    assert talon.members("vip") == {"anna"}


class Result(XComArg):
    """The result of another task."""

    def __init__(self, value):
        self.value = value

    def iter_references(self):
        return iter(())

    def resolve(self, context, **more):
        return self.value


@pytest.mark.parametrize(
    "value",
    [Result(None), ["gold", Result(None)], {"a": [Result(None)]}],
    ids=["value", "list", "mapping"],
)
@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_nothing_from_another_task_does_not_delete_an_attribute(run, talon, value, native):
    run(profile(attributes={"Tier": "gold"}))
    with pytest.raises(InvalidInputError, match="The attribute 'Tier' is null after rendering") as error:
        run(profile(attributes={"Tier": value, "Points": 1}), native=native)
    assert isinstance(error.value, AirflowFailException)
    assert talon.profile("anna")["attributes"] == {"Tier": "gold"}


@pytest.mark.parametrize(
    "attributes",
    [
        {"Tier": None, "Points": Result(2)},
        '{"Tier": null, "Points": 2}',
        Result({"Tier": None, "Points": 2}),
    ],
    ids=["literal", "JSON text", "mapping of another task"],
)
def test_none_in_a_mapping_deletes_the_attribute(run, talon, attributes):
    run(profile(attributes={"Tier": "gold", "Points": 1}))
    run(profile(attributes=attributes))
    assert talon.profile("anna")["attributes"] == {"Points": 2}


def test_a_parameter_of_the_dag_that_is_none_deletes_the_attribute(run, talon):
    """As for other arguments: it may be None on purpose."""
    run(profile(attributes={"Tier": "gold", "Points": 1}))
    with DAG("d", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as dag:
        tier = dag.param("tier", default=None)
    run(profile(attributes={"Tier": tier}), dag_run=SimpleNamespace(conf={}), params={"tier": None})
    assert talon.profile("anna")["attributes"] == {"Points": 1}


def test_an_argument_of_a_mapped_group_that_is_none_deletes_the_attribute(run, talon):
    """Its row says None."""

    class MappedArgument(Result):
        pass

    run(profile(attributes={"Tier": "gold", "Points": 1}))
    run(profile(attributes={"Tier": MappedArgument(None)}))
    assert talon.profile("anna")["attributes"] == {"Points": 1}


def test_none_from_an_upstream_task_deletes_an_attribute_where_the_dag_renders_natively(run, talon):
    run(profile(attributes={"Tier": "gold", "Points": 1}))
    run(profile(attributes={"Tier": "{{ params.x }}"}), native=True, params={"x": None})
    assert talon.profile("anna")["attributes"] == {"Points": 1}


def test_nothing_to_do_is_an_error(run, talon):
    with pytest.raises(InvalidInputError, match="nothing to do"):
        run(profile())
    with pytest.raises(InvalidInputError, match="nothing to do"):
        run(audiences(add_audiences="[]"))
    assert talon.requests() == []


def test_an_audience_in_both_lists_is_an_error(run, talon):
    with pytest.raises(InvalidInputError, match="both"):
        run(profile(add_audiences=[1], remove_audiences=[1]))
    with pytest.raises(InvalidInputError, match="both"):
        run(audiences(add_audiences=["a"], remove_audiences=["a"]))
    assert talon.requests() == []


def test_more_than_a_thousand_audiences_of_one_profile_are_refused(run, talon):
    with pytest.raises(InvalidInputError, match="1000"):
        run(audiences(add_audiences=[f"a{each}" for each in range(1001)]))
    assert talon.requests() == []


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"x", object(), dt.datetime(2026, 1, 1), "\ud800"]
)
def test_a_value_that_cannot_be_sent_is_named_by_its_attribute(run, talon, value):
    with pytest.raises(InvalidInputError, match="'Field'"):
        run(profile(attributes={"Field": value}))
    assert talon.requests() == []


@pytest.mark.parametrize("native", [False, True])
def test_a_text_that_looks_like_a_number_stays_text(run, talon, native):
    """Native rendering would make the number 1.1 of "1.10", and nothing at all of "None"."""
    texts = {"Version": "1.10", "Zip": "1_000", "Hex": "0x1F", "Name": "None", "List": ["1.10", "{{ 'x' }}"]}
    templates = {"Rendered": "{{ '1_000' }}", "Lines": "a\n"}
    types = {"Rendered": "string"}
    run(profile(attributes=texts | templates, types=types), native=native)
    found = talon.profile("anna")["attributes"]
    assert found == texts | {"List": ["1.10", "x"], "Rendered": "1_000", "Lines": "a\n"}


@pytest.mark.parametrize(
    "value", [{"a": {"b": "{{ params.x }}"}}, {"a": [["{{ params.x }}"]]}, {"{{ params.x }}"}]
)
def test_a_text_of_nothing_is_refused_however_deep_it_is(run, talon, value):
    with pytest.raises(InvalidInputError, match="The attribute 'Place' is the text 'None'"):
        run(profile(attributes={"Place": value}), params={"x": None})
    assert talon.requests() == []


def test_native_rendering_keeps_types_of_templates_and_the_null_of_a_text(run, talon):
    run(profile(attributes={"Points": "{{ 7 }}", "Name": "x"}), native=True)
    run(profile(attributes={"Name": "{{ none }}"}, types={"Name": "string"}), native=True)
    assert talon.profile("anna")["attributes"] == {"Points": 7}


@pytest.mark.parametrize("audience", ["2024", "{{ 2024 }}"])
def test_an_audience_id_that_looks_like_a_number_stays_text(run, talon, audience):
    run(CreateAudienceOperator(task_id="c", audience_id="2024", audience_name="2024"))
    run(audiences(add_audiences=[audience]), native=True)
    assert talon.members("2024") == {"anna"}
