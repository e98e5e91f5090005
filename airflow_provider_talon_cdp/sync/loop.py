"""Runs an event loop outside the main thread, which signals interrupt, and stops a sync."""

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

# Less than the 60 s after which Airflow kills a task that it has told to stop.
_SECONDS_TO_END = 30.0
# If a signal does not interrupt a wait, its handler runs up to this much later.
_SECONDS_BETWEEN_LOOKS = 0.5
# More objects than two lists of rows have, which live until the next list is read.
_NEW_OBJECTS = 20_000

CallInReader: TypeAlias = Callable[[Callable[[], Any]], "asyncio.Future[Any]"]
"""Called on an event loop with a function. The function runs in the thread that waits for the loop, in order;
the future gets its result."""

_stopped = threading.Event()


def stop_pushes() -> None:
    """Stop the syncs of this process cleanly: acknowledgements are recorded. Safe in a signal handler."""
    _stopped.set()


@contextmanager
def syncing() -> Iterator[None]:
    """Run one sync with few garbage collections, and discard a stop request for an earlier sync.

    An Airflow process holds about 200,000 objects until it ends. A full collection visits all of them: it was
    measured to pause a sync for 0.1 s, which the rate limit does not make up for, and to take a sixth of its
    CPU time. Collections of young objects, one for every 700 new ones, visited every row of a source and took
    8 %.
    """
    _stopped.clear()
    threshold, *older = gc.get_threshold()
    # Objects may be frozen already, to share their memory with another process. They must stay frozen.
    frozen_by_others = gc.get_freeze_count()
    # Freezing puts young objects before old ones. Without a collection before it, garbage would be finalized
    # in that order: a file before the generator that closes it.
    gc.collect(1)
    gc.freeze()
    # If it is 0, the collector was turned off by somebody else.
    gc.set_threshold(threshold and max(threshold, _NEW_OBJECTS), *older)
    try:
        yield
    finally:
        gc.set_threshold(threshold, *older)
        if not frozen_by_others:
            gc.unfreeze()


def refuse_stopped() -> None:
    """Raise an error if ``stop_pushes`` was called.

    Raises:
        StoppedError: ``stop_pushes`` was called.
    """
    if _stopped.is_set():
        raise StoppedError(
            "The task was told to stop. What Talon.One acknowledged is recorded; a retry sends the rest."
        )


class _CallQueue:
    """Makes calls for an event loop, in the thread that runs ``serve``.

    Not an executor: its futures drop what a signal handler raises in one of their callbacks.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self.is_over = False

    async def run(self, work: Callable[[CallInReader], Coroutine[Any, Any, Any]]) -> Any:
        """Await the work in the loop's thread, unless it was cancelled before it began."""
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        return None if self._cancelled else await work(self.call)

    def cancel(self) -> bool:
        """Cancel the work. Return false if it has not begun; it does not begin any more."""
        self._cancelled = True
        if self._loop is None or self._task is None:
            return False
        # The loop may have closed in the meantime.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    def call(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Queue a call; see ``CallInReader``."""
        future = asyncio.get_running_loop().create_future()
        self._calls.put((future, work))
        return future

    def end(self) -> None:
        """Mark the end of the queue."""
        self._calls.put(None)

    def serve(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        """Make the queued calls until the end of the queue or of the time.

        Args:
            seconds: The longest time.
            check: Called between calls, and at least every half second; may raise.
        """
        until = time.monotonic() + seconds
        while not self.is_over and time.monotonic() < until:
            check()
            with suppress(Empty):
                self._serve(self._calls.get(timeout=_SECONDS_BETWEEN_LOOKS))

    def _serve(self, call: tuple[asyncio.Future[Any], Callable[[], Any]] | None) -> None:
        if call is None:
            self.is_over = True
            return
        future, work = call
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - raised where the result is awaited
            error = raised
        # The loop may have closed already, as a source is closed last.
        with suppress(RuntimeError):
            future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def run_in_loop_thread(work: Callable[[CallInReader], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on an event loop in its own thread, and return its result.

    A signal handler runs in the main thread and may raise anywhere in it; Airflow's execution_timeout does.
    An event loop in that thread would drop what is raised in a callback, or lose a task's wake-up and wait
    forever. Here the handler raises in a thread that only waits and makes the coroutine's blocking calls. The
    coroutine is then cancelled and has 30 seconds to end cleanly. A second signal ends that wait, as a kill
    would.

    Args:
        work: Makes the coroutine; called with a function that makes blocking calls in this thread.

    Raises:
        BaseException: What the coroutine or a signal handler raised.
        StoppedError: ``stop_pushes`` was called.
    """
    refuse_stopped()
    queue = _CallQueue()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        threading.current_thread().name = "talon-cdp-push"
        # threading.Thread does the same, for debuggers and coverage.
        sys.settrace(threading.gettrace())
        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                results.append(runner.run(queue.run(work)))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            errors.append(error)
        finally:
            queue.end()

    # The thread gets the context variables of this one: Airflow's log handlers find the task in them.
    context = contextvars.copy_context()
    try:
        # Thread.start() is Python code: what a signal handler raises in it may become another error.
        _thread.start_new_thread(context.run, (run,))
        queue.serve(float("inf"), refuse_stopped)
    except BaseException:
        if queue.cancel():
            queue.serve(_SECONDS_TO_END)
            if not queue.is_over:
                log.warning(
                    "The push did not stop within %.0f s. The task does not wait for it.", _SECONDS_TO_END
                )
        raise
    if errors:
        raise errors.pop()
    return results.pop()
