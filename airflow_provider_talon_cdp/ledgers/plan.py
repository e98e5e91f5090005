"""The plan's files: sorted lines of verb, profile ID and audience ID, in parts.

An audience ID is left out where it is that of the part's first change, which the manifest has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any

from airflow_provider_talon_cdp.ledgers.columns import Columns
from airflow_provider_talon_cdp.ledgers.packed import File, read_texts, writing_lines
from airflow_provider_talon_cdp.ledgers.storage import Folder, damaged
from airflow_provider_talon_cdp.sync.blocks import Block, blocks_of_changes
from airflow_provider_talon_cdp.sync.changes import Change


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan as the manifest has it.

    Args:
        folder: Name of the folder of its files; it tells the plan from all others.
        parts: Its files, in order.
        batch: Changes in a batch; the last one of a part may have fewer.
        acks: Files of acknowledgements that must be there.
    """

    folder: str = ""
    parts: tuple[File, ...] = ()
    batch: int = 1
    acks: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Plan:
        """Make one of JSON."""
        parts = tuple(File(**part) for part in content["parts"])
        return cls(folder=content["folder"], parts=parts, batch=content["batch"], acks=tuple(content["acks"]))

    @property
    def changes(self) -> int:
        """Changes in the plan."""
        return sum(part.lines for part in self.parts)

    @property
    def firsts(self) -> list[int]:
        """Number of each part's first batch, and of the batch after the last part."""
        return list(accumulate((-(-part.lines // self.batch) for part in self.parts), initial=0))

    def acks_of(self, part: int, run: str) -> str:
        """Name the file in which a run notes what becomes of a part."""
        return f"{self.folder}/acks-{part:05}-{run}.json"


def write_plan(ledger: Folder, folder: str, changes: Iterable[Change], size: int) -> tuple[File, ...]:
    """Write a plan, and return its parts.

    Args:
        ledger: The ledger's folder.
        folder: Name of the plan's folder in it.
        changes: The plan.
        size: Changes in a part; the last one may have fewer, and one may have more so that a profile is in one part only.
    """
    parts: list[File] = []
    for number, blocks in groupby(_cut(changes, size), key=itemgetter(0)):
        name = f"{folder}/plan-{number:05}.tsv.gz"
        audience: str | None = None
        written = 0
        with writing_lines(ledger / name) as file:
            for _, block in blocks:
                columns = Columns.of(block)
                if audience is None:
                    audience = (
                        columns.audiences if isinstance(columns.audiences, str) else columns.audiences[0]
                    )
                file.write(columns.lines(audience))
                written += len(columns.profiles)
        parts.append(File(file=name, sha256=file.sha256, lines=written, audience=audience or ""))
    return tuple(parts)


def read_part(ledger: Folder, part: File, size: int) -> Iterator[Columns]:
    """Yield the changes of a part in batches.

    Args:
        ledger: The ledger's folder.
        part: The part.
        size: Changes in a batch; the last one may have fewer.

    Raises:
        LedgerError: It is gone or damaged.
    """
    path = ledger / part.file
    waiting: list[Columns] = []
    count = 0
    for text in read_texts(path, part.sha256):
        try:
            waiting.append(Columns.read(text, part.audience))
        except ValueError as error:
            raise damaged(path) from error
        # As in ``read_texts``.
        del text
        count += len(waiting[-1].profiles)
        if count < size:
            continue
        columns = Columns.joined(waiting)
        full = count // size * size
        waiting, count = [columns.between(full, count)], count - full
        for start in range(0, full, size):
            yield columns.between(start, start + size)
        del columns
    if count:
        yield Columns.joined(waiting)


def _cut(changes: Iterable[Change], size: int) -> Iterator[tuple[int, Block]]:
    """Cut a plan where its parts end, between two profiles; yield the number of the part with each block."""
    part = written = 0
    last = ""
    for block in blocks_of_changes(changes):
        start = 0
        while start < len(block.keys):
            end = min(start + max(size - written, 0), len(block.keys))
            while end < len(block.keys) and _profile(block, end) == (
                _profile(block, end - 1) if end else last
            ):
                end += 1
            if end > start:
                yield part, Block(block.keys[start:end], *block[1:])
                written += end - start
                last = _profile(block, end - 1)
                start = end
            if start < len(block.keys):
                part, written = part + 1, 0


def _profile(block: Block, at: int) -> str:
    key: str | tuple[str, str] = block.keys[at]
    return key if isinstance(key, str) else key[0]
