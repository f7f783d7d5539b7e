"""Every file in configs/ parses, repeats no default, and trains once with its steps cut down."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scratchlm.model.checkpoint import read
from scratchlm.text.tales import tales
from scratchlm.training.run_log import read_metrics

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]
OVERLAYS = sorted((*CONFIGS.glob("size/*.yaml"), *CONFIGS.glob("machine/*.yaml")))
TEXT = "--data.sources={text: input.txt}"


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and key != "data.sources":
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def printed(command: Callable[..., None], capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        command("fit", *words, "--print_config")
    assert stop.value.code == 0
    return dict(leaves(yaml.safe_load(capsys.readouterr().out)))


@pytest.mark.parametrize("path", [*(CONFIGS / f"{run}.yaml" for run in RUNS), *OVERLAYS], ids=lambda path: path.stem)
def test_a_configuration_repeats_no_default(
    path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = printed(command, capsys)
    resolved = printed(command, capsys, "-c", str(path))
    given = dict(leaves(yaml.safe_load(path.read_text())))
    assert given
    for key in given:
        assert resolved[key] != defaults[key], f"{path.name} repeats the default of {key}"


@pytest.mark.parametrize("name", ["char", "mini"])
def test_a_configuration_for_one_text_says_how_to_name_it(
    name: str, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command("fit", "-c", str(CONFIGS / f"{name}.yaml"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--data.sources '{text: input.txt}'" in error
    assert error.count("\n") == 1


SHORT = [
    "--trainer.max_epochs=null",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--model.sample_tokens=4",
]
FEW_AT_ONCE = ["--data.micro_batch_size=2", "--data.global_batch_size=4"]
# The main runs keep their sources, mixture and schedule; what would take a CPU minutes is made small.
SMALL = [
    "--data.total_tokens=20000",
    "--data.vocab_size=600",
    "--data.context_length=64",
    "--model.gpt.d_model=64",
    "--model.gpt.n_layers=2",
    "--model.gpt.d_ff=128",
]
CUT_DOWN: dict[str, list[str]] = {
    "char": [TEXT],
    "gpt2_shape": [*SMALL, "--model.gpt.n_heads=4"],
    "mini": [TEXT],
    "pretrain_220m": [*SMALL, "--model.gpt.n_heads=4"],
    "quickstart": ["--data.total_tokens=200000", "--data.tokenizer_sample_bytes=500000"],
    "small_19m": [],
}


def trained_on(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run folder says."""
    checkpoint = read(folder / "checkpoints" / "step-00000002.ckpt")
    assert checkpoint.step == 2
    assert [line["step"] for line in read_metrics(folder)] == [2]  # the last step is logged and validated
    assert read_metrics(folder)[0]["val/loss"] > 0
    return {"gpt": checkpoint.gpt_settings, "card": checkpoint.card}


@pytest.fixture
def one_text(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("\n\n".join(text for text, _ in tales(200)), encoding="utf-8")


def test_every_run_is_tried() -> None:
    assert sorted(CUT_DOWN) == RUNS


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("hub", "one_text")
def test_a_run_trains(name: str, command: Callable[..., None], tmp_path: Path) -> None:
    command("fit", "-c", str(CONFIGS / f"{name}.yaml"), *SHORT, *FEW_AT_ONCE, *CUT_DOWN[name])
    sources = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"].get("sources", {"text": "input.txt"})
    found = trained_on(tmp_path / "runs" / name)
    assert [source["name"] for source in found["card"]["sources"]] == list(sources)


@pytest.mark.parametrize(("size", "n_layers"), [("smoke", 2), ("experiment", 6), ("better", 8)])
@pytest.mark.usefixtures("one_text")
def test_a_size_laid_over_the_character_run_trains(
    size: str, n_layers: int, command: Callable[..., None], tmp_path: Path
) -> None:
    over = str(CONFIGS / "size" / f"char_{size}.yaml")
    command("fit", "-c", str(CONFIGS / "char.yaml"), "-c", over, TEXT, *SHORT, *FEW_AT_ONCE)
    assert trained_on(tmp_path / "runs" / "char")["gpt"]["n_layers"] == n_layers


@pytest.mark.usefixtures("one_text")
def test_the_machine_laid_over_a_run_decides(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    char = ["fit", "-c", str(CONFIGS / "char.yaml"), TEXT, *SHORT]
    command(*char, "-c", str(CONFIGS / "machine" / "cpu.yaml"), "--data.global_batch_size=4")
    resolved = yaml.safe_load((tmp_path / "runs" / "char" / "config.yaml").read_text())
    assert resolved["data"]["micro_batch_size"] == 2
    assert resolved["trainer"]["accelerator"] == "cpu"
    for machine, is_there in (("cuda", torch.cuda.is_available()), ("metal", torch.backends.mps.is_available())):
        if not is_there:
            with pytest.raises(SystemExit) as stop:
                command(*char, "-c", str(CONFIGS / "machine" / f"{machine}.yaml"), "--fresh=true")
            assert stop.value.code == 2
            assert "trainer.accelerator" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_the_main_model_takes_a_step_at_its_full_size(command: Callable[..., None], tmp_path: Path) -> None:
    few = ["--data.total_tokens=60000", "--data.micro_batch_size=1", "--data.global_batch_size=1"]
    command("fit", "-c", str(CONFIGS / "pretrain_220m.yaml"), *SHORT, *few, "--data.context_length=256")
    assert trained_on(tmp_path / "runs" / "pretrain_220m")["gpt"]["d_model"] == 1024
