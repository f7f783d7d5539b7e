#!/usr/bin/env python3
"""Measures scratchlm against what people use instead, in one run on the same text and cores; see docs/benchmarks.md."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.batches import windows
from benchmarks.gpu import gpu
from benchmarks.loop import loop
from benchmarks.one_pass import one_pass
from benchmarks.outputs import OTHER, OURS, Wrong
from benchmarks.peers import NEEDS
from benchmarks.preparation import memory, prepare
from benchmarks.process_tree import Failed
from benchmarks.report import machine
from benchmarks.shapes import SHAPES
from benchmarks.training import CONTESTANTS, DEFAULT, ROOT, train


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(description=__doc__)
    verbs = whole.add_subparsers(required=True, metavar="BENCHMARK")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, help="folder for temporary files (default: the system's)")
    shared.add_argument("--json", type=Path, help="file to write every measurement to")
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument("--text", type=Path, help="JSONL to take text from (default: scratchlm's built-in sources)")
    texts.add_argument("--column", default="text", help="its field that holds the text (default: text)")
    prepared = argparse.ArgumentParser(add_help=False)
    prepared.add_argument("--tokenizer", help="tokenizer.json for all (default: a BPE trained on the text beforehand)")
    prepared.add_argument("--vocab-size", type=int, default=16_000, help="of that BPE (default: 16,000)")
    prepared.add_argument(
        "--set",
        nargs=2,
        action="append",
        metavar=("KEY", "VALUE"),
        help="give scratchlm --data.KEY VALUE; may be repeated",
    )

    def add(name: str, function: Callable[..., Any], *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        meaning = str(function.__doc__)
        verb = verbs.add_parser(name, parents=[*parents, shared], help=meaning, description=meaning)
        verb.set_defaults(function=function)
        return verb

    verb = add("prepare", prepare, texts, prepared)
    verb.add_argument("--megabytes", type=float, help="text to use (default: all of --text, else 50)")
    verb.add_argument("--rounds", type=int, default=3, help="runs of each contestant (default: 3)")
    verb.add_argument(
        "--contestants",
        nargs="+",
        choices=[OURS, *NEEDS],
        default=[OURS, "nanogpt", "plain"],
        help="in this order (default: scratchlm nanogpt plain)",
    )
    verb.add_argument("--against", help="another checkout of scratchlm, to run beside this one")
    verb = add("memory", memory, texts, prepared)
    verb.add_argument(
        "--megabytes", type=float, nargs="+", default=[50, 200, 500, 2000], help="default: 50 200 500 2000"
    )
    verb = add("windows", windows, texts)
    verb.add_argument("--megabytes", type=float, default=1000, help="size of the bin (default: 1000)")
    verb.add_argument("--context-length", type=int, default=1024, help="inputs of a window (default: 1024)")
    verb.add_argument(
        "--micro-batch-sizes",
        type=int,
        nargs="+",
        default=[12, 64],
        help="in sequences (default: 12 64, nanoGPT's own)",
    )
    verb.add_argument("--megatokens", type=float, default=32, help="of each contestant in a round (default: 32)")
    verb.add_argument("--rounds", type=int, default=5, help="after one to warm up (default: 5)")
    verb = add("pass", one_pass, texts, prepared)
    verb.add_argument("--megabytes", type=float, default=50, help="text to make blocks of (default: 50)")
    verb.add_argument("--megatokens", type=float, default=500, help="that the pass writes (default: 500)")
    verb.add_argument(
        "--tokens-a-document", type=int, nargs="+", default=[200, 800, 8000], help="default: 200 800 8000"
    )
    verb.add_argument("--megadocuments", type=float, default=50, help="in the table of hashes (default: 50)")
    verb.add_argument("--rounds", type=int, default=3, help="of each (default: 3)")
    environments = argparse.ArgumentParser(add_help=False)
    environments.add_argument(
        "--environments",
        default=os.environ.get("SCRATCHLM_BENCH", str(ROOT / ".bench")),
        help="where scripts/bench_env.sh has made those of the peers (default: $SCRATCHLM_BENCH, else .bench)",
    )
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    training.add_argument("--threads", type=int, help="of each process (default: the cores that it may use)")
    training.add_argument("--sequences", type=int, help="of a step (default: the shape's own)")
    training.add_argument(
        "--set", nargs=2, action="append", metavar=("KEY", "VALUE"), help="give scratchlm --KEY VALUE; may be repeated"
    )
    verb = add("train", train, training, environments)
    verb.add_argument(
        "--shape",
        nargs="+",
        choices=list(SHAPES),
        default=["5m", "16m"],
        help="(default: 5m 16m; 218m is for a CPU, 220m for a GPU)",
    )
    verb.add_argument("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16"], help="default: bf16")
    verb.add_argument(
        "--contestants",
        nargs="+",
        choices=[*CONTESTANTS, OTHER],
        default=DEFAULT,
        help=f"in this order (default: {' '.join(DEFAULT)})",
    )
    verb.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default: 5)")
    verb.add_argument("--steps", type=int, help="of a turn (default: as many as --round-seconds take)")
    verb.add_argument("--round-seconds", type=float, default=5, help="about as long is a turn (default: 5)")
    verb.add_argument("--start-together", action="store_true", help="where there are cores enough: saves time")
    verb.add_argument("--against", help="another checkout of scratchlm, for the contestant `other checkout`")
    verb = add("loop", loop, training, environments)
    verb.add_argument("--shape", choices=list(SHAPES), default="5m", help="default: 5m")
    verb.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="default: bf16")
    verb.add_argument("--rounds", type=int, default=12, help="turns of each (default: 12)")
    verb.add_argument("--steps", type=int, default=20, help="of a turn; a fit logs each tenth (default: 20)")
    verb.add_argument("--count-pauses", action="store_true", help="count validation, samples and saving, too")
    verb.add_argument("--apart", action="store_true", help="the bare loop in a process of its own, without W&B and bar")
    verb = add("gpu", gpu, environments)
    verb.add_argument("--page", type=Path, help="to write the table into (default: docs/benchmarks.md)")
    verb.add_argument("--minutes", type=float, default=8, help="what is not measured by then is left out (default: 8)")
    verb.add_argument("--dry-run", action="store_true", help="on a CPU with a tiny network, to see that it all works")
    return whole


def main() -> None:
    """Runs a benchmark; exits with 1 where an output was wrong or a contestant failed."""
    given = parser().parse_args()
    facts = machine()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    with tempfile.TemporaryDirectory(prefix="scratchlm-bench-", dir=given.work) as work:
        try:
            results = given.function(given, Path(work))
        except (Wrong, Failed) as error:
            sys.exit(f"bench.py: {error}")
    if given.json:
        given.json.write_text(json.dumps({"machine": facts, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
