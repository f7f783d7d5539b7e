import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.model.checkpoint import read
from scratchlm.training.checkpoints import Checkpoints, WholeCheckpointIO, newest_whole, step_checkpoints


@pytest.fixture
def run_folder(tiny, tmp_path):
    """Of a run of 8 steps with a checkpoint every two, all kept."""
    trainer = tiny.tiny_trainer(tmp_path, max_steps=8, every_steps=2)
    next(c for c in trainer.callbacks if isinstance(c, Checkpoints)).keep = 9
    task = tiny.tiny_task()
    task.configuration = {"data": {"folder": "data/tiny"}}
    trainer.fit(task, tiny.TinyData())
    return tmp_path


def flip_a_bit(path: Path) -> None:
    """In what the file holds: between two tensors lie bytes that nobody reads."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[content.index(largest.filename.encode()) + 1000] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_holds_all_that_speaking_needs(tiny, run_folder):
    checkpoint = read(run_folder / "checkpoints" / "step-00000006.ckpt")
    assert (checkpoint.step, checkpoint.sequences) == (6, 6 * tiny.GLOBAL_BATCH)
    assert checkpoint.tokenizer_json == tiny.FACTS["tokenizer"]
    assert checkpoint.card == tiny.FACTS["card"]
    assert checkpoint.configuration == {"data": {"folder": "data/tiny"}}
    expected = torch.load(run_folder / "checkpoints" / "step-00000006.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(expected[f"gpt.{name}"], weight) for name, weight in checkpoint.build().state_dict().items())


def test_the_newest_whole_checkpoint_is_found_behind_damaged_ones(run_folder, capsys):
    folder = run_folder / "checkpoints"
    assert sorted(step_checkpoints(folder)) == [2, 4, 6, 8]
    assert newest_whole(folder) == folder / "step-00000008.ckpt"
    (folder / "best.ckpt").write_bytes((folder / "step-00000002.ckpt").read_bytes())
    flip_a_bit(folder / "step-00000008.ckpt")
    with (folder / "step-00000006.ckpt").open("r+b") as file:
        file.truncate(1000)
    assert newest_whole(folder) == folder / "step-00000004.ckpt"
    said = capsys.readouterr().err
    assert "step-00000008.ckpt" in said
    assert "step-00000006.ckpt" in said


def test_with_every_checkpoint_damaged_there_is_none_to_go_on_from(run_folder):
    folder = run_folder / "checkpoints"
    for path in step_checkpoints(folder).values():
        flip_a_bit(path)
    assert newest_whole(folder) == folder / "best.ckpt", "the only one that is whole"
    flip_a_bit(folder / "best.ckpt")
    with pytest.raises(BrokenState, match=r"every checkpoint in it is damaged. Start a new run in another"):
        newest_whole(folder)


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "missing") is None


def test_a_damaged_or_missing_file_is_one_line(run_folder):
    path = run_folder / "checkpoints" / "step-00000002.ckpt"
    flip_a_bit(path)
    with pytest.raises(BrokenState, match=r"step-00000002\.ckpt"):
        WholeCheckpointIO().load_checkpoint(path)
    with pytest.raises(MissingFile, match=r"missing\.ckpt"):
        WholeCheckpointIO().load_checkpoint(run_folder / "missing.ckpt")


def test_the_newest_are_kept_and_a_line_given_up_is_cleared_away(tiny, run_folder):
    folder = run_folder / "checkpoints"
    trainer = tiny.tiny_trainer(run_folder, max_steps=5, every_steps=1)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=folder / "step-00000004.ckpt")
    assert sorted(step_checkpoints(folder)) == [4, 5]
    assert newest_whole(folder) == folder / "step-00000005.ckpt"


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(tiny, tmp_path):
    class Worse(tiny.Callback):
        """Trains upwards from step 6 on."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 6:
                pl_module.learning_rate = -0.1

    trainer = tiny.tiny_trainer(tmp_path, max_steps=10, val_every_steps=2, callbacks=[Worse()])
    trainer.fit(tiny.tiny_task(), tiny.TinyData())
    assert read(tmp_path / "checkpoints" / "best.ckpt").step == 6
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))
    assert checkpoints.best < float(trainer.callback_metrics["val/loss"])


