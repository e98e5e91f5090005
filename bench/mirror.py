"""Measures a mirror: against sending everything again, against coreutils ``comm``, and its memory as it grows.

Usage: ``make bench``, or ``.venv/bin/python bench/mirror.py [--quick]``. Each measurement runs in a process of its own; Talon.One
is the emulator, in another. Times are wall-clock medians of three, compared within this one run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

CHURN = 50  # one member in so many leaves, and as many join: 2 %
RUNS = 3
QUERY = "SELECT id FROM members"


def main() -> None:
    """Run all measurements and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the members, to try the script")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, *arguments = options.child
        print(json.dumps(CHILDREN[task](*arguments)))
        return
    scale = 100 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="talon-cdp-bench-") as name:
        folder = Path(name)
        against_resend(folder, [100_000 // scale, 1_000_000 // scale])
        against_comm(folder, 10_000_000 // scale)
        memory(folder, [100_000 // scale, 1_000_000 // scale, 10_000_000 // scale])


def against_resend(folder: Path, sizes: list[int]) -> None:
    """A mirror with 2 % churn beside sending every member again, at the default 60 requests a second."""
    print(f"{'members':>12} {'what':<16} {'requests':>9} {'seconds':>9}")
    for size in sizes:
        warehouses = [make_warehouse(folder, size, turn) for turn in (0, 1)]
        times: dict[str, list[float]] = {"full resend": [], "mirror, 2 %": []}
        requests: dict[str, int] = {}
        for _ in range(RUNS):
            with emulator() as url:
                state = folder / "state"
                child("mirror", url, str(warehouses[0]), str(state), "1000000")
                for what, task in (("full resend", "resend"), ("mirror, 2 %", "mirror")):
                    result = child(task, url, str(warehouses[1]), str(state), "60")
                    times[what].append(result["seconds"])
                    requests[what] = result["requests"]
                shutil.rmtree(state)
        for what, seconds in times.items():
            print(f"{size:>12,} {what:<16} {requests[what]:>9,} {statistics.median(seconds):>9.2f}")


def against_comm(folder: Path, size: int) -> None:
    """The plan from the SQL cursor, guard included, beside comm on the two sorted lists of IDs."""
    warehouses = [make_warehouse(folder, size, turn) for turn in (0, 1)]
    lists = []
    for warehouse in warehouses:
        path = warehouse.with_suffix(".txt")
        with path.open("w") as file:
            file.writelines(f"{each}\n" for each in ids(warehouse))
        lists.append(str(path))
    state = folder / "state"
    child("adopt", str(warehouses[0]), str(state))
    ours, theirs = [], []
    for _ in range(RUNS):
        began = time.monotonic()
        with (folder / "comm.out").open("w") as out:
            subprocess.run(
                ["comm", "-3", *lists],
                env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
                stdout=out,
                check=True,
            )
        theirs.append(time.monotonic() - began)
        ours.append(child("plan", str(warehouses[1]), str(state))["seconds"])
    shutil.rmtree(state)
    plan, comm = statistics.median(ours), statistics.median(theirs)
    print(f"\nplan of {size:,} members, 2 % churn: {plan:.1f} s; comm: {comm:.2f} s; ratio {plan / comm:.1f}")


def memory(folder: Path, sizes: list[int]) -> None:
    """Peak memory of planning and writing a mirror, over what the imports take."""
    print(f"\n{'members':>12} {'peak MB over the imports':>26}")
    for size in sizes:
        old, new = (make_warehouse(folder, size, turn) for turn in (0, 1))
        state = folder / "state"
        child("adopt", str(old), str(state))
        peaks = [child("plan", str(new), str(state))["megabytes"] for _ in range(RUNS)]
        shutil.rmtree(state)
        print(f"{size:>12,} {statistics.median(peaks):>26.1f}")


def make_warehouse(folder: Path, size: int, turn: int) -> Path:
    """Make a SQLite file with as many members, of which 2 % differ from turn to turn."""
    path = folder / f"{size}-{turn}.db"
    if not path.exists():
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE members (id TEXT PRIMARY KEY) WITHOUT ROWID")
            rows = ((f"cust-{n:08}{'x' * (turn == 1 and n % CHURN == 0)}",) for n in range(size))
            database.executemany("INSERT INTO members VALUES (?)", rows)
        database.close()
    return path


def ids(warehouse: Path) -> Iterator[str]:
    """Read the IDs in order."""
    database = sqlite3.connect(warehouse)
    yield from (row[0] for row in database.execute(f"{QUERY} ORDER BY id"))
    database.close()


class emulator:  # noqa: N801
    """A local Talon.One in a process of its own."""

    def __enter__(self) -> str:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_talon_cdp.emulator", "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        for line in self.process.stdout:
            if "http://" in line:
                return "http://" + line.split("http://")[1].split("/")[0].split()[0]
        raise SystemExit("the emulator did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


def child(task: str, *arguments: str) -> dict[str, Any]:
    """Run one measurement in a new process."""
    command = [sys.executable, __file__, "--child", task, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def _sync(mode: str, url: str, warehouse: str, state: str, rate: str) -> dict[str, Any]:
    connection = {
        "conn_type": "talon_cdp",
        "host": url,
        "password": "local-key-1234567890",
        "extra": {"deployment_host": "demo.europe-west1.talon.one", "requests_per_second": rate},
    }
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW_CONN_TALON_CDP_DEFAULT": json.dumps(connection),
            "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "sqlite", "host": warehouse}),
        }
        from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator  # noqa: PLC0415

        mirror = {"audience_name": "VIP", "state_uri": state} if mode == "mirror" else {}
        operator = SqlToTalonAudienceOperator(
            task_id="bench",
            sql=QUERY,
            sql_conn_id="warehouse",
            profile_id_column="id",
            audience_id="vip",
            mode=mode,
            **mirror,
        )
        began = time.monotonic()
        report = operator.execute({})
        return {"seconds": time.monotonic() - began, "requests": report["requests"]}


def resend(url: str, warehouse: str, _state: str, rate: str) -> dict[str, Any]:
    """Send every member."""
    return _sync("add", url, warehouse, _state, rate)


def mirror(url: str, warehouse: str, state: str, rate: str) -> dict[str, Any]:
    """Send what changed."""
    return _sync("mirror", url, warehouse, state, rate)


def adopt(warehouse: str, state: str) -> dict[str, Any]:
    """Make a ledger that holds every member."""
    from airflow_provider_talon_cdp.sync.changes import Change  # noqa: PLC0415

    return {
        "members": _ledger(state).adopt(
            "bench", (Change(each, "vip", "add") for each in ids(Path(warehouse)))
        )
    }


def plan(warehouse: str, state: str) -> dict[str, Any]:
    """Plan from the SQL cursor, with the guard, and leave the ledger as it was."""
    from airflow.providers.sqlite.hooks.sqlite import SqliteHook  # noqa: PLC0415

    from airflow_provider_talon_cdp.sync.changes import read_changes  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.diff import PlanCounts, diff, members  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.guard import Guard  # noqa: PLC0415
    from airflow_provider_talon_cdp.transfers.rows import stream_rows  # noqa: PLC0415

    os.environ["AIRFLOW_CONN_WAREHOUSE"] = json.dumps({"conn_type": "sqlite", "host": warehouse})
    hook = SqliteHook("warehouse")
    hook.get_conn().close()
    before = _peak()
    counts = PlanCounts()
    ledger = _ledger(state)
    began = time.monotonic()
    with ledger.locked("bench"):
        rows = stream_rows(hook, f"{QUERY} ORDER BY id", ["id"])
        blocks = iter(lambda: list(islice(rows, 4096)), [])
        records = chain.from_iterable(read_changes(block, "vip", "add", "external") for block in blocks)
        staged = ledger.stage(
            lambda known, doubts: diff(known, members(records, counts), counts, uncertain=doubts)
        )
        Guard().check(counts)
        ledger.discard(staged)
    seconds = time.monotonic() - began
    assert counts.unchanged
    return {"seconds": seconds, "megabytes": _peak() - before, "changes": counts.changes}


def _ledger(state: str) -> Any:
    from airflow_provider_talon_cdp.ledgers.files import FilesLedger, ledger_name  # noqa: PLC0415

    return FilesLedger(
        Path(state),
        deployment_host="demo.europe-west1.talon.one",
        base_url="http://local",
        name=ledger_name("vip"),
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "resend": resend,
    "mirror": mirror,
    "adopt": adopt,
    "plan": plan,
}

if __name__ == "__main__":
    main()
