"""Where a ledger's files are, by what it belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from urllib.parse import quote

from airflow_provider_talon_cdp.ledgers.storage import Folder, as_folder

_READABLE = 60


def ledger_folder(state: Folder, identity: Mapping[str, str]) -> Folder:
    """Return the folder of a ledger; a part of its name is for people, and a part tells it from all others."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    readable = re.sub(r"[^\w.-]", "_", quote(identity["name"], safe=""))[:_READABLE]
    return as_folder(state) / identity["deployment_host"] / f"{readable}-{key}"


def sync_ledger_name(name: str) -> str:
    """Name a ledger of many audiences.

    Args:
        name: As in ``profiles_ledger_name``.
    """
    return f"sync:{name}"


def profiles_ledger_name(name: str) -> str:
    """Name a ledger of profiles.

    Args:
        name: As the operator has it, or DAG and task ID with a full stop between.
    """
    return f"profiles:{name}"
