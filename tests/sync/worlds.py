"""Talon.One over many runs, for the tests of any history."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from types import SimpleNamespace

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    NotFoundError,
    RejectedError,
    TransientError,
    UnclearError,
)
from tests.sync.fakes import error

PROFILES = [
    *(
        "a",
        "A",
        "á",
        "a ",
        " a",
        "a\n",
        "a\r",
        "a\t",
        "a\\",
        "\\t",
        "a\0",
        "\u2028",
        "\x85",
        "ﬀ",
        "😀",
        "\uffff",
    ),
    *("10", "9", "1e1", "audiences", "../..", '"', "x" * 40, "Ω", "z"),
]
AUDIENCES = ["vip", "VIP", "a\tb\n", "😀"]


class World:
    """Talon.One's audiences over many runs, with faults, deletions and members made by hand.

    Args:
        audiences: Those that exist.
        limit: Changes that one request may hold.

    Attributes:
        deletions: How often each audience was deleted.
        lost: Audiences that were deleted since a run last learned which ones they are.
        called: By member, the last action that a call which runs rules may have made.
    """

    def __init__(self, audiences, limit):
        self.audiences = {each: set() for each in audiences}
        self.ids = {each: number for number, each in enumerate(audiences, 1)}
        self._last_id = len(self.ids)
        self.limit = limit
        self.bad = set()
        self.by_hand = set()
        self.may_be_ours = set()
        self.refused_removals = set()
        self.deletions = Counter()
        self.lost = set()
        self.called = {}

    @property
    def members(self):
        return {(profile, audience) for audience, each in self.audiences.items() for profile in each}

    def add_by_hand(self, profile, audience):
        if audience in self.audiences and profile not in self.audiences[audience]:
            self.audiences[audience].add(profile)
            self.by_hand.add((profile, audience))

    def delete(self, audience):
        if self.audiences.pop(audience, None) is not None:
            self.deletions[audience] += 1
            self.lost.add(audience)
        self.by_hand = {member for member in self.by_hand if member[1] != audience}
        self._forget_calls(audience)

    def _forget_calls(self, audience):
        """A call before an audience was made, or made again, has no effect in it."""
        self.called = {member: each for member, each in self.called.items() if member[1] != audience}

    def make(self, audience):
        self._forget_calls(audience)
        self.audiences[audience] = set()
        self._last_id += 1
        self.ids[audience] = self._last_id


class Sender:
    """One run's way to a ``World``.

    Args:
        world: Where members are.
        process: Who sends.
        allowed: Says whether the guard has passed.
        faults: What happens at the n-th request: ``(error, after_effect)``, or the name of an audience that
            somebody deletes.
        seed: Of the delays, and of what becomes of requests in flight when the process goes away.
    """

    retries = throttled = 0
    waiting = None

    def __init__(self, world, process, allowed, faults, seed):
        self.world = world
        self.process = process
        self.allowed = allowed
        self.faults = faults
        self.chance = random.Random(seed)
        self.requests = 0
        self.before_attempt = lambda: None
        self.in_flight = Counter()
        self.refused = set()
        self.identified = set()
        self.missed = False

    async def __call__(self, chunk):
        # After a 404, no change at all is a question: is the audience gone, or the path wrong?
        assert (0 if self.missed else 1) <= len(chunk) <= self.world.limit, f"{len(chunk)} in one request"
        alone = next(chunk.changes())[:2] if len(chunk) == 1 else None
        await self.travel(chunk.ids, lambda: self._apply(chunk), alone)

    async def update_profile_audiences(self, profile, adds, removes, *, while_in_flight):
        """Make changes of one profile, once: no action is repeated before its opposite."""
        chunk = Chunk.of(
            [Change(profile, each, "add", runs_rules=True) for each in adds]
            + [Change(profile, each, "remove", runs_rules=True) for each in removes]
        )
        assert 1 <= len(chunk) <= self.world.limit
        # Whoever took over sees to it that nothing leaves any more.
        self.before_attempt()
        before = {change[:2]: self.world.called.get(change[:2]) for change in chunk.changes()}
        deletions = self.world.deletions.copy()
        alone = next(chunk.changes())[:2] if len(chunk) == 1 else None
        with while_in_flight():
            for change in chunk.changes():
                member = change[:2]
                assert self.world.called.get(member) != change.action, "a call that runs rules is repeated"
                self.world.called[member] = change.action
            try:
                await self.travel([profile], lambda: self._apply(chunk), alone)
            except TransientError as failure:
                raise failure.become(UnclearError, "no clear answer") from failure
            except (RejectedError, AuthenticationError, NotFoundError):
                # It had no effect. Of this call alone: others are in flight.
                for member, action in before.items():
                    if self.world.deletions[member[1]] == deletions[member[1]]:
                        self.world.called[member] = action
                raise

    async def create_audience(self, audience, _):
        def apply():
            if audience in self.world.audiences:
                taken = error(AudienceExistsError, 409)
                taken.repeated = self.chance.random() < 0.5
                return taken
            self.world.make(audience)
            self.process.step()
            return None

        return await self._ask(audience, apply)

    async def update_audience(self, audience, _):
        return await self._ask(
            audience, lambda: None if audience in self.world.audiences else error(NotFoundError, 404)
        )

    async def _ask(self, audience, apply):
        missed = self.missed
        await self.travel([], apply, None)
        self.missed = missed
        self.identified.add(audience)
        return SimpleNamespace(id=self.world.ids[audience], created="")

    async def travel(self, profiles, apply, alone):
        """Take a request to the world and its answer back, unless something is in the way.

        Args:
            profiles: Those in the request.
            apply: Lets the request take effect; returns why it does not.
            alone: What is noted as refused when it is; None where more than one change is in the request.
        """
        self.process.step()
        self.before_attempt()
        assert self.allowed(), "a request left before the guard had passed"
        number, self.requests = self.requests, self.requests + 1
        self.in_flight.update(set(profiles))
        assert max(self.in_flight.values(), default=1) <= 1, "a profile is in two requests in flight"
        try:
            try:
                for _ in range(self.chance.randrange(4)):
                    await asyncio.sleep(0)
                self.process.step()
            except BaseException:
                # It had left: it may arrive though nobody waits for the answer.
                if self.chance.random() < 0.5:
                    apply()
                raise
            fault = self.faults.get(number)
            if isinstance(fault, str):
                self.world.delete(fault)
                self.identified.discard(fault)
                fault = None
            if fault and not fault[1]:
                raise error(fault[0])
            refusal = apply()
            if fault:
                raise error(fault[0])
            if refusal:
                if isinstance(refusal, NotFoundError):
                    self.missed = True
                elif alone:
                    self.refused.add(alone)
                raise refusal
            self.process.step()
        finally:
            self.in_flight.subtract(set(profiles))

    def _apply(self, chunk):
        """Change all memberships or none; return why none."""
        keys = {chunk.keys} if isinstance(chunk.keys, str) else set(chunk.keys)
        if len(chunk) and not keys <= self.world.audiences.keys():
            return error(NotFoundError, 404)
        if not self.world.bad.isdisjoint(chunk.ids):
            if len(chunk) == 1:
                change = next(chunk.changes())
                self.world.refused_removals |= {change[:2]} if change.action == "remove" else set()
            return error(RejectedError, 400)
        if not chunk.runs_rules:
            for member in zip(chunk.ids, chunk.each_key, strict=False):
                self.world.called.pop(member, None)
        for profile, added, removed in chunk.entries():
            for each in added:
                self.world.audiences[each].add(profile)
                self.world.refused_removals.discard((profile, each))
            for each in removed:
                member = (profile, each)
                assert member in self.world.may_be_ours or member not in self.world.members, (
                    "a member that we never added is removed"
                )
                self.world.audiences[each].discard(profile)
                self.world.by_hand.discard(member)
        return None


class ProfileWorld:
    """Talon.One's profiles over many runs: some are refused, and somebody else sets attributes too.

    Attributes:
        profiles: Attributes by profile.
        last: By profile, what was last applied, as JSON.
        called: By profile, the attributes of the last call that may have run rules, until others were sent.
    """

    by_hand = "by hand"

    def __init__(self):
        self.profiles = {}
        self.last = {}
        self.called = {}
        self.bad = set()

    def ours(self, profile):
        """What a profile has but for what others set."""
        attributes = self.profiles.get(profile, {})
        return {name: value for name, value in attributes.items() if name != self.by_hand}


class ProfileSender(Sender):
    """One run's way to a ``ProfileWorld``; the arguments are those of ``Sender``.

    Attributes:
        runs_rules: Whether its calls run rules.
        wanted: Profiles that the source has. Clearing another one is a change of its own, also if its
            attributes were nulls.
    """

    runs_rules = False
    wanted = frozenset()

    async def __call__(self, profile, attributes, *, without_rules, while_in_flight):
        called, call = self.world.called, (profile in self.wanted, attributes)
        if without_rules or not self.runs_rules:
            if called.get(profile) != call:
                called.pop(profile, None)
            await self.travel([profile], lambda: self._set(profile, attributes), profile)
            return
        self.before_attempt()
        before = dict(called)
        with while_in_flight():
            assert called.get(profile) != call, "a call that runs rules is repeated"
            called[profile] = call
            try:
                await self.travel([profile], lambda: self._set(profile, attributes), profile)
            except TransientError as failure:
                raise failure.become(UnclearError, "no clear answer") from failure
            except (RejectedError, AuthenticationError):
                called.pop(profile)
                called.update({profile: before[profile]} if profile in before else {})
                raise

    def _set(self, profile, attributes):
        if profile in self.world.bad:
            return error(RejectedError, 400)
        values = json.loads(attributes)
        assert values, "a request that does nothing"
        assert self.world.by_hand not in values, "an attribute that we never set is changed"
        there = self.world.profiles.get(profile, {}) | values
        self.world.profiles[profile] = {name: value for name, value in there.items() if value is not None}
        self.world.last[profile] = attributes
        return None
