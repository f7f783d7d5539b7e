import re

from scratchlm.training.summary import Summary


def fit(tiny, folder, task=None, **settings):
    trainer = tiny.tiny_trainer(folder, **({"max_steps": 6} | settings))
    trainer.fit(task or tiny.tiny_task(), tiny.TinyData())
    return trainer


def test_the_summary_says_the_exact_parameters_and_what_a_step_takes(tiny, tmp_path, capsys):
    task = tiny.tiny_task()
    fit(tiny, tmp_path, task)
    said = capsys.readouterr().err
    n_parameters = sum(parameter.numel() for parameter in task.gpt.parameters())
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)
    assert lines["parameters"].strip() == f"{n_parameters:,}"
    assert "2 layers, d_model 16, 2 heads" in lines["shape"]
    assert lines["steps"].startswith("6 (768 tokens")
    assert f"{task.gpt.flops_per_token(tiny.CONTEXT):,}" in said
    assert "128 (8 sequences of 16: 4 at once x 2 in a row x 1 devices)" in said
    assert "cpu (1 threads), 32-true" in said
    assert re.fullmatch(r"[\d.]+ TFLOP/s in float32, measured", lines["peak"].strip())
    assert "GB of tensors on each device, computed" in lines["memory"]


def test_a_micro_batch_that_takes_more_than_is_free_is_warned_of(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scratchlm.training.summary.free_bytes", lambda device, n_processes: 1_000)
    fit(tiny, tmp_path, max_steps=1)
    assert re.search(
        r"warning: data.micro_batch_size=4: training takes 0.00 GB more, computed, and 0.00 GB are free.*auto",
        capsys.readouterr().err,
    )


def test_a_resumed_runs_summary_says_where_it_goes_on(tiny, tmp_path, capsys):
    fit(tiny, tmp_path, max_steps=4)
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=tmp_path / "checkpoints" / "step-00000004.ckpt")
    assert "going on after step 4" in capsys.readouterr().err


def test_the_summary_has_its_lines_in_this_order(tiny, tmp_path):
    trainer = fit(tiny, tmp_path)
    lines = next(c for c in trainer.callbacks if isinstance(c, Summary)).lines(trainer, trainer.lightning_module)
    assert list(lines) == ["parameters", "shape", "FLOPs a token", "tokens a step", "steps", "device", "peak", "memory"]
