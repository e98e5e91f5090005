"""State: all or nothing, idempotent, and never more work than there is to change."""

import threading

import pytest

from airflow_provider_talon_cdp.emulator.store import (
    ExternalIdTakenError,
    MembershipChange,
    Store,
    UnknownAudienceError,
)


@pytest.fixture
def store():
    store = Store(now=lambda: "2026-01-01T00:00:00.000Z")
    store.create_audience("vip", "VIP")
    store.create_audience("new", "New")
    return store


def test_audiences_are_numbered_from_one(store):
    assert store.audiences() == {
        "vip": {"id": 1, "name": "VIP", "created": "2026-01-01T00:00:00.000Z", "members": 0},
        "new": {"id": 2, "name": "New", "created": "2026-01-01T00:00:00.000Z", "members": 0},
    }


def test_an_id_is_taken_once(store):
    with pytest.raises(ExternalIdTakenError):
        store.create_audience("vip", "Other")
    assert store.audiences()["vip"]["name"] == "VIP"


def test_an_internal_id_is_never_given_twice(store):
    store.delete_audience("new")
    assert store.create_audience("new", "Again").id == 3


def test_internal_and_external_ids_mean_the_same_audience(store):
    store.change([MembershipChange("anna", ("vip",))])
    store.change([MembershipChange("bert", (1,)), MembershipChange("anna", (), (1,))])
    assert store.members("vip") == {"bert"}


def test_changes_can_be_repeated(store):
    for _ in range(2):
        store.change([MembershipChange("anna", ("vip",), ("new",)), MembershipChange("bert", (), ("vip",))])
    assert (store.members("vip"), store.members("new")) == ({"anna"}, set())


def test_one_unknown_audience_undoes_the_whole_request(store):
    before = store.version
    for deletes in ((), ("gone",)):
        with pytest.raises(UnknownAudienceError):
            store.change(
                [
                    MembershipChange("anna", ("vip",)),
                    MembershipChange("bert", ("gone",) if not deletes else (), deletes),
                ]
            )
    assert (store.members("vip"), store.profiles(), store.version) == (set(), set(), before)


def test_a_profile_exists_from_the_first_time_it_is_seen(store):
    store.change([MembershipChange("anna")])
    assert store.profile("anna") == {"attributes": {}, "audiences": []}
    assert store.profile("bert") is None


def test_attributes_are_merged_and_null_deletes(store):
    store.change([MembershipChange("anna")], {"a": 1, "b": 2, "c": None})
    store.change([MembershipChange("anna", (2, 1))], {"a": None, "b": 3})
    assert store.profile("anna") == {"attributes": {"b": 3}, "audiences": ["new", "vip"]}


def test_a_deleted_audience_takes_its_memberships_along(store):
    store.change([MembershipChange("anna", ("vip", "new"))])
    store.delete_audience("vip")
    store.create_audience("vip", "VIP again")
    assert store.profile("anna") == {"attributes": {}, "audiences": ["new"]}


@pytest.mark.parametrize("name", ["rename_audience", "delete_audience", "members"])
def test_an_unknown_audience_is_an_error(store, name):
    with pytest.raises(UnknownAudienceError):
        getattr(store, name)(*(("gone", "x") if name == "rename_audience" else ("gone",)))


def test_a_snapshot_is_not_touched_by_later_changes(store):
    store.change([MembershipChange("anna", ("vip",))])
    snapshot = store.snapshot()
    store.change([MembershipChange("bert", ("vip",))])
    store.change([MembershipChange("anna")], {"a": 1})
    audiences, profiles, next_id = snapshot
    assert (audiences[0].members, list(profiles), profiles["anna"].attributes) == ({"anna"}, ["anna"], {})
    assert next_id == 3


def test_readers_see_whole_requests_while_another_thread_writes(store):
    pairs = [[MembershipChange(f"{n}-{side}", ("vip",)) for side in "ab"] for n in range(2000)]
    odd = []
    writer = threading.Thread(target=lambda: [store.change(pair) for pair in pairs])
    writer.start()
    while writer.is_alive():
        odd.append(len(store.members("vip")) % 2)
    writer.join()
    assert not any(odd)
    assert len(store.members("vip")) == 4000


def test_an_audience_without_an_external_id_is_reached_by_its_internal_one(store):
    internal = store.create_audience(None, "By hand").id
    store.change([MembershipChange("anna", (internal, "vip"))])
    assert (store.members(internal), list(store.audiences())) == ({"anna"}, ["vip", "new"])
    assert list(store.campaign_manager_audiences()) == [internal]
    assert store.profile("anna") == {"attributes": {}, "audiences": ["vip", internal]}
    store.delete_audience(internal)
    with pytest.raises(UnknownAudienceError):
        store.members(internal)


def test_a_profile_knows_when_it_was_made_and_what_ran_for_it():
    times = iter("123")
    store = Store(now=lambda: next(times))
    store.change([MembershipChange("anna")])
    store.change([MembershipChange("bert"), MembershipChange("anna")], run_rules=True)
    anna, bert = store.stored_profile("anna"), store.stored_profile("bert")
    assert (anna.id, anna.created, anna.last_activity, anna.rule_runs) == (1, "1", "2", 1)
    assert (bert.id, bert.created, bert.last_activity, bert.rule_runs) == (2, "2", "2", 1)
    assert store.stored_profile("carl") is None
