"""Whether the contestants of `bench.py prepare` have done the same work: a time is worth nothing without its output."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.texts import Text

from scratchlm.data.bins import Bin
from scratchlm.text import tokenizer as spelling
from scratchlm.text.cleaning import content_hash

OURS = "scratchlm"
OTHER = "other checkout"  # of scratchlm
LEAST_KEPT = 0.9  # of the documents, or the contestants did different work
DECODED_DOCUMENTS = 1_000  # of those that cleaning changed, read back to see that their ids spell them


class Wrong(Exception):
    """A contestant's output is not what it must be, so its time means nothing."""


class Kept(NamedTuple):
    """What scratchlm made of the documents."""

    documents: int
    changed: int  # documents that cleaning changed, or whose text has no peer's ids to compare
    tokens: int


def check_ids(names: Sequence[str], text: Text, tokenizer: Path, work: Path) -> dict[str, Any]:
    """Compares the contestants' outputs and throws them away.

    The peers' must be the same to the last id. scratchlm's documents come in another order, and cleaning has changed
    some: those it left alone must have the peers' ids, and the ids of the others must spell the text that was hashed.

    Returns:
        `tokens` (by contestant), `kept` (by checkout of scratchlm, see `Kept`), `said` (lines).

    Raises:
        Wrong: An output is not what it must be.
    """
    speller = spelling.load(tokenizer)
    prepared = [name for name in names if name in (OURS, OTHER)]
    ids = {
        name: np.memmap(work / "ids" / name / "train.bin", np.uint16, mode="r")
        for name in names
        if name not in prepared
    }
    tokens = {name: len(ids[name]) for name in ids}
    reference = next(iter(ids), None)
    by_hash: dict[int, np.ndarray] = {}
    if reference:
        for name in ids:
            if not np.array_equal(ids[name], ids[reference]):
                raise Wrong(f"the ids of {name} are not those of {reference}.")
        ends = np.flatnonzero(ids[reference] == speller.end_of_text_id)
        if len(ends) != text.n_documents:
            raise Wrong(f"{reference} wrote {len(ends):,} documents of {text.n_documents:,}.")
        starts = np.concatenate([[0], ends[:-1] + 1])
        with text.path.open("rb") as lines:
            for line, start, end in zip(lines, starts, ends, strict=True):
                by_hash[content_hash(json.loads(line)[text.column])] = ids[reference][start:end]
    said = [f"{text.n_documents:,} documents."]
    if ids:
        said.append(f"The same ids, {tokens[str(reference)]:,} tokens: {', '.join(ids)}.")
    kept: dict[str, Kept] = {}
    for name in prepared:
        kept[name] = check_prepared(work / "ids" / name, by_hash, speller, name)
        tokens[name] = kept[name].tokens
        if kept[name].documents < LEAST_KEPT * text.n_documents:
            raise Wrong(
                f"{name} kept {kept[name].documents:,} of {text.n_documents:,} documents: not the peers' work. "
                "Give other text."
            )
        said.append(
            f"{name} kept {kept[name].documents:,}, {tokens[name]:,} tokens; "
            f"{kept[name].documents - kept[name].changed:,} came through cleaning as they were"
            + (f" and have {reference}'s ids." if reference else ".")
        )
    shutil.rmtree(work / "ids")
    return {"tokens": tokens, "kept": {name: kept[name]._asdict() for name in kept}, "said": said}


def check_prepared(folder: Path, by_hash: dict[int, np.ndarray], speller: spelling.Tokenizer, name: str) -> Kept:
    """Goes through the bins of scratchlm document by document; raises Wrong."""
    kept = changed = n_tokens = 0
    for split in (Bin(folder, "train"), Bin(folder, "val")):
        ends = np.append(split.documents["start"][1:], split.n_tokens).astype(np.int64) - 1
        for record, end in zip(split.documents, ends, strict=True):
            found, hash = split.tokens[int(record["start"]) : end], int(record["hash"])
            if split.tokens[end] != speller.end_of_text_id:
                raise Wrong(f"{name}: document {kept:,} does not end with the end of text.")
            if hash in by_hash:
                if not np.array_equal(found, by_hash[hash]):
                    raise Wrong(f"{name}: the ids of document {kept:,} are not its peers'.")
            else:
                changed += 1
                if changed <= DECODED_DOCUMENTS and content_hash(speller.decode(found.tolist())) != hash:
                    raise Wrong(f"{name}: the ids of document {kept:,} do not spell the text that was hashed.")
            kept += 1
        n_tokens += split.n_tokens
    return Kept(kept, changed, n_tokens)
