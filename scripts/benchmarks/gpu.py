"""One page about one GPU: speed against peers, attention, memory, and a run that is killed and goes on."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.loop import loop
from benchmarks.outputs import OURS, Wrong
from benchmarks.process_tree import Failed, tree
from benchmarks.report import machine, table
from benchmarks.shapes import SHAPES, Shape
from benchmarks.training import PEERS, ROOT, environment_of, fit_command, fit_settings, has_peer, train
from benchmarks.turns import Contestant

from scratchlm.cli import write_yaml
from scratchlm.training.run_log import read_metrics

_BEGIN, _END = "<!-- {name}: begin -->", "<!-- {name}: end -->"
_SAME_LOSS_NATS = 0.02  # between a run and its twin that was killed: a GPU adds in no fixed order; chosen, not tuned
_GOAL_BYTES = 5e9  # of 220m with micro-batches of 1 and activation checkpointing
_SEQUENCES_A_BYTE = 1 / 8e9  # of a step: all contestants keep their memory beside each other
_EVERY_STEPS = 20  # from one checkpoint to the next, of the run that is killed


class OutOfTime(Exception):
    """The minutes given are over."""


def gpu(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All that a GPU is asked for, in one run of minutes; writes a table with its name into a page."""
    import torch

    if not given.dry_run and not torch.cuda.is_available():
        sys.exit("bench.py: gpu: torch sees no CUDA device. --dry-run goes through it all on a CPU, on a tiny network.")
    given.page = given.page or (work / "page.md" if given.dry_run else ROOT / "docs" / "benchmarks.md")
    given.device = "cpu" if given.dry_run else "cuda"
    name = "tiny" if given.dry_run else "220m"
    shape = SHAPES[name]
    if not given.dry_run:
        n = torch.cuda.get_device_properties(0).total_memory * _SEQUENCES_A_BYTE
        shape = shape._replace(sequences=1 << max(0, int(n).bit_length() - 1))
    given.sequences, given.threads = shape.sequences, None
    given.set = [("model.compile", "false")] if given.dry_run else []  # it takes longer than all the rest of it
    sections: dict[str, Callable[..., tuple[list[str], Any]]] = {
        "Device": _device,
        "Speed": _speed,
        "Memory": _memory,
        "Killed and resumed": _resumed,
        "The Trainer's own cost": _loop,
    }
    device_name = "dry run on a CPU" if given.dry_run else torch.cuda.get_device_name()
    lines, results, failed = [f"### {device_name}", ""], {}, []
    began = time.monotonic()
    with _alarm(60 * given.minutes):
        for title, section in sections.items():
            folder = work / re.sub(r"\W", "-", title)
            folder.mkdir()
            print(f"\n{title} ({time.monotonic() - began:.0f} s gone)", flush=True)
            try:
                if time.monotonic() - began > 60 * given.minutes:
                    raise OutOfTime("the time was over")
                said, results[title] = section(name, shape, given, folder)
            except (Failed, Wrong, OutOfTime) as error:
                said = [f"Not measured: {_last_line(error)}"]
                failed.append(title)
            lines += [f"#### {title}", "", *said, ""]
            write_between_marks(given.page, device_name, lines)
    print("", *lines, sep="\n")
    if failed:
        raise Wrong(f"not measured: {', '.join(failed)}; {given.page} has the rest.")
    print(f"\nwritten to {given.page}, after {time.monotonic() - began:.0f} s")
    return results


def _device(name: str, shape: Shape, given: argparse.Namespace, work: Path) -> tuple[list[str], Any]:
    """What it is, whether it computes what it should, and which kernel attention takes."""
    import torch

    from scratchlm.model.probe import probe

    device = torch.device(given.device)
    facts = machine() | {"torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"}
    found = probe(device, torch.bfloat16, shape.vocab_size, shape.d_model, shape.n_heads, None, "auto")
    checks = [f"{one.name}: off by {one.error:.2g}, at most {one.tolerance:.2g}" for one in found]
    wrong = [one.name for one in found if not one.error <= one.tolerance]
    attention = _attention(shape, device)
    facts |= {
        "probe": ("WRONG: " + ", ".join(wrong) if wrong else "all right") + f" ({'; '.join(checks)})",
        "attention": f"{attention['kernel']}; forward and backward {attention['milliseconds']:.3g} ms, and by plain "
        f"products {attention['plain_milliseconds']:.3g} ms",
    }
    return [f"- {key}: {value}" for key, value in facts.items()], facts | {"attention": attention}


