"""Keeps other runs out of a ledger while one is at work on it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledgers.storage import Folder, read_json, remove, write_json

log = logging.getLogger(__name__)

LOCK_LASTS = 120.0
LOCK_RENEWED = 20.0


class Lock:
    """The lock of one ledger, as one run sees it.

    Args:
        folder: The ledger's folder.
        token: Tells this run from all others.
        clock: Seconds since the epoch.
    """

    def __init__(self, folder: Folder, token: str, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._token = token
        self._clock = clock

    @property
    def _path(self) -> Folder:
        return self._folder / "lock.json"

    @contextmanager
    def held(self, owner: str) -> Iterator[None]:
        """Take the lock, renew it while the block runs, and give it back.

        Raises:
            LedgerError: Another owner holds it.
        """
        self.take(owner)
        over = threading.Event()
        renewing = threading.Thread(target=self.renew, args=(owner, over), name="talon-cdp-lock", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            if self.is_ours():
                remove(self._path)

    def take(self, owner: str) -> None:
        """Take the lock, from a dead run or an earlier try of the same owner too.

        Raises:
            LedgerError: Another owner holds it.
        """
        held = read_json(self._path)
        if held and held["owner"] != owner and (age := self._clock() - held["time"]) < LOCK_LASTS:
            raise LedgerError(
                f"The ledger in {self._folder} is in use by {held['owner']} on {held['host']} (process {held['pid']}), which "
                f"said so {age:.0f} s ago. Nothing was sent. Wait until it ends; if it was killed, its lock ends "
                f"{LOCK_LASTS:.0f} s after its last word."
            )
        self.write(owner)

    def write(self, owner: str) -> None:
        """Say that this run is at work now."""
        holder = {"owner": owner, "token": self._token, "host": socket.gethostname(), "pid": os.getpid()}
        write_json(self._path, holder | {"time": self._clock()})

    def renew(self, owner: str, over: threading.Event) -> None:
        """Say so again and again until it is over."""
        while not over.wait(LOCK_RENEWED):
            try:
                if self.is_ours():
                    self.write(owner)
            except LedgerError as error:
                log.warning("The ledger's lock could not be renewed: %s", error)

    def is_ours(self) -> bool:
        """Whether this run holds the lock."""
        held = read_json(self._path)
        return bool(held) and held["token"] == self._token

    def refuse_lost(self) -> None:
        """Stop a run that lost its lock.

        Raises:
            LedgerError: It did.
        """
        if not self.is_ours():
            raise LedgerError(
                f"Another run took over the ledger in {self._folder}, so this one stops. What it had sent and not recorded, "
                "the other one may send again, which changes nothing."
            )
