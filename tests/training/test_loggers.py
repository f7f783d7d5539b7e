import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from tests.wandb_files import history, key_of, no_account, records

from scratchlm.files.journal import Journal
from scratchlm.training.checkpoints import FOLDER, newest_whole
from scratchlm.training.loggers import MetricsLogger, WandbRun, since_last_upload, wandb_mode
from scratchlm.training.run_log import read_metrics, read_samples


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    no_account(monkeypatch, tmp_path)


def test_a_line_holds_attempt_step_tokens_and_metrics(tmp_path):
    logger = MetricsLogger(tmp_path, tokens_per_step=1000)
    logger.log_metrics({"train/loss": 2.5}, step=3)
    logger.finalize("success")
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line.pop("time") > 1e9
    assert line == {"attempt": 1, "step": 3, "tokens": 3000, "train/loss": 2.5}


def test_tokens_are_exact_where_float32_would_round(tmp_path):
    logger = MetricsLogger(tmp_path, tokens_per_step=524_289)
    logger.log_metrics({}, step=8_191)
    logger.finalize("success")
    assert read_metrics(tmp_path)[0]["tokens"] == 524_289 * 8_191


def test_readers_take_the_last_attempt_and_drop_the_line_that_was_given_up(tmp_path):
    first = MetricsLogger(tmp_path, 10)
    for step in range(1, 7):
        first.log_metrics({"train/loss": 1.0}, step)
    first.log_metrics({"val/loss": 1.5}, 3)
    second = MetricsLogger(tmp_path, 10)
    for step in (4, 5):
        second.log_metrics({"train/loss": 2.0}, step)
    first.finalize("failed")
    second.finalize("success")
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    assert lines[2]["val/loss"] == 1.5


def test_a_run_that_was_never_logged_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "online"),
        ({}, "machine api.wandb.ai login user password " + "k" * 40, "online"),
        ({}, "machine elsewhere.org login user password secret", "offline"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40}, "", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "disabled"),
        ({"WANDB_MODE": "online"}, "", "online"),
        ({"WANDB_MODE": "dryrun"}, "", "offline"),
    ],
)
def test_wandb_is_online_with_a_key_and_offline_without_one(monkeypatch, tmp_path, variables, netrc, mode):
    path = tmp_path / "netrc"
    path.write_text(netrc)
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


def test_a_training_leaves_an_offline_run_with_axis_sections_loss_tables_and_configuration(tiny, tmp_path):
    run = WandbRun(tmp_path, "abc123", 128, "offline", {"data": {"folder": "data/tiny"}})
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, logger=[MetricsLogger(tmp_path, 128), run])
    trainer.fit(tiny.tiny_task(), tiny.TinyData())

    wandb.teardown()  # its own process writes the file's end some 20 ms after the run's, and this waits for it
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-abc123")
    found = list(records(next(folder.glob("*.wandb"))))
    metrics = [r.metric for r in found if r.WhichOneof("record_type") == "metric"]
    assert any(m.name == "tokens" for m in metrics)
    assert any(m.glob_name == "*" and m.step_metric == "tokens" for m in metrics)
    configuration = [item for r in found for item in (*r.run.config.update, *r.config.update)]
    assert ("data", {"folder": "data/tiny"}) in [(key_of(i), json.loads(i.value_json)) for i in configuration]

    rows = history(folder)
    truth = read_metrics(tmp_path)
    losses = {line["tokens"]: line["train/loss"] for line in rows if "train/loss" in line}
    assert losses == {line["tokens"]: line["train/loss"] for line in truth}
    scores = {line["tokens"]: line["val_per_source/tales/loss"] for line in rows if "val/loss" in line}
    assert scores == {line["tokens"]: line["val/tales/loss"] for line in truth if "val/loss" in line}
    sections = {name.split("/")[0] for line in rows for name in line if "/" in name}
    assert sections == {"train", "val", "val_per_source", "throughput", "samples", "corpus"}
    figures = {"tokens_per_second", "mfu", "data_wait_fraction", "memory_bytes", "seconds_left"}
    for name in (f"throughput/{figure}" for figure in figures):
        shown = {line["tokens"]: line[name] for line in rows if name in line}
        assert shown == {line["tokens"]: line[name] for line in truth if name in line}
        assert len(shown) == (6 if name == "throughput/memory_bytes" else 5)  # the first step has no rates
    tables = [line for line in rows if "samples/completions/path" in line]
    assert [line["tokens"] for line in tables] == [5 * 128, 6 * 128]
    table = json.loads((folder / "files" / tables[-1]["samples/completions/path"]).read_text())
    assert table["columns"] == ["step", "tokens", "prompt", "completion"]
    assert table["data"][0][:3] == [6, 768, ""]
    (card,) = [line["corpus/card/path"] for line in rows if "corpus/card/path" in line]
    table = json.loads((folder / "files" / card).read_text())
    assert table["columns"] == ["name", "uri", "tokens", "share"]
    assert table["data"][0] == ["tales", "tales.txt", "{'train': 3000}", 0.6]


