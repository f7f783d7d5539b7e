"""Sources to tokenizer to bins: the corpus, mixed by tokens, with the card that says what is in it. No torch."""

import inspect
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from scratchlm.data.assembly import Assembly, Progress, Splits, bar
from scratchlm.data.bins import (
    STAGING,
    TOKENIZER_FILES,
    BinWriter,
    check_files,
    check_free,
    is_prepared,
    publish,
    read_manifest,
    write_manifest,
)
from scratchlm.data.card import card_of, warnings_for
from scratchlm.data.foreign import adopt, is_foreign, require_same_tokenizer
from scratchlm.data.inputs import changes, inputs_of
from scratchlm.data.supply import Reading
from scratchlm.errors import BadValue
from scratchlm.files.lock import folder_lock
from scratchlm.files.whole import require_space, told_if_unwritable
from scratchlm.text.documents import Source, describe_all, parse_sources
from scratchlm.text.local import find_files
from scratchlm.text.tokenizer import KINDS, MAX_VOCAB_SIZE, MIN_VOCAB_SIZE, Tokenizer, load, train

_LOCK = "prepare.lock"
_NOT_OF_THE_BINS = ("folder", "context_length")  # where they are, and what fit checks again


class Corpus:
    """What `scratchlm prepare` makes: sources, mixed by tokens, as bins of ids with the tokenizer that spells them."""

    def __init__(
        self,
        folder: str,
        sources: dict[str, str | dict[str, str | float | None]] | None = None,
        tokenizer: str = "bpe",
        vocab_size: int = 16_000,
        min_frequency: int = 2,
        tokenizer_sample_bytes: int = 50_000_000,
        total_tokens: int | None = None,
        val_fraction: float = 0.005,
        test_fraction: float = 0.0,
        split: Literal["documents", "tail"] = "documents",
        seed: int = 1,
        shuffle_documents: int = 10_000,
        max_repetitions: int = 4,
        min_document_characters: int = 64,
        normalize: bool = True,
        context_length: int = 1024,
    ) -> None:
        """Checks the values; opens nothing.

        Args:
            folder: Folder of the bins; made if missing. Its name is free.
            sources: Name of a source to its address, or to a mapping with `uri` and any of `weight` (share of tokens),
                `text_column`, `documents` (auto, row, wikitext, file, line, separator), `separator`, `revision`. An
                address is `builtin:python-docs`, `builtin:package-readmes`, `builtin:tiny-tales`,
                `hf://owner/name[/configuration][:split]`, or a path or glob of .txt or .jsonl (plain, .gz or .zst) or
                .parquet.
            tokenizer: `bpe`, `unigram` or `char` trains one on the sources; anything else is the path of one to adopt:
                a tokenizer.json, or a folder with it or with vocab.json and merges.txt.
            vocab_size: Ids that a tokenizer in training may have, the special ones included; a small corpus ends with
                fewer. `char` takes as many as there are characters.
            min_frequency: Times a pair must occur for BPE to merge it.
            tokenizer_sample_bytes: Text that `bpe` and `unigram` are trained on, shared by the weights and read from
                the start of each source, validation included; `char` sees all text.
            total_tokens: Tokens of train.bin; the last document may go over. A source that runs dry before is read
                again, up to `max_repetitions` passes. None: all text, once: the ratio holds until the first source is
                dry, then the others go on in theirs, and the card says what came of it.
            val_fraction: Part of each source for validation, above 0. It is not mixed anew: each source brings its part
                of what was read, and never less than one window.
            test_fraction: Part of each source for test.bin; 0 makes none.
            split: `documents`: whole documents are set aside, the first of each source until it has one window, then
                by content hash. `tail`: the end of every document is, as for one long text.
            seed: Order of files, documents and, in training, windows.
            shuffle_documents: Documents permuted among themselves at a time; 0 keeps the sources' order.
            max_repetitions: Passes over a source in all, where `total_tokens` asks for more than it has. A repeated
                pass has an order of its own and leaves out validation, test and copies.
            min_document_characters: Shorter documents are dropped.
            normalize: Bring text to one spelling: NFC, newlines, no control characters, no runs of blanks in a line.
            context_length: Inputs of one window, in tokens; each source must fill one in validation.

        Raises:
            BadValue: One line for each value that cannot work.
        """
        self.folder = folder
        self.sources = sources
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.min_frequency = min_frequency
        self.tokenizer_sample_bytes = tokenizer_sample_bytes
        self.total_tokens = total_tokens
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split = split
        self.seed = seed
        self.shuffle_documents = shuffle_documents
        self.max_repetitions = max_repetitions
        self.min_document_characters = min_document_characters
        self.normalize = normalize
        self.context_length = context_length
        if faults := list(self._faults()):
            raise BadValue("\n".join(faults))
        self.parsed_sources = parse_sources(sources or {})

    def _faults(self) -> Iterator[str]:
        adopts = not self.sources and bool(self.folder) and is_foreign(self.folder)
        if not self.sources and not adopts:
            yield (
                "data.sources: no source of text is named. Name a file, --data.sources '{text: input.txt}', "
                "or a built-in source, --data.sources '{tales: builtin:tiny-tales}'."
            )
        if not self.folder:
            yield "data.folder=: names no folder. Give the folder that bins are to be in, such as --data.folder bins."
        elif self.tokenizer not in KINDS and not adopts:
            folder, adopted = os.path.realpath(self.folder), os.path.realpath(self.tokenizer)
            if adopted in (folder, *(os.path.join(folder, name) for name in TOKENIZER_FILES)):
                yield (
                    f"data.tokenizer={self.tokenizer}: lies in data.folder={self.folder}, where the bins' own "
                    "tokenizer is written. Copy it to another folder and name it there."
                )
        trained = self.tokenizer in ("bpe", "unigram")
        if trained and not MIN_VOCAB_SIZE <= self.vocab_size <= MAX_VOCAB_SIZE:
            yield (
                f"data.vocab_size={self.vocab_size}: a {self.tokenizer} tokenizer needs {MIN_VOCAB_SIZE}, and ids are "
                f"stored as uint16. Give a number from {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}."
            )
        for key, least in (
            ("min_frequency", 1),
            ("tokenizer_sample_bytes", 1),
            ("total_tokens", 1),
            ("shuffle_documents", 0),
            ("max_repetitions", 1),
            ("min_document_characters", 0),
            ("context_length", 1),
        ):
            value = getattr(self, key)
            if value is not None and value < least:
                yield f"data.{key}={value}: too small. Give a whole number, {least} or more."
        if not 0 < self.val_fraction < 1:
            yield f"data.val_fraction={self.val_fraction}: not a part of the text. Give a number such as 0.005."
        elif not 0 <= self.test_fraction < 1 - self.val_fraction:
            yield (
                f"data.test_fraction={self.test_fraction}: leaves nothing for training beside "
                f"data.val_fraction={self.val_fraction}. Give 0, or a number such as 0.005."
            )
        if self.split not in ("documents", "tail"):
            yield f"data.split={self.split}: no such split. Give documents or tail."

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes the bins, as the manifest keeps it."""
        sources = {source.name: asdict(source) for source in self.parsed_sources}
        for settings in sources.values():
            del settings["name"]
        keys = [key for key in inspect.signature(Corpus).parameters if key not in _NOT_OF_THE_BINS]
        return {key: getattr(self, key) for key in keys} | {"sources": sources}

    def prepare(self, fresh: bool = False) -> dict[str, Any]:
        """Makes the bins, or where they are finished makes sure that they are what these settings would make.

        Args:
            fresh: Make them anew even so.

        Returns:
            The manifest.

        Raises:
            BadValue: Finished bins were made with other settings, a source is too short, or the folder holds files of
                the bins' names that are not bins.
            UserError: A source cannot be read, another process is writing the folder, or the disk is full. The folder
                is then as it was before.
        """
        folder = Path(self.folder)
        if not self.sources:
            return self._adopt(folder, fresh)
        if is_prepared(folder) and not fresh:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            self._compare(manifest["settings"])
            _warn(changes(self.parsed_sources, self.tokenizer, manifest.get("inputs", {})))
            return manifest
        check_free(folder)
        facts = describe_all(self.parsed_sources)
        # The commit that a branch of a hub repository stands at now: every pass must read the same text.
        pinned = [
            replace(source, revision=fact["revision"]) for source, fact in zip(self.parsed_sources, facts, strict=True)
        ]
        require_space(folder, 2 * (self.total_tokens or 0))
        with _owned(folder) as staging:
            manifest = _write(self, pinned, facts, staging)
            publish(staging, folder)
        _warn(manifest["card"]["warnings"])
        return manifest

    def _adopt(self, folder: Path, fresh: bool) -> dict[str, Any]:
        if is_prepared(folder) and not fresh:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            require_same_tokenizer(manifest, self.tokenizer)
            _warn(changes([], manifest["settings"]["tokenizer"] or KINDS[0], manifest.get("inputs", {})))
            return manifest
        with folder_lock(folder, _LOCK):
            manifest = adopt(folder, self.tokenizer, self.context_length)
        _warn(manifest["card"]["warnings"])
        return manifest

    def _compare(self, made_with: dict[str, Any]) -> None:
        asked, found = _flat(self.settings), _flat(made_with)
        for key in asked | found:
            if asked.get(key) != found.get(key):
                raise BadValue(
                    f"data.{key}={asked.get(key)}: the bins in data.folder={self.folder} were made with "
                    f"{found.get(key)}. Name another data.folder, or make these anew: "
                    "scratchlm prepare --fresh true -c YOUR.yaml."
                )


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"scratchlm: warning: {warning}", file=sys.stderr)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@contextmanager
def _owned(folder: Path) -> Iterator[Path]:
    """Holds the folder and yields an empty place in it to write to; after an error all is as it was before."""
    was_there, was_locked_before = folder.exists(), (folder / _LOCK).exists()
    staging = folder / STAGING
    with folder_lock(folder, _LOCK):
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        with told_if_unwritable(staging):
            staging.mkdir()
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            if not was_locked_before:
                (folder / _LOCK).unlink()
            if not was_there:
                with suppress(OSError):  # someone has put a file there meanwhile
                    folder.rmdir()
            raise


def _write(corpus: Corpus, sources: list[Source], facts: list[dict[str, Any]], staging: Path) -> dict[str, Any]:
    """Writes a whole bins folder to `staging`."""
    inputs = inputs_of(sources, corpus.tokenizer)
    reading = Reading(corpus.seed, corpus.shuffle_documents, corpus.min_document_characters, corpus.normalize)
    spelling, text_bytes = _tokenizer(corpus, sources, reading)
    spelling.save(staging)
    splits = Splits(corpus.split, corpus.val_fraction, corpus.test_fraction, corpus.context_length)
    max_passes = corpus.max_repetitions if corpus.total_tokens else 1
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(BinWriter(staging, name, spelling.end_of_text_id)) for name in splits.names
        }
        progress = stack.enter_context(Progress(corpus.total_tokens, text_bytes))
        assembly = Assembly(sources, reading, spelling, max_passes, splits, writers, progress)
        assembly.run(corpus.total_tokens)
    card = card_of(staging, sources, facts, assembly.tallies, spelling, corpus.total_tokens, corpus.val_fraction)
    card["warnings"] = warnings_for({"card": card}, corpus.context_length)
    return write_manifest(staging, spelling.vocab_size, corpus.settings, card, inputs)


def _tokenizer(corpus: Corpus, sources: list[Source], reading: Reading) -> tuple[Tokenizer, int | None]:
    """The tokenizer, and the bytes of text in all sources where that is known by now."""
    sizes = {source.name: _file_bytes(source) for source in sources}
    if corpus.tokenizer in KINDS:
        sample = _sample(corpus, sources, reading, sizes)
        spelling = train(corpus.tokenizer, sample, corpus.vocab_size, corpus.min_frequency)
    else:
        spelling = load(corpus.tokenizer)
    known = [size for size in sizes.values() if size is not None]
    return spelling, sum(known) if len(known) == len(sizes) else None


def _sample(corpus: Corpus, sources: list[Source], reading: Reading, sizes: dict[str, int | None]) -> Iterator[str]:
    """Text to train a tokenizer on; notes in `sizes` the bytes of each source that it has read to its end."""
    whole = corpus.tokenizer == "char"
    weight = sum(source.weight for source in sources)
    faults = []
    with bar("tokenizer sample", "B", None if whole else corpus.tokenizer_sample_bytes) as progress:
        for source in sources:
            share = sys.maxsize if whole else max(1, round(corpus.tokenizer_sample_bytes * source.weight / weight))
            left = share
            cleaner = reading.cleaner()
            for text in reading.texts(source, cleaner=cleaner):
                data = text.encode(errors="replace")
                yield text if len(data) <= left else data[:left].decode(errors="ignore")
                progress.update(min(left, len(data)))
                left -= len(data)
                if left <= 0:
                    break
            else:
                sizes[source.name] = share - left
                if left == share:
                    faults.append(reading.nothing_left(source, cleaner.dropped))
        progress.total = progress.n  # the sources may hold less than was asked for
    if faults:
        raise BadValue("\n".join(faults))
    print(f"scratchlm: training a {corpus.tokenizer} tokenizer on {progress.n / 1e6:,.1f} MB of text", file=sys.stderr)


def _file_bytes(source: Source) -> int | None:
    """Bytes of a source's files, about those of its text; None where that is not known beforehand."""
    if source.uri.startswith(("builtin:", "hf://")):
        return None
    paths = [path for path, _ in find_files(source.key, source.uri)]
    return sum(map(os.path.getsize, paths)) if all(path.endswith((".txt", ".jsonl")) for path in paths) else None
