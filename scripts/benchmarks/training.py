"""Whole optimizer steps: tokens a second of `scratchlm fit` and of what people use instead, on the same shapes."""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.outputs import OTHER, OURS, Wrong
from benchmarks.preparation import ROOT
from benchmarks.random_bins import random_bins
from benchmarks.report import bar, n_cores, spread, table, verdict
from benchmarks.shapes import SHAPES, Shape
from benchmarks.turns import Contestant

from scratchlm.cli import write_yaml

if TYPE_CHECKING:  # torch takes seconds to import, and the other benchmarks do without
    from scratchlm.model.gpt import GPT

PEERS = ("litgpt", "transformers")
CONTESTANTS = (
    OURS,
    f"{OURS}-eager",
    f"{OURS}-compiled",
    *(f"{peer}-{mode}" for peer in (*PEERS, "plain") for mode in ("eager", "compiled")),
)
DEFAULT = (OURS, *(f"{peer}-{mode}" for peer in PEERS for mode in ("eager", "compiled")))
_WARM_UP_STEPS = 3
_SAME_SIZE = 0.03  # a peer's parameters may be off by this fraction, all of them and those beyond embeddings
_SAME_LOSS_NATS = 0.7  # and its loss on random ids by this, from the logarithm of the vocabulary
_NEVER = 100_000_000  # steps
_TRAIN_TOKENS = 4_000_000  # of the random train.bin


def train(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Whole optimizer steps of each contestant, a process each that stays alive, in turn, round after round."""
    for name in given.contestants:
        environment_of(name, given)  # what is missing is said before anything is built
    shapes = {name: _with_batch(SHAPES[name], given.sequences) for name in given.shape}
    for name, shape in shapes.items():
        _require_memory(name, shape, given)
    results = []
    for name, shape in shapes.items():
        for precision in given.precision:
            folder = work / f"{name}-{precision}"
            folder.mkdir()
            results.append(_race(name, shape, precision, given, folder))
    return {"races": results}


def _race(name: str, shape: Shape, precision: str, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All rounds of one shape in one precision, and their table."""
    gpt = meta_gpt(shape)
    with ExitStack() as stack:
        peak = stack.enter_context(_started("matmul", shape, precision, given, work))
        device = peak.answer()["device"]
        contestants: dict[str, Contestant] = {}
        facts: dict[str, dict[str, Any]] = {}
        runs: dict[str, list[dict[str, Any]]] = {}
        with bar(f"{name}, {precision}: starting", len(given.contestants), "contestants") as progress:
            for who in given.contestants:
                contestants[who] = stack.enter_context(_started(who, shape, precision, given, work))
                contestants[who].order(steps=1)
                if not given.start_together:
                    facts[who] = _first_step(contestants[who])
                    progress.update()
            for who in given.contestants:
                if given.start_together:
                    facts[who] = _first_step(contestants[who])
                    progress.update()
                facts[who]["warm_up"] = contestants[who].turn(steps=_WARM_UP_STEPS)
                runs[who] = []
        require_same_size(facts, gpt)
        first = next(iter(contestants))
        n_steps = given.steps or _n_steps(facts[first]["warm_up"], given.round_seconds)
        peaks = []
        with bar(f"{name}, {precision}: rounds of {n_steps} steps", given.rounds * len(runs), "turns") as progress:
            for _ in range(given.rounds):
                peaks.append(peak.turn(steps=1))
                for who, contestant in contestants.items():
                    runs[who].append(contestant.turn(steps=n_steps))
                    progress.update()
        for who, contestant in contestants.items():
            answer, anon = contestant.watched_turn(steps=_WARM_UP_STEPS)
            facts[who]["peak_bytes"] = answer["peak_bytes"] or anon or None
    require_same_loss(runs, shape)
    found = _report(name, shape, precision, n_steps, facts, runs, max(peaks, key=lambda one: one["flops"]), gpt)
    return found | {"device": device}


def _first_step(contestant: Contestant) -> dict[str, Any]:
    """Waits until it has said what it is, and made the step that was ordered."""
    return contestant.answer() | {"first": contestant.answer()}


def _report(
    name: str,
    shape: Shape,
    precision: str,
    n_steps: int,
    facts: dict[str, dict[str, Any]],
    runs: dict[str, list[dict[str, Any]]],
    peak: dict[str, Any],
    gpt: "GPT",
) -> dict[str, Any]:
    """Prints the table and the verdicts of a race."""
    tokens, flops = shape.sequences * shape.context_length, gpt.flops_per_token(shape.context_length)
    rates = {who: [n_steps * tokens / run["seconds"] for run in runs[who]] for who in runs}
    median = {who: statistics.median(rates[who]) for who in rates}
    mfu = {who: median[who] * flops / peak["flops"] for who in rates}
    rows = []
    for who in rates:
        step = statistics.median(run["seconds"] for run in runs[who]) / n_steps
        compiling = facts[who]["first"]["seconds"] + facts[who]["warm_up"]["seconds"] - (1 + _WARM_UP_STEPS) * step
        held = facts[who]["peak_bytes"]
        facts[who] |= {"tokens_per_second": median[who], "mfu": mfu[who], "warm_up_seconds": compiling}
        rows.append(
            [
                who,
                spread(rates[who]),
                f"{median[OURS] / median[who]:.2f}" if OURS in median else "-",
                f"{100 * mfu[who]:.1f}%",
                f"{held / 1e6:,.0f}" if held else "-",
                f"{compiling:.1f}",
                f"{facts[who]['first']['since_start']:.1f}",
                f"{facts[who]['parameters']:,}",
            ]
        )
    n_rounds = len(next(iter(runs.values())))
    said = [
        f"{name} in {precision}: {shape.d_model} wide, {shape.n_layers} layers, context {shape.context_length:,}, "
        f"vocabulary {shape.vocab_size:,}, {shape.sequences} sequences a step, {n_rounds} rounds of {n_steps} steps; "
        f"{flops:,} FLOPs a token; matmul peak {peak['flops'] / 1e9:,.0f} GFLOP/s ({peak['which']})",
        "",
    ]
    header = ["contestant", "tokens/s, median (range)", "scratchlm is ... times as fast", "MFU", "peak memory, MB"]
    said.append(table([*header, "warm-up, s", "first step after, s", "parameters"], rows))
    if OURS in median and precision == "bf16":
        said += _verdicts(shape, median, mfu[OURS])
    print("", *said, sep="\n")
    return {
        "said": said,
        "shape": name,
        "precision": precision,
        "steps_a_round": n_steps,
        "matmul": peak,
        "flops_per_token": flops,
        "contestants": {who: facts[who] | {"rounds": runs[who]} for who in runs},
    }


def _verdicts(shape: Shape, median: Mapping[str, float], mfu: float) -> list[str]:
    said = []
    rivals = {who: rate for who, rate in median.items() if who.partition("-")[0] in shape.goal_against}
    if shape.goal and rivals:
        best = max(rivals, key=lambda who: rivals[who])
        said += ["", verdict(f"{OURS} against the best, {best}", median[OURS] / rivals[best], shape.goal)]
    if shape.goal_mfu:
        met = "met" if mfu >= shape.goal_mfu else "MISSED"
        said += ["", f"MFU: {100 * mfu:.1f}%, goal {100 * shape.goal_mfu:g}%: {met}."]
    return said


@contextmanager
def _started(who: str, shape: Shape, precision: str, given: argparse.Namespace, work: Path) -> Iterator[Contestant]:
    """A contestant's process, killed at the end of the block."""
    folder = work / who.replace(" ", "-")
    folder.mkdir()
    python, environment = environment_of(who, given)
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}  # else a compiler's time is that of its cache
    if who == "matmul" or _is_peer(who):
        facts = {"shape": shape._asdict(), "device": given.device, "precision": precision, "seed": 1}
        words = ["-m", "benchmarks.peer_training", who, "ORDERS", "ANSWERS", str(time.time()), json.dumps(facts)]
    else:
        words = fit_command(shape, precision, given.device, folder, [*_own_keys(who), *(given.set or [])])
    contestant = Contestant(who, [python, *words], environment, folder / "log.txt")
    try:
        yield contestant
    finally:
        contestant.end()


