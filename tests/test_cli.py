"""The command: what its verbs print, refuse and leave behind."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scratchlm.model.checkpoint import read
from scratchlm.training.run_log import read_metrics

Command = Callable[..., None]

TEXT = "the cat sat on a mat and saw one red bird fly over two green hills while rain fell"
TINY = [
    "--data.sources={text: input.txt}",
    "--data.folder=bins",
    "--data.vocab_size=300",
    "--data.split=tail",
    "--data.val_fraction=0.1",
    "--data.context_length=16",
    "--data.micro_batch_size=2",
    "--data.global_batch_size=4",
    "--model.gpt.d_model=16",
    "--model.gpt.n_layers=1",
    "--model.gpt.n_heads=2",
    "--model.gpt.d_ff=32",
    "--model.sample_tokens=4",
    "--trainer.default_root_dir=run",
    "--trainer.log_every_n_steps=1",
]


def write_text(path: Path, n_words: int = 3000) -> None:
    words = TEXT.split()
    path.write_text(" ".join(words[(i * i + i // 7) % len(words)] for i in range(n_words)), encoding="utf-8")


def test_help_lists_the_verbs(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command("--help")
    shown = capsys.readouterr().out
    for verb in ("prepare", "fit", "validate", "test", "predict", "generate", "corpus", "trace"):
        assert f"  {verb} " in shown
    for words in (("corpus",), ("corpus", "--help")):
        command(*words)
        shown = capsys.readouterr().out
        assert "  check " in shown
        assert "  show " in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "--help"], "--data.val_fraction"),
        (["corpus", "check", "--help"], "--folder"),
        (["corpus", "show", "--help"], "--document"),
        (["corpus", "check", "--folder=bins"], "are as they were written"),
        (["corpus", "show", "--folder=bins", "--at=9"], "position 9"),
        (["trace", "--run=run", "--step=2"], "step 2 of run: sequences 4 to 7"),
    ],
)
def test_what_needs_no_network_answers_quickly_and_without_torch(words: list[str], said: str, trained: Path) -> None:
    code = (
        "import sys, scratchlm.cli as cli\n"
        f"sys.argv = ['scratchlm', *{words}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    began = time.monotonic()
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=trained)
    assert time.monotonic() - began < 3  # well under a second on an idle machine; a loaded one gets room
    assert said in shown
    assert shown.splitlines()[-1] == "False False"


def test_an_unknown_verb_is_answered_with_the_nearest(refusal: Callable[..., str]) -> None:
    assert "juggle: no such verb. The verbs:" in refusal("juggle")
    assert "Did you mean prepare?" in refusal("prepair")


def test_an_unknown_verb_of_the_corpus_is_answered_with_the_nearest(refusal: Callable[..., str]) -> None:
    assert "chek: no such verb. Did you mean check?" in refusal("corpus", "chek")
    assert "--folder" in refusal("corpus", "check")
    assert "--folder=nowhere: no manifest.json" in refusal("corpus", "check", "--folder=nowhere")
    assert "--folder=nowhere: no manifest.json" in refusal("corpus", "show", "--folder=nowhere")


def test_an_unknown_flag_is_answered_with_the_nearest(refusal: Callable[..., str]) -> None:
    assert refusal("fit", "--model.gpt.d_modle", "8").endswith("Did you mean model.gpt.d_model?")
    assert "data.vocab_size" in refusal("prepare", "--data.vocab_sise", "300")


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {learning_rat: 0.1}")
    assert refusal("fit", "-c", "run.yaml").endswith("Did you mean model.learning_rate?")


def test_a_value_of_the_wrong_type_is_named_with_its_key(refusal: Callable[..., str]) -> None:
    line = refusal("fit", *TINY, "--model.learning_rate=fast")
    assert "model.learning_rate" in line
    assert "fast" in line


def test_a_configuration_that_cannot_be_read_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("data: [unclosed")
    assert "missing.yaml" in refusal("prepare", "-c", "missing.yaml")
    assert "missing.yaml" in refusal("fit", "-c", "missing.yaml")
    assert "broken.yaml: not valid YAML" in refusal("prepare", "-c", "broken.yaml")
    assert "YAML" in refusal("fit", "-c", "broken.yaml")


def test_exactly_one_key_sets_the_length(refusal: Callable[..., str]) -> None:
    line = refusal("fit", *TINY, "--trainer.max_steps=4", "--data.train_tokens=1000")
    assert "trainer.max_steps=4 and data.train_tokens=1000: exactly one" in line
    assert "none of trainer.max_steps, trainer.max_epochs, data.train_tokens" in refusal("fit", *TINY)


def test_accumulation_cannot_be_set(refusal: Callable[..., str]) -> None:
    line = refusal("fit", *TINY, "--trainer.max_steps=4", "--trainer.accumulate_grad_batches=2")
    assert "Set data.global_batch_size and data.micro_batch_size" in line


def test_a_run_leaves_what_everything_after_needs(trained: Path) -> None:
    run = trained / "run"
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]
    assert read_metrics(run)[-1]["val/loss"] > 0
    assert read_metrics(run)[-1]["tokens"] == 4 * 4 * 16
    assert json.loads((run / "choices.json").read_text())["precision"] in ("bf16-mixed", "32-true")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["gpt"]["d_model"] == 16
    checkpoint = read(run / "checkpoints" / "step-00000004.ckpt")
    assert checkpoint.step == 4
    assert checkpoint.sequences == 16
    assert checkpoint.configuration["data"]["folder"] == "bins"
    assert checkpoint.card["sources"][0]["name"] == "text"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "step-00000004.ckpt"]


def test_a_second_run_in_the_folder_is_refused_and_fresh_moves_the_first_aside(
    run_folder: Path, command: Command, refusal: Callable[..., str]
) -> None:
    line = refusal("fit", *TINY, "--trainer.max_steps=4")
    assert "--ckpt_path last" in line
    assert "--fresh true" in line
    command("fit", *TINY, "--trainer.max_steps=2", "--fresh=true")
    assert (run_folder / "run.old-1" / "checkpoints" / "step-00000004.ckpt").exists()
    assert [line["step"] for line in read_metrics(run_folder / "run")] == [1, 2]


def test_a_run_goes_on_from_its_last_step(run_folder: Path, command: Command) -> None:
    command("fit", *TINY, "--trainer.max_steps=6", "--ckpt_path=last")
    lines = read_metrics(run_folder / "run")
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]


def test_a_run_with_nothing_to_go_on_from_says_so_and_starts(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "input.txt")
    command("fit", *TINY, "--trainer.max_steps=1", "--ckpt_path=last")
    assert "starting at step 0" in capsys.readouterr().err


def test_another_shape_than_the_checkpoints_is_refused_by_its_key(
    run_folder: Path, refusal: Callable[..., str]
) -> None:
    for path in ("last", str(run_folder / "run" / "checkpoints" / "best.ckpt")):
        line = refusal("fit", *TINY, "--trainer.max_steps=6", f"--ckpt_path={path}", "--model.gpt.d_ff=64")
        assert "model.gpt.d_ff=64" in line
        assert "was trained with 32" in line


def test_other_settings_than_the_bins_are_refused_by_their_key(run_folder: Path, refusal: Callable[..., str]) -> None:
    line = refusal("fit", *TINY, "--trainer.max_steps=4", "--fresh=true", "--data.val_fraction=0.2")
    assert "data.val_fraction=0.2" in line
    assert "made with 0.1" in line
    assert "prepare --fresh true" in line


def test_a_checkpoint_alone_says_how_to_validate_it(
    run_folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("validate", "--ckpt_path=run/checkpoints/best.ckpt")
    scored = capsys.readouterr().out
    assert "val/loss" in scored
    assert f"{read_metrics(run_folder / 'run')[-1]['val/loss']:.4f}"[:5] in scored
    assert len(read_metrics(run_folder / "run")) == 4  # scoring leaves the run's own metrics alone


def test_flags_win_over_the_configuration_in_the_checkpoint(run_folder: Path, refusal: Callable[..., str]) -> None:
    line = refusal("validate", "--ckpt_path=run/checkpoints/best.ckpt", "--data.folder=elsewhere")
    assert "data.folder=elsewhere" in line
    assert "scratchlm prepare" in line


def test_scoring_without_a_test_split_names_the_key(run_folder: Path, refusal: Callable[..., str]) -> None:
    assert "data.test_fraction" in refusal("test", "--ckpt_path=run/checkpoints/best.ckpt")


def test_the_test_split_is_scored_where_there_is_one(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "input.txt")
    command("fit", *TINY, "--trainer.max_steps=1", "--data.test_fraction=0.1")
    command("test", "--ckpt_path=run/checkpoints/best.ckpt")
    assert "test/bits_per_byte" in capsys.readouterr().out


def test_predict_completes_prompts_with_nothing_but_the_checkpoint(run_folder: Path, command: Command) -> None:
    shutil.rmtree(run_folder / "bins")
    (run_folder / "input.txt").unlink()
    (run_folder / "prompts.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "a mat"}\n')
    command("predict", "--ckpt_path=run/checkpoints/best.ckpt", "--data.prompts_file=prompts.jsonl")
    rows = [json.loads(line) for line in (run_folder / "run" / "completions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat", "a mat"]
    assert all(isinstance(row["completion"], str) and row["completion"] for row in rows)
    command("predict", "--ckpt_path=run/checkpoints/best.ckpt", '--data.prompts=["one"]', "--output=out/rows.jsonl")
    assert json.loads((run_folder / "out" / "rows.jsonl").read_text())["prompt"] == "one"


def test_generate_needs_nothing_but_the_checkpoint(
    run_folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bins", "run/config.yaml"):
        (shutil.rmtree if (run_folder / name).is_dir() else os.remove)(run_folder / name)
    said = []
    for seed in (1, 1, 2):
        command("generate", "--checkpoint=run/checkpoints/best.ckpt", "--prompt=the cat", f"--seed={seed}")
        said.append(capsys.readouterr().out)
    assert said[0].startswith("the cat")
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_scoring_nothing_is_refused(verb: str, refusal: Callable[..., str]) -> None:
    assert "--ckpt_path" in refusal(verb, *TINY)
    assert "nowhere.ckpt" in refusal(verb, "--ckpt_path=nowhere.ckpt")


def test_running_out_of_memory_names_the_need_and_the_cures_in_order(tmp_path: Path) -> None:
    write_text(tmp_path / "input.txt")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))  # room for the weights, and not for gradients

    sizes = ["--model.gpt.d_model=2048", "--model.gpt.n_layers=2", "--model.gpt.d_ff=16384", "--trainer.max_steps=1"]
    ended = subprocess.run(
        [sys.executable, "-m", "scratchlm", "fit", *TINY, *sizes],
        cwd=tmp_path,
        env=os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    line = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2, ended.stderr
    assert "out of memory: this step needs about" in line
    keys = ("data.micro_batch_size=2", "data.context_length=16", "model.gpt.d_model=2048", "model.gpt.n_layers=2")
    places = [line.index(key) for key in keys]
    assert places == sorted(places)


def test_the_same_length_can_be_said_in_three_ways(run_folder: Path, command: Command) -> None:
    def steps(*words: str) -> int:
        command("fit", *TINY, "--fresh=true", *words)
        return int(read_metrics(run_folder / "run")[-1]["step"])

    assert steps("--data.train_tokens=192") == 3
    tokens = json.loads((run_folder / "bins" / "manifest.json").read_text())["files"]["train.bin"]["tokens"]
    per_epoch = tokens // 16 // 4
    assert steps("--trainer.max_epochs=1") in (per_epoch - 1, per_epoch)


def test_a_resolved_configuration_runs_again(run_folder: Path, command: Command) -> None:
    shutil.copy(run_folder / "run" / "config.yaml", run_folder / "again.yaml")
    command("fit", "-c", "again.yaml", "--fresh=true")
    lines: list[dict[str, Any]] = read_metrics(run_folder / "run")
    assert [line["train/loss"] for line in lines] == [
        line["train/loss"] for line in read_metrics(run_folder / "run.old-1")
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--trainer.limit_train_batches=3", "trainer.limit_train_batches=3"),
        ("--trainer.overfit_batches=2", "trainer.overfit_batches=2"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1"),
        ("--trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0"),
        ("--seed_everything=-1", "seed_everything=-1"),
        ("--trainer.max_step=3", "Did you mean trainer.max_steps?"),
        ("--data.micro_batch_size=3", "data.global_batch_size=4: not a multiple of data.micro_batch_size=3"),
        ("--model.gpt.n_heads=3", "model.gpt.n_heads=3"),
        ("--data.sources=input.txt", "'{text: input.txt}'"),
    ],
)
def test_a_setting_that_cannot_work_leaves_no_run_behind(
    words: str, said: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    write_text(tmp_path / "input.txt")
    assert said in refusal("fit", *TINY, "--trainer.max_steps=4", words)
    assert not (tmp_path / "run").exists()


def test_what_the_trainer_refuses_is_one_line(refusal: Callable[..., str], tmp_path: Path) -> None:
    write_text(tmp_path / "input.txt")
    line = refusal("fit", *TINY, "--trainer.max_steps=4", "--trainer.accelerator=foo")
    assert "trainer.accelerator=foo, " in line
    assert not (tmp_path / "bins").exists()


def test_a_misspelt_key_of_the_corpus_is_refused_by_prepare_too(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {folder: bins, vocab_sise: 300, micro_batch_size: 2}")
    assert "no key data.vocab_sise. Did you mean data.vocab_size?" in refusal("prepare", "-c", "run.yaml")


def test_another_runs_checkpoint_never_goes_into_a_folder_with_a_run(
    run_folder: Path, refusal: Callable[..., str]
) -> None:
    shutil.copy(run_folder / "run" / "checkpoints" / "best.ckpt", run_folder / "other.ckpt")
    line = refusal("fit", *TINY, "--trainer.max_steps=6", "--ckpt_path=other.ckpt")
    assert "--fresh true" in line
    assert len(list((run_folder / "run" / "checkpoints").iterdir())) == 2
    assert "Drop one of them" in refusal("fit", *TINY, "--trainer.max_steps=6", "--ckpt_path=last", "--fresh=true")


@pytest.mark.parametrize("words", ["--data.seed=7", "--data.global_batch_size=8", "--data.windows=random"])
def test_what_decides_the_order_cannot_change_on_the_way(
    words: str, run_folder: Path, refusal: Callable[..., str]
) -> None:
    before = (run_folder / "run" / "config.yaml").read_text()
    line = refusal("fit", *TINY, "--trainer.max_steps=6", "--ckpt_path=last", words)
    assert words.removeprefix("--") in line
    assert (run_folder / "run" / "config.yaml").read_text() == before


def test_a_run_goes_on_with_its_own_configuration_under_what_is_given(run_folder: Path, command: Command) -> None:
    command("fit", "--trainer.default_root_dir=run", "--ckpt_path=last", "--trainer.max_steps=5")
    assert read_metrics(run_folder / "run")[-1]["step"] == 5


def test_going_back_keeps_the_best_checkpoint_of_the_line_given_up(run_folder: Path, command: Command) -> None:
    command("fit", *TINY, "--trainer.max_steps=6", "--ckpt_path=last", "--model.learning_rate=0.01")
    first = run_folder / "run" / "checkpoints" / "step-00000004.ckpt"
    assert read(run_folder / "run" / "checkpoints" / "best.ckpt").step == 6
    command("fit", *TINY, "--trainer.max_steps=5", f"--ckpt_path={first}")
    assert read(run_folder / "run" / "checkpoints" / "best-00000006.ckpt").step == 6


def test_scoring_other_bins_than_those_trained_on_is_warned_of(
    run_folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = [word for word in TINY if word.startswith("--data.") and "batch" not in word]
    command("prepare", *corpus, "--fresh=true")
    command("validate", "--ckpt_path=run/checkpoints/best.ckpt")
    assert "not the bins" not in capsys.readouterr().err
    command("prepare", *corpus, "--data.val_fraction=0.2", "--fresh=true")
    command("validate", "--ckpt_path=run/checkpoints/best.ckpt")
    assert "not the bins that the checkpoint was trained on" in capsys.readouterr().err


def test_one_batch_of_validation_is_one_batch(
    run_folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = []
    for limit in ([], ["--trainer.limit_val_batches=1"], ["--trainer.limit_val_batches=1000"]):
        command("validate", "--ckpt_path=run/checkpoints/best.ckpt", *limit)
        scores.append([line for line in capsys.readouterr().out.splitlines() if " val/loss " in line])
    assert scores[0] == scores[2] != scores[1]


@pytest.mark.parametrize("separator", ["\n---\n", "###", "null", "[1]"])
def test_a_separator_is_taken_to_the_letter(separator: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(separator.join(f"note {n} " * 40 for n in range(200)))
    source = {"uri": "notes.txt", "separator": separator}
    (tmp_path / "run.yaml").write_text(json.dumps({"data": {"folder": "bins", "sources": {"notes": source}}}))
    command("prepare", "-c=run.yaml", "--data.vocab_size=300", "--data.context_length=16")
    card = json.loads((tmp_path / "bins" / "manifest.json").read_text())["card"]
    assert sum(card["sources"][0]["documents"].values()) == 200


def test_predict_loses_no_prompt_where_several_devices_are_asked_for(run_folder: Path, command: Command) -> None:
    several = ["--trainer.devices=2", "--trainer.strategy=ddp", '--data.prompts=["one", "two", "red"]']
    command("predict", "--ckpt_path=run/checkpoints/best.ckpt", *several, "--output=rows.jsonl")
    rows = [json.loads(line) for line in (run_folder / "rows.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two", "red"]


@pytest.mark.parametrize("written", ["{", '{"micro_batch_size": 5}', '{"micro_batch_size": {"sequences": 3}}'])
def test_damaged_choices_are_one_line(run_folder: Path, refusal: Callable[..., str], written: str) -> None:
    (run_folder / "run" / "choices.json").write_text(written)
    assert "choices.json: damaged. Remove it" in refusal("fit", *TINY, "--trainer.max_steps=6", "--ckpt_path=last")


def test_a_temperature_beyond_arithmetic_is_refused(run_folder: Path, refusal: Callable[..., str]) -> None:
    assert "temperature=1e+40" in refusal("generate", "--checkpoint=run/checkpoints/best.ckpt", "--temperature=1e40")


def test_a_rehearsal_leaves_no_checkpoint(tmp_path: Path, command: Command) -> None:
    write_text(tmp_path / "input.txt")
    command("fit", *TINY, "--trainer.fast_dev_run=true")
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_warm_up_longer_than_the_run_is_warned_of(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "input.txt")
    command("fit", *TINY, "--trainer.max_steps=1", "--model.warmup_steps=9")
    assert "warning: model.warmup_steps=9" in capsys.readouterr().err


def test_bins_with_a_flipped_bit_are_refused_where_they_are_verified(
    run_folder: Path, command: Command, refusal: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    command("fit", *TINY, "--trainer.max_steps=4", "--fresh=true", "--data.verify=true")
    ids = bytearray((run_folder / "bins" / "train.bin").read_bytes())
    ids[999] ^= 4
    (run_folder / "bins" / "train.bin").write_bytes(ids)
    steps = ["--trainer.max_steps=4", "--fresh=true"]
    assert "bins/train.bin: not as it was written" in refusal("fit", *TINY, *steps, "--data.verify=true")
    assert not (run_folder / "run.old-2").exists()
    validate = ("validate", "--ckpt_path=run/checkpoints/best.ckpt")
    assert "bins/train.bin: not as it was written" in refusal(*validate, "--data.verify=true")
    command(*validate, "--data.verify=false")
    with pytest.raises(SystemExit) as stop:
        command("corpus", "check", "--folder=bins")
    assert stop.value.code == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "broken" in line]
    assert len(lines) == 1
    assert "bins/train.bin: not as it was written" in lines[0]


def test_token_files_of_others_are_adopted_trained_on_and_talk(
    tmp_path: Path, command: Command, refusal: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "input.txt")
    text = (tmp_path / "input.txt").read_text()
    characters = {character: id for id, character in enumerate(sorted(set(text)))}
    (tmp_path / "bins").mkdir()
    for split, part in (("train", text[:-2000]), ("val", text[-2000:])):
        np.array([characters[character] for character in part], np.uint16).tofile(tmp_path / "bins" / f"{split}.bin")
    sizes = [word for word in TINY if not word.startswith(("--data.sources", "--data.vocab", "--data.split"))]
    assert "data.tokenizer=" in refusal("fit", *sizes, "--trainer.max_steps=2")
    (tmp_path / "bins" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 99, "stoi": characters}))
    command("prepare", "--data.folder=bins")
    command("fit", *sizes, "--trainer.max_steps=2", "--data.verify=true")
    command("validate", "--ckpt_path=run/checkpoints/best.ckpt")
    assert "val/bins/loss" in capfd.readouterr().out
    command("generate", "--checkpoint=run/checkpoints/best.ckpt", "--prompt=the cat")
    assert capfd.readouterr().out.startswith("the cat")
    command("corpus", "check", "--folder=bins")
    command("corpus", "show", "--folder=bins", "--at=9", "--split=val")
    assert "position 9" in capfd.readouterr().out
