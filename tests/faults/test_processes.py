"""Real processes that are stopped, overtaken and killed, on a local disk and over an S3 API with faults.

The short form has fewer kills and locks that last for seconds; ``--faults-long`` has all of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.ledger import lock
from tests.faults.mirror_process import BATCH, ids, ledger_of
from tests.processes import ROOT


@pytest.fixture
def talon():
    with Emulator(service_time=0.1) as emulator:
        yield emulator


class Mirrors:
    """Starts processes, and ends those that are left."""

    def __init__(self, talon, state, folder):
        connection = talon.connection()
        self.talon = talon
        self.told = {
            "talon": talon.url,
            "key": connection["password"],
            "host": connection["extra"]["deployment_host"],
            "s3": None,
            "state": state,
            "rules": "none",
            "sends_all": False,
            "lasts": 6.0,
            "stops": None,
        }
        self.log = folder / "log"
        self.running = []

    def ready(self, owner, *members, stops=None):
        """Start a process, which waits for ``go``."""
        told = self.told | {"owner": owner, "members": members, "stops": stops}
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.mirror_process", json.dumps(told)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.running.append(process)
        assert process.stdout.readline() == "ready\n", self.said()
        return process

    @staticmethod
    def go(process):
        process.stdin.write("go\n")
        process.stdin.flush()

    def start(self, owner, *members):
        process = self.ready(owner, *members)
        self.go(process)
        return process

    def start_until_stopped(self, owner, *members, checked):
        """Start a process, and wait until it has stopped itself at its 20th request."""
        process = self.ready(owner, *members, stops=(20, checked))
        self.go(process)
        limit = time.monotonic() + 120
        while os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG) == (0, 0):
            assert time.monotonic() < limit, self.said()
            time.sleep(0.01)
        return process

    def finish(self, owner, *members, process=None):
        """Run a mirror to its end, and compare Talon.One and the ledger with what it was given."""
        deadline = time.monotonic() + 2 * (self.told["lasts"] or lock.LOCK_LASTS)
        ending = ""
        # The lock of another owner that was killed counts for a while.
        while ending in ("", "LedgerBusyError") and time.monotonic() < deadline:
            process = process or self.ready(owner, *members)
            self.go(process)
            ending, process = self.end(process), None
        assert ending == "green", self.said()
        assert self.there() == set(ids(members))
        ledger = ledger_of(self.told)
        ledger.load()
        assert {each for chunk in ledger.known() for each in chunk.ids} == set(ids(members))

    def end(self, process):
        """Wait for a process's last word."""
        out, _ = process.communicate(timeout=300)
        self.running.remove(process)
        return out.strip()

    def kill(self, process):
        """Kill a process, and return its last word, if it had one."""
        process.kill()
        return self.end(process)

    def letters(self):
        """Read the dead letters that are kept: profile and action of each."""
        found = (ledger_of(self.told).folder / "dead-letters").glob("*/*")
        lines = [line for file in found for line in file.read_text().splitlines()]
        return {(letter["profile_id"], letter["action"]) for letter in map(json.loads, lines)}

    def there(self):
        return set(self.talon.members("vip"))

    def requests(self):
        return self.talon.state()["requests"]["total"]

    def wait_for(self, number):
        """Wait until so many requests have arrived since the start."""
        limit = time.monotonic() + 120
        while self.requests() < number:
            assert time.monotonic() < limit, self.said()
            time.sleep(0.01)

    def said(self):
        return self.log.read_text()[-4000:]

    def close(self):
        for process in self.running:
            process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def mirrors(talon, tmp_path):
    mirrors = Mirrors(talon, str(tmp_path / "state"), tmp_path)
    yield mirrors
    mirrors.close()


@pytest.mark.parametrize("retries", [True, False], ids=["by its retry", "by another run"])
def test_a_process_that_is_stopped_while_another_one_finishes_sends_nothing_more(mirrors, is_long, retries):
    if is_long:
        mirrors.told["lasts"] = None
    stopped = mirrors.start_until_stopped("first", 0, 4000, checked=False)
    if not retries:
        # Until the lock of a run that is silent counts no more.
        time.sleep(180 if is_long else mirrors.told["lasts"] + 1)
    mirrors.finish("first" if retries else "second", 1000, 5000, 2)
    if is_long and retries:
        time.sleep(180)
    before = mirrors.requests()
    os.kill(stopped.pid, signal.SIGCONT)
    assert mirrors.end(stopped) == "LedgerUnavailableError", mirrors.said()
    assert mirrors.requests() == before
    assert mirrors.there() == set(ids((1000, 5000, 2)))
    mirrors.finish("third", 1000, 5000, 3)


