r"""The files of a ledger: changes as lines of text, acknowledgements, and manifests.

Lines are UTF-8, compressed by zstd; ``zstdcat`` prints them. A line is a profile ID, its key (an audience ID,
or the fingerprint of attributes) and its verb, separated by tabs. The verb ``add`` is left out, and with it
the key if it equals the key of the file's first line. Backslash, tab, newline and carriage return are written
as ``\\``, ``\t``, ``\n`` and ``\r``. A file is a sequence of zstd frames of some thousand lines, each with a
checksum: no line of a damaged frame is used, and the other frames can be recovered.

Files of format 1 are gzip files, with the verb as the first field.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import IO, Any, NamedTuple

from airflow_provider_talon_cdp.changes.change import VERBS, Chunk, in_batches, one_or_all
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    as_ledger_error,
    damaged,
    missing,
    names_in,
    read_json,
    read_pieces,
    remove,
    remove_folder,
    replacing,
    write_json,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT = 2
BLOCK = 4096
"""Number of changes that are written at once."""

_ZSTD_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
# Bytes of text after which a frame ends, and the most that a frame can have: an ID has up to 4,000 bytes.
_FRAME_TEXT = 1 << 18
_MOST_TEXT = 1 << 20
# The argument with which zlib reads gzip.
_GZIP_WBITS = 31
_MOST_FIELDS = 3

_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_CHARACTERS = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
_ESCAPES = str.maketrans({character: f"\\{escape}" for escape, character in _CHARACTERS.items()})


# Changes as lines


def lines_of(chunk: Chunk, key: str | None) -> str:
    """Write changes as lines.

    Args:
        chunk: The changes.
        key: The key that is left out; None to write all keys.
    """
    columns: list[Iterable[str]] = [chunk.ids]
    if chunk.keys != key or chunk.verbs != "add":
        columns.append(chunk.each_key)
    if chunk.verbs != "add":
        columns.append(chunk.each_verb)
    joined = columns[0] if len(columns) == 1 else map("\t".join, zip(*columns, strict=False))
    text = "\n".join(joined) + "\n"
    # Few lines need escapes, and these checks run in C.
    if "\\" in text or "\r" in text or text.count("\t") + text.count("\n") != len(columns) * len(chunk):
        rows = zip(*columns, strict=False)
        return "".join("\t".join([value.translate(_ESCAPES) for value in row]) + "\n" for row in rows)
    return text


def chunk_of(text: str, key: str) -> Chunk:
    """Read what ``lines_of`` wrote.

    Raises:
        ValueError: The text is not in the format of ``lines_of``.
    """
    count = text.count("\n")
    width, rest = divmod(text.count("\t") + count, count or 1)
    if rest or not 0 < width <= _MOST_FIELDS:
        raise ValueError
    values = text[:-1].split("\n") if width == 1 else text[:-1].replace("\n", "\t").split("\t")
    if "\\" in text:
        values = [_ESCAPED.sub(_unescape, value) if "\\" in value else value for value in values]
    ids, *more = (values[column::width] for column in range(width))
    return _chunk(ids, more[0] if more else key, more[1] if len(more) > 1 else "add")


def _chunk_of_format_1(text: str, key: str, *, has_verbs: bool) -> Chunk:
    """Read lines of format 1: the verb comes first, and only some lines have a key."""
    if not has_verbs and "\t" not in text and "\\" not in text:
        return Chunk(text[:-1].split("\n"), key)
    rows = [[_ESCAPED.sub(_unescape, value) for value in line.split("\t")] for line in text[:-1].split("\n")]
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


def _unescape(match: re.Match[str]) -> str:
    if match[1] not in _CHARACTERS:
        raise ValueError(f"\\{match[1]} is not an escape")
    return _CHARACTERS[match[1]]


# Files of lines


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of lines.

    Args:
        file: Its path relative to the ledger's folder.
        sha256: Its checksum, or the first digits of it; empty if it is not known.
        lines: Number of lines.
        key: The key of its first line, and of lines without a key.
    """

    file: str
    sha256: str
    lines: int
    key: str


