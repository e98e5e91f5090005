"""What the bench scripts share: warehouses, the stub, and measurements, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from job import BATCH, NO_LIMIT, Job, measured

HERE = Path(__file__).resolve().parent
CHURN = 50
"""One customer in so many leaves from turn to turn, and as many join: 2 %."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One line of a table.

    Args:
        label: As the table names it.
        function: What is measured: a function of a module beside this one.
        size: Rows to read.
        requests: That it takes to send them; one that sends fewer has not done the work.
        stub: Arguments of the stub's command line.
        rate: As in ``Job``.
        turn: Of the warehouse.
        attributes: Whether customers have attributes.
        uuids: Whether their IDs are UUIDs, in a table in no order with three more columns.
        start_from: A folder of an earlier job, of which each measurement gets a copy.
        needs: A module without which it cannot run.
    """

    label: str
    function: Callable[[Job], None]
    size: int
    requests: int
    stub: Sequence[str] = ()
    rate: float = NO_LIMIT
    turn: int = 0
    attributes: bool = False
    uuids: bool = False
    start_from: Path | None = None
    needs: str | None = None

    @property
    def warm_up(self) -> int:
        """Rows of the first small run: a few requests."""
        return 20 if self.attributes else 2 * BATCH

    @property
    def is_installed(self) -> bool:
        """Whether it can run here."""
        if self.needs is None:
            return True
        try:
            return importlib.util.find_spec(self.needs) is not None
        except ModuleNotFoundError:
            return False


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement, or the medians of several.

    Args:
        size: Rows sent.
        seconds: Wall-clock time.
        cpu: CPU seconds of the contender's process.
        megabytes: Peak memory over what it took when all was imported and nothing had run.
        requests: That the stub got.
        throttled: Of them answered 429.
        first_after: Seconds from the start to the first request.
        stub_busy: Share of the time in which the stub computed.
    """

    size: int
    seconds: float
    cpu: float
    megabytes: float
    requests: float
    throttled: float
    first_after: float
    stub_busy: float

    @property
    def per_second(self) -> float:
        """Rows a second."""
        return self.size / self.seconds


