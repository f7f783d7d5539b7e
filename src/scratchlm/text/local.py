"""Rows out of local files: text, JSON lines and parquet, packed or not."""

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scratchlm.errors import BadValue, BrokenState, MissingFile

KINDS = (".txt", ".jsonl", ".parquet")
_PACKINGS = (".gz", ".zst")
ALLOWED = ".txt, .jsonl (either may be packed as .gz or .zst) or .parquet"
_PARQUET_ROWS = 1_000  # rows made Python strings at once (chosen, not tuned)
_CHUNK_BYTES = 1 << 20  # read at once where text is split at a separator (chosen, not tuned)


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


def find_files(key: str, path: str) -> list[tuple[str, str]]:
    """The files that a path or glob names, in the order of their names.

    Args:
        key: What errors call the source, such as `data.sources.web`.
        path: A file, or a glob (`**` for any depth); `~` is the home folder.

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
        found = [path]
    else:
        found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        if not found:
            raise MissingFile(f"{key}: no file matches {path}. Check the pattern (this folder is {os.getcwd()}).")
    if unreadable := [name for name in found if kind_of(name) is None]:
        raise BadValue(f"{key}: {unreadable[0]} cannot be read as text. Name files that end in {ALLOWED}.")
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
            next(_json_rows(key, path, path, column), None)
        else:
            _parquet_file(key, path, column)


def rows(key: str, path: str, label: str, column: str, split_at: str | None, whole: bool) -> Iterator[tuple[str, str]]:
    """The rows of one file with their ids.

    Args:
        key: What errors call the source.
        path: The file.
        label: What ids call the file.
        column: The text column of JSON lines and parquet.
        split_at: For a text file: the separator between its pieces; None for lines, each with its line end.
        whole: For a text file: all of it is one row.

    Yields:
        (text, id), where the id is `label:number`, numbers counted from 1, or the label for a whole file.

    Raises:
        UserError: Bytes that are not UTF-8, JSON that is none, a missing column, a file cut short.
    """
    with _readable(key, path):
        if kind_of(path) == ".jsonl":
            yield from _json_rows(key, path, label, column)
        elif kind_of(path) == ".parquet":
            yield from _parquet_rows(key, path, label, column)
        elif whole:
            with _open(path) as file:
                yield _decoded(key, path, file.read()), label
        elif split_at is not None:
            yield from _pieces(key, path, label, split_at.encode())
        else:
            with _open(path) as file:
                for number, line in enumerate(file, 1):
                    yield _decoded(key, path, line, number), f"{label}:{number}"


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    if path.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(path, "zstd"), _CHUNK_BYTES)
    return open(path, "rb")


@contextmanager
def _readable(key: str, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
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


def _pieces(key: str, path: str, label: str, separator: bytes) -> Iterator[tuple[str, str]]:
    number, line, rest = 1, 1, b""
    with _open(path) as file:
        # Reading as much again as is still unsplit keeps the work linear however long a piece is.
        while chunk := file.read(max(_CHUNK_BYTES, len(rest))):
            *whole, rest = (rest + chunk).split(separator)
            for piece in whole:
                yield _decoded(key, path, piece, line), f"{label}:{number}"
                line += piece.count(b"\n") + separator.count(b"\n")
                number += 1
    yield _decoded(key, path, rest, line), f"{label}:{number}"


def _json_rows(key: str, path: str, label: str, column: str) -> Iterator[tuple[str, str]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            text = _decoded(key, path, line, number)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.isspace():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BadValue(
                    f"{key}: {path}, line {number:,} is not JSON ({error}). Each line is to be one object."
                ) from None
            yield text_of(key, f"{path}, line {number:,}", row, column), f"{label}:{number}"


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


def _parquet_file(key: str, path: str, column: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise BrokenState(
            f"{key}: {path} is no whole parquet file ({str(error).splitlines()[0]}). Fetch it again."
        ) from error
    if column not in file.schema_arrow.names:
        raise missing_column(key, path, column, file.schema_arrow.names)
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


def _parquet_rows(key: str, path: str, label: str, column: str) -> Iterator[tuple[str, str]]:
    n_before = 0
    with _parquet_file(key, path, column) as file:
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[column]):
            try:
                texts = batch.column(0).to_pylist()
            except UnicodeDecodeError:
                rows = f"rows {n_before + 1:,} to {n_before + len(batch):,}"
                raise BadValue(f"{key}: {path} is not UTF-8 somewhere in {rows}. Write it again.") from None
            for number, text in enumerate(texts, n_before + 1):
                yield text or "", f"{label}:{number}"
            n_before += len(texts)
