"""Keeps other runs out of a ledger, as far as an object store without conditional writes can.

```
locks/all-RUN.json              who asks for the whole ledger, or part-00003-RUN.json for one part of its plan
locks/all-RUN.heartbeat.json    that they have it, and when they last said so
```

A run writes its claim once, then looks at the claims of others: it takes over those that are dead or of an
earlier try of its own owner, by deleting them, and gives way to the rest. Its heartbeat says that it has won.
A claim is never written again, so one that is gone has been taken over, and no late write of its run can
bring it back. Runs that do things which others must not miss write first and then look whether their claim is
still there: whoever takes over after that look reads what was written.

What remains: a request that a run has in flight when it is taken over may reach Talon.One after the requests
of the other run. So a run sends nothing unless its lock was confirmed lately (``refuse_lost``), and leaves a
note of what was in flight. And a run counts as dead when its last heartbeat is `LOCK_LASTS` old by the clock
of the run that asks, so clocks must not differ by more than that less `LEASE`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from airflow_provider_talon_cdp.exceptions import LedgerBusyError, LedgerError, LedgerUnavailableError
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    names_in,
    read_json,
    remove,
    write_json,
)

log = logging.getLogger(__name__)

LOCK_LASTS = 120.0
"""Seconds after its last heartbeat when a run counts as dead."""
LOCK_RENEWED = 5.0
"""Seconds between heartbeats."""
LEASE = 60.0
"""Seconds for which a run may go on while the storage does not let it confirm its lock."""
# Seconds for which a confirmation is good without another look.
_FRESH = 3 * LOCK_RENEWED
# Seconds between looks at runs that ask for the lock too, and looks at the most.
_PAUSE = 0.2
_LOOKS = 20
# Seconds between attempts, and between log lines, of a run that waits for another owner.
_WAIT = 5.0
_WAIT_TOLD = 30.0
# Earlier versions wrote .beat.json; what is left of them is deleted.
_NAME = re.compile(r"(all|part-\d+)-([0-9a-f]+)(\.heartbeat|\.beat)?\.json")
_ALL = "all"

since_boot: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time
)
"""Seconds by a clock that goes on while the machine is suspended."""


class Lock:
    """A ledger's lock, or that of one part of its plan, as one run sees it.

    Args:
        folder: The ledger's folder.
        run: Tells this run from all others.
        clock: Seconds since the epoch. If it is not the system's, it also measures the age of a confirmation.
        sleep: Waits for so many seconds.
        part: The part; None for the whole ledger.
    """

    def __init__(
        self,
        folder: Folder,
        run: str,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        part: int | None = None,
    ) -> None:
        self.run = run
        self.clock = clock
        self.now = since_boot if clock is time.time else clock
        self._ledger = folder
        self._folder = folder / "locks"
        self._sleep = sleep
        self._scope = _ALL if part is None else f"part-{part:05}"
        self._lost = threading.Event()
        # At all others together: the last one that asks is through with all before another one takes it over.
        self._looks = 0
        self.handed_over = False
        """Whether the claim stays for `LOCK_LASTS` when this run ends, for others who go on with its work."""
        self.fencing_token = 0
        """Greater than that of any run that had the whole ledger before."""
        self.confirmed = 0.0
        """When this run last knew that it had the lock, by a clock that counts suspended time."""

    @contextmanager
    def held(
        self,
        owner: str,
        *,
        last_token: Callable[[], int] = lambda: 0,
        waits_for_parts: bool = False,
        wait: float = 0.0,
    ) -> Iterator[None]:
        """Take the lock, renew it while the block runs, and give it back.

        Args:
            owner: Who asks.
            last_token: Looks up the fencing token of the last run that changed the ledger.
            waits_for_parts: Give way to the same owner's pushes of parts.
            wait: Seconds to wait for another run to end.

        Raises:
            LedgerBusyError: Another owner holds it.
        """
        self._take_within(wait, owner, last_token, waits_for_parts=waits_for_parts)
        over = threading.Event()
        renewing = threading.Thread(target=self.renew, args=(over,), name="talon-cdp-lock", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            try:
                self.give_back()
            except LedgerError as error:
                # It must not hide why the block ended.
                log.warning("The ledger's lock stays for %.0f s:\n%s", LOCK_LASTS, error)

    def _take_within(
        self, wait: float, owner: str, last_token: Callable[[], int], *, waits_for_parts: bool
    ) -> None:
        end, tell_at = self.clock() + wait, self.clock()
        while True:
            try:
                return self.take(owner, last_token=last_token, waits_for_parts=waits_for_parts)
            except LedgerBusyError as error:
                left = end - self.clock()
                if left <= 0:
                    raise
                if self.clock() >= tell_at:
                    log.info("Waiting for another run, %.0f s at the most.\n%s", left, error)
                    tell_at += _WAIT_TOLD
                self._sleep(min(_WAIT, left))

    def take(
        self, owner: str, *, last_token: Callable[[], int] = lambda: 0, waits_for_parts: bool = False
    ) -> None:
        """Take the lock, from a dead run or an earlier try of the same owner too.

        Raises:
            LedgerBusyError: Another owner holds it, or a later try of the same one.
        """
        asked = self.clock()
        self._looks = 0
        claim = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "time": asked}
        write_json(self._claim(self._scope, self.run), claim)
        try:
            tokens = [
                self._outlast(
                    scope,
                    run,
                    owner,
                    asked,
                    retries=scope == self._scope or (self._scope == _ALL and not waits_for_parts),
                )
                for scope, run in self._others()
            ]
        except BaseException:
            remove(self._claim(self._scope, self.run))
            raise
        self.fencing_token = 1 + max([last_token(), *tokens])
        self._say()
        self.confirm()

    def renew(self, over: threading.Event) -> None:
        """Say that the run is at work, again and again until it is over or has lost the lock."""
        while not over.wait(LOCK_RENEWED):
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001 - without this thread the run would go on unconfirmed
                log.warning("The ledger's lock could not be renewed: %s", error)
            if self._lost.is_set():
                return

    def give_back(self) -> None:
        """Let others have it."""
        if not self.is_ours():
            return
        if self.handed_over:
            self._say()
        else:
            self._delete(self._scope, self.run)

    def is_ours(self) -> bool:
        """Whether this run still holds the lock."""
        try:
            return read_json(self._claim(self._scope, self.run)) is not None
        except DamagedError:
            # It is there; what it says is for others.
            return True

    def confirm(self) -> None:
        """Look whether this run still holds the lock; call it after what others must not miss was written.

        Raises:
            LedgerError: It does not, and must stop.
        """
        began = self.now()
        if self._lost.is_set() or not self.is_ours():
            self._lost.set()
            raise self._taken_over()
        self.confirmed = began

    def refuse_lost(self) -> None:
        """Stop a run that may have lost its lock; without a look at the storage where one was not long ago.

        Raises:
            LedgerError: It has, or nothing was heard from the storage for `LEASE` seconds.
        """
        if self.now() - self.confirmed >= _FRESH and not self._lost.is_set():
            cause = None
            try:
                # This process slept, or the storage is slow.
                self._renew()
            except LedgerError as error:
                cause = error
            # It may have slept just now, too, between the look at its claim and here.
            if self.now() - self.confirmed >= LEASE:
                self._lost.set()
                raise self._taken_over() from cause
        if self._lost.is_set():
            raise self._taken_over()

    def _renew(self) -> None:
        began = self.now()
        if not self.is_ours():
            self._lost.set()
            return
        self._say()
        self.confirmed = max(began, self.confirmed)

    def _taken_over(self) -> LedgerUnavailableError:
        return LedgerUnavailableError(
            "Another run took over the ledger, or may have, so this one stops.\n"
            "What it sent and could not record, the next mirror sends again.\n"
            f"Ledger: {self._ledger}"
        )

    def _claim(self, scope: str, run: str) -> Folder:
        return self._folder / f"{scope}-{run}.json"

    def _heartbeat(self, scope: str, run: str) -> Folder:
        return self._folder / f"{scope}-{run}.heartbeat.json"

    def _say(self) -> None:
        heartbeat = {
            "time": self.clock(),
            "fencing_token": self.fencing_token,
            "handed_over": self.handed_over,
        }
        write_json(self._heartbeat(self._scope, self.run), heartbeat)

    def _delete(self, scope: str, run: str) -> None:
        remove(self._claim(scope, run))
        remove(self._heartbeat(scope, run))

    def _others(self) -> list[tuple[str, str]]:
        """Scope and run of the claims that bear on this one."""
        found = [name for each in names_in(self._folder) if (name := _NAME.fullmatch(each))]
        claims = {(name[1], name[2]) for name in found if not name[3]}
        for name in found:
            if (name[1], name[2]) not in claims and _read(self._claim(name[1], name[2])) is None:
                # The last word of a run that was taken over.
                remove(self._folder / name[0])
        return sorted(
            (scope, run)
            for scope, run in claims
            if run != self.run and (self._scope in (_ALL, scope) or scope == _ALL)
        )

    def _outlast(self, scope: str, run: str, owner: str, asked: float, *, retries: bool) -> int:
        """Take another run's claim over, or see it end; return that run's fencing token.

        Args:
            scope: What the other run claims.
            run: That run.
            owner: Of this run.
            asked: When this run asked.
            retries: Whether another run of the same owner makes way for this one.

        Raises:
            LedgerBusyError: This run has to give way.
        """
        while (theirs := self._read_claim(scope, run)) is not None:
            is_mine = theirs.owner == owner
            is_later = (asked, self.run) > (theirs.asked, run)
            # Of two tries that ask at once the later one wins; a silent one was killed while it asked.
            yields = theirs.holds or self._looks >= (_LOOKS if is_later else 2 * _LOOKS)
            if self.clock() - theirs.heard >= LOCK_LASTS or (
                is_mine and ((retries and yields) or (theirs.handed_over and self._scope == _ALL))
            ):
                if not self.is_ours():
                    raise self._taken_over()
                self._delete(scope, run)
                return theirs.fencing_token
            if is_mine and theirs.handed_over:
                return theirs.fencing_token
            if not (is_mine and retries) and (theirs.holds or is_later or self._looks >= _LOOKS):
                raise self._in_use(theirs)
            self._sleep(_PAUSE)
            self._looks += 1
        return 0

    def _read_claim(self, scope: str, run: str) -> _Claim | None:
        # In this order: a run that ends deletes its claim first.
        heartbeat = _read(self._heartbeat(scope, run)) or {}
        claim = _read(self._claim(scope, run))
        if claim is None:
            return None
        # Where a file is damaged, all that it would say is missing: a run that is not heard of is dead.
        asked = claim.get("time", 0.0)
        return _Claim(
            owner=claim.get("owner", ""),
            where=f"{claim.get('host')} (process {claim.get('pid')})",
            asked=asked,
            heard=max(asked, heartbeat.get("time", 0.0)),
            fencing_token=heartbeat.get("fencing_token", 0),
            holds=heartbeat.get("fencing_token", 0) > 0,
            handed_over=heartbeat.get("handed_over", False),
        )

    def _in_use(self, claim: _Claim) -> LedgerBusyError:
        age = self.clock() - claim.heard
        return LedgerBusyError(
            f"The ledger is in use by {claim.owner}\n"
            f"on {claim.where}, heard of {age:.0f} s ago. Nothing was sent.\n"
            f"Wait until it ends. If it was killed, its lock ends {LOCK_LASTS:.0f} s after its last sign.\n"
            f"Ledger: {self._ledger}"
        )


def _read(path: Folder) -> dict[str, Any] | None:
    """Read a lock's file; a damaged one says nothing, but it is there."""
    try:
        content: dict[str, Any] | None = read_json(path)
    except DamagedError:
        return {}
    return content


class _Claim(NamedTuple):
    """What another run says.

    Args:
        owner: Who it is.
        where: On which machine, in which process.
        asked: When it asked.
        heard: When it said its last word.
        fencing_token: Its fencing token; 0 while it asks.
        holds: Whether it has what it asked for.
        handed_over: Whether it has ended, and others of its owner go on.
    """

    owner: str
    where: str
    asked: float
    heard: float
    fencing_token: int
    holds: bool
    handed_over: bool
