"""Which documents a step saw, from the pure order alone: nothing needs to have been written down. No torch."""

import bisect
import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from scratchlm.data.bins import MANIFEST, TOKENIZER_FILES, Bin, check_files, is_prepared, read_manifest
from scratchlm.data.windows import n_windows, window_starts
from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.files.journal import read_marked
from scratchlm.text.tokenizer import Tokenizer, load

ORDER_FILE = "order.json"  # in the run folder: what `PretrainingData.order` was when the run began
_KEYS = ("folder", "context_length", "seed", "windows", "stride_tokens", "global_batch_size")
_MOST_STEPS = 10**12  # times a batch of a million sequences still fits 64 bits
_NAMED_DOCUMENTS = 4  # of a window, and
_SNIPPET_CHARACTERS = 60  # of its text, in a line of the list; and
_SHOWN_CHARACTERS = 10_000  # of one document where a window is printed; more with --text true (all chosen, not tuned)


class Tracer:
    """The sequences of any step, past or to come: a function of the bins and of six settings."""

    def __init__(
        self,
        folder: str | Path,
        context_length: int,
        seed: int,
        windows: Literal["shuffled", "random"],
        stride_tokens: int | None,
        global_batch_size: int,
    ) -> None:
        """Remembers the settings; opens nothing.

        Args:
            folder: The bins folder.
            context_length: Inputs of one window, in tokens.
            seed: Key of the whole order, `data.seed`.
            windows: `shuffled` or `random`.
            stride_tokens: Distance between neighbouring windows of `shuffled`; None is the context length.
            global_batch_size: Sequences of one optimizer step, over all processes and micro-batches.
        """
        self.folder = Path(folder)
        self.context_length = context_length
        self.seed = seed
        self.windows = windows
        self.stride_tokens = stride_tokens
        self.global_batch_size = global_batch_size
        self._bin = Bin(folder, "train")

    def step(self, step: int) -> list[dict[str, Any]]:
        """The sequences of a step in the order of the batch, however it was cut into processes and micro-batches.

        Args:
            step: Optimizer step, counted from 1 as in the logs.

        Returns:
            Plain values, for each sequence: `sequence` (its number, from 0), `at` (position of its first token in
            train.bin) and `documents`: for each of them that the window touches `document` (its number in train.bin),
            `source` (name), `hash` (of its text, 16 hex digits), `first_token` (its place in the window) and `tokens`
            (of it in the window, the end of text included).

        Raises:
            BadValue: Steps are counted from 1.
        """
        starts = self._starts(step)
        first = (step - 1) * self.global_batch_size
        return [
            {"sequence": first + row, "at": at, "documents": self._documents_at(at)}
            for row, at in enumerate(starts.tolist())
        ]

    def ids(self, step: int) -> NDArray[np.uint16]:
        """What the network was given in a step: inputs, and the target of the last; (sequences, context_length + 1)."""
        places = self._starts(step)[:, None] + np.arange(self.context_length + 1)
        found: NDArray[np.uint16] = np.asarray(self._bin.tokens)[places]
        return found

    def text(self, at: int, n_tokens: int | None = None) -> str:
        """Text of a part of train.bin; ends of documents leave no trace in it.

        Args:
            at: Position of the first token.
            n_tokens: How many; None is one window.
        """
        n = self.context_length + 1 if n_tokens is None else n_tokens
        return self._tokenizer.decode(self._bin.tokens[at : at + n].tolist())

    def epoch(self, step: int) -> float:
        """Passes over the windows at the end of a step; of `random`, by the number of windows drawn."""
        n = n_windows(self._bin.n_tokens, self.context_length, self.stride_tokens)
        return step * self.global_batch_size / n

    def _starts(self, step: int) -> NDArray[np.int64]:
        if not 1 <= step <= _MOST_STEPS:
            raise BadValue(f"--step={step}: steps are counted from 1 to {_MOST_STEPS:,}. Give one of them.")
        numbers = (step - 1) * self.global_batch_size + np.arange(self.global_batch_size)
        return window_starts(
            numbers, self._bin.n_tokens, self.context_length, self.seed, self.windows, self.stride_tokens
        )

    def _documents_at(self, at: int) -> list[dict[str, Any]]:
        end = at + self.context_length + 1
        index = np.asarray(self._bin.documents)
        starts = index["start"]  # looked into, not copied: an index may have more records than fit in memory
        first = bisect.bisect_right(starts, at) - 1
        behind = bisect.bisect_left(starts, end, lo=first + 1)
        entries = index[first:behind]
        bounds = [at, *entries["start"][1:].tolist(), end]
        return [
            {
                "document": first + number,
                "source": self._sources[entry["source"]],
                "hash": f"{int(entry['hash']):016x}",
                "first_token": bounds[number] - at,
                "tokens": bounds[number + 1] - bounds[number],
            }
            for number, entry in enumerate(entries)
        ]

    @cached_property
    def _sources(self) -> list[str]:
        return [source["name"] for source in read_manifest(self.folder)["card"]["sources"]]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load(self.folder)


