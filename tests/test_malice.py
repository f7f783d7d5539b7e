"""Files made to do harm: nothing in a checkpoint, a configuration, an index or a journal is ever run."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.data.bins import Bin, read_manifest, sealed
from scratchlm.model.checkpoint import KEY
from scratchlm.training.checkpoints import Checkpoints

Command = Callable[..., None]
Refusal = Callable[..., str]

LAST = "run/checkpoints/step-00000004.ckpt"
GO_ON = ["fit", "--trainer.default_root_dir=run", "--ckpt_path=last", "--trainer.max_steps=5"]
VERBS = {
    "fit": ["fit", "--trainer.default_root_dir=other", "--trainer.max_steps=5", "--ckpt_path="],
    "validate": ["validate", "--ckpt_path="],
    "predict": ["predict", '--data.prompts=["one"]', "--ckpt_path="],
    "generate": ["generate", "--checkpoint="],
}


class Touch:
    """What it is unpickled as: a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


@pytest.fixture(autouse=True)
def _canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `evil` that leaves a file when it is imported, where the command finds it; and no such file, ever."""
    (tmp_path / "evil.py").write_text(
        "import os\nos.system('touch canary')\nfrom lightning.pytorch import Callback\nclass Canary(Callback): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    assert not (tmp_path / "canary").exists()


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "edited.ckpt") -> str:
    """A checkpoint of the run with something changed; gives its path."""
    content = torch.load(folder / LAST, weights_only=True)
    change(content)
    torch.save(content, folder / name)
    return name


def test_every_file_that_a_run_leaves_loads_with_weights_only(
    run_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "_prune", lambda *_: None)
    command(*GO_ON[:-1], "--trainer.max_steps=8", "--checkpoint.every_steps=2", "--trainer.val_check_interval=3")
    found = sorted(path.name for path in (run_folder / "run").rglob("*.ckpt"))
    assert found == ["best.ckpt", *(f"step-0000000{step}.ckpt" for step in (4, 6, 8))]
    for path in (run_folder / "run").rglob("*.ckpt"):
        assert torch.load(path, weights_only=True)[KEY]["order"]["seed"] == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("form", ["zip", "bare"])
def test_a_pickle_with_code_is_refused_by_every_verb(verb: str, form: str, run_folder: Path, refusal: Refusal) -> None:
    if form == "bare":
        (run_folder / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": {}, "a": Touch()}))
    else:
        edit(run_folder, lambda content: content.update(a=Touch()), "evil.ckpt")
    line = refusal(*VERBS[verb][:-1], f"{VERBS[verb][-1]}evil.ckpt")
    assert "evil.ckpt: " in line
    assert ("it is not opened, since that could run code" if form == "zip" else "no whole checkpoint") in line
    assert not (run_folder / "other").exists()


def test_a_pickle_with_code_planted_as_the_newest_is_refused_or_passed_over(
    run_folder: Path, command: Command, refusal: Refusal, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = run_folder / "run/checkpoints/step-00000009.ckpt"
    edit(run_folder, lambda content: content.update(a=Touch()), str(planted))
    assert "it is not opened, since that could run code" in refusal(*GO_ON)
    planted.write_bytes(pickle.dumps({"state_dict": {}, "a": Touch()}))
    command(*GO_ON)
    assert "step-00000009.ckpt: no whole checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("key", ["_instantiator", "_class_path", "class_path"])
def test_hyper_parameters_that_name_a_class_are_refused(
    verb: str, part: str, key: str, run_folder: Path, refusal: Refusal
) -> None:
    path = edit(run_folder, lambda content: content.update({part: {"inner": [{key: "evil.Canary"}]}}))
    line = refusal(*VERBS[verb][:-1], f"{VERBS[verb][-1]}{path}")
    assert f"{path}: names a class to be made, in {part}" in line


CANARY = {"class_path": "evil.Canary"}


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("trainer", {"callbacks": [CANARY]}, "in trainer.callbacks"),
        ("trainer", {"callbacks": ["evil.Canary"]}, "in trainer.callbacks"),
        ("trainer", {"logger": CANARY}, "in trainer.logger"),
        ("trainer", {"logger": "evil.Canary"}, "in trainer.logger"),
        ("trainer", {"plugins": [CANARY]}, "in trainer.plugins"),
        ("trainer", {"profiler": CANARY}, "in trainer.profiler"),
        ("trainer", {"strategy": "evil.Canary"}, "in trainer.strategy"),
        ("trainer", {"callbacks": "evil.yaml"}, "in trainer.callbacks"),
        ("model", {"gpt": CANARY}, "in model.gpt"),
        ("model", {"gpt": "evil.yaml"}, "in model.gpt"),
        ("data", {"cleaning": [CANARY]}, "in data.cleaning"),
        ("data", {"cleaning": ["evil.Canary"]}, "in data.cleaning"),
        ("data", {"cleaning": [{"evil.Canary": {}}]}, "in data.cleaning"),
        ("checkpoint", CANARY, "in checkpoint.class_path"),
        ("trainer", "evil.yaml", "has a part 'trainer' that no run has"),
        ("config", "evil.yaml", "has a part 'config' that no run has"),
        ("output", "evil.py", "has a part 'output' that no run has"),
    ],
)
def test_the_configuration_in_a_checkpoint_names_no_class(
    part: str, values: Any, said: str, run_folder: Path, refusal: Refusal
) -> None:
    (run_folder / "evil.yaml").write_text(json.dumps([CANARY]))

    def plant(content: dict[str, Any]) -> None:
        configuration = content[KEY]["configuration"]
        configuration[part] = configuration.get(part, {}) | values if isinstance(values, dict) else values

    path = edit(run_folder, plant)
    for verb in ("fit", "validate", "predict"):
        line = refusal(*VERBS[verb][:-1], f"{VERBS[verb][-1]}{path}")
        assert said in line
        assert "Name the run's YAML with -c" in line


def test_a_yaml_or_a_flag_of_the_user_stands_in_for_what_a_checkpoint_may_not_name(
    run_folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edit(run_folder, lambda content: content[KEY]["configuration"]["trainer"].update(callbacks=[CANARY]))
    command("validate", f"--ckpt_path={path}", "-c=run/config.yaml")
    assert "The -c files alone count." in capsys.readouterr().err
    command("predict", f"--ckpt_path={path}", "-c=run/config.yaml", '--data.prompts=["one"]')
    command("validate", f"--ckpt_path={path}", "--trainer.callbacks=null")
    assert "val/loss" in capsys.readouterr().out


def test_a_yaml_tag_is_never_obeyed(run_folder: Path, refusal: Refusal) -> None:
    tagged = "trainer: !!python/object/apply:os.system ['touch canary']\n"
    (run_folder / "tagged.yaml").write_text(tagged)
    for verb in ("fit", "validate", "predict"):
        assert "tagged.yaml: not valid YAML" in refusal(verb, "-c=tagged.yaml", f"--ckpt_path={LAST}")
    assert "tagged.yaml: not valid YAML" in refusal("prepare", "-c=tagged.yaml")
    (run_folder / "run/config.yaml").write_text(tagged)
    assert "run/config.yaml: not valid YAML" in refusal(*GO_ON)
    assert "run/config.yaml: " in refusal("trace", "--run=run", "--step=1")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_index_of_pickled_objects_is_no_index(split: str, run_folder: Path, refusal: Refusal) -> None:
    bins = run_folder / "bins"
    n = len(Bin(bins, split).documents)
    np.save(bins / f"{split}.docs.npy", np.array([Touch()] * n, object), allow_pickle=True)
    manifest = read_manifest(bins)
    manifest["files"][f"{split}.docs.npy"]["bytes"] = (bins / f"{split}.docs.npy").stat().st_size
    (bins / "manifest.json").write_text(json.dumps(sealed(manifest)))
    for words in (GO_ON, ["validate", f"--ckpt_path={LAST}"], ["trace", "--run=run", "--step=1"]):
        assert f"{split}.docs.npy: not a document index" in refusal(*words)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("choices.json", "[]"),
        ("choices.json", '{"device": 5, "precision": "32-true"}'),
        ("choices.json", '{"device": "cpu"}'),
        ("choices.json", '{"device": "cpu", "precision": ["evil.Canary"], "reason": "x"}'),
        ("choices.json", '{"wandb_id": {"class_path": "evil.Canary"}}'),
        ("choices.json", '{"compile": "evil.Canary"}'),
        ("metrics.jsonl", '5\n{"attempt": 1, "step": 1}\n'),
        ("metrics.jsonl", '{"attempt": "x", "step": 1}\n'),
        ("metrics.jsonl", '{"attempt": 1, "step": [1]}\n'),
        ("events.jsonl", '{"kind": 3, "step": 1}\n'),
        ("events.jsonl", '["start"]\n{"kind": "start", "step": 0}\n'),
    ],
)
def test_rubbish_in_what_a_run_wrote_of_itself_is_one_line(
    name: str, text: str, run_folder: Path, refusal: Refusal
) -> None:
    (run_folder / "run" / name).write_text(text)
    before = (run_folder / "run/config.yaml").stat().st_mtime_ns
    assert f"run/{name}: " in refusal(*GO_ON)
    assert (run_folder / "run/config.yaml").stat().st_mtime_ns == before


def drop(*keys: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: inside(content, keys).pop(keys[-1])


def put(*keys_and_value: Any) -> Callable[[dict[str, Any]], Any]:
    *keys, value = keys_and_value
    return lambda content: inside(content, keys).__setitem__(keys[-1], value)


def inside(content: Any, keys: Any) -> Any:
    for key in keys[:-1]:
        content = content[key]
    return content


MOMENTS = ("optimizer_states", 0, "state", 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop(KEY), "has no 'scratchlm' block"),
        (drop("state_dict"), "was not written by scratchlm"),
        (put("state_dict", "gpt.embedding.weight", "x"), "is no tensor"),
        (put(KEY, "step", "4"), "has a str as step, where a int belongs"),
        (put(KEY, "step", True), "has a bool as step"),
        (put(KEY, "gpt_settings", [1]), "has a list as gpt_settings"),
        (put(KEY, "gpt_settings", {"d_model": 16}), "its model.gpt settings are no network's"),
        (put(KEY, "configuration", "evil.yaml"), "has a str as configuration"),
        (put(KEY, "order", [1]), "has a list as order"),
        (put(KEY, "order", "train.bin", 5), "is not the one that the checkpoint was trained with (5)"),
        (put(KEY, "tokenizer_json", "{}"), "the tokenizer in it (SHA-256 44136fa355b3) is not the one"),
        (put(KEY, "card", None), "lacks card"),
        (drop("optimizer_states"), "optimizer_states is missing"),
        (put("optimizer_states", []), "optimizer_states has 0 entries, not 1"),
        (put("optimizer_states", "x"), "optimizer_states is str, not list"),
        (drop("optimizer_states", 0, "param_groups"), "param_groups is missing"),
        (put("optimizer_states", 0, "param_groups", 0, "params", [0]), "param_groups[0].params has 1 entries"),
        (drop("optimizer_states", 0, "param_groups", 1, "decayed"), "param_groups[1].decayed is missing"),
        (drop("optimizer_states", 0, "param_groups", 0, "eps"), "param_groups[0].eps is missing"),
        (put(*MOMENTS, "exp_avg", torch.zeros(3)), "optimizer_states[0].state.0 is not of the shape"),
        (put(*MOMENTS, 5), "optimizer_states[0].state.0 is not of the shape"),
        (drop("loops"), "loops is missing"),
        (drop("loops", "fit_loop", "epoch_loop.batch_progress", "current"), "batch_progress.current is missing"),
        (put("loops", "fit_loop", "epoch_progress", 3), "epoch_progress is int, not dict"),
        (drop("global_step"), "global_step is missing"),
        (put("global_step", 7), "it names several steps: 4 in its 'scratchlm' block, 7 in global_step"),
        (put("pytorch-lightning_version", 3), "pytorch-lightning_version is int, not str"),
        (put("pytorch-lightning_version", "x"), "pytorch-lightning_version=x is no version"),
        (put("callbacks", []), "callbacks is list, not dict"),
        (put("callbacks", "Checkpoints", {"best": "x"}), "callbacks.Checkpoints.best is str, not float"),
        (put("PretrainingData", 5), "PretrainingData is int, not dict"),
    ],
)
def test_a_checkpoint_edited_by_hand_is_one_line(
    change: Callable[[dict[str, Any]], Any], said: str, run_folder: Path, refusal: Refusal
) -> None:
    path = edit(run_folder, change)
    line = refusal("fit", "-c=run/config.yaml", "--trainer.default_root_dir=other", f"--ckpt_path={path}")
    assert said in line
    assert not (run_folder / "other").exists()
    shutil.copy(run_folder / path, run_folder / LAST)
    assert said in refusal(*GO_ON)
