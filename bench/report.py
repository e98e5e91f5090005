"""Tables of results, and the file that keeps them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from harness import Result

RESULTS = Path(__file__).resolve().parent / "results.md"
_HEAD = """# What was measured

Made by `make bench` and `make bench-scale`: each section on the machine and the day that it names. Times are
medians of three, measured in turn within one run, but for the ten million for real, which ran once; only
ratios within a section mean anything on another machine.
"""


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Args:
        work: What was done.
        wanted: The number.
        measured: The one that came out.
        reached: Whether that will do; None when it was not measured.
        why: What profiling found, for when it was not reached.
    """

    work: str
    wanted: str
    measured: str
    reached: bool | None
    why: str = ""


@dataclass(frozen=True)
class Section:
    """The results of one subject.

    Args:
        title: Its heading; a later run's section of this title replaces it.
        text: Tables and remarks, in Markdown.
        targets: What they say about the numbers to reach.
    """

    title: str
    text: str
    targets: Sequence[Target] = ()

    def __str__(self) -> str:
        parts = [f"## {self.title}", machine(), self.text]
        if self.targets:
            answers = {True: "reached", False: "**not reached**", None: "not measured"}
            parts.append(
                table(
                    ["work", "to reach", "measured", ""],
                    [[each.work, each.wanted, each.measured, answers[each.reached]] for each in self.targets],
                )
            )
            missed = dict.fromkeys(
                f"- {each.work}: {each.why}" for each in self.targets if each.reached is False and each.why
            )
            if missed:
                parts.append("Why not, as profiling found:\n\n" + "\n".join(missed))
        return "\n\n".join(parts) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a Markdown table that is readable as it is; all columns but the first are set right."""
    widths = [max(3, *map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join((first, *rest))} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headings), line(rule), *map(line, rows)])


def results_table(results: Mapping[str, Result], *, per: int = 1_000_000) -> str:
    """Draw what was measured of some contenders, with CPU seconds for so many rows."""
    return table(
        ["", "rows", "seconds", "rows/s", f"CPU s per {per:,}", "peak MB", "requests", "429s", "stub busy"],
        [
            [
                label,
                f"{each.size:,}",
                f"{each.seconds:.2f}",
                f"{each.per_second:,.0f}",
                f"{each.cpu / each.size * per:.2f}",
                f"{each.megabytes:.1f}",
                f"{each.requests:,.0f}",
                f"{each.throttled:,.0f}",
                f"{each.stub_busy:.0%}",
            ]
            for label, each in results.items()
        ],
    )


def machine() -> str:
    """Say in one line where and when this was measured."""
    cpu = platform.processor() or platform.machine()
    memory = ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
        kilobytes = re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())
        memory = f", {int(kilobytes[1]) / 2**20:.0f} GiB" if kilobytes else ""
    return (
        f"{len(os.sched_getaffinity(0))} cores of {cpu}{memory}, {platform.system()}; Python "
        f"{platform.python_version()}, Airflow {version('apache-airflow')}; {datetime.now(UTC):%d %B %Y}."
    )


def save(section: Section, path: Path = RESULTS) -> None:
    """Put a section into the file of results, in place of the one with its title."""
    text = path.read_text() if path.exists() else _HEAD
    head, *others = re.split(r"(?m)^(?=## )", text)
    parts = {part.partition("\n")[0]: part.rstrip("\n") + "\n" for part in others}
    parts[f"## {section.title}"] = str(section)
    path.write_text("\n".join([head.rstrip("\n") + "\n", *parts.values()]))