def fit_command(
    shape: Shape, precision: str, device: str, folder: Path, keys: Sequence[Sequence[str]], quiet: bool = True
) -> list[str]:
    """Arguments for Python to run `scratchlm fit` on random ids, with a callback that waits for orders.

    Args:
        shape: What to train.
        precision: bf16 or fp32.
        device: cpu or cuda.
        folder: Where its bins, its YAML and its run go.
        keys: Further keys of the command line with their values; they win.
        quiet: Never validate and never save; else as often as a fit does by default.
    """
    write_yaml(folder / "bench.yaml", fit_settings(shape, precision, device, folder, _TRAIN_TOKENS, quiet))
    values = f"{{orders: ORDERS, answers: ANSWERS, began: {time.time()}}}"
    callback = f"[{{class_path: benchmarks.rounds.Rounds, init_args: {values}}}]"
    words = ["-m", "scratchlm", "fit", "-c", str(folder / "bench.yaml"), "--trainer.callbacks", callback]
    return words + [word for key, value in keys for word in (f"--{key}", value)]


def fit_settings(
    shape: Shape, precision: str, device: str, folder: Path, n_tokens: int | None, quiet: bool
) -> dict[str, Any]:
    """The YAML of a fit; for the arguments see `fit_command` and `random_bins`."""
    data = random_bins(folder / "text", shape.vocab_size, n_tokens)
    data |= {"context_length": shape.context_length}
    data |= {"micro_batch_size": shape.sequences, "global_batch_size": shape.sequences}
    settings: dict[str, Any] = {
        "data": data,
        "model": {"gpt": {key: getattr(shape, key) for key in ("d_model", "n_layers", "n_heads", "d_ff")}},
        "trainer": {
            "accelerator": device,
            "precision": {"bf16": "bf16-mixed", "fp32": "32-true"}[precision],
            "default_root_dir": str(folder / "run"),
            "max_steps": _NEVER,
        },
    }
    if quiet:
        settings["trainer"]["val_check_interval"] = _NEVER
        settings["checkpoint"] = {"every_steps": _NEVER}
    return settings


