"""Histories: what tasks, people and faults do to two environments of one deployment, from a seed.

A history is a list of actions. An action is a process, which can be killed before any of its steps, or sleep
there while other actions run to their end; or something that happens in the warehouse or in the Campaign
Manager. Time is virtual, and one thread runs at a time, so a seed is always the same history.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from types import MappingProxyType
from unittest import mock
from uuid import UUID

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.changes.change import Chunk, Profile, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import Scope
from airflow_provider_talon_cdp.exceptions import (
    LedgerError,
    OlderRunError,
    RejectedRecordsError,
    RequestError,
)
from airflow_provider_talon_cdp.ledger import ledger as ledger_module
from airflow_provider_talon_cdp.ledger import lock as lock_module
from airflow_provider_talon_cdp.ledger import outside as outside_module
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, RunFacts, Sizes
from airflow_provider_talon_cdp.ledger.letters import UNCLEAR
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.sync import audiences as audiences_module
from airflow_provider_talon_cdp.sync import push as push_module
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard, ProfileGuard
from airflow_provider_talon_cdp.sync.members import Members, send_members
from airflow_provider_talon_cdp.sync.mirror import Mirror, combined_report, push_share
from airflow_provider_talon_cdp.sync.profiles import CHANGED, Profiles
from airflow_provider_talon_cdp.sync.push import Limits, fail_if_rejected
from airflow_provider_talon_cdp.sync.report import Report
from tests.faults.wire import FAULTS, HOST, Clock, Talon, Wire, run_in_loop_thread
from tests.storage import KilledError, Process, Storage
from tests.sync.worlds import PROFILES

# The last one is a connection without the field Environment: it has the key of one of two others.
ENVIRONMENTS = ("sandbox", "live", "")
UNNAMED = ("east", "west")
AUDIENCES = ("vip", "VIP", "a\tb", "😀")
BATCH = 3
NAMES = ("tier", "score")
# A member of each audience that never leaves the warehouse, so that each is registered from the start.
ANCHOR, BY_HAND = "anchor", "by hand"


class MeanwhileError(BaseException):
    """Something was wrong while a process slept; nothing in that process may catch it."""


@dataclass(frozen=True)
class Action:
    """Something that happens.

    Args:
        kind: Name of a method of ``History``.
        of: Its arguments.
        faults: What goes wrong with the n-th request of its process.
        dies_at: Step before which the process is killed; None for never.
        naps: By step, how many seconds the process sleeps there, and what happens meanwhile.
        seed: Of delays and order.
    """

    kind: str
    of: dict = field(default_factory=dict)
    faults: dict = field(default_factory=dict)
    dies_at: int | None = None
    naps: dict = field(default_factory=dict)
    seed: int = 0


class Sleeper(Process):
    """A process that can sleep before any of its steps.

    Args:
        history: What goes on meanwhile.
        action: Says when it dies and when it sleeps.
    """

    def __init__(self, history, action):
        super().__init__(action.dies_at)
        self.history = history
        self.naps = dict(action.naps)
        self.has_slept = False

    def step(self, *, reads=False):
        nap = self.naps.pop(self.steps, None)
        if nap and not self.dead:
            self.has_slept = True
            # A process that sleeps and dies would have requests under way that nobody can know of.
            self.dies_at = None
            self.history.sleep(self, *nap)
        super().step(reads=reads)


class Cursor:
    """Airflow's task state: it outlives a kill, and each task instance has its own."""

    def __init__(self, history):
        self.history = history
        self.version = 0

    def get(self):
        return self.version

    def set(self, version):
        self.history.storage.process.step()
        self.version = version
        self.history.storage.process.step()


