import math

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scratchlm.errors import BadValue, BrokenState
from scratchlm.training.divergence import DivergenceGuard
from scratchlm.training.optimizers import learning_rate_at
from scratchlm.training.progress import Progress
from scratchlm.training.run_log import read_metrics


def fit(tiny, folder, resume=None, micro=4, task=None, **settings):
    trainer = tiny.tiny_trainer(folder, micro, **({"max_steps": 6} | settings))
    task = task or tiny.tiny_task()
    trainer.fit(task, tiny.TinyData(micro), ckpt_path=resume)
    return task, trainer


def test_the_loss_falls_and_the_curves_hold_what_the_step_did(tiny, tmp_path):
    _, trainer = fit(tiny, tmp_path, max_steps=30)
    lines = read_metrics(tmp_path)
    losses = [line["train/loss"] for line in lines]
    assert losses[0] == pytest.approx(math.log(tiny.TOKENIZER.vocab_size), abs=0.2)
    assert losses[-1] < losses[0] - 0.5
    expected = [learning_rate_at(step, 1e-2, 3, 30, 0.1) for step in range(1, 31)]
    assert [line["train/learning_rate"] for line in lines] == expected
    assert [line["tokens"] for line in lines] == [128 * step for step in range(1, 31)]
    assert {"val/loss", "val/perplexity", "val/bits_per_byte", "val/tales/loss"} <= set(trainer.callback_metrics)


def test_the_first_loss_and_gradient_norm_are_those_of_all_micro_batches_at_once(tiny, tmp_path):
    task = tiny.tiny_task()
    ids = torch.tensor(tiny.TOKENIZER.encode(tiny.TEXT))
    starts = [row * 7919 % (len(ids) - tiny.CONTEXT - 1) for row in range(tiny.GLOBAL_BATCH)]
    windows = torch.stack([ids[start : start + tiny.CONTEXT + 1] for start in starts])
    loss = F.cross_entropy(task.gpt(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in task.gpt.parameters()])
    fit(tiny, tmp_path, micro=2, max_steps=1)
    line = read_metrics(tmp_path)[0]
    assert line["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_gradients_are_clipped_under_bf16_mixed_with_the_fused_kernel(tiny, tmp_path):
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients).item())

    fit(tiny, tmp_path, precision="bf16-mixed", gradient_clip_val=0.01, callbacks=[Norms()], max_steps=3)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)  # what the first step used, seen when it is cleared
    assert read_metrics(tmp_path)[0]["train/gradient_norm"] == pytest.approx(norms[0])


def test_a_learning_rate_given_on_resume_wins_over_the_checkpoints(tiny, tmp_path):
    fit(tiny, tmp_path, max_steps=8, every_steps=4)
    task = tiny.tiny_task(learning_rate=2e-3, weight_decay=0.3)
    resume = tmp_path / "checkpoints" / "step-00000004.ckpt"
    _, trainer = fit(tiny, tmp_path, resume, max_steps=8, task=task)
    assert [line["train/learning_rate"] for line in read_metrics(tmp_path)[4:]] == [
        learning_rate_at(step, 2e-3, 3, 8, 0.1) for step in range(5, 9)
    ]
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.3, 0.0]


def test_metrics_come_every_so_many_steps_and_at_the_last(tiny, tmp_path):
    fit(tiny, tmp_path, max_steps=7, log_every_n_steps=3, limit_val_batches=0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6, 7]


def test_a_step_that_logs_nothing_never_reads_from_the_device(tiny, tmp_path, monkeypatch):
    reads = []
    trainer = tiny.tiny_trainer(tmp_path, max_steps=9, log_every_n_steps=4, val_every_steps=100, every_steps=100)
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, DivergenceGuard)]  # it always looks on a CPU
    tolist = torch.Tensor.tolist

    def recorded(tensor):
        reads.append(trainer.global_step + 1)
        return tolist(tensor)

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default and trainer.training:
                reads.append(trainer.global_step + 1)
            return function(*args, **(kwargs or {}))

    task, data = tiny.tiny_task(), tiny.TinyData()
    monkeypatch.setattr(torch.Tensor, "tolist", recorded)
    with Reads():
        trainer.fit(task, data)
    assert 4 in reads, "the probe sees a step that logs"
    assert set(reads) <= {1, 4, 8, 9, 10}  # 1: torch seeds the loader, on the CPU; 10: the save after the last step


