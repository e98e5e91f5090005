"""Audiences that do not exist, or not any more, or again."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError, NotFoundError
from tests.mirror.conftest import spelt_out
from tests.mirror.test_audiences import PAIRS, members_of


def test_an_unknown_audience_stops_the_run_and_points_to_the_argument(sqlite, talon, mirror):
    sqlite.fill(["anna"])
    with pytest.raises(NotFoundError, match=r"(?s)Audience in the request: vip\..*audience_name") as error:
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
    assert "Created audience 'vip'.\nConnect it to your Applications" in said()
    assert [each["status"] for each in talon.requests() if each["method"] == "POST"] == [201]


def test_an_audience_that_talon_one_lost_is_filled_anew(sqlite, vip, mirror, agrees, caplog):
    sqlite.fill(["anna", "bert", "cem"])
    mirror()
    vip.delete_audience("vip")
    sqlite.fill(["anna", "bert", "dora"])
    mirror(audience_name="VIP", max_removal_fraction=1)
    agrees(["anna", "bert", "dora"])
    assert "1 audience(s) of the ledger were deleted or made again" in caplog.text


def test_a_lost_audience_is_filled_anew_though_the_guard_stopped_the_first_try(sqlite, vip, mirror, agrees):
    """The run that re-creates an audience may fail before it has sent anything."""
    ids = [f"customer-{each}" for each in range(30)]
    sqlite.fill(ids)
    mirror()
    vip.delete_audience("vip")
    sqlite.fill([*ids, "one more"])
    with pytest.raises(GuardError, match="max_additions"):
        mirror(audience_name="VIP", max_additions=10)
    mirror(audience_name="VIP", max_additions=100)
    agrees([*ids, "one more"])


def test_an_unknown_audience_among_many_is_named(sqlite, talon, mirror):
    sqlite.fill_pairs(PAIRS)
    talon.create_audience("vip", "VIP")
    with pytest.raises(NotFoundError, match=r"Audience in the request: (lapsed|new)\."):
        mirror(audience_column="audience_id")


def test_a_null_name_is_refused_before_the_first_request(sqlite, talon, mirror_many, calls):
    sqlite.fill_pairs(PAIRS)
    sqlite.run("UPDATE memberships SET audience_name = NULL WHERE audience_id = 'vip'")
    with pytest.raises(InvalidInputError, match="audience_name"):
        mirror_many()
    assert calls() == 0


@pytest.mark.parametrize(
    "fault",
    [{"kind": "status", "status": 429}, {"kind": "status", "status": 503}, {"kind": "reset_after"}],
    ids=["throttled", "unavailable", "answer lost"],
)
def test_a_create_that_is_tried_again_loses_no_removal(sqlite, talon, mirror, agrees, said, fault):
    """The 409 that follows a lost answer may be that of an audience which this call has created, but need not
    be."""
    ids = [f"customer-{each:03}" for each in range(100)]
    sqlite.fill(ids)
    mirror(audience_name="VIP")
    sqlite.fill([*ids[10:], "one more"])
    talon.delete_audience("vip")
    talon.fail_next(only="create_audience", **fault)
    assert mirror(audience_name="VIP")["sent"] == 91 + 10
    agrees([*ids[10:], "one more"])
    assert ("may have been created just now" in said()) == (fault["kind"] == "reset_after")


def test_all_is_sent_where_that_is_asked_for(sqlite, vip, mirror, agrees):
    sqlite.fill(["anna", "bert", "cem"])
    mirror()
    vip.delete_audience("vip")
    vip.create_audience("vip", "Made again by hand")
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
    talon.delete_audience("spring")
    sqlite.fill_pairs([*PAIRS, ("one more", "vip")])
    summary = mirror_many(max_removal_fraction=1)
    assert (summary["removals"], summary["sent"]) == (30, 31)
    assert members_of(talon) == {*PAIRS, ("one more", "vip")}
    assert mirror_many(audiences=sorted({audience for _, audience in PAIRS}))["sent"] == 0


def test_a_campaign_ends_though_its_audience_alone_changes(sqlite, talon, mirror_many, caplog):
    sqlite.fill_pairs([*PAIRS, ("anna", "spring")])
    mirror_many()
    talon.delete_audience("spring")
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
    assert ("anna", "spring") in spelt_out(ledger_of("sync:nightly").uncertain())


@pytest.mark.parametrize(
    "verify, complaint",
    [
        ("exists", "Audience 'lapsed' of this mirror does not exist any more"),
        ("none", "Audience in the request: lapsed"),
    ],
)
def test_a_missing_audience_does_not_make_members_of_others_doubtful(
    sqlite, talon, mirror_many, verify, complaint
):
    sqlite.fill_pairs(PAIRS)
    mirror_many()
    talon.delete_audience("lapsed")
    more = [("one more", audience) for audience in ("vip", "new", "lapsed")]
    sqlite.fill_pairs([*PAIRS, *more])
    with pytest.raises(NotFoundError, match=complaint):
        mirror_many(audience_name_column=None, verify=verify)
    talon.create_audience("lapsed", "Made again by hand")
    lapsed = sum(audience == "lapsed" for _, audience in PAIRS)
    assert mirror_many()["sent"] <= lapsed + 3
    assert members_of(talon) == {*PAIRS, *more}


def test_creates_take_the_connections_rate_are_counted_and_are_not_repeated(sqlite, connect, mirror_many):
    """A limit is for all requests of a key: to make three hundred audiences at once would be throttled."""
    names = [f"audience-{number:03}" for number in range(300)]
    sqlite.fill_pairs([(member, name) for name in names for member in ("anna", "bert")])
    # A busy machine may hold back some requests, which then come at once.
    with Emulator(requests_per_second=150, burst=150) as talon:
        connect(talon, requests_per_second=100)
        summary = mirror_many(verify="none")
        assert (summary["sent"], summary["throttled"], summary["requests"]) == (600, 0, 300 + 1)
        assert summary["seconds"] > 2.9
        sqlite.fill_pairs([(member, name) for name in names for member in ("anna", "bert", "carl")])
        summary = mirror_many(verify="none")
        assert (summary["sent"], summary["requests"]) == (300, 1)
        counted = talon.state()["requests"]["by_operation"]
        assert counted == {"create_audience": 300, "update_profiles_external": 2}
