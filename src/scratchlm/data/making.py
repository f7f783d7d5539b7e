"""The making of bins in their staging folder: tokenizer, blocks, one pass, card. Killed anywhere, it goes on."""

import errno
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scratchlm.data.assembly import Assembly, Progress, Splits, bar, nothing_left
from scratchlm.data.bins import DOCUMENT, TOKEN, write_manifest
from scratchlm.data.blocks import Recipe
from scratchlm.data.card import card_of, warnings_for
from scratchlm.data.inputs import inputs_of
from scratchlm.data.ray_workers import RayWorkers
from scratchlm.data.staging import NEAR_LOG, Staging
from scratchlm.data.supply import Copies, Supply
from scratchlm.data.workers import Workers, n_cores, workers
from scratchlm.data.writer import BinWriter
from scratchlm.errors import BadValue, BrokenState
from scratchlm.files.whole import require_space
from scratchlm.text import near
from scratchlm.text.cleaning import Cleaner
from scratchlm.text.cleaning_report import Report
from scratchlm.text.documents import Source, parts, text_bytes
from scratchlm.text.lanes import Lane, lanes
from scratchlm.text.merges import trainer
from scratchlm.text.tokenizer import KINDS, Tokenizer, load, train

if TYPE_CHECKING:
    from scratchlm.data.preparation import Corpus

_CHECKED_CHARACTERS = 200_000  # of each source, to compare encoders on (chosen, not tuned)
_BYTES_A_TOKEN = 4.2  # web English in a BPE of 16,000; for estimates made before a text has been seen
_TOKENS_A_DOCUMENT = 150  # few, so that estimates of space are not too low (chosen, not tuned)
_BLOCKS_BYTES = 16 << 30  # of blocks ahead of their turn, where the disk has as much to spare (chosen, not tuned)
# Bytes of text: a process takes as long to start as it takes to make blocks of 30 MB.
_WORTH_PROCESSES = 100_000_000


