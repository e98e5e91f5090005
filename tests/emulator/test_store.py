"""State: all or nothing, idempotent, and never more work than there is to change."""

import threading

import pytest

from airflow_provider_talon_cdp.emulator.store import AudienceExistsError, Store, UnknownAudienceError
from airflow_provider_talon_cdp.emulator.validation import Change


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
    with pytest.raises(AudienceExistsError):
        store.create_audience("vip", "Other")
    assert store.audiences()["vip"]["name"] == "VIP"


def test_an_internal_id_is_never_given_twice(store):
    store.delete_audience("new")
    assert store.create_audience("new", "Again").id == 3


def test_internal_and_external_ids_mean_the_same_audience(store):
    store.change_external([Change("anna", ("vip",))])
    store.change_internal([Change("bert", (1,)), Change("anna", (), (1,))])
    assert store.members("vip") == {"bert"}


def test_changes_can_be_repeated(store):
    for _ in range(2):
        store.change_external([Change("anna", ("vip",), ("new",)), Change("bert", (), ("vip",))])
    assert (store.members("vip"), store.members("new")) == ({"anna"}, set())


def test_one_unknown_audience_undoes_the_whole_request(store):
    before = store.version
    for deletes in ((), ("gone",)):
        with pytest.raises(UnknownAudienceError):
            store.change_external(
                [Change("anna", ("vip",)), Change("bert", ("gone",) if not deletes else (), deletes)]
            )
    assert (store.members("vip"), store.profiles(), store.version) == (set(), set(), before)


def test_a_profile_exists_from_the_first_time_it_is_seen(store):
    store.change_external([Change("anna")])
    assert store.profile("anna") == {"attributes": {}, "audiences": []}
    assert store.profile("bert") is None


def test_attributes_are_merged_and_null_deletes(store):
    store.change_internal([Change("anna")], {"a": 1, "b": 2, "c": None})
    store.change_internal([Change("anna", (2, 1))], {"a": None, "b": 3})
    assert store.profile("anna") == {"attributes": {"b": 3}, "audiences": ["new", "vip"]}


def test_a_deleted_audience_takes_its_memberships_along(store):
    store.change_external([Change("anna", ("vip", "new"))])
    store.delete_audience("vip")
    store.create_audience("vip", "VIP again")
    assert store.profile("anna") == {"attributes": {}, "audiences": ["new"]}


@pytest.mark.parametrize("name", ["rename_audience", "delete_audience", "members"])
def test_an_unknown_audience_is_an_error(store, name):
    with pytest.raises(UnknownAudienceError):
        getattr(store, name)(*(("gone", "x") if name == "rename_audience" else ("gone",)))


def test_a_snapshot_is_not_touched_by_later_changes(store):
    store.change_external([Change("anna", ("vip",))])
    snapshot = store.snapshot()
    store.change_external([Change("bert", ("vip",))])
    store.change_internal([Change("anna")], {"a": 1})
    assert (snapshot.audiences[0].members, dict(snapshot.profiles)) == ({"anna"}, {"anna": {}})


def test_readers_see_whole_requests_while_another_thread_writes(store):
    pairs = [[Change(f"{n}-{side}", ("vip",)) for side in "ab"] for n in range(2000)]
    odd = []
    writer = threading.Thread(target=lambda: [store.change_external(pair) for pair in pairs])
    writer.start()
    while writer.is_alive():
        odd.append(len(store.members("vip")) % 2)
    writer.join()
    assert not any(odd)
    assert len(store.members("vip")) == 4000
