"""The pages name what there is: operators, arguments, fields, tests; and their code is code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, task

import airflow_provider_talon_cdp
from airflow_provider_talon_cdp.connection_form import FIELDS, RELABELING
from airflow_provider_talon_cdp.decorators import TalonAudienceTask, TalonProfilesTask

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# The heading under which the arguments of a base class are, where it is not that of the operator.
SHARED = {
    "SqlOperator": "Arguments of all that read SQL",
    "MembershipOperator": "Arguments of all that change members",
    "LedgerOperator": "Arguments of all mirrors",
    "SendingOperator": "Arguments of all that send many changes",
}
PUBLIC = {name: getattr(airflow_provider_talon_cdp, name) for name in airflow_provider_talon_cdp.__all__}
DOCUMENTED: dict[str, Any] = {
    name: value
    for name, value in PUBLIC.items()
    if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, BaseOperator))
} | {"@task.talon_audience": TalonAudienceTask, "@task.talon_profiles": TalonProfilesTask}


def sections(page: str) -> dict[str, str]:
    """Text by heading of the second level."""
    text = (ROOT / "docs" / page).read_text()
    return dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))


OPERATORS = sections("operators.md")


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Default by argument, as the page writes it."""
    return {
        each.name: "required" if each.default is each.empty else f"`{each.default!r}`"
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.KEYWORD_ONLY or (each.name != "self" and each.kind is each.POSITIONAL_OR_KEYWORD)
    }


def declared() -> Iterator[tuple[str, str, str, str]]:
    """Yield name, heading, argument and default of every argument of every public operator and group."""
    for name, value in DOCUMENTED.items():
        if not inspect.isclass(value):
            yield from ((name, name, argument, default) for argument, default in arguments(value).items())
            continue
        for base in value.__mro__:
            if "__init__" in vars(base) and base.__module__.startswith("airflow_provider_talon_cdp."):
                heading = SHARED.get(base.__name__, name)
                init = inspect.unwrap(vars(base)["__init__"])
                yield from (
                    (name, heading, argument, default) for argument, default in arguments(init).items()
                )


DECLARED = sorted(set(declared()))


def rows_of(section: str) -> dict[str, str]:
    """Default by argument in a section's table."""
    return dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_operator_has_a_heading(name: str) -> None:
    assert name in OPERATORS


@pytest.mark.parametrize(
    ("name", "heading", "argument", "default"), DECLARED, ids=[f"{row[0]}.{row[2]}" for row in DECLARED]
)
def test_every_argument_is_on_the_page_with_its_default(
    name: str, heading: str, argument: str, default: str
) -> None:
    rows = rows_of(OPERATORS[heading])
    assert rows.get(argument) == default, f"{name}: docs/operators.md, ## {heading}, has {rows}"


@pytest.mark.parametrize("heading", sorted({row[1] for row in DECLARED}))
def test_no_section_has_an_argument_that_is_not_there(heading: str) -> None:
    assert set(rows_of(OPERATORS[heading])) <= {row[2] for row in DECLARED if row[1] == heading}


@pytest.mark.parametrize("name", sorted(name for name, value in DOCUMENTED.items() if inspect.isclass(value)))
def test_an_operator_leads_to_the_arguments_of_its_bases(name: str) -> None:
    for heading in {row[1] for row in DECLARED if row[0] == name} - {name}:
        assert f"(#{heading.lower().replace(' ', '-')})" in OPERATORS[name], heading


@pytest.mark.parametrize(
    ("label", "stored"),
    [(field.label, field.name) for field in FIELDS] + [(RELABELING[name], name) for name in RELABELING],
)
def test_every_field_of_the_connection_is_explained(label: str, stored: str) -> None:
    fields = sections("connection.md")["Fields"]
    assert re.search(rf"^\| {re.escape(label)} \| `?{stored}`? \|", fields, re.MULTILINE)


TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/ARCHITECTURE.md").read_text())


@pytest.mark.parametrize(("file", "name"), TESTS, ids=[name for _, name in TESTS])
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    assert re.search(rf"^\s*(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_each_invariant_names_the_tests_that_hold_it() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", sections("ARCHITECTURE.md")["Invariants"], re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    assert all("::test_" in held for _, held in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_of_the_package_that_are_named_exist(page: Path) -> None:
    folders = "api|changes|hooks|ledger|operators|sync|transfers"
    for name in re.findall(rf"`((?:{folders})/\w+\.py)`", page.read_text()):
        assert (ROOT / "airflow_provider_talon_cdp" / name).is_file(), name


CODE = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    if "--8<--" not in block
]


@pytest.mark.parametrize("block", CODE)
def test_the_code_of_the_pages_runs_where_a_dag_is_parsed(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", "")
    with DAG("page", schedule=None, start_date=datetime(2026, 1, 1)):
        exec(compile(block, "docs", "exec"), {**PUBLIC, "DAG": DAG, "task": task, "datetime": datetime})


# A section of an example DAG, which the site includes.
INCLUDED = re.compile(r'^--8<-- "(example_dags/\w+\.py):(\w+)"$', re.MULTILINE)


def example(file: str, section: str) -> str:
    """The lines of a section, as the site includes them."""
    text = (ROOT / file).read_text()
    (lines,) = re.findall(
        rf"^ *# --8<-- \[start:{section}\]\n(.*?)^ *# --8<-- \[end:{section}\]\n",
        text,
        re.MULTILINE | re.DOTALL,
    )
    return lines


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_operator_shows_its_use_in_an_example_dag(name: str) -> None:
    included = INCLUDED.findall(OPERATORS[name])
    assert included
    for file, section in included:
        assert f"{name}(" in example(file, section)


def test_every_section_of_an_example_dag_is_shown_on_a_page() -> None:
    marked = {
        (f"example_dags/{file.name}", section)
        for file in (ROOT / "example_dags").glob("*.py")
        for section in re.findall(r"--8<-- \[start:(\w+)\]", file.read_text())
    }
    shown = {each for page in PAGES for each in INCLUDED.findall(page.read_text())}
    assert marked == shown


def test_every_example_dag_is_on_the_page_of_examples() -> None:
    page = (ROOT / "docs/examples.md").read_text()
    shown = re.findall(r'^--8<-- "(example_dags/\w+\.py)"$', page, re.MULTILINE)
    assert sorted(shown) == sorted(
        f"example_dags/{file.name}" for file in (ROOT / "example_dags").glob("*.py")
    )


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_dag_to_copy_has_one_run_at_a_time(page: str) -> None:
    """Two runs of one mirror cannot work at once: the second one would wait for the ledger."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    dags = [len(re.findall(r"\bDAG\(|@dag\b", block)) for block in blocks]
    assert any(dags)
    assert [len(re.findall(r"\bmax_active_runs=1\b", block)) for block in blocks] == dags


MEASURED = {
    float(number.replace(",", ""))
    for number in re.findall(r"\d[\d,]*\.?\d*", (ROOT / "bench/results.md").read_text())
}
CLAIMS = (
    sections("scale.md")["What was measured"] + (ROOT / "README.md").read_text().partition("## Install")[0]
)


@pytest.mark.parametrize(
    "claim", sorted(set(re.findall(r"(\d[\d,]*\.?\d*) (?:s|MB|requests|429s|changes)\b", CLAIMS)))
)
def test_every_number_that_is_claimed_was_measured(claim: str) -> None:
    digits = len(claim.partition(".")[2])
    number = float(claim.replace(",", ""))
    assert any(abs(each - number) <= 0.5 / 10**digits + 1e-9 for each in MEASURED)
