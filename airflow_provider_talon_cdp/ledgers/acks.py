"""Acknowledgements: which batches of a plan may have left, have landed, and were refused in part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from airflow_provider_talon_cdp.ledgers.storage import Folder, gone, read_json, write_json


@dataclass
class Acks:
    """What became of the batches of one plan.

    Args:
        landed: Positions of refused changes, by number of batch; each batch whose fate is known has an entry.
        may_have_left: Batches below this number may have left.
    """

    landed: dict[int, list[int]] = field(default_factory=dict)
    may_have_left: int = 0

    @property
    def refusals(self) -> bool:
        """Whether any change was refused."""
        return any(self.landed.values())

    def copy(self) -> Acks:
        """Copy it, for another thread to write."""
        return Acks(dict(self.landed), self.may_have_left)

    def write(self, path: Folder) -> None:
        """Write it whole."""
        content = {
            "landed": _ranges(sorted(self.landed)),
            "refused": {str(batch): positions for batch, positions in self.landed.items() if positions},
            "may_have_left": self.may_have_left,
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: Folder) -> Acks:
        """Read what ``write`` wrote.

        Raises:
            LedgerError: The file is gone or damaged.
        """
        content = read_json(path)
        if content is None:
            raise gone(path)
        refused = content["refused"]
        landed = {
            batch: refused.get(str(batch), [])
            for first, last in content["landed"]
            for batch in range(first, last + 1)
        }
        return cls(landed, content["may_have_left"])


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Write ascending numbers as ranges: [[first, last], ...]."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
