"""Sources to tokenizer to bins: the corpus, mixed by tokens, with the card that says what is in it. No torch."""

import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from scratchlm import __version__
from scratchlm.data.bins import TOKENIZER_FILES, check_files, is_prepared, read_manifest
from scratchlm.data.foreign import adopt, is_foreign, require_same_tokenizer
from scratchlm.data.inputs import changes, stamps_of
from scratchlm.data.making import Making
from scratchlm.data.ray_workers import require_ray
from scratchlm.data.staging import LOCK, Staging
from scratchlm.errors import BadValue
from scratchlm.files.lock import folder_lock
from scratchlm.files.whole import told_if_unwritable
from scratchlm.text import near
from scratchlm.text.cleaning import parse_cleaning
from scratchlm.text.documents import Source, bring, describe_all, parse_sources
from scratchlm.text.hub import Access
from scratchlm.text.tokenizer import KINDS, MAX_VOCAB_SIZE, MIN_VOCAB_SIZE

# What does not shape the bins: where they are, what fit checks again, and how the text comes here.
_MOST = 10**15  # of anything; what is below it fits the integers of every library
_NOT_OF_THE_BINS = ("folder", "context_length", "n_processes", "hub_folder", "offline", "retry_seconds")


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
        cleaning: list[str | dict[str, Any]] | None = None,
        near_duplicates: float | None = None,
        context_length: int = 1024,
        n_processes: int | None = None,
        hub_folder: str | None = None,
        offline: bool = False,
        retry_seconds: float = 600.0,
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
            shuffle_documents: Documents permuted among themselves at a time, after the parts of a source (files,
                shards, 8 MiB of a long file) are permuted. 0 keeps the sources' order, and reads each in one process.
            max_repetitions: Passes over a source in all, where `total_tokens` asks for more than it has. A repeated
                pass has an order of its own and leaves out validation, test and copies.
            cleaning: Steps that each document goes through, by name, or as name: {argument: value}; None is unicode,
                whitespace, length. docs/corpus.md has them all, and how to name a filter of datatrove.
            near_duplicates: Likeness from which a document counts as a copy, 0.5 to 0.95, such as 0.8 of its runs of
                words (MinHash; needs scratchlm[near]). Whole copies always go.
            context_length: Inputs of one window, in tokens; each source must fill one in validation.
            n_processes: Processes that read, clean and encode; None is one a core, where there is enough text for it.
                More than 8 a source bring nothing. The bins do not depend on it.
            hub_folder: Folder of hub files that `scratchlm prefetch` has filled; they are read in place of the hub.
            offline: Never ask the hub: read hub_folder or fail at once.
            retry_seconds: How long to go on trying when the hub fails, before giving up until the next run.

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
        self.near_duplicates = near_duplicates
        self.context_length = context_length
        self.n_processes = n_processes
        self.hub_folder = hub_folder
        self.offline = offline
        self.retry_seconds = retry_seconds
        if faults := list(self._faults()):
            raise BadValue("\n".join(faults))
        self.cleaning = parse_cleaning(cleaning)
        if near_duplicates is not None:
            near.require_library()
        self.parsed_sources = parse_sources(sources or {})
        for source in self.parsed_sources:
            if source.is_ids and tokenizer in KINDS:
                raise BadValue(
                    f"data.tokenizer={tokenizer}: would be trained on text, and {source.key} holds ids that another "
                    "one has made. Name that tokenizer: data.tokenizer=PATH of its tokenizer.json."
                )

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
            ("context_length", 1),
            ("n_processes", 1),
            ("retry_seconds", 0),
        ):
            value = getattr(self, key)
            if value is not None and value < least:
                number = "number" if key == "retry_seconds" else "whole number"
                yield f"data.{key}={value}: too small. Give a {number}, {least} or more."
            elif value is not None and not value <= _MOST:
                yield f"data.{key}={value}: too large. Give at most {_MOST}."
        if not 0 < self.val_fraction < 1:
            yield f"data.val_fraction={self.val_fraction}: not a part of the text. Give a number such as 0.005."
        elif not 0 <= self.test_fraction < 1 - self.val_fraction:
            yield (
                f"data.test_fraction={self.test_fraction}: leaves nothing for training beside "
                f"data.val_fraction={self.val_fraction}. Give 0, or a number such as 0.005."
            )
        if self.near_duplicates is not None and not 0.5 <= self.near_duplicates <= 0.95:
            yield f"data.near_duplicates={self.near_duplicates}: cannot be told apart. Give 0.5 to 0.95, such as 0.8."
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

    @property
    def access(self) -> Access:
        """How the hub may be reached."""
        return Access(self.hub_folder, self.offline, self.retry_seconds)

    def prepare(self, fresh: bool = False, executor: Literal["local", "ray"] = "local") -> dict[str, Any]:
        """Makes the bins, or where they are finished makes sure that they are what these settings would make.

        What a killed `prepare` left is gone on with, as long as settings and local files are the same.

        Args:
            fresh: Make them anew even though they are finished.
            executor: Where text is read, cleaned and encoded: `local`, in n_processes of this machine, or `ray`, in as
                many actors of the Ray cluster that RAY_ADDRESS names, or else of one started here for that time. The
                bins are the same.

        Returns:
            The manifest.

        Raises:
            BadValue: Finished bins were made with other settings, a source is too short, or the folder holds files of
                the bins' names that are not bins. The folder is then as it was before.
            UserError: A source cannot be read, another process is writing the folder, or the disk is full. The same
                call then goes on from there.
        """
        if executor == "ray":
            require_ray()
        folder, staging = Path(self.folder), Staging(self.folder)
        if not self.sources:
            return self._adopt(folder, fresh)
        with told_if_unwritable(folder):
            staging.check_free()
        if staging.waits_to_be_published:
            with staging.owned():
                staging.publish()
            fresh = fresh and not self._are_as_asked(read_manifest(folder))
        if is_prepared(folder) and not fresh:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            self._compare(manifest["settings"])
            print(f"scratchlm: {folder}: finished before, as asked for; nothing to do", file=sys.stderr)
            _warn(changes(self.parsed_sources, self.tokenizer, manifest.get("inputs", {})))
            return manifest
        with staging.owned():
            plan, old = self._plan(), staging.plan()
            goes_on = old.get("asked") == plan
            facts = old["facts"] if goes_on else describe_all(self.parsed_sources, self.access)
            if old and not goes_on:
                before, now = _flat(old.get("asked", {})), _flat(plan)
                key = next((key for key in now | before if now.get(key) != before.get(key)), "plan")
                print(
                    f"scratchlm: {folder}: holds unfinished bins, made with another {key.removeprefix('settings.')} "
                    f"({before.get(key)}, now {now.get(key)}); beginning anew",
                    file=sys.stderr,
                )
            if not goes_on:
                staging.begin({"asked": plan, "facts": facts})
            manifest = Making(self, self._pinned(facts), facts, staging, executor).run()
            staging.publish()
        _warn(manifest["card"]["warnings"])
        return manifest

    def prefetch(self, folder: str | None = None) -> None:
        """Brings the files that `prepare` would read from the hub, at the commits that their repositories stand at.

        Args:
            folder: Where to; None is `hub_folder`.

        Raises:
            UserError: There is nothing to bring or no folder, the hub cannot be reached, or the disk is too small.
        """
        if not (folder := folder or self.hub_folder):
            raise BadValue(
                "data.hub_folder: names no folder. Give the one that the files are to be in, such as --folder hub."
            )
        bring(self.parsed_sources, self.access, folder)

    def _plan(self) -> dict[str, Any]:
        """What must be the same for a killed `prepare` to be gone on with."""
        files = stamps_of(self.parsed_sources, self.tokenizer)
        asked = {
            "settings": self.settings,
            "context_length": self.context_length,
            "files": files,
            "version": __version__,
        }
        plan: dict[str, Any] = json.loads(json.dumps(asked))  # as it is read back
        return plan

    def _pinned(self, facts: list[dict[str, Any]]) -> list[Source]:
        """The sources at the commits that were found at first: every reading must see the same text."""
        return [
            replace(source, revision=fact["revision"]) for source, fact in zip(self.parsed_sources, facts, strict=True)
        ]

    def _adopt(self, folder: Path, fresh: bool) -> dict[str, Any]:
        if is_prepared(folder) and not fresh:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            require_same_tokenizer(manifest, self.tokenizer)
            _warn(changes([], manifest["settings"]["tokenizer"] or KINDS[0], manifest.get("inputs", {})))
            return manifest
        with folder_lock(folder, LOCK):
            manifest = adopt(folder, self.tokenizer, self.context_length)
        n_tokens, spelled_by = sum(manifest["card"]["tokens"].values()), manifest["settings"]["tokenizer"] or "meta.pkl"
        print(
            f"scratchlm: {folder}: adopted as it is: {n_tokens:,} tokens checked, all of them among the "
            f"{manifest['vocab_size']:,} ids of {spelled_by} (our special tokens included)",
            file=sys.stderr,
        )
        _warn(manifest["card"]["warnings"])
        return manifest

    def _are_as_asked(self, manifest: dict[str, Any]) -> bool:
        """Whether bins are what these settings would make of what the sources hold now."""
        changed = changes(self.parsed_sources, self.tokenizer, manifest.get("inputs", {}))
        return _flat(self.settings) == _flat(manifest["settings"]) and not any(changed)

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