class LetterBox(Storage):
    """An object store that remembers dead letters of members.

    Attributes:
        unclear: Profile, audience and action of changes that letters call unclear.
        kept: By ledger's folder, profile and audience of members whose removal was refused: a ledger that
            never had them takes that for the end of it.
    """

    def __init__(self):
        super().__init__()
        self.unclear = set()
        self.kept = {}

    def put(self, name, data):
        try:
            super().put(name, data)
        finally:
            if "/dead-letters/" in name and self.objects.get(name) is data:
                for letter in map(json.loads, data.splitlines()):
                    if letter["reason"].startswith(UNCLEAR):
                        self.unclear.add((letter["profile_id"], letter["audience_id"], letter["action"]))
                    elif letter.get("action") == "remove":
                        kept = self.kept.setdefault(name.partition("/dead-letters/")[0], set())
                        kept.add((letter["profile_id"], letter["audience_id"]))


@dataclass(frozen=True)
class Group:
    """The tasks of a TaskGroup after the one that planned.

    Args:
        environment: Of its connection.
        owner: For whom they run.
        mirror: What planned.
        planned: Its report.
        plan: What is pushed.
        names: Audiences to look at after the push.
        shares: The parts of the plan that each task pushes.
    """

    environment: str
    owner: str
    mirror: Mirror
    planned: Report
    plan: str
    names: dict
    shares: list


class Warehouse:
    """The tables of one environment, as they are on each day.

    Attributes:
        members: Audience by profile, of today.
        people: Attributes by profile, of today.
    """

    def __init__(self):
        self.members = {(ANCHOR, audience) for audience in AUDIENCES}
        self.people = {}
        self.days = {}

    def remember(self, day):
        people = {profile: dict(values) for profile, values in self.people.items()}
        self.days[day] = frozenset(self.members), people


