"""The reference has every public name, every method of the hook and every option of the configuration."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_talon_cdp.api.calls import ProfileOptions
from airflow_provider_talon_cdp.hooks import talon_cdp
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.provider_info import get_provider_info
from airflow_provider_talon_cdp.transfers.sql_to_audience import READ_AHEAD
from tests.docs.raised import ROOT
from tests.docs.test_pages import PUBLIC, sections

REFERENCE = (ROOT / "docs/reference.md").read_text()
# What stands on the page, with the options of each.
SHOWN = dict(re.findall(r"^::: (\S+)\n((?:    .*\n)*)", REFERENCE, re.MULTILINE))
OPTIONS = {
    (section, option): facts
    for section, content in get_provider_info()["config"].items()
    for option, facts in content["options"].items()
}
CONFIGURATION = dict(
    re.findall(
        r"^\| `(\w+)` \| (.+?) \| .+ \|$", sections("reference.md").get("Configuration", ""), re.MULTILINE
    )
)


def path_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    value = PUBLIC[name]
    if isinstance(value, str):
        assert f"`{name}`" in REFERENCE
    else:
        # A page of a module shows all that is public there.
        assert {path_of(value), value.__module__} & set(SHOWN)


@pytest.mark.parametrize(("section", "option"), sorted(OPTIONS))
def test_every_option_of_the_configuration_is_in_the_reference(section: str, option: str) -> None:
    assert f"`[{section}]`" in REFERENCE
    assert option in CONFIGURATION


def test_the_reference_has_no_option_that_is_not_there() -> None:
    assert set(CONFIGURATION) == {option for _, option in OPTIONS}
    assert CONFIGURATION["read_ahead"] == str(READ_AHEAD)
    assert f"Default: {READ_AHEAD}." in OPTIONS["talon_cdp", "read_ahead"]["description"]


METHODS: dict[str, Callable[..., Any]] = {
    name: value.__func__ if isinstance(value, staticmethod) else value
    for name, value in vars(TalonCdpHook).items()
    if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, staticmethod))
}
PROPERTIES = {
    name: value
    for name, value in vars(TalonCdpHook).items()
    if not name.startswith("_") and hasattr(value, "__get__") and name not in METHODS
}
ARGUMENTS = [
    (name, each.name)
    for name, method in {"": TalonCdpHook.__init__, **METHODS}.items()
    for each in inspect.signature(method).parameters.values()
    if each.name != "self"
]


def explained(docstring: str) -> dict[str, str]:
    """Text by argument in a docstring's section ``Args``."""
    (block,) = re.findall(r"^Args:\n((?:    .*\n|\n)+)", docstring + "\n", re.MULTILINE) or [""]
    return {
        name: " ".join(text.split())
        for name, text in re.findall(r"^    (\w+): (.+(?:\n     +.+)*)", block, re.MULTILINE)
    }


def doc_of(method: str) -> str:
    return inspect.getdoc(METHODS[method] if method else TalonCdpHook) or ""


def test_the_reference_shows_the_whole_hook() -> None:
    assert "members" not in SHOWN[path_of(TalonCdpHook)]
    assert len(METHODS) > 10
    assert set(PROPERTIES) == {"settings", "client"}


@pytest.mark.parametrize("name", sorted(METHODS | PROPERTIES))
def test_every_method_and_property_of_the_hook_is_explained(name: str) -> None:
    assert inspect.getdoc(vars(TalonCdpHook)[name])


@pytest.mark.parametrize(("method", "argument"), ARGUMENTS, ids=[".".join(each) for each in ARGUMENTS])
def test_every_argument_of_the_hook_is_explained(method: str, argument: str) -> None:
    text = explained(doc_of(method))[argument]
    if argument == "options":
        assert all(f"``{each}``" in text for each in ProfileOptions.__annotations__)


@pytest.mark.parametrize("method", ["", *sorted(METHODS)])
def test_the_hook_explains_no_argument_that_is_not_there(method: str) -> None:
    assert set(explained(doc_of(method))) <= {argument for name, argument in ARGUMENTS if name == method}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_a_method_of_the_hook_gives_is_in_the_reference(method: str) -> None:
    given = str(inspect.signature(METHODS[method]).return_annotation)
    for name in re.findall(r"\w+", given):
        value = getattr(talon_cdp, name, None)
        if inspect.isclass(value) and value.__module__.startswith("airflow_provider_talon_cdp."):
            assert path_of(value) in SHOWN
