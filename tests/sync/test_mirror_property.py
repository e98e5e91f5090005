"""Any history of faults and kills, then one clean run: Talon.One, ledger and warehouse agree.

A history is a list of runs with what changes in the world before each of them. A run can end well, stop at an
error, or die before any step that somebody else can see: each write and deletion of a file, each request,
each creation of an audience, each move of the cursor, before and after its effect.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, example, given, note, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Chunk, Rejection
from airflow_provider_talon_cdp.changes.diff import Scope
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    LedgerError,
    RejectedRecordsError,
    RequestError,
    TransientError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.ledger import ledger as ledger_module
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, Sizes
from airflow_provider_talon_cdp.sync import mirror as mirror_module
from airflow_provider_talon_cdp.sync import push as push_module
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.members import Members
from airflow_provider_talon_cdp.sync.mirror import Mirror, combined_report, push_share
from airflow_provider_talon_cdp.sync.push import Limits, fail_if_rejected
from tests.changes.strategies import spelt_out
from tests.storage import KilledError, Process, Storage
from tests.sync.fakes import opened
from tests.sync.worlds import AUDIENCES, PROFILES, Sender, World

LIMIT = 3
IDENTITY = LedgerIdentity(
    deployment_host="acme.talon.one", base_url="https://integration.talon.one", name="sync:all"
)
MEMBERS = st.tuples(st.integers(0, len(PROFILES) - 1), st.integers(0, len(AUDIENCES) - 1))
FAULTS = st.one_of(
    st.tuples(st.sampled_from([TransientError, UnexpectedAnswerError]), st.booleans()),
    st.just((AuthenticationError, False)),
    st.sampled_from(AUDIENCES),
)


@dataclass
class Run:
    """What happens in the world, and then one run of the mirror.

    Args:
        flips: Members that enter the warehouse or leave it.
        by_hand: Members that somebody adds in Talon.One.
        deletes: Audiences that somebody deletes in Talon.One.
        remakes: Whether that person makes them again, without their members.
        bad: Profiles that Talon.One refuses from now on.
        rejections: Records of the warehouse that cannot be members.
        is_sorted: Whether the warehouse sorts by bytes.
        sends_all: Whether members that are known are sent too.
        rules: Whether Talon.One runs its rules.
        retry_rejected: Whether what was refused in the run before is sent again.
        rehearses: Whether a dry run comes first.
        is_retry: Whether this is another try of the task instance before it, with its cursor.
        dies_at: Step at which the process is killed.
        faults: What goes wrong at the n-th request.
        in_flight: Requests in flight.
        ahead: Batches noted ahead of their departure.
        flushes: Whether each landing is made durable at once.
        pushers: How many processes push the plan that one makes and another one commits; 0 for one process
            that does all.
        repushes: Whether Airflow retries a pusher that was killed; else the run is over.
        layers: Whether the ledger keeps plans on top of its members, however many changes they have.
        seed: Of delays and order.
    """

    flips: list = field(default_factory=list)
    by_hand: list = field(default_factory=list)
    deletes: list = field(default_factory=list)
    remakes: bool = False
    bad: list = field(default_factory=list)
    rejections: int = 0
    is_sorted: bool = True
    sends_all: bool = False
    rules: str = "none"
    retry_rejected: str = "always"
    rehearses: bool = False
    is_retry: bool = False
    dies_at: int | None = None
    faults: dict = field(default_factory=dict)
    in_flight: int = 2
    ahead: int = 2
    flushes: bool = True
    pushers: int = 0
    repushes: bool = False
    layers: bool = False
    seed: int = 0


RUNS = st.builds(
    Run,
    flips=st.lists(MEMBERS, max_size=14),
    by_hand=st.lists(MEMBERS, max_size=2),
    deletes=st.lists(st.sampled_from(AUDIENCES), max_size=1),
    remakes=st.booleans(),
    bad=st.lists(st.integers(0, len(PROFILES) - 1), max_size=2),
    rejections=st.integers(0, 2),
    is_sorted=st.booleans(),
    sends_all=st.booleans(),
    rules=st.sampled_from(["none", "changes", "changes", "all"]),
    retry_rejected=st.sampled_from(["always", "always", "never"]),
    rehearses=st.booleans(),
    is_retry=st.booleans(),
    dies_at=st.none() | st.integers(0, 120),
    faults=st.dictionaries(st.integers(0, 12), FAULTS, max_size=2),
    in_flight=st.integers(1, 4),
    ahead=st.integers(1, 4),
    flushes=st.booleans(),
    pushers=st.integers(0, 3),
    repushes=st.booleans(),
    layers=st.booleans(),
    seed=st.integers(0, 9999),
)


def tell(text):
    """Show it with a failure, where hypothesis is at work."""
    if currently_in_test_context():
        note(text)


class WatchedGuard:
    """A guard that lets all pass and remembers that it was asked."""

    def __init__(self):
        self.passed = False

    def check(self, counts, *_):
        verdict = Guard(on_empty="allow", max_removal_fraction=1.0).check(counts)
        self.passed = True
        return verdict


class Cursor:
    """Airflow's task state: it outlives a kill, and each task instance has its own."""

    def __init__(self):
        self.process = None
        self.version = 0

    def get(self):
        return self.version

    def set(self, version):
        self.process.step()
        self.version = version
        self.process.step()


