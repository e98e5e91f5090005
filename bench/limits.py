"""At the API's rate limit: how much of it is used, and how often a request is refused.

The stub lets 60 requests a second pass, ten at once after a pause, and answers within 50 ms; its 429s have no
``Retry-After``.
"""

from __future__ import annotations

import math
from threading import local
from typing import Any

from harness import Bench, Contender, Result
from job import BATCH, Job
from members import HEADERS, PATH, body, in_threads, ours
from report import Section, Target, results_table

LIMIT = 60
SET_SO, SET_TOO_HIGH = "ours, set to 60 a second", "ours, set to 200 a second"


def backing_off(job: Job) -> None:
    """A ``requests.Session`` in each of 16 threads; urllib3 waits after a 429, and retries."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    own = local()

    def send(ids: list[str]) -> None:
        if not hasattr(own, "session"):
            retry = Retry(
                total=50, status_forcelist=[429], allowed_methods=None, backoff_factor=0.1, backoff_max=5
            )
            own.session = requests.Session()
            own.session.mount("http://", HTTPAdapter(max_retries=retry))
        assert own.session.put(job.url + PATH, json=body(ids), headers=HEADERS).status_code == 204

    in_threads(send, job.batches())


def run(bench: Bench) -> Section:
    """Measure us at the limit and above it, and one that backs off."""
    size = bench.rows(1_000_000)
    common: dict[str, Any] = {
        "size": size,
        "requests": math.ceil(size / BATCH),
        "stub": ("--service-time", "0.05", "--rate", str(LIMIT), "--burst", "10"),
    }
    results = bench.medians(
        [
            Contender(label=SET_SO, function=ours, rate=LIMIT, **common),
            Contender(label=SET_TOO_HIGH, function=ours, rate=200, **common),
            Contender(label="requests.Session, 16 threads, urllib3's Retry", function=backing_off, **common),
        ],
    )
    parts = [__doc__.partition("\n\n")[2].strip(), results_table(results)]
    return Section("The rate limit", "\n\n".join(parts), _targets(results[SET_SO], results[SET_TOO_HIGH]))


def _targets(set_so: Result, set_too_high: Result) -> list[Target]:
    share, other = (each.per_second / (LIMIT * BATCH) for each in (set_so, set_too_high))
    refused = set_too_high.throttled / set_too_high.requests
    return [
        Target(
            "60 requests a second, set so",
            ">= 99.5 % of 60,000 members/s, <= 2 429s",
            f"{share:.1%}, {set_so.throttled:.0f}",
            share >= 0.995 and set_so.throttled <= 2,
        ),
        Target(
            "60 requests a second, set to 200",
            ">= 95 % of 60,000 members/s, 429s < 2 % of requests",
            f"{other:.1%}, {refused:.1%}",
            other >= 0.95 and refused < 0.02,
        ),
    ]
