"""The connection form, defined once for every Airflow version.

Airflow 3.2 and later read ``conn_fields()`` from the provider's metadata without importing the hook. Airflow
2.11 to 3.1 call the hook's two static methods, which call ``widgets()`` and ``field_behaviour()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONN_TYPE = "talon_cdp"
DEFAULT_CONN_ID = "talon_cdp_default"


@dataclass(frozen=True)
class Field:
    """A custom field of the form. Its value is stored in the connection's extra under ``name``."""

    name: str
    label: str
    description: str
    placeholder: str
    type: str = "string"
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    required: bool = False


FIELDS = (
    Field(
        "deployment_host",
        "Deployment host",
        "Required. Host of your deployment, e.g. mycompany.europe-west1.talon.one. Requests go to Base URL",
        "mycompany.europe-west1.talon.one",
        required=True,
    ),
    Field(
        "platform_name",
        "Platform name",
        "Identifies this CDP in Talon.One; do not change it later. Default: Apache Airflow",
        "Apache Airflow",
    ),
    Field(
        "environment",
        "Environment",
        "Your name for the API key's environment, e.g. live or sandbox. Set it before the first sync",
        "live",
    ),
    Field(
        "requests_per_second",
        "Requests per second",
        "Most requests per second of one task in a bulk sync; fewer after a 429. Default: 60",
        "60",
        type="integer",
        minimum=1,
    ),
    Field(
        "multi_profile_path",
        "Multi-profile path",
        "Path /cdp/customer_profiles/audiences (plural, the default). Singular only on Talon.One's advice",
        "plural",
        choices=("plural", "singular"),
    ),
    Field(
        "timezone",
        "Time zone for naive timestamps",
        "IANA name, e.g. Europe/Berlin, for timestamps without an offset. Empty: such rows are rejected",
        "(none)",
    ),
    Field(
        "timeout",
        "Timeout",
        "Seconds to wait for a response from Talon.One. Default: 30",
        "30",
        type="integer",
        minimum=1,
    ),
    Field(
        "call_retry_seconds",
        "Retry single calls for",
        "Seconds for which a single call is retried after a temporary error. Default: 60",
        "60",
        type="integer",
        minimum=0,
    ),
    Field(
        "bulk_retry_seconds",
        "Retry bulk requests for",
        "Seconds for which each request of a sync is retried after a temporary error. Default: 600",
        "600",
        type="integer",
        minimum=0,
    ),
)
RELABELING = {"password": "API key", "host": "Base URL"}
PLACEHOLDERS = {
    "password": "CDP API key from the Campaign Manager",
    "host": "https://integration.talon.one (leave empty for this default)",
    "port": "443",
    "extra": '{"proxies": {"https": "http://proxy:3128"}, "verify": "/path/to/ca.pem"}',
}
HIDDEN = ("schema", "login")


def conn_fields() -> dict[str, Any]:
    """Return the custom fields in the format of the provider metadata, for Airflow 3.2 and later."""
    return {
        field.name: {
            "label": field.label,
            "description": field.description,
            "schema": _schema(field),
        }
        for field in FIELDS
    }


def _schema(field: Field) -> dict[str, Any]:
    # A field whose types do not include null is required in the form.
    schema: dict[str, Any] = {"type": field.type if field.required else [field.type, "null"]}
    if field.choices:
        # Without null, which the form would show as a choice.
        schema |= {"enum": list(field.choices), "default": field.choices[0]}
    if field.minimum is not None:
        schema["minimum"] = field.minimum
    return schema


def field_behaviour() -> dict[str, Any]:
    """Return the hidden fields, labels and placeholders of the form, as the hook's method returns them."""
    return {
        "hidden_fields": list(HIDDEN),
        "relabeling": dict(RELABELING),
        "placeholders": PLACEHOLDERS | {field.name: field.placeholder for field in FIELDS},
    }


def widgets() -> dict[str, Any]:
    """Return the custom fields as WTForms widgets, for Airflow before 3.2."""
    # Only Airflow's web server has these packages.
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget  # noqa: PLC0415
    from flask_babel import lazy_gettext  # noqa: PLC0415
    from wtforms import IntegerField, StringField  # noqa: PLC0415
    from wtforms.validators import NumberRange, Optional, any_of  # noqa: PLC0415

    kinds = {"string": StringField, "integer": IntegerField}

    def validators(field: Field) -> list[Any]:
        choices = [any_of(list(field.choices))] if field.choices else []
        return [Optional(), *choices, *([] if field.minimum is None else [NumberRange(min=field.minimum)])]

    return {
        field.name: kinds[field.type](
            lazy_gettext(field.label),
            description=field.description,
            widget=BS3TextFieldWidget(),
            validators=validators(field),
        )
        for field in FIELDS
    }
