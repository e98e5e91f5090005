"""Whether the audiences of a mirror exist, and are the ones that its ledger knows.

The CDP API has no call to read audiences. Only two calls help: *Update audience* returns the internal ID and
the time of creation, which differ if the audience was deleted and recreated, or a 404. Adding a known member
changes nothing, and is answered with a 404 if the audience does not exist any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.contract import Verify, check_in_path
from airflow_provider_talon_cdp.exceptions import AudienceExistsError, NotFoundError, RequestError
from airflow_provider_talon_cdp.ledger.ledger import Ledger
from airflow_provider_talon_cdp.sync.loop import run_in_loop_thread

log = logging.getLogger(__name__)

# Audiences that are checked at once.
_AT_ONCE = 8
_CONNECT = "Connect it to your Applications in the Campaign Manager if campaigns should use it."


@dataclass(kw_only=True)
class Audiences:
    """Creates audiences and checks them.

    Args:
        names: Name by audience ID, of audiences to create if they do not exist; filled while the source is
            read. A name that was changed in Talon.One is set back.
        verify: ``identity``: an update, for audiences in ``names``. ``exists``: an add of a known
            member. ``none``: no request.
        creates: Whether to create audiences that do not exist, or only to collect them in ``missing``.
        state_uri: Where the ledgers are, for the text of a warning.

    Attributes:
        known: What Talon.One answered about each audience, for the ledger.
        missing: Names of the audiences that were not created, by ID.
        key_has_changed: Whether the API key differs from that of the last run, so that every audience is
            checked.
        environment_may_differ: Whether audiences may be those of another environment or platform.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    verify: Verify = "exists"
    state_uri: str = ""
    creates: bool = True
    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    key_has_changed: bool = False
    environment_may_differ: bool = False

    def check(
        self,
        ledger: Ledger,
        counts: Counts,
        witnesses: Mapping[str, str],
        sender: Callable[[], AbstractAsyncContextManager[Any]],
        requests: Counts,
        *,
        after: bool = False,
    ) -> Collection[str]:
        """Create audiences that do not exist, and check that the others are those that the ledger knows.

        Args:
            ledger: Notes the audiences that have lost their members.
            counts: The plan's counts.
            witnesses: By audience, a member that both the ledger and the source have.
            sender: Opens the sender.
            requests: Counts the requests.
            after: Whether the plan was sent already, so that only the audiences that it changes are checked.

        Returns:
            Audiences whose members Talon.One has lost, or may not have.

        Raises:
            NotFoundError: An audience does not exist, and is not in ``names``.
            InvalidInputError: An audience in ``names`` has an ID that cannot be part of a URL's path.
            RequestError: A request failed.
        """
        self.known = {**ledger.facts.audiences, **self.known}
        # All that the ledger has of an audience may be members whose calls got no clear answer.
        withheld = set() if after else {audience for _, audience in ledger.withheld()}
        withheld.difference_update(ledger.unmanaged(withheld))
        wanted = sorted(counts.audiences if after else counts.known.keys() | counts.audiences | withheld)
        # An audience that Talon.One did not know in an earlier run may have to be created again.
        suspected = ledger.suspected & self.names.keys()
        asked = [key for key in wanted if key in suspected or self._must_check(key, witnesses, after=after)]
        if not asked:
            return ()
        for audience in self.names.keys() & asked:
            check_in_path("audience_id", audience)
        lost: list[str] = []

        async def ask_all() -> None:
            places = asyncio.Semaphore(_AT_ONCE)
            # One profile may be the witness of several audiences, and must not be in two requests at once.
            locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
            async with sender() as opened:
                opened.before_attempt = ledger.lock.raise_if_lost

                async def ask(audience: str) -> None:
                    name = self.names.get(audience)
                    if name is None:
                        witness = witnesses[audience]
                        async with locks[witness], places:
                            await self._add_witness(audience, witness, ledger, opened)
                        if self.environment_may_differ:
                            lost.append(audience)
                        return
                    async with places:
                        has_members = after or audience in withheld or bool(counts.known[audience])
                        if await self._has_lost(audience, name, ledger, opened, has_members=has_members):
                            lost.append(audience)

                try:
                    async with asyncio.TaskGroup() as group:
                        for audience in asked:
                            group.create_task(ask(audience))
                finally:
                    requests.requests += opened.requests
                    requests.retries += opened.retries
                    requests.throttled += opened.throttled

        try:
            run_in_loop_thread(lambda _: ask_all())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self.known = {key: answer for key, answer in self.known.items() if key not in self.missing}
        # The others exist, and may be those of another environment or platform.
        ledger.note_resend(set(lost) - ledger.suspected)
        return lost

    def names_to_recheck(self, counts: Counts) -> dict[str, str]:
        """Return the names of the plan's audiences that are checked again after the push."""
        return {key: self.names[key] for key in counts.audiences if self._must_check(key, {}, after=True)}

    def _must_check(self, audience: str, witnesses: Mapping[str, str], *, after: bool) -> bool:
        if audience in self.names and not after and audience not in self.known:
            # The audience may have to be created.
            return True
        if self.verify == "none" and not self.key_has_changed:
            return False
        if audience in self.names:
            return self.verify == "identity" or self.key_has_changed
        return not after and audience in witnesses

    async def _has_lost(
        self, audience: str, name: str, ledger: Ledger, sender: Any, *, has_members: bool
    ) -> bool:
        if audience in self.missing:
            return False
        if audience in self.known or has_members:
            try:
                answer = await sender.update_audience(audience, name)
            except NotFoundError:
                ledger.suspect([audience])
            else:
                return self._is_another(audience, answer, ledger) and has_members
        if not self.creates:
            self.missing[audience] = name
            return has_members
        try:
            answer = await sender.create_audience(audience, name)
        except AudienceExistsError as error:
            answer = await sender.update_audience(audience, name)
            if error.repeated:
                log.warning("Audience %r exists, and may have been created just now.\n%s", audience, _CONNECT)
            else:
                log.warning(
                    "The ledger is new, and audience %r exists already. Members that are in it now and\n"
                    "that the query does not return stay.\n"
                    "If an earlier run filled it, its ledger is lost or elsewhere. Check that "
                    "state_uri is a folder that all workers share.\n"
                    "state_uri: %s",
                    audience,
                    self.state_uri,
                )
        except RequestError as error:
            # The audience may have been created nevertheless, without the members that the ledger has.
            if has_members and (error.repeated or error.is_unclear):
                ledger.suspect([audience])
            raise
        else:
            log.info("Created audience %r.\n%s", audience, _CONNECT)
        self._learn(audience, answer)
        return has_members

    def _is_another(self, audience: str, answer: Any, ledger: Ledger) -> bool:
        before = self.known.get(audience)
        self._learn(audience, answer)
        if before is None and self.environment_may_differ:
            return True
        if before is None or _identity(before) == _identity(self.known[audience]):
            return False
        log.warning("Audience %r was deleted and made again since the last run.", audience)
        ledger.suspect([audience])
        return True

    def _learn(self, audience: str, answer: Any) -> None:
        self.known[audience] = {"id": answer.id, "created": answer.created}

    async def _add_witness(self, audience: str, profile_id: str, ledger: Ledger, sender: Any) -> None:
        try:
            await sender(Chunk([profile_id], audience))
        except NotFoundError as error:
            ledger.suspect([audience])
            error.explain(
                f"Audience {audience!r} of this mirror does not exist any more.\n"
                "Create it with CreateAudienceOperator, or pass audience_name, so that the mirror "
                "creates it and sends all members again."
            )
            raise


def _identity(answer: Mapping[str, Any]) -> tuple[Any, str]:
    """Return an audience's internal ID and time of creation, which responses may write in several ways."""
    created = str(answer["created"])
    with suppress(ValueError):
        created = datetime.fromisoformat(created).astimezone(UTC).isoformat(timespec="seconds")
    return answer["id"], created
