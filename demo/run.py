"""``make demo``: segments and attributes of customers, from a warehouse to a local Talon.One.

The example DAG runs in a real Airflow, three times, and both sides are compared.

``make demo-guard`` adds a month in which the warehouse has no customers: the provider must refuse to
mirror it.
"""

# ruff: noqa: INP001 - scripts, not a package

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import shlex
import sqlite3
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from local import (
    AIRFLOW_VERSION,
    ROOT,
    DemoError,
    Talon,
    connections,
    environment,
    local_talon,
    prepare_home,
    run,
    run_main,
    say,
    shown,
    tail,
)

DAG = "talon_warehouse_to_audiences"
# The same month twice: the second time there is nothing to send, and one question for each audience.
MONTHS = ("1998-05", "1998-06", "1998-06")
# The calls of Talon.One's API, as the emulator counts them.
CALLS = {
    "create_audience": "create audience",
    "update_audience": "look whether the audience is the same",
    "update_profile": "update profile",
    "update_profiles_external": "update members",
}
# Before the first purchase, so that the segments are empty, as they would be if a load had failed.
EMPTY_MONTH = "1996-12"
PURCHASES = ROOT / "example_dags" / "data" / "cdnow_purchases.csv"


def main() -> None:
    """Run the demo.

    Raises:
        DemoError: A step failed, or Talon.One does not hold what the warehouse does.
    """
    began = time.monotonic()
    options = _options()
    home = prepare_home(options.home.resolve(), fresh=True)
    say(f"Airflow {AIRFLOW_VERSION}, Python {platform.python_version()}")
    say(f"Databases and logs: {shown(home)}/\n")
    with contextlib.ExitStack() as stack:
        with _step("Start a local Talon.One"):
            talon = stack.enter_context(local_talon(home))
        env = environment(
            home,
            **{
                f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields)
                for name, fields in connections(home, talon).items()
            },
        )
        with _step("airflow db migrate"):
            run(["airflow", "db", "migrate"], env, home / "migrate.log")
        say(f"\nThe DAG is {DAG}.\n")
        for number in range(len(MONTHS)):
            sent = _run_month(number, home, talon, env)
        if sent:
            raise DemoError(f"The month {MONTHS[-1]} had been sent before, and took {sent} requests again.")
        if options.guard:
            _show_guard(home, talon, env)
    _refuse_leaks(talon.api_key, home)
    say("Talon.One holds what the warehouse does, and no file has the API key.")
    say(f"All in {_seconds(began)}\n")
    _next_steps(home)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--home", type=Path, default=ROOT / ".demo" / "run", help="folder to work in; made anew (%(default)s)"
    )
    parser.add_argument("--guard", action="store_true", help="show what happens when the warehouse is empty")
    return parser.parse_args()


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    began = time.monotonic()
    say(f"{name} ...", end="")
    try:
        yield
    except BaseException:
        say(" failed")
        raise
    say(f" {_seconds(began)}")


def _seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _run_month(number: int, home: Path, talon: Talon, env: dict[str, str]) -> int:
    month, log = MONTHS[number], home / f"run-{number + 1}.log"
    again = " again" if month in MONTHS[:number] else ""
    members_before, counted_before = talon.members(), talon.state()["requests"]
    with _step(f"airflow dags test, month {month}{again}"):
        run(_dags_test(month), env, log)
    wanted = _segments(home / "warehouse.db", month)
    members, counted = talon.members(), talon.state()["requests"]
    say(f"\n  {'members':<18}{'warehouse':>10}{'Talon.One':>11}{'added':>9}{'removed':>9}")
    for audience in sorted(wanted | members):
        now, before = members.get(audience, set()), members_before.get(audience, set())
        numbers = len(wanted.get(audience, ())), len(now), len(now - before), len(before - now)
        say("  {:<18}{:>10,}{:>11,}{:>9,}{:>9,}".format(audience, *numbers))
    sent = {
        operation: count - counted_before["by_operation"].get(operation, 0)
        for operation, count in counted["by_operation"].items()
    }
    total: int = counted["total"] - counted_before["total"]
    customers = _customers(home / "warehouse.db", month)
    say(f"\n  {len(customers):,} profiles in the warehouse, {sent.get('update_profile', 0):,} of them sent")
    say(f"  {total:,} requests to Talon.One{':' if total else ', as nothing has changed'}")
    for operation, count in sent.items():
        if count:
            say(f"  {count:>9,} {CALLS.get(operation, operation)}")
    say()
    for audience in sorted(wanted | members):
        missing = wanted.get(audience, set()) - members.get(audience, set())
        extra = members.get(audience, set()) - wanted.get(audience, set())
        if missing or extra:
            raise DemoError(
                f"{audience} differs: {len(missing)} only in the warehouse, {len(extra)} only in Talon.One."
            )
    attributes = talon.attributes()
    differing = sum(_facts(attributes.get(each, {})) != facts for each, facts in customers.items())
    if differing:
        raise DemoError(f"{differing} of {len(customers)} profiles differ from the warehouse.")
    questions: int = sent.get("update_audience", 0)
    return total - questions


