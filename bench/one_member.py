"""Follow one member through a mirror, from its row to the request and into the ledger.

Prints the functions and modules of the package that the interpreter enters, and how often it goes from one
module to another.
"""

from __future__ import annotations

import _thread
import json
import os
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = "airflow_provider_talon_cdp"


class Trace:
    """The functions that are entered, in order."""

    def __init__(self) -> None:
        self.functions: Counter[tuple[str, str]] = Counter()
        self.crossings = 0
        self._last: dict[int, str] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call; see ``sys.setprofile``."""
        module = frame.f_globals.get("__name__", "")
        name = frame.f_code.co_qualname
        if (
            event != "call"
            or not module.startswith(f"{PACKAGE}.")
            or module.startswith(f"{PACKAGE}.emulator")
        ):
            return
        # Parts of a function, and the code that Python writes for dataclasses.
        if name.rpartition(".")[2].startswith("<") or (
            name.endswith("__init__") and "<string>" in str(frame.f_code)
        ):
            return
        self.functions[module, name] += 1
        thread = threading.get_ident()
        self.crossings += self._last.get(thread, module) != module
        self._last[thread] = module

    def begin(self) -> None:
        """Trace this thread and those that start from now on.

        A sync starts the thread of its event loop without ``threading``, which would set the profiler in it.
        """
        start = _thread.start_new_thread

        def traced(function: Callable[..., object], *arguments: Any) -> int:
            def run(*given: Any) -> None:
                sys.setprofile(self)
                function(*given)

            return start(run, *arguments)

        _thread.start_new_thread = traced
        threading.setprofile(self)
        sys.setprofile(self)


def main() -> None:
    """Run a mirror of one member, once to import everything and once under the trace."""
    folder = Path(tempfile.mkdtemp(prefix="talon-cdp-trace-"))
    os.environ |= {"AIRFLOW_HOME": str(folder), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    from airflow_provider_talon_cdp.emulator import Emulator
    from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator

    with sqlite3.connect(folder / "warehouse.db") as database:
        database.execute("CREATE TABLE customers (profile_id text)")
        database.execute("INSERT INTO customers VALUES ('anna')")
    os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps(
        {"conn_type": "sqlite", "host": str(folder / "warehouse.db")}
    )
    trace = Trace()
    for state in ("first", "traced"):
        with Emulator() as talon:
            os.environ["AIRFLOW_CONN_TALON_CDP_DEFAULT"] = json.dumps(talon.connection())
            operator = SqlToTalonAudienceOperator(
                task_id="sync",
                sql="SELECT profile_id FROM customers",
                sql_conn_id="warehouse",
                mode="mirror",
                audience_id="vip",
                audience_name="VIP",
                state_uri=str(folder / state),
            )
            if state == "traced":
                trace.begin()
            operator.execute({})
            sys.setprofile(None)
            threading.setprofile(None)
            assert talon.members("vip") == {"anna"}
    modules = Counter(module for module, _ in trace.functions)
    if "--list" in sys.argv:
        for module, name in sorted(trace.functions):
            print(f"{module.removeprefix(f'{PACKAGE}.')}: {name}")
    print(
        f"{len(trace.functions)} functions in {len(modules)} modules, {trace.crossings} times from "
        "one module to another"
    )


if __name__ == "__main__":
    main()
