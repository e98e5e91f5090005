"""The provider's metadata for Airflow."""

from __future__ import annotations

from typing import Any

from airflow_provider_talon_cdp import __version__
from airflow_provider_talon_cdp.connection_form import CONN_TYPE, conn_fields, field_behaviour


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata; Airflow finds this function by its entry point."""
    package = "airflow_provider_talon_cdp"
    name = "Talon.One CDP"
    asset_uris = [
        {
            "schemes": ["talon-cdp"],
            "handler": f"{package}.assets.sanitize_uri",
            "factory": f"{package}.assets.create_asset",
            "to_openlineage_converter": f"{package}.assets.to_openlineage",
        }
    ]
    return {
        "package-name": "airflow-provider-talon-cdp",
        "name": name,
        "description": "Keeps Talon.One audiences and customer profiles in step with a data warehouse.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": name,
                "external-doc-url": "https://docs.talon.one/docs/dev/technology-partners/cdp/overview",
                "tags": ["service"],
            },
            {
                "integration-name": "SQL",
                "external-doc-url": "https://www.iso.org/standard/76583.html",
                "tags": ["software"],
            },
        ],
        "hooks": [{"integration-name": name, "python-modules": [f"{package}.hooks.talon_cdp"]}],
        "operators": [
            {
                "integration-name": name,
                "python-modules": [
                    f"{package}.operators.{module}" for module in ("audience", "members", "profile")
                ],
            }
        ],
        "transfers": [
            {
                "source-integration-name": "SQL",
                "target-integration-name": name,
                "python-module": f"{package}.transfers.{module}",
            }
            for module in ("across_workers", "sql_to_audience", "sql_to_profiles")
        ],
        "asset-uris": asset_uris,
        # The same for Airflow 2.
        "dataset-uris": asset_uris,
        "task-decorators": [
            {"name": "talon_audience", "class-name": f"{package}.decorators.talon_audience_task"},
            {"name": "talon_profiles", "class-name": f"{package}.decorators.talon_profiles_task"},
        ],
        "extra-links": [
            f"{package}.operators._base.{link}" for link in ("CampaignManagerLink", "DeadLettersLink")
        ],
        "config": {
            "talon_cdp": {
                "description": "Options of the Talon.One CDP provider.",
                "options": {
                    "state_uri": {
                        "description": (
                            "Folder of the ledgers, in which syncs record what Talon.One acknowledged: "
                            "an absolute path or a URI of any object storage that Airflow knows. Default: "
                            "talon_cdp in AIRFLOW_HOME, which only works where all tries of a task run on "
                            "one machine: with executors of several machines a mirror refuses it."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://aws_default@bucket/talon_cdp",
                        "default": None,
                    },
                    "pool": {
                        "description": (
                            "Default Airflow pool of the tasks that send many changes. Every such task sends "
                            "at its connection's full rate: with a pool of one slot, tasks that use the "
                            "same API key run one after another. The pool must exist."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "talon_one",
                        "default": None,
                    },
                    "read_ahead": {
                        "description": (
                            "MiB of a query that mode='add' and mode='remove' read ahead onto the worker's "
                            "temporary disk at most, so that the database's cursor is not held open for as "
                            "long as the sending takes. 0 reads only as fast as the changes are sent. "
                            "Default: 1024."
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": None,
                    },
                },
            }
        },
        "connection-types": [
            {
                "connection-type": CONN_TYPE,
                "hook-name": name,
                "hook-class-name": f"{package}.hooks.talon_cdp.TalonCdpHook",
                "conn-fields": conn_fields(),
                "ui-field-behaviour": {
                    key.replace("_", "-"): value for key, value in field_behaviour().items()
                },
            }
        ],
    }
