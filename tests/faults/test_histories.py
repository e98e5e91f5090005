"""Any history of two environments: afterwards Talon.One has what the warehouses have, and nothing else.

What fails is played again with the seed that is printed, and shown with the fewest actions that still fail.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.faults.histories import History, draw
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def _silence():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def failure_of(actions):
    try:
        History().run(actions)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return error
    return None


def fewest(actions):
    """Leave out actions for as long as what is left still fails."""
    for at in reversed(range(len(actions))):
        fewer = [*actions[:at], *actions[at + 1 :]]
        if failure_of(fewer):
            return fewest(fewer)
    return actions


def test_after_any_history_a_clean_run_makes_everything_equal_and_no_rule_ran_twice_in_silence(
    request, record_property
):
    first, most = (int(request.config.getoption(f"--faults-{each}")) for each in ("seed", "steps"))
    steps, seed, endings, met = 0, first, Counter(), Counter()
    while steps < most:
        history, actions = History(), draw(seed)
        try:
            history.run(actions)
        except BaseException as error:
            error.add_note(f"Again: python -m pytest {__file__} --faults-seed {seed} --faults-steps 1")
            error.add_note("Actions:\n" + "\n".join(map(repr, fewest(actions))))
            raise
        steps += history.steps
        endings.update((kind, ending) for kind, ending, *_ in history.log)
        met += history.met
        seed += 1
    record_property("histories, steps", f"{seed - first:,}, {steps:,}")
    if most >= 100_000:
        # They met what they are about.
        for kind in ("mirror", "profiles", "explicit"):
            for ending in ("green", "rejected", "KilledError", "TransientError"):
                assert endings[kind, ending], (kind, ending)
        for ending in ("LedgerBusyError", "LedgerUnavailableError", "OlderRunError"):
            assert endings["mirror", ending] + endings["profiles", ending] > 10, ending
        assert endings["rules", "UnclearError"]
        for each in ("rules", "unclear", "withheld", "move", "another key"):
            assert met[each], each
        assert endings["push", "green"]


def logs_of(seeds):
    histories = [History() for _ in seeds]
    for seed, history in zip(seeds, histories, strict=True):
        history.run(draw(seed))
    return repr([history.log for history in histories])


def test_a_seed_is_the_same_history_in_every_process():
    script = "import logging; logging.disable(50); from tests.faults import test_histories as t; "
    outputs = {
        subprocess.run(
            [sys.executable, "-c", f"{script}print(t.logs_of(range(20)))"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "UnclearError" in outputs.pop()
