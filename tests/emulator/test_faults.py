"""Faults: the queue, and what can be asked for."""

import json

import pytest

from airflow_provider_talon_cdp.emulator.faults import KINDS, Fault, Faults, from_json


def queue(*faults):
    waiting = Faults()
    for fault in faults:
        waiting.add(fault)
    return waiting


def taken(faults, tries, operation="update_profile", ids=("p",)):
    return [fault.kind if (fault := faults.take(operation, ids)) else None for _ in range(tries)]


def test_faults_come_in_order_each_as_often_as_asked():
    faults = queue(Fault("slow", times=2), Fault("html"))
    assert taken(faults, 4) == ["slow", "slow", "html", None]
    assert faults.pending() == []


def test_a_fault_lets_requests_pass_first():
    assert taken(queue(Fault("slow", after=2), Fault("html")), 5) == [None, None, "slow", "html", None]


def test_a_fault_without_times_stays():
    faults = queue(Fault("slow", times=None))
    assert taken(faults, 3) == ["slow"] * 3
    assert faults.pending() == [{"kind": "slow", "after": 0}]
    faults.clear()
    assert taken(faults, 1) == [None]


def test_a_fault_for_one_operation_leaves_the_others_alone():
    faults = queue(Fault("slow", only="create_audience"), Fault("html", times=2))
    assert taken(faults, 1) == ["html"]
    assert taken(faults, 1, "create_audience") == ["slow"]


def test_a_fault_for_a_part_of_an_id_counts_only_such_requests():
    faults = queue(Fault("slow", only="ann", after=1))
    assert [taken(faults, 1, ids=ids) for ids in (("bert",), ("anna", "bert"), ("bert",), ("joanna",))] == [
        [None],
        [None],
        [None],
        ["slow"],
    ]


def test_what_waits_is_told_with_what_is_left_of_it():
    faults = queue(Fault("status", times=3, after=1, status=503, retry_after=2))
    taken(faults, 2)
    assert faults.pending() == [{"kind": "status", "times": 2, "after": 0, "status": 503, "retry_after": 2}]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "explode"},
        {"kind": "slow", "times": 0},
        {"kind": "slow", "times": True},
        {"kind": "slow", "after": -1},
        {"kind": "slow", "seconds": -1},
        {"kind": "slow", "seconds": float("nan")},
        {"kind": "slow", "seconds": float("inf")},
        {"kind": "slow", "seconds": "1"},
        {"kind": "slow", "status": 500},
        {"kind": "slow", "only": ""},
        {"kind": "slow", "only": 1},
        {"kind": "status", "status": 199},
        {"kind": "status", "status": 600},
        {"kind": "status", "status": "500"},
        {"kind": "status", "retry_after": -1},
        {"kind": "status", "retry_after": "a\r\nb: c"},
        {"kind": "status", "seconds": 1},
        {"kind": "html", "html": 1},
        {"kind": "reset_before", "body": {}},
        {"kind": "large", "megabytes": 0},
        {"kind": "large", "megabytes": 1.5},
        {"kind": "endless", "megabytes": 1},
        {"kind": "large", "status": 204},
        {"kind": "drip", "seconds": -1},
        {"kind": "cut", "status": 500},
    ],
)
def test_a_fault_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"\w"):
        Fault(**options)


@pytest.mark.parametrize("data", [{}, {"times": 1}, {"kind": "slow", "tiems": 1}, {"kind": ["slow"]}])
def test_a_fault_from_json_is_checked(data):
    with pytest.raises(ValueError, match="kind"):
        from_json(data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_for_in_json(kind):
    assert from_json({"kind": kind}) == Fault(kind)


def test_an_error_status_has_the_usual_body():
    answer = Fault("status", status=503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT").answer("uuid")
    assert (answer.status, answer.headers) == (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    assert json.loads(answer.body) == {
        "StatusCode": 503,
        "Error": "Service Unavailable",
        "RequestUUID": "uuid",
    }


def test_a_status_without_a_name_and_one_without_a_body():
    assert json.loads(Fault("status", status=599).answer("u").body)["Error"] == "Status 599"
    assert Fault("status", status=204).answer("u").body == b""


@pytest.mark.parametrize(
    ("options", "body", "media_type"),
    [
        ({"body": {"a": [1]}}, b'{"a": [1]}', "application/json"),
        ({"body": "not json"}, b"not json", "application/json"),
        ({"html": "<p>"}, b"<p>", "text/html"),
    ],
)
def test_the_body_of_an_error_can_be_chosen(options, body, media_type):
    answer = Fault("status", **options).answer("u")
    assert (answer.status, answer.body, answer.media_type) == (500, body, media_type)