def _show_guard(home: Path, talon: Talon, env: dict[str, str]) -> None:
    before, log = talon.members(), home / "guard.log"
    with _step("airflow dags test, and the warehouse has no customers"):
        try:
            run(_dags_test(EMPTY_MONTH), env, log)
        except DemoError:
            # To the next line of the log, or the next part of a traceback.
            refusal = re.search(r"GuardError: (.+?)\n(?=\n|\[|\d{4}-|Traceback)", log.read_text(), re.DOTALL)
        else:
            raise DemoError(f"The empty warehouse was mirrored. The whole log: {shown(log)}")
    if not refusal or "on_empty" not in refusal[1] or talon.members() != before:
        raise DemoError(f"The run failed, but not as it should.\n{tail(log)}")
    say("\n  The task failed, and every audience is as it was:\n")
    for line in refusal[1].splitlines():
        say(textwrap.fill(line, 84, initial_indent="    ", subsequent_indent="    "))
    say()


def _dags_test(month: str) -> list[str]:
    return ["airflow", "dags", "test", DAG, "--conf", json.dumps({"month": month})]


def _segments(warehouse: Path, month: str) -> dict[str, set[str]]:
    segments: dict[str, set[str]] = {}
    with contextlib.closing(sqlite3.connect(warehouse)) as database:
        (loaded,) = database.execute("SELECT COUNT(*) FROM cdnow_purchases").fetchone()
        rows = "SELECT audience_id, customer_id FROM cdnow_segments WHERE month = ?"
        for audience, customer in database.execute(rows, (f"{month}-01",)):
            segments.setdefault(audience, set()).add(customer)
    # Two empty sides would be equal too.
    expected = len(PURCHASES.read_text().splitlines()) - 1
    if loaded != expected or not segments:
        raise DemoError(
            f"The warehouse has {loaded:,} of {expected:,} purchases and {len(segments)} segments."
        )
    return segments


def _customers(warehouse: Path, month: str) -> dict[str, tuple[object, ...]]:
    """By customer: purchases, cents spent and the day of the last purchase when the month ended."""
    sql = (
        "SELECT customer_id, COUNT(*), SUM(cents), MAX(purchased_on) FROM cdnow_purchases "
        "WHERE purchased_on < DATE(?, '+1 month') GROUP BY customer_id"
    )
    with contextlib.closing(sqlite3.connect(warehouse)) as database:
        return {customer: tuple(facts) for customer, *facts in database.execute(sql, (f"{month}-01",))}


def _facts(attributes: Mapping[str, Any]) -> tuple[object, ...]:
    """The same of a profile's attributes in Talon.One."""
    cents = round(attributes.get("total_spent", 0) * 100)
    return (
        attributes.get("purchases"),
        cents,
        str(attributes.get("last_purchase")).removesuffix("T00:00:00Z"),
    )


def _refuse_leaks(api_key: str, home: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    leaks = [shown(path) for path in files if api_key.encode() in path.read_bytes()]
    if leaks:
        raise DemoError(f"The API key of the connection is in {', '.join(leaks)}.")


def _next_steps(home: Path) -> None:
    state = shown(home / "talon.json")
    command = [
        shown(Path(sys.executable)),
        "-m",
        "airflow_provider_talon_cdp.emulator",
        "--state-file",
        state,
    ]
    say("See the audiences and their members on a page, http://127.0.0.1:8765:")
    say(f"  {shlex.join(command[:3])} \\\n    {shlex.join(command[3:])}")
    say("See the DAG and the connections in Airflow, with a Talon.One of its own:")
    say("  make ui")


if __name__ == "__main__":
    sys.exit(run_main(main))