def trace(run: str, step: int, sequence: int | None = None, text: bool = False) -> None:
    """Prints which documents were in the batch of a step, with their sources.

    It follows from the settings of the run and its bins alone, so any step can be asked for, past or to come; with how
    many processes, workers and micro-batches the run was made plays no part.

    Args:
        run: The run folder, `trainer.default_root_dir`.
        step: Optimizer step, counted from 1 as in the logs.
        sequence: Number of one sequence of the step, as the list has it, to print with its documents' text.
        text: Whether all text is printed, however long; else a line a sequence, and of long documents the beginning.

    Raises:
        MissingFile: There is no run in the folder, or its bins are gone.
        BadValue: No such step or sequence, or the bins are not those that the run was trained on.
        BrokenState: What the run folder holds is damaged.
    """
    tracer = _tracer_of(Path(run))
    entries = tracer.step(step)
    numbers = range(entries[0]["sequence"], entries[-1]["sequence"] + 1)
    if sequence is not None and sequence not in numbers:
        raise BadValue(
            f"--sequence={sequence}: step {step:,} has the sequences {numbers[0]} to {numbers[-1]}. Give one of them."
        )
    print(_head(tracer, Path(run), step, entries))
    for entry in entries:
        if sequence not in (None, entry["sequence"]):
            continue
        print()
        if text or sequence is not None:
            _print_whole(tracer, entry, None if text else _SHOWN_CHARACTERS)
        else:
            _print_short(tracer, entry)
    print(f"\nA whole document: scratchlm corpus show --folder {tracer.folder} --document NUMBER")


def _head(tracer: Tracer, run: Path, step: int, entries: list[dict[str, Any]]) -> str:
    window = tracer.context_length + 1
    by_source: Counter[str] = Counter()
    for entry in entries:
        for document in entry["documents"]:
            by_source[document["source"]] += document["tokens"]
    n_tokens = len(entries) * window
    shares = ", ".join(f"{source} {n / n_tokens:.1%}" for source, n in by_source.most_common())
    last = _last_step(run)
    future = "" if step <= last else f"; the run has written down {last:,} steps so far, so this is one to come"
    return (
        f"step {step:,} of {run}: sequences {entries[0]['sequence']} to {entries[-1]['sequence']}, {n_tokens:,} tokens "
        f"({len(entries)} x {window}), at {tracer.epoch(step):.2f} epochs{future}\n{shares}"
    )


def _print_short(tracer: Tracer, entry: dict[str, Any]) -> None:
    documents = entry["documents"]
    named = ", ".join(
        f"{d['source']} {d['document']} ({d['hash']}, {d['tokens']} tokens)" for d in documents[:_NAMED_DOCUMENTS]
    )
    if len(documents) > _NAMED_DOCUMENTS:
        named += f" and {len(documents) - _NAMED_DOCUMENTS} more"
    begins = tracer.text(entry["at"], min(tracer.context_length + 1, 2 * _SNIPPET_CHARACTERS))
    print(f"sequence {entry['sequence']}, from token {entry['at']:,}: {named}")
    print(f"  {_cut(' '.join(begins.split()), _SNIPPET_CHARACTERS)!r}")


def _print_whole(tracer: Tracer, entry: dict[str, Any], most: int | None) -> None:
    print(f"sequence {entry['sequence']}, from token {entry['at']:,}")
    for document in entry["documents"]:
        print(
            f"--- document {document['document']}, {document['source']}, hash {document['hash']}, tokens "
            f"{document['first_token']} to {document['first_token'] + document['tokens'] - 1} of the window"
        )
        print(_cut(tracer.text(entry["at"] + document["first_token"], document["tokens"]), most))


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[:most]}..."


def _tracer_of(run: Path) -> Tracer:
    settings = _settings(run)
    folder = settings["folder"]
    if not is_prepared(folder):
        raise MissingFile(
            f"data.folder={folder}: no {MANIFEST} there, so the bins of --run={run} are gone. Go to where the "
            f"run was started, or make them again: scratchlm prepare -c {run}/config.yaml"
        )
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    hashes = _read_order(run)
    for name in ("train.bin", TOKENIZER_FILES[0]):
        now = manifest["tokenizer_sha256"] if name in TOKENIZER_FILES else manifest["files"][name]["sha256"]
        before = str(hashes.get(name, now))  # runs begun before it was written down: taken on trust
        if now != before:
            raise BadValue(
                f"data.folder={folder}: its {name} (SHA-256 {now[:12]}) is not the one that --run={run} was trained "
                f"with ({before[:12]}). Make that one again: scratchlm prepare --fresh true -c {run}/config.yaml"
            )
    return Tracer(**settings)


def _settings(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        settings = {key: data[key] for key in _KEYS}
    except FileNotFoundError as error:
        raise MissingFile(
            f"--run={run}: no config.yaml there, so no run. Name the folder of one, such as runs/quickstart."
        ) from error
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise BrokenState(f"{path}: not the configuration of a run ({told}). Put it back as `fit` wrote it.") from error
    kinds: dict[str, Any] = {"folder": str, "windows": str, "stride_tokens": (int, type(None))}
    wrong = [key for key, value in settings.items() if not isinstance(value, kinds.get(key, int))]
    if wrong:
        raise BrokenState(f"{path}: data.{wrong[0]}={settings[wrong[0]]} cannot be. Put it back as `fit` wrote it.")
    return settings


def _read_order(run: Path) -> dict[str, Any]:
    path = run / ORDER_FILE
    try:
        order = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BrokenState(f"{path}: damaged ({error}). Remove it; bins are then taken on trust.") from error
    if not isinstance(order, dict):
        raise BrokenState(f"{path}: damaged. Remove it; bins are then taken on trust.")
    return order


def _last_step(run: Path) -> int:
    return max((entry["step"] for entry in read_marked(run / "metrics.jsonl", step=int)), default=0)
