"""Bins looked at again: whether every bit is as it was written, and what stands where. No torch."""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scratchlm.data.assembly import bar
from scratchlm.data.bins import (
    CURE,
    MANIFEST,
    TOKEN,
    TOKENIZER_FILES,
    Bin,
    check_files,
    file_faults,
    is_prepared,
    read_manifest,
)
from scratchlm.data.card import card_table
from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.files.whole import sha256
from scratchlm.text.cleaning import content_hash
from scratchlm.text.ids import DocumentStarts, ids_hash
from scratchlm.text.tokenizer import Tokenizer, load

_CHUNK_BYTES = 1 << 22  # read at once (chosen, not tuned)
_CHUNK_DOCUMENTS = 1 << 17  # records of an index looked at together (chosen, not tuned)
_SAMPLED_DOCUMENTS = 64  # of each split (chosen, not tuned)
_SAMPLED_TOKENS = 2_000_000  # of each split: no document is decoded that would bring it above (chosen, not tuned)
_SHOWN_TOKENS = 40  # on either side of a position (chosen, not tuned)


def check(folder: str) -> None:
    """Reads a folder of bins from end to end, and prints its card and every file that is not as it was written.

    Bins, indexes and tokenizer are hashed; ids are compared with the vocabulary, indexes with the ends of text, the
    card with the indexes, and some documents are decoded and compared with the hashes of their texts. Exit status 1
    where something is broken.

    Args:
        folder: The folder, as `data.folder` names it.
    """
    _require_bins(folder)
    try:
        manifest = read_manifest(folder)
        table = _card(folder, manifest)
    except BrokenState as error:
        faults = [str(error)]
    else:
        print(table)
        faults = list(damage(folder, manifest).values())
    for fault in faults:
        print(f"scratchlm: broken: {' '.join(fault.split())}", file=sys.stderr)
    if faults:
        sys.exit(1)
    n_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    print(f"{folder}: {len(manifest['files'])} files of {n_bytes:,} bytes and their tokenizer are as they were written")