class History:
    """Plays actions.

    Attributes:
        steps: Steps of all processes so far.
        log: What happened, in order; the same for the same seed.
        met: How often something happened that not every history has.
    """

    def __init__(self):
        self.clock = Clock()
        self.storage = LetterBox()
        self.talon = Talon([*filter(None, ENVIRONMENTS), *UNNAMED])
        self.talon.on_change = self._hear
        self.unnamed = UNNAMED[0]
        self.moves = 0
        # What the connection without Environment left in an environment when it got the key of another one.
        self.left_behind = {}
        # By environment and member, the action that a call which runs rules made last, by writer.
        self.called = {}
        self.ran_twice = []
        # When an audience was made anew, and who has learnt of it since: all its members join it once more.
        self.remakes = 0
        self.remade = {}
        self.groups = {}
        self.used = []
        self.met = Counter()
        self.warehouses = {each: Warehouse() for each in ENVIRONMENTS}
        self.by_hand = {each: set() for each in self.talon.keys}
        self.bad = frozenset()
        self.day = 10
        self.instances = {}
        self.cursors = {}
        self.older_than_newest = set()
        self.steps = 0
        self.log = []
        self.chance = random.Random(0)
        for each in self.warehouses.values():
            each.remember(self.day)
        for each in AUDIENCES:
            self.talon.store(UNNAMED[1]).create_audience(each, "by hand")

    # How it is played

    def run(self, actions):
        """Play actions, then one clean run of the newest data in each environment, and compare."""
        with ExitStack() as patches:
            for module, name, value in (
                (push_module, "run_in_loop_thread", partial(run_in_loop_thread, self.clock)),
                (audiences_module, "run_in_loop_thread", partial(run_in_loop_thread, self.clock)),
                (ledger_module, "uuid4", self._uuid),
                (outside_module, "uuid4", self._uuid),
                # The lock's own thread has real time; a process renews its lock before its requests too.
                (lock_module, "LOCK_RENEWED", 1e6),
            ):
                patches.enter_context(mock.patch.object(module, name, value))
            self.used = [each for each in ENVIRONMENTS if each in ("live", *_environments(actions))]
            for each in self.used:
                assert self.play(Action("mirror", {"environment": each})) == "green"
            for action in actions:
                self.play(action)
            self.finish()

    def play(self, action):
        ending = getattr(self, f"_{action.kind}")(action, **action.of)
        self.log.append((action.kind, ending, round(self.clock.now, 6), self.steps))
        return ending

    def sleep(self, process, seconds, actions):
        """Let time pass and other actions happen, in a thread of their own, while a process waits here."""
        errors = []

        def others():
            try:
                for action in actions:
                    self.play(action)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        before, self.storage.process = self.storage.process, Process()
        self.clock.now += seconds
        meanwhile = threading.Thread(target=others)
        meanwhile.start()
        meanwhile.join()
        self.storage.process = before
        if errors:
            raise MeanwhileError from errors[0]

    def finish(self):
        for environment in self.used:
            self.finish_with(environment)
        if self.moves:
            self._move(None, environment="")
            self.finish_with("")

    def finish_with(self, environment):
        """Make clean runs, and compare: first but for what is withheld, then with it."""
        self.clock.now += 1000
        rules = "changes" if self.met["rules"] else "none"
        withheld = set()
        for _ in range(2):
            how = {"environment": environment, "rules": rules, "sends_all": bool(withheld)}
            ending = self.play(Action("mirror", how))
            assert ending in ("green", "rejected"), ending
            withheld = self.withheld(environment)
            self.met["withheld"] += len(withheld)
            self.compare_members(environment, withheld)
            how = {"environment": environment, "clears": True}
            if self.knows_another_key(environment):
                assert self.play(Action("profiles", how)) == "LedgerError"
                how |= {"sends_all": True}
            ending = self.play(Action("profiles", how))
            assert ending in ("green", "rejected"), ending
            self.compare_profiles(environment)
        assert withheld <= self.bad_members(environment), "not all was sent"

    def withheld(self, environment):
        """Return what the ledger of all audiences withholds: each has had a dead letter."""
        ledger = self._ledger(environment, "sync:all")
        ledger.load()
        withheld = {(*member, action) for member, action in ledger.withheld().items()}
        assert withheld <= self.storage.unclear, f"{len(withheld - self.storage.unclear)} without a letter"
        return {(profile, audience) for profile, audience, _ in withheld}

    def bad_members(self, environment):
        return {(profile, audience) for profile in self.bad for audience in AUDIENCES}

    def knows_another_key(self, environment):
        """Whether profiles of a connection without Environment were acknowledged under another key."""
        ledger = self._ledger(environment, "profiles:people", holds="profiles")
        ledger.load()
        known = ledger.facts.key_fingerprint
        is_other = not environment and known not in ("", self.settings(environment).key_fingerprint)
        return is_other and ledger.has_acknowledged_attributes

    def target(self, environment):
        """The environment whose key a connection has."""
        return environment or self.unnamed

    def settings(self, environment):
        """The settings of a connection as they are now."""
        return self.talon.settings(self.target(environment), named=bool(environment))

    def compare_members(self, environment, withheld=frozenset()):
        target, wanted = self.target(environment), self.warehouses[environment].members
        ledger = self._ledger(environment, "sync:all").folder.path
        left = self.left_behind.get(target, set()) | self.storage.kept.get(ledger, set())
        store = self.talon.store(target)
        for audience in AUDIENCES:
            unsure = self.bad | {profile for profile, of in withheld if of == audience}
            there = {each for each in store.members(audience) if each not in unsure}
            want = {profile for profile, of in wanted if of == audience and profile not in unsure}
            want |= {profile for profile, of in self.by_hand[target] if of == audience}
            too_many = there - want - {profile for profile, of in left if of == audience}
            assert there >= want, f"{target}, {audience!r}: {want - there} missing"
            assert not too_many, f"{target}, {audience!r}: {too_many} too many"

    def compare_profiles(self, environment):
        target = self.target(environment)
        wanted = {
            profile: have
            for profile, values in self.warehouses[environment].people.items()
            if profile not in self.bad and (have := {n: v for n, v in values.items() if v is not None})
        }
        there = {
            profile: ours
            for profile, attributes in self.talon.store(target).attributes().items()
            if profile not in self.bad and (ours := {n: attributes[n] for n in NAMES if n in attributes})
        }
        if target in self.left_behind:
            there = {
                profile: have
                for profile, names in wanted.items()
                if (have := {n: v for n, v in there.get(profile, {}).items() if n in names})
            }
        unlike = {each for each in there.keys() | wanted.keys() if there.get(each) != wanted.get(each)}
        assert not unlike, f"{target}: attributes of {unlike} differ"

    # Processes

    def _mirror(
        self,
        action,
        *,
        environment,
        audience=None,
        back=0,
        on_older_run="fail",
        retry=False,
        sends_all=False,
        retry_rejected="always",
        rules="none",
        verify="identity",
        pushers=0,
    ):
        """Mirror all audiences, or one under a ledger of its own."""
        name = "sync:all" if audience is None else f"audience:{audience}"
        owner = self._owner(environment, name, retry=retry)
        members, _ = self._data(environment, back)
        managed = list(AUDIENCES) if audience is None else [audience]
        rows = sorted(member for member in members if member[1] in managed)
        random.Random(action.seed).shuffle(rows) if action.seed % 2 else None
        wire, process = self._begin(action, environment, name)
        settings, report = self.settings(environment), Report()
        self.met["rules"] += rules != "none"
        before, target = self.remakes, self.target(environment)
        mirror = Mirror(
            source=lambda: iter([*(Chunk([profile], of) for profile, of in rows), Rejection("ID null")]),
            ledger=self._ledger(environment, name),
            guard=Guard(on_empty="allow", max_removal_fraction=1.0),
            sender=lambda: wire.members(settings),
            kind=Members(scope=Scope(managed=managed, sends_all=sends_all), rules=rules),
            audiences=Audiences(names=dict.fromkeys(managed, "name"), verify=verify),
            facts=self._facts(settings, back),
            on_older_run=on_older_run,
            retry_rejected=retry_rejected,
            limits=Limits(in_flight=1 + action.seed % 4, max_rejected=1),
        )
        run = partial(mirror.run, owner, self._cursor(owner), report)
        if pushers:
            run, report = partial(self._spread, mirror, owner, wire, environment, pushers), None
        ending = self._end(wire, process, mirror, run, report)
        if ending in ("green", "rejected") and verify == "identity":
            for (where, remade), (number, learnt) in self.remade.items():
                if number <= before and where == target and remade in managed:
                    learnt.add(wire.writer)
        return ending

    def _spread(self, mirror, owner, wire, environment, pushers):
        """One process plans, others push, a last one commits; they sleep and die as if they were one."""
        planned = mirror.hand_over(owner)
        if not planned.unsent or planned.verdict:
            return planned
        parts = mirror.ledger.parts
        count = min(pushers, parts)
        shares = [range(first, parts, count) for first in range(count)]
        names = mirror.audiences.names_to_recheck(planned)
        group = Group(environment, owner, mirror, planned, mirror.ledger.plan, names, shares)
        self.groups[environment] = group
        return self._push_and_commit(group, wire)

    def _push_and_commit(self, group, wire):
        """Push all shares of a plan, and commit it; each task has the connection as it is then."""
        name, pushed = group.mirror.ledger.identity.name, []
        for parts in group.shares:
            ledger, settings = self._ledger(group.environment, name), self.settings(group.environment)
            facts = self._facts(settings, 0)
            with ledger.pushing(group.owner, group.plan, parts, facts) as share:
                self._watch(wire, ledger)
                report = push_share(
                    share,
                    share.batches(),
                    Members(),
                    lambda settings=settings: wire.members(settings),
                    group.mirror.limits,
                )
                assert report.balances, report
                pushed.append(report.summary())
        ledger, settings = self._ledger(group.environment, name), self.settings(group.environment)
        asked = Report()
        self._watch(wire, ledger)
        audiences, counts = (
            Audiences(names=group.names, verify="identity"),
            Counts(additions=Counter(dict.fromkeys(group.names, 1))),
        )
        outcome = ledger.commit(
            group.owner,
            group.plan,
            lambda: audiences.check(ledger, counts, {}, lambda: wire.members(settings), asked, after=True),
        )
        report = combined_report(group.planned, outcome, pushed, 0)
        fail_if_rejected(report, group.mirror.limits.max_rejected, excused=[CHANGED])
        return report

    def _push(self, action, *, environment):
        """Push and commit the last plan of a group once more, as retries do, or a person who clears tasks."""
        group = self.groups.get(environment)
        if group is None:
            return "nothing"
        wire, process = self._begin(action, environment, group.mirror.ledger.identity.name)
        return self._end(wire, process, None, lambda: self._push_and_commit(group, wire))

    def _profiles(
        self,
        action,
        *,
        environment,
        back=0,
        on_older_run="fail",
        retry=False,
        sends_all=False,
        clears=False,
        retry_rejected="always",
    ):
        """Send attributes."""
        owner = self._owner(environment, "profiles:people", retry=retry)
        _, people = self._data(environment, back)
        rows = [
            Profile(profile, json.dumps(values, sort_keys=True).encode(), tuple(values), order=1)
            for profile, values in sorted(people.items())
        ]
        is_refused = self.knows_another_key(environment) and not sends_all
        wire, process = self._begin(action, environment, "profiles:people")
        settings, report = self.settings(environment), Report()
        mirror = Mirror(
            source=lambda: iter(rows),
            ledger=self._ledger(environment, "profiles:people", holds="profiles"),
            guard=ProfileGuard(on_empty="allow", max_removal_fraction=1.0),
            sender=lambda: wire.attributes(settings),
            kind=Profiles(sends_all=sends_all, clears=clears, give_up_after=None),
            facts=self._facts(settings, back),
            on_older_run=on_older_run,
            retry_rejected=retry_rejected,
            limits=Limits(in_flight=1 + action.seed % 4),
        )
        ending = self._end(wire, process, mirror, lambda: mirror.run(owner, report=report), report)
        if is_refused and not process.has_slept:
            assert ending not in ("green", "rejected"), "attributes were sent with another key"
            assert wire.number == 0
            self.met["another key"] += ending == "LedgerError"
        return ending

    def _explicit(self, action, *, environment, adds=(), removes=()):
        """Add members and remove others without a ledger."""
        wire, process = self._begin(action, environment, "calls:explicit")
        settings, report = self.settings(environment), Report()
        identity = self._identity(environment, "calls:explicit")
        outside = OutsideChanges(self.storage.folder(), identity, "explicit/task/run/-1", clock=self._tick)
        chunks = [Chunk([profile], of) for profile, of in adds]
        chunks += [Chunk([profile], of, "remove") for profile, of in removes]
        limits = Limits(in_flight=1 + action.seed % 4)
        send = partial(send_members, chunks, lambda: wire.members(settings), outside, limits, report)
        return self._end(wire, process, None, send, report)

    def _rules(self, action, *, environment, profile, on_unclear):
        """Update one profile, and have rules run."""
        wire, process = self._begin(action, environment, "calls:rules")
        client = wire.calls(self.settings(environment))
        target = self.target(environment)
        before = self.talon.rule_runs(target)
        request = calls.update_customer_profile(
            profile, attributes={"visits": action.seed}, run_rule_engine=True
        )
        ending, told = "green", False
        try:
            told = client.send(request, on_unclear=on_unclear).may_have_run_twice
        except KilledError:
            ending, told = "killed", True
        except RequestError as error:
            ending, told = type(error).__name__, "rules" in str(error)
        if not process.has_slept:
            runs = self.talon.rule_runs(target) - before
            assert told or runs == (ending == "green"), f"rules ran {runs} times: {ending}"
            assert runs <= 1 or on_unclear == "retry"
        return self._over(process, ending)

    def _begin(self, action, environment, name):
        process = Sleeper(self, action)
        self.outer = self.storage.process
        self.storage.process = process
        wire = Wire(self.talon, process, self.clock, self._faults(action), action.seed)
        wire.writer = environment, name, 0 if environment else self.moves
        return wire, process

    def _hear(self, wire, environment, changes, runs_rules):
        """Note what a request changes."""
        connection, _, moves = wire.writer
        for change in changes:
            adds, removes = (
                [(each, action) for each in some]
                for some, action in (
                    (change.adds, "add"),
                    (change.deletes, "remove"),
                )
            )
            for audience, action in [*adds, *removes]:
                member = environment, change.profile_id, audience
                if action == "remove":
                    for kept in self.storage.kept.values():
                        kept.discard(member[1:])
                # The opposite, whoever makes it, is a reason to make the change anew.
                called = {each for each in self.called.get(member, ()) if each[1] == action}
                _, learnt = self.remade.get((environment, audience), (0, {wire.writer}))
                if runs_rules and wire.writer in learnt:
                    if (wire.writer, action) in called:
                        self.ran_twice.append((wire.writer, *member, action))
                    called.add((wire.writer, action))
                self.called[member] = called
            if not connection and moves < self.moves and environment in self.left_behind:
                self.left_behind[environment] |= {(change.profile_id, each) for each in change.adds}

    def _faults(self, action):
        """Read what is to go wrong: a fault, or an environment's audience that somebody makes anew."""
        return {
            number: fault if isinstance(fault, str) else partial(self._make_again, *fault)
            for number, fault in action.faults.items()
        }

    def _watch(self, wire, ledger):
        """Let no request leave long after its process has lost its lock."""

        def may_send():
            lock = ledger.lock
            claim = f"{ledger.folder.path}/locks/{lock._scope}-{lock.run}.json"
            fresh = self.clock.now - lock.confirmed < lock_module.LEASE
            assert claim in self.storage.objects or fresh, "a request of a process without its lock"

        wire.may_send = may_send

    def _end(self, wire, process, mirror, send, counted=None):
        """Let a process run to its end, whatever that is, and check what it says."""
        outer = self.outer
        if mirror:
            self._watch(wire, mirror.ledger)
        report, ending = None, "green"
        try:
            report = send()
        except RejectedRecordsError as error:
            report, ending = error.report, "rejected"
        except (LedgerError, OlderRunError, RequestError, KilledError) as error:
            ending = type(error).__name__
            if isinstance(error, OlderRunError):
                assert wire.number == 0, "an older run has sent something"
            elif isinstance(error, LedgerError):
                self._judge(error)
        assert report is None or report.balances, report
        assert counted is None or ending == "KilledError" or counted.balances, counted
        self.met["unclear"] += report.unclear if report else 0
        assert not self.ran_twice, f"rules ran again for a change that was made before: {self.ran_twice}"
        self.outer = outer
        return self._over(process, ending)

    def _over(self, process, ending):
        self.storage.process = self.outer
        self.steps += process.steps
        return ending

    @staticmethod
    def _judge(error):
        """Tell an error that may be from one that may not."""
        usual = (
            "in use by",
            "has lost the ledger's lock",
            "was replaced",
            "deleted and made again",
            "deleted or made again",
        )
        usual = (*usual, "parts of the plan are not complete", "The API key or the platform name")
        assert any(each in str(error) for each in usual), str(error)

    def _tick(self):
        return self.clock.now

    def _uuid(self):
        return UUID(int=self.chance.getrandbits(128))

    def _owner(self, environment, name, *, retry):
        key = environment, name
        if not retry or key not in self.instances:
            self.instances[key] = self.instances.get(key, 0) + 1
        return f"{environment}/{name}/{self.instances[key]}/-1"

    def _cursor(self, owner):
        return self.cursors.setdefault(owner, Cursor(self))

    def _data(self, environment, back):
        warehouse = self.warehouses[environment]
        return warehouse.days[max(self.day - back, min(warehouse.days))]

    def _facts(self, settings, back):
        return RunFacts(
            data_until=f"2026-01-{self.day - back:02}T00:00:00+00:00",
            key_fingerprint=settings.key_fingerprint,
            platform_name=settings.platform_name,
        )

    def _identity(self, environment, name, **how):
        return LedgerIdentity(
            deployment_host=HOST,
            base_url="https://integration.talon.one",
            name=name,
            environment=environment,
            **how,
        )

    def _ledger(self, environment, name, **how):
        # No two processes begin at the same time.
        self.clock.now += 0.001
        return Ledger(
            self.storage.folder(),
            self._identity(environment, name, **how),
            sizes=Sizes(batch=BATCH, part=2 * BATCH, ahead=2),
            clock=self._tick,
            sleep=self._pause,
        )

    def _pause(self, seconds):
        self.clock.now += seconds

    # What people do

    def _rows(self, _, *, environment, flips=(), values=(), next_day=False):
        """Change the warehouse."""
        warehouse = self.warehouses[environment]
        if next_day and self.day < 28:
            self.day += 1
            # Not a whole day: a process that sleeps for so long may be forgotten by those that it told.
            self.clock.now += 1000
            for each in self.warehouses.values():
                each.remember(self.day)
        warehouse.members ^= set(flips)
        for profile, name, value in values:
            if name is None:
                warehouse.people.pop(profile, None)
            else:
                warehouse.people.setdefault(profile, dict.fromkeys(NAMES))[name] = value
        warehouse.remember(self.day)

    def _make_again(self, environment, audience, anew):
        target = self.target(environment)
        store = self.talon.store(target)
        if audience in store.audiences():
            store.delete_audience(audience)
        self.by_hand[target] = {each for each in self.by_hand[target] if each[1] != audience}
        self.remakes += 1
        self.remade[target, audience] = self.remakes, set()
        self.called = {
            member: called
            for member, called in self.called.items()
            if (member[0], member[2]) != (target, audience)
        }
        if anew:
            store.create_audience(audience, "by hand")

    def _remake(self, _, *, environment, audience, anew):
        self._make_again(environment, audience, anew)

    def _hand(self, _, *, environment, audience):
        """Add a member whom no task knows."""
        target = self.target(environment)
        store = self.talon.store(target)
        if audience in store.audiences():
            store._by_external[audience].members.add(BY_HAND)
            self.by_hand[target].add((BY_HAND, audience))

    def _refuse(self, _, *, profiles):
        """Have Talon.One refuse these profiles from now on, and no others."""
        self.bad = frozenset(profiles)
        self.talon.service.reject_profiles(self.bad)

    def _rotate(self, _, *, environment):
        self.talon.replace_key(self.target(environment))

    def _move(self, _, *, environment):
        """Put the key of the other environment on the connection that does not say which one it has."""
        assert not environment
        self.moves += 1
        self.met["move"] += 1
        for each in UNNAMED:
            store = self.talon.store(each)
            self.left_behind[each] = {
                (profile, audience) for audience in store.audiences() for profile in store.members(audience)
            }
        self.unnamed = UNNAMED[1 - UNNAMED.index(self.unnamed)]


