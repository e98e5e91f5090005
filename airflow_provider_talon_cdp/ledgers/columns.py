"""Changes column by column, as the plan's files have them: lines of verb, profile ID and audience ID."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

from airflow_provider_talon_cdp.sync.blocks import Block
from airflow_provider_talon_cdp.sync.changes import Action, Batch, Change, Ids, Mixed
from airflow_provider_talon_cdp.sync.lines import from_line, from_lines, to_lines

_ACTIONS: dict[str, tuple[Action, bool]] = {
    "add": ("add", False),
    "remove": ("remove", False),
    "add?": ("add", True),
    "remove?": ("remove", True),
}
_REMOVING = frozenset(verb for verb, (action, _) in _ACTIONS.items() if action == "remove")


class Columns(NamedTuple):
    """Some changes.

    Args:
        profiles: Profile IDs.
        audiences: Audience IDs, or the one of all changes.
        verbs: What is done, or what is done with all of them.
    """

    profiles: list[str]
    audiences: str | list[str]
    verbs: str | list[str]

    @classmethod
    def of(cls, block: Block) -> Columns:
        """Take a block of changes apart."""
        keys, audience, leaving, unsure = block
        verbs: str | list[str] = "add"
        if leaving or unsure:
            verbs = [("remove" if key in leaving else "add") + ("?" if key in unsure else "") for key in keys]
            verbs = _one_or_all(verbs)
        if audience is not None:
            return cls(keys, audience, verbs)
        profiles, audiences = map(list, zip(*keys, strict=True))
        return cls(profiles, _one_or_all(audiences), verbs)

    @classmethod
    def read(cls, text: str, audience: str) -> Columns:
        """Take lines apart.

        Args:
            text: Whole lines.
            audience: That of lines that have none.

        Raises:
            ValueError: They are not as ``lines`` wrote them.
        """
        verb = text.partition("\t")[0]
        start = f"\n{verb}\t"
        count = text.count("\n")
        if (
            text.count(start) == count - 1
            and text.count("\t") == count
            and "\\" not in text
            and verb in _ACTIONS
        ):
            return cls(text[len(start) - 1 : -1].split(start), audience, verb)
        columns = from_lines(text)
        if columns is None:
            rows = [[*from_line(line), audience][:3] for line in text[:-1].split("\n")]
            columns = [list(column) for column in zip(*rows, strict=True)]
        verbs, profiles, *audiences = columns
        if not _ACTIONS.keys() >= set(verbs) or len(audiences) > 1:
            raise ValueError
        return cls(profiles, _one_or_all(audiences[0]) if audiences else audience, _one_or_all(verbs))

    @classmethod
    def joined(cls, several: Sequence[Columns]) -> Columns:
        """Put changes behind one another."""
        if len(several) == 1:
            return several[0]
        counts = [len(each.profiles) for each in several]
        return cls(
            list(chain.from_iterable(each.profiles for each in several)),
            _joined([each.audiences for each in several], counts),
            _joined([each.verbs for each in several], counts),
        )

    def between(self, start: int, end: int) -> Columns:
        """Take some of the changes, by their positions."""
        return Columns(
            self.profiles[start:end],
            self.audiences if isinstance(self.audiences, str) else _one_or_all(self.audiences[start:end]),
            self.verbs if isinstance(self.verbs, str) else _one_or_all(self.verbs[start:end]),
        )

    def lines(self, audience: str) -> str:
        """Make whole lines; an audience is left out where all changes are of that one."""
        count = len(self.profiles)
        verbs = repeat(self.verbs) if isinstance(self.verbs, str) else self.verbs
        columns: list[Iterable[str]] = [verbs, self.profiles]
        if self.audiences != audience:
            columns.append(repeat(self.audiences) if isinstance(self.audiences, str) else self.audiences)
        elif isinstance(self.verbs, str):
            start = f"\n{self.verbs}\t"
            text = start[1:] + start.join(self.profiles) + "\n"
            if text.count("\n") == text.count("\t") == count and "\\" not in text and "\r" not in text:
                return text
        return to_lines(columns, count)

    def changes(self) -> list[Change]:
        """Spell the changes out."""
        audiences = repeat(self.audiences) if isinstance(self.audiences, str) else self.audiences
        verbs = repeat(self.verbs) if isinstance(self.verbs, str) else self.verbs
        return [
            Change(profile_id, audience_id, *_ACTIONS[verb])
            for profile_id, audience_id, verb in zip(self.profiles, audiences, verbs, strict=False)
        ]

    def block(self) -> Block:
        """Make a block of the changes, which says nothing of certainty."""
        keys: list[Any] = self.profiles
        if not isinstance(self.audiences, str):
            keys = list(zip(self.profiles, self.audiences, strict=True))
        if isinstance(self.verbs, str):
            leaving = keys if self.verbs in _REMOVING else []
        else:
            leaving = [key for key, verb in zip(keys, self.verbs, strict=True) if verb in _REMOVING]
        return Block(keys, self.audiences if isinstance(self.audiences, str) else None, frozenset(leaving))

    def batch(self, *, alone: bool) -> Batch:
        """Make a batch to send: what is uncertain is sent as anything else."""
        if not isinstance(self.audiences, str):
            return Batch(self.changes(), alone=alone)
        if not isinstance(self.verbs, str):
            joining = bytes(verb not in _REMOVING for verb in self.verbs)
            return Batch(Mixed(self.profiles, self.audiences, joining), alone=alone)
        return Batch(Ids(self.profiles, self.audiences, _ACTIONS[self.verbs][0]), alone=alone)

    def without(self, positions: Collection[int]) -> Columns:
        """Leave some changes out."""
        kept = sorted(set(range(len(self.profiles))).difference(positions))
        return Columns(
            [self.profiles[at] for at in kept],
            self.audiences if isinstance(self.audiences, str) else [self.audiences[at] for at in kept],
            self.verbs if isinstance(self.verbs, str) else [self.verbs[at] for at in kept],
        )


def _joined(several: Sequence[str | list[str]], counts: Sequence[int]) -> str | list[str]:
    first = several[0]
    if isinstance(first, str) and all(each == first for each in several):
        return first
    return list(
        chain.from_iterable(
            repeat(each, count) if isinstance(each, str) else each
            for each, count in zip(several, counts, strict=True)
        )
    )


def _one_or_all(texts: list[str]) -> str | list[str]:
    return texts[0] if texts and texts.count(texts[0]) == len(texts) else texts