class History:
    """Runs one after another, and checks after each of them that the ledger tells the truth."""

    def __init__(self, audiences):
        self.audiences = AUDIENCES[:audiences]
        self.world = World(self.audiences, LIMIT)
        self.warehouse = set()
        self.storage = Storage()
        self.now = 1_000_000.0
        self.instance = 0
        self.cursor = Cursor()
        self.refused = set()
        self.withheld = {}
        self.steps = 0

    def ledger(self, ahead=64):
        # No two processes begin in one second.
        self.now += 1
        return Ledger(
            self.storage.folder(),
            IDENTITY,
            sizes=Sizes(batch=LIMIT, part=2 * LIMIT, ahead=ahead),
            clock=lambda: self.now,
            sleep=lambda _: None,
        )

    def member(self, indices):
        return PROFILES[indices[0]], self.audiences[indices[1] % len(self.audiences)]

    def play(self, run):
        for each in run.deletes:
            if each in self.audiences:
                self.world.delete(each)
                if run.remakes:
                    self.world.make(each)
        for each in run.by_hand:
            self.world.add_by_hand(*self.member(each))
        self.warehouse ^= {self.member(each) for each in run.flips}
        if not run.is_retry:
            self.instance += 1
            self.cursor = Cursor()
            self.now += 1000
        self.world.bad = {PROFILES[each] for each in run.bad}
        return self.mirror(run)

    def mirror(self, run):
        self.deletions = self.world.deletions.copy()
        process = self.process = Process(run.dies_at)
        self.storage.process = self.cursor.process = process
        ledger, guard = self.ledger(ahead=run.ahead), WatchedGuard()
        resumes = self.cursor.version > 0
        sender = Sender(
            self.world,
            process,
            lambda: guard.passed or resumes,
            {
                n: fault
                for n, fault in run.faults.items()
                if not isinstance(fault, str) or fault in self.audiences
            },
            run.seed,
        )
        self.limits = Limits(in_flight=run.in_flight)
        mirror = Mirror(
            source=lambda: self.rows(run),
            ledger=ledger,
            guard=guard,
            sender=lambda: opened(sender),
            kind=Members(scope=Scope(sends_all=run.sends_all), rules=run.rules),
            audiences=Audiences(names=dict.fromkeys(self.audiences, "name"), verify="identity"),
            retry_rejected=run.retry_rejected,
            limits=self.limits,
        )
        report, ending = None, "green"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mirror_module, "MAX_CHANGES", LIMIT)
            patch.setattr(ledger_module, "_REWRITE_SHARE", 0 if run.layers else 8)
            patch.setattr(push_module, "_SECONDS_BETWEEN_FLUSHES", -1.0 if run.flushes else 1e9)
            if run.rehearses:
                self.rehearse(mirror)
            try:
                owner = f"task/{self.instance}"
                if run.pushers:
                    report = self.spread(mirror, sender, owner, run)
                else:
                    report = mirror.run(owner, self.cursor)
            except RejectedRecordsError as error:
                report, ending = error.report, "rejected"
            except (GuardError, RequestError, KilledError) as error:
                ending = type(error).__name__
            except LedgerError as error:
                # Several deletions in one run.
                if "deleted and made again" not in str(error):
                    raise
                ending = type(error).__name__
            self.storage.process = Process()
            if not process.dead:
                self.world.lost -= sender.identified
            self.check(report)
            if report:
                self.check_step(run)
                self.check_rejections(run, report, sender)
            self.refused |= sender.refused
        self.steps += process.steps
        tell(f"{ending} after {process.steps} steps: {report}")
        return ending

    def spread(self, mirror, sender, owner, run):
        """One process plans, others push, a last one commits."""
        report = mirror.hand_over(owner)
        if not report.unsent:
            fail_if_rejected(report, 0)
            return report
        plan, parts = mirror.ledger.plan, mirror.ledger.parts
        count = min(run.pushers, parts)
        pushed = []

        def push(first):
            with self.ledger(run.ahead).pushing(owner, plan, range(first, parts, count)) as share:
                report = push_share(share, share.batches(), Members(), lambda: opened(sender), self.limits)
                pushed.append(report.summary())

        for first in range(count):
            try:
                push(first)
            except KilledError:
                if not run.repushes:
                    raise
                self.storage.process = sender.process = Process()
                ledger = self.ledger()
                ledger.load()
                if ledger.suspected:
                    with pytest.raises(LedgerError, match="an audience was deleted or made again"):
                        push(first)
                    raise
                push(first)
        report = combined_report(report, self.ledger().commit(owner, plan), pushed, 0)
        fail_if_rejected(report, 0)
        return report

    def rehearse(self, mirror):
        """A dry run counts, and changes nothing anywhere."""
        alive, self.storage.process = self.storage.process, Process()
        before, members = dict(self.storage.objects), self.world.members
        report = replace(mirror, ledger=self.ledger(), sender=None, audiences=None).dry_run(60)
        assert report.balances, report
        assert report.sent == 0
        assert self.storage.objects == before
        assert self.world.members == members
        mirror.guard.passed = False
        self.storage.process = alive

    def rows(self, run):
        rows = sorted(self.warehouse)
        if not run.is_sorted:
            rows += rows[:2]
            random.Random(run.seed).shuffle(rows)
        yield from (Chunk([profile], audience) for profile, audience in rows)
        yield from [Rejection("profile ID null")] * run.rejections

    def check(self, report):
        """Whatever happened: nothing is claimed that is not so, and nothing of ours is forgotten."""
        assert report is None or report.balances, report
        ledger = self.ledger()
        ledger.load()
        known, uncertain = (set(spelt_out(each)) for each in (ledger.known(), ledger.uncertain()))
        changes = [change for chunk in ledger.changes() for change in chunk.changes()]
        self.world.may_be_ours |= {change[:2] for change in changes if change.action == "add"}
        there = self.world.members
        # Talon.One refused to remove these, which has a dead letter. If their addition was not acknowledged,
        # the ledger takes it that there is none. A profile that is refused only later stays, then.
        self.world.by_hand |= there & self.world.refused_removals - known - uncertain
        withheld = ledger.withheld()
        if self.process.dead:
            # What it had noted, it may have called: nobody knows.
            self.world.called |= {
                member: action
                for member, action in withheld.items()
                if self.withheld.get(member) != action
                and self.world.deletions[member[1]] == self.deletions[member[1]]
            }
        self.withheld = withheld
        claimed = {member for member in known - uncertain if member[1] not in self.world.lost}
        assert claimed <= there, f"the ledger claims {claimed - there}"
        forgotten = there - known - uncertain - self.world.by_hand
        assert not forgotten, f"the ledger has forgotten {forgotten}"

    def check_step(self, run):
        """After any run that ended, a retry or not: Talon.One is as the warehouse, but for what is bad or
        gone."""
        ledger = self.ledger()
        ledger.load()
        # Calls about an audience that was made again since have no effect there.
        left_out = ledger.withheld().keys() & self.world.called.keys()
        left_out |= self.refused if run.retry_rejected == "never" else set()

        def good(members):
            there = self.world.audiences
            return {
                each
                for each in members
                if each[0] not in self.world.bad and each[1] in there and each not in left_out
            }

        assert good(self.world.members) == good(self.warehouse | self.world.by_hand)

    def check_rejections(self, run, report, sender):
        """Each record counts once and has one letter, however many tries and plans it was refused in."""
        refused = report.rejected.total() - report.rejected[mirror_module._REFUSED_BEFORE]
        assert refused == run.rejections + len(sender.refused)
        assert run.retry_rejected == "never" or not report.rejected[mirror_module._REFUSED_BEFORE]
        if sender.process is not self.process:
            # Whoever is killed between a letter and the note that it is written, writes it again.
            return
        folder = f"{report.dead_letters}/".removeprefix("memory:/")
        letters = b"".join(data for name, data in self.storage.objects.items() if name.startswith(folder))
        assert letters.count(b"\n") == len(sender.refused) + report.unclear

    def check_agreement(self):
        """After a clean run of the warehouse as it is."""
        ledger = self.ledger()
        ledger.load()
        known = set(spelt_out(ledger.known()))

        def good(members):
            return {member for member in members if member[0] not in self.world.bad}

        assert good(self.world.members) == good(self.warehouse | self.world.by_hand)
        assert good(known) == good(self.warehouse)
        assert not good(spelt_out(ledger.uncertain()))