def _environments(actions):
    """Return the environments in which something happens."""
    for each in actions:
        yield each.of.get("environment")
        yield from _environments(chain.from_iterable(meanwhile for _, meanwhile in each.naps.values()))
        yield from (fault[0] for fault in each.faults.values() if not isinstance(fault, str))


def draw(seed):
    """Make the actions of a history."""
    chance = random.Random(seed)
    second = chance.choice(ENVIRONMENTS[::2])
    return [_action(chance, second, 0) for _ in range(chance.randint(4, 14))]


def _action(chance, second, depth):
    environment = second if chance.random() < 0.4 else "live"
    kind = chance.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    if not environment and chance.random() < 0.1:
        kind = "move"
    of = {"environment": environment} | _KINDS[kind][1](chance)
    if kind == "refuse":
        del of["environment"]
    elif not environment and kind == "mirror" and chance.random() < 0.5:
        of["verify"] = "none"
    if kind not in _STEPS:
        return Action(kind, of)
    # A change that runs rules takes a request of its own.
    longer = 2 if of.get("rules", "none") != "none" else 1
    faults = _faults(chance, environment, 2 if kind == "rules" else 12 * longer)
    dies_at, naps, steps = None, {}, longer * _STEPS[kind]
    match chance.random():
        case end if end < 0.2:
            dies_at = chance.randrange(steps)
        case end if end < 0.55 and depth < 2:
            for _ in range(chance.randint(1, 2)):
                others = _meanwhile(chance, second, depth + 1, kind, of)
                seconds = chance.choice((0.0, 1.0, 20.0, 70.0, 130.0, 800.0))
                naps[chance.randrange(steps)] = seconds, others
    return Action(kind, of, faults, dies_at, naps, chance.randrange(10_000))


