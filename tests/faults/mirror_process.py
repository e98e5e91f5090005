"""A process that mirrors an audience, to be stopped and killed: the engine and the bulk client alone.

Its argument is a JSON object: ``talon`` (URL), ``host``, ``key``, ``state`` (folder of the ledgers), ``s3``
(URL of an S3 API, or null), ``owner``, ``members`` (numbers for ``range``), ``rules`` and ``sends_all`` (as
in ``Members`` and its scope), ``lasts`` (seconds after which a silent run counts as dead; null for the real
ones), ``stops`` (null, or when it sends itself SIGSTOP: number of a request, and whether its lock was checked
for that request). It says ``ready``, waits for a line, and says ``green`` or the name of an error at its end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import signal
import sys
import threading

from upath import UPath

from airflow_provider_talon_cdp.api.client import AsyncTalonCdpClient, Transport, open_client
from airflow_provider_talon_cdp.api.senders import MembersSender
from airflow_provider_talon_cdp.api.settings import Settings
from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.changes.diff import Scope
from airflow_provider_talon_cdp.exceptions import TalonCdpError
from airflow_provider_talon_cdp.ledger import lock
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, Sizes, ledger_name
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.members import Members
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.push import Limits

BATCH = 50
RATE = 100


def ids(span):
    return [f"customer-{each:06}" for each in range(*span)]


def ledger_of(told):
    options = {"endpoint_url": told["s3"], "key": "a", "secret": "b"} if told["s3"] else {}
    identity = LedgerIdentity(
        deployment_host=told["host"], base_url=told["talon"], name=ledger_name("audience", "vip")
    )
    sizes = Sizes(batch=BATCH, part=10 * BATCH, ahead=8)
    return Ledger(UPath(told["state"], **options), identity, sizes=sizes)


def mirror_of(told):
    settings = Settings(
        api_key=told["key"], deployment_host=told["host"], base_url=told["talon"], requests_per_second=RATE
    )

    def sender():
        return open_client(settings, Transport(), MembersSender, in_flight=8)

    return Mirror(
        source=lambda: iter([Chunk(ids(told["members"]), "vip")]),
        ledger=ledger_of(told),
        guard=Guard(on_empty="allow", max_removal_fraction=1.0),
        sender=sender,
        kind=Members(scope=Scope(sends_all=told["sends_all"]), rules=told["rules"]),
        audiences=Audiences(names={"vip": "VIP"}, verify="identity"),
        limits=Limits(in_flight=8),
    )


def stop_at(number, checked):
    """Stop this process at a request, just before or after the check that it still holds the lock."""
    client = AsyncTalonCdpClient
    pace, send_once = client._pace, client._send_once
    paced, sent, answered = itertools.count(1), itertools.count(1), 0

    async def stop(self, unanswered):
        # No other request passes the check meanwhile, and all that have passed it are answered first.
        async with self._gate:
            while self.requests - answered > unanswered:  # noqa: ASYNC110 - an Event is no shorter
                await asyncio.sleep(0.01)
            # A signal to the process would stop another thread first, and this one might go on for a while.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    async def _pace(self, *arguments):
        left_at = await pace(self, *arguments)
        if next(paced) == number and not checked:
            await stop(self, 0)
        return left_at

    async def _send_once(self, request):
        nonlocal answered
        if next(sent) == number and checked:
            await stop(self, 1)
        try:
            return await send_once(self, request)
        finally:
            answered += 1

    client._pace, client._send_once = _pace, _send_once


def say(word):
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main():
    told = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    if told["lasts"]:
        lock.LOCK_LASTS = told["lasts"]
        lock.LEASE, lock._FRESH, lock.LOCK_RENEWED = (told["lasts"] / each for each in (2, 8, 24))
    if told["stops"]:
        stop_at(*told["stops"])
    mirror = mirror_of(told)
    say("ready")
    sys.stdin.readline()
    try:
        report = mirror.run(told["owner"])
    except TalonCdpError as error:
        logging.getLogger(__name__).exception("red")
        say(type(error).__name__)
    else:
        assert report.balances
        say("green")


if __name__ == "__main__":
    main()