def clean(**changes):
    return Run(in_flight=3, flushes=False, **changes)


def replay(audiences, runs):
    return finish(History(audiences), runs)


def finish(history, runs):
    for run in runs:
        history.play(run)
    bad = [PROFILES.index(each) for each in history.world.bad]
    assert history.play(clean(bad=bad, rules="changes")) in ("green", "rejected")
    assert history.play(clean(bad=bad)) in ("green", "rejected")
    history.check_agreement()
    assert history.play(clean()) == "green"
    history.check_agreement()
    # Without bad profiles it was the same run as the one before.
    assert not bad or history.play(clean()) == "green"
    return history


A, B, C = (0, 0), (2, 0), (12, 0)
FIVE = [(number, 0) for number in range(5)]
# Each found by the test below or by thinking of it; the mirror before it failed on them.
AN_UNCERTAIN_MEMBER_IS_REFUSED = [
    Run(flips=[A], faults={0: (TransientError, True)}),
    Run(bad=[A[0]]),
    Run(flips=[A]),
]
AN_UNCERTAIN_REMOVAL_IS_REFUSED_AS_AN_ADD = [
    Run(flips=[A]),
    Run(flips=[A], faults={0: (TransientError, True)}),
    Run(flips=[A], bad=[A[0]]),
]
AN_AUDIENCE_THAT_WAS_MADE_AGAIN_IS_NOT_FILLED = [
    Run(flips=[A], rules="changes"),
    Run(flips=[B], rules="changes", faults={1: (TransientError, True)}),
    Run(rules="changes", deletes=["vip"], remakes=True, faults={2: (AuthenticationError, False)}),
    Run(rules="changes"),
]
AN_AUDIENCE_WITH_ONLY_A_WITHHELD_MEMBER_IS_MADE_AGAIN = [
    Run(flips=[A], rules="all", faults={2: (TransientError, True)}),
    Run(rules="all", deletes=["vip"], remakes=True),
]
A_RETRY_AFTER_AN_AUDIENCE_WAS_DELETED_UNDER_WAY = [
    Run(flips=[A]),
    Run(flips=[B], faults={0: "vip"}),
    Run(is_retry=True),
]
A_CALL_THAT_RUNS_RULES_GETS_NO_ANSWER = [
    Run(flips=[A], rules="changes"),
    Run(flips=[B, C], rules="changes", faults={1: (TransientError, True), 2: (UnexpectedAnswerError, False)}),
    Run(rules="changes"),
    Run(flips=[A, B], rules="changes", faults={1: (TransientError, False)}),
    Run(rules="changes"),
    Run(rules="all", sends_all=True),
]
SCRIPTS = {
    "first run": ([], Run(flips=FIVE)),
    "additions and removals": ([Run(flips=[A, B])], Run(flips=[B, C, *FIVE[3:]])),
    "after an error": ([Run(flips=FIVE, faults={1: (TransientError, True)})], Run(flips=[B, C])),
    "bad member": ([Run(flips=FIVE)], Run(flips=[A, B, C], bad=[C[0]])),
    "spread over processes": (
        [Run(flips=FIVE)],
        Run(flips=[B, C, *[(n, 0) for n in range(5, 11)]], pushers=2),
    ),
    "pushed again": ([], Run(flips=[(n, 0) for n in range(8)], pushers=2, repushes=True)),
    "deleted audience": ([Run(flips=FIVE)], Run(flips=[B, C], deletes=["vip"])),
    "rules": (
        [Run(flips=FIVE)],
        Run(flips=[B, C, (5, 0), (6, 0)], rules="changes", ahead=8),
    ),
    "rules, spread over processes": (
        [Run(flips=FIVE)],
        Run(flips=[B, C, *[(n, 0) for n in range(5, 10)]], rules="changes", pushers=2),
    ),
    "unsorted with rejections": ([Run(flips=FIVE)], Run(flips=[B, C], is_sorted=False, rejections=1)),
}