def _faults(chance, environment, requests):
    """Make what goes wrong with the first requests of a process."""
    faults = {}
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            fault = chance.choice(list(FAULTS))
            if chance.random() < 0.1:
                fault = environment, chance.choice(AUDIENCES), chance.random() < 0.7
            faults[chance.randrange(requests)] = fault
        if chance.random() < 0.6:
            # An outage.
            first, fault = chance.randrange(8), chance.choice(list(FAULTS))
            faults |= dict.fromkeys(range(first, first + 60), fault)
    return faults


def _meanwhile(chance, second, depth, kind, of):
    """Make the actions that happen while a process sleeps."""
    environment = of["environment"]
    others = [_action(chance, second, depth) for _ in range(chance.randint(0, 3))]
    if kind in ("mirror", "profiles") and chance.random() < 0.7:
        alike = ("environment", "audience", "rules", "verify")
        same = {name: of[name] for name in alike if name in of}
        others.append(Action(kind, same | {"retry": chance.random() < 0.5}, seed=chance.randrange(99)))
    if of.get("pushers") and chance.random() < 0.5:
        again = Action("push", {"environment": environment}, seed=chance.randrange(99))
        others.insert(chance.randint(0, len(others)), again)
    if not environment and chance.random() < 0.3:
        others.insert(chance.randint(0, len(others)), Action("move", {"environment": environment}))
    return others