def test_a_best_checkpoint_behind_which_a_run_has_gone_back_is_set_aside_until_it_is_made_again(tiny, tmp_path):
    folder = tmp_path / "checkpoints"
    tiny.tiny_trainer(tmp_path, max_steps=6, val_every_steps=6, every_steps=4).fit(tiny.tiny_task(), tiny.TinyData())
    (folder / "step-00000006.ckpt").unlink()  # as a kill behind the validation leaves it
    trainer = tiny.tiny_trainer(tmp_path, max_steps=5, val_every_steps=6, every_steps=9)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=folder / "step-00000004.ckpt")
    assert {path.name for path in folder.glob("best*")} == {"best.ckpt", "best-00000006.ckpt"}
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, val_every_steps=6, every_steps=9)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=folder / "step-00000004.ckpt")
    assert {path.name: read(path).step for path in folder.glob("best*")} == {"best.ckpt": 6, "best-00000005.ckpt": 5}


def test_a_damaged_best_checkpoint_stops_no_run_and_the_next_validation_replaces_it(tiny, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    tiny.tiny_trainer(tmp_path, max_steps=6, val_every_steps=2).fit(tiny.tiny_task(), tiny.TinyData())
    flip_a_bit(folder / "best.ckpt")
    trainer = tiny.tiny_trainer(tmp_path, max_steps=8, val_every_steps=2)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=folder / "step-00000006.ckpt")
    assert read(folder / "best.ckpt").step == 8
    assert "best.ckpt: damaged on disk" in capsys.readouterr().err


def test_leftovers_of_a_killed_writer_are_cleared_away(tiny, tmp_path):
    leftover = tmp_path / "checkpoints" / ".step-00000002.ckpt.partial-123"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    tiny.tiny_trainer(tmp_path, max_steps=1).fit(tiny.tiny_task(), tiny.TinyData())
    assert not leftover.exists()


FULL_DISK = """
import resource, sys, torch
from scratchlm.errors import BrokenState
from scratchlm.training.checkpoints import WholeCheckpointIO

path, large = sys.argv[1], {"state_dict": {"w": torch.zeros(1_000_000)}}
WholeCheckpointIO().save_checkpoint({"step": 1}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    WholeCheckpointIO().save_checkpoint(large, path)
except BrokenState as error:
    print(error)
"""