def show(
    folder: str,
    document: int | None = None,
    at: int | None = None,
    split: Literal["train", "val", "test"] = "train",
) -> None:
    """Prints the card of a folder of bins, or one of its documents, or what stands at a position.

    Args:
        folder: The folder, as `data.folder` names it.
        document: Number of a document, counted from 0: its source, place, hash and text.
        at: Position of a token in the bin, counted from 0: the document and source it belongs to, and the text around.
        split: The bin that `document` and `at` speak of.

    Raises:
        MissingFile: No bins there, or not of that split.
        BadValue: No such document or position; the line names the range.
        BrokenState: The bins are not as they were written.
    """
    _require_bins(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if document is not None and at is not None:
        raise BadValue(f"--document={document}, --at={at}: both are given. Keep one.")
    if f"{split}.bin" not in manifest["files"]:
        raise MissingFile(f"--split={split}: no {split}.bin in {folder}. It holds {', '.join(manifest['files'])}.")
    if document is None and at is None:
        print(_card(folder, manifest))
        return
    bin_ = Bin(folder, split)
    if at is not None:
        _require_below("at", at, bin_.n_tokens, f"tokens of {split}.bin")
        document = int(np.searchsorted(bin_.documents["start"], np.uint64(at), side="right")) - 1
    assert document is not None
    _require_below("document", document, len(bin_.documents), f"documents of {split}.bin")
    _show_document(bin_, document, manifest, at)


def _show_document(bin_: Bin, number: int, manifest: dict[str, Any], at: int | None) -> None:
    first, end = _span(bin_, number)
    entry, ids = bin_.documents[number], bin_.tokens[first:end]
    tokenizer, sources = load(bin_.folder), manifest["card"]["sources"]
    if not len(ids) or ids.max() >= tokenizer.vocab_size or entry["source"] >= len(sources):
        raise BrokenState(
            f"{bin_.folder / bin_.split}.bin: document {number:,} is damaged. scratchlm corpus check --folder "
            f"{bin_.folder} says what else is."
        )
    source = sources[entry["source"]]
    is_ended = ids[-1] == tokenizer.end_of_text_id
    print(f"document {number:,} of {len(bin_.documents):,} in {bin_.split}.bin")
    print(f"source {entry['source']}: {source['name']}, {source['uri']}")
    counted = f"{len(ids):,} {'with the' if is_ended else 'without an'} end of text"
    print(f"tokens {first:,} to {end - 1:,}, {counted}; hash {int(entry['hash']):016x}")
    if at is None:
        print()
        for piece in _text(tokenizer, ids):
            print(piece, end="")
        print()
        return
    token = int(bin_.tokens[at])
    spelled = "the end of text" if token == tokenizer.end_of_text_id else repr(tokenizer.decode([token]))
    print(f"position {at:,}: id {token}, {spelled}; text before and after it:")
    before, after = bin_.tokens[max(first, at - _SHOWN_TOKENS) : at], bin_.tokens[at + 1 : min(end, at + _SHOWN_TOKENS)]
    print(f"  {tokenizer.decode(before.tolist())!r}")
    print(f"  {tokenizer.decode(after.tolist())!r}")


def _card(folder: str, manifest: dict[str, Any]) -> str:
    try:
        return card_table(manifest)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        told = f"its card is damaged ({type(error).__name__}: {error})"
        raise BrokenState(f"{Path(folder) / MANIFEST}: {told}. {CURE}") from error


def damage(folder: str | Path, manifest: dict[str, Any]) -> dict[str, str]:
    """All that a reading from end to end finds wrong; memory does not grow with the bins.

    Args:
        folder: The bins folder.
        manifest: Its manifest.

    Returns:
        Name of a file -> one line that begins with its path; empty where all is as it was written.
    """
    return _Reading(Path(folder), manifest).faults()


def require_whole(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Reads bins from end to end.

    Args:
        folder: The bins folder.
        manifest: Its manifest.

    Raises:
        BrokenState: The first fault that `damage` finds.
    """
    for fault in damage(folder, manifest).values():
        raise BrokenState(fault)


def require_untouched(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Reads those bins and indexes that were changed, moved or copied after their manifest: seldom any.

    Args:
        folder: The bins folder.
        manifest: Its manifest.

    Raises:
        BrokenState: One is not as it was written.
    """
    sealed = Path(folder) / MANIFEST
    touched = [
        path
        for name in manifest["files"]
        if (path := Path(folder) / name).stat().st_ctime_ns > sealed.stat().st_ctime_ns
    ]
    for path in touched:
        if (now := sha256(path)) != (written := manifest["files"][path.name]["sha256"]):
            raise BrokenState(f"{path}: not as it was written (SHA-256 {now[:12]}, not {written[:12]}). {CURE}")
    if touched:
        with suppress(OSError):  # bins may be another's
            os.utime(sealed)  # they need not be read again


class _Reading:
    """One reading of a folder; `found` is what it has met by now, the first fault of each file."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.found = file_faults(folder, manifest)
        self.is_adopted = bool(manifest["card"].get("adopted"))

    def faults(self) -> dict[str, str]:
        files = self.manifest["files"]
        tokenizer = self._tokenizer()
        splits = [split for split in ("train", "val", "test") if f"{split}.bin" in files]
        with bar(
            "reading bins", "B", sum(files[name]["bytes"] for name in files if name not in self.found)
        ) as progress:
            for split in splits:
                self._read_index(split, progress)
                self._read_bin(split, tokenizer, progress)
        whole = [split for split in splits if not {f"{split}.bin", f"{split}.docs.npy"} & self.found.keys()]
        if tokenizer and len(whole) == len(splits):
            self._read_samples(tokenizer, whole)
        return self.found

    def _blame(self, name: str, why: str) -> None:
        self.found.setdefault(name, f"{self.folder / name}: {why}. {CURE}")

    def _tokenizer(self) -> Tokenizer | None:
        if "tokenizer.json" in self.found:
            return None
        try:
            tokenizer = load(self.folder)
        except UserError as error:
            self._blame("tokenizer.json", str(error).rstrip("."))
            return None
        if tokenizer.vocab_size != self.manifest["vocab_size"]:
            told = f"{tokenizer.vocab_size:,} ids, and {MANIFEST} says {self.manifest['vocab_size']:,}"
            self._blame("tokenizer.json", told)
            return None
        for name in TOKENIZER_FILES:
            if name in self.manifest["files"] and name not in self.found:
                self._compare(name, sha256(self.folder / name))
        return tokenizer

    def _compare(self, name: str, hash_: str) -> None:
        files = self.manifest["files"]
        if hash_ == files[name]["sha256"]:
            return
        other = next((other for other in files if files[other]["sha256"] == hash_), None)
        why = f"it holds {other}" if other else f"SHA-256 {hash_[:12]}, not {files[name]['sha256'][:12]}"
        self._blame(name, f"not as it was written ({why})")

    def _read_index(self, split: str, progress: Any) -> None:
        name = f"{split}.docs.npy"
        if name not in self.manifest["files"]:
            self._blame(name, f"{MANIFEST} does not name it")
        if name in self.found:
            return
        digest = hashlib.sha256()
        for data in _chunks(self.folder / name):
            digest.update(data)
            progress.update(len(data))
        self._compare(name, digest.hexdigest())
        sources = self.manifest["card"]["sources"]
        bin_ = Bin(self.folder, split)
        n_tokens, n_documents = self.manifest["files"][f"{split}.bin"]["tokens"], len(bin_.documents)
        tokens = np.zeros(256, np.int64)  # of each source
        for i in range(0, n_documents, _CHUNK_DOCUMENTS):
            block = bin_.documents[i : i + _CHUNK_DOCUMENTS]
            behind = i + len(block)
            last = int(bin_.documents["start"][behind]) if behind < n_documents else n_tokens
            lengths = np.diff(np.append(block["start"], np.uint64(last)).astype(np.int64))
            if (lengths <= 0).any():
                at = i + int(np.argmax(lengths <= 0))
                self._blame(name, f"document {at:,} starts at {int(bin_.documents['start'][at]):,}, and ends before")
                return
            if (block["source"] >= len(sources)).any():
                self._blame(name, f"names source {block['source'].max()}, and the card has {len(sources)}")
                return
            np.add.at(tokens, block["source"], lengths)
        for source, n in zip(sources, tokens.tolist(), strict=False):
            if (told := source["tokens"].get(split, 0)) != n:
                says = f"its card says {told:,} tokens of source {source['name']!r} in {split}.bin, and there are {n:,}"
                self._blame(MANIFEST, says)

    def _read_bin(self, split: str, tokenizer: Tokenizer | None, progress: Any) -> None:
        name = f"{split}.bin"
        if name in self.found:
            return
        vocab_size = self.manifest["vocab_size"]
        index = None if tokenizer is None or f"{split}.docs.npy" in self.found else Bin(self.folder, split).documents
        begins = DocumentStarts(tokenizer.end_of_text_id if tokenizer else 0)
        digest, position, n_documents, last, beyond = hashlib.sha256(), 0, 0, -1, ""
        for data in _chunks(self.folder / name):
            digest.update(data)
            progress.update(len(data))
            ids = np.frombuffer(data, TOKEN)
            last = int(ids[-1])
            if not beyond and ids.max() >= vocab_size:
                at = int(np.argmax(ids >= vocab_size))
                beyond = f"id {ids[at]} at position {position + at:,}, and the vocabulary has {vocab_size:,} ids"
            if index is not None:
                starts = begins.add(ids)
                if not _agree(index["start"][n_documents : n_documents + len(starts)], starts):
                    index = None
                n_documents += len(starts)
            position += len(ids)
        self._compare(name, digest.hexdigest())
        if beyond:
            self._blame(name, beyond)
        if name in self.found or tokenizer is None or f"{split}.docs.npy" in self.found:
            return
        if index is None or len(index) != n_documents:
            self._blame(f"{split}.docs.npy", f"its documents do not begin where {name} has its ends of text")
        elif position and last != tokenizer.end_of_text_id and not self.is_adopted:
            self._blame(name, "its last document has no end of text")

    def _read_samples(self, tokenizer: Tokenizer, splits: list[str]) -> None:
        """Decodes some documents and compares them with the hashes that were taken of their texts."""
        is_cut = self.manifest["settings"].get("split") == "tail"
        for split in ("train",) if is_cut else splits:
            bin_, n_tokens = Bin(self.folder, split), 0
            for number in sorted({*np.linspace(0, len(bin_.documents) - 1, _SAMPLED_DOCUMENTS).astype(int).tolist()}):
                hash_ = int(bin_.documents["hash"][number])
                parts = [bin_.tokens[slice(*_span(bin_, number))]]
                if is_cut:
                    parts += [_find(Bin(self.folder, other), hash_) for other in splits if other != split]
                n_tokens += sum(map(len, parts))
                if n_tokens <= _SAMPLED_TOKENS and not self._agrees(tokenizer, parts, hash_):
                    what = f"reads document {number:,} of {split}.bin otherwise than it was written"
                    self._blame("tokenizer.json", f"{what}: another tokenizer made these bins")
                    return

    def _agrees(self, tokenizer: Tokenizer, parts: list[NDArray[np.uint16]], hash_: int) -> bool:
        if self.is_adopted:
            return ids_hash(parts[0]) == hash_
        text = tokenizer.decode(np.concatenate([part[:-1] for part in parts]).tolist())
        # What no UTF-8 can hold was replaced on its way to ids, after it was hashed.
        return content_hash(text) == hash_


def _find(bin_: Bin, hash_: int) -> NDArray[np.uint16]:
    """The ids of the first document with that hash, its end of text included; none where there is no such document."""
    for i in range(0, len(bin_.documents), _CHUNK_DOCUMENTS):
        found = np.flatnonzero(bin_.documents["hash"][i : i + _CHUNK_DOCUMENTS] == np.uint64(hash_))
        if len(found):
            return bin_.tokens[slice(*_span(bin_, i + int(found[0])))]
    return bin_.tokens[:0]


def _agree(written: NDArray[np.uint64], expected: NDArray[np.int64]) -> bool:
    return len(written) == len(expected) and bool((written == expected.astype(np.uint64)).all())


def _span(bin_: Bin, number: int) -> tuple[int, int]:
    """Position of a document's first token, and the one behind its last."""
    behind = number + 1
    end = int(bin_.documents["start"][behind]) if behind < len(bin_.documents) else bin_.n_tokens
    return int(bin_.documents["start"][number]), end


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            yield data


def _text(tokenizer: Tokenizer, ids: Iterable[Any]) -> Iterator[str]:
    stream = tokenizer.stream()
    for id in ids:
        yield stream.add(int(id))
    yield stream.end()


def _require_bins(folder: str) -> None:
    if not is_prepared(folder):
        raise MissingFile(
            f"--folder={folder}: no {MANIFEST} there, so no bins. Name the folder that data.folder named for "
            "scratchlm prepare."
        )


def _require_below(key: str, value: int, n: int, what: str) -> None:
    if not 0 <= value < n:
        raise BadValue(f"--{key}={value}: there are {n:,} {what}, so give a number from 0 to {n - 1:,}.")
