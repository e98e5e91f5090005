"""Attributes of one profile as the JSON object that is sent, always spelt the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from airflow_provider_talon_cdp.api.attribute_types import declared_value
from airflow_provider_talon_cdp.api.values import attribute_values, encode_json
from airflow_provider_talon_cdp.contract import AttributeType


@dataclass(frozen=True, kw_only=True)
class AttributesEncoder:
    """Turns warehouse values into the JSON object of a profile's attributes.

    Args:
        types: Declared types by attribute name; the others follow from their values.
        zone: The zone of timestamps without an offset, and of dates.
        skip_nulls: Leave nulls out, where otherwise they delete.
    """

    types: Mapping[str, AttributeType] = field(default_factory=dict)
    zone: tzinfo | None = None
    skip_nulls: bool = True

    def __call__(self, row: Mapping[str, Any]) -> tuple[bytes, tuple[str, ...]]:
        """Encode the attributes of one profile.

        Args:
            row: Attribute name to value, as a database driver gives it.

        Returns:
            The JSON object, with its names in order, and these names; ``b""`` where there is nothing to send.

        Raises:
            InvalidInputError: A value that does not fit. The text names the attribute, and holds no value.
        """
        if self.skip_nulls:
            row = {name: value for name, value in row.items() if value is not None}
        if self.types:
            row = {
                name: declared_value(value, self.types[name], name) if name in self.types else value
                for name, value in row.items()
            }
        values = attribute_values(row, zone=self.zone)
        return (encode_json(values, sort_keys=True), tuple(values)) if values else (b"", ())
