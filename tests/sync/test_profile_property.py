"""Any history of faults and kills, then one clean run: attributes in Talon.One, ledger and warehouse agree.

As ``test_mirror_property``, for attributes of profiles. A run is one of any task that keeps the same ledger:
with or without clearing, leaving nulls out or sending them, sending all or what changed.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, example, given, note, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Profile, Rejection
from airflow_provider_talon_cdp.changes.fingerprint import Names, digest_of, holds, mask_of
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    RejectedRecordsError,
    RequestError,
    TransientError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.ledger import ledger as ledger_module
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, Sizes
from airflow_provider_talon_cdp.sync import mirror as mirror_module
from airflow_provider_talon_cdp.sync import push as push_module
from airflow_provider_talon_cdp.sync.guard import ProfileGuard
from airflow_provider_talon_cdp.sync.mirror import Mirror, combined_report, push_share
from airflow_provider_talon_cdp.sync.profiles import CHANGED, Profiles
from airflow_provider_talon_cdp.sync.push import Limits, fail_if_rejected
from tests.changes.strategies import spelt_out
from tests.storage import KilledError, Process, Storage
from tests.sync.fakes import opened
from tests.sync.worlds import ProfileSender, ProfileWorld

BATCH = 3
PROFILES = [
    "a",
    "A",
    "á",
    "a ",
    "a\n",
    "a\t",
    "a\\",
    "\0",
    "\u2028",
    "😀",
    "\uffff",
    "10",
    "9",
    "..",
    "Ω",
    "z",
]
IDENTITY = LedgerIdentity(
    deployment_host="acme.talon.one",
    base_url="https://integration.talon.one",
    name="profiles:people",
    holds="profiles",
)
NAMES = ["tier", "score", "a/b", "ü\n"]
FAULTS = st.one_of(
    st.tuples(st.sampled_from([TransientError, UnexpectedAnswerError]), st.booleans()),
    st.just((AuthenticationError, False)),
)
PLACES = st.integers(0, len(PROFILES) - 1)


@dataclass
class Run:
    """What happens in the world, and then one run.

    Args:
        values: ``(profile, name, value)`` that the warehouse gets; None is null.
        leaves: Profiles that leave the warehouse.
        by_hand: Profiles of which somebody sets an attribute in Talon.One.
        bad: Profiles that Talon.One refuses from now on.
        faulty: Profiles whose row cannot be sent.
        rejections: Rows without an ID.
        names: How many of the names are in the query.
        skips: Whether nulls are left out.
        clears: Whether profiles that are not in the query lose their attributes.
        sends_all: Whether all are sent.
        runs_rules: Whether the calls run rules.
        retry_rejected: Whether what was refused in the run before is sent again.
        is_sorted: Whether the warehouse sorts by bytes.
        is_retry: Whether this is another try of the task instance before it.
        dies_at: Step at which the process is killed.
        faults: What goes wrong at the n-th request.
        in_flight: Flights at once.
        ahead: Batches noted ahead of their departure.
        flushes: Whether each landing is made durable at once.
        pushers: How many processes push the plan that one makes and another one commits; 0 for one process
            that does all.
        repushes: Whether Airflow retries a pusher that was killed; else the run is over.
        changes_under_way: Profiles that change in the warehouse between the plan and the push.
        layers: Whether the ledger keeps plans on top of its members, however many changes they have.
        seed: Of delays and order.
    """

    values: list = field(default_factory=list)
    leaves: list = field(default_factory=list)
    by_hand: list = field(default_factory=list)
    bad: list = field(default_factory=list)
    faulty: list = field(default_factory=list)
    rejections: int = 0
    names: int = len(NAMES)
    skips: bool = True
    clears: bool = False
    sends_all: bool = False
    runs_rules: bool = False
    retry_rejected: str = "always"
    is_sorted: bool = True
    is_retry: bool = False
    dies_at: int | None = None
    faults: dict = field(default_factory=dict)
    in_flight: int = 2
    ahead: int = 2
    flushes: bool = True
    pushers: int = 0
    repushes: bool = False
    changes_under_way: list = field(default_factory=list)
    layers: bool = False
    seed: int = 0


RUNS = st.builds(
    Run,
    values=st.lists(
        st.tuples(PLACES, st.integers(0, len(NAMES) - 1), st.none() | st.integers(0, 2)), max_size=14
    ),
    leaves=st.lists(PLACES, max_size=4),
    by_hand=st.lists(PLACES, max_size=2),
    bad=st.lists(PLACES, max_size=2),
    faulty=st.lists(PLACES, max_size=2),
    rejections=st.integers(0, 2),
    names=st.integers(1, len(NAMES)),
    skips=st.booleans(),
    clears=st.booleans(),
    sends_all=st.booleans(),
    runs_rules=st.booleans(),
    retry_rejected=st.sampled_from(["always", "always", "never"]),
    is_sorted=st.booleans(),
    is_retry=st.booleans(),
    dies_at=st.none() | st.integers(0, 120),
    faults=st.dictionaries(st.integers(0, 12), FAULTS, max_size=2),
    in_flight=st.integers(1, 4),
    ahead=st.integers(1, 4),
    flushes=st.booleans(),
    pushers=st.integers(0, 3),
    repushes=st.booleans(),
    changes_under_way=st.lists(PLACES, max_size=2),
    layers=st.booleans(),
    seed=st.integers(0, 9999),
)


class WatchedGuard:
    """A guard that lets all pass and remembers that it was asked."""

    def __init__(self):
        self.passed = False

    def check(self, counts, *_):
        verdict = ProfileGuard(on_empty="allow", max_removal_fraction=1.0).check(counts)
        self.passed = True
        return verdict


class History:
    """Runs one after another, and checks after each of them that the ledger tells the truth."""

    def __init__(self):
        self.world = ProfileWorld()
        self.warehouse = {}
        self.storage = Storage()
        self.now = 1_000_000.0
        self.instance = 0
        self.refused = set()
        self.report = None

    def ledger(self, ahead=64):
        # No two processes begin in one second.
        self.now += 1
        return Ledger(
            self.storage.folder(),
            IDENTITY,
            sizes=Sizes(batch=BATCH, part=2 * BATCH, ahead=ahead),
            clock=lambda: self.now,
            sleep=lambda _: None,
        )

    def play(self, run):
        for place, name, value in run.values:
            self.warehouse.setdefault(PROFILES[place], {})[NAMES[name]] = value
        for place in run.leaves:
            self.warehouse.pop(PROFILES[place], None)
        for place in run.by_hand:
            self.world.profiles.setdefault(PROFILES[place], {})[self.world.by_hand] = 1
        self.world.bad = {PROFILES[place] for place in run.bad}
        if not run.is_retry:
            self.instance += 1
            self.now += 1000
        return self.send(run)

    def send(self, run):
        process = self.process = Process(run.dies_at)
        self.storage.process = process
        guard = WatchedGuard()
        self.sender = ProfileSender(self.world, process, lambda: guard.passed, run.faults, run.seed)
        self.sender.runs_rules = run.runs_rules
        # As the plan sees them: the warehouse may change under way.
        self.sender.wanted = frozenset(self.warehouse)
        self.limits = Limits(in_flight=run.in_flight)
        mirror = Mirror(
            source=lambda: iter(self.rows(run)),
            ledger=self.ledger(ahead=run.ahead),
            guard=guard,
            sender=lambda: opened(self.sender),
            kind=Profiles(
                sends_all=run.sends_all,
                runs_rules=run.runs_rules,
                clears=run.clears,
                on_duplicate="last",
                give_up_after=None,
            ),
            retry_rejected=run.retry_rejected,
            limits=self.limits,
        )
        self.changed = set()
        report, ending = None, "green"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger_module, "_REWRITE_SHARE", 0 if run.layers else 8)
            patch.setattr(push_module, "_SECONDS_BETWEEN_FLUSHES", -1.0 if run.flushes else 1e9)
            try:
                owner = f"task/{self.instance}"
                report = self.spread(mirror, owner, run) if run.pushers else mirror.run(owner)
            except RejectedRecordsError as error:
                report, ending = error.report, "rejected"
            except (GuardError, RequestError, KilledError) as error:
                ending = type(error).__name__
        self.storage.process = Process()
        self.check(report)
        if report:
            self.check_end(run, report)
        self.refused |= self.sender.refused
        self.report = report
        if currently_in_test_context():
            note(f"{ending} after {process.steps} steps: {report}")
        return ending

    def spread(self, mirror, owner, run):
        """One process plans, others push, a last one commits."""
        report = mirror.hand_over(owner)
        if not report.unsent:
            fail_if_rejected(report, 0)
            return report
        plan, parts = mirror.ledger.plan, mirror.ledger.parts
        count = min(run.pushers, parts)
        pushed = []
        for place in run.changes_under_way:
            self.changed.add(PROFILES[place])
            self.warehouse.setdefault(PROFILES[place], {})["score"] = 77

        def push(first):
            ledger, kind = self.ledger(ahead=run.ahead), mirror.kind
            with ledger.pushing(owner, plan, range(first, parts, count)) as share:
                chunks = kind.reread(share.batches(in_order=True), mirror.source(), ledger.names)
                pushed.append(
                    push_share(share, chunks, kind, lambda: opened(self.sender), self.limits).summary()
                )

        for first in range(count):
            try:
                push(first)
            except KilledError:
                if not run.repushes:
                    raise
                self.storage.process = self.sender.process = Process()
                push(first)
        report = combined_report(report, self.ledger().commit(owner, plan), pushed, 0)
        fail_if_rejected(report, 0, excused=[CHANGED])
        return report

    def wanted(self, run):
        """What the query gives, by profile."""
        names = NAMES[: run.names]
        found = {}
        for profile, attributes in self.warehouse.items():
            values = {name: attributes.get(name) for name in names}
            found[profile] = {
                name: value for name, value in values.items() if value is not None or not run.skips
            }
        return found

    def rows(self, run):
        faulty = {PROFILES[place] for place in run.faulty}
        rows = []
        for profile, values in sorted(self.wanted(run).items()):
            body = json.dumps(values, sort_keys=True).encode() if values else b""
            row = Profile(profile, body, tuple(values), order=1)
            rows.append(Profile(profile, order=1, fault="cannot be sent") if profile in faulty else row)
        if not run.is_sorted:
            # Rows that come before the last of their profile.
            rows += [Profile(each.profile_id, b'{"tier":9}', ("tier",), order=0) for each in rows[:2]]
            random.Random(run.seed).shuffle(rows)
        return [*rows, *[Rejection("profile ID null")] * run.rejections]

    def check(self, report):
        """Whatever happened: nothing is claimed that is not so, and nothing of ours is forgotten."""
        assert report is None or report.balances, report
        ledger = self.ledger()
        ledger.load()
        known, names = dict(spelt_out(ledger.known())), Names(ledger.names)
        assert not list(ledger.uncertain())
        for profile, line in known.items():
            if not line.startswith("?"):
                body = self.world.last[profile]
                assert holds(line, digest_of(profile, body), partial=False), (
                    f"{profile!r}: claimed and not so"
                )
        for profile in self.world.profiles:
            ours = self.world.ours(profile).keys()
            noted = set(names.of(mask_of(known[profile]))) if profile in known else set()
            assert ours <= noted, f"{profile!r}: {ours - noted} forgotten"

    def check_end(self, run, report):
        """After a run that ended: what was planned is so, but for what was refused."""
        faulty = {PROFILES[place] for place in run.faulty} & self.warehouse.keys()
        if not self.changed:
            refused = report.rejected.total() - report.rejected[mirror_module._REFUSED_BEFORE]
            assert refused == run.rejections + len(faulty) + len(self.sender.refused)
        left_alone = faulty | self.world.bad | self.changed
        if report.unclear:
            ledger = self.ledger()
            ledger.load()
            left_alone |= {profile for profile, line in spelt_out(ledger.known()) if line.startswith("?")}
        if run.retry_rejected == "never":
            left_alone |= self.refused
        wanted = self.wanted(run)
        for profile, values in wanted.items():
            if profile not in left_alone:
                there = self.world.ours(profile)
                assert values.items() <= (dict.fromkeys(values) | there).items(), profile
        if run.clears:
            gone = self.world.profiles.keys() - wanted.keys() - left_alone
            assert not [profile for profile in gone if self.world.ours(profile)]

    def check_agreement(self):
        """After a clean run that sends nulls and clears: Talon.One has of ours what the warehouse has, and no
        more."""
        have = {profile: ours for profile in self.world.profiles if (ours := self.world.ours(profile))}
        want = {
            profile: values
            for profile, attributes in self.warehouse.items()
            if (values := {name: value for name, value in attributes.items() if value is not None})
        }
        assert have == want
        ledger = self.ledger()
        ledger.load()
        known = dict(spelt_out(ledger.known()))
        assert known.keys() == self.warehouse.keys()
        assert not [line for line in known.values() if line.startswith("?")]


CLEAN = Run(skips=False, clears=True, in_flight=3, flushes=False)


def finish(history, runs):
    for run in runs:
        history.play(run)
    by_hand = {
        profile for profile, values in history.world.profiles.items() if history.world.by_hand in values
    }
    # Only the calls of a run that was killed, which may have run rules, make it red.
    ending = history.play(CLEAN)
    assert ending == "green" or (ending == "rejected" and history.report.unclear)
    history.check_agreement()
    assert history.play(CLEAN) == "green"
    assert history.sender.requests == 0
    history.check_agreement()
    assert by_hand == {
        profile for profile, values in history.world.profiles.items() if history.world.by_hand in values
    }
    return history


A, B, C = (0, 0, 1), (2, 0, 1), (12, 1, 2)
SEVEN = [(number, number % 2, number % 3) for number in range(7)]
SCRIPTS = {
    "first run": ([], Run(values=SEVEN)),
    "changes": ([Run(values=SEVEN)], Run(values=[(0, 0, 2), (5, 1, None), C], skips=False)),
    "clearing": ([Run(values=SEVEN)], Run(values=[C], leaves=[1, 2, 3], clears=True)),
    "after an error": ([Run(values=SEVEN, faults={1: (TransientError, True)})], Run(values=[B, C])),
    "spread over processes": (
        [Run(values=SEVEN)],
        Run(values=[(n, 1, 2) for n in range(8)], leaves=[1], clears=True, pushers=2),
    ),
    "pushed again": ([], Run(values=[(n, 0, 1) for n in range(8)], pushers=2, repushes=True)),
    "changed under way": (
        [Run(values=SEVEN)],
        Run(values=[(n, 1, 2) for n in range(9)], pushers=2, repushes=True, changes_under_way=[3]),
    ),
    "bad profile": ([Run(values=SEVEN)], Run(values=[(0, 0, 2), (1, 1, 2), C], bad=[1, 12], faulty=[3])),
    "rules": (
        [Run(values=SEVEN, runs_rules=True, faults={1: (TransientError, True)})],
        Run(values=[B, C, (5, 0, 2), (6, 1, None)], leaves=[1], clears=True, runs_rules=True, ahead=8),
    ),
    "rules, spread over processes": (
        [Run(values=SEVEN, runs_rules=True, faults={1: (TransientError, False)})],
        Run(values=[(n, 1, 2) for n in range(8)], runs_rules=True, pushers=2, repushes=True),
    ),
    "rules, and all are sent": (
        [Run(values=SEVEN, runs_rules=True, faults={1: (TransientError, True)})],
        Run(values=[B, C, (5, 0, 2)], runs_rules=True, sends_all=True, ahead=8),
    ),
    "unsorted": ([Run(values=SEVEN)], Run(values=[(0, 0, 2), C], is_sorted=False, rejections=1)),
}
# A profile that left the query while it was doubtful, and came back as it was before.
A_DOUBT_OUTLIVES_AN_ABSENCE = [
    Run(values=[A, B]),
    Run(values=[(0, 0, 2)], faults={0: (TransientError, True)}),
    Run(values=[C], leaves=[0]),
    Run(values=[A]),
]
A_REMOVAL_THAT_WAS_LOST = [
    Run(values=[A, B]),
    Run(leaves=[0], clears=True, faults={0: (TransientError, True)}),
    Run(values=[A]),
]


# The clearing is refused of what was acknowledged once and is doubtful now, or may have been cleared.
A_CLEARING_OF_A_DOUBT_IS_REFUSED = [
    Run(values=[A]),
    Run(values=[(0, 0, 2)], faults={0: (TransientError, False)}),
    Run(leaves=[0], clears=True, bad=[0]),
]
A_CLEARING_THAT_MAY_HAVE_ARRIVED_IS_REFUSED = [
    Run(values=[A]),
    Run(leaves=[0], clears=True, faults={0: (TransientError, False)}),
    Run(leaves=[0], clears=True, bad=[0]),
]


@pytest.mark.parametrize("then", ["a new run", "a retry"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_kill_before_any_step_is_made_good(script, then):
    before, run = SCRIPTS[script]
    begun = History()
    for each in before:
        begun.play(each)
    # Each run has one of its own, and it holds what cannot be copied.
    begun.sender = None
    dies_at = 0
    while True:
        history = copy.deepcopy(begun)
        history.play(replace(run, dies_at=dies_at))
        if not history.process.dead:
            break
        dies_at += 1
        # Others see no difference between a death at a read and one at the step after it; one variant tries
        # both.
        if history.process.died_reading and then != "a retry":
            continue
        try:
            again = Run(is_retry=then != "a new run", runs_rules=run.runs_rules, sends_all=run.sends_all)
            finish(history, [again])
        except AssertionError as failure:
            failure.add_note(f"killed before step {dies_at - 1}")
            raise
    assert dies_at > 15


@pytest.fixture(autouse=True, scope="module")
def _silence():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    # What a kill leaves open ends here, not in a thread of a later test: SQLite wants the one that opened it.
    gc.collect()


EXAMPLES = int(os.environ.get("TALON_CDP_HISTORIES", settings.default.max_examples * 3 // 2))
# Shrinking takes minutes; the seed and the blob that are printed reproduce a failure without it.
PHASES = set(Phase) - ({Phase.shrink} if "CI" in os.environ else set())


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    phases=PHASES,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(runs=st.lists(RUNS, min_size=1, max_size=6))
@example(runs=A_DOUBT_OUTLIVES_AN_ABSENCE)
@example(runs=A_REMOVAL_THAT_WAS_LOST)
@example(runs=A_CLEARING_OF_A_DOUBT_IS_REFUSED)
@example(runs=A_CLEARING_THAT_MAY_HAVE_ARRIVED_IS_REFUSED)
def test_after_any_history_one_clean_run_brings_all_into_step(runs):
    finish(History(), runs)