def test_a_full_disk_is_one_line_that_names_the_file_and_what_stood_there_stays(tmp_path):
    path = tmp_path / "step-00000001.ckpt"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.stdout.startswith(f"{path}: no space left to write it ("), result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_saving_takes_no_second_copy_in_memory(tmp_path):
    script = """
import resource, sys, torch
from scratchlm.training.checkpoints import WholeCheckpointIO
weights = torch.ones(64_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
WholeCheckpointIO().save_checkpoint({"w": weights}, sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "large.ckpt")]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 64_000_000, "a quarter of what it saved"


@pytest.mark.parametrize("settings", [{"every_steps": 0}, {"keep": 0}])
def test_counts_below_one_are_refused(settings):
    with pytest.raises(BadValue, match=rf"checkpoint.{next(iter(settings))}=0"):
        Checkpoints(**settings)


@pytest.fixture(scope="module")
def killed_saves(tmp_path_factory):
    """What dying_saves.py tells of each kill amid the saves of steps 6 and 7, best.ckpt and pruning between them."""
    command = [sys.executable, "-m", "tests.training.dying_saves", str(tmp_path_factory.mktemp("killed"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_at_any_point_of_a_save_leaves_the_checkpoint_before_it_or_the_new_one(killed_saves):
    places = [kill["where"] for kill in killed_saves]
    assert sum("open" in place for place in places) == 3, "step 6, best.ckpt, step 7"
    assert sum("rename" in place for place in places) == 3
    assert sum("remove" in place and ".partial" not in place for place in places) == 2, "both prunings"
    assert sum("fsync" in place for place in places) >= 6
    assert sum("byte" in place for place in places) == 7
    assert sum(bool(kill["half"]) for kill in killed_saves) >= 10, "the kills were meant to leave half-written files"
    for kill in killed_saves:
        assert kill["newest"] in (4, 6, 7), kill
        assert kill["newest"] == max(kill["whole"]), kill
        assert kill["best"] in (6, 7), kill
        assert not [name for name in kill["left"] if name.startswith(".")], kill
    undisturbed = next(kill for kill in killed_saves if kill["where"] == "none")
    assert undisturbed["left"] == ["best.ckpt", "step-00000006.ckpt", "step-00000007.ckpt"]


def test_whatever_lies_where_the_newest_checkpoint_should_is_passed_over_and_told(tiny, run_folder, capsys):
    folder = run_folder / "checkpoints"
    whole = (folder / "step-00000008.ckpt").read_bytes()
    middle = len(whole) // 2
    flipped = folder / "flipped"
    flipped.write_bytes(whole)
    flip_a_bit(flipped)
    damaged = {
        "empty": b"",
        "cut short": whole[:middle],
        "a byte short": whole[:-1],
        "a bit of the data": flipped.read_bytes(),
        "a bit of the first header": bytes([whole[0] ^ 1]) + whole[1:],
        "a bit of the directory": whole[:-22] + bytes([whole[-22] ^ 1]) + whole[-21:],
        "another kind": b"PK" + b"x" * 1000,
    }
    newest = folder / "step-00000010.ckpt"
    for what, content in damaged.items():
        newest.write_bytes(content)
        passed_over = {}
        assert newest_whole(folder, passed_over) == folder / "step-00000008.ckpt", what
        assert str(newest) in passed_over["step-00000010.ckpt"], what
        assert passed_over["step-00000010.ckpt"] in capsys.readouterr().err
    newest.unlink()
    newest.mkdir()
    assert newest_whole(folder) == folder / "step-00000008.ckpt"
    (folder / "step-00000011.ckpt").symlink_to("nowhere")
    assert newest_whole(folder) == folder / "step-00000008.ckpt"
    # A folder of that name is not pruned, nor does it stop a training.
    tiny.tiny_trainer(run_folder, max_steps=12, every_steps=4).fit(
        tiny.tiny_task(), tiny.TinyData(), ckpt_path=folder / "step-00000008.ckpt"
    )
    assert newest_whole(folder) == folder / "step-00000012.ckpt"
    assert "step-00000010.ckpt: cannot be removed" in capsys.readouterr().err


def test_a_save_that_cannot_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "step-00000001.ckpt"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_999))
    with pytest.raises(BrokenState, match=r"step-00000001\.ckpt: 4,000 bytes are needed and 3,999 are free"):
        WholeCheckpointIO().save_checkpoint({"a": [torch.zeros(1000)]}, path)
    assert not path.parent.exists() or not list(path.parent.iterdir())


def test_the_metrics_are_on_the_disk_before_a_checkpoint_is(tiny, tmp_path, monkeypatch):
    synced = []
    fsync, rename = os.fsync, os.replace

    def note_fsync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_rename(source, target):
        synced.append(f"rename {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    tiny.tiny_trainer(tmp_path, max_steps=2, every_steps=1, val_every_steps=9).fit(tiny.tiny_task(), tiny.TinyData())
    assert synced.index("metrics.jsonl") < synced.index("rename step-00000001.ckpt")
    assert synced.count("metrics.jsonl") >= sum(call.startswith("rename") for call in synced)
