"""Members from lists that the DAG has at hand."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    NotFoundError,
    RejectedRecordsError,
    RequestError,
)
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator

ODD_IDS = [
    "a/b",
    "a?b",
    "a#b",
    "100%",
    "%2F",
    "..",
    ".",
    " ",
    "\U0001f600",
    "x" * 1000,
    "a\nb",
    "\"'`\\",
    "audiences",
]
ODD_IDS += ["\x00", "\x1f", "\u2028", "null", "0", "{{ x }}"]


def members(**arguments):
    return SyncAudienceMembersOperator(task_id="t", **({"audience_id": "vip"} | arguments))


@pytest.fixture
def vip(run):
    return run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))["internal_id"]


def requests_of(talon):
    return [each for each in talon.requests() if each["operation"].startswith("update_profiles")]


def test_members_are_added_and_removed(run, talon, vip):
    result = run(members(add=["anna", "bert"]))
    assert {
        name: result[name] for name in ("read", "sent", "duplicate", "rejected", "unsent", "requests")
    } == {
        "read": 2,
        "sent": 2,
        "duplicate": 0,
        "rejected": {},
        "unsent": 0,
        "requests": 1,
    }
    run(members(add=["carl"], remove=["anna"]))
    assert talon.members("vip") == {"bert", "carl"}


def test_members_go_by_internal_audience_id(run, talon, vip):
    run(members(audience_id=vip, audience_id_type="internal", add=["anna"]))
    run(members(audience_id=str(vip), audience_id_type="internal", add=["bert"]))
    assert talon.members("vip") == {"anna", "bert"}
    assert {each["operation"] for each in requests_of(talon)} == {"update_profiles_internal"}


def test_integers_and_uuids_are_profile_ids_by_their_text(run, talon, vip):
    run(members(add=[5, UUID(int=7), "x"]))
    assert talon.members("vip") == {"5", str(UUID(int=7)), "x"}


def test_more_than_a_thousand_changes_travel_in_several_requests(run, talon, vip):
    ids = [f"p{each}" for each in range(2500)]
    result = run(members(add=ids, remove=[f"q{each}" for each in range(700)]))
    assert talon.members("vip") == set(ids)
    assert sorted(each["changes"] for each in requests_of(talon)) == [200, 1000, 1000, 1000]
    assert (result["read"], result["sent"], result["requests"]) == (3200, 3200, 4)


def test_a_hundred_thousand_members_arrive(run, talon, vip):
    ids = [f"customer-{each}@example.com" for each in range(100_000)]
    # As from XCom. Airflow would render each item of a literal list as a template, which takes a minute.
    result = run(members(add="{{ params.ids }}"), native=True, params={"ids": ids})
    assert talon.members("vip") == set(ids)
    assert (result["sent"], result["requests"]) == (100_000, 100)


def test_duplicates_are_sent_once_and_counted(run, talon, vip):
    result = run(members(add=["anna", "bert", "anna", "anna"]))
    assert (result["read"], result["sent"], result["duplicate"]) == (4, 2, 2)
    assert [each["changes"] for each in requests_of(talon)] == [2]


def test_a_profile_to_add_and_to_remove_is_an_error(run, talon, vip):
    with pytest.raises(InvalidInputError, match="2 profile.*both"):
        run(members(add=["anna", "bert", "5"], remove=["carl", "anna", 5]))
    assert requests_of(talon) == []


def test_odd_ids_arrive_unchanged(run, talon, vip):
    run(members(add=[*ODD_IDS[:-1], "{% raw %}{{ x }}{% endraw %}"]))
    assert talon.members("vip") == set(ODD_IDS)


def test_ids_from_xcom_are_not_rendered_again(run, talon, vip):
    """A profile ID that looks like a template is data."""
    run(members(add="{{ params.ids | tojson }}"), params={"ids": ["{{ x }}", "{% y %}"]})
    assert talon.members("vip") == {"{{ x }}", "{% y %}"}


@pytest.mark.parametrize("bad", [None, "", "x" * 1001, "\ud800"])
def test_bad_ids_are_counted_and_the_others_are_sent(run, talon, vip, bad):
    with pytest.raises(RejectedRecordsError, match="1 of 3.*max_rejected") as error:
        run(members(add=["anna", bad, "bert"]))
    assert talon.members("vip") == {"anna", "bert"}
    assert error.value.report.balances
    result = run(members(add=["anna", bad, "bert"], max_rejected=1))
    assert sum(result["rejected"].values()) == 1
    with pytest.raises(RejectedRecordsError):
        run(members(add=[bad, bad, "bert"], max_rejected=1))
    assert sum(run(members(add=[bad] * 500, max_rejected=None))["rejected"].values()) == 500


def test_refused_ids_count_against_max_rejected(run, talon, vip):
    talon.reject_profiles(["p7"])
    ids = [f"p{each}" for each in range(20)]
    with pytest.raises(RejectedRecordsError, match="refused by Talon.One"):
        run(members(add=ids))
    result = run(members(add=ids, max_rejected=1))
    assert talon.members("vip") == set(ids) - {"p7"}
    assert (result["read"], result["sent"], sum(result["rejected"].values())) == (20, 19, 1)


@pytest.mark.parametrize("bad", [True, 1.0, b"x", ["x"], {"id": "x"}])
def test_an_id_of_a_type_that_no_id_has_stops_before_anything_is_sent(run, talon, vip, bad):
    with pytest.raises(InvalidInputError, match=type(bad).__name__):
        run(members(add=[*map(str, range(1100)), bad]))
    assert requests_of(talon) == []


def test_lists_may_be_json_text_from_a_template(run, talon, vip):
    run(members(add="{{ params.ids | tojson }}", remove="[]"), params={"ids": ["a'b", 'c"d', "\u00fc"]})
    assert talon.members("vip") == {"a'b", 'c"d', "\u00fc"}


def test_lists_may_be_native_results_of_a_template(run, talon, vip):
    run(members(add="{{ params.ids }}"), native=True, params={"ids": ["anna", "bert"]})
    assert talon.members("vip") == {"anna", "bert"}


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, dict.fromkeys])
def test_any_collection_will_do(run, talon, vip, kind):
    ids = kind(["anna", "bert"])
    run(members(add=ids.keys() if isinstance(ids, dict) else ids))
    assert talon.members("vip") == {"anna", "bert"}


@pytest.mark.parametrize(
    "make",
    [iter, lambda ids: map(str, ids), lambda ids: (each for each in ids)],
    ids=["iter", "map", "generator"],
)
def test_an_iterator_is_refused(run, talon, vip, make):
    """``map(str, ids)`` is a natural thing to write; a green task that sent nothing would be a silent
    loss."""
    with pytest.raises(InvalidInputError, match="iterator"):
        run(members(add=make(["anna", "bert"])))
    assert requests_of(talon) == []


@pytest.mark.parametrize(
    "rendered", ["['anna', 'bert']", "anna", "", "None", "null", '{"a": 1}', '"anna"', "5"]
)
def test_text_that_is_no_json_list_fails_before_anything_is_sent(run, talon, vip, rendered):
    for name in ("add", "remove"):
        with pytest.raises(InvalidInputError, match=f"{name} must be a list"):
            run(members(**{name: "{{ params.x }}"}), params={"x": rendered})
    assert requests_of(talon) == []


@pytest.mark.parametrize(
    "nothing, said",
    [(None, "add is null after rendering"), ({"a": 1}, "add must be a list"), (5, "add must be a list")],
)
def test_what_is_no_list_from_xcom_fails_before_anything_is_sent(run, talon, vip, nothing, said):
    with pytest.raises(InvalidInputError, match=said):
        run(members(add="{{ params.x }}"), native=True, params={"x": nothing})
    assert requests_of(talon) == []


@pytest.mark.parametrize("arguments", [{}, {"remove": None}, {"max_rejected": 5}], ids=str)
def test_an_operator_without_any_list_fails_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError, match="nothing to do: give add, remove or members"):
        members(**arguments)


def test_a_mapped_operator_may_get_its_only_list_from_expand(run, talon, vip):
    given = {"task_id": "t", "audience_id": "vip"}
    mapped = SyncAudienceMembersOperator.partial(**given).expand(add=[["anna"], ["bert"]])
    run(mapped.unmap({"add": ["anna"]}))
    # On another day the list of an upstream task is empty.
    run(mapped.unmap({"add": ()}))
    rows = [{"remove": ["anna"]}, {"members": ["bert"], "mode": "mirror"}]
    mapped = SyncAudienceMembersOperator.partial(**given).expand_kwargs(rows)
    for row in rows:
        run(mapped.unmap(row))
    assert talon.members("vip") == {"bert"}


def test_empty_lists_send_nothing(run, talon, vip):
    assert run(members(add=[], remove=[]))["requests"] == 0
    assert requests_of(talon) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"audience_id": ""},
        {"audience_id": 5},
        {"audience_id": "x", "audience_id_type": "internal"},
        {"audience_id": 0, "audience_id_type": "internal"},
        {"audience_id": True, "audience_id_type": "internal"},
        {"add": None},
        {"add": "anna"},
        {"remove": {"a": 1}},
        {"max_rejected": -1},
        {"max_rejected": True},
        {"in_flight": 0},
        {"in_flight": 1.5},
        {"audience_id_type": "both"},
        {"max_rejected": "1"},
    ],
    ids=str,
)
def test_a_bad_literal_fails_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError):
        members(**arguments)


@pytest.mark.parametrize("rendered", ["", "x" * 1001])
def test_a_bad_rendered_audience_fails_before_anything_is_sent(run, talon, rendered):
    with pytest.raises(InvalidInputError, match="audience_id"):
        run(members(audience_id="{{ params.x }}", add=["anna"]), params={"x": rendered})
    assert talon.requests() == []


@pytest.mark.parametrize(
    "rendered", ["vip", "0", "-1", "1.0", "9" * 5000, "\u0665", str(2**63)], ids=lambda each: each[:25]
)
def test_a_bad_rendered_internal_audience_fails_before_anything_is_sent(run, talon, rendered):
    with pytest.raises(InvalidInputError, match="audience"):
        run(
            members(audience_id="{{ params.x }}", audience_id_type="internal", add=["a"]),
            params={"x": rendered},
        )
    assert talon.requests() == []


def test_a_missing_audience_is_named(run, talon):
    with pytest.raises(NotFoundError, match="(?s)Audience in the request: vip.*CreateAudienceOperator"):
        run(members(add=["anna"]))


@pytest.mark.parametrize("id_type", ["external", "internal"])
@pytest.mark.parametrize("there", ["plural", "singular"])
@pytest.mark.parametrize("chosen", ["plural", "singular"])
def test_the_multi_profile_path_works_when_it_is_the_deployments_and_fails_when_not(
    run, connect, id_type, there, chosen
):
    """Above all the singular is never green on a deployment that knows the plural: no membership changes
    there."""
    with Emulator(multi_profile_path=there) as emulator:
        connect({"multi_profile_path": chosen}, emulator=emulator)
        vip = run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))["internal_id"]
        operator = members(
            audience_id=vip if id_type == "internal" else "vip",
            audience_id_type=id_type,
            add=["anna", "bert"],
        )
        if there == chosen:
            run(operator)
            assert emulator.members("vip") == {"anna", "bert"}
            return
        with pytest.raises(RequestError, match="path"):
            run(operator)
        assert emulator.members("vip") == frozenset()


def test_a_profile_named_audiences_is_a_profile_like_any_other(run, talon, vip):
    run(members(add=["audiences"]))
    run(members(audience_id=vip, audience_id_type="internal", add=["anna"]))
    assert talon.members("vip") == {"audiences", "anna"}


def test_in_flight_bounds_the_requests_at_once(run, connect):
    with Emulator(service_time=0.2) as emulator:
        connect(emulator=emulator)
        run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))
        result = run(members(add=[f"p{each}" for each in range(2100)], in_flight=1))
        assert len(emulator.members("vip")) == 2100
    assert result["requests"] == 3
    assert result["seconds"] >= 0.6


def test_the_result_of_a_large_run_is_small(run, talon, vip):
    result = run(members(add=["p" * 900 + str(each) for each in range(1500)]))
    assert len(json.dumps(result)) < 500
