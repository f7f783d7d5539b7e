"""What bins were made from, as far as a look at its size or hash tells, and what of it has changed since."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scratchlm.data.bins import TOKENIZER_FILES
from scratchlm.errors import UserError
from scratchlm.files.whole import sha256
from scratchlm.text import builtin
from scratchlm.text.documents import Source, files_of
from scratchlm.text.tokenizer import KINDS


def inputs_of(sources: list[Source], tokenizer: str) -> dict[str, Any]:
    """Bytes of every local file and SHA-256 of an adopted tokenizer; what is not there is left out.

    Sizes, not times: the manifest that keeps this must be the same wherever it is made.

    Args:
        sources: The sources.
        tokenizer: `data.tokenizer`.

    Returns:
        `sources`: name of a source to its files' names (as ids have them) and sizes. `tokenizer`: name to hash.
    """
    sizes = {source.name: {label: os.path.getsize(path) for path, label in _files(source)} for source in sources}
    adopted = {path.name: sha256(path) for path in _tokenizer_files(tokenizer)}
    return {"sources": {name: found for name, found in sizes.items() if found}, "tokenizer": adopted}


def changes(sources: list[Source], tokenizer: str, made_from: dict[str, Any]) -> Iterator[str]:
    """One line for each source, and for the tokenizer, that is not what the bins were made from.

    Files that are not there any more are no change: the bins are enough.

    Args:
        sources: The sources.
        tokenizer: `data.tokenizer`.
        made_from: What `inputs_of` gave when the bins were made; empty where nobody asked.
    """
    cure = "has changed since the bins were made; make them anew with scratchlm prepare --fresh true -c YOUR.yaml"
    now = inputs_of(sources, tokenizer)
    for source in sources:
        if (before := made_from.get("sources", {}).get(source.name)) is None:
            continue
        for path, label in _files(source):
            if now["sources"][source.name][label] != before.get(label):
                yield f"{source.key}: {path} {cure}"
                break
    before = made_from.get("tokenizer", {})
    if any(before.get(name, hash_) != hash_ for name, hash_ in now["tokenizer"].items()):
        yield f"data.tokenizer: {tokenizer} {cure}"


def stamps_of(sources: list[Source], tokenizer: str) -> dict[str, Any]:
    """What tells whether text has changed since a `prepare` was killed: size and time of every local file, and what is
    installed where a built-in source is made of that.
    """
    paths = [path for source in sources for path, _ in _files(source)]
    paths += map(str, _tokenizer_files(tokenizer))
    stamps: dict[str, Any] = {path: [os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths}
    built_in = {source.uri for source in sources if source.uri.startswith("builtin:")}
    return stamps | {uri: builtin.made_of(uri.removeprefix("builtin:")) for uri in built_in}


def _files(source: Source) -> list[tuple[str, str]]:
    if source.uri.startswith(("builtin:", "hf://")):
        return []
    try:
        return files_of(source)
    except UserError:
        return []


def _tokenizer_files(tokenizer: str) -> list[Path]:
    if tokenizer in KINDS:
        return []
    path = Path(tokenizer)
    found = [path / name for name in TOKENIZER_FILES] if path.is_dir() else [path]
    return [file for file in found if file.is_file()]
