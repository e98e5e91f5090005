"""The rules of the house: one noun, one file. Read from the source, so that a new file falls under them too.

They are explained in CONTRIBUTING.md. The emulator is a program of its own beside the package, and has its
own house.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "airflow_provider_talon_cdp"
OPERATORS = {"operators", "transfers"}
MAX_ARGUMENTS = 6
SMALL_FILE = 60
IMPORTERS_OF_A_SMALL_FILE = 3


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}
OURS = {path: tree for path, tree in TREES.items() if "emulator" not in path.relative_to(PACKAGE).parts}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


def place(path, node):
    return f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"


def assert_none(offenders):
    """Show them all, one a line."""
    lines = [str(each) for each in offenders]
    assert not lines, "\n".join(["", *lines])


def classes(trees):
    return [
        (path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


def test_no_two_classes_share_a_name():
    found = defaultdict(list)
    for path, node in classes(OURS):
        found[node.name].append(place(path, node))
    assert_none(places for places in found.values() if len(places) > 1)


def is_protocol(node):
    return any(
        (base.id if isinstance(base, ast.Name) else getattr(base, "attr", None)) == "Protocol"
        for base in (each.value if isinstance(each, ast.Subscript) else each for each in node.bases)
    )


def members(node):
    """The names that a class's body gives to its instances: methods, annotated fields, assigned names."""
    for each in node.body:
        if isinstance(each, FUNCTIONS):
            yield each.name
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id
        elif isinstance(each, ast.Assign):
            yield from (target.id for target in each.targets if isinstance(target, ast.Name))
    for each in ast.walk(node):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and ast.unparse(each.value) == "self"
        ):
            yield each.attr


def all_members(node, by_name):
    """Also what it inherits from classes of the package."""
    bases = [by_name[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in by_name]
    return set(members(node)).union(*(all_members(base, by_name) for base in bases))


def test_a_protocol_has_two_implementations():
    """A class implements what it has all the names of; functions may implement a protocol that is only
    called."""
    every = classes(OURS)
    by_name = {node.name: node for _, node in every}
    lonely = []
    for path, node in every:
        if not is_protocol(node):
            continue
        wanted = set(members(node))
        providers = [
            other.name
            for _, other in every
            if not is_protocol(other) and wanted <= all_members(other, by_name)
        ]
        if len(providers) < 2 and wanted != {"__call__"}:
            lonely.append((place(path, node), providers))
    assert_none(lonely)


def test_a_function_takes_at_most_six_arguments():
    """Without self and cls. Operators have as many as they have options."""
    too_many = []
    for path, tree in OURS.items():
        if path.relative_to(PACKAGE).parts[0] in OPERATORS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                arguments = node.args
                named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                number = len([each for each in named if each.arg not in {"self", "cls"}])
                number += (arguments.vararg is not None) + (arguments.kwarg is not None)
                if number > MAX_ARGUMENTS:
                    too_many.append(f"{place(path, node)}: {number}")
    assert_none(too_many)


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_small_file_has_three_importers():
    """What few need stands with those who need it. A start file has no importer by nature, nor has an empty
    one."""
    importers = Counter()
    for path, tree in TREES.items():
        importers.update({each for each in imported_modules(tree) if each != name_of(path)})
    lonely = {
        str(path.relative_to(PACKAGE)): importers[name_of(path)]
        for path in OURS
        if path.name not in {"__init__.py", "__main__.py"}
        and SOURCES[path].count("\n") < SMALL_FILE
        and importers[name_of(path)] < IMPORTERS_OF_A_SMALL_FILE
    }
    assert_none(lonely.items())


def defaults(node):
    """The arguments of a function that have a number or a text as default; a name refers to the place of the
    value."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)
    for argument, value in chain(pairs, zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)):
        if isinstance(value, ast.Constant) and isinstance(value.value, int | float | str):
            # True, False, 0, 1 and empty texts mean "not asked for" rather than a choice of ours.
            if isinstance(value.value, bool) or value.value in {0, 1, ""}:
                continue
            yield argument.arg, value.value


def test_a_default_stands_once():
    """The same argument with the same literal default in two places: a constant, or an argument without
    default."""
    found = defaultdict(list)
    for path, tree in OURS.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                for default in defaults(node):
                    found[default].append(place(path, node))
    assert_none(item for item in found.items() if len(item[1]) > 1)


def test_an_operators_execute_is_short():
    """It decides nothing: the sync does, or the hook."""
    long = [
        place(path, node)
        for path, node in classes(OURS)
        for each in node.body
        if isinstance(each, FUNCTIONS) and each.name == "execute" and each.end_lineno - each.lineno >= 15
    ]
    assert_none(long)


def test_the_architecture_explains_every_public_class_of_the_engine():
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    public = {
        node.name
        for path, node in classes(OURS)
        if path.relative_to(PACKAGE).parts[0] in {"changes", "ledger", "sync"}
        and not node.name.startswith("_")
    }
    assert_none(sorted(name for name in public if f"`{name}`" not in text))
