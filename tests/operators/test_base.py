"""What the operators that send have in common: retries, waiting, limits, lists as data, links, events."""

from __future__ import annotations

import importlib
import logging
import re
import time
import traceback
from collections import Counter
from threading import Event, Thread
from types import CodeType, SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Asset, AssetAlias, conf

import airflow_provider_talon_cdp as package
from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2, audience_asset
from airflow_provider_talon_cdp.decorators import TalonAudienceTask, TalonProfilesTask
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    LedgerBusyError,
    RejectedRecordsError,
    TransientError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.operators import _base, _fields, _state
from airflow_provider_talon_cdp.operators.audience import (
    CreateAudienceOperator,
    DeleteAudienceOperator,
    UpdateAudienceOperator,
)
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.operators.profile import UpdateProfileOperator
from airflow_provider_talon_cdp.sync import loop
from airflow_provider_talon_cdp.sync.report import Report
from airflow_provider_talon_cdp.transfers.across_workers import (
    CommitPlanOperator,
    PlanAudienceOperator,
    PlanProfilesOperator,
    PushShareOperator,
    talon_audience_sync,
)

# What ``ends_retries`` puts around a function.
(WRAPPER,) = (each for each in _fields.ends_retries.__code__.co_consts if isinstance(each, CodeType))
# What Airflow gives to a task: its events by outlet.
OutletEventAccessors = importlib.import_module(
    "airflow.utils.context" if IS_AIRFLOW_2 else "airflow.sdk.execution_time.context"
).OutletEventAccessors


def codes_of(function):
    """Code of a function and of those that decorators put around it."""
    found = []
    while function is not None:
        found.append(function.__code__)
        function = getattr(function, "__wrapped__", None)
    return found


class DataFrame:
    """Iterates as one of pandas does: by the names of its columns."""

    columns = ("id", "score")

    def __iter__(self):
        return iter(self.columns)


class Series:
    """Iterates as one of pandas does: by its values, which are those of NumPy."""

    def __iter__(self):
        return iter(["anna"])


def members(**arguments):
    return SyncAudienceMembersOperator(task_id="t", **({"audience_id": "vip"} | arguments))


def mirror(ids, **arguments):
    return members(members=ids, mode="mirror", audience_name="VIP", **arguments)


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(tmp_path / "ledgers"))


@pytest.fixture
def vip(run):
    return run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))["internal_id"]


def instance(run_id="r", **more):
    return SimpleNamespace(dag_id="d", task_id="t", run_id=run_id, map_index=-1, **more)


def extras(operator, events):
    """Extras of the events that Airflow registers for a task's outlets."""
    found = []
    for outlet in operator.outlets:
        event = events[outlet]
        found += event.asset_alias_events if isinstance(outlet, AssetAlias) else [event]
    return [each.extra for each in found]


