"""Talon.One behind a wire that is not there: the emulator's service, called in the process, by virtual time.

The clients are the real ones. What they take for a session hands their requests to the service, after the
steps of the process that sends, and breaks them off where a fault is due.
"""

from __future__ import annotations

import asyncio
import io
import random
import selectors
from contextlib import asynccontextmanager
from functools import cache, partial

import aiohttp
import requests
from multidict import CIMultiDict
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from airflow_provider_talon_cdp.api.client import TalonCdpClient
from airflow_provider_talon_cdp.api.senders import AttributesSender, MembersSender
from airflow_provider_talon_cdp.api.settings import Settings
from airflow_provider_talon_cdp.emulator.service import EmulatorSettings, Incoming, Service

HOST = "acme.europe-west1.talon.one"
# What happens to a request, and whether it has its effect before that.
FAULTS = {
    "reset before": False,
    "reset after": True,
    "timeout": True,
    "503": False,
    "500 after": True,
    "429": False,
    "429 for long": False,
    "another page": False,
    "cut": True,
    "401": False,
}


class Clock:
    """Virtual time, in seconds."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


class _Timers(selectors.DefaultSelector):
    """Where an event loop would wait, time passes at once."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        self._clock.now += max(timeout, 0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock):
        super().__init__(_Timers(clock))
        self._now = clock

    def time(self):
        return self._now()


def run_in_loop_thread(clock, work):
    """Stand in for ``sync.loop.run_in_loop_thread``: in one thread instead of two, and by virtual time.

    Which of two threads is faster differs from run to run, and a history must not.
    """

    async def main():
        loop = asyncio.get_running_loop()

        def call(job):
            future = loop.create_future()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits for the result
                future.set_exception(error)
            return future

        return await work(call)

    with asyncio.Runner(loop_factory=partial(_Loop, clock)) as runner:
        return runner.run(main())


@cache
def settings_of(environment, key, *, named=True):
    """The settings of a connection; a key's fingerprint takes long to make.

    Args:
        environment: Whose key it is.
        key: Number of the key.
        named: Whether the connection says of which environment it is.
    """
    return Settings(
        api_key=f"{environment}-{key}-0123456789",
        deployment_host=HOST,
        environment=environment if named else "",
        requests_per_second=50,
        timeout=10,
        bulk_retry_seconds=40,
        call_retry_seconds=40,
    )


class Talon:
    """The emulator's service with several environments, each with a key that can be replaced.

    Args:
        environments: Their names.

    Attributes:
        on_change: Called with the wire, the environment, and what was changed there: changes of members, and
            whether rules ran.
        arriving: The wire of the request that is being answered.
    """

    def __init__(self, environments):
        self.on_change = lambda *_: None
        self.arriving = None
        self.keys = dict.fromkeys(environments, 0)
        self.service = Service(
            EmulatorSettings(
                environments={each: settings_of(each, 0).api_key for each in environments},
                deployment_host=HOST,
            )
        )
        for number, each in enumerate(environments):
            store = self.store(each)
            # No two audiences of a deployment have the same internal ID.
            store.load((), {}, 1000 * number + 1)
            store.change = partial(self._change, each, store.change)

    def _change(self, environment, change, changes, *rest, run_rules=False):
        change(changes, *rest, run_rules=run_rules)
        self.on_change(self.arriving, environment, changes, run_rules)

    def settings(self, environment, *, named=True):
        return settings_of(environment, self.keys[environment], named=named)

    def replace_key(self, environment):
        self.keys[environment] += 1
        self.service.environment(environment).key = self.settings(environment).api_key

    def store(self, environment):
        return self.service.environment(environment).store

    def rule_runs(self, environment):
        store = self.store(environment)
        return sum(store.stored_profile(each).rule_runs for each in store.profiles())


