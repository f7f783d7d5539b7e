"""Trainings killed at random moments are the undisturbed ones to the bit, and the instrument can tell when not."""

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.optim import Optimizer

from scratchlm.training import optimizers

ROOT = Path(__file__).parents[1]
N_KILLS = 10


def crash_test(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, ROOT / "scripts" / "crash_test.py", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the script said, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("crash") / "runs"
    ended = crash_test("--kills", str(N_KILLS), "--keep", str(folder))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, folder


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/crashing/comparison.py"""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("crashing.comparison")


@pytest.fixture
def pair(killed: tuple[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """An undisturbed run, and a copy of a killed one that may be changed."""
    _, folder = killed
    return folder / "alone-0", Path(shutil.copytree(folder / "killed-0-0", tmp_path / "run"))


def test_runs_killed_at_random_moments_are_the_undisturbed_ones_to_the_bit(killed: tuple[str, Path]) -> None:
    said, _ = killed
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line[:1] == "|"]
    columns = dict(zip(rows[0], zip(*rows[2:], strict=True), strict=True))
    sums = {name: sum(int(cell.replace(",", "")) for cell in columns[name]) for name in rows[0][1:-1]}
    assert columns["settings"] == (
        "32-true, adamw, 0 workers",
        "32-true, adamw, 2 workers",
        "bf16-mixed, adamw, 0 workers",
        "bf16-mixed, adamw, 2 workers",
    )
    assert sums["kills"] == len(re.findall(r"^ *\d+/10 ", said, re.MULTILINE)) == N_KILLS
    assert sums["commands"] == 1
    assert sums["steps compared"] >= 4 * 20
    assert sums["floats compared"] > 4 * 3 * 290_000  # a weight and its two moments
    assert sums["that differ"] == 0
    assert said.endswith(f"{N_KILLS} kills: the same model\n")


def test_every_optimizer_of_the_project_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    makers = {
        name
        for name, function in inspect.getmembers(optimizers, inspect.isfunction)
        if function.__module__ == optimizers.__name__
        and inspect.isclass(made := inspect.signature(function, eval_str=True).return_annotation)
        and issubclass(made, Optimizer)
    }
    assert set(importlib.import_module("crashing.words").OPTIMIZERS) == makers


def test_one_bit_of_one_number_is_a_difference(module: ModuleType, pair: tuple[Path, Path]) -> None:
    alone, run = pair
    same = module.compare(alone, run, 20)
    assert (same.different, same.largest, same.faults) == (0, 0.0, [])
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    at, line = max((i, json.loads(line)) for i, line in enumerate(lines) if "train/gradient_norm" in line)
    line["train/gradient_norm"] *= 1 + 2**-52
    metrics.write_text("\n".join([*lines[:at], json.dumps(line), *lines[at + 1 :]]) + "\n")
    assert module.compare(alone, run, 20).different == 1
    last = run / "checkpoints" / "step-00000020.ckpt"
    content = torch.load(last, weights_only=True)
    content["optimizer_states"][0]["state"][3]["exp_avg"].view(torch.int32).view(-1)[0] ^= 1
    torch.save(content, last)
    found = module.compare(alone, run, 20)
    assert (found.different, found.faults) == (2, [])
    assert 0 < found.largest < 1e-6


def test_a_line_lost_or_doubled_a_leftover_and_another_sequence_are_faults(
    module: ModuleType, pair: tuple[Path, Path]
) -> None:
    alone, run = pair
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] != 20))
    assert any("gets the steps [1, 2," in fault for fault in module.compare(alone, run, 20).faults)
    metrics.write_text("".join([*lines, lines[-1]]))
    assert any("of step 20 2 times" in fault for fault in module.compare(alone, run, 20).faults)
    metrics.write_text("".join(lines))
    (run / "checkpoints" / ".best.ckpt.partial-1").write_bytes(b"half")
    with (run / "seen.jsonl").open("a") as seen:
        seen.write('{"batch": 7, "crc": 0}\n')
    assert module.compare(alone, run, 20).faults == [
        "checkpoints/.best.ckpt.partial-1 was left behind",
        "micro-batches held other sequences",
    ]


@pytest.mark.parametrize("words", [("--kills", "0"), ("--kills", "ten"), ("--keep", str(ROOT)), ("--tolerance", "1")])
def test_a_mistake_is_one_line(words: tuple[str, str]) -> None:
    ended = crash_test(*words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("crash_test.py: error: ")
    assert len(ended.stderr.splitlines()) == 1
    assert words[0] in ended.stderr
