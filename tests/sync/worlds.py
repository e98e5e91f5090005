"""Talon.One over many runs, for the tests of any history."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    NotFoundError,
    RejectedError,
    TransientError,
)
from tests.sync.fakes import error


class World:
    """Talon.One's audiences over many runs, with faults, deletions and members made by hand.

    Args:
        audiences: Those that exist.
        limit: Changes that one request may hold.
    """

    def __init__(self, audiences, limit):
        self.audiences = {each: set() for each in audiences}
        self.limit = limit
        self.bad = set()
        self.by_hand = set()
        self.may_be_ours = set()
        self.recreated = set()

    @property
    def members(self):
        return {(profile, audience) for audience, each in self.audiences.items() for profile in each}

    def add_by_hand(self, profile, audience):
        if audience in self.audiences and profile not in self.audiences[audience]:
            self.audiences[audience].add(profile)
            self.by_hand.add((profile, audience))

    def delete(self, audience):
        self.audiences.pop(audience, None)
        self.by_hand = {member for member in self.by_hand if member[1] != audience}


class Sender:
    """One run's way to a ``World``.

    Args:
        world: Where members are.
        process: Who sends.
        allowed: Says whether the guard has passed.
        faults: What happens at the n-th request: ``(error, after_effect)``, or a deleted audience.
        seed: Of the delays, and of what becomes of requests in flight when the process goes away.
    """

    def __init__(self, world, process, allowed, faults, seed):
        self.world = world
        self.process = process
        self.allowed = allowed
        self.faults = faults
        self.chance = random.Random(seed)
        self.requests = 0
        self.retries = 0
        self.throttled = 0
        self.in_flight = Counter()
        self.refused = set()
        self.missed = False

    async def __call__(self, batch):
        entries = batch.entries
        size = sum(len(entry.adds) + len(entry.removes) for entry in entries)
        # After a 404, none at all are a question: is the audience gone, or the path wrong?
        assert (0 if self.missed else 1) <= size <= self.world.limit, f"{size} changes in one request"
        alone = (
            next((profile, *added, *removed) for profile, added, removed in entries) if size == 1 else None
        )
        await self.travel([entry.profile_id for entry in entries], lambda: self._apply(entries), alone)

    async def travel(self, profiles, apply, alone):
        """Take a request to the world and its answer back, unless something is in the way.

        Args:
            profiles: Those in the request.
            apply: Lets the request take effect; returns why it does not.
            alone: What is noted as refused when it is; None where more than one change is in the request.
        """
        self.process.step()
        assert self.allowed(), "a request left before the guard had passed"
        number, self.requests = self.requests, self.requests + 1
        self.in_flight.update(profiles)
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
                fault = None
            if fault and not fault[1]:
                raise error(fault[0])
            refusal = apply()
            if fault:
                raise error(fault[0])
            if refusal:
                self.missed = self.missed or isinstance(refusal, NotFoundError)
                if alone:
                    self.refused.add(alone)
                raise refusal
            self.process.step()
        finally:
            self.in_flight.subtract(profiles)

    def _apply(self, entries):
        """Change all memberships or none; return why none."""
        audiences = {each for entry in entries for each in (*entry.adds, *entry.removes)}
        if not audiences <= self.world.audiences.keys():
            return error(NotFoundError, 404)
        if not self.world.bad.isdisjoint(entry.profile_id for entry in entries):
            return error(RejectedError, 400)
        for profile, added, removed in entries:
            for each in added:
                self.world.audiences[each].add(profile)
            for each in removed:
                member = (profile, each)
                assert member in self.world.may_be_ours or member not in self.world.members, (
                    "a member that we never added is removed"
                )
                self.world.audiences[each].discard(profile)
                self.world.by_hand.discard(member)
        return None

    def create(self, audience, trouble):
        """Create an audience where it does not exist; say whether it did not, or may not have.

        Args:
            audience: Its ID.
            trouble: ``lost before`` or ``lost after`` its effect, ``refused``, or ``repeated`` by the client.
        """
        self.process.step()
        assert self.allowed(), "an audience was created before the guard had passed"
        if trouble == "lost before":
            raise error(TransientError)
        if trouble == "refused":
            raise error(AuthenticationError)
        exists = audience in self.world.audiences
        if not exists:
            self.world.audiences[audience] = set()
            self.world.recreated.add(audience)
            self.process.step()
        if trouble == "lost after":
            raise error(TransientError)
        return not exists or trouble == "repeated"


class ProfileWorld:
    """Talon.One's profiles over many runs: some are refused, and somebody else sets attributes too.

    Attributes:
        profiles: Attributes by profile.
        last: By profile, what was last applied, as JSON.
    """

    by_hand = "by hand"

    def __init__(self):
        self.profiles = {}
        self.last = {}
        self.bad = set()

    def ours(self, profile):
        """What a profile has but for what others set."""
        attributes = self.profiles.get(profile, {})
        return {name: value for name, value in attributes.items() if name != self.by_hand}


class ProfileSender(Sender):
    """One run's way to a ``ProfileWorld``; the arguments are those of ``Sender``."""

    async def __call__(self, profile, attributes):
        await self.travel([profile], lambda: self._set(profile, attributes), profile)

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
