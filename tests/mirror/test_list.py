"""A mirror of a list that the DAG has at hand."""

from __future__ import annotations

import logging
import random
import uuid

import pytest

from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError, NotFoundError

TEN = [f"customer-{each}" for each in range(10)]


def test_the_audience_becomes_the_list(vip, mirror_list, agrees):
    mirror_list(TEN)
    agrees(TEN)
    summary = mirror_list([*TEN[1:], "new"])
    assert (summary["removals"], summary["sent"], summary["unchanged"]) == (1, 2, 9)
    agrees([*TEN[1:], "new"])
    again = mirror_list([*TEN[1:], "new"])
    # A member that is there already shows that the audience is.
    assert (again["sent"], again["requests"]) == (0, 1)
    assert mirror_list([*TEN[1:], "new"], verify="none")["requests"] == 0


def test_the_order_of_the_list_does_not_matter(vip, mirror_list, agrees, caplog):
    caplog.set_level(logging.INFO)
    ids = [*TEN, "é", "\U0001f600", "\uffff", "A", "a ", "a\n", 7, 70, 8, uuid.UUID(int=5)]
    for seed in range(5):
        random.Random(seed).shuffle(ids)
        mirror_list(ids)
        agrees([str(each) for each in ids])
    assert "not sorted" not in caplog.text


def test_bad_records_are_rejected_and_the_rest_is_mirrored(vip, mirror_list, agrees):
    summary = mirror_list([None, "anna", "", "x" * 1001, "bert", "anna"], max_rejected=3)
    assert (summary["read"], summary["sent"], summary["duplicate"]) == (6, 2, 1)
    assert sum(summary["rejected"].values()) == 3
    agrees(["anna", "bert"])


def test_an_empty_list_is_guarded(vip, mirror_list, agrees):
    mirror_list(TEN)
    with pytest.raises(GuardError, match="on_empty='allow'"):
        mirror_list([])
    agrees(TEN)
    mirror_list([], on_empty="allow", max_removal_fraction=1)
    agrees([])


def test_the_list_and_a_query_share_the_ledger_of_the_audience(sqlite, vip, mirror, mirror_list, agrees):
    sqlite.fill(TEN)
    mirror()
    assert mirror_list(TEN)["sent"] == 0


def test_the_audience_can_be_created(talon, mirror_list, agrees):
    with pytest.raises(NotFoundError, match="audience_name"):
        mirror_list(TEN)
    mirror_list(TEN, audience_name="VIP")
    agrees(TEN)


def test_a_dry_run_sends_nothing(vip, mirror_list, calls, state):
    assert mirror_list(TEN, dry_run="{{ true }}".replace("{{ true }}", "True"))["unsent"] == 10
    assert calls() == 0
    assert not state.exists()


def test_json_text_of_a_template_is_a_list(vip, mirror_list, agrees):
    mirror_list('["anna", "bert", 7]')
    agrees(["anna", "bert", "7"])


@pytest.mark.parametrize("members", [[1.5], [b"anna"], [True], [["anna"]], [{"id": 1}]])
def test_ids_of_other_types_are_refused_before_the_first_request(vip, mirror_list, calls, members):
    with pytest.raises(InvalidInputError, match="A profile ID is of type"):
        mirror_list(members)
    assert calls() == 0


class Upstream:
    """The result of another task, before it is resolved."""

    def resolve(self, context):
        raise NotImplementedError


def test_an_upstream_task_that_returned_nothing(vip, state, context, calls):
    from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator  # noqa: PLC0415

    operator = SyncAudienceMembersOperator(
        task_id="sync", audience_id="vip", members=Upstream(), mode="mirror", state_uri=str(state)
    )
    operator.members = None
    with pytest.raises(InvalidInputError, match=r"members must be a list, not NoneType\. Did the upstream"):
        operator.execute(context)
    assert calls() == 0
