"""Rows out of local files: text, JSON lines and parquet, packed or not."""

import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.text.parts import Chunk, Part, Row, State

KINDS = (".txt", ".jsonl", ".parquet")
_PACKINGS = (".gz", ".zst")
ALLOWED = ".txt, .jsonl (either may be packed as .gz or .zst) or .parquet"
_PARQUET_ROWS = 1_000  # rows made Python strings at once (chosen, not tuned)
_CHUNK_BYTES = 1 << 20  # of text read at once (chosen, not tuned)
_BUFFER_BYTES = 1 << 18  # of a plain file: lines come twice as fast as through Python's 8 KiB
PART_BYTES = 8 << 20  # of a plain file that is read side by side with its other parts (chosen, not tuned)


def is_pattern(path: str) -> bool:
    """Whether `path` is a glob."""
    return glob.has_magic(path) and not Path(path).exists()


def kind_of(path: str) -> str | None:
    """`.txt`, `.jsonl` or `.parquet`, packing aside; None for any other name."""
    stem, suffix = os.path.splitext(path)
    if suffix in _PACKINGS:
        inner = os.path.splitext(stem)[1]
        return inner if inner in (".txt", ".jsonl") else None
    return suffix if suffix in KINDS else None


def find_files(key: str, path: str, kinds: Sequence[str] = KINDS) -> list[tuple[str, str]]:
    """The files that a path or glob names, in the order of their names.

    Args:
        key: What errors call the source, such as `data.sources.web`.
        path: A file, or a glob (`**` for any depth); `~` is the home folder.
        kinds: Endings of the files that may be there.

    Returns:
        (path, label) of each file. Labels are short and the same wherever the folder stands.

    Raises:
        MissingFile: Nothing is there.
        BadValue: A folder, or a file of a kind that cannot be read.
    """
    path = os.path.expanduser(path)
    if not is_pattern(path):
        if not os.path.exists(path):
            raise MissingFile(f"{key}: no file {path}. Check the path (this folder is {os.getcwd()}).")
        if os.path.isdir(path):
            raise BadValue(f"{key}: {path} is a folder. Name its files, such as {os.path.join(path, '*.txt')}.")
        if not os.path.isfile(path):
            raise BadValue(f"{key}: {path} is no regular file. Write its text to one, and name that.")
        found = [path]
    else:
        found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        if not found:
            raise MissingFile(f"{key}: no file matches {path}. Check the pattern (this folder is {os.getcwd()}).")
    if unreadable := [name for name in found if (kind_of(name) or os.path.splitext(name)[1]) not in kinds]:
        what, allowed = ("text", ALLOWED) if kinds == KINDS else ("ids", " or ".join(kinds))
        raise BadValue(f"{key}: {unreadable[0]} cannot be read as {what}. Name files that end in {allowed}.")
    root = os.path.dirname(found[0]) if len(found) == 1 else os.path.commonpath([os.path.dirname(n) for n in found])
    return [(name, Path(os.path.relpath(name, root or ".")).as_posix()) for name in found]


def check_file(key: str, path: str, column: str) -> None:
    """Opens a file and looks at its first row, so that what is wrong is said before hours of work.

    Raises:
        UserError: It cannot be opened, is not what its name says, or lacks the column.
    """
    with _readable(key, path):
        if kind_of(path) == ".txt":
            with _open(path) as file:
                file.read(1)
        elif kind_of(path) == ".jsonl":
            next(Lines(key, path, path, column).read(), None)
        else:
            parquet_file(key, path, column)


