"""Keeps other runs out of a ledger, as far as an object store without conditional writes can.

```
locks/all-RUN.json              who asks for the whole ledger, or part-00003-RUN.json for one part of its plan
locks/all-RUN.beat.json         that they have it, and when they last said so
```

A run writes its claim once, then looks at the claims of others: it takes over those that are dead or of an earlier try of its
own owner, by deleting them, and gives way to the rest. Its beat says that it has won. A claim is never written again, so one
that is gone has been taken over, and no late write of its run can bring it back. Runs that do things which others must
not miss write first and then look whether their claim is still there: whoever takes over after that look reads what was
written.

What remains: the request that a run had in flight when it was taken over may reach Talon.One after the requests of the other
run. And a run counts as dead when its last beat is `LOCK_LASTS` old by the clock of the run that asks, so clocks must not
differ by more than that less `LOCK_RENEWED`.
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
from typing import NamedTuple

from airflow_provider_talon_cdp.exceptions import LedgerBusyError, LedgerError
from airflow_provider_talon_cdp.ledgers.storage import Folder, names_in, read_json, remove, write_json

log = logging.getLogger(__name__)

LOCK_LASTS = 120.0
LOCK_RENEWED = 20.0
# Seconds between looks at runs that ask for the lock too, and looks at the most.
_PAUSE = 0.2
_LOOKS = 20
_NAME = re.compile(r"(all|part-\d+)-([0-9a-f]+)(\.beat)?\.json")
_ALL = "all"


class Lock:
    """A ledger's lock, or that of one part of its plan, as one run sees it.

    Args:
        folder: The ledger's folder.
        run: Tells this run from all others.
        clock: Seconds since the epoch.
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
        self._ledger = folder
        self._folder = folder / "locks"
        self._run = run
        self._clock = clock
        self._sleep = sleep
        self._scope = _ALL if part is None else f"part-{part:05}"
        self._lost = threading.Event()
        # At all others together: the last one that asks is through with all of them before another one takes it over.
        self._looks = 0
        self.rests = False
        """Whether the claim stays until it is `LOCK_LASTS` old when this run ends, for others who go on with its work."""
        self.turn = 0
        """Greater than that of any run that had the whole ledger before."""

    @contextmanager
    def held(
        self, owner: str, *, last_turn: Callable[[], int] = lambda: 0, waits_for_parts: bool = False
    ) -> Iterator[None]:
        """Take the lock, renew it while the block runs, and give it back.

        Args:
            owner: Who asks.
            last_turn: Looks up the turn of the last run that changed the ledger.
            waits_for_parts: Give way to the same owner's pushes of parts.

        Raises:
            LedgerError: Another owner holds it.
        """
        self.take(owner, last_turn=last_turn, waits_for_parts=waits_for_parts)
        over = threading.Event()
        renewing = threading.Thread(target=self.renew, args=(over,), name="talon-cdp-lock", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            self.give_back()

    def take(
        self, owner: str, *, last_turn: Callable[[], int] = lambda: 0, waits_for_parts: bool = False
    ) -> None:
        """Take the lock, from a dead run or an earlier try of the same owner too.

        Raises:
            LedgerError: Another owner holds it, or a later try of the same one.
        """
        asked = self._clock()
        self._looks = 0
        claim = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "time": asked}
        write_json(self._claim(self._scope, self._run), claim)
        try:
            turns = [
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
            remove(self._claim(self._scope, self._run))
            raise
        self.turn = 1 + max([last_turn(), *turns])
        self._beat()
        self.refuse_lost()

    def renew(self, over: threading.Event) -> None:
        """Say that the run is at work, again and again until it is over or has lost the lock."""
        while not over.wait(LOCK_RENEWED):
            try:
                if not self.is_ours():
                    self._lost.set()
                    return
                self._beat()
            except LedgerError as error:
                log.warning("The ledger's lock could not be renewed: %s", error)

    def give_back(self) -> None:
        """Let others have it."""
        if not self.is_ours():
            return
        if self.rests:
            self._beat(rests=True)
        else:
            self._delete(self._scope, self._run)

    def is_ours(self) -> bool:
        """Whether this run still holds the lock."""
        return read_json(self._claim(self._scope, self._run)) is not None

    def refuse_lost(self, *, look: bool = True) -> None:
        """Stop a run that lost its lock.

        Args:
            look: Whether to ask the storage, or only what was last heard from it, within `LOCK_RENEWED`.

        Raises:
            LedgerError: It did.
        """
        if self._lost.is_set() or (look and not self.is_ours()):
            self._lost.set()
            raise LedgerError(
                f"Another run took over the ledger in {self._ledger}, so this one stops. What it had sent and not recorded, "
                "the other one may send again, which changes nothing."
            )

    def _claim(self, scope: str, run: str) -> Folder:
        return self._folder / f"{scope}-{run}.json"

    def _last_beat(self, scope: str, run: str) -> Folder:
        return self._folder / f"{scope}-{run}.beat.json"

    def _beat(self, *, rests: bool = False) -> None:
        beat = {"time": self._clock(), "turn": self.turn, "rests": rests}
        write_json(self._last_beat(self._scope, self._run), beat)

    def _delete(self, scope: str, run: str) -> None:
        remove(self._claim(scope, run))
        remove(self._last_beat(scope, run))

    def _others(self) -> list[tuple[str, str]]:
        """Scope and run of the claims that bear on this one."""
        found = [name for each in names_in(self._folder) if (name := _NAME.fullmatch(each))]
        claims = {(name[1], name[2]) for name in found if not name[3]}
        for name in found:
            if (name[1], name[2]) not in claims and read_json(self._claim(name[1], name[2])) is None:
                # The last word of a run that was taken over.
                remove(self._last_beat(name[1], name[2]))
        return sorted(
            (scope, run)
            for scope, run in claims
            if run != self._run and (self._scope in (_ALL, scope) or scope == _ALL)
        )

    def _outlast(self, scope: str, run: str, owner: str, asked: float, *, retries: bool) -> int:
        """Take another run's claim over, or see it end; return that run's turn.

        Args:
            scope: What the other run claims.
            run: That run.
            owner: Of this run.
            asked: When this run asked.
            retries: Whether another run of the same owner makes way for this one.

        Raises:
            LedgerError: This run has to give way.
        """
        while (theirs := self._read(scope, run)) is not None:
            is_mine = theirs.owner == owner
            is_later = (asked, self._run) > (theirs.asked, run)
            # Of two tries that ask at the same moment the later one wins; a silent one was killed while it asked.
            yields = theirs.holds or self._looks >= (_LOOKS if is_later else 2 * _LOOKS)
            if self._clock() - theirs.heard >= LOCK_LASTS or (
                is_mine and ((retries and yields) or (theirs.rests and self._scope == _ALL))
            ):
                self.refuse_lost()
                self._delete(scope, run)
                return theirs.turn
            if is_mine and theirs.rests:
                return theirs.turn
            if not (is_mine and retries) and (theirs.holds or is_later or self._looks >= _LOOKS):
                raise self._in_use(theirs)
            self._sleep(_PAUSE)
            self._looks += 1
        return 0

    def _read(self, scope: str, run: str) -> _Claim | None:
        # In this order: a run that ends deletes its claim first.
        beat = read_json(self._last_beat(scope, run)) or {"time": 0.0, "turn": 0, "rests": False}
        claim = read_json(self._claim(scope, run))
        if claim is None:
            return None
        return _Claim(
            owner=claim["owner"],
            where=f"{claim['host']} (process {claim['pid']})",
            asked=claim["time"],
            heard=max(claim["time"], beat["time"]),
            turn=beat["turn"],
            holds=beat["turn"] > 0,
            rests=beat["rests"],
        )

    def _in_use(self, claim: _Claim) -> LedgerBusyError:
        age = self._clock() - claim.heard
        return LedgerBusyError(
            f"The ledger in {self._ledger} is in use by {claim.owner} on {claim.where}, which said so {age:.0f} s ago. Nothing "
            f"was sent. Wait until it ends; if it was killed, its lock ends {LOCK_LASTS:.0f} s after its last word."
        )


class _Claim(NamedTuple):
    """What another run says.

    Args:
        owner: Who it is.
        where: On which machine, in which process.
        asked: When it asked.
        heard: When it said its last word.
        turn: Its turn; 0 while it asks.
        holds: Whether it has what it asked for.
        rests: Whether it has ended, and others of its owner go on.
    """

    owner: str
    where: str
    asked: float
    heard: float
    turn: int
    holds: bool
    rests: bool