class LineWriter:
    """Writes changes into a file.

    Args:
        path: Path of the file, for error texts.
        open_file: Opens it for the compressed bytes, when the first of them are written.
    """

    def __init__(self, path: Folder, open_file: Callable[[], IO[bytes]]) -> None:
        self._path = path
        self._open_file = open_file
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self._compressor = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)
        self._buffer: list[Chunk] = []
        self._buffered = 0
        self._key: str | None = None
        self.lines = 0

    def write(self, chunk: Chunk) -> None:
        """Append changes; ``finish`` writes them at the latest."""
        self._buffer.append(chunk)
        self._buffered += len(chunk)
        self.lines += len(chunk)
        if self._buffered >= BLOCK:
            self.finish()

    def finish(self) -> None:
        """Write the changes that are in memory."""
        if not self._buffered:
            return
        chunk = Chunk.joined(self._buffer)
        self._buffer, self._buffered = [], 0
        data = lines_of(chunk, self._key).encode()
        if self._key is None:
            self._key = chunk.member(0)[1]
        file = self._file = self._file or self._open_file()
        start = 0
        while start < len(data):
            end = len(data)
            if end - start > _FRAME_TEXT:
                end = data.index(b"\n", start + _FRAME_TEXT // 2) + 1
            frame = self._compressor.compress(data[start:end], zstd.ZstdCompressor.FLUSH_FRAME)
            self._hash.update(frame)
            with as_ledger_error("write", self._path):
                file.write(frame)
            start = end

    def as_file(self, name: str) -> File | None:
        """Return what the manifest says about the file with all changes; None if there were none."""
        self.finish()
        if self._key is None:
            return None
        return File(file=name, sha256=self._hash.hexdigest(), lines=self.lines, key=self._key)


@contextmanager
def writing_lines(path: Folder) -> Iterator[LineWriter]:
    """Write changes. The first creates the file; readers see it when the block ends without an error."""
    with ExitStack() as stack:
        writer = LineWriter(path, lambda: stack.enter_context(replacing(path)))
        yield writer
        writer.finish()


def read_chunks(ledger: Folder, file: File) -> Iterator[Chunk]:
    """Read a file of lines, some thousand at a time.

    Args:
        ledger: The ledger's folder.
        file: The file. Without a checksum, only the checksums of its frames are compared.

    Raises:
        DamagedError: The file is missing, incomplete or damaged.
    """
    path = ledger / file.file
    try:
        yield from _chunks(path, file)
    except FileNotFoundError as error:
        raise missing(path) from error
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
            key = key or chunk.member(0)[1]
        # Chunks are merged with other sorted streams, which goes wrong unnoticed if frames are out of order.
        if chunk.member(0) <= last:
            raise ValueError
        last = chunk.member(-1)
        # The chunk outlives the text; freeing the text first avoids gaps in memory.
        del text
        yield chunk


def saved_chunks(ledger: Folder, file: File) -> Iterator[Chunk]:
    """Read the intact frames of a file; none if it does not exist."""
    try:
        data = b"".join(read_pieces(ledger / file.file))
    except FileNotFoundError:
        return
    key, last = file.key, ("", "")
    at = data.find(_FRAME_MAGIC)
    while at >= 0:
        decompressor = zstd.ZstdDecompressor()
        with suppress(ValueError, zstd.ZstdError, EOFError):
            text = decompressor.decompress(data[at : at + 2 * _MOST_TEXT], _MOST_TEXT)
            chunk = chunk_of(text.decode(), key)
            key = key or chunk.member(0)[1]
            if decompressor.eof and key and chunk.member(0) > last:
                last = chunk.member(-1)
                yield chunk
        at = data.find(_FRAME_MAGIC, at + 1)


def _zstd_texts(path: Folder, sha256: str) -> Iterator[str]:
    hashing = hashlib.sha256()
    decompressor, frame, is_complete = zstd.ZstdDecompressor(), b"", True
    for piece in read_pieces(path):
        hashing.update(piece)
        while piece:
            # A frame of a damaged file must not take more memory than a valid one.
            frame += decompressor.decompress(piece, _MOST_TEXT + 1 - len(frame))
            is_complete = decompressor.eof
            if len(frame) > _MOST_TEXT or (is_complete and not frame):
                raise ValueError
            if not is_complete:
                break
            piece = decompressor.unused_data  # noqa: PLW2901 - the rest of it
            # The decompressor has compared the frame's checksum.
            yield frame.decode()
            decompressor, frame = zstd.ZstdDecompressor(), b""
    if not (is_complete and hashing.hexdigest().startswith(sha256)):
        raise ValueError


def _gzip_texts(path: Folder, sha256: str) -> Iterator[str]:
    # The checksum of a gzip file is at its end, so the file is read once before any line of it is used.
    hashing = hashlib.sha256()
    for piece in read_pieces(path):
        hashing.update(piece)
    if hashing.hexdigest() != sha256:
        raise ValueError
    decompressor, rest = zlib.decompressobj(wbits=_GZIP_WBITS), b""
    for piece in read_pieces(path):
        lines, newline, rest = (rest + decompressor.decompress(piece)).rpartition(b"\n")
        if lines:
            yield (lines + newline).decode()


# Files of any text


@contextmanager
def writing_text(path: Folder) -> Iterator[Callable[[str], None]]:
    """Open a file for text; readers see it when the block ends without an error."""
    compressor = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)

    def write(text: str) -> None:
        with as_ledger_error("write", path):
            file.write(compressor.compress(text.encode()))

    with replacing(path) as file:
        yield write
        with as_ledger_error("write", path):
            file.write(compressor.flush())


