"""The texts of the package's errors, as its source has them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from airflow_provider_talon_cdp import exceptions

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "airflow_provider_talon_cdp"
CLASSES = sorted(
    name
    for name, value in vars(exceptions).items()
    if inspect.isclass(value) and issubclass(value, exceptions.TalonCdpError)
)
ANY = "…"


def pattern_of(node: ast.expr) -> str:
    """The first line of a text, with an ellipsis for each part that is only known at run time."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        text = "".join(
            each.value if isinstance(each, ast.Constant) and isinstance(each.value, str) else ANY
            for each in node.values
        )
    else:
        return ANY
    return text.partition("\n")[0].strip()


def says_something(pattern: str) -> bool:
    """Whether there are words by which a person finds it."""
    return len(re.findall(r"[A-Za-z]{2,}", pattern)) > 1


def raised() -> Iterator[tuple[str, str, str]]:
    """Yield class, pattern and place of every error that the package makes with a text of its own."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "emulator" in path.parts:
            continue
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                name = "LedgerError" if node.func.id == "DamagedError" else node.func.id
                pattern = pattern_of(node.args[0])
                if name in CLASSES and says_something(pattern):
                    yield name, pattern, f"{path.relative_to(ROOT)}:{node.lineno}"


@cache
def texts_of_the_package() -> str:
    """All texts in the package's source, one a line."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (each.value if isinstance(each, ast.Constant) else ANY for each in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)
