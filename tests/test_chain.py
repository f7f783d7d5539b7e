"""Bins, tokenizer and checkpoint hang together by their hashes: what does not belong to a run never trains it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.test_cli import TEXT, TINY

from scratchlm.data.bins import read_manifest, sealed
from scratchlm.files.whole import sha256
from scratchlm.model.checkpoint import KEY, read
from scratchlm.training.run_log import read_metrics

Command = Callable[..., None]
Refusal = Callable[..., str]

GO_ON = ["fit", "--trainer.default_root_dir=run", "--ckpt_path=last", "--trainer.max_steps=5"]
LAST = Path("run/checkpoints/step-00000004.ckpt")


def hashes(folder: Path) -> dict[str, str]:
    manifest = read_manifest(folder / "bins")
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return files | {"tokenizer.json": manifest["tokenizer_sha256"]}


def contents(run: Path) -> dict[Path, str]:
    return {path: sha256(path) for path in run.rglob("*") if path.is_file()}


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = read_manifest(folder / "bins")
    change(manifest)
    (folder / "bins" / "manifest.json").write_text(json.dumps(sealed(manifest)))


def other_bytes(folder: Path, name: str) -> None:
    """As many ids, some of them others: nothing but the content tells."""
    ids = np.fromfile(folder / "bins" / name, "<u2")
    ids[10:20] = ids[30:40]
    ids.tofile(folder / "bins" / name)


def other_tokenizer(folder: Path) -> None:
    """The same ids for the same text: only the bytes of the file are others."""
    path = folder / "bins" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


def other_corpus(folder: Path, command: Command) -> None:
    """Bins of other text, sealed as bins should be."""
    text = (folder / "input.txt").read_text()
    (folder / "input.txt").write_text(" ".join(reversed(text.split())))
    command("prepare", "-c=run/config.yaml", "--fresh=true")
    (folder / "input.txt").write_text(text)


@pytest.mark.parametrize("what", ["train.bin", "val.bin", "tokenizer", "sealed tokenizer", "corpus"])
def test_what_the_run_was_not_trained_on_is_refused_until_the_named_command_has_mended_it(
    what: str, run_folder: Path, command: Command, refusal: Refusal
) -> None:
    before, files = hashes(run_folder), contents(run_folder / "run")
    if what.endswith("tokenizer"):
        other_tokenizer(run_folder)
    elif what == "corpus":
        other_corpus(run_folder, command)
    else:
        other_bytes(run_folder, what)
    name = {"tokenizer": "tokenizer.json", "sealed tokenizer": "tokenizer.json", "corpus": "train.bin"}.get(what, what)
    now = sha256(run_folder / "bins" / name)
    if what.startswith("sealed"):
        reseal(run_folder, lambda manifest: manifest.update(tokenizer_sha256=now))
    line = refusal(*GO_ON)
    assert name in line
    assert now[:12] in line
    assert before[name][:12] in line
    assert "scratchlm prepare --fresh true -c run/config.yaml" in line
    assert contents(run_folder / "run") == files
    command("prepare", "--fresh", "true", "-c", "run/config.yaml")
    command(*GO_ON)
    assert read_metrics(run_folder / "run")[-1]["step"] == 5


def test_bins_that_were_only_copied_or_touched_are_read_once_and_taken(run_folder: Path, command: Command) -> None:
    bins = run_folder / "bins"
    os.utime(bins / "train.bin")
    command(*GO_ON)
    sealed_at = (bins / "manifest.json").stat().st_ctime_ns
    assert sealed_at > (bins / "train.bin").stat().st_ctime_ns
    command(*GO_ON[:-1], "--trainer.max_steps=6")
    assert (bins / "manifest.json").stat().st_ctime_ns == sealed_at


def test_a_checkpoint_of_another_run_of_the_same_shape_is_refused_with_the_folder_it_needs(
    run_folder: Path, command: Command, refusal: Refusal
) -> None:
    (run_folder / "other.txt").write_text(" ".join((TEXT.split() * 200)[::-1]))
    others = {
        "--data.sources": "--data.sources={text: other.txt}",
        "--data.folder": "--data.folder=other-bins",
        "--trainer.default_root_dir": "--trainer.default_root_dir=other",
    }
    there = [others.get(word.partition("=")[0], word) for word in TINY]
    command("prepare", *[word for word in there if word.startswith("--data.") and "batch" not in word])
    theirs = read_manifest(run_folder / "other-bins")["files"]["train.bin"]["sha256"]
    (run_folder / "other.yaml").write_text("{}")
    line = refusal("fit", "-c=other.yaml", *there, f"--ckpt_path={LAST}", "--trainer.max_steps=5")
    assert hashes(run_folder)["train.bin"][:12] in line
    assert theirs[:12] in line
    assert "Give --data.folder bins; scratchlm prepare --fresh true -c run/config.yaml" in line
    assert not (run_folder / "other").exists()


def test_another_tokenizer_scores_nothing(run_folder: Path, refusal: Refusal) -> None:
    other_tokenizer(run_folder)
    now = sha256(run_folder / "bins" / "tokenizer.json")
    before = hashes(run_folder)["tokenizer.json"]
    reseal(run_folder, lambda manifest: manifest.update(tokenizer_sha256=now))
    line = refusal("validate", f"--ckpt_path={LAST}")
    assert "tokenizer.json (SHA-256 " in line
    assert now[:12] in line
    assert before[:12] in line


def test_a_checkpoint_holds_the_order_that_it_was_trained_in(trained: Path) -> None:
    order = read(trained / LAST).order
    assert order == json.loads((trained / "run" / "order.json").read_text())
    settings = {
        "seed": 1,
        "context_length": 16,
        "windows": "shuffled",
        "stride_tokens": None,
        "global_batch_size": 4,
    }
    files = {name: hashes(trained)[name] for name in ("train.bin", "val.bin", "tokenizer.json")}
    assert order == settings | files


def test_a_checkpoint_from_before_it_held_the_order_goes_on_and_is_compared(
    run_folder: Path, command: Command, refusal: Refusal
) -> None:
    saved = torch.load(run_folder / LAST, weights_only=True)
    order = saved[KEY].pop("order")
    state = saved["PretrainingData"]
    del state["order"]
    state |= {"step": 4, "train_sha256": order["train.bin"]}
    state |= {key: order[key] for key in ("seed", "context_length", "windows", "stride_tokens")}
    torch.save(saved, run_folder / LAST)
    assert "data.seed=2: the checkpoint was trained with 1" in refusal(*GO_ON, "--data.seed=2")
    line = refusal(*GO_ON, "--data.global_batch_size=8")
    assert "data.global_batch_size=8: the checkpoint was trained with 4" in line
    command(*GO_ON)
    assert read(run_folder / "run/checkpoints/step-00000005.ckpt").order == order


@pytest.mark.parametrize("path", ["last", str(LAST)])
def test_training_choices_of_the_command_line_win_and_are_said(
    path: str, run_folder: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    call = [*GO_ON[:2], f"--ckpt_path={path}", "--trainer.max_steps=5", "--model.learning_rate=0.5"]
    command(*call, "--data.micro_batch_size=4", "--model.warmup_steps=0", "--model.decay_steps=100")
    said = [line for line in capfd.readouterr().err.splitlines() if " from here on" in line]
    assert sorted(said) == [
        "scratchlm: data.micro_batch_size: 4 from here on, 2 before",
        "scratchlm: model.decay_steps: 100 from here on, null before",
        "scratchlm: model.learning_rate: 0.5 from here on, 0.0018 before",
        "scratchlm: model.warmup_steps: 0 from here on, 250 before",
        "scratchlm: trainer.max_steps: 5 from here on, 4 before",
    ]
    assert read_metrics(run_folder / "run")[-1]["train/learning_rate"] == pytest.approx(0.5, rel=0.01)
    assert yaml.safe_load((run_folder / "run/config.yaml").read_text())["model"]["learning_rate"] == 0.5
    command(*call[:3], "--trainer.max_steps=5")
    again = [line for line in capfd.readouterr().err.splitlines() if " from here on" in line]
    assert again == [] if path == "last" else len(again) == 1
