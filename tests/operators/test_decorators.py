"""Functions whose results are sent to Talon.One."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError, RejectedRecordsError
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator


class NaTType(dt.datetime):
    """Like pandas.NaT: a datetime whose methods raise."""

    def isoformat(self, *arguments):
        raise ValueError("NaTType does not support isoformat")

    utcoffset = astimezone = timetuple = __str__ = isoformat


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(tmp_path / "ledgers"))


@pytest.fixture
def send(connect):
    """Make a task of a function, as a DAG does, and execute it."""

    def send(decorator, function, *arguments, context=None, **how):
        with DAG("d", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as dag:
            operator = decorator(**how)(function)(*arguments).operator
        context = context or {}
        operator.render_template_fields(context, jinja_env=dag.get_template_env())
        return operator.execute(context)

    return send


@pytest.fixture
def audience(send):
    def keep(function, *arguments, **how):
        return send(
            task.talon_audience,
            function,
            *arguments,
            **({"audience_id": "vip", "audience_name": "VIP"} | how),
        )

    return keep


@pytest.fixture
def profiles(send):
    def keep(function, *arguments, **how):
        return send(task.talon_profiles, function, *arguments, **how)

    return keep


class TestAudience:
    @pytest.mark.parametrize("kind", [list, set, iter, tuple])
    def test_an_audience_is_made_equal_to_what_a_function_returns(self, audience, talon, kind):
        def first():
            return kind(["carl", "anna", "bert"])

        assert audience(first)["sent"] == 3
        assert talon.members("vip") == {"anna", "bert", "carl"}

        def second():
            return ["anna", "carl"]

        report = audience(second, max_removal_fraction=0.5)
        assert (report["unchanged"], report["removals"]) == (2, 1)
        assert talon.members("vip") == {"anna", "carl"}

    def test_a_function_that_yields_is_called_once_whatever_its_order(self, audience, talon):
        calls = []

        def many() -> Iterator[str]:
            calls.append(1)
            for number in range(12_000, 0, -1):
                yield f"c{number}"

        assert audience(many)["sent"] == 12_000
        assert len(calls) == 1
        assert len(talon.members("vip")) == 12_000

    def test_a_second_plan_has_what_the_first_call_gave(self, audience, talon):
        """The function may take it out of a queue."""
        queue = ["carl", "", "anna", "bert"]

        def drain():
            while queue:
                yield queue.pop()

        audience(drain, max_rejected=1)
        talon.delete_audience("vip")
        talon.create_audience("vip", "VIP")
        queue += ["carl", "", "anna", "bert"]
        report = audience(drain, max_rejected=1)
        # The first plan has no changes, as the ledger does not know yet that the audience was made again.
        assert (report["read"], report["sent"], report["rejected"]) == (4, 3, {"profile ID empty": 1})
        assert talon.members("vip") == {"anna", "bert", "carl"}

    def test_the_guard_speaks_as_for_any_mirror(self, audience, talon):
        def everybody():
            return ["anna", "bert"]

        def nobody():
            return iter(())

        audience(everybody)
        with pytest.raises(GuardError, match="no rows"):
            audience(nobody)
        assert talon.members("vip") == {"anna", "bert"}

    def test_members_may_be_added_and_removed(self, audience, talon, run):
        run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))

        def who(*ids):
            yield from ids

        audience(who, "anna", "bert", mode="add", audience_name=None)
        audience(who, "bert", mode="remove", audience_name=None)
        assert talon.members("vip") == {"anna"}

    def test_a_function_gets_arguments_and_the_context(self, audience, talon):
        def who(prefix, run_id=None):
            return [f"{prefix}-{run_id}"]

        audience(who, "{{ run_id }}", context={"run_id": "r1"})
        assert talon.members("vip") == {"r1-r1"}

    def test_a_bad_id_is_rejected_and_the_others_are_sent(self, audience, talon):
        def who():
            yield from ["anna", "", "bert"]

        with pytest.raises(RejectedRecordsError, match="1 of 3"):
            audience(who)
        assert talon.members("vip") == {"anna", "bert"}

    @pytest.mark.parametrize("result", [None, 5, {"anna": 1}, "anna"])
    def test_a_result_that_is_no_list_is_refused(self, audience, talon, result):
        def who():
            return result

        said = f"must return or yield profile IDs, .*\nbut it returned a {type(result).__name__}"
        with pytest.raises(InvalidInputError, match=said):
            audience(who)
        assert talon.audiences() == {}

    @pytest.mark.parametrize("mode", ["mirror", "add"])
    def test_an_asynchronous_function_may_give_the_ids(self, audience, talon, run, mode):
        run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))

        async def who(prefix, run_id=None):
            await asyncio.sleep(0)
            return [f"{prefix}-{run_id}", "anna"]

        report = audience(who, "x", context={"run_id": "r1"}, mode=mode, audience_name=None)
        assert (report["read"], report["sent"]) == (2, 2)
        assert talon.members("vip") == {"x-r1", "anna"}

    @pytest.mark.parametrize("mode", ["mirror", "add"])
    def test_an_asynchronous_function_may_yield_the_ids(self, audience, talon, run, mode):
        run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))

        async def who():
            for number in range(12_000):
                await asyncio.sleep(0)
                yield f"c{number}"

        assert audience(who, mode=mode, audience_name=None)["sent"] == 12_000
        assert len(talon.members("vip")) == 12_000

    def test_what_an_asynchronous_function_raises_is_the_tasks_error(self, audience, talon):
        async def fails():
            yield "anna"
            raise RuntimeError("The service does not answer.")

        with pytest.raises(RuntimeError, match="does not answer"):
            audience(fails)
        assert talon.audiences() == {}

    @pytest.mark.parametrize(
        "wrong", [{"mode": "replace"}, {"audience_id": 5}, {"mode": "add", "send": "all"}]
    )
    def test_arguments_are_checked_when_the_dag_is_parsed(self, audience, wrong):
        def who():
            return ["anna"]

        with pytest.raises(InvalidInputError):
            audience(who, **wrong)


class TestProfiles:
    def test_rows_become_attributes_and_only_changed_ones_are_sent(self, profiles, talon):
        def rows():
            yield {"profile_id": "bert", "Tier": "gold", "Points": 5}
            yield {"profile_id": "anna", "Tier": "silver", "Points": None}

        assert profiles(rows)["sent"] == 2
        assert talon.profile("bert")["attributes"] == {"Tier": "gold", "Points": 5}
        assert talon.profile("anna")["attributes"] == {"Tier": "silver"}
        report = profiles(rows)
        assert (report["read"], report["unchanged"], report["requests"]) == (2, 2, 0)

    def test_columns_and_types_are_named_as_for_sql(self, profiles, talon):
        def rows():
            return [
                {"id": "anna", "at": 1, "tier": "old", "points": "5", "extra": "x", "more": '{"Level": 3}'},
                {"id": "anna", "at": 2, "tier": "new", "points": "7", "extra": "x", "more": None},
            ]

        profiles(
            rows,
            profile_id_column="id",
            attributes={"tier": "Tier", "points": "Points"},
            attributes_column="more",
            types={"Points": "number"},
            on_duplicate="last",
            order_by_column="at",
        )
        assert talon.profile("anna")["attributes"] == {"Tier": "new", "Points": 7}

    def test_a_row_that_cannot_be_sent_is_rejected_and_the_others_are_sent(self, profiles, talon):
        def rows():
            yield {"profile_id": "", "Tier": "gold"}
            yield {"profile_id": "anna", "Tier": object()}
            yield {"profile_id": "bert", "Tier": "gold"}

        with pytest.raises(RejectedRecordsError, match="2 of 3"):
            profiles(rows)
        assert talon.profiles() == {"bert"}

    @pytest.mark.parametrize("profile_id", [".", ".."])
    def test_an_id_that_no_path_can_hold_is_rejected_as_in_sql(self, profiles, talon, profile_id):
        def rows():
            yield {"profile_id": profile_id, "Tier": "gold"}
            yield {"profile_id": "bert", "Tier": "gold"}

        with pytest.raises(RejectedRecordsError, match="does not survive in the path"):
            profiles(rows)
        assert talon.profiles() == {"bert"}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"attributes": {"tier": "Tier"}}, "No row of the function has the key 'tier'"),
            ({"attributes_column": "more"}, "No row of the function has the key 'more'"),
            ({"on_duplicate": "last", "order_by_column": "at"}, "must be a mapping with the key 'at'"),
        ],
    )
    def test_an_argument_that_fits_no_row_stops_before_anything_is_sent(
        self, profiles, talon, arguments, said
    ):
        def rows():
            yield {"profile_id": "anna", "Tier": "gold"}
            yield {"profile_id": "anna", "Tier": "silver"}

        with pytest.raises(InvalidInputError, match=said):
            profiles(rows, **arguments)
        assert talon.requests() == []

    @pytest.mark.parametrize(
        ("row", "arguments"),
        [({}, {}), ({"at": 1}, {"on_duplicate": "last", "order_by_column": "at"})],
        ids=["ID", "ID and order"],
    )
    def test_rows_that_have_no_attribute_stop_before_anything_is_sent(self, profiles, talon, row, arguments):
        def rows():
            return [{"profile_id": name} | row for name in ("anna", "bert")]

        with pytest.raises(InvalidInputError, match="No row of the function has a key for an attribute"):
            profiles(rows, **arguments)
        assert talon.requests() == []

    def test_some_rows_may_have_no_attribute(self, profiles, talon):
        def rows():
            yield {"profile_id": "anna"}
            yield {"profile_id": "bert", "Tier": "gold"}
            yield {"profile_id": "carl"}

        assert profiles(rows)["sent"] == 1
        assert talon.profiles() == {"bert"}

    @pytest.mark.parametrize(
        ("arguments", "missing"),
        [
            ({"attributes": ["Tier", "Points"]}, "Points"),
            ({"attributes": ["Tier"], "attributes_column": "more"}, "more"),
            ({"types": {"Tir": "string", "Tier": "string"}}, "Tir"),
            ({"types": '{"Tir": "string"}'}, "Tir"),
            ({"types": '{"Tier": "string"}'}, None),
        ],
    )
    def test_what_only_no_row_of_this_run_has_is_a_warning(
        self, profiles, talon, arguments, missing, capfd, caplog
    ):
        """A feed of changes may have no row with it on one day."""

        def rows():
            yield {"profile_id": "anna", "Tier": "gold"}

        assert profiles(rows, **arguments)["sent"] == 1
        text = caplog.text + "".join(capfd.readouterr())
        said = f"No row of the function has what the task's arguments name: {missing}."
        assert (said in text) == (missing is not None)

    def test_an_attribute_that_some_rows_lack_is_sent_for_the_others(self, profiles, talon):
        def rows():
            yield {"profile_id": "anna", "tier": "gold"}
            yield {"profile_id": "bert", "points": 5}

        profiles(rows, attributes={"tier": "Tier", "points": "Points"}, types={"Points": "number"})
        assert talon.profile("anna")["attributes"] == {"Tier": "gold"}
        assert talon.profile("bert")["attributes"] == {"Points": 5}

    @pytest.mark.parametrize("result", [None, {"profile_id": "anna", "Tier": "gold"}, "anna"])
    def test_a_result_that_is_no_list_is_refused(self, profiles, talon, result):
        def rows():
            return result

        said = f"must return or yield rows, .*\nbut it returned a {type(result).__name__}"
        with pytest.raises(InvalidInputError, match=said):
            profiles(rows)
        assert talon.requests() == []

    def test_a_time_of_pandas_that_is_none_rejects_its_row_alone(self, profiles, talon):
        def rows():
            yield {"profile_id": "anna", "At": NaTType(2026, 1, 1)}
            yield {"profile_id": "bert", "At": "yesterday"}

        with pytest.raises(RejectedRecordsError, match="declared as string, but it is NaT"):
            profiles(rows, types={"At": "string"})
        assert talon.profiles() == {"bert"}

    def test_an_asynchronous_function_may_give_the_rows(self, profiles, talon):
        async def rows():
            await asyncio.sleep(0)
            return [{"profile_id": "anna", "Tier": "gold"}]

        async def more():
            for name in ("anna", "bert"):
                await asyncio.sleep(0)
                yield {"profile_id": name, "Tier": "gold"}

        assert profiles(rows, ledger="people")["sent"] == 1
        report = profiles(more, ledger="people")
        assert (report["unchanged"], report["sent"]) == (1, 1)
        assert talon.profiles() == {"anna", "bert"}

    def test_an_asynchronous_function_is_ended_where_its_row_is_wrong(self, profiles, talon):
        ended = []

        async def rows():
            try:
                yield "anna"
                yield "bert"
            finally:
                ended.append(True)

        with pytest.raises(InvalidInputError, match="Each row of the function must be a mapping"):
            profiles(rows)
        assert ended == [True]

    @pytest.mark.parametrize("row", ["anna", ("anna", 1), {"id": "anna"}])
    def test_a_row_without_an_id_stops_before_anything_is_sent(self, profiles, talon, row):
        def rows():
            yield {"profile_id": "bert", "Tier": "gold"}
            yield row

        with pytest.raises(InvalidInputError, match="must be a mapping with the key 'profile_id'"):
            profiles(rows)
        assert talon.requests() == []