def read_text(path: Folder) -> Iterator[bytes]:
    """Read what ``writing_text`` wrote, line by line.

    Raises:
        DamagedError: The file is missing, incomplete or damaged.
    """
    decompressor, rest = zstd.ZstdDecompressor(), b""
    try:
        for piece in read_pieces(path):
            data: bytes | None = piece
            while data is not None:
                lines = (rest + decompressor.decompress(data, _MOST_TEXT)).split(b"\n")
                rest = lines.pop()
                yield from lines
                data = None if decompressor.eof or decompressor.needs_input else b""
    except FileNotFoundError as error:
        raise missing(path) from error
    except (zstd.ZstdError, EOFError) as error:
        raise damaged(path) from error
    if not decompressor.eof:
        raise damaged(path)


# Acknowledgements


class Ranges:
    """A set of integers as ranges. Its memory grows with the number of ranges, not of integers.

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
        """Add a number, or all numbers from a first to a last one."""
        last = first if last is None else last
        # Ranges that touch the new one are merged with it.
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
        """First number of each gap below ``end``, and the number after its last, ascending."""
        starts, stops = [0, *(last + 1 for last in self._lasts)], [*self._firsts, end]
        return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


@dataclass(slots=True)
class Acks:
    """The outcomes of the batches of one part of a plan.

    Each process that pushes a part writes a file of its own, and ``merged`` reads all of them. So two
    processes that push the same part, as when a scheduler takes the first one for dead, cannot overwrite each
    other's outcomes.

    Args:
        landed: Batches with a known outcome, numbered from 0 within the part.
        refused: Positions of refused changes in their batch, by number of the batch.
        skipped: Refused positions that were never sent.
        may_have_left: During a push: batches below this number may have been sent.
        unclear: After a push that ended cleanly: batches that were sent and may have had an effect. If such
            a batch has landed too, an earlier attempt was unclear, so its refused changes are uncertain.
        withheld: Changes that run rules and got no clear answer, each with a dead letter. They are not sent
            again. If merged, none of them has landed.
        uncertain_refusals: Only if merged: batches with refused changes that another attempt or process
            may have made.
    """

    landed: Ranges = field(default_factory=Ranges)
    refused: dict[int, list[int]] = field(default_factory=dict)
    skipped: dict[int, list[int]] = field(default_factory=dict)
    may_have_left: int = 0
    unclear: Ranges = field(default_factory=Ranges)
    withheld: Ranges = field(default_factory=Ranges)
    uncertain_refusals: frozenset[int] = frozenset()

    def land(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note the outcome of a batch."""
        self.landed.add(batch)
        if positions := sorted(refused):
            self.refused[batch] = positions
        if positions := sorted(skipped):
            self.skipped[batch] = positions

    def is_open(self, batch: int) -> bool:
        """Whether a batch may have had an effect and has no outcome."""
        may_have_left = batch < self.may_have_left or batch in self.unclear or batch in self.withheld
        return may_have_left and batch not in self.landed

    @property
    def is_empty(self) -> bool:
        """Whether no batch may have had an effect."""
        return not (self.landed or self.may_have_left or self.unclear or self.withheld)

    @property
    def settled(self) -> Ranges:
        """Batches that are not sent again."""
        return Ranges([*self.landed.pairs, *self.withheld.pairs]) if self.withheld else self.landed

    def counts(self, lines: int, batch: int) -> tuple[int, int, int, int]:
        """Count landed, refused, skipped and withheld changes.

        Withheld changes exist only in a plan whose batches are single changes.
        """
        last, short = divmod(lines, batch)
        landed = len(self.landed) * batch - (batch - short if short and last in self.landed else 0)
        refused, skipped = (sum(map(len, found.values())) for found in (self.refused, self.skipped))
        return landed, refused, skipped, len(self.withheld)

    def write(self, path: Folder) -> None:
        """Write a file of acknowledgements."""
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
            raise missing(path)
        refused, skipped = (
            {int(batch): positions for batch, positions in content[name].items()}
            for name in ("refused", "skipped")
        )
        unclear, withheld = (Ranges(content.get(name, ())) for name in ("unclear", "withheld"))
        return cls(Ranges(content["landed"]), refused, skipped, content["may_have_left"], unclear, withheld)

    @classmethod
    def merged(cls, files: Sequence[Acks]) -> Acks:
        """Merge the acknowledgements of several processes for one part."""
        merged = cls(may_have_left=max((acks.may_have_left for acks in files), default=0))
        for acks in files:
            for name in ("landed", "unclear", "withheld"):
                ranges = getattr(merged, name)
                for first, last in getattr(acks, name).pairs:
                    ranges.add(first, last)
        for batch in {batch for acks in files for batch in acks.refused}:
            # A change that was sent twice is refused only if it was refused both times.
            landed = [acks for acks in files if batch in acks.landed]
            if refused := set.intersection(*(set(acks.refused.get(batch, ())) for acks in landed)):
                skipped = set.intersection(*(set(acks.skipped.get(batch, ())) for acks in landed))
                merged.land(batch, refused, skipped)
                if any(acks.is_open(batch) or batch in acks.unclear for acks in files):
                    merged.uncertain_refusals |= {batch}
        # A process may have got its answer after another one had taken over and withheld the change.
        spans = (range(first, last + 1) for first, last in merged.withheld.pairs)
        merged.withheld = Ranges([(n, n) for span in spans for n in span if n not in merged.landed])
        return merged


