"""The last requests in full, and counts of all of them. Holds no header, no body and no API key."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

KEPT = 1000
NO_ANSWER = "none"


@dataclass(frozen=True)
class LoggedRequest:
    """One request.

    ``time`` is when its answer was ready (RFC 3339, UTC), ``path`` and ``query`` are as sent
    (percent-encoded), ``operation`` is empty for a path that is no call, ``status`` is ``None`` when
    the connection was cut instead of an answer, ``changes`` counts what was asked for: memberships to
    add and delete, attributes to set and delete. ``run_rule_engine`` is what Talon.One would do, not
    what was asked: true as soon as audiences change.
    """

    time: str
    method: str
    path: str
    query: str
    operation: str
    status: int | None
    request_uuid: str
    changes: int
    run_rule_engine: bool | None
    fault: str | None

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return asdict(self)


class RequestLog:
    """Bounded: the last :data:`KEPT` requests, and counters over all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget every request and start counting at zero."""
        with self._lock:
            self._last: deque[LoggedRequest] = deque(maxlen=KEPT)
            self._total = 0
            self._by_status: Counter[str] = Counter()
            self._by_operation: Counter[str] = Counter()

    def add(self, request: LoggedRequest) -> None:
        """Log one request."""
        with self._lock:
            self._last.append(request)
            self._total += 1
            self._by_status[NO_ANSWER if request.status is None else str(request.status)] += 1
            self._by_operation[request.operation or NO_ANSWER] += 1

    def last(self) -> list[LoggedRequest]:
        """The requests that are kept, oldest first."""
        with self._lock:
            return list(self._last)

    def counters(self) -> dict[str, Any]:
        """``total``, ``by_status`` (``"none"`` where a connection was cut) and ``by_operation``."""
        with self._lock:
            return {
                "total": self._total,
                "by_status": dict(sorted(self._by_status.items())),
                "by_operation": dict(sorted(self._by_operation.items())),
            }
