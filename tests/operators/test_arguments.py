from __future__ import annotations

from typing import Literal

import pytest

from airflow_provider_talon_cdp.contract import check_choice
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import (
    as_count,
    as_fraction,
    as_limit,
    as_list,
    as_mapping,
    as_positive,
    as_tolerance,
    as_types,
    audience_id_of,
    check_numbers,
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


def test_the_json_text_of_none_is_no_mapping():
    """A template renders it of a task that returned nothing; None is the default."""
    with pytest.raises(InvalidInputError, match="hook_params must be a mapping"):
        as_mapping("hook_params", " null ")
    with pytest.raises(InvalidInputError, match="types must be a mapping"):
        as_types("types", "null")
    assert as_mapping("hook_params", None) is None
    assert as_types("types", None) == {}


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
    "take, value, made",
    [
        (as_count, 5, 5),
        (as_count, "5", 5),
        (as_positive, "1", 1),
        (as_limit, None, None),
        (as_limit, "None", None),
        (as_limit, "0", 0),
        (as_tolerance, None, None),
        (as_tolerance, "3", 3),
        (as_fraction, 1, 1),
        (as_fraction, "0.25", 0.25),
    ],
)
def test_a_number_may_be_the_text_that_a_template_renders_it_to(take, value, made):
    assert take("limit", value) == made


@pytest.mark.parametrize(
    "take, value",
    [
        (as_count, -1),
        (as_count, 0.5),
        (as_count, True),
        (as_count, "1.0"),
        (as_count, ""),
        (as_count, None),
        (as_positive, 0),
        (as_positive, "0"),
        (as_limit, ""),
        (as_limit, "-1"),
        (as_limit, "many"),
        (as_tolerance, "None"),
        (as_tolerance, "-1"),
        (as_fraction, "20%"),
        (as_fraction, "1.5"),
        (as_fraction, "nan"),
        (as_fraction, True),
        (as_fraction, None),
    ],
)
def test_other_values_are_no_limit(take, value):
    with pytest.raises(InvalidInputError, match="limit"):
        take("limit", value)


@pytest.mark.parametrize("value", ["5", "", "None"])
def test_a_literal_text_is_no_number(value):
    with pytest.raises(InvalidInputError, match="limit must be a number, but is the text"):
        check_numbers(as_limit, limit=value)
    check_numbers(as_limit, limit="{{ params.limit }}")


@pytest.mark.parametrize("kind", ["text", "list string", None, ["string"]])
def test_another_type_of_an_attribute_is_refused(kind):
    with pytest.raises(
        InvalidInputError, match=r"'a' must be one of 'string', 'number', .*'\(list location\)'"
    ):
        as_types("types", {"a": kind})