# Plans


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan in the manifest.

    Args:
        folder: Name of the folder of its files, which identifies the plan.
        parts: Its files, in order.
        batch: Changes in a batch; the last batch of a part may have fewer.
        acks: Files of acknowledgements that must exist.
        together: For a plan with changes that run rules, the maximum number of changes in one request; its
            batches are single changes. 0 for other plans.
    """

    folder: str = ""
    parts: tuple[File, ...] = ()
    batch: int = 1
    acks: tuple[str, ...] = ()
    together: int = 0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Plan:
        """Read a plan from the manifest's JSON."""
        return cls(
            folder=content["folder"],
            parts=tuple(File(**part) for part in content["parts"]),
            batch=content["batch"],
            acks=tuple(content["acks"]),
            together=content.get("together", 0),
        )

    @property
    def changes(self) -> int:
        """Changes in the plan."""
        return sum(part.lines for part in self.parts)

    def acks_of(self, part: int, run: str) -> str:
        """Return the path of a run's acknowledgements of a part, relative to the ledger's folder."""
        return f"{self.folder}/acks-{part:05}-{run}.json"

    def batches(self, ledger: Folder, part: int) -> Iterator[Chunk]:
        """Read a part, batch by batch.

        Raises:
            DamagedError: The part is missing or damaged.
        """
        return in_batches(read_chunks(ledger, self.parts[part]), self.batch)