def meta_gpt(shape: Shape) -> "GPT":
    """Our network of a shape, without weights."""
    import torch

    from scratchlm.model.gpt import GPT

    with torch.device("meta"):
        return GPT(
            shape.vocab_size,
            shape.context_length,
            d_model=shape.d_model,
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            d_ff=shape.d_ff,
        )


def environment_of(who: str, given: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """The interpreter of a contestant and its environment; ends with one line where the library is missing."""
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads or n_cores()), "WANDB_MODE": "disabled"}
    checkout = Path(given.against).resolve() if who == OTHER else ROOT
    path = [str(ROOT / "scripts"), str(checkout / "src"), os.environ.get("PYTHONPATH", "")]
    python, library = sys.executable, who.partition("-")[0]
    if library in PEERS:
        path = [str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
        made = Path(given.environments) / library
        if not has_peer(library, given):
            others = " ".join(name for name in given.contestants if name.partition("-")[0] != library)
            sys.exit(
                f"bench.py: {who}: no {library} in {given.environments}. Make it: scripts/bench_env.sh "
                f"{given.environments}. Or leave it out: --contestants {others or OURS}."
            )
        if (made / "bin" / "python").exists():
            python = str(made / "bin" / "python")
        elif (made / "site").exists():
            path.insert(0, str(made / "site"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return python, environment


def has_peer(library: str, given: argparse.Namespace) -> bool:
    """Whether a peer has an environment, or a folder `site` made by pip --target, or is installed beside scratchlm."""
    made = Path(given.environments) / library
    return (made / "bin" / "python").exists() or (made / "site").exists() or find_spec(library) is not None


def _is_peer(who: str) -> bool:
    return who.partition("-")[0] in (*PEERS, "plain")


def _own_keys(who: str) -> list[tuple[str, str]]:
    """How a contestant of ours differs from the defaults."""
    return {f"{OURS}-eager": [("model.compile", "false")], f"{OURS}-compiled": [("model.compile", "true")]}.get(who, [])


def _with_batch(shape: Shape, sequences: int | None) -> Shape:
    return shape._replace(sequences=sequences) if sequences else shape


def _n_steps(warm_up: Mapping[str, Any], round_seconds: float) -> int:
    return max(3, math.ceil(round_seconds * _WARM_UP_STEPS / warm_up["seconds"]))


def _require_memory(name: str, shape: Shape, given: argparse.Namespace) -> None:
    """Ends with one line where the contestants, who all stay alive, would not fit beside each other."""
    if given.device != "cpu" or not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Peers keep all logits, their logarithms and their gradient; 0.5 GB is a process with torch in it.
    logits = 3 * 4 * shape.sequences * shape.context_length * shape.vocab_size
    each = meta_gpt(shape).training_bytes(shape.sequences, autocast=True) + logits + 0.5e9
    if len(given.contestants) * each > free:
        sys.exit(
            f"bench.py: --shape {name}: {len(given.contestants)} contestants take about "
            f"{len(given.contestants) * each / 1e9:.0f} GB beside each other, and {free / 1e9:.0f} GB are free. "
            "Name fewer in --contestants."
        )


def require_same_size(facts: Mapping[str, Mapping[str, Any]], gpt: "GPT") -> None:
    """Every contestant trains what ours does; raises Wrong."""
    embedded = gpt.token_embedding.weight.numel() + gpt.position_embedding.weight.numel()
    ours = {"parameters": gpt.n_parameters, "beyond_embeddings": gpt.n_parameters - embedded}
    for who, found in facts.items():
        for kind, expected in ours.items():
            if abs(found[kind] / expected - 1) > _SAME_SIZE:
                raise Wrong(
                    f"{who} has {found[kind]:,} {kind.replace('_', ' ')} and scratchlm's network {expected:,}: more "
                    f"than {100 * _SAME_SIZE:g}% apart, so their times do not compare."
                )


def require_same_loss(runs: Mapping[str, Sequence[Mapping[str, Any]]], shape: Shape) -> None:
    """Every contestant's loss is about what random ids leave; raises Wrong."""
    expected = math.log(shape.vocab_size)
    for who, rounds in runs.items():
        for number, run in enumerate(rounds, 1):
            if not abs(run["loss"] - expected) < _SAME_LOSS_NATS:
                raise Wrong(
                    f"{who}: its loss in round {number} is {run['loss']:.2f} nats, and on random ids of a vocabulary "
                    f"of {shape.vocab_size:,} it must be about {expected:.2f}: it does not do the same work."
                )
