"""What the next try of a task finds: the plan that this one was sending, in Airflow's task state store (3.3 and later)."""

from __future__ import annotations

import hashlib
from typing import Any

from airflow.providers.common.compat.sdk import Context

_KEY = "talon_cdp_plan"


class TaskCursor:
    """The version of the plan that this task is sending.

    A try whose input differs does not see it: whoever mends a wrong query and clears the task wants no more of the
    old plan.

    Args:
        store: ``context["task_state_store"]``.
        told: What the plan depends on, apart from the data: anything with a ``repr`` that says it all.
    """

    def __init__(self, store: Any, told: object) -> None:
        self._store = store
        self._fingerprint = hashlib.sha256(repr(told).encode(errors="backslashreplace")).hexdigest()

    def get(self) -> int:
        """Return the version, or 0."""
        kept = self._store.get(_KEY)
        return int(kept["version"]) if kept and kept["fingerprint"] == self._fingerprint else 0

    def set(self, version: int) -> None:
        """Keep the version; 0 forgets it, so that a task which is cleared after its success starts anew."""
        if version:
            self._store.set(_KEY, {"version": version, "fingerprint": self._fingerprint})
        else:
            self._store.delete(_KEY)


def task_cursor(context: Context, told: object) -> TaskCursor | None:
    """Return the cursor, or None where this Airflow has no task state store."""
    store = context.get("task_state_store")
    return None if store is None else TaskCursor(store, told)
