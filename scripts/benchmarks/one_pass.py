"""The parts of `prepare` by themselves: one core that makes blocks, and the one pass that writes what they hold."""

import argparse
import hashlib
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.preparation import tokenizer_of
from benchmarks.report import bar, spread, table
from benchmarks.texts import made, require_space

from scratchlm.data.assembly import Assembly, Progress, Splits
from scratchlm.data.block_files import BlockFiles
from scratchlm.data.blocks import Block, BlockMaker, Recipe
from scratchlm.data.seen import Seen
from scratchlm.data.staging import Staging
from scratchlm.data.supply import Copies, Supply
from scratchlm.data.writer import BinWriter
from scratchlm.text import tokenizer as spelling
from scratchlm.text.cleaning import Cleaner, parse_cleaning
from scratchlm.text.documents import parse_sources, parts
from scratchlm.text.hub import Access
from scratchlm.text.lanes import Cursor, lanes

_BLOCK_TOKENS = 2_000_000  # of 8 MiB of English
_BLOCK_DOCUMENTS = 10_000  # data.shuffle_documents
_N_FILES = 16  # different blocks that the pass reads in turn, so that they are not all in the processor's cache
_VOCAB_SIZE = 16_000
_LANES = 8
_WEIGHTS = (4.0, 4.0, 2.0)


