"""Histories: what tasks, people and faults do to two environments of one deployment, from a seed.

A history is a list of actions. An action is a process, which can be killed before any of its steps, or sleep
there while other actions run to their end; or something that happens in the warehouse or in the Campaign
Manager. Time is virtual, and one thread runs at a time, so a seed is always the same history.
"""

from __future__ import annotations

import json
import random
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
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
from tests.faults.wire import FAULTS, HOST, Clock, Talon, Wire, run_apart
from tests.storage import KilledError, Process, Storage
from tests.sync.worlds import PROFILES

ENVIRONMENTS = ("sandbox", "live")
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
    """

    def __init__(self):
        self.clock = Clock()
        self.storage = Storage()
        self.talon = Talon(ENVIRONMENTS)
        self.warehouses = {each: Warehouse() for each in ENVIRONMENTS}
        self.by_hand = {each: set() for each in ENVIRONMENTS}
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

    # How it is played

    def run(self, actions):
        """Play actions, then one clean run of the newest data in each environment, and compare."""
        with ExitStack() as patches:
            for module, name, value in (
                (push_module, "run_apart", partial(run_apart, self.clock)),
                (audiences_module, "run_apart", partial(run_apart, self.clock)),
                (ledger_module, "uuid4", self._uuid),
                (outside_module, "uuid4", self._uuid),
                # The lock's own thread has real time; a process renews its lock before its requests too.
                (lock_module, "LOCK_RENEWED", 1e6),
            ):
                patches.enter_context(mock.patch.object(module, name, value))
            for each in ENVIRONMENTS:
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
        for environment in ENVIRONMENTS:
            self.clock.now += 1000
            for _ in range(2):
                ending = self.play(Action("mirror", {"environment": environment}))
                assert ending in ("green", "rejected"), ending
                self.compare_members(environment)
                ending = self.play(Action("profiles", {"environment": environment, "clears": True}))
                assert ending in ("green", "rejected"), ending
                self.compare_profiles(environment)

    def compare_members(self, environment):
        store, wanted = self.talon.store(environment), self.warehouses[environment].members
        for audience in AUDIENCES:
            there = {each for each in store.members(audience) if each not in self.bad}
            want = {profile for profile, of in wanted if of == audience and profile not in self.bad}
            hand = {profile for profile, of in self.by_hand[environment] if of == audience}
            want |= hand
            assert there == want, (
                f"{environment}, {audience!r}: {there - want} too many, {want - there} missing"
            )

    def compare_profiles(self, environment):
        there = {
            profile: ours
            for profile, attributes in self.talon.store(environment).attributes().items()
            if profile not in self.bad and (ours := {n: attributes[n] for n in NAMES if n in attributes})
        }
        wanted = {
            profile: have
            for profile, values in self.warehouses[environment].people.items()
            if profile not in self.bad and (have := {n: v for n, v in values.items() if v is not None})
        }
        unlike = {each for each in there.keys() | wanted.keys() if there.get(each) != wanted.get(each)}
        assert not unlike, f"{environment}: attributes of {unlike} differ"

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
        pushers=0,
    ):
        """Mirror all audiences, or one under a ledger of its own."""
        name = "sync:all" if audience is None else f"audience:{audience}"
        owner = self._owner(environment, name, retry=retry)
        members, _ = self._data(environment, back)
        managed = list(AUDIENCES) if audience is None else [audience]
        rows = sorted(member for member in members if member[1] in managed)
        random.Random(action.seed).shuffle(rows) if action.seed % 2 else None
        wire, process = self._begin(action)
        settings = self.talon.settings(environment)
        mirror = Mirror(
            source=lambda: iter([*(Chunk([profile], of) for profile, of in rows), Rejection("ID null")]),
            ledger=self._ledger(environment, name),
            guard=Guard(on_empty="allow", max_removal_fraction=1.0),
            sender=lambda: wire.members(settings),
            kind=Members(scope=Scope(managed=managed, sends_all=sends_all)),
            audiences=Audiences(names=dict.fromkeys(managed, "name"), verify="identity"),
            facts=self._facts(settings, back),
            on_older_run=on_older_run,
            retry_rejected=retry_rejected,
            limits=Limits(in_flight=1 + action.seed % 4, max_rejected=1),
        )
        run = self._spread if pushers else lambda mirror, *_: mirror.run(owner, self._cursor(owner))
        return self._end(wire, process, mirror, lambda: run(mirror, owner, wire, settings, pushers))

    def _spread(self, mirror, owner, wire, settings, pushers):
        """One process plans, others push, a last one commits; they sleep and die as if they were one."""
        planned = mirror.hand_over(owner)
        if not planned.unsent or planned.verdict:
            return planned
        plan, parts, name = mirror.ledger.plan, mirror.ledger.parts, mirror.ledger.identity.name
        names = mirror.audiences.named_again(planned)
        environment = mirror.ledger.identity.environment
        pushed = []
        for first in range(min(pushers, parts)):
            ledger = self._ledger(environment, name)
            with ledger.pushing(owner, plan, range(first, parts, min(pushers, parts))) as share:
                self._watch(wire, ledger)
                report = push_share(
                    share, share.batches(), mirror.kind, lambda: wire.members(settings), mirror.limits
                )
                assert report.balances, report
                pushed.append(report.summary())
        ledger, asked = self._ledger(environment, name), Report()
        self._watch(wire, ledger)
        audiences, counts = (
            Audiences(names=names, verify="identity"),
            Counts(additions=dict.fromkeys(names, 1)),
        )
        outcome = ledger.commit(
            owner,
            plan,
            lambda: audiences.check(ledger, counts, {}, lambda: wire.members(settings), asked, after=True),
        )
        report = combined_report(planned, outcome, pushed, 0)
        fail_if_rejected(report, mirror.limits.max_rejected, excused=[CHANGED])
        return report

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
        wire, process = self._begin(action)
        settings = self.talon.settings(environment)
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
        return self._end(wire, process, mirror, lambda: mirror.run(owner))

    def _explicit(self, action, *, environment, adds=(), removes=()):
        """Add members and remove others without a ledger."""
        wire, process = self._begin(action)
        settings = self.talon.settings(environment)
        identity = self._identity(environment, "calls:explicit")
        outside = OutsideChanges(self.storage.folder(), identity, "explicit/task/run/-1", clock=self._tick)
        chunks = [Chunk([profile], of) for profile, of in adds]
        chunks += [Chunk([profile], of, "remove") for profile, of in removes]
        limits = Limits(in_flight=1 + action.seed % 4)
        send = partial(send_members, chunks, lambda: wire.members(settings), outside, limits)
        return self._end(wire, process, None, send)

    def _rules(self, action, *, environment, profile, on_unclear):
        """Update one profile, and have rules run."""
        wire, process = self._begin(action)
        client = wire.calls(self.talon.settings(environment))
        before = self.talon.rule_runs(environment)
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
            runs = self.talon.rule_runs(environment) - before
            assert told or runs == (ending == "green"), f"rules ran {runs} times: {ending}"
            assert runs <= 1 or on_unclear == "retry"
        return self._over(process, ending)

    def _begin(self, action):
        process = Sleeper(self, action)
        self.outer = self.storage.process
        self.storage.process = process
        return Wire(self.talon, process, self.clock, self._faults(action), action.seed), process

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

    def _end(self, wire, process, mirror, send):
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
        self.outer = outer
        return self._over(process, ending)

    def _over(self, process, ending):
        self.storage.process = self.outer
        self.steps += process.steps
        return ending

    @staticmethod
    def _judge(error):
        """Tell an error that may be from one that may not."""
        usual = ("in use by", "took over", "not in force", "deleted and made again", "deleted or made again")
        assert any(each in str(error) for each in (*usual, "parts of the plan are not in")), str(error)

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
        store = self.talon.store(environment)
        if audience in store.audiences():
            store.delete_audience(audience)
        self.by_hand[environment] = {each for each in self.by_hand[environment] if each[1] != audience}
        if anew:
            store.create_audience(audience, "by hand")

    def _remake(self, _, *, environment, audience, anew):
        self._make_again(environment, audience, anew)

    def _hand(self, _, *, environment, audience):
        """Add a member whom no task knows."""
        store = self.talon.store(environment)
        if audience in store.audiences():
            store._by_external[audience].members.add(BY_HAND)
            self.by_hand[environment].add((BY_HAND, audience))

    def _refuse(self, _, *, profiles):
        """Have Talon.One refuse these profiles from now on, and no others."""
        self.bad = frozenset(profiles)
        self.talon.service.reject_profiles(self.bad)

    def _rotate(self, _, *, environment):
        self.talon.replace_key(environment)


def draw(seed):
    """Make the actions of a history."""
    chance = random.Random(seed)
    return [_action(chance, 0) for _ in range(chance.randint(4, 14))]


def _action(chance, depth):
    environment = chance.choice(ENVIRONMENTS) if chance.random() < 0.5 else "live"
    kind = chance.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    of = {"environment": environment} | _KINDS[kind][1](chance)
    if kind == "refuse":
        del of["environment"]
    if kind not in _STEPS:
        return Action(kind, of)
    faults = {}
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            fault = chance.choice(list(FAULTS))
            if chance.random() < 0.1:
                fault = environment, chance.choice(AUDIENCES), chance.random() < 0.7
            faults[chance.randrange(2 if kind == "rules" else 12)] = fault
        if chance.random() < 0.35:
            # An outage.
            first, fault = chance.randrange(8), chance.choice(list(FAULTS))
            faults |= dict.fromkeys(range(first, first + 60), fault)
    dies_at, naps = None, {}
    match chance.random():
        case end if end < 0.2:
            dies_at = chance.randrange(_STEPS[kind])
        case end if end < 0.55 and depth < 2:
            for _ in range(chance.randint(1, 2)):
                others = [_action(chance, depth + 1) for _ in range(chance.randint(0, 3))]
                if kind in ("mirror", "profiles") and chance.random() < 0.7:
                    same = {name: of[name] for name in ("environment", "audience") if name in of}
                    others.append(
                        Action(kind, same | {"retry": chance.random() < 0.5}, seed=chance.randrange(99))
                    )
                naps[chance.randrange(_STEPS[kind])] = (
                    chance.choice((0.0, 1.0, 20.0, 70.0, 130.0, 800.0)),
                    others,
                )
    return Action(kind, of, faults, dies_at, naps, chance.randrange(10_000))


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
    return _sync(chance) | audience | {"pushers": chance.choice((0, 0, 0, 1, 2, 3))}


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
        "explicit": (3, _explicit),
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
        "refuse": (1, lambda chance: {"profiles": chance.sample(PROFILES, chance.randint(0, 3))}),
        "rotate": (1, lambda _: {}),
    }
)
# About how many steps a process has.
_STEPS = {"mirror": 150, "profiles": 60, "explicit": 40, "rules": 5}
