"""CSV and TSV: bytes in, columns of text out, with the exact line of whatever is wrong.

A row is unreadable when it has the wrong number of cells, a broken quote, bytes that are not UTF-8, or a
NUL; it is skipped and counted. Two paths give the same rows (a property test holds them together): Arrow's
parser for blocks in which nothing can go wrong unseen, and the standard library's `csv` in strict mode for
the rest, one record at a time, because it alone says on which line a record began and ended.

A quote that is opened by mistake would swallow the rows after it. So a record that does not end well gives back all
lines but its first, which alone is bad; and a record that spans several lines and has the wrong number of cells counts
as that many bad rows. Lines end in LF or CRLF; a lone CR is bad outside quotes. A line with nothing on it is no row.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from training.data.chunks import Chunk
from training.data.faults import Faults, Place, shown
from training.errors import DataError

BLOCK_BYTES = 1 << 24
"""Text dealt with at once. Larger blocks repeat fewer values, so preparing is quicker; smaller take less memory."""
MAX_RECORD_BYTES = 1 << 20
"""A record longer than this is taken for one whose closing quote is missing."""

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PACKED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
"""Endings of packed text, and what such a file begins with."""
_NAMES = {".gz": "gzip", ".zst": "zstd", None: "text"}
_OTHERS = {"bzip2": b"BZh", "xz": b"\xfd7zXZ", "zip": b"PK\x03\x04", "7z": b"7z\xbc\xaf"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextFormat:
    """How the cells of a text file are told apart."""

    separator: str | None = None
    """One character; None takes it from the file's ending: comma for .csv, tab for .tsv and .tab."""
    quote: str | None = '"'
    """The quote character, doubled inside quotes; None when the file does not quote."""
    header: tuple[str, ...] | None = None
    """The columns' names, for files that have no header line."""


def first_line_of(path: Path) -> tuple[bytes, bool]:
    """(the first line of a text file, unpacked, with its end; whether it is packed). `DataError` for an empty file."""
    with _Lines(path) as lines:
        block = lines.more()
    if not block:
        raise DataError(f"{path}: the file is empty; expected a header line with the columns' names, then rows")
    return block[: block.index(b"\n") + 1], lines.packing is not None


