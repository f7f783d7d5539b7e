import json

from scratchlm.training.run_log import read_metrics


def fit(tiny, folder, task=None, **settings):
    trainer = tiny.tiny_trainer(folder, **({"max_steps": 6} | settings))
    trainer.fit(task or tiny.tiny_task(), tiny.TinyData())
    return trainer


def test_samples_of_each_validation_are_written_and_reproducible(tiny, tmp_path, capsys):
    task = tiny.tiny_task(sample_prompts=["the cat", "Ünspellable", ""])
    fit(tiny, tmp_path, task, max_steps=6)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(5, "the cat"), (5, ""), (6, "the cat"), (6, "")]
    assert rows[2]["tokens"] == 6 * 128
    assert task.complete("the cat", seed=0) == rows[2]["completion"]
    assert capsys.readouterr().err.count("Ünspellable") == 1


def test_sampling_leaves_the_training_as_it_is(tiny, tmp_path):
    fit(tiny, tmp_path / "with", tiny.tiny_task(dropout=0.1), max_steps=8)
    fit(tiny, tmp_path / "without", tiny.tiny_task(dropout=0.1, sample_prompts=[]), max_steps=8)
    left, right = ([line["train/loss"] for line in read_metrics(tmp_path / name)] for name in ("with", "without"))
    assert left == right
    assert not (tmp_path / "without" / "samples.jsonl").exists()