class Wire:
    """What one process has instead of a network.

    Args:
        talon: Who answers.
        process: Whose steps these are.
        clock: Virtual time.
        faults: What happens to the n-th request: one of ``FAULTS``, or something to call.
        seed: Of delays and back-offs, and of what becomes of requests in flight when the process goes away.

    Attributes:
        may_send: Asserts that a request may leave at all.
        writer: Whose changes these are: the environment and the name of a ledger.
    """

    connector = None

    def __init__(self, talon, process, clock, faults, seed):
        self.talon = talon
        self.process = process
        self.clock = clock
        self.faults = faults
        self.chance = random.Random(seed)
        self.number = 0
        self.may_send = lambda: None
        self.writer = None

    # The bulk client's session

    @asynccontextmanager
    async def request(self, method, url, *, data, headers, **_):
        fault = self._leave()
        arrive = partial(self._answer, method, str(url), headers, data)
        try:
            self.process.step()
            await asyncio.sleep(self.chance.choice((0.01, 0.05, 0.2, 0.2, 3.0)))
            self.process.step()
        except BaseException:
            # It had left: it may arrive though nobody waits for the answer.
            if self.chance.random() < 0.5:
                arrive()
            raise
        answer = self._meet(fault, arrive)
        if answer is None:
            if fault == "timeout":
                await asyncio.sleep(10)
                raise TimeoutError
            raise aiohttp.ServerDisconnectedError
        self.process.step()
        yield _BulkAnswer(*answer, is_cut=fault == "cut")

    @asynccontextmanager
    async def members(self, settings):
        yield self._client(settings, MembersSender)

    @asynccontextmanager
    async def attributes(self, settings):
        yield self._client(settings, AttributesSender)

    def _client(self, settings, make):
        return make(settings, self, clock=self.clock, sleep=self._back_off, jitter=self.chance.random)

    async def _back_off(self, seconds):
        await asyncio.sleep(seconds)
        self.process.step()

    # The client of single calls

    def calls(self, settings):
        def sleep(seconds):
            self.clock.now += seconds
            self.process.step()

        session = requests.Session()
        session.mount("https://", _Adapter(self))
        return TalonCdpClient(settings, session, clock=self.clock, sleep=sleep, jitter=self.chance.random)

    def call(self, request):
        """Take a single call there and back."""
        fault = self._leave()
        self.process.step()
        arrive = partial(self._answer, request.method, request.url, request.headers, request.body)
        answer = self._meet(fault, arrive)
        if answer is None:
            kind = (
                requests.exceptions.ReadTimeout if fault == "timeout" else requests.exceptions.ConnectionError
            )
            raise kind("no answer")
        self.process.step()
        status, headers, body = answer
        response = requests.Response()
        response.status_code = status
        response.headers.update(headers)
        raw = _CutBody(body) if fault == "cut" else io.BytesIO(body)
        response.raw = HTTPResponse(raw, headers=headers, status=status, preload_content=False)
        return response

    # Both

    def _leave(self):
        self.may_send()
        number, self.number = self.number, self.number + 1
        fault = self.faults.get(number)
        if callable(fault):
            fault()
            return None
        return fault

    def _meet(self, fault, arrive):
        """Return status, headers and body of the answer, or None for no answer."""
        own = arrive() if fault is None or FAULTS[fault] else None
        match fault:
            case "503" | "500 after" | "429" | "401":
                return int(fault[:3]), {}, b"{}"
            case "429 for long":
                return 429, {"Retry-After": "15"}, b"{}"
            case "another page":
                return 200, {"Content-Type": "text/html"}, b"<!doctype html><title>Gateway</title>"
            case None | "cut":
                return own
        return None

    def _answer(self, method, url, headers, body):
        path, _, query = url.removeprefix("https://integration.talon.one").partition("?")
        self.talon.arriving = self
        handling = self.talon.service.handle(
            Incoming(
                method=method,
                path=path.encode(),
                query=query,
                headers=CIMultiDict(headers),
                skip_unknown=[query.partition("=")[2]] if query else [],
                body=body or b"",
            )
        )
        try:
            handling.send(None)
        except StopIteration as end:
            answer, _ = end.value
        content_type = {"Content-Type": answer.media_type} if answer.media_type else {}
        return answer.status, {**answer.headers, **content_type}, answer.body


class _BulkAnswer:
    """What the bulk client reads of an answer."""

    def __init__(self, status, headers, body, *, is_cut):
        self.status = status
        self.headers = CIMultiDict(headers)
        self.content = self
        self._body = body
        self._is_cut = is_cut

    async def iter_any(self):
        if self._is_cut:
            yield self._body[: len(self._body) // 2]
            raise aiohttp.ClientPayloadError("cut")
        if self._body:
            yield self._body

    def close(self):
        """There is no connection."""


class _CutBody(io.BytesIO):
    def read(self, *_):
        raise ConnectionResetError("cut")


class _Adapter(BaseAdapter):
    def __init__(self, wire):
        super().__init__()
        self._wire = wire

    def send(self, request, **_):
        return self._wire.call(request)

    def close(self):
        """There is no connection."""