class Bench:
    """One run of the scripts.

    Args:
        folder: For warehouses and all else that is made.
        quick: A hundredth of the rows, measured once and all in this process: to try the scripts.
    """

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        self.folder = folder
        self.quick = quick
        self.rounds = 1 if quick else 3
        self._numbers = count()
        # Of all stubs, as a ledger belongs to one host and port. Nobody can take it between two of them.
        self._listener = socket.create_server(("127.0.0.1", 0))

    def rows(self, number: int) -> int:
        """So many rows, or a hundredth of them in a quick run."""
        return number // 100 if self.quick else number

    def warehouse(self, size: int, turn: int = 0, *, attributes: bool = False, uuids: bool = False) -> Path:
        """Return a SQLite file of so many customers; 2 % differ each time.

        They are in the order of their IDs, but for UUIDs.
        """
        path = self.folder / f"customers-{size}-{turn}{'-attributes' * attributes}{'-uuids' * uuids}.db"
        if not path.exists() and uuids:
            with closing(sqlite3.connect(path)) as database, database:
                database.execute(
                    "CREATE TABLE customers (profile_id TEXT, country TEXT, tier TEXT, spend REAL)"
                )
                database.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", _strangers(size, turn))
        elif not path.exists():
            columns = ", tier TEXT, points INTEGER, spend REAL, city TEXT" if attributes else ""
            with closing(sqlite3.connect(path)) as database, database:
                database.execute(
                    f"CREATE TABLE customers (profile_id TEXT PRIMARY KEY{columns}) WITHOUT ROWID"
                )
                places = "?, ?, ?, ?, ?" if attributes else "?"
                database.executemany(
                    f"INSERT INTO customers VALUES ({places})", _customers(size, turn, attributes=attributes)
                )
        return path

    def measure(self, contender: Contender, *, keep: Path | None = None) -> Result:
        """Measure once, in a new process, against a stub of its own, after a first small run.

        Args:
            contender: Who is measured.
            keep: Where to put the job's folder afterwards.
        """
        folder = self.folder / f"job-{next(self._numbers)}"
        if contender.start_from:
            shutil.copytree(contender.start_from, folder / "job")
        with stub(*contender.stub, listener=self._listener) as url:
            job, warm_up = (
                Job(
                    url,
                    str(
                        self.warehouse(
                            size, contender.turn, attributes=contender.attributes, uuids=contender.uuids
                        )
                    ),
                    str(folder / name),
                    contender.rate,
                )
                for name, size in (("job", contender.size), ("warm-up", contender.warm_up))
            )
            numbers = self._run(contender, job, warm_up)
        if keep:
            (folder / "job").rename(keep)
        shutil.rmtree(folder, ignore_errors=True)
        result = Result(size=contender.size, **numbers)
        sent = result.requests - result.throttled
        assert sent == contender.requests, f"{contender.label} sent {sent} of {contender.requests} requests"
        print(f"  {contender.label}, {contender.size:,}: {result.seconds:.2f} s", file=sys.stderr)
        return result

    def _run(self, contender: Contender, job: Job, warm_up: Job) -> dict[str, float]:
        environment = {"AIRFLOW_HOME": str(self.folder / "airflow"), "NO_PROXY": "127.0.0.1"}
        if self.quick:
            os.environ |= environment
            return measured(contender.function, job, warm_up)
        name = f"{contender.function.__module__}.{contender.function.__name__}"
        command = [sys.executable, str(HERE / "job.py"), name]
        child = subprocess.run(
            [*command, *(json.dumps(asdict(each)) for each in (job, warm_up))],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | environment,
        )
        if child.returncode:
            raise SystemExit(f"{contender.label}: {child.stdout[-1000:]}{child.stderr[-3000:]}")
        numbers: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
        return numbers

    def medians(self, contenders: Sequence[Contender]) -> dict[str, Result]:
        """Measure all that are installed in turn, as often as this run asks for; medians by label."""
        results: dict[str, list[Result]] = {each.label: [] for each in contenders if each.is_installed}
        for _ in range(self.rounds):
            for contender in contenders:
                if contender.is_installed:
                    results[contender.label].append(self.measure(contender))
        return {label: median(measured) for label, measured in results.items()}

    def capacity(self) -> float:
        """Requests a second that the stub sustains when a raw client does nothing but send."""
        with stub() as url:
            seconds = 0.2 if self.quick else 3
            command = [sys.executable, str(HERE / "stub.py"), "--capacity", url, "--seconds", str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)


def median(results: Sequence[Result]) -> Result:
    """Return the median of each number."""
    return Result(
        **{key: statistics.median(getattr(each, key) for each in results) for key in asdict(results[0])}
    )


@contextmanager
def stub(*arguments: str, listener: socket.socket | None = None) -> Iterator[str]:
    """Run a stub in a process of its own, on a socket that listens or on one of its own, and give its URL."""
    command = [sys.executable, str(HERE / "stub.py"), *arguments]
    handed = [] if listener is None else [listener.fileno()]
    command += [f"--listener={each}" for each in handed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=handed) as process:
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit("The stub did not start; its own message stands above.")
            yield url
        finally:
            process.terminate()


def _strangers(size: int, turn: int) -> Iterator[tuple[Any, ...]]:
    random = Random(17)
    countries, tiers = ("DE", "PL", "BR", "JP", "US"), ("bronze", "silver", "gold")
    for number in range(size):
        profile_id = UUID(int=random.getrandbits(128), version=4)
        if turn > 0 and number % CHURN == 0:
            profile_id = UUID(int=profile_id.int ^ turn)
        yield str(profile_id), countries[number % 5], tiers[number % 3], number % 100_000 / 100


def _customers(size: int, turn: int, *, attributes: bool) -> Iterator[tuple[Any, ...]]:
    tiers, cities = ("bronze", "silver", "gold"), ("Berlin", "Kraków", "São Paulo", "東京")
    for number in range(size):
        changed = turn > 0 and number % CHURN == 0
        if attributes:
            points = number % 9973 + changed
            yield f"cust-{number:08}", tiers[number % 3], points, number % 100_000 / 100, cities[number % 4]
        else:
            yield (f"cust-{number:08}{'-new' if changed else ''}",)