class Lines(NamedTuple):
    """The lines of a file, or those of a plain file that begin in a range of its bytes.

    Attributes:
        key: What errors call the source.
        path: The file.
        label: What ids call the file; the id of a row is `label:byte`, the byte at which its line begins.
        column: The text column of JSON lines; None for plain lines, each with its line end.
        start: First byte of the range.
        stop: Byte behind the range; None for the rest of the file.
    """

    key: str
    path: str
    label: str
    column: str | None
    start: int = 0
    stop: int | None = None

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """Rows of about 1 MiB at a time; the state is the byte at which the next line begins."""
        with _readable(self.key, self.path), _open(self.path) as file:
            offset = self.start if state is None else state
            if state is None and self.start:
                # The line that the byte before the range is in belongs to the range before.
                file.seek(self.start - 1)
                offset += len(file.readline()) - 1
            else:
                _skip(file, offset)
            while self.stop is None or offset < self.stop:
                lines = file.readlines(min(_CHUNK_BYTES, (self.stop or sys.maxsize) - offset))
                if not lines:
                    return
                rows = []
                for line in lines:
                    if self.stop is not None and offset >= self.stop:  # readlines may take one more than was asked
                        break
                    text = self._text(line, offset)
                    if text is not None:
                        rows.append((text, f"{self.label}:{offset}"))
                    offset += len(line)
                yield Chunk(rows, offset)

    def _text(self, line: bytes, offset: int) -> str | None:
        if self.column is None:
            return self._decoded(line, offset)
        try:
            text = orjson.loads(line)[self.column]
        except Exception:  # whatever is the matter, the slow way finds it and says it
            return self._text_of_odd_line(line, offset)
        return text if type(text) is str else self._text_of_odd_line(line, offset)

    def _text_of_odd_line(self, line: bytes, offset: int) -> str | None:
        """What `orjson` cannot read and JSON may hold: a byte order mark, half a surrogate pair, NaN; or the error."""
        assert self.column is not None
        text = self._decoded(line, offset)
        if not offset:
            text = text.removeprefix("\ufeff")
        if not text or text.isspace():
            return None
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadValue(
                f"{self.key}: {self.path}, line {self._number(offset):,} is not JSON ({error}). "
                "Each line is to be one object."
            ) from None
        if isinstance(row, dict) and isinstance(found := row.get(self.column), str):
            return found
        return text_of(self.key, f"{self.path}, line {self._number(offset):,}", row, self.column)

    def _decoded(self, line: bytes, offset: int) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError:
            return _decoded(self.key, self.path, line, self._number(offset))

    def _number(self, offset: int) -> int:
        """Number of the line that begins at a byte, counted from 1."""
        with _open(self.path) as file:
            n_lines, left = 1, offset
            while left and (data := file.read(min(_CHUNK_BYTES, left))):
                n_lines += data.count(b"\n")
                left -= len(data)
        return n_lines


class Pieces(NamedTuple):
    """The pieces of a text file between separators, or all of it as one; the id of a piece is `label:number`."""

    key: str
    path: str
    label: str
    separator: str | None

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """The state is [byte at which the next piece begins, its number, its line], counted from 0, 1 and 1."""
        offset, number, line = state or (0, 1, 1)
        with _readable(self.key, self.path), _open(self.path) as file:
            _skip(file, offset)
            if self.separator is None:
                if number == 1:
                    data = file.read()
                    yield Chunk([(_decoded(self.key, self.path, data), self.label)], [len(data), 2, 1])
                return
            separator, rest = self.separator.encode(), b""
            # Reading as much again as is still unsplit keeps the work linear however long a piece is.
            while chunk := file.read(max(_CHUNK_BYTES, len(rest))):
                *whole, rest = (rest + chunk).split(separator)
                rows = []
                for piece in whole:
                    rows.append((_decoded(self.key, self.path, piece, line), f"{self.label}:{number}"))
                    line += piece.count(b"\n") + separator.count(b"\n")
                    offset += len(piece) + len(separator)
                    number += 1
                if rows:
                    yield Chunk(rows, [offset, number, line])
        if rest:
            row = (_decoded(self.key, self.path, rest, line), f"{self.label}:{number}")
            yield Chunk([row], [offset + len(rest), number + 1, line])


class RowGroups(NamedTuple):
    """Some row groups of a parquet file, in a row; the id of a row is `label:number`, its number in the file from 1."""

    key: str
    path: str
    label: str
    column: str
    first: int
    n_groups: int

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """The state is the number of rows read."""
        skip = state or 0
        with _readable(self.key, self.path), parquet_file(self.key, self.path, self.column) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(self.first + self.n_groups)]
            done, before = 0, sum(sizes[: self.first])
            for group in range(self.first, self.first + self.n_groups):
                if done + sizes[group] <= skip:
                    done += sizes[group]
                    continue
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[self.column]):
                    fresh = batch.slice(max(0, skip - done))
                    first = before + done + len(batch) - len(fresh)
                    done += len(batch)
                    if len(fresh):
                        yield Chunk(self._rows(fresh, first), done)

    def _rows(self, batch: Any, n_before: int) -> list[Row]:
        try:
            texts = batch.column(0).to_pylist()
        except UnicodeDecodeError:
            rows = f"rows {n_before + 1:,} to {n_before + len(batch):,}"
            raise BadValue(f"{self.key}: {self.path} is not UTF-8 somewhere in {rows}. Write it again.") from None
        return [(text or "", f"{self.label}:{number}") for number, text in enumerate(texts, n_before + 1)]


def parts(key: str, path: str, column: str, separator: str | None, by_line: bool) -> list[Part]:
    """The parts of the files that a path or glob names.

    Args:
        key: What errors call the source.
        path: A file or glob.
        column: Text column of JSON lines and parquet.
        separator: Of a text file's documents.
        by_line: Whether a text file's lines are its documents.

    Raises:
        UserError: A file is not there, or is no parquet.
    """
    found: list[Part] = []
    for name, label in find_files(key, path):
        if kind_of(name) == ".parquet":
            found += _row_groups(key, name, label, column)
        elif kind_of(name) == ".jsonl" or by_line:
            text_column = column if kind_of(name) == ".jsonl" else None
            if name.endswith(_PACKINGS):
                found.append(Lines(key, name, label, text_column))
            else:
                size = os.path.getsize(name)
                ranges = [(start, min(start + PART_BYTES, size)) for start in range(0, size, PART_BYTES)]
                found += [Lines(key, name, label, text_column, start, stop) for start, stop in ranges]
        else:
            found.append(Pieces(key, name, label, separator))
    return found


