"""Text to measure on: what every machine has, or a file of the user's, in any amount."""

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import bar

from scratchlm.text.builtin import documents
from scratchlm.text.cleaning import content_hash

_SHORTEST_CHARACTERS = 200  # of a document that is made here: well above what default cleaning drops


class Text(NamedTuple):
    """A JSONL file of documents."""

    path: Path
    column: str
    n_documents: int
    n_bytes: int  # of the documents' text in UTF-8, without the JSON around it

    @property
    def megabytes(self) -> float:
        return self.n_bytes / 1e6


def require_space(folder: Path, megabytes: float) -> None:
    """Ends with one line where a disk has less room."""
    if (free := shutil.disk_usage(folder).free / 1e6) < megabytes:
        sys.exit(f"bench.py: {folder}: {free:,.0f} MB are free, and {megabytes:,.0f} are needed. Give another --work.")


def counted(path: Path, column: str) -> Text:
    """A file as it is."""
    n_documents = n_bytes = 0
    with bar(f"reading {path.name}", path.stat().st_size / 1e6) as progress, path.open("rb") as lines:
        for line in lines:
            n_bytes += len(json.loads(line)[column].encode(errors="replace"))
            n_documents += 1
            progress.update(len(line) / 1e6)
    return Text(path, column, n_documents, n_bytes)


def made(path: Path, megabytes: float, source: Path | None, column: str) -> Text:
    """Writes so much text that deduplication keeps whole: when it runs out, it begins again with small changes.

    Args:
        path: The file to write.
        megabytes: Text to write, in millions of bytes of UTF-8; the last document may go over.
        source: A JSONL file to take it from; None for the built-in sources of scratchlm.
        column: Its field that holds the text; the new file has the same.
    """
    n_documents, n_bytes = 0, 0
    with bar(f"making {path.name}", megabytes) as progress, path.open("w", encoding="utf-8") as file:
        for text in _endless(source, column):
            size = len(text.encode(errors="replace"))
            file.write(json.dumps({column: text}, ensure_ascii=False) + "\n")
            n_documents, n_bytes = n_documents + 1, n_bytes + size
            progress.update(size / 1e6)
            if n_bytes >= megabytes * 1e6:
                break
    return Text(path, column, n_documents, n_bytes)


def _endless(source: Path | None, column: str) -> Iterator[str]:
    kept: list[str] = []
    seen: set[int] = set()
    for text in _once(source, column):
        if len(text) >= _SHORTEST_CHARACTERS and (hash := content_hash(text)) not in seen:
            seen.add(hash)
            kept.append(text)
            yield text
    if not kept:
        sys.exit(f"bench.py: --text {source}: no document of {_SHORTEST_CHARACTERS} characters. Give another file.")
    for turn in itertools.count(1):
        for number, text in enumerate(kept):
            lines = text.split("\n")
            at = turn % len(lines)
            yield f"{turn}.{number} " + "\n".join(lines[at:] + lines[:at])


def _once(source: Path | None, column: str) -> Iterator[str]:
    if source is None:
        for name in ("python-docs", "package-readmes", "tiny-tales"):
            yield from (text for text, _ in documents(name))
    else:
        with source.open("rb") as lines:
            yield from (json.loads(line)[column] for line in lines)
