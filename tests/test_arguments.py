from __future__ import annotations

from typing import Literal

import pytest

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import (
    as_list,
    as_mapping,
    audience_id_of,
    check_choice,
    check_sync_limits,
    is_literal,
)


class Reference:
    """Like an XComArg: it resolves to a value when the task runs."""

    def resolve(self, context):
        return []


@pytest.mark.parametrize("value", ["vip", 7, None, ["a", "b"], {"a": 1}, ("a",)])
def test_plain_values_are_known_at_parse_time(value):
    assert is_literal(value)


@pytest.mark.parametrize(
    "value",
    ["{{ ds }}", "{% if x %}a{% endif %}", ["a", "{{ ds }}"], {"a": "{{ ds }}"}, Reference(), [Reference()]],
)
def test_templates_and_references_are_not(value):
    assert not is_literal(value)


@pytest.mark.parametrize(
    "value, made", [(["a"], ["a"]), (("a", 1), ["a", 1]), ({"a"}, ["a"]), ('["a", 1]', ["a", 1])]
)
def test_a_list_may_be_any_iterable_or_json_text(value, made):
    assert as_list("add", value) == made


@pytest.mark.parametrize(
    "value",
    [
        *("anna", "['anna']", "5", '"anna"', '{"a": 1}', "", {"a": 1}, 5),
        *(b"anna", bytearray(b"anna"), memoryview(b"anna")),
    ],
)
def test_one_string_bytes_or_a_mapping_is_no_list(value):
    with pytest.raises(InvalidInputError, match="add must be a list") as refusal:
        as_list("add", value)
    assert "anna" not in str(refusal.value)


def test_text_that_python_cannot_read_as_json_is_refused():
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(InvalidInputError, match="add must be a list"):
        as_list("add", deep)
    for text in (f'{{"a": {deep}}}', '{"a": 1E99999999999999999999}'):
        with pytest.raises(InvalidInputError, match="attributes must be a mapping"):
            as_mapping("attributes", text)


def test_none_asks_about_the_upstream_task():
    with pytest.raises(InvalidInputError, match="upstream task return nothing"):
        as_list("add", None)


def test_an_internal_audience_id_may_come_from_a_template_as_digits():
    assert audience_id_of("audience_id", "17", "internal") == 17
    assert audience_id_of("audience_id", "17", "external") == "17"
    with pytest.raises(InvalidInputError):
        audience_id_of("audience_id", "\u0664", "internal")


def test_a_choice_names_all_choices():
    with pytest.raises(InvalidInputError, match="mode must be one of 'add', 'remove', but is 'ad'"):
        check_choice("mode", "ad", Literal["add", "remove"])


@pytest.mark.parametrize(
    "limits",
    [
        {"max_rejected": -1},
        {"max_rejected": 0.5},
        {"max_rejected": True},
        {"max_rejected": "1"},
        {"in_flight": 0},
        {"in_flight": None},
        {"in_flight": 2.0},
    ],
)
def test_limits_are_counts(limits):
    with pytest.raises(InvalidInputError, match=next(iter(limits))):
        check_sync_limits(**{"max_rejected": 0, "in_flight": 1} | limits)


def test_no_limit_of_rejections_is_a_limit():
    check_sync_limits(max_rejected=None, in_flight=1)
