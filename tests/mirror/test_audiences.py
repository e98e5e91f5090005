"""Many audiences in one mirror."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.exceptions import (
    GuardError,
    InvalidInputError,
)
from tests.mirror.conftest import spelt_out, task_instance

PAIRS = [(f"customer-{each}", audience) for each in range(10) for audience in ("vip", "new", "lapsed")]


def members_of(talon):
    return {(member, audience) for audience in talon.audiences() for member in talon.members(audience)}


def test_many_audiences_from_one_query(warehouse, talon, mirror_many):
    warehouse.fill_pairs(PAIRS)
    summary = mirror_many()
    assert members_of(talon) == set(PAIRS)
    assert {each["name"] for each in talon.audiences().values()} == {
        "Name of vip",
        "Name of new",
        "Name of lapsed",
    }
    # Each audience is made, and looked at again when all is sent.
    assert (summary["sent"], summary["requests"]) == (30, 3 + 1 + 3)


@pytest.mark.parametrize("verify, looks", [("identity", 3), ("exists", 0), ("none", 0)])
def test_a_second_run_of_many_audiences_sends_nothing(warehouse, talon, mirror_many, calls, verify, looks):
    """But for a look at each audience under its name, where that is asked for."""
    warehouse.fill_pairs(PAIRS)
    mirror_many()
    before = calls()
    assert mirror_many(verify=verify)["unchanged"] == 30
    assert calls() == before + looks


def test_changes_in_many_audiences(warehouse, talon, mirror_many, ledger_of):
    warehouse.fill_pairs(PAIRS)
    mirror_many()
    changed = [*PAIRS[3:], ("customer-0", "new"), ("someone", "vip"), ("customer-1", "another")]
    warehouse.fill_pairs(changed)
    summary = mirror_many()
    assert (summary["removals"], summary["sent"]) == (2, 4)
    assert members_of(talon) == set(changed)
    assert set(spelt_out(ledger_of("sync:dag.sync").known())) == set(changed)


def test_audiences_of_awkward_names(warehouse, talon, mirror_many):
    awkward = ["a/b", "a b", "é", "\U0001f600", "%2F", "A", "a", "1", "x" * 992, "tab\tnew\nline\\"]
    pairs = [(profile, audience) for audience in awkward for profile in ("anna", "Bert", "ümit")]
    warehouse.fill_pairs(pairs)
    mirror_many()
    assert members_of(talon) == set(pairs)
    warehouse.fill_pairs(pairs[1:])
    mirror_many(max_removal_fraction=0.4)
    assert members_of(talon) == set(pairs[1:])


def test_an_audience_that_disappears_counts_as_removals_under_the_guard(sqlite, talon, mirror_many, calls):
    sqlite.fill_pairs(PAIRS)
    mirror_many()
    left = [pair for pair in PAIRS if pair[1] != "lapsed"]
    sqlite.fill_pairs(left)
    before = calls()
    with pytest.raises(GuardError, match=r"'lapsed' would lose 10 of 10"):
        mirror_many()
    assert calls() == before
    assert members_of(talon) == set(PAIRS)
    mirror_many(max_removal_fraction=1)
    assert members_of(talon) == set(left)


def test_the_guard_looks_at_each_audience(sqlite, talon, mirror_many):
    sqlite.fill_pairs([*PAIRS, *((f"more-{each}", "vip") for each in range(1000))])
    mirror_many()
    sqlite.fill_pairs([*PAIRS[9:], *((f"more-{each}", "vip") for each in range(1000))])
    with pytest.raises(GuardError, match="'lapsed' would lose 3 of 10"):
        mirror_many(min_removals=0)


def test_only_audiences_that_are_named_are_managed(sqlite, talon, mirror_many):
    sqlite.fill_pairs(PAIRS)
    mirror_many()
    sqlite.fill_pairs([pair for pair in PAIRS if pair[1] != "lapsed"])
    assert mirror_many(audiences=["vip", "new"])["sent"] == 0
    assert members_of(talon) == set(PAIRS)
    with pytest.raises(GuardError, match="lapsed"):
        mirror_many(audiences=["vip", "new", "lapsed"])


def test_an_audience_that_is_not_named_is_an_error_before_the_first_request(
    sqlite, talon, mirror_many, calls
):
    sqlite.fill_pairs(PAIRS)
    with pytest.raises(InvalidInputError, match="'lapsed', which is not in audiences"):
        mirror_many(audiences=["vip", "new"])
    assert calls() == 0


def test_audiences_may_be_json_text_of_a_template(sqlite, talon, mirror_many):
    sqlite.fill_pairs(PAIRS)
    mirror_many(audiences='["vip", "new", "lapsed"]')
    assert members_of(talon) == set(PAIRS)


@pytest.mark.parametrize("audiences", ["vip", [7], [""], [None], 7])
def test_audiences_are_a_list_of_external_ids(sqlite, talon, mirror_many, calls, audiences):
    sqlite.fill_pairs([("anna", "7"), ("anna", "vip")])
    with pytest.raises(
        InvalidInputError, match=r"audiences must be|external audience ID|1 to 1000 characters"
    ):
        mirror_many(audiences=audiences)
    assert calls() == 0


@pytest.mark.parametrize("audience", [None, "", "None", "nan", "NULL", "<NA>"])
@pytest.mark.parametrize("rejected", [0, None])
def test_a_null_audience_is_refused_before_the_first_request(
    warehouse, talon, mirror_many, calls, state, rejected, audience
):
    """It is a join that found nothing; counted as a rejection, it would take the members out of their
    audiences."""
    many = [(f"customer-{each:05}", "vip") for each in range(20_000)]
    warehouse.fill_pairs([*many, ("customer-lost", audience)])
    with pytest.raises(
        InvalidInputError,
        match=r"(?s)\(column 'audience_id'\) is null, empty, or.*WHERE audience_id NOT IN \(''",
    ) as error:
        mirror_many(max_rejected=rejected)
    assert "customer" not in str(error.value)
    assert calls() == 0
    assert not talon.audiences()
    assert not list(state.rglob("manifest-*.json"))


def test_integer_audience_ids_are_refused_before_the_first_request(sqlite, talon, mirror, calls):
    sqlite.fill_pairs(PAIRS)
    with pytest.raises(InvalidInputError, match="integer 7"):
        mirror(sql="SELECT profile_id, 7 AS audience_id FROM memberships", audience_column="audience_id")
    assert calls() == 0


def test_each_sync_has_its_own_ledger(sqlite, talon, mirror_many, ledger_of):
    sqlite.fill_pairs(PAIRS)
    mirror_many(ledger="nightly")
    assert set(spelt_out(ledger_of("sync:nightly").known())) == set(PAIRS)
    assert mirror_many(ledger="weekly")["sent"] == 30


@pytest.mark.parametrize("given", [{}, {"ledger": "nightly"}])
def test_the_command_shows_a_ledger_of_many_audiences(sqlite, talon, mirror_many, state, capsys, given):
    sqlite.fill_pairs(PAIRS)
    mirror_many(**given)
    connection = talon.connection()
    place = ["--state-uri", str(state), "--base-url", connection["host"]]
    place += ["--deployment-host", connection["extra"]["deployment_host"]]
    assert main(["ledger", "show", *place, "--sync", given.get("ledger", "dag.sync")]) == 0
    assert "version 1, 30 members" in capsys.readouterr().out


def test_one_entry_carries_all_audiences_of_a_profile(sqlite, talon, mirror_many):
    sqlite.fill_pairs([("anna", f"audience-{each}") for each in range(5)])
    assert mirror_many()["sent"] == 5
    (request,) = [each for each in talon.requests() if each["operation"].startswith("update_profiles")]
    assert request["changes"] == 5


def test_instances_of_a_mapped_task_must_name_their_ledgers(sqlite, talon, mirror_many, calls):
    """In one ledger, each would take the members that the others added out of their audiences."""
    sqlite.fill_pairs(PAIRS)
    instances = [
        {
            "context": {"ti": task_instance(map_index=number)},
            "sql": f"SELECT * FROM memberships WHERE audience_id = '{audience}'",
        }
        for number, audience in enumerate(["vip", "new", "lapsed"])
    ]
    with pytest.raises(InvalidInputError, match=r"(?s)sync is mapped.*Name a ledger= for each"):
        mirror_many(**instances[0])
    assert calls() == 0
    for _ in range(2):
        for number, instance in enumerate(instances):
            mirror_many(**instance, ledger=f"part {number}", max_removal_fraction=1)
    assert members_of(talon) == set(PAIRS)


def test_instances_of_a_mapped_task_with_one_audience_each_have_ledgers_of_their_own(
    sqlite, vip, mirror, agrees
):
    sqlite.fill(["anna"])
    mirror(context={"ti": task_instance(map_index=0)})
    agrees(["anna"])


def test_instances_of_a_mapped_task_do_not_mirror_one_audience(sqlite, vip, mirror, agrees, calls):
    """The second query would take out whom the first one put in: here a tenth, which the guard lets pass."""
    everybody = [f"customer-{number}" for number in range(10)]
    sqlite.fill(everybody)
    instances = [
        {
            "context": {"ti": task_instance(map_index=number)},
            "sql": f"SELECT profile_id FROM customers WHERE profile_id >= 'customer-{number}'",
        }
        for number in range(2)
    ]
    mirror(**instances[0])
    before = calls()
    with pytest.raises(
        InvalidInputError, match=r"(?s)Instance 0 of the mapped task sync has mirrored.* UNION ALL"
    ):
        mirror(**instances[1])
    assert calls() == before
    agrees(everybody)
    sqlite.fill(everybody[1:])
    mirror(**instances[0])
    agrees(everybody[1:])
    mirror(context={"ti": task_instance("run-2", map_index=1)})
