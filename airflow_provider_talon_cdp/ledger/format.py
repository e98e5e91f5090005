r"""The files of a ledger: changes as lines of text, acknowledgements, and the manifest of the files in force.

Lines are UTF-8, compressed by zstd: read them with ``zstdcat``. A line is a profile ID, its key (an audience
ID, or the fingerprint of attributes) and its verb, with tabs between them. The verb is left out where it is
``add``, and then the key where it is that of the file's first line. Backslash, tab, newline and carriage
return are written as ``\\``, ``\t``, ``\n`` and ``\r``. A file is a row of zstd frames of some thousand
lines, each with a checksum, so that no line of a damaged frame is ever believed and the other frames can be
saved.

The first format had gzip files, with the verb in front.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, chain
from typing import IO, Any, NamedTuple

from airflow_provider_talon_cdp.changes.change import VERBS, Chunk, one_or_all
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    damaged,
    gone,
    names_in,
    read_json,
    read_pieces,
    remove,
    remove_folder,
    replacing,
    told,
    write_json,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT = 2
BLOCK = 4096
"""Changes that are read and written together."""

_FASTEST: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}
_FRAME = b"\x28\xb5\x2f\xfd"
# Bytes of text that a frame is cut at, and those that no frame exceeds: an ID has 4,000 bytes at the most.
_FRAME_TEXT = 1 << 18
_MOST_TEXT = 1 << 20
# zlib's word for a gzip file.
_GZIP = 31
_WIDEST = 3

_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_NAMES = {"\\": "\\", "\t": "t", "\n": "n", "\r": "r"}
_CHARACTERS = {name: character for character, name in _NAMES.items()}


# Changes as lines


def lines_of(chunk: Chunk, key: str | None) -> str:
    """Write changes as lines.

    Args:
        chunk: The changes.
        key: The key that is left out; None for none.
    """
    columns: list[Iterable[str]] = [chunk.ids]
    if chunk.keys != key or chunk.verbs != "add":
        columns.append(chunk.each_key)
    if chunk.verbs != "add":
        columns.append(chunk.each_verb)
    joined = columns[0] if len(columns) == 1 else map("\t".join, zip(*columns, strict=False))
    text = "\n".join(joined) + "\n"
    # Few lines have anything to escape, and these checks run in C.
    if "\\" in text or "\r" in text or text.count("\t") + text.count("\n") != len(columns) * len(chunk):
        rows = zip(*columns, strict=False)
        return "".join("\t".join([_SPECIAL.sub(_escape, cell) for cell in row]) + "\n" for row in rows)
    return text


def chunk_of(text: str, key: str) -> Chunk:
    """Read what ``lines_of`` wrote.

    Args:
        text: Lines of as many fields each.
        key: The key where it is left out.

    Raises:
        ValueError: These are other lines.
    """
    count = text.count("\n")
    width, rest = divmod(text.count("\t") + count, count or 1)
    if rest or not 0 < width <= _WIDEST:
        raise ValueError
    cells = text[:-1].split("\n") if width == 1 else text[:-1].replace("\n", "\t").split("\t")
    if "\\" in text:
        cells = [_ESCAPED.sub(_character, cell) if "\\" in cell else cell for cell in cells]
    ids, *more = (cells[column::width] for column in range(width))
    return _chunk(ids, more[0] if more else key, more[1] if len(more) > 1 else "add")


def _chunk_of_format_1(text: str, key: str, *, has_verbs: bool) -> Chunk:
    """Read lines of the first format, in which the verb is in front and a line may have a key or not."""
    if not has_verbs and "\t" not in text and "\\" not in text:
        return Chunk(text[:-1].split("\n"), key)
    rows = [[_ESCAPED.sub(_character, cell) for cell in line.split("\t")] for line in text[:-1].split("\n")]
    verbs: list[str] | str = [row.pop(0) for row in rows] if has_verbs else "add"
    ids, keys = zip(*([*row, key][:2] for row in rows), strict=True)
    return _chunk(list(ids), list(keys), verbs)


def _chunk(ids: list[str], keys: str | list[str], verbs: str | list[str]) -> Chunk:
    if not VERBS.issuperset([verbs] if isinstance(verbs, str) else verbs):
        raise ValueError
    return Chunk(
        ids,
        keys if isinstance(keys, str) else one_or_all(keys),
        verbs if isinstance(verbs, str) else one_or_all(verbs),
    )


def _escape(found: re.Match[str]) -> str:
    return "\\" + _NAMES[found[0]]


def _character(found: re.Match[str]) -> str:
    if found[1] not in _CHARACTERS:
        raise ValueError(f"\\{found[1]} is not an escape")
    return _CHARACTERS[found[1]]


# Files of lines


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of lines.

    Args:
        file: Its path in the ledger's folder.
        sha256: Its checksum, or the beginning of it.
        lines: How many it has.
        key: That of its first line, and of lines that have none.
    """

    file: str
    sha256: str
    lines: int
    key: str