@dataclass
class Making:
    """One making of bins, from what its settings say and what its staging folder already holds."""

    corpus: "Corpus"
    sources: list[Source]
    facts: list[dict[str, Any]]
    staging: Staging
    executor: Literal["local", "ray"] = "local"

    def run(self) -> dict[str, Any]:
        """Writes a whole bins folder to the staging folder.

        Returns:
            The manifest.

        Raises:
            UserError: As `Corpus.prepare`.
        """
        corpus = self.corpus
        inputs = inputs_of(self.sources, corpus.tokenizer)
        Cleaner(corpus.cleaning)  # a library that a step needs is missed now, and not after the first gigabyte
        adopted = load(corpus.tokenizer) if corpus.tokenizer not in KINDS else None
        dealt = [
            lanes(source.name, parts(source, corpus.access, adopted), corpus.seed, corpus.shuffle_documents)
            for source in self.sources
        ]
        sizes = [text_bytes(source, corpus.access) for source in self.sources]
        total_bytes = sum(size for size in sizes if size is not None) if None not in sizes else None
        self._say_what_will_run_dry(sizes)
        needed = self._bytes_needed(total_bytes)
        require_space(self.staging.folder, needed - _bytes_in(self.staging))
        tokenizer = self._tokenizer(dealt, adopted)
        print(f"scratchlm: {tokenizer.choose_encoder(self._checked_texts(dealt))}", file=sys.stderr)
        whole_files = [source.is_whole_files for source in self.sources]
        recipe = Recipe(corpus.cleaning, whole_files, tokenizer.to_json(), tokenizer.encoder, corpus.near_duplicates)
        try:
            return self._bins(dealt, tokenizer, recipe, total_bytes, inputs)
        except BrokenState as error:
            raise self._told_of_space(error, needed) from error

    def _bins(
        self,
        dealt: Sequence[Sequence[Lane]],
        tokenizer: Tokenizer,
        recipe: Recipe,
        total_bytes: int | None,
        inputs: dict[str, Any],
    ) -> dict[str, Any]:
        corpus, staging = self.corpus, self.staging
        splits = Splits(corpus.split, corpus.val_fraction, corpus.test_fraction, corpus.context_length)
        max_passes = corpus.max_repetitions if corpus.total_tokens else 1
        with ExitStack() as stack:
            state, writers, copies = self._opened(stack, splits, tokenizer.end_of_text_id)
            made_by = stack.enter_context(self._workers(dealt, recipe, total_bytes, tokenizer))
            supplies = [
                Supply(number, len(own), made_by, copies, writers["train"], max_passes, corpus.seed, taken_up)
                for number, (own, taken_up) in enumerate(
                    zip(dealt, state.get("supplies", [None] * len(dealt)), strict=True)
                )
            ]
            progress = stack.enter_context(Progress(corpus.total_tokens, total_bytes, writers["train"].n_tokens))
            assembly = Assembly(supplies, self.sources, splits, writers, progress, state.get("assembly"))

            def commit() -> None:
                staging.commit(
                    {
                        "near": copies.commit(),
                        "writers": {name: writer.commit() for name, writer in writers.items()},
                        "supplies": [supply.state() for supply in supplies],
                        "assembly": assembly.state(),
                    }
                )
                made_by.committed()

            try:
                assembly.run(corpus.total_tokens, commit)
            except BadValue:  # most likely cleaning dropped too much: this is how one finds out what
                _show_cleaning(supplies)
                raise
            commit()
        staging.forget_blocks()
        for tally, supply in zip(assembly.tallies, supplies, strict=True):
            tally.dropped = supply.all_dropped()
            tally.cleaning = supply.report.to_json() if supply.report else []
        _show_cleaning(supplies)
        hashes = {f"{name}.bin": writer.sha256 for name, writer in writers.items()}
        card = card_of(
            staging.path,
            self.sources,
            self.facts,
            assembly.tallies,
            tokenizer,
            corpus.total_tokens,
            corpus.val_fraction,
        )
        card["warnings"] = warnings_for({"card": card}, corpus.context_length)
        return write_manifest(staging.path, tokenizer.vocab_size, corpus.settings, card, inputs, hashes)

    def _opened(
        self, stack: ExitStack, splits: Splits, end_of_text_id: int
    ) -> tuple[dict[str, Any], dict[str, BinWriter], Copies]:
        """The state that was committed, empty for a beginning; writers of all splits and copies, as they were then."""
        state = self.staging.committed()
        try:
            with ExitStack() as tried:
                writers = {
                    name: tried.enter_context(
                        BinWriter(self.staging.path, name, end_of_text_id, state["writers"][name] if state else None)
                    )
                    for name in splits.names
                }
                n_keys = near.n_keys(self.corpus.near_duplicates) if self.corpus.near_duplicates else 0
                copies = Copies(self.staging.path / NEAR_LOG, n_keys)
                tried.callback(copies.close)
                copies.open(writers.values(), state.get("near"))
                stack.push(tried.pop_all())
        except BrokenState as error:
            if not state:
                raise
            print(f"scratchlm: {error} Beginning the bins anew.", file=sys.stderr)
            self.staging.forget_commits()
            return self._opened(stack, splits, end_of_text_id)
        if state:
            n_tokens = writers["train"].n_tokens
            print(f"scratchlm: going on from {n_tokens:,} tokens, where prepare was stopped", file=sys.stderr)
        return state, writers, copies

    def _workers(
        self, dealt: Sequence[Sequence[Lane]], recipe: Recipe, total_bytes: int | None, tokenizer: Tokenizer
    ) -> Workers:
        staging = self.staging
        if self.executor == "local":
            staging.forget_blocks()  # those of an earlier try on Ray
            return workers(dealt, recipe, self._n_processes(total_bytes), tokenizer)
        left = self._bytes_needed(total_bytes) - _bytes_in(staging)
        spare = shutil.disk_usage(staging.path).free - max(0, left)
        most_bytes = min(_BLOCKS_BYTES, max(0, spare // 2))
        return RayWorkers(dealt, recipe, self.corpus.n_processes, staging.blocks, most_bytes)

    def _n_processes(self, total_bytes: int | None) -> int:
        corpus = self.corpus
        if corpus.n_processes:
            return corpus.n_processes
        read = [size for size in (total_bytes, corpus.total_tokens and corpus.total_tokens * _BYTES_A_TOKEN) if size]
        if read and min(read) < _WORTH_PROCESSES:
            return 1
        return n_cores()

    def _tokenizer(self, dealt: Sequence[Sequence[Lane]], adopted: Tokenizer | None) -> Tokenizer:
        corpus, staging = self.corpus, self.staging
        if staging.has_tokenizer:
            return load(staging.path / "tokenizer.json")
        if "tokenizer" in staging.plan():
            print(f"scratchlm: {staging.path}: tokenizer not as it was left. Beginning anew.", file=sys.stderr)
        staging.forget_commits()
        staging.forget_blocks()
        made = adopted or train(corpus.tokenizer, self._sample(dealt), corpus.vocab_size, corpus.min_frequency)
        made.save(staging.path)
        staging.keep_tokenizer()
        return made

    def _sample(self, dealt: Sequence[Sequence[Lane]]) -> Iterator[str]:
        """Text to train a tokenizer on."""
        corpus = self.corpus
        whole = corpus.tokenizer == "char"
        weight = sum(source.weight for source in self.sources)
        faults = []
        with bar("tokenizer sample", "B", None if whole else corpus.tokenizer_sample_bytes) as progress:
            for source, own in zip(self.sources, dealt, strict=True):
                share = sys.maxsize if whole else max(1, round(corpus.tokenizer_sample_bytes * source.weight / weight))
                left, cleaner = share, Cleaner(corpus.cleaning, source.is_whole_files)
                for text in _texts(own, cleaner):
                    data = text.encode(errors="replace")
                    yield text if len(data) <= left else data[:left].decode(errors="ignore")
                    progress.update(min(left, len(data)))
                    left -= len(data)
                    if left <= 0:
                        break
                if left == share:
                    faults.append(nothing_left(source, cleaner.report.dropped))
                    _show(cleaner.report)
            progress.total = progress.n  # the sources may hold less than was asked for
        if faults:
            raise BadValue("\n".join(faults))
        n_megabytes = progress.n / 1e6
        by = f" with {trainer()}" if corpus.tokenizer == "bpe" else ""
        said = f"training a {corpus.tokenizer} tokenizer on {n_megabytes:,.1f} MB of text{by}"
        print(f"scratchlm: {said}", file=sys.stderr)

    def _checked_texts(self, dealt: Sequence[Sequence[Lane]]) -> list[str]:
        """Some text of each source, as it will be encoded."""
        found = []
        for source, own in zip(self.sources, dealt, strict=True):
            if source.is_ids:
                continue
            n_characters = 0
            for text in _texts(own, Cleaner(self.corpus.cleaning, source.is_whole_files)):
                found.append(text[:_CHECKED_CHARACTERS])
                n_characters += len(text)
                if n_characters >= _CHECKED_CHARACTERS:
                    break
        return found

    def _say_what_will_run_dry(self, sizes: Sequence[int | None]) -> None:
        """One line for each source that its size says is too small for its share, before hours are spent."""
        corpus = self.corpus
        if corpus.total_tokens is None:
            return
        weight = sum(source.weight for source in self.sources)
        for source, size in zip(self.sources, sizes, strict=True):
            if size is None:
                continue
            asked, has = corpus.total_tokens * source.weight / weight, size / _BYTES_A_TOKEN
            if has * corpus.max_repetitions < 0.95 * asked:
                print(
                    f"scratchlm: {source.key}: holds about {_rounded(has)} tokens, which {corpus.max_repetitions} "
                    f"passes make {_rounded(has * corpus.max_repetitions)} of the {_rounded(asked)} of its share; "
                    "the other sources share the rest",
                    file=sys.stderr,
                )

    def _bytes_needed(self, total_bytes: int | None) -> int:
        """About how many bytes the finished bins take; 0 where nothing tells."""
        corpus = self.corpus
        passes = corpus.max_repetitions if corpus.total_tokens else 1
        guesses = [corpus.total_tokens, total_bytes and passes * total_bytes / _BYTES_A_TOKEN]
        n_tokens = min((n for n in guesses if n), default=0)
        return round(n_tokens * (TOKEN.itemsize + DOCUMENT.itemsize / _TOKENS_A_DOCUMENT))

    def _told_of_space(self, error: BrokenState, needed: int) -> BrokenState:
        """The error, or where the disk was full, one that says how many bytes are wanted."""
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        folder, written = self.staging.folder, _bytes_in(self.staging)
        free = shutil.disk_usage(folder).free
        more = f"about {max(needed - written, 1 << 20):,} bytes more are needed, and " if needed else ""
        return BrokenState(
            f"{folder}: no space left; {more}{free:,} are free. Make space and run again: it goes on from where "
            "it stopped."
        )


def _show_cleaning(supplies: Sequence[Supply]) -> None:
    """Prints what each step of cleaning did and how fast, over all sources."""
    reports = [supply.report for supply in supplies if supply.report]
    for report in reports[1:]:
        reports[0].merge(report)
    if reports:
        _show(reports[0])


def _show(report: Report) -> None:
    print("\n".join(filter(None, (report.table(), report.examples()))), end="\n\n", file=sys.stderr)


def _texts(own: Sequence[Lane], cleaner: Cleaner) -> Iterator[str]:
    """Cleaned texts of a source, the blocks of its lanes in turn."""
    streams = deque(lane.blocks() for lane in own)
    while streams:
        stream = streams.popleft()
        if found := next(stream, None):
            streams.append(stream)
            rows, _ = found
            yield from cleaner.clean_many([row[0] for row in rows], [row[1] for row in rows]).texts


def _bytes_in(staging: Staging) -> int:
    return sum(path.stat().st_size for path in staging.path.glob("*"))


def _rounded(n_tokens: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n_tokens >= size:
            return f"{n_tokens / size:.3g}{unit}"
    return f"{n_tokens:.0f}"
