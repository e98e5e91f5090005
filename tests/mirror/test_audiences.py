"""One audience that may not exist, and many audiences in one mirror."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.exceptions import (
    GuardError,
    InvalidInputError,
    NotFoundError,
)
from tests.mirror.conftest import task_instance

PAIRS = [(f"customer-{each}", audience) for each in range(10) for audience in ("vip", "new", "lapsed")]


@pytest.fixture
def mirror_many(mirror):
    def run(**arguments):
        names = {"audience_name_column": "audience_name"}
        return mirror(audience_column="audience_id", **{**names, **arguments})

    return run


def members_of(talon):
    return {(member, audience) for audience in talon.audiences() for member in talon.members(audience)}


def test_an_unknown_audience_stops_the_run_and_points_to_the_argument(sqlite, talon, mirror):
    sqlite.fill(["anna"])
    with pytest.raises(NotFoundError, match=r"Audience in the request: vip\..*audience_name") as error:
        mirror()
    assert "anna" not in str(error.value)


def test_after_the_404_the_argument_does_it(sqlite, talon, mirror, agrees):
    sqlite.fill(["anna", "bert"])
    with pytest.raises(NotFoundError):
        mirror()
    mirror(audience_name="Very important")
    agrees(["anna", "bert"])
    assert talon.audiences()["vip"]["name"] == "Very important"


def test_an_audience_is_created_once(sqlite, talon, mirror, agrees, said):
    for wanted in (["anna"], ["anna", "bert"]):
        sqlite.fill(wanted)
        mirror(audience_name="VIP", max_removals=0)
        agrees(wanted)
    assert "Created audience 'vip'; connect it to your Applications" in said()
    assert [each["status"] for each in talon.requests() if each["method"] == "POST"] == [201, 409]


def test_an_audience_that_talon_one_lost_is_filled_anew(sqlite, vip, mirror, agrees, caplog):
    sqlite.fill(["anna", "bert", "cem"])
    mirror()
    vip._service.store.delete_audience("vip")
    sqlite.fill(["anna", "bert", "dora"])
    mirror(audience_name="VIP", max_removal_fraction=1)
    agrees(["anna", "bert", "dora"])
    assert "may have lost 1 audience" in caplog.text


def test_a_lost_audience_is_filled_anew_though_the_guard_stopped_the_first_try(sqlite, vip, mirror, agrees):
    """The run that re-creates an audience may fail before it has sent anything."""
    ids = [f"customer-{each}" for each in range(30)]
    sqlite.fill(ids)
    mirror()
    vip._service.store.delete_audience("vip")
    sqlite.fill([*ids, "one more"])
    with pytest.raises(GuardError, match="max_additions"):
        mirror(audience_name="VIP", max_additions=10)
    mirror(audience_name="VIP", max_additions=100)
    agrees([*ids, "one more"])


def test_many_audiences_from_one_query(warehouse, talon, mirror_many):
    warehouse.fill_pairs(PAIRS)
    summary = mirror_many()
    assert members_of(talon) == set(PAIRS)
    assert {each["name"] for each in talon.audiences().values()} == {
        "Name of vip",
        "Name of new",
        "Name of lapsed",
    }
    assert (summary["sent"], summary["requests"]) == (30, 1)


def test_a_second_run_of_many_audiences_sends_nothing(warehouse, talon, mirror_many, calls):
    warehouse.fill_pairs(PAIRS)
    mirror_many()
    before = calls()
    assert mirror_many()["unchanged"] == 30
    assert calls() == before


def test_changes_in_many_audiences(warehouse, talon, mirror_many, ledger_of):
    warehouse.fill_pairs(PAIRS)
    mirror_many()
    changed = [*PAIRS[3:], ("customer-0", "new"), ("someone", "vip"), ("customer-1", "another")]
    warehouse.fill_pairs(changed)
    summary = mirror_many()
    assert (summary["removals"], summary["sent"]) == (2, 4)
    assert members_of(talon) == set(changed)
    assert set(ledger_of("sync:adhoc_airflow.sync").known()) == set(changed)


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
        mirror_many()


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


def test_an_unknown_audience_among_many_is_named(sqlite, talon, mirror):
    sqlite.fill_pairs(PAIRS)
    talon._service.store.create_audience("vip", "VIP")
    with pytest.raises(NotFoundError, match=r"Audience in the request: (lapsed|new)\."):
        mirror(audience_column="audience_id")


@pytest.mark.parametrize("audience", [None, ""])
@pytest.mark.parametrize("rejected", [0, None])
def test_a_null_audience_is_refused_before_the_first_request(
    warehouse, talon, mirror_many, calls, state, rejected, audience
):
    """It is a join that found nothing; counted as a rejection, it would take the members out of their audiences."""
    many = [(f"customer-{each:05}", "vip") for each in range(20_000)]
    warehouse.fill_pairs([*many, ("customer-lost", audience)])
    with pytest.raises(
        InvalidInputError, match=r"\(column 'audience_id'\) is null or empty.*WHERE audience_id <> ''"
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


def test_a_null_name_is_refused_before_the_first_request(sqlite, talon, mirror_many, calls):
    sqlite.fill_pairs(PAIRS)
    sqlite.run("UPDATE memberships SET audience_name = NULL WHERE audience_id = 'vip'")
    with pytest.raises(InvalidInputError, match="audience_name"):
        mirror_many()
    assert calls() == 0


def test_each_sync_has_its_own_ledger(sqlite, talon, mirror_many, ledger_of):
    sqlite.fill_pairs(PAIRS)
    mirror_many(ledger="nightly")
    assert set(ledger_of("sync:nightly").known()) == set(PAIRS)
    assert mirror_many(ledger="weekly")["sent"] == 30


@pytest.mark.parametrize("given", [{}, {"ledger": "nightly"}])
def test_the_command_shows_a_ledger_of_many_audiences(sqlite, talon, mirror_many, state, capsys, given):
    sqlite.fill_pairs(PAIRS)
    mirror_many(**given)
    connection = talon.connection()
    place = ["--state-uri", str(state), "--base-url", connection["host"]]
    place += ["--deployment-host", connection["extra"]["deployment_host"]]
    assert main(["ledger", "show", *place, "--sync", given.get("ledger", "adhoc_airflow.sync")]) == 0
    assert "version 1, 30 members" in capsys.readouterr().out


def test_one_entry_carries_all_audiences_of_a_profile(sqlite, talon, mirror_many):
    sqlite.fill_pairs([("anna", f"audience-{each}") for each in range(5)])
    assert mirror_many()["requests"] == 1
    assert talon.requests()[-1]["changes"] == 5


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
    with pytest.raises(InvalidInputError, match=r"sync is mapped.* ledger= of its own"):
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


@pytest.mark.parametrize("status, sent", [(429, 1 + 10), (503, 91 + 10)])
def test_a_create_that_is_tried_again_loses_no_removal(sqlite, talon, mirror, agrees, status, sent):
    """The 409 that follows a 503 may be that of an audience which this call has created, but need not be."""
    ids = [f"customer-{each:03}" for each in range(100)]
    sqlite.fill(ids)
    mirror(audience_name="VIP")
    sqlite.fill([*ids[10:], "one more"])
    talon.fail_next("status", only="create_audience", status=status)
    assert mirror(audience_name="VIP")["sent"] == sent
    agrees([*ids[10:], "one more"])


def test_all_is_sent_where_that_is_asked_for(sqlite, vip, mirror, agrees):
    sqlite.fill(["anna", "bert", "cem"])
    mirror()
    vip._service.store.delete_audience("vip")
    vip._service.store.create_audience("vip", "Made again by hand")
    sqlite.fill(["anna", "bert", "dora"])
    summary = mirror(send="all", max_removal_fraction=1)
    assert (summary["sent"], summary["removals"], summary["unchanged"]) == (4, 1, 0)
    agrees(["anna", "bert", "dora"])
    assert mirror()["sent"] == 0


def test_send_takes_two_words(sqlite, vip, mirror):
    with pytest.raises(InvalidInputError, match="send must be one of 'changed', 'all', but is 'everything'"):
        mirror(send="everything")


def test_a_campaign_ends(sqlite, talon, mirror_many, agrees):
    """Its audience is deleted, its rows go, and all others are kept in step."""
    spring = [(f"customer-{each}", "spring") for each in range(30)]
    sqlite.fill_pairs([*spring, *PAIRS])
    mirror_many()
    talon._service.store.delete_audience("spring")
    sqlite.fill_pairs([*PAIRS, ("one more", "vip")])
    summary = mirror_many(max_removal_fraction=1)
    assert (summary["removals"], summary["sent"]) == (30, 31)
    assert members_of(talon) == {*PAIRS, ("one more", "vip")}
    assert mirror_many(audiences=sorted({audience for _, audience in PAIRS}))["sent"] == 0


def test_a_campaign_ends_though_its_audience_alone_changes(sqlite, talon, mirror_many, caplog):
    sqlite.fill_pairs([*PAIRS, ("anna", "spring")])
    mirror_many()
    talon._service.store.delete_audience("spring")
    sqlite.fill_pairs(PAIRS)
    assert mirror_many(max_removal_fraction=1)["sent"] == 1
    assert "Talon.One has no audience 'spring' any more" in caplog.text
    assert mirror_many()["sent"] == 0


def test_a_wrong_path_is_no_audience_that_is_gone(sqlite, talon, mirror_many, ledger_of):
    sqlite.fill_pairs([*PAIRS, ("anna", "spring")])
    mirror_many(ledger="nightly")
    sqlite.fill_pairs(PAIRS)
    talon.fail_next("status", times=2, only="update_profiles_external", status=404)
    with pytest.raises(NotFoundError, match="spring"):
        mirror_many(ledger="nightly", max_removal_fraction=1)
    assert ("anna", "spring") in set(ledger_of("sync:nightly").uncertain())


def test_a_missing_audience_does_not_make_members_of_others_doubtful(sqlite, talon, mirror_many):
    sqlite.fill_pairs(PAIRS)
    mirror_many()
    talon._service.store.delete_audience("lapsed")
    more = [("one more", audience) for audience in ("vip", "new", "lapsed")]
    sqlite.fill_pairs([*PAIRS, *more])
    with pytest.raises(NotFoundError, match="Audience in the request: lapsed"):
        mirror_many(audience_name_column=None)
    talon._service.store.create_audience("lapsed", "Made again by hand")
    lapsed = sum(audience == "lapsed" for _, audience in PAIRS)
    assert mirror_many()["sent"] <= lapsed + 3
    assert members_of(talon) == {*PAIRS, *more}
