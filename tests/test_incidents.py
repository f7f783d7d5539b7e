"""What a run writes down of a step that went wrong: the documents that were in its batch, by the real command."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tests.test_journey import write_stories
from tests.test_trace import CONTEXT, GLOBAL, words

from scratchlm.data.bins import Bin
from scratchlm.data.tracing import Tracer
from scratchlm.training.events import read_events
from scratchlm.training.run_log import read_metrics

Command = Callable[..., None]

BAD_STEP = 45
FIT = words(
    "run",
    60,
    "--model.gpt.dropout=0.1",
    "--model.learning_rate=0.01",
    "--model.warmup_steps=5",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks=null",
)


@pytest.fixture
def tracer(command: Command, tmp_path: Path) -> Tracer:
    """Of bins in tmp_path, which the command works in."""
    write_stories(tmp_path / "stories.txt", 400)
    draw = random.Random(2)
    notes = (" ".join(draw.choices(["salt", "rope", "tide", "gull", "sail"], k=30)) for _ in range(400))
    (tmp_path / "notes.txt").write_text("\n".join(notes))
    command("prepare", *(word for word in FIT if word.startswith("--data.") and "batch" not in word))
    return Tracer("bins", CONTEXT, 1, "shuffled", None, GLOBAL)


def test_a_spike_names_the_worst_sequences_and_their_sources_and_changes_nothing(
    tracer: Tracer, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tracer.step(BAD_STEP)[1:3]
    tokens = np.memmap(tmp_path / "bins" / "train.bin", np.uint16, "r+")
    for entry in planted:  # as a bad disk would
        tokens[entry["at"] + 1 :][: CONTEXT - 1] = np.random.default_rng(1).integers(4, 300, CONTEXT - 1)
    tokens.flush()
    os.utime(tmp_path / "bins" / "manifest.json")
    command(*FIT)
    spikes = [event for event in read_events("run") if event["kind"] == "spike"]
    assert [spike["step"] for spike in spikes] == [BAD_STEP]
    assert f"step {BAD_STEP}: loss" in capsys.readouterr().err
    worst = spikes[0]["worst"]
    assert len(worst) == GLOBAL
    for entry in worst[:2]:
        [source] = [sequence for sequence in planted if sequence["sequence"] == entry["sequence"]]
        assert entry == source | {"loss": entry["loss"], "text": tracer.text(entry["at"])}
    assert worst[0]["loss"] >= worst[1]["loss"] > worst[2]["loss"] + 1
    assert {document["source"] for entry in worst for document in entry["documents"]} <= {"stories", "notes"}
    # Scoring the batch once more draws no random number and leaves no gradient: the steps after it are the same.
    noted = read_metrics("run")
    command(*FIT, "--trainer.default_root_dir=again", "--trainer.log_every_n_steps=7")  # which sees no spike
    assert not [event for event in read_events("again") if event["kind"] == "spike"]
    later = {line["step"]: line["train/loss"] for line in read_metrics("again") if line["step"] > BAD_STEP}
    assert len(later) == 3
    assert later == {line["step"]: line["train/loss"] for line in noted if line["step"] in later}


def test_a_step_that_is_left_out_names_its_documents(tracer: Tracer, command: Command) -> None:
    poison = {"class_path": "tests.rank_witness.Fault", "init_args": {"rank": 0, "step": 7, "kind": "infinite loss"}}
    command(*FIT, f"--trainer.callbacks={json.dumps([poison])}", "--trainer.max_steps=8")
    skipped = [event for event in read_events("run") if event["kind"] == "skipped"]
    assert [(event["step"], event["sequences"]) for event in skipped] == [(7, tracer.step(7))]
    entry = skipped[0]["sequences"][0]["documents"][0]
    assert int(entry["hash"], 16) == int(Bin("bins", "train").documents["hash"][entry["document"]])


@pytest.mark.parametrize(("name", "of", "status"), [("SIGTERM", "one", 143), ("SIGHUP", "all", 129)])
def test_a_signal_to_a_run_with_loader_workers_amid_a_validation_saves_and_ends_it(
    tracer: Tracer, tmp_path: Path, name: str, of: str, status: int
) -> None:
    fault = {
        "class_path": "tests.rank_witness.Fault",
        "init_args": {"rank": 0, "step": 5, "kind": f"{name} in validation of {of}"},
    }
    more = ["--trainer.val_check_interval=5", "--data.num_workers=2", f"--trainer.callbacks={json.dumps([fault])}"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scratchlm", *FIT, *more]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert process.wait(timeout=60) == status
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.ckpt").exists()
    assert read_events(tmp_path / "run")[-1]["signal"] == name
