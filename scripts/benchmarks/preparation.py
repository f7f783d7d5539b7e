"""Raw text to uint16 ids: seconds and memory of `scratchlm prepare` and of what people use instead."""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.outputs import LEAST_KEPT, OTHER, OURS, Wrong, check_ids
from benchmarks.process_tree import Measured, measure
from benchmarks.report import bar, in_megabytes, n_cores, spread, table, verdict
from benchmarks.texts import Text, counted, made, require_space

from scratchlm.data.bins import Bin
from scratchlm.text import tokenizer as spelling

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER_MEGABYTES = 20  # of the text, to train the tokenizer that all contestants are given
MEMORY_LIMIT_BYTES = 1_500_000_000
MEMORY_LIMIT_BYTES_PER_DOCUMENT = 16


def prepare(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Raw text to uint16 ids, every contestant in a fresh process, in turn, round after round."""
    require([name for name in given.contestants if name != OURS])
    text = text_of(given, work, given.megabytes)
    tokenizer = tokenizer_of(given, text, work)
    names = [*given.contestants, *([OTHER] if given.against else [])]
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    checked: dict[str, Any] = {}
    with bar("measuring", given.rounds * len(names) * text.megabytes) as progress:
        for number in range(given.rounds):
            for name in names:
                progress.set_description_str(f"round {number + 1} of {given.rounds}, {name}", refresh=False)
                progress.set_postfix_str("")
                with fresh(work / name.replace(" ", "-")) as folder:
                    runs[name].append(contest(name, text, tokenizer, folder, given, ticking(progress)))
                    if not number:
                        keep_ids(name, folder, work)
                progress.update(text.megabytes)
            if not number:
                checked = check_ids(names, text, tokenizer, work)
    seconds = {name: statistics.median(run.seconds for run in runs[name]) for name in names}
    rows = [
        [
            name,
            f"{text.megabytes:,.1f}",
            spread([run.seconds for run in runs[name]]),
            f"{text.megabytes / seconds[name]:,.1f}",
            f"{seconds[name] / seconds[OURS]:.2f}" if OURS in seconds else "-",
            f"{statistics.median(run.cpu_seconds for run in runs[name]):.1f}",
            in_megabytes([run.peak_anon_bytes for run in runs[name]]),
        ]
        for name in names
    ]
    header = ["contestant", "MB of text", "seconds, median (range)", "MB/s", "scratchlm is ... times as fast"]
    print(table([*header, "CPU seconds", "peak RssAnon, MB"], rows))
    print("", *checked.pop("said"), sep="\n")
    for name, goal in (("nanogpt", 5.0), ("plain", 0.4)):
        if name in seconds and OURS in seconds:
            print(verdict(f"scratchlm against {name}", seconds[name] / seconds[OURS], goal))
    return {
        "megabytes": text.megabytes,
        "documents": text.n_documents,
        "runs": {name: [run._asdict() for run in runs[name]] for name in names},
        **checked,
    }


def memory(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Anonymous memory of `scratchlm prepare` with all its processes, over more and more text."""
    rows, results = [], []
    tokenizer: Path | None = None
    for megabytes in given.megabytes:
        text = text_of(given, work, megabytes)
        tokenizer = tokenizer or tokenizer_of(given, text, work)
        with fresh(work / "bins") as folder, bar("preparing", text.megabytes) as progress:
            run = contest(OURS, text, tokenizer, folder, given, ticking(progress))
            n_documents = sum(len(Bin(folder, split).documents) for split in ("train", "val"))
            progress.update(text.megabytes)
        text.path.unlink()
        if n_documents < LEAST_KEPT * text.n_documents:
            raise Wrong(f"scratchlm kept {n_documents:,} of {text.n_documents:,} documents, so memory is not tested.")
        results.append({"megabytes": text.megabytes, "documents": n_documents, **run._asdict()})
        peak, first = run.peak_anon_bytes, results[0]
        grown = None if peak is None else peak - first["peak_anon_bytes"]
        more = n_documents - first["documents"]
        rows.append(
            [
                f"{text.megabytes:,.0f}",
                f"{n_documents:,}",
                f"{run.seconds:,.1f}",
                f"{text.megabytes / run.seconds:,.1f}",
                in_megabytes([peak]),
                str(run.peak_processes or "-"),
                f"{grown / more:+,.1f}" if grown is not None and more else "-",
            ]
        )
    header = ["MB of text", "documents", "seconds", "MB/s", "peak RssAnon, MB", "processes"]
    print(table([*header, "bytes a document, beyond the first row"], rows))
    for result in results:
        if result["peak_anon_bytes"] is not None:
            limit = MEMORY_LIMIT_BYTES + MEMORY_LIMIT_BYTES_PER_DOCUMENT * result["documents"]
            within = "within" if result["peak_anon_bytes"] <= limit else "PAST"
            print(f"{result['megabytes']:,.0f} MB: {within} the goal of {limit / 1e6:,.0f} MB.")
    return {"runs": results}


def contest(
    name: str,
    text: Text,
    tokenizer: Path,
    folder: Path,
    given: argparse.Namespace,
    tick: Callable[[float, int], None],
) -> Measured:
    """One contestant's work from process start to process end, into `folder`."""
    environment = os.environ | {
        "HF_HOME": str(folder / "hf"),  # no cache of an earlier round
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if name in (OURS, OTHER):
        checkout = Path(given.against).resolve() if name == OTHER else ROOT
        environment["PYTHONPATH"] = os.pathsep.join([str(checkout / "src"), os.environ.get("PYTHONPATH", "")])
        source = json.dumps({"text": {"uri": str(text.path), "text_column": text.column}})
        words = ["-m", "scratchlm", "prepare", "--data.folder", str(folder), "--data.sources", source]
        words += ["--data.tokenizer", str(tokenizer)]
        for key, value in given.set or []:
            words += [f"--data.{key}", value]
    else:
        words = [peers.__file__, name, str(text.path), text.column, str(tokenizer)]
        words += [str(folder / "train.bin"), str(n_cores())]
    if hasattr(os, "sync"):
        os.sync()  # or this one waits for the last one's writing
    return measure([sys.executable, *words], environment, folder / "log.txt", tick)


def keep_ids(name: str, folder: Path, work: Path) -> None:
    """Sets the output of a contestant aside, for `check_ids`."""
    kept = work / "ids" / name
    kept.mkdir(parents=True)
    for file in [*folder.glob("*.bin"), *folder.glob("*.npy")]:
        file.rename(kept / file.name)


def text_of(given: argparse.Namespace, work: Path, megabytes: float | None) -> Text:
    """The user's file as it is, or as much text as was asked for."""
    if given.text and megabytes is None:
        return counted(given.text, given.column)
    megabytes = megabytes or 50
    require_space(work, 4 * megabytes)
    return made(work / f"{megabytes:g}MB.jsonl", megabytes, given.text, given.column)


def tokenizer_of(given: argparse.Namespace, text: Text, work: Path) -> Path:
    """The tokenizer.json that all contestants are given: the user's with our special tokens, or one trained here."""
    if given.tokenizer:
        speller = spelling.load(given.tokenizer)
    else:
        print(f"training a BPE of {given.vocab_size:,} on the first {TOKENIZER_MEGABYTES} MB ...", file=sys.stderr)
        speller = spelling.train("bpe", first_texts(text, TOKENIZER_MEGABYTES * 1e6), given.vocab_size)
    (work / "tokenizer").mkdir()
    speller.save(work / "tokenizer")
    return work / "tokenizer" / "tokenizer.json"


def first_texts(text: Text, n_bytes: float) -> Iterator[str]:
    """The file's documents until so many bytes are read."""
    with text.path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)[text.column]
            if (n_bytes := n_bytes - len(line)) < 0:
                break


def require(contestants: Sequence[str]) -> None:
    """Ends with one line where a contestant's library is missing."""
    for name in contestants:
        if absent := [needed for needed in peers.NEEDS[name] if importlib.util.find_spec(needed) is None]:
            others = [OURS, *(other for other in peers.NEEDS if other != name)]
            sys.exit(
                f"bench.py: {name} needs {' and '.join(absent)}: pip install {' '.join(absent)}. "
                f"Or leave it out: --contestants {' '.join(others[:2])}."
            )


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def ticking(progress: Any) -> Callable[[float, int], None]:
    """Shows on a bar how long a command has run and what it holds."""

    def tick(seconds: float, anon: int) -> None:
        progress.set_postfix_str(f"this one {seconds:,.0f} s so far, {anon / 1e6:,.0f} MB", refresh=sys.stderr.isatty())

    return tick