def one_pass(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One core that reads, cleans, hashes and encodes; then the one pass alone, out of blocks made beforehand."""
    require_space(work, 6 * given.megatokens + 3 * given.megabytes)
    cleaning = parse_cleaning(None)
    worker = worker_rates(given, work, cleaning)
    print(f"one core makes blocks: {spread(worker['megabytes_per_second'])} MB/s of text, median (range)")
    print(f"  {worker['bytes_a_token']:.2f} bytes a token, {worker['tokens_a_document']:,.0f} tokens a document\n")
    rows, passes = [], []
    for n_tokens in given.tokens_a_document:
        rates = [pass_rate(work / "pass", n_tokens, given.megatokens * 1e6, cleaning) for _ in range(given.rounds)]
        seconds = statistics.median(rate["seconds"] for rate in rates)
        n_documents, n = rates[0]["documents"], rates[0]["tokens"]
        rows.append(
            [
                f"{n_tokens:,}",
                spread([rate["tokens"] / rate["seconds"] / 1e6 for rate in rates]),
                spread([rate["documents"] / rate["seconds"] / 1e3 for rate in rates]),
            ]
        )
        passes.append({"tokens_a_document": n_tokens, "rounds": rates})
        passes[-1] |= {"seconds": seconds, "documents": n_documents, "tokens": n}
    print(table(["tokens a document", "Mtokens/s, median (range)", "thousand documents/s"], rows))
    fitted = fit(passes)
    print(
        f"\nthe pass takes {fitted['microseconds_a_document']:.2f} microseconds a document and "
        f"{fitted['nanoseconds_a_token']:.2f} nanoseconds a token"
    )
    hashing, looking = sha256_rate(), seen_rate(given.megadocuments)
    print(f"SHA-256: {hashing:,.0f} MB/s; table of {given.megadocuments:g}M hashes: {looking['said']}")
    return {"worker": worker, "passes": passes, "fitted": fitted, "sha256_megabytes_per_second": hashing} | looking


def worker_rates(given: argparse.Namespace, work: Path, cleaning: list[dict[str, Any]]) -> dict[str, Any]:
    """What one process does with a JSONL file: everything but the one pass."""
    text = made(work / "pass.jsonl", given.megabytes, given.text, given.column)
    tokenizer = spelling.load(tokenizer_of(given, text, work))
    sample = [line[:200_000] for line in text.path.read_text(encoding="utf-8").splitlines()[:200]]
    print(tokenizer.choose_encoder(sample))
    [source] = parse_sources({"text": {"uri": str(text.path), "text_column": text.column}})
    dealt = [lanes("text", parts(source, Access(None, True, 0.0)), 1, _BLOCK_DOCUMENTS)]
    recipe = Recipe(cleaning, [False], tokenizer.to_json(), tokenizer.encoder, None)
    rates, n_tokens, n_documents = [], 0, 0
    for _ in range(given.rounds):
        maker = BlockMaker(dealt, recipe)
        n_tokens = n_documents = 0
        began = time.perf_counter()
        with bar("making blocks", text.megabytes) as progress:
            for lane in range(len(dealt[0])):
                maker.begin(0, lane, None)
                while found := maker.next(0, lane):
                    n_tokens += len(found[0].ids) + len(found[0].hashes)
                    n_documents += len(found[0].hashes)
                    progress.update(int(found[0].sizes[:, 0].sum()) / 1e6)
        rates.append(text.megabytes / (time.perf_counter() - began))
    return {
        "megabytes_per_second": rates,
        "bytes_a_token": text.n_bytes / n_tokens,
        "tokens_a_document": n_tokens / n_documents,
    }


class MadeBefore:
    """Workers whose blocks are read from files; each comes with hashes that no other has had."""

    n = 8

    def __init__(self, files: BlockFiles, n_blocks: int) -> None:
        """Gives each of three sources its share of so many blocks."""
        self._files, self._left = files, [round(n_blocks * weight / sum(_WEIGHTS)) for weight in _WEIGHTS]
        self._random = np.random.Generator(np.random.Philox(1))
        self._n = 0

    def __enter__(self) -> "MadeBefore":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, source: int, lane: int, cursor: Cursor) -> None:
        """Nothing to set."""

    def order(self, source: int, lane: int) -> None:
        """Nothing to start."""

    def committed(self) -> None:
        """Nothing was kept."""

    def collect(self, source: int, lane: int) -> tuple[Block, Cursor] | None:
        """The next file."""
        if not self._left[source]:
            return None
        self._left[source] -= 1
        self._n += 1
        found = self._files.read(0, 0, [self._n % _N_FILES, 0, None, 0])
        assert found
        block, behind = found
        return block._replace(hashes=self._random.integers(0, 1 << 64, len(block.hashes), np.uint64)), behind


def pass_rate(folder: Path, tokens_a_document: int, n_tokens: float, cleaning: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes so many tokens of ready-made blocks as `prepare` does, commits included."""
    staging = Staging(folder)
    folder.mkdir()
    staging.begin({})
    files = BlockFiles(staging.blocks)
    files.open()
    write_blocks(files, tokens_a_document, cleaning)
    block_tokens = min(_BLOCK_TOKENS, _BLOCK_DOCUMENTS * tokens_a_document)
    sources = parse_sources({f"s{i}": {"uri": "builtin:tiny-tales", "weight": w} for i, w in enumerate(_WEIGHTS)})
    splits = Splits("documents", 0.005, 0.0, 1024)
    began = time.perf_counter()
    with ExitStack() as stack:
        writers = {name: stack.enter_context(BinWriter(staging.path, name, 0)) for name in splits.names}
        made_by = stack.enter_context(MadeBefore(files, round(n_tokens / block_tokens)))
        copies = Copies(staging.path / "near.log", 0)
        copies.open(writers.values())
        supplies = [Supply(i, _LANES, made_by, copies, writers["train"], 1, 1) for i in range(len(sources))]
        progress = stack.enter_context(Progress(None, round(4.2 * n_tokens)))
        assembly = Assembly(supplies, sources, splits, writers, progress)

        def commit() -> None:
            state = {"writers": {name: writer.commit() for name, writer in writers.items()}}
            state |= {"supplies": [supply.state() for supply in supplies], "assembly": assembly.state()}
            staging.commit(state)

        assembly.run(None, commit)
        commit()
    seconds = time.perf_counter() - began
    n = {
        "tokens": sum(writer.n_tokens for writer in writers.values()),
        "documents": sum(writer.n_documents for writer in writers.values()),
    }
    staging.clear()
    folder.rmdir()
    return {"seconds": seconds, **n}


def write_blocks(files: BlockFiles, tokens_a_document: int, cleaning: list[dict[str, Any]]) -> None:
    """Blocks of documents of about one length; what is in them is nothing to the pass."""
    random = np.random.Generator(np.random.Philox(0))
    for number in range(_N_FILES):
        n = max(1, min(_BLOCK_DOCUMENTS, _BLOCK_TOKENS // tokens_a_document))
        lengths = random.integers(tokens_a_document // 2, tokens_a_document * 3 // 2 + 1, n)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = random.integers(4, _VOCAB_SIZE, offsets[-1]).astype(np.uint16)
        sizes = np.column_stack([lengths * 4, lengths * 4, lengths])
        block = Block(
            ids, offsets, np.zeros(n, np.uint64), sizes, np.empty((n, 0), np.uint64), Cleaner(cleaning).report
        )
        files.write(0, 0, [number, 0, None, 0], block, [number + 1, 0, None, 0])


def fit(passes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds a document and a token that come nearest to all passes, each pass counting alike."""
    counts = np.array([[one["documents"] / one["seconds"], one["tokens"] / one["seconds"]] for one in passes])
    [a, b], *_ = np.linalg.lstsq(counts, np.ones(len(passes)), rcond=None)
    return {"microseconds_a_document": a * 1e6, "nanoseconds_a_token": b * 1e9}


def sha256_rate() -> float:
    """MB a second, of 256 MB in the pieces that a writer hashes."""
    data, hash_ = bytes(1 << 20), hashlib.sha256()
    began = time.perf_counter()
    for _ in range(256):
        hash_.update(data)
    return 256 * len(data) / (time.perf_counter() - began) / 1e6


def seen_rate(megadocuments: float) -> dict[str, Any]:
    """What the table of hashes takes when it is large: memory, and time to look up a block's."""
    seen, random = Seen(), np.random.Generator(np.random.Philox(2))
    n_blocks = round(megadocuments * 1e6 / _BLOCK_DOCUMENTS)
    times = []
    with bar("filling the table", megadocuments, "M hashes") as progress:
        for _ in range(n_blocks):
            keys = random.integers(0, 1 << 64, _BLOCK_DOCUMENTS, np.uint64)
            began = time.perf_counter()
            seen.add(keys)
            times.append(time.perf_counter() - began)
            progress.update(_BLOCK_DOCUMENTS / 1e6)
    last = statistics.median(times[-max(1, n_blocks // 10) :]) / _BLOCK_DOCUMENTS * 1e6
    n_bytes = seen.n_bytes / seen.n
    said = f"{n_bytes:.1f} bytes a document, {last:.2f} microseconds to look one up"
    return {"seen_bytes_a_document": n_bytes, "seen_microseconds": last, "said": said}
