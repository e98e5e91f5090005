"""The tab *Talon.One sync* of a task instance, on Airflow 3.1 and later.

Airflow loads this module in each of its processes, by the entry point ``airflow.plugins``. Only the API
server uses ``fastapi_apps``, which imports ``page``.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

log = logging.getLogger(__name__)
_PREFIX = "talon-cdp"


class TalonCdpPlugin(AirflowPlugin):
    """Adds the tab. Airflow 2.11 uses none of these attributes."""

    name = "talon_cdp"
    external_views = [  # noqa: RUF012 - Airflow's own annotation
        {
            "name": "Talon.One sync",
            # Relative to Airflow's base URL. The run's ID is last, as Airflow 3.1 does not encode it.
            "href": f"{_PREFIX}/sync/{{DAG_ID}}/{{TASK_ID}}/{{MAP_INDEX}}/{{RUN_ID}}",
            "destination": "task_instance",
            "url_route": "talon-cdp-sync",
        }
    ]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return the app that serves the tab.

        It uses parts of Airflow that a later release may move. The API server then starts without it, and
        the tab shows an error.
        """
        try:
            from airflow_provider_talon_cdp.ui.page import app  # noqa: PLC0415
        except ImportError:
            log.warning("The tab Talon.One sync does not work on this release of Airflow.", exc_info=True)
            return []
        return [{"app": app(), "url_prefix": f"/{_PREFIX}", "name": "Talon.One sync"}]
