"""A stand-in for Talon.One."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import AudienceExistsError, NotFoundError, RejectedError


class FakeTalon:
    """Applies chunks after some steps of the event loop; refuses those with a bad profile whole.

    Args:
        bad: Profile IDs that are refused.
        errors: What the n-th request raises, before its effect.
        seed: Of the delays.
        missing: Audiences that do not exist.

    Attributes:
        ids: Internal ID of each audience, which differs once it was deleted and made again.
    """

    pause = 0
    waiting = None

    def __init__(self, bad=(), errors=None, seed=0, missing=()):
        self.members = set()
        self.missing = set(missing)
        self.bad = set(bad)
        self.errors = errors or {}
        self.requests = 0
        self.retries = 0
        self.throttled = 0
        self.before_attempt = lambda: None
        self.in_flight = Counter()
        self.concurrent = self.most_in_flight = 0
        self.sizes = []
        self.ids = {}
        self.calls = []
        self.delays = random.Random(seed)

    async def __call__(self, chunk):
        entries = chunk.entries()
        profiles = [profile for profile, _, _ in entries]
        self.in_flight.update(profiles)
        assert max(self.in_flight.values(), default=1) <= 1, "a profile is in two requests in flight"
        self.sizes.append(len(chunk))
        self.concurrent += 1
        self.most_in_flight = max(self.most_in_flight, self.concurrent)
        try:
            await self._travel()
            if any(not self.missing.isdisjoint([*added, *removed]) for _, added, removed in entries):
                raise error(NotFoundError, 404)
            if not self.bad.isdisjoint(profiles):
                raise RejectedError("bad", method="PUT", path="/", status=400, request_uuid="uuid-1")
            for profile, added, removed in entries:
                self.members |= {(profile, each) for each in added}
                self.members -= {(profile, each) for each in removed}
        finally:
            self.in_flight.subtract(profiles)
            self.concurrent -= 1

    async def update_profile_audiences(self, profile, adds, removes, *, while_in_flight):
        """Change the audiences of one profile, and run rules."""
        self.calls.append((profile, tuple(adds), tuple(removes)))
        with while_in_flight():
            changes = [Change(profile, each, "add") for each in adds]
            await self(Chunk.of([*changes, *(Change(profile, each, "remove") for each in removes)]))

    async def create_audience(self, audience, name):
        """Create an audience where there is none."""
        self.calls.append(("create", audience, name))
        await self._travel()
        if audience in self.ids:
            raise error(AudienceExistsError, 409)
        return self.make(audience)

    async def update_audience(self, audience, name):
        """Rename an audience, and tell which one it is."""
        self.calls.append(("update", audience, name))
        await self._travel()
        if audience not in self.ids:
            raise error(NotFoundError, 404)
        return SimpleNamespace(id=self.ids[audience], created=f"day {self.ids[audience]}")

    async def _travel(self):
        self.before_attempt()
        number, self.requests = self.requests, self.requests + 1
        for _ in range(self.delays.randrange(5)):
            await asyncio.sleep(self.pause)
        if number in self.errors:
            raise self.errors[number]

    def make(self, audience):
        """Make an audience: by hand, or as Talon.One does."""
        self.ids[audience] = next(_NEXT_ID)
        self.missing.discard(audience)
        return SimpleNamespace(id=self.ids[audience], created=f"day {self.ids[audience]}")

    def delete(self, audience):
        """Delete an audience and its members."""
        self.members = {member for member in self.members if member[1] != audience}
        self.ids.pop(audience, None)
        self.missing.add(audience)


class StuckTalon(FakeTalon):
    """Has the first request, with the profile 0, wait until many others have come."""

    async def __call__(self, chunk):
        if chunk.ids[0] == "0" and not self.requests:
            self.in_flight.update(chunk.ids)
            self.requests += 1
            while self.requests < 12:  # noqa: ASYNC110 - the others count them
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            self.in_flight.subtract(chunk.ids)
        await super().__call__(chunk)


_NEXT_ID = itertools.count(100)


class Session:
    """A sender as it is opened once, with counts of its own."""

    def __init__(self, talon):
        self._talon = talon
        self._before = {name: getattr(talon, name) for name in ("requests", "retries", "throttled")}
        self.create_audience = getattr(talon, "create_audience", None)
        self.update_audience = getattr(talon, "update_audience", None)
        self.update_profile_audiences = getattr(talon, "update_profile_audiences", None)

    def __getattr__(self, name):
        return getattr(self._talon, name) - self._before[name]

    async def __call__(self, *request, **how):
        await self._talon(*request, **how)

    @property
    def waiting(self):
        return self._talon.waiting

    @property
    def before_attempt(self):
        return self._talon.before_attempt

    @before_attempt.setter
    def before_attempt(self, check):
        self._talon.before_attempt = check


@asynccontextmanager
async def opened(talon):
    """Open a stand-in as the engine opens a sender."""
    yield Session(talon)


def adds(*profiles, audience="vip"):
    """Make a source's chunk of additions."""
    return Chunk(list(profiles), audience)


def error(kind, status=None):
    return kind("no", method="PUT", path="/", status=status)