class TestRetries:
    @pytest.mark.parametrize("status, kind", [(401, AuthenticationError), (403, AuthenticationError)])
    def test_a_wrong_key_fails_the_task_at_once(self, run, talon, vip, status, kind):
        talon.fail_next("status", status=status)
        with pytest.raises(kind) as error:
            run(members(add=["anna"]))
        assert isinstance(error.value, AirflowFailException)
        assert type(error.value.__cause__) is kind
        assert (error.value.status, str(error.value)) == (status, str(error.value.__cause__))  # type: ignore[attr-defined]

    def test_so_does_a_single_call(self, run, talon):
        talon.fail_next("status", status=401)
        with pytest.raises(AirflowFailException):
            run(UpdateProfileOperator(task_id="t", customer_profile_id="a", attributes={"x": 1}))

    def test_so_do_the_guard_wrong_arguments_and_rejected_records(self, run, talon, vip):
        run(mirror(["anna", "bert"]))
        for operator, kind in [
            (mirror(["carl"], min_removals=0), GuardError),
            (members(add="{{ 5 }}"), InvalidInputError),
            (members(add=["anna", ""]), RejectedRecordsError),
        ]:
            with pytest.raises(kind) as error:
                run(operator)
            assert isinstance(error.value, AirflowFailException)
            assert type(error.value.__cause__) is kind

    def test_rejected_records_keep_their_report(self, run, talon, vip):
        with pytest.raises(RejectedRecordsError) as error:
            run(members(add=["anna", ""]))
        assert error.value.report.sent == 1

    @pytest.mark.parametrize("kind", [TransientError, UnexpectedAnswerError])
    def test_what_may_pass_is_retried_and_the_rest_is_not(self, kind):
        @_fields.ends_retries
        def execute(operator, context):
            raise kind("what Talon.One said", method="PUT", path="/v1", status=503)

        with pytest.raises(kind) as error:
            execute(members(add=["anna"]), {})
        assert isinstance(error.value, AirflowFailException) == (kind is UnexpectedAnswerError)

    def test_every_operator_that_calls_talon_one_ends_its_retries(self):
        operators = [
            *(getattr(package, name) for name in package.__all__ if name.endswith("Operator")),
            *(PushShareOperator, CommitPlanOperator, PlanAudienceOperator, PlanProfilesOperator),
            *(TalonAudienceTask, TalonProfilesTask),
        ]
        assert len(operators) == 14
        for each in operators:
            assert WRAPPER in codes_of(each.execute), each

    @pytest.mark.parametrize("kind", [TransientError, UnexpectedAnswerError])
    def test_a_red_log_has_no_frames_below_the_operator(self, kind):
        """The UI shows the end of a log first: frames must not push the text out of it."""

        def below():
            raise kind("what Talon.One said", method="PUT", path="/v1", status=503)

        @_fields.ends_retries
        def execute(operator, context):
            below()

        with pytest.raises(kind) as error:
            execute(members(add=["anna"]), {})
        frames = [each.name for each in traceback.extract_tb(error.value.__traceback__)]
        assert "below" not in frames
        assert getattr(error.value.__cause__, "__traceback__", None) is None

    def test_the_text_stands_in_the_log_before_the_traceback(self, run, talon, vip, caplog, capfd):
        run(mirror(["anna", "bert"]))
        with pytest.raises(GuardError) as error:
            run(mirror(["carl"], min_removals=0))
        assert str(error.value).splitlines()[0] in caplog.text + capfd.readouterr().out


class TestMapped:
    @pytest.mark.parametrize(
        "kind, given, row",
        [
            (SyncAudienceMembersOperator, {}, {"audience_id": "", "add": ["a"]}),
            (SyncAudienceMembersOperator, {"audience_id": "vip"}, {"add": "anna"}),
            (UpdateProfileOperator, {}, {"customer_profile_id": ""}),
        ],
    )
    def test_a_wrong_argument_fails_the_task_at_once(self, kind, given, row):
        """Airflow makes the operator in each try, before it calls execute."""
        with DAG("d", schedule=None, start_date=None):
            mapped = kind.partial(task_id="m", **given).expand_kwargs([row])
        with pytest.raises(InvalidInputError) as error:
            mapped.unmap(row)
        assert isinstance(error.value, AirflowFailException)
        assert type(error.value.__cause__) is InvalidInputError
        # When the DAG is parsed there are no retries to end.
        with pytest.raises(InvalidInputError) as literal:
            kind(task_id="t", **given, **row)
        assert not isinstance(literal.value, AirflowFailException)
        assert str(literal.value) == str(error.value)


def test_each_try_has_a_hook_of_its_own():
    """As Airflow copies an operator for each try, or makes it of the mapped one."""
    with DAG("d", schedule=None) as dag:
        task = members(add=["anna"])
        mapped = SyncAudienceMembersOperator.partial(task_id="m", audience_id="vip").expand(add=[["anna"]])
    tries = [task.prepare_for_execution(), task.prepare_for_execution()]
    tries += [mapped.unmap({"add": ["anna"]}), mapped.unmap({"add": ["anna"]})]
    assert len({id(each.hook) for each in tries}) == len(tries)
    assert all(each.hook is each.hook for each in tries)
    assert "hook" not in vars(dag.get_task("t"))


