"""``make bench-scale``: ten million members through a real Airflow, with a task killed on the way.

PostgreSQL is the metadata database and the warehouse, the LocalExecutor runs the tasks, and a keeper on
loopback stands in for Talon.One. First a sync of everything, in which a sending task gets SIGKILL when three
tenths have been sent; then a mirror of 2 % churn. After each, all members that the keeper has are compared
with the warehouse.

Usage: ``python bench/scale.py [--members N] [--rate N] [--group]``; fewer members are to try it, and write no
results.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from harness import CHURN
from keeper import BUCKETS, hashed
from place import DemoError, Place, place, run_main
from report import Section, save, table

MEMBERS = 10_000_000
PATIENCE = 3600.0


@dataclass(frozen=True)
class Seen:
    """What was seen of a DAG run.

    Args:
        seconds: That it took, by Airflow's own account.
        megabytes: Peak memory of its largest task process.
        killed_at: Changes that had been sent when a task was killed, or None.
    """

    seconds: float
    megabytes: float
    killed_at: int | None


def main() -> None:
    """Run both syncs, and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=MEMBERS, help="in the warehouse (%(default)s)")
    parser.add_argument("--rate", type=float, default=60, help="requests a second (%(default)s)")
    parser.add_argument("--group", action="store_true", help="spread over tasks, by the TaskGroup")
    options = parser.parse_args()
    dag = "scale_group" if options.group else "scale_single"
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="talon-cdp-scale-")))
        here = stack.enter_context(place(home, options.rate))
        _fill(here, options.members)
        stack.enter_context(here.airflow(dag))
        rows = [_measure(here, dag, "first sync", options.members, kill_at=options.members * 3 // 10)]
        _churn(here)
        # One change more asks whether the audience is still there.
        needed = 2 * math.ceil(options.members / CHURN) + 1
        rows.append(_measure(here, dag, "mirror, 2 % churn", needed))
    headings = ["", "members", "seconds", "members/s", "requests", "429s", "409s", "changes sent", "twice"]
    headings += ["peak MB of a task", "killed after"]
    text = "\n\n".join([str(__doc__).split("\n\n")[1], table(headings, rows)])
    section = Section(f"Ten million for real: {'the TaskGroup' if options.group else 'one task'}", text)
    print(f"\n{section}")
    if options.members == MEMBERS:
        save(section)


def _fill(here: Place, members: int) -> None:
    here.sql("warehouse", "CREATE TABLE customers (profile_id text PRIMARY KEY)")
    rows = "SELECT 'cust-' || lpad(n::text, 9, '0') FROM generate_series(0, %s) n"
    here.sql("warehouse", f"INSERT INTO customers {rows}", members - 1)


def _churn(here: Place) -> None:
    """Let 2 % leave, and as many join."""
    renamed = "UPDATE customers SET profile_id = profile_id || '-new'"
    here.sql("warehouse", f"{renamed} WHERE substr(profile_id, 6)::int %% %s = 0", CHURN)


def _measure(here: Place, dag: str, what: str, needed: int, *, kill_at: int | None = None) -> list[str]:
    """Run the DAG once, compare, and give a row of the table."""
    before = here.counts()
    run_id = what.partition(",")[0].replace(" ", "-")
    here.trigger(dag, run_id)
    seen = _watch(here, run_id, kill_at)
    members = _compare(here)
    done = {key: count - before[key] for key, count in here.counts().items()}
    return [
        what,
        f"{members:,}",
        f"{seen.seconds:.1f}",
        f"{members / seen.seconds:,.0f}",
        *(f"{done[key]:,}" for key in ("requests", "throttled", "conflicts", "changes")),
        f"{done['changes'] - needed:,}",
        f"{seen.megabytes:.0f}",
        f"{seen.killed_at:,}" if seen.killed_at else "",
    ]


def _watch(here: Place, run_id: str, kill_at: int | None) -> Seen:
    """Wait until a run is over; on the way note the memory of its tasks, and kill one when it is time.

    Raises:
        DemoError: The run fails or does not end, or no task was there to be killed.
    """
    megabytes, killed_at = 0.0, None
    deadline = time.monotonic() + PATIENCE
    while (state := here.state(run_id))[0] not in ("success", "failed"):
        if time.monotonic() > deadline:
            break
        tasks = here.task_processes(run_id)
        megabytes = max(megabytes, *map(_peak, tasks), 0.0)
        if kill_at is not None and killed_at is None and tasks:
            changes = here.counts()["changes"]
            if changes >= kill_at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(tasks[0], signal.SIGKILL)
                    killed_at = changes
        time.sleep(0.2)
    if state[0] != "success":
        raise DemoError(f"The run {run_id} is {state[0]}.\n{here.log()}")
    if kill_at is not None and killed_at is None:
        raise DemoError("The run was over before a task could be killed. Take more members.")
    return Seen(state[1], megabytes, killed_at)


def _peak(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def _compare(here: Place) -> int:
    """Return the number of members, which are exactly the warehouse's.

    Raises:
        DemoError: They are not.
    """
    wanted = [bytearray() for _ in range(BUCKETS)]
    with psycopg.connect(here.postgres, dbname="warehouse") as connection, connection.cursor("ids") as cursor:
        cursor.itersize = 10_000
        for (profile_id,) in cursor.execute("SELECT profile_id FROM customers"):
            key = hashed(profile_id)
            wanted[key[0]] += key
    members = missing = extra = 0
    for number, keys in enumerate(wanted):
        bucket = {bytes(keys[at : at + 8]) for at in range(0, len(keys), 8)}
        changes, known = here.read(f"/{number}"), set[bytes]()
        for at in range(0, len(changes), 9):
            (known.add if changes[at + 8] else known.discard)(changes[at : at + 8])
        members += len(bucket)
        missing += len(bucket - known)
        extra += len(known - bucket)
    if missing or extra:
        raise DemoError(f"Not exact: {missing:,} members are missing, and {extra:,} are too many.")
    return members


if __name__ == "__main__":
    sys.exit(run_main(main))