class LineWriter:
    """Writes changes into an open file.

    Args:
        path: For error texts.
        file: Where the compressed bytes go.
    """

    def __init__(self, path: Folder, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._hash = hashlib.sha256()
        self._compressor = zstd.ZstdCompressor(options=_FASTEST)
        self._waiting: list[Chunk] = []
        self._count = 0
        self._key: str | None = None
        self.lines = 0

    def write(self, chunk: Chunk) -> None:
        """Add changes."""
        self._waiting.append(chunk)
        self._count += len(chunk)
        self.lines += len(chunk)
        if self._count >= BLOCK:
            self.finish()

    def finish(self) -> None:
        """Write what waits."""
        if not self._count:
            return
        chunk = Chunk.joined(self._waiting)
        self._waiting, self._count = [], 0
        data = lines_of(chunk, self._key).encode()
        if self._key is None:
            self._key = chunk.keys if isinstance(chunk.keys, str) else chunk.keys[0]
        start = 0
        while start < len(data):
            end = len(data)
            if end - start > _FRAME_TEXT:
                end = data.index(b"\n", start + _FRAME_TEXT // 2) + 1
            frame = self._compressor.compress(data[start:end], zstd.ZstdCompressor.FLUSH_FRAME)
            self._hash.update(frame)
            with told("write", self._path):
                self._file.write(frame)
            start = end

    def as_file(self, name: str) -> File:
        """Say how the manifest names the file, once it is finished."""
        return File(file=name, sha256=self._hash.hexdigest(), lines=self.lines, key=self._key or "")


@contextmanager
def writing_lines(path: Folder) -> Iterator[LineWriter]:
    """Open a new file for changes; it appears when the block ends without an error."""
    with replacing(path) as file:
        writer = LineWriter(path, file)
        yield writer
        writer.finish()


def read_chunks(ledger: Folder, file: File) -> Iterator[Chunk]:
    """Read a file of lines, some thousand at a time.

    Args:
        ledger: The ledger's folder.
        file: Where its checksum is not known, those of its frames still are.

    Raises:
        DamagedError: It is missing, cut short or damaged.
    """
    path = ledger / file.file
    try:
        yield from _chunks(path, file)
    except FileNotFoundError as error:
        raise gone(path) from error
    except (ValueError, zstd.ZstdError, zlib.error, EOFError) as error:
        raise damaged(path) from error


def _chunks(path: Folder, file: File) -> Iterator[Chunk]:
    is_format_1 = file.file.endswith(".gz")
    has_verbs = is_format_1 and "/plan-" in file.file
    key, last = file.key, ("", "")
    for text in (_gzip_texts if is_format_1 else _zstd_texts)(path, file.sha256):
        if is_format_1:
            chunk = _chunk_of_format_1(text, key, has_verbs=has_verbs)
        else:
            chunk = chunk_of(text, key)
            key = key or key_at(chunk, 0)
        # Frames out of order would confuse whoever merges this stream with others, for ever.
        if (chunk.ids[0], key_at(chunk, 0)) <= last:
            raise ValueError
        last = chunk.ids[-1], key_at(chunk, -1)
        # What is made of the text lives longer, and would leave gaps between it in memory.
        del text
        yield chunk


def saved_chunks(ledger: Folder, file: File) -> Iterator[Chunk]:
    """Read those frames of a file that are as they were written."""
    try:
        data = b"".join(read_pieces(ledger / file.file))
    except FileNotFoundError:
        return
    key, last = file.key, ("", "")
    at = data.find(_FRAME)
    while at >= 0:
        decompressor = zstd.ZstdDecompressor()
        with suppress(ValueError, zstd.ZstdError, EOFError):
            text = decompressor.decompress(data[at : at + 2 * _MOST_TEXT], _MOST_TEXT)
            chunk = chunk_of(text.decode(), key)
            key = key or key_at(chunk, 0)
            if decompressor.eof and key and (chunk.ids[0], key_at(chunk, 0)) > last:
                last = chunk.ids[-1], key_at(chunk, -1)
                yield chunk
        at = data.find(_FRAME, at + 1)


def key_at(chunk: Chunk, position: int) -> str:
    """Return the key of the change at a position."""
    return chunk.keys if isinstance(chunk.keys, str) else chunk.keys[position]


def _zstd_texts(path: Folder, sha256: str) -> Iterator[str]:
    hashing = hashlib.sha256()
    decompressor, found, is_whole = zstd.ZstdDecompressor(), b"", True
    for piece in read_pieces(path):
        hashing.update(piece)
        while piece:
            # Whatever a damaged file says, no frame takes more memory than this.
            found += decompressor.decompress(piece, _MOST_TEXT + 1 - len(found))
            is_whole = decompressor.eof
            if len(found) > _MOST_TEXT or (is_whole and not found):
                raise ValueError
            if not is_whole:
                break
            piece = decompressor.unused_data  # noqa: PLW2901 - the rest of it
            # Its checksum was right.
            yield found.decode()
            decompressor, found = zstd.ZstdDecompressor(), b""
    if not (is_whole and hashing.hexdigest().startswith(sha256)):
        raise ValueError


def _gzip_texts(path: Folder, sha256: str) -> Iterator[str]:
    # The checksum of a gzip file is at its end: so this reads it twice, and believes no line before.
    hashing = hashlib.sha256()
    for piece in read_pieces(path):
        hashing.update(piece)
    if hashing.hexdigest() != sha256:
        raise ValueError
    decompressor, rest = zlib.decompressobj(wbits=_GZIP), b""
    for piece in read_pieces(path):
        lines, newline, rest = (rest + decompressor.decompress(piece)).rpartition(b"\n")
        if lines:
            yield (lines + newline).decode()


# Files of any text


@contextmanager
def writing_text(path: Folder) -> Iterator[Callable[[str], None]]:
    """Open a new file for text; it appears when the block ends without an error."""
    compressor = zstd.ZstdCompressor(options=_FASTEST)

    def write(text: str) -> None:
        with told("write", path):
            file.write(compressor.compress(text.encode()))

    with replacing(path) as file:
        yield write
        with told("write", path):
            file.write(compressor.flush())


def read_text(path: Folder) -> Iterator[bytes]:
    """Read what ``writing_text`` wrote, line by line.

    Raises:
        DamagedError: It is missing, cut short or damaged.
    """
    decompressor, rest = zstd.ZstdDecompressor(), b""
    try:
        for piece in read_pieces(path):
            found: bytes | None = piece
            while found is not None:
                lines = (rest + decompressor.decompress(found, _MOST_TEXT)).split(b"\n")
                rest = lines.pop()
                yield from lines
                found = None if decompressor.eof or decompressor.needs_input else b""
    except FileNotFoundError as error:
        raise gone(path) from error
    except (zstd.ZstdError, EOFError) as error:
        raise damaged(path) from error
    if not decompressor.eof:
        raise damaged(path)


# Acknowledgements


class Ranges:
    """Whole numbers that mostly stand side by side, in memory that does not grow with how many they are.

    Args:
        pairs: First and last number of each range.
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[Iterable[int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in pairs:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Put in a number, or all from a first to a last one."""
        last = first if last is None else last
        # Ranges that touch the new one become one with it.
        left = bisect_left(self._lasts, first - 1)
        right = bisect_right(self._firsts, last + 1)
        if left < right:
            first, last = min(first, self._firsts[left]), max(last, self._lasts[right - 1])
        self._firsts[left:right] = [first]
        self._lasts[left:right] = [last]

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __len__(self) -> int:
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    @property
    def pairs(self) -> list[list[int]]:
        """First and last number of each range, ascending."""
        return [[first, last] for first, last in zip(self._firsts, self._lasts, strict=True)]

    def gaps(self, end: int) -> list[tuple[int, int]]:
        """First number of each gap below an end, and the number after its last, ascending."""
        starts, stops = [0, *(last + 1 for last in self._lasts)], [*self._firsts, end]
        return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


@dataclass(slots=True)
class Acks:
    """What became of the batches of one part of a plan.

    Whoever pushes a part writes a file of its own, and all files of a part together are the truth. So two
    processes that push the same part, as when a scheduler believes the first one dead, cannot write over what
    the other one knows.

    Args:
        landed: Batches whose outcome is known, numbered from 0 within the part.
        refused: Positions of refused changes in their batch, by number of the batch.
        skipped: Refused positions that were never sent.
        may_have_left: While a push is at work: batches below this number may have left.
        unclear: After its orderly end: batches that left and may have had an effect.
        withheld: Changes that run rules and got no clear answer, each with a dead letter: they are not sent
            again. Of files together, none that has landed since.
        doubtful: Batches with refusals that another process may have sent before, with an unknown outcome.
    """

    landed: Ranges = field(default_factory=Ranges)
    refused: dict[int, list[int]] = field(default_factory=dict)
    skipped: dict[int, list[int]] = field(default_factory=dict)
    may_have_left: int = 0
    unclear: Ranges = field(default_factory=Ranges)
    withheld: Ranges = field(default_factory=Ranges)
    doubtful: frozenset[int] = frozenset()

    def land(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note the outcome of a batch."""
        self.landed.add(batch)
        for found, noted in ((refused, self.refused), (skipped, self.skipped)):
            if positions := sorted(found):
                noted[batch] = positions

    def is_open(self, batch: int) -> bool:
        """Whether a batch may have had an effect that nobody knows of."""
        may_have_left = batch < self.may_have_left or batch in self.unclear or batch in self.withheld
        return may_have_left and batch not in self.landed

    @property
    def says_nothing(self) -> bool:
        """Whether no batch may have had an effect."""
        return not (self.landed or self.may_have_left or self.unclear or self.withheld)

    @property
    def settled(self) -> Ranges:
        """Batches that are not sent again."""
        return Ranges([*self.landed.pairs, *self.withheld.pairs]) if self.withheld else self.landed

    def counts(self, lines: int, batch: int) -> tuple[int, int, int, int]:
        """Count landed, refused, skipped and withheld changes of a part of so many lines.

        Only a plan whose batches are single changes has withheld ones.
        """
        last, short = divmod(lines, batch)
        landed = len(self.landed) * batch - (batch - short if short and last in self.landed else 0)
        refused, skipped = (sum(map(len, each.values())) for each in (self.refused, self.skipped))
        return landed, refused, skipped, len(self.withheld)

    def write(self, path: Folder) -> None:
        """Write it whole."""
        content = {
            "landed": self.landed.pairs,
            "refused": {str(batch): positions for batch, positions in self.refused.items()},
            "skipped": {str(batch): positions for batch, positions in self.skipped.items()},
            "may_have_left": self.may_have_left,
            "unclear": self.unclear.pairs,
            "withheld": self.withheld.pairs,
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: Folder) -> Acks:
        """Read what ``write`` wrote.

        Raises:
            DamagedError: The file is missing or damaged.
        """
        content = read_json(path)
        if content is None:
            raise gone(path)
        refused, skipped = (
            {int(batch): positions for batch, positions in content[name].items()}
            for name in ("refused", "skipped")
        )
        unclear, withheld = (Ranges(content.get(name, ())) for name in ("unclear", "withheld"))
        return cls(Ranges(content["landed"]), refused, skipped, content["may_have_left"], unclear, withheld)

    @classmethod
    def together(cls, files: Sequence[Acks]) -> Acks:
        """Join what several processes know of a part."""
        joined = cls(may_have_left=max((each.may_have_left for each in files), default=0))
        for each in files:
            for name in ("landed", "unclear", "withheld"):
                into = getattr(joined, name)
                for first, last in getattr(each, name).pairs:
                    into.add(first, last)
        for batch in {batch for each in files for batch in each.refused}:
            # Sent twice, a change was refused only if it was refused each time.
            sent = [each for each in files if batch in each.landed]
            if refused := set.intersection(*(set(each.refused.get(batch, ())) for each in sent)):
                joined.land(
                    batch,
                    refused,
                    set.intersection(*(set(each.skipped.get(batch, ())) for each in sent)),
                )
                if any(each.is_open(batch) for each in files):
                    joined.doubtful |= {batch}
        # A process that was taken over may have had its answer after all.
        spans = (range(first, last + 1) for first, last in joined.withheld.pairs)
        joined.withheld = Ranges([(n, n) for span in spans for n in span if n not in joined.landed])
        return joined


# Plans


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan as the manifest has it.

    Args:
        folder: Name of the folder of its files; it tells the plan from all others.
        parts: Its files, in order.
        batch: Changes in a batch; the last one of a part may have fewer.
        acks: Files of acknowledgements that must be there.
        together: Of a plan some of whose changes run rules, how many of the others travel in a request; its
            batches are single changes. Else 0.
    """

    folder: str = ""
    parts: tuple[File, ...] = ()
    batch: int = 1
    acks: tuple[str, ...] = ()
    together: int = 0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Plan:
        """Make one of JSON."""
        parts = tuple(File(**part) for part in content["parts"])
        return cls(
            folder=content["folder"],
            parts=parts,
            batch=content["batch"],
            acks=tuple(content["acks"]),
            together=content.get("together", 0),
        )

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

    def batches(self, ledger: Folder, part: int) -> Iterator[Chunk]:
        """Read a part, batch by batch.

        Raises:
            DamagedError: It is missing or damaged.
        """
        waiting: list[Chunk] = []
        count = 0
        for chunk in read_chunks(ledger, self.parts[part]):
            waiting.append(chunk)
            count += len(chunk)
            if count < self.batch:
                continue
            joined = Chunk.joined(waiting)
            full = count // self.batch * self.batch
            waiting, count = [joined[full:count]] if full < count else [], count - full
            for start in range(0, full, self.batch):
                yield joined[start : start + self.batch]
            del joined
        if count:
            yield Chunk.joined(waiting)


def write_plan(ledger: Folder, folder: str, changes: Iterable[Chunk], size: int) -> tuple[File, ...]:
    """Write a plan, and return its parts.

    Args:
        ledger: The ledger's folder.
        folder: Name of the plan's folder in it.
        changes: The plan.
        size: Changes in a part. The last one may have fewer, and one may have more to keep a profile in one
            part.
    """
    parts: list[File] = []
    chunks = iter(changes)
    rest: Chunk | None = next(chunks, None)
    while rest is not None:
        name = f"{folder}/plan-{len(parts):05}.tsv.zst"
        with writing_lines(ledger / name) as file:
            last = ""
            while rest is not None:
                end = min(max(size - file.lines, 0), len(rest))
                while end < len(rest) and rest.ids[end] == (rest.ids[end - 1] if end else last):
                    end += 1
                if end:
                    file.write(rest[:end] if end < len(rest) else rest)
                    last = rest.ids[end - 1]
                if end < len(rest):
                    rest = rest[end:]
                    break
                rest = next(chunks, None)
        if file.lines:
            parts.append(file.as_file(name))
        else:
            remove(ledger / name)
    return tuple(parts)


# The manifest


_NAME = re.compile(r"manifest-(\d+)-(\d+)-(?:(\d{4})-)?[0-9a-f]+\.json")
_FOLDER = re.compile(r"(\d{8,})-[0-9a-f]+")
_DRAFT = ".manifest-"
# Looks for a manifest while others replace it.
_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a ledger, and those before it whose files are kept.

    A manifest is never written over: each has a name of its own, and the last by name is in force. The name
    starts with the fencing token of the run that wrote it, so the late word of a run that was taken over
    comes before that of the run that took over. Those of kept versions stay: where the last one is damaged,
    the one before counts.

    Args:
        version: Its number; 0 before the first one.
        fencing_token: That of the run that wrote it.
        run: That run.
        file: Name of its file; see ``file_name``.
        owner: For whom it ran; see ``Lock``.
        members: The file of members; None for no members.
        since: Plans whose acknowledged changes come on top of these members, the oldest first; all are over.
        plan: The plan that starts from there.
        refused: Changes that Talon.One refused in earlier plans and that this plan does not have; None for
            none.
        withheld: Changes of earlier plans that run rules and got no clear answer; None for none.
        letters: Name of the folder for dead letters of its plan.
        names: Attribute names to which the fingerprints of profiles refer by number; never fewer than before.
        facts: What the run remembers for later ones.
        told: Folders of other ledgers that were told of the changes of this plan.
        before: Name of the manifest of the same version that this one replaced.
        history: Versions before it, the newest first: what to keep of them.
    """

    version: int = 0
    fencing_token: int = 0
    run: str = ""
    file: str = ""
    owner: str = ""
    members: File | None = None
    since: tuple[Plan, ...] = ()
    plan: Plan = field(default_factory=Plan)
    refused: File | None = None
    withheld: File | None = None
    letters: str = ""
    names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    before: str = ""
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All plans whose files it needs."""
        return (*self.since, self.plan)

    def file_name(self, serial: int) -> str:
        """Name the file.

        Args:
            serial: Number of this manifest among those of its run.
        """
        return f"manifest-{self.fencing_token:08}-{self.version:08}-{serial:04}-{self.run}.json"

    def followed_by(self, manifest: Manifest, keep: int) -> Manifest:
        """Put this version into the history of the next one, which keeps the files of so many versions."""
        if not self.version:
            return manifest
        before = {
            "version": self.version,
            "manifest": self.file,
            "folders": [plan.folder for plan in self.plans],
            "files": [each.file for each in (self.members, self.refused, self.withheld) if each],
            "letters": self.letters,
        }
        return replace(manifest, history=(before, *self.history)[: keep - 1])

    def write(self, folder: Folder, identity: Mapping[str, str]) -> None:
        """Put it in force."""
        write_json(folder / self.file, {"format": FORMAT, **identity, **asdict(self)})

    @classmethod
    def of(cls, content: Mapping[str, Any], file: str) -> Manifest:
        """Make one of JSON of this format or of the one before.

        Raises:
            LedgerError: It is of a newer format.
        """
        if content["format"] not in range(1, FORMAT + 1):
            raise LedgerError(
                f"The ledger has format {content['format']}; this version of the provider knows {FORMAT}.\n"
                f"Upgrade airflow-provider-talon-cdp on this worker.\nManifest: {file}"
            )
        content = {**content, "file": file}
        if content["format"] == 1:
            content["fencing_token"] = content.pop("turn")
            for each in chain.from_iterable(plan["parts"] for plan in (*content["since"], content["plan"])):
                each["key"] = each.pop("audience")
            if content["members"]:
                content["members"]["key"] = content["members"].pop("audience")
            for each in content["history"]:
                each |= {
                    "manifest": "",
                    "files": [each.pop("members")] if each["members"] else [],
                    "letters": "",
                }
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        for name in ("members", "refused", "withheld"):
            known[name] = File(**content[name]) if content.get(name) else None
        known["since"] = tuple(Plan.of(each) for each in content["since"])
        known["plan"] = Plan.of(content["plan"])
        known |= {name: tuple(content.get(name, ())) for name in ("names", "told", "history")}
        return cls(**known)

    def remove_others(self, folder: Folder, check: Callable[[], None]) -> None:
        """Delete files of versions that are not named here, and of plans that never came into force.

        Args:
            folder: The ledger's folder.
            check: Raises when this run may not delete, because another one took over and writes.
        """
        manifests = {self.file, self.before, *(each["manifest"] for each in self.history)}
        kept = {plan.folder for plan in self.plans}
        kept |= {folder for each in self.history for folder in each["folders"]}
        files = [each.file for each in (self.members, self.refused, self.withheld) if each]
        files += [file for each in self.history for file in each["files"]]
        split = [file.split("/") for file in files]
        found = names_in(folder)
        check()
        for name in found:
            # Drafts are what a killed run left behind.
            if name.startswith(_DRAFT) or (_NAME.fullmatch(name) and name not in manifests):
                remove(folder / name)
            elif _FOLDER.fullmatch(name) and name not in kept:
                remove_folder(folder / name, keep=[file for at, file in split if at == name])


class Found(NamedTuple):
    """The manifest of a ledger.

    Args:
        manifest: The one in force; a version 0 where there is nothing yet.
        content: As JSON.
        newest: The version of the last one by name, damaged or not.
        damaged: Names of later ones that are damaged.
        orphans: Folders of later versions, the oldest first.
        has_notes: Whether others left notes of changes.
    """

    manifest: Manifest
    content: Mapping[str, Any]
    newest: int = 0
    damaged: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    has_notes: bool = False


def find_manifest(folder: Folder, notes: str = "") -> Found:
    """Read the manifest in force.

    Args:
        folder: The ledger's folder.
        notes: Name of the folder of notes.

    Raises:
        DamagedError: All of them are damaged.
        LedgerError: It is of a newer format.
    """
    for _ in range(_LOOKS):
        there = names_in(folder)
        names = sorted(filter(_NAME.fullmatch, there), key=_order, reverse=True)
        bad: list[str] = []
        content: Any = {}
        for name in names:
            try:
                content = read_json(folder / name)
            except DamagedError:
                bad.append(name)
                continue
            break
        if content is None:
            # Another run wrote the next one meanwhile.
            continue
        if bad and not content:
            raise damaged(folder / bad[0])
        manifest = Manifest.of(content, name) if content else Manifest()
        orphans = [
            each for each in there if (at := _FOLDER.fullmatch(each)) and int(at[1]) > manifest.version
        ]
        newest = _order(names[0])[1] if names else 0
        return Found(manifest, content, newest, tuple(bad), tuple(orphans), notes in there)
    raise gone(folder / name)


def kept_manifests(folder: Folder) -> tuple[list[Manifest], list[tuple[str, int]]]:
    """Read all manifests that there are, the oldest first; also return names and versions of damaged ones."""
    found: list[Manifest] = []
    bad: list[tuple[str, int]] = []
    for name in sorted(filter(_NAME.fullmatch, names_in(folder)), key=_order):
        try:
            if content := read_json(folder / name):
                found.append(Manifest.of(content, name))
        except DamagedError:
            bad.append((name, _order(name)[1]))
    return found, bad


def last_fencing_token(folder: Folder) -> int:
    """Fencing token of the run that wrote the last manifest, or 0."""
    return max((_order(name)[0] for name in names_in(folder) if _NAME.fullmatch(name)), default=0)


def _order(name: str) -> tuple[int, int, int, str]:
    found = _NAME.fullmatch(name)
    token, version, serial = found.groups(default="0") if found else ("0", "0", "0")
    return int(token), int(version), int(serial), name
