"""Checks of operator arguments: at parse time if they are literal, and again after they are rendered."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain
from typing import Any

from airflow_provider_talon_cdp.contract import (
    AttributeType,
    AudienceIdType,
    check_audience_id,
    check_choice,
    check_text,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError


def is_literal(value: Any) -> bool:
    """Whether a value is known when the DAG is parsed: neither a Jinja template nor another task's result."""
    if isinstance(value, str):
        return not is_template(value)
    if isinstance(value, dict):
        return all(is_literal(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(is_literal(item) for item in value)
    # XComArg, MappedArgument and literal() have this method.
    return not hasattr(value, "resolve")


def is_template(value: Any) -> bool:
    """Whether a value is text that Jinja would change."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def check_literals(check: Callable[..., object], **values: Any) -> None:
    """Call ``check(name, value)`` for each literal value."""
    for name, value in values.items():
        if is_literal(value):
            check(name, value)


def check_numbers(check: Callable[..., object], **values: Any) -> None:
    """Check literals as ``check_literals`` does, and refuse text that is not a template."""
    for name, value in values.items():
        if isinstance(value, str) and is_literal(value):
            raise InvalidInputError(f"{name} must be a number, but is the text {value!r}.")
        check_literals(check, **{name: value})


def as_count(name: str, value: Any, least: int = 0, or_else: str = "") -> int:
    """Return an integer of at least ``least``, which may be text, as a template renders it."""
    number = _number(int, value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise InvalidInputError(f"{name} must be an integer >= {least}{or_else}, but is {value!r}.")
    return number


def as_positive(name: str, value: Any) -> int:
    """Return an integer of at least 1, which may be text."""
    return as_count(name, value, 1)


def as_limit(name: str, value: Any, least: int = 0) -> int | None:
    """Return an integer as ``as_count`` does, or None for no limit, which a template renders to ``None``."""
    return None if value is None or value == "None" else as_count(name, value, least, " or None")


def as_tolerance(name: str, value: Any) -> int | None:
    """Do as ``as_limit``, but refuse the text ``None``: an empty parameter must not tolerate everything."""
    return as_limit(name, check_rendered(name, value))


def as_fraction(name: str, value: Any) -> float:
    """Return a number from 0 to 1, which may be text, as a template renders it."""
    number = _number(float, value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise InvalidInputError(f"{name} must be a number from 0 to 1, but is {value!r}.")
    return number


def as_list(name: str, value: Any) -> list[Any]:
    """Return an iterable, or JSON text from a template, as a list.

    Raises:
        InvalidInputError: It is None (as when an upstream task returned nothing), a string that is not a JSON
            array, an iterator, bytes, a mapping, a data frame or no iterable. The text does not quote it.
    """
    if isinstance(value, str):
        return _parse_list(name, value)
    if isinstance(value, Iterator):
        raise InvalidInputError(
            f"{name} is an iterator, which can be read only once. Pass a list: list(...)."
        )
    # Iterating bytes gives numbers, and iterating a data frame gives the names of its columns.
    no_list = isinstance(value, Mapping | bytes | bytearray | memoryview) or not isinstance(value, Iterable)
    if no_list or hasattr(value, "columns") or type(value).__name__ == "Series":
        raise InvalidInputError(f"{name} must be a list, not {type(value).__name__}.{_hint(value)}")
    return list(value)


def as_bool(name: str, value: Any) -> bool:
    """Return a boolean, which may be text, as a template renders it."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} must be True or False, but is {value!r}.")
    return value


def audience_id_of(name: str, value: Any, id_type: AudienceIdType) -> str | int:
    """Check an audience ID; an internal one may be text, as a template renders it."""
    if id_type == "internal" and isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    return check_audience_id(name, check_rendered(name, value), id_type)


def audience_ids_of(name: str, value: Any, id_type: AudienceIdType) -> list[Any]:
    """Return a list of audience IDs, each checked as ``audience_id_of`` does."""
    return [audience_id_of(name, audience_id, id_type) for audience_id in as_list(name, value)]


def check_rendered(name: str, value: Any) -> Any:
    """Refuse the text ``None``: a template renders None to it, as when an upstream task returned nothing."""
    if value == "None":
        raise InvalidInputError(
            f"{name} is the text 'None'. Did a template render the result of a task that returned nothing?"
        )
    return value


def as_mapping(name: str, value: Any) -> Mapping[str, Any] | None:
    """Return a mapping or None; JSON text of an object from a template becomes a mapping."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            # The text "null" is no mapping: a template renders it of a task that returned nothing.
            value = json.loads(value, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError):
            value = None
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping of names to values, or its JSON text.")
    return value


def as_columns(name: str, value: Any) -> dict[str, str] | None:
    """Return attribute names by column, from a mapping, a list of columns, None, or JSON text of these.

    Raises:
        InvalidInputError: It is something else, it is empty, or two columns have the same attribute.
    """
    if value is None:
        return None
    is_mapping = isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{"))
    pairs = (
        (as_mapping(name, value) or {}).items()
        if is_mapping
        else [(column, column) for column in as_list(name, value)]
    )
    for text in chain.from_iterable(pairs):
        check_text(f"Each column and each attribute in {name}", check_rendered(name, text))
    columns = dict(pairs)
    if not columns:
        raise InvalidInputError(f"{name} is empty. Leave it out, or name a column.")
    twice = [attribute for attribute, count in Counter(columns.values()).items() if count > 1]
    if twice:
        raise InvalidInputError(f"{name} has two columns for the attribute {twice[0]!r}.")
    return columns


def as_types(name: str, value: Any) -> dict[str, AttributeType]:
    """Return types by attribute name, from a mapping, None, or JSON text of an object."""
    types = as_mapping(name, value) or {}
    for attribute, kind in types.items():
        check_choice(f"The type of the attribute {attribute!r}", kind, AttributeType)
    return dict(types)


def check_sql(name: str, value: object) -> None:
    """Refuse a value that is not text or is empty."""
    if not isinstance(value, str) or not value.strip().rstrip(";"):
        raise InvalidInputError(
            f"{name} must be one SELECT statement, but is {type(value).__name__} or empty."
        )


def _number(kind: type[int | float], value: Any) -> Any:
    """Convert text to a number; return it as it is if that fails."""
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _hint(value: Any) -> str:
    """Return a sentence about how to make a list of the value."""
    if value is None:
        return " Did the upstream task return nothing?"
    if hasattr(value, "columns"):
        return " Pass the column of IDs as a list, such as df['customer_id'].tolist()."
    if type(value).__name__ == "Series":
        return " Pass its values as a list, such as series.tolist()."
    if isinstance(value, Mapping):
        return " Pass its keys or its values as a list, such as list(mapping)."
    return ""


def _parse_list(name: str, text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise InvalidInputError(
            f"{name} must be a list, but is one string. For a list from a template, use the task's output, "
            "`| tojson`, or render_template_as_native_obj=True on the DAG."
        )
    return value