class TestBusyLedger:
    @pytest.fixture
    def held(self, run, talon, vip, monkeypatch):
        """A ledger that another run has, and what gives it back."""
        run(mirror(["anna"]))
        monkeypatch.setattr(_base, "_SECONDS_BETWEEN_ATTEMPTS", 0.05)
        operator = mirror(["anna"])
        ledger = operator.mirror({}).ledger
        free, taken = Event(), Event()

        def hold():
            with ledger.held("another run"):
                taken.set()
                free.wait(30)

        holding = Thread(target=hold)
        holding.start()
        taken.wait(30)
        yield free
        free.set()
        holding.join()

    def test_a_run_waits_for_it(self, run, talon, held, caplog, capfd):
        caplog.set_level(logging.INFO)
        Thread(target=lambda: (time.sleep(0.5), held.set())).start()
        assert run(mirror(["anna", "bert"]))["sent"] == 1
        assert "in use by another run" in caplog.text + capfd.readouterr().out

    def test_a_run_fails_where_it_is_told_to(self, run, held):
        with pytest.raises(LedgerBusyError, match="in use by another run") as error:
            run(mirror(["anna"], on_busy="fail"))
        assert not isinstance(error.value, AirflowFailException)

    def test_a_run_waits_no_longer_than_its_limit(self, run, held):
        began = time.monotonic()
        with pytest.raises(LedgerBusyError):
            run(mirror(["anna"], busy_timeout=1))
        # Each look at the lock takes up to some seconds itself.
        assert 1 <= time.monotonic() - began < 20

    @pytest.mark.parametrize("wrong", [{"on_busy": "queue"}, {"busy_timeout": -1}, {"busy_timeout": None}])
    def test_arguments_that_cannot_work_are_refused(self, wrong):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            mirror(["anna"], **wrong)

    def test_they_are_for_mirrors(self):
        with pytest.raises(InvalidInputError, match="Only mode='mirror' takes on_busy"):
            members(add=["a"], on_busy="fail")


class TestLimitsFromTemplates:
    def test_the_limits_of_a_run_may_come_from_its_parameters(self, run, talon, vip):
        params = {"share": 0.9, "most": 1, "add": 5, "empty": "allow", "flight": 2, "rejected": 1}
        how = {
            "max_removal_fraction": "{{ params.share }}",
            "max_removals": "{{ params.most }}",
            "max_additions": "{{ params.add }}",
            "on_empty": "{{ params.empty }}",
            "in_flight": "{{ params.flight }}",
            "max_rejected": "{{ params.rejected }}",
        }
        for native in (False, True):
            assert run(mirror(["anna", "bert", ""], **how), native=native, params=params)["read"] == 3
            assert run(mirror(["anna"], **how), native=native, params=params)["removals"] == 1
        with pytest.raises(GuardError, match="max_additions is 5"):
            run(mirror(list("abcdefgh"), **how), params=params | {"share": 1.0, "most": 10})
        run(mirror([], **how), params=params | {"share": "1"})
        assert talon.members("vip") == frozenset()

    def test_a_field_of_a_subclass_may_be_none(self, run, vip):
        class OfRegion(SyncAudienceMembersOperator):
            template_fields = (*SyncAudienceMembersOperator.template_fields, "region")

            def __init__(self, *, region, **others):
                super().__init__(**others)
                self.region = region

        operator = OfRegion(task_id="sync", audience_id="vip", add=["anna"], region="{{ params.region }}")
        run(operator, native=True, params={"region": None})
        assert operator.region is None

    @pytest.mark.parametrize(
        "name, text",
        [
            ("max_removal_fraction", "half"),
            ("max_removals", ""),
            ("max_additions", "1.5"),
            ("on_empty", "ignore"),
            ("in_flight", "0"),
            ("max_rejected", "None"),
        ],
    )
    def test_a_text_that_is_no_limit_is_named_before_anything_is_sent(self, run, talon, name, text):
        with pytest.raises(InvalidInputError, match=name):
            run(mirror(["anna"], **{name: "{{ params.x }}"}), params={"x": text})
        assert talon.requests() == []

    @pytest.mark.parametrize("native", [False, True])
    @pytest.mark.parametrize("name", ["max_removals", "max_additions"])
    def test_no_limit_may_be_an_empty_parameter(self, run, talon, vip, native, name):
        operator = mirror(["anna"], **{name: "{{ params.x }}"})
        assert run(operator, native=native, params={"x": None})["sent"] == 1

    def test_but_an_empty_parameter_tolerates_no_rejections(self, run, talon, vip):
        with pytest.raises(InvalidInputError, match="max_rejected is null after rendering"):
            run(mirror(["anna", ""], max_rejected="{{ params.x }}"), native=True, params={"x": None})
        assert run(mirror(["anna", ""], max_rejected=None))["sent"] == 1


