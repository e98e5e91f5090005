"""Acknowledgements: which batches of a part of a plan may have left, have landed, and were refused in part.

Whoever pushes a part writes a file of its own, and all files of a part together are the truth. So two processes that push
the same part, as when a scheduler believes the first one dead, cannot write over what the other one knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from airflow_provider_talon_cdp.ledgers.ranges import Ranges
from airflow_provider_talon_cdp.ledgers.storage import Folder, gone, read_json, write_json


@dataclass(slots=True)
class Acks:
    """What became of the batches of one part.

    Args:
        landed: Batches whose fate is known, numbered from 0 within the part.
        refused: Positions of refused changes in their batch, by number of the batch.
        skipped: Likewise, those of them that nobody asked Talon.One about.
        may_have_left: Batches below this number may have left.
        doubtful: Batches with refusals that another process may have sent before, which nobody knows the end of.
    """

    landed: Ranges = field(default_factory=Ranges)
    refused: dict[int, list[int]] = field(default_factory=dict)
    skipped: dict[int, list[int]] = field(default_factory=dict)
    may_have_left: int = 0
    doubtful: frozenset[int] = frozenset()

    def land(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note the fate of a batch."""
        self.landed.add(batch)
        for found, noted in ((refused, self.refused), (skipped, self.skipped)):
            if positions := sorted(found):
                noted[batch] = positions

    def write(self, path: Folder) -> None:
        """Write it whole."""
        content = {
            "landed": self.landed.pairs,
            "refused": {str(batch): positions for batch, positions in self.refused.items()},
            "skipped": {str(batch): positions for batch, positions in self.skipped.items()},
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
        refused, skipped = (
            {int(batch): positions for batch, positions in content[name].items()}
            for name in ("refused", "skipped")
        )
        return cls(Ranges(content["landed"]), refused, skipped, content["may_have_left"])

    @classmethod
    def together(cls, files: Sequence[Acks]) -> Acks:
        """Join what several processes know of a part."""
        joined = cls(may_have_left=max((each.may_have_left for each in files), default=0))
        for each in files:
            for first, last in each.landed.pairs:
                joined.landed.add(first, last)
        for batch in {batch for each in files for batch in each.refused}:
            # Sent twice, a change was refused only if it was refused each time.
            sent = [each for each in files if batch in each.landed]
            if refused := set.intersection(*(set(each.refused.get(batch, ())) for each in sent)):
                joined.land(
                    batch,
                    refused,
                    set.intersection(*(set(each.skipped.get(batch, ())) for each in sent)),
                )
                if any(batch < each.may_have_left and batch not in each.landed for each in files):
                    joined.doubtful |= {batch}
        return joined
