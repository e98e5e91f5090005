"""An event loop beside the thread that signals interrupt, and how a sync is stopped from outside."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from airflow_provider_talon_cdp.exceptions import StoppedError

log = logging.getLogger(__name__)

# Less than the 60 s after which Airflow kills a task that it has told to end.
_SECONDS_TO_END = 30.0
# Where a signal does not interrupt a wait, its handler runs so much later.
_SECONDS_BETWEEN_LOOKS = 0.5
# More new objects than two lists of rows, which live for as long as it takes to read the next list.
_NEW_OBJECTS = 20_000

CallInReader: TypeAlias = Callable[[Callable[[], Any]], "asyncio.Future[Any]"]
"""Has a call made in one certain thread, one after another; takes it on an event loop, and returns its result
to come."""

_stopped = threading.Event()


def stop_pushes() -> None:
    """Stop the syncs of this process in order; what is known is recorded. Safe in a signal's handler."""
    _stopped.set()


@contextmanager
def syncing() -> Iterator[None]:
    """Run one sync, with few garbage collections, and forget a stop that was meant for an earlier one.

    An Airflow process holds some 200,000 objects for as long as it lives. Each full collection looks through
    them, and was measured to stop a sync for 0.1 s, which the rate limit does not give back, and to take a
    sixth of its CPU time. Those of young objects, after each 700, looked at every row of a source, and took 8
    %.
    """
    _stopped.clear()
    threshold, *older = gc.get_threshold()
    # Whoever froze some before, to share their memory with another process, wants them to stay so.
    frozen_by_others = gc.get_freeze_count()
    # Freezing would put young objects before old ones, and what is garbage already would be finalized in that
    # order: a file before the generator that closes it.
    gc.collect(1)
    gc.freeze()
    # Where it is 0, somebody has turned the collector off.
    gc.set_threshold(threshold and max(threshold, _NEW_OBJECTS), *older)
    try:
        yield
    finally:
        gc.set_threshold(threshold, *older)
        if not frozen_by_others:
            gc.unfreeze()


def refuse_stopped() -> None:
    """Raise where ``stop_pushes`` was called.

    Raises:
        StoppedError: It was.
    """
    if _stopped.is_set():
        raise StoppedError(
            "The task was told to stop. What Talon.One acknowledged is recorded; a retry sends the rest."
        )


class _CallQueue:
    """Makes calls for an event loop in the thread that serves it.

    Not by an executor: what a signal's handler raises in a callback of its futures, they would drop.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self.over = False

    async def run(self, work: Callable[[CallInReader], Coroutine[Any, Any, Any]]) -> Any:
        """Await the work on the loop's thread, unless it was cancelled before it began."""
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        return None if self._cancelled else await work(self.call)

    def cancel(self) -> bool:
        """Cancel the work; false where it has not begun, and now will not begin."""
        self._cancelled = True
        if self._loop is None or self._task is None:
            return False
        # The loop may have closed just now.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    def call(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Queue a call; see ``CallInReader``."""
        future = asyncio.get_running_loop().create_future()
        self._calls.put((future, work))
        return future

    def end(self) -> None:
        """Say that nothing more will be queued."""
        self._calls.put(None)

    def serve(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        """Make calls until the end, or for so long.

        Args:
            seconds: The longest time.
            check: Called between calls, at the latest every half second; may raise.
        """
        until = time.monotonic() + seconds
        while not self.over and time.monotonic() < until:
            check()
            with suppress(Empty):
                self._serve(self._calls.get(timeout=_SECONDS_BETWEEN_LOOKS))

    def _serve(self, call: tuple[asyncio.Future[Any], Callable[[], Any]] | None) -> None:
        if call is None:
            self.over = True
            return
        future, work = call
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - it is raised by whoever waits for the result
            error = raised
        # The loop may have closed, when a source is closed last.
        with suppress(RuntimeError):
            future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def run_apart(work: Callable[[CallInReader], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on an event loop in a thread of its own, and return its result when it has ended.

    A signal's handler runs in the main thread, and may raise at any place there: Airflow's execution_timeout
    does. An event loop in that thread would drop what is raised in a callback, or lose a task's wake-up with
    it and wait for ever. So it is raised here, where nothing else happens than what the coroutine has this
    thread do; the coroutine is cancelled, and has a while to end in order. A second signal does not wait for
    that, as if the process were killed.

    Args:
        work: Makes the coroutine; called with what makes calls in this thread, for what blocks.

    Raises:
        BaseException: What the coroutine raised, or a signal's handler.
        StoppedError: ``stop_pushes`` was called.
    """
    refuse_stopped()
    queue = _CallQueue()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        threading.current_thread().name = "talon-cdp-push"
        # As threading.Thread does it, for debuggers and coverage.
        sys.settrace(threading.gettrace())
        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                results.append(runner.run(queue.run(work)))
        except BaseException as error:  # noqa: BLE001 - it is raised by the thread that waits
            errors.append(error)
        finally:
            queue.end()

    # It takes the context variables of here along, in which Airflow's log handlers find the task.
    context = contextvars.copy_context()
    try:
        # Thread.start() is Python code, in which what a signal's handler raises may become another error.
        _thread.start_new_thread(context.run, (run,))
        queue.serve(float("inf"), refuse_stopped)
    except BaseException:
        if queue.cancel():
            queue.serve(_SECONDS_TO_END)
            if not queue.over:
                log.warning(
                    "What was under way has not ended within %.0f s, and is left behind.", _SECONDS_TO_END
                )
        raise
    if errors:
        raise errors.pop()
    return results.pop()