class TestListsAreData:
    ODD = ("1_000", "0x1F", "None", "True", "[1]", "{#", "1e5", "'a'")

    @pytest.mark.parametrize("native", [False, True])
    def test_no_id_of_a_literal_list_changes(self, run, talon, vip, native):
        run(members(add=list(self.ODD)), native=native)
        assert talon.members("vip") == set(self.ODD)

    def test_a_long_list_takes_no_time_to_render(self, run, talon, vip):
        operator = members(add=[f"c{each}" for each in range(300_000)])
        began = time.process_time()
        operator.render_template_fields({}, jinja_env=None)
        # Element by element it took over a minute.
        assert time.process_time() - began < 5

    @pytest.mark.parametrize("native", [False, True])
    def test_an_element_that_is_a_template_is_rendered_to_text(self, run, talon, vip, native):
        run(members(add=["1_000", "{{ params.x }}"]), native=native, params={"x": "2_000"})
        assert talon.members("vip") == {"1_000", "2_000"}

    def test_an_element_may_be_another_tasks_result(self, run, talon, vip):
        class Reference:
            def resolve(self, context):
                return context["result"]

        run(members(add=["anna", Reference()]), result="bert")
        assert talon.members("vip") == {"anna", "bert"}

    @pytest.mark.parametrize(
        "value, cure",
        [
            (DataFrame(), r"DataFrame.*df\['customer_id'\]\.tolist"),
            (Series(), r"Series.*series\.tolist"),
            ({"anna": 1}, r"dict.*list\(mapping\)"),
        ],
        ids=["frame", "series", "mapping"],
    )
    def test_what_is_no_list_is_refused_with_the_cure(self, run, talon, value, cure):
        for how in ({"add": value}, {"members": value, "mode": "mirror"}):
            with pytest.raises(InvalidInputError, match=cure) as error:
                members(**how).execute({})
            assert "anna" not in str(error.value)
        assert talon.requests() == []


class TestTextThatLooksLikeANumber:
    """It stays text, also where a DAG renders native objects."""

    @pytest.mark.parametrize("native", [False, True])
    def test_ids_and_names_of_audiences_are_text(self, run, talon, native):
        how = {"task_id": "t", "members": ["anna"], "mode": "mirror"}
        literal = SyncAudienceMembersOperator(audience_id="4711", audience_name="{{ params.name }}", **how)
        run(literal, native=native, params={"name": "1_000"})
        assert talon.audiences()["4711"]["name"] == "1_000"
        for kind in (CreateAudienceOperator, UpdateAudienceOperator):
            made = kind(task_id="t", audience_id="{{ params.id }}", audience_name="2026")
            run(made, native=native, params={"id": 4712})
        assert talon.audiences()["4712"]["name"] == "2026"
        run(DeleteAudienceOperator(task_id="t", audience_id="4712"), native=native)
        assert talon.audiences().keys() == {"4711"}

    @pytest.mark.parametrize("native", [False, True])
    def test_a_profile_id_is_text_and_a_value_of_the_same_template_is_not(self, run, talon, native):
        template = "{{ params.id }}"
        update = UpdateProfileOperator(
            task_id="t", customer_profile_id=template, attributes={"number": template}
        )
        run(update, native=native, params={"id": 10045})
        assert talon.profile("10045")["attributes"] == {"number": 10045 if native else "10045"}

    @pytest.mark.parametrize("native", [False, True])
    def test_an_internal_id_may_be_a_number_of_a_template(self, run, talon, vip, native):
        more = {"audience_id": "{{ params.id }}", "audience_id_type": "internal"}
        assert run(members(add=["anna"], **more), native=native, params={"id": vip})["sent"] == 1
        assert talon.members("vip") == {"anna"}

    @pytest.mark.parametrize("native", [False, True])
    @pytest.mark.parametrize("name", ["audience_id", "audience_name", "customer_profile_id"])
    def test_none_is_a_missing_value(self, run, talon, native, name):
        how = {"task_id": "t", name: "{{ none }}"}
        if name == "customer_profile_id":
            operator = UpdateProfileOperator(attributes={"a": 1}, **how)
        else:
            operator = CreateAudienceOperator(**{"audience_id": "vip", "audience_name": "VIP"} | how)
        with pytest.raises(InvalidInputError, match=f"{name} .* null" if native else f"{name} is the text"):
            run(operator, native=native)
        assert talon.requests() == []


