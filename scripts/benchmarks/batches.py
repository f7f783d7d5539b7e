"""Windows of a large bin as batches: tokens a second of scratchlm's and of nanoGPT's."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import peers
from benchmarks.outputs import OURS, Wrong
from benchmarks.preparation import ROOT
from benchmarks.process_tree import anon_bytes, measure
from benchmarks.report import bar, spread, table, verdict
from benchmarks.texts import made, require_space


def windows(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Shuffled batches out of a large bin, as int64 tensors, in turn with nanoGPT's, in this process."""
    import torch

    from scratchlm.data.pretraining import PretrainingData

    folder = large_bin(given, work)
    rows, results = [], []
    for size in given.micro_batch_sizes:
        data = PretrainingData(str(folder), given.context_length, size, size, sources={"text": "bench.jsonl"})
        data.setup("fit")
        torch.manual_seed(1)

        def ours(data: PretrainingData = data) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in data.train_dataloader():
                batch = data.on_after_batch_transfer(batch, 0)
                yield batch["inputs_BT"], batch["targets_BT"]

        contestants = {
            OURS: ours(),
            "nanogpt": peers.nanogpt_batches(folder / "train.bin", given.context_length, size),
        }
        check_windows(data, ours(), folder, given.context_length, size)
        n_batches = max(1, round(given.megatokens * 1e6 / (size * given.context_length)))
        n_tokens = n_batches * size * given.context_length
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        with bar(f"batches of {size}", (given.rounds + 1) * 2 * n_tokens / 1e6, "Mtokens") as progress:
            for number in range(given.rounds + 1):
                for name, batches in contestants.items():
                    began = time.perf_counter()
                    for _ in range(n_batches):
                        next(batches)
                    if number:  # the first round warms up
                        rates[name].append(n_tokens / (time.perf_counter() - began) / 1e6)
                    progress.update(n_tokens / 1e6)
        epoch = epoch_memory(data, ours(), size, given.context_length)
        median = {name: statistics.median(rates[name]) for name in rates}
        ratio = median[OURS] / median["nanogpt"]
        rows.append(
            [f"{size} x {given.context_length:,}", spread(rates[OURS]), spread(rates["nanogpt"]), f"{ratio:.1f}"]
        )
        rows[-1] += [f"{epoch['tokens'] / epoch['seconds'] / 1e6:,.0f}", epoch["said"]]
        results.append({"micro_batch_size": size, "rates": rates, "ratio": ratio, "epoch": epoch})
    header = ["batch", "scratchlm, Mtokens/s, median (range)", "nanoGPT's get_batch", "ratio"]
    print(table([*header, "a whole epoch, Mtokens/s", "its RssAnon, MB: before, most, after"], rows))
    for result in results:
        print(verdict(f"batches of {result['micro_batch_size']}", result["ratio"], 5.0))
    return {"bin_bytes": (folder / "train.bin").stat().st_size, "batches": results}


def large_bin(given: argparse.Namespace, work: Path) -> Path:
    """A bins folder whose train.bin is a small corpus over and over, for its readers do not look at what is in it."""
    require_space(work, 1.2 * given.megabytes)
    text = made(work / "bench.jsonl", 2, given.text, given.column)
    folder, log = work / "bins", work / "log.txt"
    words = ["-m", "scratchlm", "prepare", "--data.folder", str(folder), "--data.vocab_size", "4000"]
    words += ["--data.sources", json.dumps({"text": {"uri": str(text.path), "text_column": text.column}})]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    measure([sys.executable, *words], os.environ | {"PYTHONPATH": path}, log)
    file = folder / "train.bin"
    once, left = file.read_bytes(), int(given.megabytes * 1e6) // 2 * 2
    declare_train_tokens(folder, left // 2)
    with bar("writing the bin", left / 1e6) as progress, file.open("wb") as out:
        while left:
            written = out.write(once[:left])
            left -= written
            progress.update(written / 1e6)
    with bar("reading it into the page cache", file.stat().st_size / 1e6) as progress, file.open("rb") as bin:
        while piece := bin.read(1 << 24):
            progress.update(len(piece) / 1e6)
    return folder


def declare_train_tokens(folder: Path, n_tokens: int) -> None:
    """Has a bins folder say that its train.bin holds so many ids; its hash is read by nothing that is measured."""
    from scratchlm.data.bins import sealed

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["train.bin"] |= {"bytes": 2 * n_tokens, "tokens": n_tokens}
    documents = np.load(folder / "train.docs.npy")
    np.save(folder / "train.docs.npy", documents[documents["start"] < n_tokens])
    manifest["files"]["train.docs.npy"]["bytes"] = (folder / "train.docs.npy").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)), encoding="utf-8")


def check_windows(data: Any, ours: Iterator[Any], folder: Path, context_length: int, size: int) -> None:
    """Both contestants give int64 windows of the bin, targets one behind; raises Wrong."""
    import torch

    from scratchlm.data.windows import window_starts

    tokens = np.memmap(folder / "train.bin", np.uint16, mode="r")
    theirs = peers.nanogpt_batches(folder / "train.bin", context_length, size)
    for number in range(3):
        rows = np.arange(number * size, (number + 1) * size)
        state = torch.get_rng_state()
        drawn = torch.randint(len(tokens) - context_length, (size,)).numpy()
        torch.set_rng_state(state)
        at = window_starts(rows, len(tokens), context_length, data.corpus.seed)
        for name, batches, starts in ((OURS, ours, at), ("nanogpt", theirs, drawn)):
            inputs, targets = next(batches)
            expected = torch.from_numpy(tokens[starts[:, None] + np.arange(context_length + 1)].astype(np.int64))
            if not (inputs.dtype == targets.dtype == torch.int64):
                raise Wrong(f"{name}: batches are {inputs.dtype}, not int64.")
            if not (torch.equal(inputs, expected[:, :-1]) and torch.equal(targets, expected[:, 1:])):
                raise Wrong(f"{name}: a batch is not what the bin holds there.")


def epoch_memory(data: Any, batches: Iterator[Any], size: int, context_length: int) -> dict[str, Any]:
    """Goes once through the bin and watches this process's anonymous memory."""
    n_batches = max(1, data.sequences_per_epoch // size)
    next(batches)
    has_proc = Path("/proc/self/status").exists()
    held = [anon_bytes()] if has_proc else []
    began = time.perf_counter()
    with bar("an epoch", n_batches * size * context_length / 1e6, "Mtokens") as progress:
        for number in range(n_batches):
            next(batches)
            if number % max(1, n_batches // 100) == 0:
                held += [anon_bytes()] if has_proc else []
                progress.update(min(max(1, n_batches // 100), n_batches - number) * size * context_length / 1e6)
    seconds = time.perf_counter() - began
    held += [anon_bytes()] if has_proc else []
    said = ", ".join(f"{n / 1e6:,.1f}" for n in (held[0], max(held), held[-1])) if held else "-"
    return {"tokens": n_batches * size * context_length, "seconds": seconds, "anon_bytes": held, "said": said}
