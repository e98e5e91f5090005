"""What is imported before memory is measured."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection


def import_all(run: Callable[[], object]) -> None:
    """Import what a run imports.

    A process of its own finds that out: memory that a run here left free would hide growth.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell_imports, args=(run, sender))
    process.start()
    # The child has the other copy: when that is closed too, nothing will come.
    sender.close()
    with receiver:
        names = receiver.recv()
    process.join()
    for name in names:
        # Some import each other in one order only, or are no files.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    # What the imports left free is no part of what they take; kept, it would hide some of what a run takes.
    ctypes.CDLL(None).malloc_trim(0)


def _tell_imports(run: Callable[[], object], sender: Connection) -> None:
    run()
    sender.send([name for name, module in sys.modules.items() if module])