class TestStateOnAWorkersDisk:
    @pytest.fixture(autouse=True)
    def nothing_is_configured(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW__TALON_CDP__STATE_URI")

    @pytest.mark.parametrize(
        "executor",
        [
            "CeleryExecutor",
            "KubernetesExecutor",
            "airflow.providers.edge3.executors.EdgeExecutor",
            "CeleryExecutor,LocalExecutor",
            "work:airflow.providers.celery.executors.celery_executor.CeleryExecutor",
            "LocalKubernetesExecutor",
            "astronomer.runtime.executors.AstroExecutor",
            "local:my.module.SlurmExecutor",
        ],
    )
    def test_it_is_refused_where_the_next_try_may_run_elsewhere(self, run, talon, monkeypatch, executor):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
        assert conf.get("core", "executor") == executor
        with pytest.raises(
            InvalidInputError, match=r"(?s)Executor may run the next try elsewhere.*state_uri"
        ):
            run(mirror(["anna"]))
        assert talon.requests() == []

    @pytest.mark.parametrize(
        "executor",
        [
            "LocalExecutor",
            "SequentialExecutor",
            "DebugExecutor",
            " LocalExecutor , CeleryExecutor",
            "fast:LocalExecutor",
            "my.module.LocalExecutor",
            "=LocalExecutor",
            # Airflow ignores what is for teams then.
            "LocalExecutor;team1=CeleryExecutor",
        ],
    )
    def test_it_is_taken_where_all_tries_run_on_one_machine(self, monkeypatch, executor):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
        assert mirror(["anna"]).resolved_state_uri().startswith("file://")

    @pytest.mark.parametrize(
        "executor, team, refused",
        [
            ("LocalExecutor,KubernetesExecutor;team1=CeleryExecutor", "team1", "CeleryExecutor"),
            ("LocalExecutor,KubernetesExecutor;team1=CeleryExecutor", "team2", None),
            ("CeleryExecutor;team1=LocalExecutor", "team1", None),
            ("CeleryExecutor;team1=LocalExecutor", "team2", "CeleryExecutor"),
            # Airflow before 3.3 does not tell the team.
            ("LocalExecutor;team1=a.CeleryExecutor", None, "CeleryExecutor"),
            ("CeleryExecutor;team1=LocalExecutor", None, "CeleryExecutor"),
            ("LocalExecutor,CeleryExecutor;team1=LocalExecutor", None, None),
        ],
    )
    def test_a_team_has_executors_of_its_own(self, monkeypatch, executor, team, refused):
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
        if team:
            # Set by Airflow for each task.
            monkeypatch.setenv("AIRFLOW_CTX_TEAM_NAME", team)
        if refused is None:
            assert mirror(["anna"]).resolved_state_uri().startswith("file://")
        else:
            with pytest.raises(InvalidInputError, match=f"disk, and {refused} may run"):
                mirror(["anna"]).resolved_state_uri()

    def test_it_is_refused_in_a_pod_of_the_kubernetes_executor(self, run, monkeypatch):
        monkeypatch.setenv("AIRFLOW_IS_K8S_EXECUTOR_POD", "True")
        with pytest.raises(InvalidInputError, match="KubernetesExecutor may run the next try elsewhere"):
            run(mirror(["anna"]))

    def test_a_task_with_an_executor_of_its_own_is_judged_by_that_one(self, monkeypatch, run):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,CeleryExecutor")
        with pytest.raises(InvalidInputError, match="CeleryExecutor"):
            mirror(["anna"], executor="CeleryExecutor").resolved_state_uri()
        assert mirror(["anna"]).resolved_state_uri().startswith("file://")
        assert mirror(["anna"], state_uri="/shared").resolved_state_uri() == "/shared"

    @pytest.mark.parametrize("executor", ["work", "CeleryExecutor", "a.b.CeleryExecutor", "my.OtherExecutor"])
    def test_it_may_be_named_by_its_alias_its_class_or_its_module(self, monkeypatch, executor):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,work:a.b.CeleryExecutor")
        with pytest.raises(InvalidInputError, match="(Celery|Other)Executor may run"):
            mirror(["anna"], executor=executor).resolved_state_uri()
        assert mirror(["anna"], executor="LocalExecutor").resolved_state_uri().startswith("file://")


class TestPasswordsInURIs:
    """Airflow takes all before the @ for the ID of a connection, and so it is in paths, logs and XComs."""

    URIS = (
        "s3://AKIA1:SECRET@bucket/talon_cdp",
        "s3://AKIA1:SEC/RET@bucket/talon_cdp",
        "s3://AKIA1:/SECRET@bucket/talon_cdp",
        "s3://AKIA1:SEC#RET@bucket/talon_cdp",
        "s3://AKIA1:SECRET[@bucket/talon_cdp",
        "s3://:SECRET@bucket/talon_cdp",
        "gs://AKIA1:SECRET@",
    )

    @pytest.mark.parametrize("uri", URIS)
    def test_they_are_refused_in_the_argument_and_not_quoted(self, uri):
        with pytest.raises(InvalidInputError, match="state_uri holds a user name and a password") as error:
            mirror(["anna"], state_uri=uri)
        assert not re.search("SEC|RET|AKIA1", str(error.value))

    @pytest.mark.parametrize("uri", URIS)
    def test_they_are_refused_in_the_setting_and_not_quoted(self, uri, monkeypatch, run):
        monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", uri)
        with pytest.raises(InvalidInputError, match=r"configuration holds a user name and a pass") as error:
            run(mirror(["anna"]))
        assert not re.search("SEC|RET|AKIA1", str(error.value))

    @pytest.mark.parametrize("uri", URIS)
    def test_they_are_refused_for_other_files_and_not_quoted(self, uri):
        with pytest.raises(InvalidInputError, match="The initial members file holds a user name") as error:
            _state.storage("initial members file", uri)
        assert not re.search("SEC|RET|AKIA1", str(error.value))

    @pytest.mark.parametrize(
        "uri",
        [
            "s3://aws_default@bucket/a:b@c",
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/talon_cdp",
            "hdfs://name@host:8020/user@x/talon_cdp",
            "hdfs://host:8020",
            "hdfs://[::1]:8020/talon_cdp",
            "file:///a:b@c/talon_cdp",
            "/a:b@c/talon_cdp",
        ],
    )
    def test_connections_ports_and_paths_are_none(self, uri):
        assert _state.check_state_uri("state_uri", uri) == uri


def test_on_kill_stops_what_is_being_sent(monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "stop_pushes", lambda: calls.append(1), raising=False)
    members(add=["anna"]).on_kill()
    assert calls == [1]


class TestPool:
    """Which pool a task is in."""

    @pytest.fixture
    def configured(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__TALON_CDP__POOL", "talon_one")

    def test_without_a_setting_it_is_airflows(self):
        assert members(add=["anna"]).pool == "default_pool"

    def test_the_setting_is_the_default(self, configured):
        assert members(add=["anna"]).pool == "talon_one"
        with DAG("d", schedule=None, start_date=None):
            group = talon_audience_sync("g", sql="SELECT 1", sql_conn_id="w", audience_id="vip")
        assert {name: getattr(task, "pool", None) for name, task in group.children.items()} == {
            "g.plan": "talon_one",
            "g.push": "talon_one",
            "g.commit": "talon_one",
        }

    def test_the_task_and_default_args_come_first(self, configured):
        assert members(add=["anna"], pool="mine").pool == "mine"
        assert members(add=["anna"], pool="default_pool").pool == "default_pool"
        assert members(add=["anna"], default_args={"pool": "mine"}).pool == "mine"
        with DAG("d", schedule=None, start_date=None, default_args={"pool": "ours"}):
            assert members(add=["anna"]).pool == "ours"
            mapped = SyncAudienceMembersOperator.partial(task_id="m", audience_id="vip").expand(add=[["a"]])
            assert mapped.pool == "ours"

    def test_tasks_that_only_read_take_that_of_default_args(self, configured):
        source = {"sql": "SELECT 1", "sql_conn_id": "w", "audience_id": "vip", "plan_workers": 2}
        with DAG("d", schedule=None, start_date=None, default_args={"pool": "ours"}) as dag:
            talon_audience_sync("g", **source)
            talon_audience_sync("h", default_args={"pool": "mine"}, **source)
            talon_audience_sync("i", pool="of_push", **source)
        pools = {task.task_id: task.pool for task in dag.tasks}
        assert {name: pool for name, pool in pools.items() if name.endswith(("ranges", "compare"))} == {
            "g.ranges": "ours",
            "g.compare": "ours",
            "h.ranges": "mine",
            "h.compare": "mine",
            "i.ranges": "ours",
            "i.compare": "ours",
        }
        assert pools["i.push"] == "of_push"

    def test_so_it_is_with_a_mapped_task(self, configured):
        with DAG("d", schedule=None, start_date=None):
            for given, pool in (({}, "talon_one"), ({"pool": "mine"}, "mine")):
                how = {"task_id": f"m-{pool}", "audience_id": "vip"} | given
                mapped = SyncAudienceMembersOperator.partial(**how).expand(add=[["a"]])
                assert mapped.pool == pool


class TestThrottling:
    @pytest.mark.parametrize("times, is_told", [(1, False), (2, True)])
    def test_a_run_that_was_throttled_often_says_what_to_do(
        self, run, talon, vip, caplog, capfd, times, is_told
    ):
        talon.fail_next("status", status=429, retry_after=0, times=times)
        run(members(add=[f"p{number}" for number in range(49_000)], in_flight=1))
        log = caplog.text + capfd.readouterr().out
        assert (f"{times} of {49 + times} requests were throttled" in log) == is_told
        assert ("pool= on these tasks or [talon_cdp] pool" in log) == is_told


class TestLinks:
    def test_the_campaign_manager_and_the_dead_letters_of_a_red_task(self, run, talon, vip):
        kept = {}
        talon.reject_profiles(["bert"])
        operator = mirror(["anna", "bert"])
        with pytest.raises(RejectedRecordsError) as error:
            run(operator, ti=instance(xcom_push=lambda key, value: kept.update({key: value})))
        campaign_manager, letters = operator.operator_extra_links
        url = "https://demo.europe-west1.talon.one"
        assert campaign_manager.get_link(operator, ti_key=None) == url
        assert letters.get_link(operator, ti_key=None) == error.value.report.dead_letters
        assert kept == {
            campaign_manager.key: url,
            letters.key: error.value.report.dead_letters,
            _base.REPORT_KEY: error.value.report.report_file,
        }

    def test_a_link_that_cannot_be_kept_fails_no_task_and_hides_no_error(self, run, talon, vip):
        def fails(key, value):
            raise ConnectionError("the API server went away")

        assert run(members(add=["anna"]), ti=instance(xcom_push=fails))["sent"] == 1
        talon.reject_profiles(["bert"])
        with pytest.raises(RejectedRecordsError):
            run(mirror(["anna", "bert"]), ti=instance(xcom_push=fails))

    def test_nor_does_the_ledgers_version(self, run, talon, vip, caplog, capfd):
        def fails(key, value):
            raise ConnectionError("the API server went away")

        def task():
            return instance(xcom_push=fails, xcom_pull=lambda **_: None)

        assert run(mirror(["anna"]), ti=task())["sent"] == 1
        assert "The ledger's version cannot be kept as an XCom" in caplog.text + capfd.readouterr().out
        talon.reject_profiles(["bert"])
        with pytest.raises(RejectedRecordsError):
            run(mirror(["anna", "bert"]), ti=task())

    def test_a_version_that_cannot_be_read_fails_no_task(self, run, talon, vip, caplog, capfd):
        """A backend may have deleted it, and then no retry would find it."""
        pushed = {}

        def fails(**_):
            raise FileNotFoundError("the object has expired")

        for number in (1, 2):
            task = instance(xcom_pull=fails, xcom_push=lambda key, value: pushed.update({key: value}))
            run(mirror([f"p{number}"], max_removal_fraction=1), ti=task)
            log = caplog.text + capfd.readouterr().out
            assert "The XCom with the ledger's version cannot be read" in log
            assert "the object has expired" in log
            assert pushed["talon_cdp_ledger"]["version"] == number
            caplog.clear()

    def test_there_is_none_before_the_task_has_run(self):
        operator = members(add=["anna"])
        assert [each.get_link(operator, ti_key=None) for each in operator.operator_extra_links] == ["", ""]


class TestAssetEvents:
    @pytest.mark.parametrize(
        "dag_run, told",
        [
            (SimpleNamespace(partition_key="2026-01-01"), {"partition_key": "2026-01-01"}),
            (SimpleNamespace(partition_key=None), {}),
            # Before Airflow 3.2.
            (SimpleNamespace(), {}),
        ],
        ids=["partitioned", "not partitioned", "no partitions"],
    )
    def test_an_event_has_the_partition_of_its_run(self, run, talon, vip, dag_run, told):
        operator, events = mirror(["anna"]), OutletEventAccessors()
        run(operator, dag_run=dag_run, outlet_events=events)
        (extra,) = extras(operator, events)
        assert extra["added"] == 1
        assert {name: value for name, value in extra.items() if name == "partition_key"} == told

    def test_a_users_own_outlet_gets_the_counts_beside_what_the_user_has_told(self, run, talon, vip):
        own = audience_asset("demo.europe-west1.talon.one", "vip")
        operator, events = mirror(["anna"], outlets=[own]), OutletEventAccessors()
        events[own].extra["source"] = "crm"
        run(operator, outlet_events=events)
        (extra,) = extras(operator, events)
        assert (extra["source"], extra["added"], extra["members"]) == ("crm", 1, 1)

    @pytest.mark.parametrize("how", ["dry", "skipped"])
    def test_a_run_that_sends_nothing_makes_no_event_of_a_users_own_outlet(self, run, talon, vip, how):
        """Airflow makes one of every asset that is an outlet when the task has succeeded."""
        own = audience_asset("demo.europe-west1.talon.one", "vip")
        other = Asset("s3://bucket/other")
        run(mirror(["anna"]))
        nothing = {"dry_run": True} if how == "dry" else {"on_empty": "skip"}
        operator = mirror([] if how == "skipped" else ["bert"], outlets=[own, other], **nothing)
        run(operator, outlet_events=OutletEventAccessors())
        assert [each for each in operator.outlets if isinstance(each, Asset)] == [other]

    def test_changes_that_were_not_counted_by_audience_are_not_told_as_none(self, run, talon, vip):
        """As where the report's file of a plan cannot be read."""
        operator = mirror(["anna"])
        report = Report(added=Counter({"": 4}), removed=Counter({"": 1}), ledger_version=2)
        ((_, extra),) = operator._event_extras({}, "demo.talon.one", report).items()
        assert (extra["added"], extra["removed"], extra["members"]) == (4, 1, None)
