"""Reasons of refusals."""

from __future__ import annotations

from collections import Counter

import pytest

from airflow_provider_talon_cdp.exceptions import Blame, RejectedError
from airflow_provider_talon_cdp.sync.reasons import OTHERS, reason_of, within


def reason(*blames, status=400):
    return reason_of(RejectedError("no", method="PUT", path="/", status=status, blames=blames))


@pytest.mark.parametrize(
    "blame, says",
    [
        (Blame("/attributes/Tier", "Unknown attribute", ""), "attribute 'Tier' is not defined"),
        (Blame("/attributes/Tier", "Tier is not defined", ""), "attribute 'Tier' is not defined"),
        (Blame("/attributes/Tier", "Invalid", "attribute does not exist"), "attribute 'Tier' is not defined"),
        (Blame("/attributes/a~1b~0c", "Unknown attribute", ""), "attribute 'a/b~c' is not defined"),
        (
            Blame("/attributes/score", "Invalid  attribute\nvalue", "'secret' is no number"),
            "attribute 'score' was refused (Invalid attribute value)",
        ),
        (Blame("/attributes/scores/0", "", ""), "attribute 'scores' was refused"),
        (Blame("/runRuleEngine", "Invalid", ""), "refused by Talon.One (400)"),
        (Blame("/attributes/", "Invalid", ""), "refused by Talon.One (400)"),
    ],
)
def test_the_answers_pointer_becomes_the_attributes_name(blame, says):
    assert reason(blame) == says


def test_an_answer_that_blames_nothing_is_counted_by_its_status():
    assert reason(status=422) == "refused by Talon.One (422)"


def test_several_attributes_are_named_in_order_and_not_too_many():
    blames = [Blame(f"/attributes/{name}", "Unknown attribute", "") for name in "dbacb"]
    assert reason(*blames[:3]) == (
        "attribute 'a' is not defined; attribute 'b' is not defined; attribute 'd' is not defined"
    )
    assert reason(*blames).endswith("attribute 'c' is not defined and 1 more")


def test_however_many_reasons_there_are_their_counts_stay_small():
    reasons = Counter()
    for number in range(1000):
        reasons[within(reasons, f"reason {number % 200}")] += 1
    assert len(reasons) == 51
    assert reasons.total() == 1000
    assert reasons["reason 0"] == 5
    assert reasons[OTHERS] == 1000 - 50 * 5