def test_the_first_line_of_a_resumed_attempt_gives_up_all_steps_after_the_one_resumed_from(tmp_path):
    first = MetricsLogger(tmp_path, 10, resumed_step=0)
    for step in range(1, 7):
        first.log_metrics({"train/loss": 1.0}, step)
    first.finalize("failed")
    second = MetricsLogger(tmp_path, 10, resumed_step=3)
    for step in (5, 10):  # as it logs more seldom now, it has nothing to say of step 4
        second.log_metrics({"train/loss": 2.0}, step)
    second.finalize("success")
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (5, 2.0),
        (10, 2.0),
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from scratchlm.training.checkpoints import FOLDER, newest_whole
from scratchlm.training.loggers import MetricsLogger, WandbRun

sys.path.insert(0, sys.argv[2])
from tiny_run import TinyData, Kill, tiny_task, tiny_trainer

folder = Path(sys.argv[1])
loggers = [MetricsLogger(folder, 128, 0), WandbRun(folder, "kill9", 128, "offline", {})]
trainer = tiny_trainer(folder, logger=loggers, callbacks=[Kill("batch", 20)])
trainer.fit(tiny_task(), TinyData())
"""


def test_the_newest_offline_run_holds_each_step_once_after_a_kill(tiny, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(tiny.__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL  # after step 10
    checkpoint = newest_whole(tmp_path / FOLDER)
    loggers = [MetricsLogger(tmp_path, 128, 8), WandbRun(tmp_path, "kill9", 128, "offline", {}, resumed_step=8)]
    trainer = tiny.tiny_trainer(tmp_path, logger=loggers)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=checkpoint)

    folders = sorted((tmp_path / "wandb").glob("offline-run-*-kill9"))
    rows, truth = history(folders[-1]), read_metrics(tmp_path)
    assert [line["attempt"] for line in truth] == [1] * 8 + [2] * 6
    assert len(folders) == 2
    for name in ("train/loss", "train/gradient_norm", "throughput/mfu", "val/loss"):
        logged = [(row["tokens"], row[name]) for row in rows if name in row]
        assert logged == [(line["tokens"], line[name]) for line in truth if name in line]
    assert [row["tokens"] // 128 for row in rows if "samples/completions/path" in row] == [5, 10, 14]


def test_a_resume_online_sends_again_what_may_have_been_on_its_way(tmp_path):
    metrics = Journal(tmp_path / "metrics.jsonl")
    for step in range(1, 11):  # a minute a step
        metrics.append({"attempt": 1, "step": step, "tokens": 10 * step, "time": 60.0 * step, "train/loss": step / 10})
    metrics.close()
    run = WandbRun(tmp_path, "again", 10, "offline", {})
    run.replay(last_step=8, since=since_last_upload(tmp_path))
    run.finalize("success")
    [folder] = (tmp_path / "wandb").glob("offline-run-*-again")
    assert [(row["tokens"], row["train/loss"]) for row in history(folder)] == [(10 * s, s / 10) for s in (5, 6, 7, 8)]


def test_where_nobody_knows_the_home_folder_there_is_no_key(monkeypatch):
    monkeypatch.setenv("NETRC", "~nobody-of-that-name/.netrc")
    assert wandb_mode() == "offline"


def test_online_without_a_key_goes_offline_and_prompts_for_nothing(tmp_path, capsys):
    run = WandbRun(tmp_path, "nokey", 10, "online", {})
    run.log_metrics({"train/loss": 1.0}, 1)
    run.finalize("success")
    assert list((tmp_path / "wandb").glob("offline-run-*-nokey"))
    assert "W&B: no key, so offline" in capsys.readouterr().err


def test_a_folder_that_wandb_cannot_write_stops_no_training(tiny, tmp_path, capsys):
    (tmp_path / "wandb").write_text("a file where W&B wants a folder")
    run = WandbRun(tmp_path, "blocked", 128, "offline", {})
    tiny.tiny_trainer(tmp_path, max_steps=2, logger=[MetricsLogger(tmp_path, 128), run]).fit(
        tiny.tiny_task(), tiny.TinyData()
    )
    assert len(read_metrics(tmp_path)) == 2
    assert "Going on without it; metrics.jsonl has every number." in capsys.readouterr().err
    assert wandb.run is None


def test_samples_that_were_drawn_before_a_run_went_back_are_left_out(tmp_path):
    samples = Journal(tmp_path / "samples.jsonl")
    for step, completion in ((10, "a"), (20, "b"), (30, "c"), (15, "d"), (25, "e")):
        samples.append({"step": step, "tokens": 0, "prompt": "", "completion": completion})
    samples.close()
    assert [row["completion"] for row in read_samples(tmp_path)] == ["a", "d", "e"]


def test_a_lost_loader_worker_that_torch_tells_inside_wandb_is_no_fault_of_wandbs(tmp_path):
    class Told:
        def log(self, *_):
            raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    run = WandbRun(tmp_path, "worker", 128, "disabled", {})
    run._experiment = Told()
    with pytest.raises(RuntimeError, match="worker"):
        run.log_metrics({"train/loss": 1.0}, step=1)