def test_validation_scores_every_target_once_with_the_plain_cross_entropy(tiny, tmp_path):
    task, trainer = fit(tiny, tmp_path, max_steps=2)
    data = trainer.datamodule
    nats, count = 0.0, 0
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits = task.gpt.eval()(batch["inputs_BT"])
            nats += F.cross_entropy(logits[0], batch["targets_BT"][0], reduction="sum").item()
            count += int((batch["targets_BT"] != -100).sum())
    assert read_metrics(tmp_path)[-1]["val/loss"] == pytest.approx(nats / count, rel=1e-6)


def test_validate_and_test_score_a_checkpoint(tiny, tmp_path):
    _, trainer = fit(tiny, tmp_path, max_steps=5)
    expected = trainer.callback_metrics["val/loss"]
    other = tiny.tiny_trainer(tmp_path, logger=False)
    other.callbacks = [Progress()]  # fewer than wrote the checkpoint
    task = tiny.tiny_task()
    path = tmp_path / "checkpoints" / "step-00000005.ckpt"
    assert other.validate(task, tiny.TinyData(), ckpt_path=path, verbose=False)[0]["val/loss"] == expected
    assert other.test(task, tiny.TinyData(), ckpt_path=path, verbose=False)[0]["test/loss"] == expected


def test_prompts_are_completed_the_same_at_each_call(tiny):
    task = tiny.tiny_task()
    first, second = (task.predict_step({"prompts": ["the cat", ""]}, 0) for _ in range(2))
    assert first == second
    assert [row["prompt"] for row in first] == ["the cat", ""]
    assert all(len(row["completion"]) <= 4 for row in first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "model.learning_rate=0.0"),
        ({"floor_fraction": 1.5}, "model.floor_fraction=1.5"),
        ({"beta2": 1.0}, "model.beta2=1.0"),
        ({"weight_decay": -0.1}, "model.weight_decay=-0.1"),
        ({"warmup_steps": -1}, "model.warmup_steps=-1"),
        ({"temperature": float("nan")}, "model.temperature=nan"),
        ({"top_k": 0}, "model.top_k=0"),
        ({"warmup_steps": 10, "decay_steps": 10}, "model.decay_steps=10.*model.warmup_steps=10"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(tiny, settings, message):
    with pytest.raises(BadValue, match=message):
        tiny.tiny_task(**settings)


def test_float16_is_refused(tiny, tmp_path):
    trainer = tiny.tiny_trainer(tmp_path)
    task = tiny.tiny_task()
    trainer.strategy.precision_plugin.precision = "16-mixed"  # a CPU has no plugin for it to begin with
    task.trainer = trainer
    with pytest.raises(BadValue, match=r"trainer.precision=16-mixed.*bf16-mixed or 32-true"):
        task.setup("fit")


def test_a_rate_that_blows_up_stops_the_run_with_a_third_of_it_and_no_checkpoint_is_bad(tiny, tmp_path):
    with pytest.raises(
        BrokenState,
        match=r"model.learning_rate=1e\+30: .*3 steps in a row, the last step [4-9].*rate 3.3e\+29",
    ):
        fit(tiny, tmp_path, task=tiny.tiny_task(learning_rate=1e30, max_skipped_steps=3), every_steps=1, max_steps=9)
    for path in (tmp_path / "checkpoints").iterdir():
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_weights_ruined_by_a_step_with_a_finite_gradient_are_never_saved(tiny, tmp_path):
    with pytest.raises(BrokenState, match="a weight or its optimizer state is no finite number at step 1"):
        fit(tiny, tmp_path, task=tiny.tiny_task(learning_rate=1e39, warmup_steps=0), every_steps=1)
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("scratchlm"), "not a checkpoint of scratchlm"),
        (lambda saved: saved["scratchlm"]["gpt_settings"].update(n_layers=7), "model.gpt.n_layers=2: .*with 7"),
        (lambda saved: saved["scratchlm"].update(tokenizer_json="{}"), "its tokenizer.json .SHA-256"),
    ],
)
def test_another_runs_checkpoint_is_refused(tiny, tmp_path, change, message):
    fit(tiny, tmp_path, max_steps=4)
    path = tmp_path / "checkpoints" / "step-00000004.ckpt"
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    with pytest.raises(BadValue, match=message):
        fit(tiny, tmp_path, path)


def test_two_processes_give_the_scores_and_the_losses_of_one(tiny, run_tiny, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    fit(tiny, one, max_steps=14)
    result = run_tiny(two, "--devices", "2", "--dropout", "0")
    assert result.returncode == 0, result.stderr
    expected, found = read_metrics(one), read_metrics(two)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    names = [name for name in expected[4] if name.startswith(("train/", "val/"))]
    assert "val/facts/loss" in names
    for left, right in zip(expected, found, strict=True):
        assert {n: right[n] for n in names if n in right} == pytest.approx(
            {n: left[n] for n in names if n in left}, abs=1e-6
        )