@pytest.mark.parametrize("then", ["a new run", "a retry", "a retry after somebody deleted the audience"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_kill_before_any_step_is_made_good(script, then):
    before, run = SCRIPTS[script]
    begun = History(1)
    for each in before:
        begun.play(each)
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
        deletes = ["vip"] if then.endswith("audience") else []
        try:
            finish(history, [Run(is_retry=then != "a new run", deletes=deletes, rules=run.rules)])
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
@given(audiences=st.integers(1, 4), runs=st.lists(RUNS, min_size=1, max_size=6))
@example(audiences=1, runs=AN_UNCERTAIN_MEMBER_IS_REFUSED)
@example(audiences=1, runs=AN_UNCERTAIN_REMOVAL_IS_REFUSED_AS_AN_ADD)
@example(audiences=1, runs=A_CALL_THAT_RUNS_RULES_GETS_NO_ANSWER)
@example(audiences=1, runs=AN_AUDIENCE_THAT_WAS_MADE_AGAIN_IS_NOT_FILLED)
@example(audiences=1, runs=AN_AUDIENCE_WITH_ONLY_A_WITHHELD_MEMBER_IS_MADE_AGAIN)
@example(audiences=1, runs=A_RETRY_AFTER_AN_AUDIENCE_WAS_DELETED_UNDER_WAY)
def test_after_any_history_one_clean_run_brings_all_into_step(audiences, runs):
    replay(audiences, runs)