def _row_groups(key: str, path: str, label: str, column: str) -> Iterator[Part]:
    with _readable(key, path), parquet_file(key, path, column) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    first, n_bytes = 0, 0
    for group, size in enumerate(sizes):
        n_bytes += size
        if n_bytes >= PART_BYTES or group == len(sizes) - 1:
            yield RowGroups(key, path, label, column, first, group + 1 - first)
            first, n_bytes = group + 1, 0


def text_bytes(key: str, path: str, column: str) -> int | None:
    """About how many bytes of text the files of a path or glob hold; None where they are packed."""
    total = 0
    for name, _ in find_files(key, path):
        if name.endswith(_PACKINGS):
            return None
        if kind_of(name) == ".parquet":
            with _readable(key, name), parquet_file(key, name, column) as file:
                total += column_bytes(file.metadata, column)
        else:
            total += os.path.getsize(name)
    return total


def column_bytes(metadata: Any, column: str) -> int:
    """Bytes of a column of a parquet file, unpacked."""
    names = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    index = names.index(column)
    groups = range(metadata.num_row_groups)
    return sum(metadata.row_group(group).column(index).total_uncompressed_size for group in groups)


def _skip(file: IO[bytes], n_bytes: int) -> None:
    if file.seekable():
        file.seek(n_bytes)
        return
    while n_bytes and (data := file.read(min(_CHUNK_BYTES, n_bytes))):
        n_bytes -= len(data)


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    if path.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(path, "zstd"), _CHUNK_BYTES)
    return open(path, "rb", buffering=_BUFFER_BYTES)


@contextmanager
def _readable(key: str, path: str) -> Iterator[None]:
    try:
        yield
    except (UserError, PermissionError):
        raise
    except Exception as error:
        if not (isinstance(error, OSError | EOFError | zlib.error) or type(error).__module__.startswith("pyarrow")):
            raise
        reason = str(error).splitlines()[0]
        raise BrokenState(f"{key}: {path} cannot be read to its end ({reason}). Fetch or pack it again.") from error


def _decoded(key: str, path: str, data: bytes, line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        byte = error.start - data.rfind(b"\n", 0, error.start)
        raise BadValue(
            f"{key}: {path} is not UTF-8: line {line:,} has 0x{data[error.start]:02x} as its byte {byte:,}. "
            "Convert the file to UTF-8, for instance with iconv."
        ) from None


def text_of(key: str, where: str, row: Any, column: str) -> str:
    """The text of a row; a null is an empty text.

    Raises:
        BadValue: The row has no such column, or something else than text in it.
    """
    if not isinstance(row, dict):
        raise BadValue(f"{key}: {where} is no JSON object but {type(row).__name__}. Each line is to be one object.")
    if column not in row:
        raise missing_column(key, where, column, row)
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadValue(
            f"{key}: {where} has {type(text).__name__}, not text, in column {column!r}. Name another text_column."
        )
    return text


def missing_column(key: str, where: str, column: str, columns: Any) -> BadValue:
    """The one line for a column that is not there; it names those that are."""
    return BadValue(
        f"{key}: {where} has no column {column!r}. Set text_column to one of: {', '.join(map(str, columns)) or 'none'}."
    )


def parquet_file(key: str, path: str, column: str) -> Any:
    """Opens a parquet file and makes sure of its text column.

    Raises:
        BrokenState: It is no whole parquet file.
        BadValue: It lacks the column, or has something else than text in it.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise BrokenState(
            f"{key}: {path} is no whole parquet file ({str(error).splitlines()[0]}). Fetch it again."
        ) from error
    if not (n := file.schema_arrow.names.count(column)):
        raise missing_column(key, path, column, file.schema_arrow.names)
    if n > 1:
        raise BadValue(f"{key}: {path} has {n} columns named {column!r}. Write it again with one, or name another.")
    check_text_type(key, path, column, file.schema_arrow.field(column).type)
    return file


def check_text_type(key: str, where: str, column: str, type: Any) -> None:
    """Refuses a column that holds something else than text.

    Raises:
        BadValue: Its Arrow type is none of strings.
    """
    import pyarrow

    if pyarrow.types.is_dictionary(type):
        type = type.value_type
    if not (pyarrow.types.is_string(type) or pyarrow.types.is_large_string(type) or pyarrow.types.is_string_view(type)):
        raise BadValue(f"{key}: {where} has {type}, not text, in column {column!r}. Name another text_column.")