def test_a_process_sends_at_most_the_request_in_which_it_is_stopped_and_that_is_mended(mirrors):
    """Talon.One takes a late request: there is no way to refuse what has left, only to know of it."""
    stopped = mirrors.start_until_stopped("first", 0, 4000, checked=True)
    mirrors.finish("first", 5000, 9000)
    before = mirrors.requests()
    os.kill(stopped.pid, signal.SIGCONT)
    assert mirrors.end(stopped) == "LedgerUnavailableError", mirrors.said()
    # None if the other one took so long that the connection was closed.
    late = mirrors.requests() - before
    assert late <= 1
    assert len(mirrors.there() - set(ids((5000, 9000)))) == late * BATCH
    # Also with the same members as before: the request was known to be in flight.
    mirrors.finish("third", 5000, 9000)


def test_a_process_in_back_off_whose_batch_was_overtaken_sends_nothing_more(mirrors, talon):
    mirrors.told["lasts"] = None
    talon.fail_next("status", status=503, retry_after=15, after=10)
    waiting, retry = (mirrors.ready("first", *members) for members in ((0, 3000), (2000, 4000)))
    mirrors.go(waiting)
    # The creation of the audience, and all batches; one of them was answered with 503.
    mirrors.wait_for(61)
    mirrors.finish("first", 2000, 4000, process=retry)
    before = mirrors.requests()
    assert mirrors.end(waiting) == "LedgerUnavailableError", mirrors.said()
    assert mirrors.requests() == before
    assert mirrors.there() == set(ids((2000, 4000)))
    mirrors.finish("third", 2000, 4000, 3)


def kill_again_and_again(mirrors, chance, kills, seconds):
    """Kill a mirror at random moments; now and then the warehouse changes, or a run comes to its end."""
    span, killed = (0, 3000), 0
    for number in range(10 * kills):
        if chance.random() < 0.3:
            first = chance.randrange(3000)
            span = first, first + chance.randrange(1000, 4000), chance.choice((1, 2))
        # Another owner has to wait until the lock of one that was killed counts no more.
        owner = f"run-{number // 8}"
        process = mirrors.start(owner, *span)
        time.sleep(chance.uniform(0, seconds))
        if mirrors.kill(process) == "":
            killed += 1
        else:
            # It had ended; there has to be something to do for the next one.
            span = span[0] + 500, span[1] + 900
        if killed == kills:
            break
    assert killed == kills
    mirrors.finish(owner, 500, 4500, 2)


def test_kills_at_random_moments_lose_nothing(mirrors, chance, is_long):
    kill_again_and_again(mirrors, chance, 50 if is_long else 5, seconds=1.2)


def test_kills_while_rules_run_repeat_no_call_and_leave_a_letter_of_each_that_is_unclear(
    mirrors, talon, chance, is_long
):
    mirrors.told["rules"] = "changes"
    mirrors.finish("fill", 0, 200)
    first, planned, letters = 0, Counter(), set()
    for number in range(30 if is_long else 4):
        if number % 2 == 0:
            before, first = set(ids((first, first + 200))), first + chance.randrange(60, 120)
            planned.update(before ^ set(ids((first, first + 200))))
        process, arrived = mirrors.ready("run", first, first + 200), mirrors.requests()
        mirrors.go(process)
        mirrors.wait_for(arrived + chance.randrange(4, 40))
        assert mirrors.kill(process) == "", mirrors.said()
        letters |= mirrors.letters()
    # What the last one left is told once.
    for ending in ("RejectedRecordsError", "green"):
        process = mirrors.start("run", first, first + 200)
        assert mirrors.end(process) == ending, mirrors.said()
        letters |= mirrors.letters()
    runs = Counter({each: talon.rule_runs(each) for each in talon.profiles()})
    assert not {each: count for each, count in runs.items() if count > planned[each]}
    ledger = ledger_of(mirrors.told)
    ledger.load()
    withheld = {(profile, action) for (profile, _), action in ledger.withheld().items()}
    assert withheld
    assert withheld <= letters
    wanted, unclear = set(ids((first, first + 200))), {profile for profile, _ in letters}
    assert {each for each in wanted ^ set(ids((0, 200))) if not runs[each]} <= unclear
    assert mirrors.there() ^ wanted <= {profile for profile, _ in withheld}
    mirrors.told["sends_all"] = True
    mirrors.finish("run", first, first + 200)
    assert runs == Counter({each: talon.rule_runs(each) for each in talon.profiles()})


def test_kills_over_an_s3_api_with_errors_delays_and_cut_answers_lose_nothing(
    mirrors, faulty_s3, chance, is_long
):
    # Its retries of what fails take longer than a local disk.
    mirrors.told |= {"s3": faulty_s3.url, "state": "s3://ledgers/state", "lasts": 20.0}
    kill_again_and_again(mirrors, chance, 50 if is_long else 3, seconds=4)
    assert faulty_s3.met > 10