def write_plan(ledger: Folder, folder: str, changes: Iterable[Chunk], *, batch: int, part: int) -> Plan:
    """Write a plan.

    Args:
        ledger: The ledger's folder.
        folder: Name of the plan's folder in it.
        changes: The changes, sorted.
        batch: Changes in a batch.
        part: Changes in a part, rounded up to full batches. The last part may have fewer. A part has more if
            its last profile has.
    """
    size = -(-part // batch) * batch
    runs_rules = False
    parts: list[File] = []
    chunks = iter(changes)
    rest: Chunk | None = next(chunks, None)
    while rest is not None:
        name = f"{folder}/plan-{len(parts):05}.tsv.zst"
        with writing_lines(ledger / name) as file:
            last = ""
            while rest is not None:
                runs_rules = runs_rules or rest.runs_rules
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
        if written := file.as_file(name):
            parts.append(written)
    # Each change that runs rules is a batch of its own.
    together = batch if runs_rules else 0
    return Plan(folder=folder, parts=tuple(parts), batch=1 if runs_rules else batch, together=together)


# The manifest


_NAME = re.compile(r"manifest-(\d+)-(\d+)-(?:(\d{4})-)?[0-9a-f]+\.json")
_FOLDER = re.compile(r"(\d{8,})-[0-9a-f]+")
_DRAFT = ".manifest-"
# Attempts to read the manifest while other runs replace it.
_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a ledger, and the earlier versions whose files are kept.

    A manifest is never overwritten: each has its own name, and the last by name is the current one. The name
    starts with the fencing token of the run that wrote it. So a late manifest of a run that was taken over
    comes before those of the run that took over. The manifests of kept versions are kept too: if the last one
    is damaged, the one before it is used.

    Args:
        version: Its number; 0 before the first version.
        fencing_token: The fencing token of the run that wrote it.
        run: The ID of that run.
        file: Name of its file; see ``file_name``.
        owner: The owner of that run; see ``Lock``.
        members: The file of members; None if there are no members.
        since: Earlier plans whose acknowledged changes apply to these members, the oldest first. None of them
            is sent any more.
        plan: The plan of this version.
        refused: Changes that Talon.One refused in earlier plans and that this plan does not have; None if
            there are none.
        withheld: Changes of earlier plans that run rules and got no clear answer; None if there are none.
        unreported: Changes of earlier plans that run rules, got no clear answer, and were reported by no
            finished run; None if there are none.
        reported: Whether a run that finished has reported all changes of the plan without a clear answer.
        letters: Name of the folder of the plan's dead letters.
        names: Attribute names. Fingerprints refer to positions in them, so that no name is ever taken out.
        facts: The ``RunFacts`` of that run, and the ``owner`` of a later run that had nothing to send.
        managed: The audiences that the plan might change; None for all.
        told: Names of other ledgers that have notes of this plan's changes.
        spent: Names of files of notes that this version covers. The next version deletes them.
        before: Name of the manifest of the same version that this one replaced.
        history: What is kept of earlier versions, the newest first.
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
    unreported: File | None = None
    reported: bool = False
    letters: str = ""
    names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    managed: Collection[str] | None = None
    told: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    before: str = ""
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """All plans whose files this version needs."""
        return (*self.since, self.plan)

    @property
    def _files(self) -> list[str]:
        return [file.file for file in (self.members, self.refused, self.withheld, self.unreported) if file]

    def file_name(self, serial: int) -> str:
        """Return the name of its file.

        Args:
            serial: Number of this manifest among those of its run.
        """
        return f"manifest-{self.fencing_token:08}-{self.version:08}-{serial:04}-{self.run}.json"

    def followed_by(self, manifest: Manifest, keep: int) -> Manifest:
        """Return the next version, with this one in its history."""
        if not self.version:
            return manifest
        before = {
            "version": self.version,
            "manifest": self.file,
            "folders": [plan.folder for plan in self.plans],
            "files": self._files,
            "letters": self.letters,
        }
        return replace(manifest, history=(before, *self.history)[: keep - 1])

    def write(self, folder: Folder, identity: Mapping[str, str]) -> None:
        """Write the manifest, which makes it the current one."""
        write_json(folder / self.file, {"format": FORMAT, **identity, **asdict(self)})

    @classmethod
    def of(cls, content: Mapping[str, Any], file: str) -> Manifest:
        """Read a manifest from JSON of this format or of format 1.

        Raises:
            LedgerError: The format is newer.
        """
        if content["format"] not in range(1, FORMAT + 1):
            raise LedgerError(
                f"The ledger has format {content['format']}; this version of the provider knows {FORMAT}.\n"
                f"Upgrade airflow-provider-talon-cdp on this worker.\nManifest: {file}"
            )
        content = {**content, "file": file}
        if content["format"] == 1:
            content["fencing_token"] = content.pop("turn")
            for part in chain.from_iterable(plan["parts"] for plan in (*content["since"], content["plan"])):
                part["key"] = part.pop("audience")
            if content["members"]:
                content["members"]["key"] = content["members"].pop("audience")
            for version in content["history"]:
                version |= {
                    "manifest": "",
                    "files": [version.pop("members")] if version["members"] else [],
                    "letters": "",
                }
        # The version before had reported what its runs found, as far as they finished.
        known: dict[str, Any] = {"reported": True}
        known |= {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        for name in ("members", "refused", "withheld", "unreported"):
            known[name] = File(**content[name]) if content.get(name) else None
        known["since"] = tuple(map(Plan.of, content["since"]))
        known["plan"] = Plan.of(content["plan"])
        known |= {name: tuple(content.get(name, ())) for name in ("names", "told", "spent", "history")}
        return cls(**known)

    def remove_others(self, folder: Folder, check: Callable[[], None]) -> None:
        """Delete files of versions that are not named here, and of plans whose manifest was never written.

        Args:
            folder: The ledger's folder.
            check: Raises an error if another run has taken over, whose files this run must not delete.
        """
        manifests = {self.file, self.before, *(version["manifest"] for version in self.history)}
        folders = {plan.folder for plan in self.plans}
        folders |= {folder for version in self.history for folder in version["folders"]}
        files = self._files + [file for version in self.history for file in version["files"]]
        split = [file.split("/") for file in files]
        found = names_in(folder)
        check()
        for name in found:
            # A killed run leaves the temporary file of its manifest.
            if name.startswith(_DRAFT) or (_NAME.fullmatch(name) and name not in manifests):
                remove(folder / name)
            elif _FOLDER.fullmatch(name) and name not in folders:
                remove_folder(folder / name, keep=[file for its_folder, file in split if its_folder == name])


class FoundManifest(NamedTuple):
    """The current manifest of a ledger, and what else was found with it.

    Args:
        manifest: The current manifest; version 0 if there is none yet.
        content: Its JSON.
        newest: The version of the last manifest by name, damaged or not.
        damaged: Names of later manifests that are damaged.
        orphans: Folders of later versions, the oldest first.
    """

    manifest: Manifest
    content: Mapping[str, Any]
    newest: int = 0
    damaged: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()


def find_manifest(folder: Folder) -> FoundManifest:
    """Read the current manifest of the ledger in a folder.

    Raises:
        DamagedError: All manifests are damaged.
        LedgerError: The format is newer.
    """
    for _ in range(_ATTEMPTS):
        found = names_in(folder)
        names = sorted(filter(_NAME.fullmatch, found), key=_order, reverse=True)
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
            # Another run has written the next manifest in the meantime, and deleted this one.
            continue
        if bad and not content:
            raise damaged(folder / bad[0])
        manifest = Manifest.of(content, name) if content else Manifest()
        orphans = tuple(
            name for name in found if (match := _FOLDER.fullmatch(name)) and int(match[1]) > manifest.version
        )
        newest = _order(names[0])[1] if names else 0
        return FoundManifest(manifest, content, newest, tuple(bad), orphans)
    raise missing(folder / name)


def kept_manifests(folder: Folder) -> tuple[list[Manifest], list[tuple[str, int]]]:
    """Return all readable manifests, the oldest first, and names and versions of the damaged ones."""
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
    """Return the fencing token of the run that wrote the last manifest, or 0."""
    return max((_order(name)[0] for name in names_in(folder) if _NAME.fullmatch(name)), default=0)


def _order(name: str) -> tuple[int, int, int, str]:
    match = _NAME.fullmatch(name)
    token, version, serial = match.groups(default="0") if match else ("0", "0", "0")
    return int(token), int(version), int(serial), name
