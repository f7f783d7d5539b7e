"""A killed and resumed run is the undisturbed run: real processes, real SIGKILL, floats compared exactly."""

import json
import signal
from pathlib import Path

import pytest
import torch

from scratchlm.training.run_log import read_metrics

EXACT = ("train/loss", "train/gradient_norm", "train/learning_rate", "val/loss", "val/facts/bits_per_byte")


def curves(folder: Path) -> list[dict]:
    return [{name: line[name] for name in ("step", *EXACT) if name in line} for line in read_metrics(folder)]


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module", params=["32-true", "bf16-mixed"])
def undisturbed(request, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.main([str(folder), "--precision", request.param])
    return request.param, folder


def killed(run_tiny, folder, *arguments):
    result = run_tiny(folder, *arguments)
    assert result.returncode == -signal.SIGKILL, result.stderr


def test_every_step_logs_once_and_validation_comes_at_its_interval_and_once_at_the_end(undisturbed):
    _, folder = undisturbed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 15))
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 14]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "step-00000012.ckpt",
        "step-00000014.ckpt",
    ]


def test_kills_amid_a_step_a_validation_and_a_save_leave_no_trace_in_the_curves(undisturbed, run_tiny, tiny, tmp_path):
    precision, folder = undisturbed
    common = ("--precision", precision)
    killed(run_tiny, tmp_path, *common, "--kill", "batch:10")  # the first of two micro-batches of step 6
    killed(run_tiny, tmp_path, *common, "--resume", "last", "--kill", "validation:10")
    killed(run_tiny, tmp_path, *common, "--resume", "last", "--kill", "save:12")
    assert list((tmp_path / "checkpoints").glob(".*partial*")), "the kill was meant to hit a half-written file"
    tiny.main([str(tmp_path), *common, "--resume", "last"])
    assert curves(tmp_path) == curves(folder)
    assert not list((tmp_path / "checkpoints").glob(".*partial*"))
    expected, found = (weights(root / "checkpoints" / "step-00000014.ckpt") for root in (folder, tmp_path))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_resumed_from_the_best_checkpoint_goes_on_exactly(undisturbed, run_tiny, tiny, tmp_path):
    precision, folder = undisturbed
    killed(run_tiny, tmp_path, "--precision", precision, "--kill", "batch:13")
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 5
    tiny.main([str(tmp_path), "--precision", precision, "--resume", str(best)])
    assert curves(tmp_path) == curves(folder)
    attempt_2 = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    attempt_2 = [line for line in attempt_2 if line["attempt"] == 2]
    assert [line["step"] for line in attempt_2 if "val/loss" in line] == [10, 14], "validation 5 is neither repeated"


def test_a_checkpoint_of_a_step_with_validation_holds_that_validation(run_tiny, tiny, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    tiny.main([str(undisturbed), "--every-steps", "5"])
    killed(run_tiny, disturbed, "--every-steps", "5", "--kill", "batch:21")
    tiny.main([str(disturbed), "--every-steps", "5", "--resume", "last"])
    assert curves(disturbed) == curves(undisturbed)
    lines = [json.loads(line) for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 14]


def test_a_run_goes_on_with_another_micro_batch_size(tiny, tmp_path):
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    common = ["--dropout", "0", "--every-steps", "3"]
    tiny.main([str(undisturbed), "--micro", "2", *common])
    tiny.main([str(resumed), "--micro", "4", *common, "--steps", "3"])
    tiny.main([str(resumed), "--micro", "2", *common, "--resume", "last", "--steps", "14"])
    expected, found = curves(undisturbed)[3:], curves(resumed)[3:]
    # The short run is all warm-up, so its cosine, which ends earlier, never shows.
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(4, 15))
    assert [line["train/loss"] for line in found] == pytest.approx([line["train/loss"] for line in expected], rel=1e-5)


def test_a_finished_run_does_nothing_more_and_can_be_prolonged(tiny, tmp_path, capsys):
    tiny.main([str(tmp_path), "--steps", "7"])
    tiny.main([str(tmp_path), "--steps", "7", "--resume", "last"])
    assert '"attempt": 2' not in (tmp_path / "metrics.jsonl").read_text()
    assert "step 7 of 7 is done already" in capsys.readouterr().err
    tiny.main([str(tmp_path), "--steps", "9", "--resume", "last"])
    assert [line["step"] for line in curves(tmp_path)] == list(range(1, 10))
    assert [line["step"] for line in curves(tmp_path) if "val/loss" in line] == [5, 7, 9]
