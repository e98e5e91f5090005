"""URIs of assets, and what OpenLineage is told of them."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_talon_cdp import assets
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._base import CampaignManagerLink
from airflow_provider_talon_cdp.sync.report import Report
from airflow_provider_talon_cdp.transfers.across_workers import CommitPlanOperator, PlanAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

HOST = "acme.europe-west1.talon.one"
ODD_IDS = ["vip", "a/b", "a?b#c", "100%", "internal:7", " ", "\U0001f600", "ü" * 1000, "x" * 1000, ".."]


@pytest.mark.parametrize("audience_id", [*ODD_IDS, 7], ids=lambda each: str(each)[:12])
def test_airflow_takes_the_uri_of_any_audience_as_it_is(audience_id):
    uri = assets.audience_uri(HOST.upper(), audience_id)
    asset = assets.audience_asset(HOST, audience_id)
    assert asset.uri == uri
    assert urlsplit(uri).netloc == HOST


def test_no_two_audiences_share_a_uri():
    uris = {assets.audience_uri(HOST, each) for each in [*ODD_IDS, 7, "7", "x" * 1000 + "y"]}
    assert len(uris) == len(ODD_IDS) + 3


def test_airflow_spells_a_uri_as_the_operators_do():
    """Only an asset that is spelt alike triggers a DAG."""
    for given in (f"talon-cdp://{HOST.upper()}/audiences/a b/", f"TALON-CDP://{HOST}/audiences/a%20b"):
        assert Asset(uri=given).uri == assets.audience_uri(HOST, "a b")
    assert Asset(uri=f"talon-cdp://{HOST}/audiences/internal:7").uri == assets.audience_uri(HOST, 7)


@pytest.mark.parametrize("uri", ["audiences", "audiences/a/b", "campaigns/a", ""])
def test_another_path_is_refused(uri):
    with pytest.raises(ValueError, match="talon-cdp URI is"):
        assets.sanitize_uri(urlsplit(f"talon-cdp://{HOST}/{uri}"))


@pytest.mark.skipif(assets.IS_AIRFLOW_2, reason="Airflow 2 has no aliases")
def test_a_task_may_have_any_name_on_mysql(monkeypatch):
    """Airflow refuses other names of an alias there."""
    sdk = importlib.import_module("airflow.sdk.definitions.asset")
    monkeypatch.setattr(sdk, "SQL_ALCHEMY_CONN", "mysql://airflow", raising=False)
    with pytest.raises(ValueError, match="ASCII"):
        sdk.AssetAlias("größe")
    names = {}
    for dag_id in ("größe.täglich", "grosse.taglich", "ü" * 200):
        with DAG(dag_id, schedule=None):
            task = SqlToTalonAudienceOperator(
                task_id="sync", sql="SELECT 1", sql_conn_id="w", audience_id="vip", mode="add"
            )
        names[dag_id] = task.outlets[0].name
    assert len(set(names.values())) == 3
    # Its earlier events are of this name.
    assert names["grosse.taglich"] == "talon-cdp:grosse.taglich.sync"
    assert assets.audience_asset(HOST, "größe").name.isascii()


def test_the_factory_makes_either_kind():
    assert assets.create_asset(deployment_host=HOST, audience_id="vip") == assets.audience_asset(HOST, "vip")
    assert assets.create_asset(deployment_host=HOST, sync="d.t").uri == assets.profiles_asset(HOST, "d.t").uri
    with pytest.raises(InvalidInputError, match="either audience_id"):
        assets.create_asset(deployment_host=HOST)


class TestOpenLineage:
    @pytest.fixture(autouse=True)
    def provider(self):
        pytest.importorskip("airflow.providers.openlineage")

    def test_an_asset_is_a_dataset(self):
        dataset = assets.to_openlineage(assets.audience_asset(HOST, "a b"), None)
        assert (dataset.namespace, dataset.name) == (f"talon-cdp://{HOST}", "audiences/a b")

    def test_a_database_that_does_not_answer_costs_the_inputs_alone(self, monkeypatch):
        connection = {"conn_type": "postgres", "host": "127.0.0.1", "port": 9}
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(connection))
        operator = SqlToTalonProfilesOperator(
            task_id="t", sql="SELECT 1", sql_conn_id="warehouse", ledger="l"
        )
        operator.links[CampaignManagerLink.key] = f"https://{HOST}"
        found = operator.get_openlineage_facets_on_complete(None)
        assert found.inputs == []
        assert [each.name for each in found.outputs] == ["profiles/l"]

    @pytest.mark.parametrize(
        "audiences, report, told",
        [
            ("ab", Report(added=Counter(a=3), removed=Counter(a=1, c=2)), {"a": 4, "b": 0, "c": 2}),
            # Planned changes are not acknowledged ones.
            ("ab", Report(state="planned", additions=Counter(a=3)), {"a": 0, "b": 0}),
            ("ab", Report(added=Counter({"": 5})), {"a": None, "b": None}),
            ("a", Report(added=Counter({"": 5})), {"a": 5}),
            ("/", Report(added=Counter({"/": 5})), {"/": 5}),
            ("ab", None, {"a": None, "b": None}),
            ("ab", Report(verdict="would be sent"), {}),
        ],
    )
    def test_each_output_has_its_own_acknowledged_changes(self, audiences, report, told):
        operator = SqlToTalonAudienceOperator(
            task_id="t", sql="SELECT 1", sql_conn_id="w", mode="mirror", audience_column="a"
        )
        operator.links[CampaignManagerLink.key] = f"https://{HOST}"
        operator.audiences_seen.update(audiences)
        operator.report = report
        assert rows(operator.lineage_outputs()) == told

    def test_in_a_group_only_the_task_that_commits_has_outputs(self):
        uris = {assets.audience_uri(HOST, each): each for each in "ab"}
        planned = {"assets": uris, "inputs": [["postgres://h:5432", "db.public.customers"]]}
        plan = PlanAudienceOperator(
            task_id="plan", sql="SELECT 1", sql_conn_id="w", audience_id="a", workers=1
        )
        commit = CommitPlanOperator(task_id="commit", planned=planned, pushed=None)
        for operator in (plan, commit):
            operator.links[CampaignManagerLink.key] = f"https://{HOST}"
            operator.report = Report(added=Counter(a=3, b=1))
        assert plan.lineage_outputs() == {}
        assert rows(commit.lineage_outputs()) == {"a": 3, "b": 1}
        commit.report = Report()
        assert rows(commit.lineage_outputs()) == {"a": None, "b": None}, "it failed before it knew them"
        (read,) = commit.get_openlineage_facets_on_start().inputs
        assert [read.namespace, read.name] == planned["inputs"][0]
        # Of a version that did not tell the inputs.
        del planned["inputs"]
        assert commit.lineage_inputs() == []

    def test_the_inputs_are_looked_for_only_if_they_are_told(self, monkeypatch):
        names = [["postgres://h:5432", "db.public.customers"]]
        for is_disabled, told in ((lambda: False, names), (lambda: True, []), (lambda: 1 / 0, [])):
            monkeypatch.setattr("airflow.providers.openlineage.conf.is_disabled", is_disabled)
            assert assets.input_names(lambda: assets.named_inputs(names)) == told


def rows(outputs):
    """Counts by audience, as OpenLineage is told them."""
    told = assets.lineage((), outputs).outputs
    facets = {each.name.removeprefix("audiences/"): each.outputFacets for each in told}
    return {name: each["outputStatistics"].rowCount if each else None for name, each in facets.items()}
