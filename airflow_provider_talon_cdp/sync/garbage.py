"""Spares a sync most of the garbage collector's work, nearly all of which finds nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# More new objects than two lists of rows, which live for as long as it takes to read the next list.
_NEW_OBJECTS = 20_000


@contextmanager
def rare_collections() -> Iterator[None]:
    """Leave what is in memory now out of garbage collections, and have fewer of them.

    An Airflow process holds some 200,000 objects for as long as it lives. Each full collection looks through them, and was
    measured to stop a sync for 0.1 s, which the rate limit does not give back, and to take a sixth of its CPU time. Those
    of young objects, after each 700, looked at every row of a source, and took 8 %.
    """
    threshold, *older = gc.get_threshold()
    # Whoever froze some before, to share their memory with another process, wants them to stay so.
    frozen_by_others = gc.get_freeze_count()
    # Freezing would put young objects before old ones, and what is garbage already would be finalized in that order: a file
    # before the generator that closes it.
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
