import json
import os
import struct
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from scratchlm.training.loggers import MetricsLogger, WandbRun, read_metrics, wandb_mode


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def records(path: Path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += 7
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def key_of(item) -> str:
    return item.key or "/".join(item.nested_key)


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

    history = [{key_of(i): json.loads(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
    # A table is a file, and its facts in the history lie one level deeper: samples/completions -> path.
    truth = read_metrics(tmp_path)
    losses = {line["tokens"]: line["train/loss"] for line in history if "train/loss" in line}
    assert losses == {line["tokens"]: line["train/loss"] for line in truth}
    scores = {line["tokens"]: line["val_per_source/tales/loss"] for line in history if "val/loss" in line}
    assert scores == {line["tokens"]: line["val/tales/loss"] for line in truth if "val/loss" in line}
    sections = {name.split("/")[0] for line in history for name in line if "/" in name}
    assert sections == {"train", "val", "val_per_source", "throughput", "samples", "corpus"}
    figures = {"tokens_per_second", "mfu", "data_wait_fraction", "memory_bytes", "seconds_left"}
    for name in (f"throughput/{figure}" for figure in figures):
        shown = {line["tokens"]: line[name] for line in history if name in line}
        assert shown == {line["tokens"]: line[name] for line in truth if name in line}
        assert len(shown) == (6 if name == "throughput/memory_bytes" else 5)  # the first step has no rates
    tables = [line for line in history if "samples/completions/path" in line]
    assert [line["tokens"] for line in tables] == [5 * 128, 6 * 128]
    table = json.loads((folder / "files" / tables[-1]["samples/completions/path"]).read_text())
    assert table["columns"] == ["step", "tokens", "prompt", "completion"]
    assert table["data"][0][:3] == [6, 768, ""]
    (card,) = [line["corpus/card/path"] for line in history if "corpus/card/path" in line]
    table = json.loads((folder / "files" / card).read_text())
    assert table["columns"] == ["name", "uri", "tokens", "share"]
    assert table["data"][0] == ["tales", "tales.txt", "{'train': 3000}", 0.6]


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


def test_a_lost_loader_worker_that_torch_tells_inside_wandb_is_no_fault_of_wandbs(tmp_path):
    class Told:
        def log(self, *_):
            raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    run = WandbRun(tmp_path, "worker", 128, "disabled", {})
    run._experiment = Told()
    with pytest.raises(RuntimeError, match="worker"):
        run.log_metrics({"train/loss": 1.0}, step=1)
