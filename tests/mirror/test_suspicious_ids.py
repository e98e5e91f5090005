"""Profile IDs that are valid and look wrong: what ``suspicious_ids`` makes of them, whatever sends them."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.exceptions import InvalidInputError

IDS = ["anna", " bo ", "None"]
FOUND = {"white_space_at_ends": 1, "null_text": 1}


@pytest.fixture(params=["mirror", "mirror of a list", "add", "attributes"])
def send_ids(request, sqlite, vip, mirror, mirror_list, send):
    """Send the IDs in one of the ways that there are; the summary."""
    sqlite.fill(IDS)
    sqlite.fill_people("id text, tier text", [(each, "gold") for each in IDS])
    return {
        "mirror": mirror,
        "mirror of a list": lambda **how: mirror_list(IDS, **how),
        "add": lambda **how: mirror(mode="add", **how),
        "attributes": send,
    }[request.param]


@pytest.mark.parametrize("how", [{}, {"suspicious_ids": "warn"}])
def test_they_are_sent_counted_and_told(send_ids, said, how):
    summary = send_ids(**how)
    assert (summary["sent"], summary["suspicious"]) == (3, FOUND)
    assert "1 of 3 profile IDs have white space at their ends. Use TRIM in SQL." in said()
    assert "1 of 3 profile IDs are the text of a null" in said()
    assert " bo " not in said()


def test_they_may_be_sent_without_a_word(send_ids, said):
    summary = send_ids(suspicious_ids="ignore")
    assert (summary["sent"], summary["suspicious"]) == (3, FOUND)
    assert "profile IDs have" not in said()


def test_they_may_stop_the_task_before_anything_is_sent(send_ids, calls):
    before = calls()
    with pytest.raises(InvalidInputError, match=r"(?s)1 of \d profile IDs have white space.*Fix the query"):
        send_ids(suspicious_ids="fail")
    assert calls() == before