def _member(chance):
    return chance.choice(PROFILES), chance.choice(AUDIENCES)


def _some(chance, most):
    return [_member(chance) for _ in range(chance.randint(0, most))]


def _sync(chance):
    back = chance.choice((0, 0, 0, 0, 1, 2))
    return {
        "back": back,
        "on_older_run": chance.choice(("fail", "skip", "allow")),
        "retry": chance.random() < 0.4,
        "sends_all": chance.random() < 0.1,
        "retry_rejected": chance.choice(("always", "always", "never")),
    }


def _mirror(chance):
    audience = {"audience": chance.choice(AUDIENCES)} if chance.random() < 0.25 else {}
    rules = {"rules": chance.choice(("none", "none", "changes", "changes", "all"))}
    return _sync(chance) | audience | rules | {"pushers": chance.choice((0, 0, 0, 1, 2, 3))}


def _explicit(chance):
    adds = _some(chance, 8)
    profiles = {profile for profile, _ in adds}
    return {"adds": adds, "removes": [each for each in _some(chance, 8) if each[0] not in profiles]}


def _values(chance):
    names = [*NAMES, None]
    return [(chance.choice(PROFILES), chance.choice(names), chance.choice((None, 0, 1, 2))) for _ in range(8)]


# How often each comes, and its arguments.
_KINDS = MappingProxyType(
    {
        "mirror": (8, _mirror),
        "profiles": (4, lambda chance: _sync(chance) | {"clears": chance.random() < 0.4}),
        "explicit": (5, _explicit),
        "push": (1, lambda _: {}),
        "rules": (
            2,
            lambda chance: {
                "profile": chance.choice(PROFILES[:12]),
                "on_unclear": chance.choice(("fail", "retry")),
            },
        ),
        "rows": (
            8,
            lambda chance: {
                "flips": _some(chance, 14),
                "values": _values(chance),
                "next_day": chance.random() < 0.3,
            },
        ),
        "remake": (1, lambda chance: {"audience": chance.choice(AUDIENCES), "anew": chance.random() < 0.7}),
        "hand": (1, lambda chance: {"audience": chance.choice(AUDIENCES)}),
        "refuse": (2, lambda chance: {"profiles": chance.sample(PROFILES, chance.randint(0, 3))}),
        "rotate": (1, lambda _: {}),
        "move": (0, lambda _: {}),
    }
)
# About how many steps a process has.
_STEPS = {"mirror": 150, "profiles": 60, "explicit": 40, "push": 80, "rules": 5}
