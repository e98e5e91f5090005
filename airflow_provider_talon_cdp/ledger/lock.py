"""Keeps other runs out of a ledger, within the limits of an object store without conditional writes.

```
locks/all-RUN.json              the claim of a run on the ledger; part-00003-RUN.json on one part of its plan
locks/all-RUN.heartbeat.json    that the run holds the lock, and the time of its last heartbeat
```

A run writes its claim once, then reads the claims of others. It deletes those of dead runs and of earlier
tries of its own owner, and gives way to the others. Its heartbeat says that it holds the lock. A claim is
never written again: if it is missing, another run has taken over, and a late write cannot restore it. A run
that writes what others must not miss writes first and then checks that its claim still exists. So a run that
takes over after that check reads what was written.

A manifest may arrive long after its run was taken over, or after its write has failed. It sorts first then,
as its fencing token is smaller than those of later runs. The last manifest has the last token. If no manifest
of such a run has arrived, its heartbeat keeps the token, also without a claim. The next run that holds the
ledger's lock deletes that heartbeat, and leaves its own instead unless it writes a manifest.

The limits: a request that is in flight when its run is taken over may reach Talon.One after requests of the
other run. So a run sends nothing unless its lock was confirmed recently (``raise_if_lost``), and notes what
was in flight. A run counts as dead when its last heartbeat is `LOCK_LASTS` old by the clock of the
run that asks, so clocks must not differ by more than `LOCK_LASTS` less `LEASE`. If a hypervisor pauses a
virtual machine, no clock in it counts the pause, and a run there may send until its next heartbeat.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from airflow_provider_talon_cdp.exceptions import LedgerBusyError, LedgerError, LedgerUnavailableError
from airflow_provider_talon_cdp.ledger.format import last_fencing_token
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
"""A run counts as dead this many seconds after its last heartbeat."""
LOCK_RENEWED = 5.0
"""Seconds between heartbeats."""
LEASE = 60.0
"""Seconds for which a run may send without confirming its lock, for example while the storage fails."""
# Seconds for which a confirmation is valid without reading the claim again.
_FRESH = 3 * LOCK_RENEWED
# Seconds between reads of the claim of a run that asks for the lock too, and most reads.
_PAUSE = 0.2
_MAX_READS = 20
# Earlier versions wrote .beat.json files, which are deleted.
_NAME = re.compile(r"(all|part-\d+)-([0-9a-f]+)(\.heartbeat|\.beat)?\.json")
_ALL = "all"

since_boot: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time
)
"""Returns seconds of a clock that also counts while the machine is suspended."""


class Lock:
    """A ledger's lock, or that of one part of its plan, as one run sees it.

    Args:
        folder: The ledger's folder.
        run: ID of this run.
        clock: Returns seconds since the epoch. Another clock than the system's also measures the age of a
            confirmation.
        sleep: Waits for a number of seconds.
        part: Number of the part; None for the ledger.
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
        # Counts the reads of all other claims together, so that a run has read all before it is taken over.
        self._reads = 0
        self.handed_over = False
        """Whether the claim stays for `LOCK_LASTS` after this run, for others that continue its work."""
        self.fencing_token = 0
        """Greater than that of any run that held the ledger's lock before."""
        self.keeps_heartbeat = False
        """Whether the heartbeat stays when this run ends, as no manifest has the last fencing token."""
        self.confirmed = 0.0
        """When this run last confirmed its lock, in seconds of ``now``."""

    @contextmanager
    def held(self, owner: str, *, waits_for_parts: bool = False) -> Iterator[None]:
        """Take the lock, renew it while the block runs, and release it.

        Args:
            owner: Owner of this run, such as a task.
            waits_for_parts: Whether to give way to the same owner's pushes of parts.

        Raises:
            LedgerBusyError: Another owner holds it.
        """
        self.take(owner, waits_for_parts=waits_for_parts)
        stop = threading.Event()
        heartbeat = threading.Thread(target=self.renew, args=(stop,), name="talon-cdp-lock", daemon=True)
        heartbeat.start()
        try:
            yield
        finally:
            stop.set()
            heartbeat.join()
            try:
                self.give_back()
            except LedgerError as error:
                # Not raised, as it would hide an error of the block.
                log.warning(
                    "The ledger's lock was not released. Other runs must wait %.0f s:\n%s", LOCK_LASTS, error
                )

    def take(self, owner: str, *, waits_for_parts: bool = False) -> None:
        """Take the lock, also from a dead run or an earlier try of the same owner.

        Raises:
            LedgerBusyError: Another owner holds it, or a later try of the same owner.
        """
        asked = self.clock()
        self._reads = 0
        claim = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "time": asked}
        write_json(self._path(self._scope, self.run), claim)
        try:
            others, ended = self._others()
            tokens = [_token_in(heartbeat) for heartbeat in ended]
            for scope, run in others:
                retries = scope == self._scope or (self._scope == _ALL and not waits_for_parts)
                tokens.append(self._take_over(scope, run, owner, asked, retries=retries))
                ended.append(self._path(scope, run, ".heartbeat"))
        except BaseException:
            remove(self._path(self._scope, self.run))
            raise
        # Runs that push a part write no manifest.
        if self._scope == _ALL:
            tokens.append(last_fencing_token(self._ledger))
        self.fencing_token = 1 + max(tokens, default=0)
        self._write_heartbeat()
        self.confirm()
        if self._scope == _ALL:
            self.keeps_heartbeat = bool(ended)
            with suppress(LedgerError):
                for heartbeat in ended:
                    remove(heartbeat)

    def renew(self, stop: threading.Event) -> None:
        """Write heartbeats until ``stop`` is set or the lock is lost."""
        while not stop.wait(LOCK_RENEWED):
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001 - without this thread the run would go on unconfirmed
                log.warning("The ledger's lock could not be renewed: %s", error)
            if self._lost.is_set():
                return

    def give_back(self) -> None:
        """Release the lock, unless another run has taken over."""
        if not self.is_ours():
            return
        if self.handed_over:
            self._write_heartbeat()
            return
        remove(self._path(self._scope, self.run))
        if not self.keeps_heartbeat:
            remove(self._path(self._scope, self.run, ".heartbeat"))

    def is_ours(self) -> bool:
        """Whether this run still holds the lock."""
        try:
            return read_json(self._path(self._scope, self.run)) is not None
        except DamagedError:
            # The claim exists; only other runs need its content.
            return True

    def confirm(self) -> None:
        """Check that this run still holds the lock. Call it after writing what others must not miss.

        Raises:
            LedgerError: This run has lost the lock, and must stop.
        """
        began = self.now()
        if self._lost.is_set() or not self.is_ours():
            self._lost.set()
            raise self._taken_over()
        self.confirmed = began

    def raise_if_lost(self) -> None:
        """Stop a run that may have lost its lock. Reads the storage only if the last confirmation is old.

        Raises:
            LedgerError: This run has lost the lock, or could not confirm it for `LEASE` seconds.
        """
        if self.now() - self.confirmed >= _FRESH and not self._lost.is_set():
            cause = None
            try:
                # The process was suspended, or the storage is slow.
                self._renew()
            except LedgerError as error:
                cause = error
            # The process may also have been suspended after it read its claim.
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
        self._write_heartbeat()
        self.confirmed = max(began, self.confirmed)

    def _taken_over(self) -> LedgerUnavailableError:
        return LedgerUnavailableError(
            "This run has lost the ledger's lock, or cannot confirm that it still holds it, so it stops.\n"
            "The next mirror sends again what this run sent and could not record.\n"
            f"Ledger: {self._ledger}"
        )

    def _path(self, scope: str, run: str, end: str = "") -> Folder:
        return self._folder / f"{scope}-{run}{end}.json"

    def _write_heartbeat(self) -> None:
        heartbeat = {
            "time": self.clock(),
            "fencing_token": self.fencing_token,
            "handed_over": self.handed_over,
        }
        write_json(self._path(self._scope, self.run, ".heartbeat"), heartbeat)

    def _others(self) -> tuple[list[tuple[str, str]], list[Folder]]:
        """Return scope and run of the claims that conflict with this one, and heartbeats without a claim."""
        found = [match for name in names_in(self._folder) if (match := _NAME.fullmatch(name))]
        claims = {(match[1], match[2]) for match in found if not match[3]}
        ended = [
            self._folder / match[0]
            for match in (found if self._scope == _ALL else ())
            if (match[1], match[2]) not in claims and _read(self._path(match[1], match[2])) is None
        ]
        others = sorted(
            (scope, run)
            for scope, run in claims
            if run != self.run and (self._scope in (_ALL, scope) or scope == _ALL)
        )
        return others, ended

    def _take_over(self, scope: str, run: str, owner: str, asked: float, *, retries: bool) -> int:
        """Take over another run's claim, or wait for its end; return that run's fencing token.

        Raises:
            LedgerBusyError: This run has to give way.
        """
        while (theirs := self._read_claim(scope, run)) is not None:
            is_mine = theirs.owner == owner
            is_later = (asked, self.run) > (theirs.asked, run)
            # Of two tries that ask at the same time, the later one wins, unless it was killed meanwhile.
            yields = theirs.fencing_token or self._reads >= (_MAX_READS if is_later else 2 * _MAX_READS)
            if self.clock() - theirs.heard >= LOCK_LASTS or (
                is_mine and ((retries and yields) or (theirs.handed_over and self._scope == _ALL))
            ):
                if not self.is_ours():
                    raise self._taken_over()
                remove(self._path(scope, run))
                if self._read_claim(scope, run):
                    # The storage has not deleted it, and has not reported that as an error.
                    raise self._in_use(theirs)
                break
            if is_mine and theirs.handed_over:
                return theirs.fencing_token
            if not (is_mine and retries) and (theirs.fencing_token or is_later or self._reads >= _MAX_READS):
                raise self._in_use(theirs)
            self._sleep(_PAUSE)
            self._reads += 1
        # Not earlier: the run may have written its heartbeat after it was read with the claim.
        return _token_in(self._path(scope, run, ".heartbeat"))

    def _read_claim(self, scope: str, run: str) -> _Claim | None:
        # In this order, as a run that ends deletes its claim first.
        heartbeat = _read(self._path(scope, run, ".heartbeat")) or {}
        claim = _read(self._path(scope, run))
        if claim is None:
            return None
        # A damaged file is read as empty. Without the time of a heartbeat, the run counts as dead.
        asked = claim.get("time", 0.0)
        return _Claim(
            owner=claim.get("owner", ""),
            where=f"{claim.get('host')} (process {claim.get('pid')})",
            asked=asked,
            heard=max(asked, heartbeat.get("time", 0.0)),
            fencing_token=heartbeat.get("fencing_token", 0),
            handed_over=heartbeat.get("handed_over", False),
        )

    def _in_use(self, claim: _Claim) -> LedgerBusyError:
        age = self.clock() - claim.heard
        return LedgerBusyError(
            f"The ledger is in use by {claim.owner}\n"
            f"on {claim.where}, whose last heartbeat was {age:.0f} s ago. Nothing was sent.\n"
            f"Wait until it ends. If it was killed, its lock ends {LOCK_LASTS:.0f} s after that heartbeat.\n"
            f"Ledger: {self._ledger}"
        )


def _read(path: Folder) -> dict[str, Any] | None:
    """Read a lock's file; empty if it is damaged, None if it does not exist."""
    try:
        content: dict[str, Any] | None = read_json(path)
    except DamagedError:
        return {}
    return content


def _token_in(heartbeat: Folder) -> int:
    token: int = (_read(heartbeat) or {}).get("fencing_token", 0)
    return token


class _Claim(NamedTuple):
    """The claim and the heartbeat of another run.

    Args:
        owner: Its owner.
        where: Its host and process.
        asked: When it wrote its claim.
        heard: When it wrote its last heartbeat, or its claim.
        fencing_token: Its fencing token; 0 while it asks.
        handed_over: Whether it has ended, and other runs of its owner continue its work.
    """

    owner: str
    where: str
    asked: float
    heard: float
    fencing_token: int
    handed_over: bool
