"""Which part of the package imports what, read from the source and seen in a new interpreter."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import airflow_provider_talon_cdp

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "airflow_provider_talon_cdp"

# What each part may import of the others, beside itself. A new part needs a line here, and a thought.
ALLOWED = {
    "__init__": {"hooks", "operators", "transfers"},
    "exceptions": set(),
    "contract": {"exceptions"},
    "connection_form": set(),
    "provider_info": {"__init__", "connection_form"},
    "changes": {"contract", "exceptions"},
    "ledger": {"changes", "contract", "exceptions"},
    "sync": {"changes", "contract", "exceptions", "ledger"},
    "api": {"contract", "exceptions"},
    "hooks": {"api", "connection_form", "contract", "exceptions"},
    "assets": {"exceptions"},
    "operators": {
        "assets",
        "connection_form",
        "hooks",
        "ledger",
        "sync",
        "changes",
        "contract",
        "exceptions",
    },
    "transfers": {"operators", "assets", "connection_form", "hooks", "ledger", "sync", "changes"}
    | {"contract", "exceptions"},
    "decorators": {"transfers", "operators", "hooks", "ledger", "sync", "changes"}
    | {"contract", "exceptions"},
    # Airflow's API server asks for it; nothing else of the package does.
    "ui": {"exceptions", "ledger", "operators"},
    "__main__": {"api", "contract", "exceptions", "ledger", "operators"},
    # A second reading of the API contract: what it shared with the client it could not prove wrong.
    "emulator": set(),
}
WITH_AIRFLOW = {"__main__", "assets", "decorators", "hooks", "operators", "transfers", "ui"}


class Imports(ast.NodeVisitor):
    """Collects the absolute names that a module imports at run time, also inside functions."""

    def __init__(self, source):
        self.names = set()
        self.visit(ast.parse(source))

    def visit_If(self, node):
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        self.names |= {f"{node.module}.{alias.name}" for alias in node.names}


def part_of(path):
    """The part of the package that a source file belongs to: its folder, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def part_named(name):
    """The part that an import of the package reaches; its root's own names count as ``__init__``."""
    first = name.split(".")[1] if "." in name else "__init__"
    return first if first in ALLOWED else "__init__"


def imports_by_part():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(part_of(path), set()).update(Imports(path.read_text()).names)
    return found


FOUND = imports_by_part()


def loaded_by(statement):
    """Names of the modules that a statement brings into a new interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def modules_of(part):
    """An import statement for every module of a part."""
    folder = PACKAGE / part
    paths = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return "import " + ", ".join(name.removesuffix(".__init__") for name in names)


def test_every_part_is_known_here():
    assert set(FOUND) == set(ALLOWED)


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_one_way(part):
    ours = {part_named(name) for name in FOUND[part] if name.split(".")[0] == PACKAGE.name}
    assert ours - {part} <= ALLOWED[part]


@pytest.mark.parametrize("part", sorted(set(ALLOWED) - WITH_AIRFLOW))
def test_the_source_outside_hooks_and_operators_names_no_airflow(part):
    assert "airflow" not in {name.split(".")[0] for name in FOUND[part]}


def test_the_package_root_imports_nothing_but_itself():
    assert loaded_by("import airflow_provider_talon_cdp") - {"__future__"} == {"airflow_provider_talon_cdp"}


def test_the_package_root_imports_in_no_time():
    code = (
        "import time; start = time.perf_counter(); import airflow_provider_talon_cdp; "
        "print(time.perf_counter() - start)"
    )
    # The best of five: a busy machine is no fault of ours.
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(5))
    assert seconds < 0.05


@pytest.mark.parametrize("part", sorted(set(ALLOWED) - WITH_AIRFLOW))
def test_it_imports_without_airflow(part):
    """DAG authors' unit tests, and any other Python program, can use these parts in a fraction of a
    second."""
    assert "airflow" not in {name.split(".")[0] for name in loaded_by(modules_of(part))}


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, UserWarning])
def test_a_warning_from_our_code_fails_a_test(category):
    """The filters in pyproject.toml let Airflow's own warnings pass and must not let ours."""
    with pytest.raises(category):
        warnings.warn_explicit("ours", category, "hook.py", 1, module="airflow_provider_talon_cdp.hooks.hook")


PUBLIC = {
    "CreateAudienceOperator": "operators.audience",
    "DeleteAudienceOperator": "operators.audience",
    "SqlToTalonAudienceOperator": "transfers.sql_to_audience",
    "SqlToTalonProfilesOperator": "transfers.sql_to_profiles",
    "SyncAudienceMembersOperator": "operators.members",
    "TalonCdpHook": "hooks.talon_cdp",
    "UpdateAudienceOperator": "operators.audience",
    "UpdateProfileAudiencesOperator": "operators.profile",
    "UpdateProfileOperator": "operators.profile",
    "talon_audience_sync": "transfers.across_workers",
    "talon_profiles_sync": "transfers.across_workers",
}
# Of CPU, for an operator on top of Airflow's names.
_SECONDS = 0.04
OF_A_DAG = sorted({*PUBLIC.values(), "assets", "decorators"} - {"hooks.talon_cdp"})


def test_the_package_root_has_all_public_names():
    assert set(airflow_provider_talon_cdp.__all__) == {*PUBLIC, "__version__"}
    for name, module in PUBLIC.items():
        found = getattr(airflow_provider_talon_cdp, name)
        assert found is getattr(importlib.import_module(f"{PACKAGE.name}.{module}"), name)
        assert name in dir(airflow_provider_talon_cdp)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = airflow_provider_talon_cdp.Nothing


# Each module is imported by a copy of one process that has Airflow's names, as those take seconds.
COPIES = """
import importlib, json, os, sys, time
from airflow.providers.common.compat.sdk import (
    DAG, Asset, AssetAlias, BaseOperator, BaseOperatorLink, Param, TaskGroup, XCom, XComArg, task
)
for module in sys.argv[1:]:
    if copy := os.fork():
        assert os.waitpid(copy, 0)[1] == 0, module
        continue
    before, start = set(sys.modules), time.process_time()
    importlib.import_module(module)
    seconds = time.process_time() - start
    print("paid", json.dumps([module, seconds, sorted(set(sys.modules) - before)]), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def paid():
    """Seconds of CPU, and the modules that came with it, for each module that a DAG file imports."""
    # The best of three: a busy machine is no fault of ours.
    names = [f"{PACKAGE.name}.{module}" for module in OF_A_DAG] * 3
    command = [sys.executable, "-W", "ignore", "-c", COPIES, *names]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    lines = [line.removeprefix("paid ") for line in run.stdout.splitlines() if line.startswith("paid ")]
    assert len(lines) == len(names)
    slowest_first = sorted((json.loads(line) for line in lines), reverse=True)
    return {name: (seconds, loaded) for name, seconds, loaded in slowest_first}


@pytest.mark.parametrize("module", OF_A_DAG)
def test_a_dag_file_pays_for_the_operator_alone(paid, module):
    """Neither HTTP clients nor the engine nor SQL hooks come with it, and it is there in a moment."""
    seconds, loaded = paid[f"{PACKAGE.name}.{module}"]
    assert seconds < _SECONDS
    assert f"{PACKAGE.name}.{module}" in loaded
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"requests", "aiohttp", "sqlparse", "orjson"}
    assert not [name for name in loaded if ".hooks" in name or ".api" in name]
    ours = {name.split(".")[1] for name in loaded if name.startswith(f"{PACKAGE.name}.")}
    assert not ours & {"api", "changes", "hooks", "ledger", "ledgers", "sync"}
