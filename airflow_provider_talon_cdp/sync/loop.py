"""An event loop beside the thread that signals interrupt."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)

# Less than the 60 s after which Airflow kills a task that it has told to end.
_SECONDS_TO_END = 30.0
# Where a signal does not interrupt a wait for a lock, its handler runs so much later.
_SECONDS_BETWEEN_LOOKS = 0.5


def run_apart(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on an event loop in a thread of its own, and wait until it has ended.

    A signal's handler runs in the main thread, and may raise at any place there: Airflow's execution_timeout does. An event
    loop in that thread would drop what is raised in a callback, or lose a task's wake-up with it and wait for ever. So it
    is raised here, where nothing happens; the coroutine is cancelled, and has a while to end in order. A second signal does
    not wait for that, as if the process were killed.

    Raises:
        BaseException: What the coroutine raised, or a signal's handler.
    """
    # Both take the context variables of here along, in which Airflow's log handlers find the task.
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    task = loop.create_task(coroutine)
    # An Event may stay locked for ever when a handler raises inside it.
    bell = threading.Lock()
    bell.acquire()
    over = False
    errors: list[BaseException] = []

    async def ended() -> None:
        await task

    def run() -> None:
        nonlocal over
        try:
            with runner:
                runner.run(ended())
        except BaseException as error:  # noqa: BLE001 - it is raised by the thread that waits
            errors.append(error)
        finally:
            over = True
            bell.release()

    def wait(seconds: float) -> None:
        until = time.monotonic() + seconds
        while not over and time.monotonic() < until:
            bell.acquire(timeout=_SECONDS_BETWEEN_LOOKS)

    try:
        threading.Thread(target=run, name="talon-cdp-push", daemon=True).start()
        wait(float("inf"))
    except BaseException:
        # The loop may have closed just now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        wait(_SECONDS_TO_END)
        if not over:
            log.warning(
                "What was under way has not ended within %.0f s, and is left behind.", _SECONDS_TO_END
            )
        raise
    if errors:
        raise errors.pop()