def _attention(shape: Shape, device: Any) -> dict[str, Any]:
    """Times our attention in bfloat16, and looks which of torch's operators it calls."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    size = (shape.sequences, shape.context_length, 3, shape.n_heads, shape.d_model // shape.n_heads)
    queries, keys, values = torch.randn(size, device=device, dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
    for tensor in (queries, keys, values):
        tensor.requires_grad_()

    gradient = torch.randn_like(queries)

    def once() -> None:
        scaled_dot_product_attention(queries, keys, values, is_causal=True).backward(gradient)

    def milliseconds(n: int = 10) -> float:
        once()
        fastest = float("inf")
        for _ in range(3):
            _wait(device)
            began = time.perf_counter()
            for _ in range(n):
                once()
            _wait(device)
            fastest = min(fastest, 1000 * (time.perf_counter() - began) / n)
        return fastest

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        once()
    called = {event.key for event in profile.key_averages()}
    kernels = sorted(key for key in called if re.search(r"scaled_dot_product_\w*(flash|efficient|cudnn|math)", key))
    kernel = next((key for key in kernels if "backward" not in key), "unknown")
    found = {"kernel": kernel.removeprefix("aten::"), "milliseconds": milliseconds()}
    with sdpa_kernel(SDPBackend.MATH):
        return found | {"plain_milliseconds": milliseconds()}


def _speed(name: str, shape: Shape, given: argparse.Namespace, work: Path) -> tuple[list[str], Any]:
    """`bench.py train` against the peers that are here."""
    peers = [] if given.dry_run else [peer for peer in PEERS if has_peer(peer, given)]
    ours = [OURS] if given.dry_run else [OURS, f"{OURS}-eager"]
    theirs = [f"{peer}-{mode}" for peer in peers for mode in ("eager", "compiled")] or ["plain-eager"]
    asked = {"shape": [name], "precision": ["bf16"], "contestants": [*ours, *theirs], "against": None}
    asked |= {"rounds": 2 if given.dry_run else 5, "steps": 3 if given.dry_run else None, "round_seconds": 2.0}
    asked |= {"start_together": not given.dry_run}
    [race] = train(argparse.Namespace(**vars(given) | asked), work)["races"]
    missing = [peer for peer in PEERS if peer not in peers]
    return [*race["said"], *([f"\nNot here: {', '.join(missing)}."] if missing else [])], race


def _memory(name: str, shape: Shape, given: argparse.Namespace, work: Path) -> tuple[list[str], Any]:
    """Peak memory and speed of a fit with micro-batches of 1, with activation checkpointing, and with `auto`."""
    one = [("data.micro_batch_size", "1"), ("data.global_batch_size", str(shape.sequences))]
    largest = [("data.micro_batch_size", "auto"), ("data.global_batch_size", str(8 * shape.sequences))]
    checkpointing = [("model.gpt.activation_checkpointing", "true")]
    plans = {"1": one, "1, activation checkpointing": one + checkpointing}
    plans |= {} if given.dry_run else {"auto": largest}
    plans |= {"auto, activation checkpointing": largest + checkpointing}
    rows, results = [], {}
    for number, (plan, keys) in enumerate(plans.items()):
        folder = work / str(number)
        folder.mkdir()
        python, environment = environment_of(OURS, given)
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
        command = fit_command(shape, "bf16", given.device, folder, [*keys, *given.set])
        contestant = Contestant(OURS, [python, *command], environment, folder / "log.txt")
        try:
            facts = contestant.answer()
            facts["first"] = contestant.turn(steps=1)
            timed, anon = contestant.watched_turn(steps=3)
        except Failed as error:
            results[plan] = {"failed": _last_line(error)}
            rows.append([plan, "-", "-", "-", _last_line(error)])
        else:
            peak = max(timed["peak_bytes"] or anon, facts["first"]["peak_bytes"] or 0)
            rate = 3 * facts["tokens_per_step"] / timed["seconds"]
            results[plan] = facts | {"timed": timed, "peak_bytes": peak}
            note = f"first step after {facts['first']['since_start']:.1f} s"
            rows.append([plan, str(facts["micro_batch"]), f"{peak / 1e9:.2f}", f"{rate:,.0f}", note])
        finally:
            contestant.end()
    said = [table(["data.micro_batch_size", "sequences at once", "peak memory, GB", "tokens/s", ""], rows)]
    small = results["1, activation checkpointing"].get("peak_bytes")
    if small and not given.dry_run:
        met = "met" if small <= _GOAL_BYTES else "MISSED"
        said += ["", f"Micro-batches of 1 with activation checkpointing: {small / 1e9:.2f} GB, goal 5 GB: {met}."]
    return said, results


def _resumed(name: str, shape: Shape, given: argparse.Namespace, work: Path) -> tuple[list[str], Any]:
    """A run, and its twin that is killed amid two checkpoints and goes on: the losses of every step must agree."""
    n_steps = 3 * _EVERY_STEPS
    python, environment = environment_of(OURS, given)
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    folders, seconds = {}, {}
    for kind in ("whole", "killed"):
        folder = work / kind
        folder.mkdir()
        settings = fit_settings(shape, "bf16", given.device, folder, n_tokens=None, quiet=True)
        settings["trainer"] |= {"max_steps": n_steps, "log_every_n_steps": 1}
        settings["model"] |= {"warmup_steps": 10, "sample_prompts": []}
        settings["checkpoint"] = {"every_steps": _EVERY_STEPS, "keep": 1}
        write_yaml(folder / "bench.yaml", settings)
        folders[kind] = folder / "run"
        command = [python, "-m", "scratchlm", "fit", "-c", str(folder / "bench.yaml")]
        if kind == "killed":
            _killed(command, environment, folder, 3 * _EVERY_STEPS // 2)
            command += ["--ckpt_path", "last"]
        began = time.monotonic()
        with (folder / "log.txt").open("ab") as log:
            status = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
        seconds[kind] = time.monotonic() - began
        if status:
            raise Failed(f"the {kind} run ended with status {status}:\n{_tail(folder / 'log.txt')}")
    whole, killed = (
        {line["step"]: line for line in read_metrics(folder) if "train/loss" in line} for folder in folders.values()
    )
    if not whole.keys() == killed.keys() == set(range(1, n_steps + 1)):
        raise Wrong(f"the runs logged steps {sorted(whole)} and {sorted(killed)}.")
    went_on_after = min((step for step, line in killed.items() if line["attempt"] == 2), default=1) - 1
    apart = max(abs(whole[step]["train/loss"] - killed[step]["train/loss"]) for step in whole)
    rate = max(line.get("throughput/tokens_per_second", 0.0) for line in whole.values())
    first, last = whole[1]["train/loss"], whole[n_steps]["train/loss"]
    said = [
        f"{n_steps} steps, the loss from {first:.3f} to {last:.3f}; the other run was killed after step "
        f"{3 * _EVERY_STEPS // 2} or soon after, and went on after step {went_on_after}. The largest difference "
        f"between the losses of a step: {apart:.2g} nats (at most {_SAME_LOSS_NATS}). {rate:,.0f} tokens/s at best "
        f"while logging each step; the resumed run took {seconds['killed']:.1f} s from start to end."
    ]
    if not apart <= _SAME_LOSS_NATS or not went_on_after:
        raise Wrong(f"a run that was killed and went on is another run: {said[0]}")
    return said, {"apart_nats": apart, "seconds": seconds, "losses": {s: whole[s]["train/loss"] for s in whole}}


def _killed(command: list[str], environment: dict[str, str], folder: Path, at_step: int) -> None:
    """Runs a fit and kills it once it has logged a step."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while not any(line["step"] >= at_step for line in read_metrics(folder / "run")):
                if process.poll() is not None:
                    raise Failed(f"the run to be killed ended with {process.returncode}:\n{_tail(folder / 'log.txt')}")
                time.sleep(0.05)
        finally:
            for pid in tree(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def _loop(name: str, shape: Shape, given: argparse.Namespace, work: Path) -> tuple[list[str], Any]:
    """`bench.py loop` on the GPU."""
    asked = {"shape": name, "precision": "bf16", "steps": 10, "rounds": 2 if given.dry_run else 5}
    results = loop(argparse.Namespace(**vars(given) | asked | {"count_pauses": False, "apart": False}), work)
    ratios = f"ratio of minima {results['ratio_of_minima']:.3f}, of medians {results['ratio_of_medians']:.3f}"
    return [f"A whole fit against a bare loop over the same module and data: {ratios}."], results


def write_between_marks(page: Path, name: str, lines: list[str]) -> None:
    """Puts the lines into a page, between two marks with the device's name, in place of what was there."""
    begin, end = (mark.format(name=name) for mark in (_BEGIN, _END))
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    block = "\n".join([begin, *lines, end])
    if begin in text and end in text:
        before, _, rest = text.partition(begin)
        text = before + block + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{block}\n".lstrip()
    page.write_text(text, encoding="utf-8")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise OutOfTime("the time was over")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
