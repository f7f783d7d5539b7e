"""What befalls a run from outside is told in one line, and costs no more than the steps since its last checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.preloaded import Preloaded

from scratchlm.training.checkpoints import newest_whole
from scratchlm.training.events import read_events
from scratchlm.training.run_log import read_metrics

SIZES = [
    "--data.sources={text: {uri: text.txt, documents: line}}",
    "--data.folder=bins",
    "--data.tokenizer=char",
    "--data.val_fraction=0.05",
    "--data.context_length=16",
    "--data.micro_batch_size=4",
    "--data.global_batch_size=8",
    "--model.gpt.d_model=16",
    "--model.gpt.n_layers=1",
    "--model.gpt.n_heads=2",
    "--model.gpt.d_ff=32",
    "--model.gpt.dropout=0.1",
    "--model.warmup_steps=5",
    "--model.sample_tokens=4",
    "--model.compile=false",
    "--trainer.max_steps=12",
    "--trainer.val_check_interval=100",
    "--trainer.log_every_n_steps=100",
    "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--checkpoint.every_steps=4",
]

# What befalls the run behind step 6: step 4 is saved, step 8 is not, and nothing is in metrics.jsonl before step 12.
# Of a full disk: nothing, a few bytes, the headers, the middle of the tensors and almost all of the file fit.
FULL = {f"full-{n_bytes}": f"full_disk({n_bytes})" for n_bytes in (0, 3, 4_000, 40_000, 63_000)}
WRECKS = FULL | {
    "undisturbed": "",
    "no-room-for-metrics": "(run / 'metrics.jsonl').symlink_to('/dev/full')",
    "no-room-for-samples": "(run / 'samples.jsonl').symlink_to('/dev/full')",
    "read-only": "no_rights_of_root(); (run / 'checkpoints').chmod(0o555)",
    "checkpoints-removed": "shutil.rmtree(run / 'checkpoints')",
    "run-removed": "shutil.rmtree(run)",
    "a-day-back": "jump(-86_400)",
    "a-day-on": "jump(86_400)",
    "bins-emptied": "os.truncate(bins / 'train.bin', 0)",
    "ids-beyond": "(bins / 'train.bin').open('r+b').write(bytes([255]) * 40_000)",
    "out-of-memory": "at_step(8, lambda: __import__('torch').empty(2**45))",
    "disk-that-lies": "flip_what_is_written()",
}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    folder = tmp_path_factory.mktemp("faults")
    text = [" ".join(f"the {animal} number {n} sat on a mat" for animal in ("cat", "dog", "hen")) for n in range(300)]
    (folder / "text.txt").write_text("\n".join(text))
    started = Preloaded(folder)
    yield started
    started.close()


@pytest.fixture(scope="module")
def wrecked(preloaded: Preloaded) -> dict[str, tuple[int, str]]:
    """One run, forked behind step 6 for each wreck: exit status and what it said; its run folder is `run-<wreck>`."""
    wreck = f"at_step(6, lambda: each({WRECKS!r}, Path('run').absolute()))"
    ended = preloaded.run("fit", *SIZES, "--trainer.default_root_dir=run", wrecked=wreck)
    assert ended.status() == 0, ended.said
    return json.loads((preloaded.folder / "ended.json").read_text())


def fit(run: str, *words: str) -> list[str]:
    return ["fit", *SIZES, f"--trainer.default_root_dir={run}", *words]


def error(said: str) -> str:
    """The one line of an error; fails where there is a traceback or a second one."""
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("scratchlm: error: ")]
    return line.removeprefix("scratchlm: error: ")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_ends_as_undisturbed(folder: Path, run: str) -> None:
    expected, found = (weights(folder / r / "checkpoints" / "step-00000012.ckpt") for r in ("run-undisturbed", run))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("name", FULL)
def test_a_disk_that_fills_amid_a_save_leaves_the_checkpoint_before(preloaded, wrecked, name):
    status, said = wrecked[name]
    assert status == 2
    n_bytes = int(name.removeprefix("full-"))
    assert error(said).startswith(
        f"run/checkpoints/step-00000008.ckpt: no space left to write it ({n_bytes:,} bytes written, "
    )
    checkpoints = preloaded.folder / f"run-{name}" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000004.ckpt"]
    assert newest_whole(checkpoints) == checkpoints / "step-00000004.ckpt"


@pytest.mark.parametrize("name", ["metrics", "samples"])
def test_a_journal_without_room_is_one_line_and_no_checkpoint_is_lost(preloaded, wrecked, name):
    status, said = wrecked[f"no-room-for-{name}"]
    assert status == 2
    assert error(said).startswith(f"run/{name}.jsonl: no space left to write it (0 bytes written, ")
    checkpoints = preloaded.folder / f"run-no-room-for-{name}" / "checkpoints"
    assert newest_whole(checkpoints) == checkpoints / "step-00000008.ckpt"


def test_a_folder_turned_read_only_is_one_line(preloaded, wrecked):
    status, said = wrecked["read-only"]
    assert status == 2
    assert error(said).startswith("run/checkpoints/step-00000008.ckpt: cannot be written (Permission denied)")
    assert newest_whole(preloaded.folder / "run-read-only" / "checkpoints")


def test_a_removed_checkpoints_folder_is_made_anew_and_said(preloaded, wrecked):
    status, said = wrecked["checkpoints-removed"]
    assert status == 0
    assert "run/checkpoints: is gone, and with it the checkpoints so far; it is made anew" in said
    assert_ends_as_undisturbed(preloaded.folder, "run-checkpoints-removed")


def test_a_removed_run_folder_stops_the_run_and_is_not_made_anew_by_halves(preloaded, wrecked):
    status, said = wrecked["run-removed"]
    assert status == 2
    assert error(said).startswith("run/checkpoints/step-00000008.ckpt: cannot be written, for run is gone")
    assert not (preloaded.folder / "run-run-removed").exists()


@pytest.mark.parametrize("name", ["a-day-back", "a-day-on"])
def test_a_clock_that_jumps_spoils_no_rate_and_loses_no_checkpoint(preloaded, wrecked, name):
    status, said = wrecked[name]
    assert status == 0, said
    run = preloaded.folder / f"run-{name}"
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [12]
    rates = {key: value for line in lines for key, value in line.items() if key.startswith("throughput/")}
    assert {"throughput/tokens_per_second", "throughput/mfu", "throughput/data_wait_fraction"} <= set(rates)
    assert min(rates.values()) >= 0
    assert rates["throughput/tokens_per_second"] > 10, "no day passed"
    assert rates["throughput/data_wait_fraction"] <= 1
    assert_ends_as_undisturbed(preloaded.folder, run.name)


def test_ids_beyond_the_vocabulary_are_one_line_that_names_the_check(wrecked):
    status, said = wrecked["ids-beyond"]
    assert status == 2
    assert error(said).startswith("data.folder=bins: a batch holds ids that the vocabulary does not have")
    assert "scratchlm corpus check --folder bins" in error(said)


def test_running_out_of_memory_amid_a_run_is_one_line_and_the_checkpoint_stays(preloaded, wrecked):
    status, said = wrecked["out-of-memory"]
    assert status == 2
    assert error(said).startswith("out of memory: this step needs about")
    assert newest_whole(preloaded.folder / "run-out-of-memory" / "checkpoints")


def test_a_checkpoint_that_reads_back_differently_does_not_take_its_name(preloaded, wrecked):
    status, said = wrecked["disk-that-lies"]
    assert status == 2
    assert error(said).startswith("run/checkpoints/step-00000008.ckpt: what was just written of it (")
    assert "does not read back the same" in error(said)
    checkpoints = preloaded.folder / "run-disk-that-lies" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000004.ckpt"]


def test_bins_cut_under_a_run_end_it_and_the_next_start_says_why(preloaded, wrecked):
    status, _ = wrecked["bins-emptied"]
    assert status == -signal.SIGBUS, "a memory map beyond its file's end: nothing can be said from inside"
    bins = preloaded.folder / "bins-cut"
    shutil.copytree(preloaded.folder / "bins", bins)
    os.truncate(bins / "train.bin", 0)
    shutil.copytree(preloaded.folder / "run-bins-emptied", preloaded.folder / "cut")
    ended = preloaded.run(*fit("cut", "--data.folder=bins-cut", "--ckpt_path=last"))
    assert ended.status() == 2
    assert "train.bin" in error(ended.said)


def test_a_run_goes_on_exactly_from_the_newest_whole_checkpoint_and_says_which_it_passed_over(preloaded, wrecked):
    run = preloaded.folder / "damaged"
    shutil.copytree(preloaded.folder / "run-full-0", run)
    (run / "checkpoints" / "step-00000008.ckpt").write_bytes(b"")
    (run / "checkpoints" / ".step-00000008.ckpt.partial-1").write_bytes(b"half")
    (run / ".choices.json.partial-1").write_bytes(b"half")
    ended = preloaded.run(*fit("damaged", "--ckpt_path=last"))
    assert ended.status() == 0, ended.said
    assert "step-00000008.ckpt: no whole checkpoint" in ended.said
    (event,) = [event for event in read_events(run) if event["kind"] == "passed_over"]
    assert (event["file"], event["step"]) == ("step-00000008.ckpt", 4)
    assert "no whole checkpoint" in event["why"]
    assert not list(run.rglob(".*"))
    assert_ends_as_undisturbed(preloaded.folder, "damaged")


def test_with_every_checkpoint_damaged_the_command_stops(preloaded, wrecked):
    run = preloaded.folder / "all-damaged"
    shutil.copytree(preloaded.folder / "run-full-0", run)
    for path in (run / "checkpoints").glob("*.ckpt"):
        os.truncate(path, 1000)
    ended = preloaded.run(*fit("all-damaged", "--ckpt_path=last"))
    assert ended.status() == 2
    assert "every checkpoint in it is damaged" in error(ended.said)


@pytest.mark.parametrize(("n_bytes", "file"), [(0, "run.lock"), (100, "config.yaml")])
def test_a_disk_full_at_the_start_is_one_line(preloaded, wrecked, n_bytes, file):
    run = preloaded.folder / f"late-{n_bytes}"
    shutil.copytree(preloaded.folder / "run-full-0", run)
    ended = preloaded.run(*fit(run.name, "--ckpt_path=last"), wrecked=f"full_disk({n_bytes})")
    assert ended.status() == 2
    assert error(ended.said).startswith(f"{run.name}/{file}: no space left to write it ({n_bytes} bytes written")
    assert newest_whole(run / "checkpoints")


def test_a_killed_loader_worker_is_told_within_a_second_and_the_run_goes_on_exactly(preloaded, wrecked):
    kill = "import multiprocessing\n" + (
        "def kill():\n"
        "    print('killed now', file=sys.stderr)\n"
        "    os.kill(multiprocessing.active_children()[0].pid, 9)\n"
        "    time.sleep(20)\n"
        "at_step(6, kill)"
    )
    ended = preloaded.run(*fit("worker", "--data.num_workers=2"), wrecked=kill)
    assert ended.status() == 2
    assert error(ended.said).startswith("data.num_workers=2: the worker process ")
    assert "--ckpt_path last" in error(ended.said)
    assert ended.said_at("scratchlm: error") - ended.said_at("killed now") < 1.0
    assert preloaded.run(*fit("worker", "--ckpt_path=last")).status() == 0
    assert_ends_as_undisturbed(preloaded.folder, "worker")


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing_and_a_dead_ones_lock_is_taken(preloaded, wrecked):
    run = preloaded.folder / "shared"
    first = preloaded.start(*fit("shared", "--data.num_workers=2"), wrecked="at_step(6, lambda: time.sleep(100))")
    first.wait_until(lambda: (run / "checkpoints" / "step-00000004.ckpt").exists())
    os.kill(first.pid, signal.SIGSTOP)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    second = [preloaded.start(*fit("shared", *words)) for words in (["--ckpt_path=last"], ["--fresh=true"], [])]
    assert [ended.status() for ended in second] == [2, 2, 2]
    for ended in second[:2]:
        assert error(ended.said).startswith(f"shared: in use by process {first.pid} on ")
    assert "--ckpt_path last" in error(second[2].said)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    os.kill(first.pid, signal.SIGKILL)  # its workers notice some seconds later
    (run / "run.lock").write_text("5 rubbish")
    assert preloaded.run(*fit("shared", "--ckpt_path=last")).status() == 0
    assert_ends_as_undisturbed(preloaded.folder, "shared")


def test_a_metric_that_there_is_not_is_one_line(preloaded, wrecked):
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/nothing}}"
    ended = preloaded.run(*fit("stopping", f"--trainer.callbacks=[{stopping}]"))
    assert ended.status() == 2
    assert error(ended.said).startswith("trainer.callbacks: Early stopping conditioned on metric `val/nothing`")


def test_a_run_folder_that_is_a_file_is_one_line(preloaded, wrecked):
    (preloaded.folder / "file").write_text("")
    ended = preloaded.run(*fit("file/run"))
    assert ended.status() == 2
    assert error(ended.said).startswith("file/run/run.lock: cannot be written (Not a directory)")


def test_a_symlinked_checkpoints_folder_serves(preloaded, wrecked):
    run = preloaded.folder / "linked"
    shutil.copytree(preloaded.folder / "run-full-0", run)
    (run / "checkpoints").rename(preloaded.folder / "large-disk")
    (run / "checkpoints").symlink_to("../large-disk")
    assert preloaded.run(*fit("linked", "--ckpt_path=last")).status() == 0
    assert_ends_as_undisturbed(preloaded.folder, "linked")


def test_wandb_without_a_network_delays_no_run(preloaded, wrecked):
    wandb = {"WANDB_MODE": None, "WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    ended = preloaded.run(*fit("unconnected"), **wandb)
    assert ended.status() == 0, ended.said
    assert "W&B: http://127.0.0.1:9 cannot be reached (Connection refused). Going on offline." in ended.said
    assert list((preloaded.folder / "unconnected" / "wandb").glob("offline-run-*")), ended.said
    assert ended.said_at("step 12/12") - ended.said_at("W&B: http") < 30
    assert_ends_as_undisturbed(preloaded.folder, "unconnected")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that no list has")
def test_a_user_without_a_name_a_home_or_a_writable_cache_trains(preloaded, wrecked):
    # A process of its own: libraries read these when they are imported.
    folder = preloaded.folder
    (folder / "nobody").mkdir()
    (folder / "nobody" / "wandb").write_text("no folder")
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o055)
    (folder / "nobody").chmod(0o777)
    for path in [folder / "bins", *(folder / "bins").rglob("*")]:
        path.chmod(0o777)
    names = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "MPLCONFIGDIR", "HF_HOME")
    nowhere = {name: str(folder / "nobody" / "wandb" / "x") for name in (*names, "XDG_CACHE_HOME", "TMPDIR")}
    removed = ("HOME", "WANDB_MODE", "USER", "LOGNAME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in removed} | nowhere
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}  # of which the others were made
    code = "from tests.wrecking import nobody; nobody()\nfrom scratchlm.cli import main; main()"
    command = [sys.executable, "-c", code, *fit("nobody")]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Going on without it; metrics.jsonl has every number." in ended.stderr
    assert_ends_as_undisturbed(folder, "nobody")