class TextFile:
    """One CSV or TSV file, plain, gzip or zstd. Raises `DataError` at once for a header that cannot be used."""

    def __init__(self, path: Path, form: TextFormat) -> None:
        self.path = path
        self.name = str(path)
        self.separator = form.separator or self._separator_by_ending()
        self.quote = form.quote
        if len(self.separator) != 1 or self.separator in '\r\n\0"':
            raise DataError(f"{self.name}: the separator must be one character, got {shown(self.separator)}")
        self._has_header = form.header is None
        first, self.is_packed = first_line_of(path)
        self.header = form.header if form.header is not None else self._parse_header(first)
        self._refuse_doubles()

    def _separator_by_ending(self) -> str:
        endings = [e.lower() for e in self.path.suffixes if e.lower() not in PACKED]
        ending = endings[-1] if endings else ""
        if ending not in SEPARATORS:
            raise DataError(
                f"{self.name}: cannot tell the separator from the ending {ending!r}; expected .csv, .tsv, "
                ".tab (each also .gz or .zst) or .parquet. Say `separator` for this file"
            )
        return SEPARATORS[ending]

    def _refuse_doubles(self) -> None:
        seen: set[str] = set()
        for name in self.header:
            if name in seen:
                raise DataError(
                    f"{self.name}:1: column {name!r} stands twice in the header; every name must be its own. "
                    "If this line is a row, the file has no header: name its columns by `header`"
                )
            seen.add(name)

    def _parse_header(self, first: bytes) -> tuple[str, ...]:
        try:
            text = first.decode()
            header: list[str] = next(self._reader([text]), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.name}:1: the header cannot be read: {error}") from None
        if not header or "\0" in text:
            raise DataError(f"{self.name}:1: expected the columns' names, got {shown(text)}")
        return tuple(header)

    def _reader(self, lines: Iterable[str]) -> Any:
        """The standard library's reader, strict, over lines that keep their ends."""
        if self.quote is None:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, strict=True)

    def header_advice(self) -> str:
        """Why no column at all might be found in this header, as the end of an error message; "" mostly."""
        if len(self.header) == 1:
            others = [s for s in (",", "\t", ";", "|") if s != self.separator and s in self.header[0]]
            if others:
                return (
                    f" The whole header is one cell: is the separator {others[0]!r}, not {self.separator!r}? "
                    "Then say so: `separator`"
                )
        return ""

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        """The file's rows in blocks of some megabytes of text; `columns` must be in the header."""
        wanted = [self.header.index(c) for c in columns]
        with _Lines(self.path) as lines:
            line = 1
            if self._has_header:
                block = lines.more()
                lines.give_back(block[block.index(b"\n") + 1 :])
                line = 2
            while block := lines.more():
                got = self._fast(block, columns) if self._is_plain(block) else None
                if got is not None:
                    numbers = np.arange(line, line + len(got[0]), dtype=np.int64)
                    faults.seen(self.name, len(numbers))
                    line += len(numbers)
                else:
                    rows, starts, line = self._exact(block, lines, line, faults)
                    numbers = np.array(starts, dtype=np.int64)
                    got = [pa.array([row[i] for row in rows], pa.string()) for i in wanted]
                if len(numbers):
                    yield Chunk(self.name, dict(zip(columns, got, strict=False)), numbers, "line", lines.read_share)
        faults.close(self.name)

    def piece(self, columns: Sequence[str], start: int, length: int) -> list[pa.Array]:
        """The readable rows among the whole lines in bytes `start` to `start + length` of a plain (not packed) file.

        For looking at a large file here and there: a piece may begin inside a quoted cell, so what cannot be read is
        not counted, and lines have no numbers.
        """
        with self.path.open("rb") as file:
            file.seek(start)
            block = file.read(length)
        block = block[block.find(b"\n") + 1 : block.rfind(b"\n") + 1]
        if self._is_plain(block) and (got := self._fast(block, columns)) is not None:
            return got
        rows, _, _ = self._exact(block, _NoLines(), 1, Faults(None))
        return [pa.array([row[self.header.index(c)] for row in rows], pa.string()) for c in columns]

    def _is_plain(self, block: bytes) -> bool:
        """Whether a line of this block is a row and every separator in it separates, whatever the cells say."""
        if (self.quote and self.quote.encode() in block) or b"\0" in block or block.startswith(_BOM):
            return False
        if block.startswith((b"\n", b"\r")) or b"\n\n" in block or b"\n\r" in block:
            return False  # blank lines
        if b"\r" in block and block.count(b"\r") != block.count(b"\r\n"):
            return False
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError:
                return False
        return True

    def _fast(self, block: bytes, columns: Sequence[str]) -> list[pa.Array] | None:
        """Arrow's parse of a plain block; None when a line of it has another number of cells than the header."""
        asked = list(columns) or [self.header[0]]
        try:
            table = pacsv.read_csv(
                pa.BufferReader(block),
                read_options=pacsv.ReadOptions(
                    use_threads=False, block_size=len(block) + 1, column_names=list(self.header)
                ),
                parse_options=pacsv.ParseOptions(
                    delimiter=self.separator, quote_char=False, escape_char=False, ignore_empty_lines=False
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(asked, pa.string()),
                    include_columns=asked,
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != block.count(b"\n"):
            return None
        return [table.column(c).combine_chunks() for c in asked]

    def _exact(
        self, block: bytes, lines: "_Lines | _NoLines", line: int, faults: Faults
    ) -> tuple[list[list[str]], list[int], int]:
        """Rows of a block record by record -> (rows, the line each begins on, the line after the block)."""
        width = len(self.header)
        text = block.decode("utf-8", "surrogateescape").split("\n")[:-1]
        rows: list[list[str]] = []
        starts: list[int] = []
        at = 0  # index into text of the record being read

        def supply() -> Iterator[str]:
            """The lines from `at` on; pulls the next block when a record is still open at the end of this one."""
            nonlocal text
            i, size = at, 0
            while True:
                if i == at:
                    size = 0  # a record begins
                if i == len(text):
                    more = lines.more() if i > at else b""
                    if not more:
                        return
                    text += more.decode("utf-8", "surrogateescape").split("\n")[:-1]
                size += len(text[i])
                if i > at and size > MAX_RECORD_BYTES:
                    return
                yield text[i] + "\n"
                i += 1

        block_end = len(text)
        while at < block_end:
            reader = self._reader(supply())
            begun = at
            while at < block_end:
                try:
                    row = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    place = Place(self.name, line + at, "line")
                    faults.bad(place, *_broken(error, text[at]))
                    faults.seen(self.name, 1)
                    at += 1
                    break
                start, at = at, begun + reader.line_num
                if not row:
                    faults.blank_lines += 1
                    continue
                problem = _problem(row, width, "as in the header" if self._has_header else "a row")
                if problem and at == len(text) and lines.breaks_off:
                    problem = problem[0], f"{problem[1]}; the file ends within this line: is it truncated?"
                spanned = 1
                if problem:
                    spanned = at - start
                    faults.bad(Place(self.name, line + start, "line"), *problem, count=spanned)
                else:
                    rows.append(row)
                    starts.append(line + start)
                faults.seen(self.name, spanned)
        lines.give_back("".join(t + "\n" for t in text[at:]).encode("utf-8", "surrogateescape"))
        return rows, starts, line + at


def _problem(row: list[str], width: int, like: str) -> tuple[str, str] | None:
    """Why a parsed record is no row: (reason to count it under, what to say of it), or None."""
    if len(row) != width:
        return "wrong number of cells", f"expected {width} cells {like}, got {len(row)}"
    text = "".join(row)
    if "\0" in text:
        return "NUL byte", "a NUL byte in the row; expected text"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "not UTF-8", "bytes that are not UTF-8; expected UTF-8 text"
    return None


def _broken(error: csv.Error, line: str) -> tuple[str, str]:
    if "new-line" in str(error):
        return (
            "stray carriage return",
            "a carriage return inside the row; expected lines to end in LF or CRLF",
        )
    if "field larger" in str(error):
        return (
            "broken quote",
            f"a cell longer than {csv.field_size_limit()} characters; expected its quote to close",
        )
    return "broken quote", f"a quote that does not close where its cell ends, in {shown(line)}"


class _NoLines:
    """What follows a piece of a file: nothing."""

    breaks_off = False

    def more(self) -> bytes:
        return b""

    def give_back(self, block: bytes) -> None: ...


class _Lines:
    """A file as blocks of whole lines; unpacks gzip and zstd, drops a byte order mark, ends the last line."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._raw: io.BufferedReader = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from None
        self._bytes = max(1, path.stat().st_size)
        head = self._raw.read(6)
        self._raw.seek(0)
        self.packing = next((ending for ending, magic in PACKED.items() if head.startswith(magic)), None)
        """`.gz`, `.zst`, or None for plain text."""
        ending = path.suffix.lower()
        refusal = ""
        if ending in PACKED and head and self.packing != ending:
            refusal = f"ends in {ending} but is not {_NAMES[ending]} (it begins with {shown(head[:4])})"
        elif head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            refusal = "is UTF-16 text; expected UTF-8. Convert it first, e.g. iconv -f UTF-16 -t UTF-8"
        else:
            for name, magic in _OTHERS.items():
                if head.startswith(magic):
                    refusal = f"is packed by {name}; expected text, gzip or zstd. Unpack it first"
        if refusal:
            self._raw.close()
            raise DataError(f"{path}: {refusal}")
        self._stream: Any = self._raw
        if self.packing == ".gz":
            self._stream = gzip.GzipFile(fileobj=self._raw)
        elif self.packing == ".zst":
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd")
        self._tail = b""
        self.breaks_off = False
        """Whether the end was reached, and its last line has no line break."""
        self._ready: list[bytes] = []
        self._at_start = True
        self._damage: str | None = None
        self._lines = 0

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self._raw.close()

    @property
    def read_share(self) -> float:
        return min(1.0, self._raw.tell() / self._bytes)

    def give_back(self, block: bytes) -> None:
        """Whole lines that the next `more` shall return first."""
        if block:
            self._ready.append(block)

    def more(self) -> bytes:
        """The next whole lines, or b"" at the end of the file. Raises `DataError` where a gzip file breaks off."""
        if self._ready:
            return self._ready.pop()
        parts = [self._tail]
        while True:
            block = self._read()
            if not block:
                rest = b"".join(parts)
                self._tail = b""
                self.breaks_off = self.breaks_off or bool(rest)
                return rest + b"\n" if rest else b""
            cut = block.rfind(b"\n") + 1
            if cut:
                self._tail = block[cut:]
                return b"".join([*parts, block[:cut]])
            parts.append(block)

    def _read(self) -> bytes:
        """Up to a block of bytes. Damage is reported only after all that could be unpacked before it."""
        if self._damage:
            raise DataError(
                f"{self.name}:{self._lines + 1}: the {_NAMES[self.packing]} file is truncated or damaged in or after "
                "this line "
                f"({self._damage}); expected it whole. Fetch or write it again"
            )
        parts: list[bytes] = []
        size = 0
        try:
            # Little by little: of a file that breaks off, zstd gives nothing of the piece in which it does.
            read, most = (self._stream.read, 1 << 16) if self.packing == ".zst" else (self._stream.read1, BLOCK_BYTES)
            while size < BLOCK_BYTES and (part := read(min(most, BLOCK_BYTES - size))):
                parts.append(part)
                size += len(part)
        except (EOFError, zlib.error, OSError, pa.ArrowException) as error:  # BadGzipFile is an OSError
            self._damage = str(error)
            if not parts:
                return self._read()
        block = b"".join(parts)
        if self._at_start:
            self._at_start = False
            block = block.removeprefix(_BOM)
        self._lines += block.count(b"\n")
        return block
