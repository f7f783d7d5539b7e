"""Several processes by the real command: Lightning's launcher, torchrun, and the variables that srun sets."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_journey import write_stories

from scratchlm.data.tracing import Tracer
from scratchlm.ranks import Ranks
from scratchlm.training.run_log import read_metrics

ROOT = Path(__file__).parents[1]
STEPS, GLOBAL, MICRO = 30, 8, 2


def words(run: str, *more: str) -> list[str]:
    """`scratchlm fit` of a tiny network: 30 steps of 8 sequences, 2 at a time."""
    return [
        "scratchlm",
        "fit",
        "--data.sources={stories: {uri: stories.txt, documents: line}}",
        "--data.folder=bins",
        "--data.vocab_size=400",
        "--data.val_fraction=0.05",
        "--data.context_length=32",
        f"--data.micro_batch_size={MICRO}",
        f"--data.global_batch_size={GLOBAL}",
        "--model.gpt.d_model=32",
        "--model.gpt.n_layers=2",
        "--model.gpt.n_heads=2",
        "--model.gpt.d_ff=64",
        "--model.warmup_steps=2",
        f"--model.decay_steps={STEPS}",
        "--model.sample_tokens=4",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=10",
        "--trainer.log_every_n_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--checkpoint.every_steps=10",
        "--checkpoint.keep=3",
        f"--trainer.default_root_dir={run}",
        *more,
    ]


def witnessed(run: str, *more: str) -> list[str]:
    witness = {"class_path": "tests.rank_witness.Witness", "init_args": {"folder": f"{run}-seen"}}
    return words(run, f"--trainer.callbacks={json.dumps([witness])}", *more)


def environment(**variables: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    ours = {
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    return os.environ | ours | variables


def start(folder: Path, command: list[str], **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(*processes: "subprocess.Popen[str]") -> tuple[list[int], str]:
    """Exit statuses, and all that was said; of those that hang, where."""
    try:
        said = "".join(process.communicate(timeout=200)[0] for process in processes)
    except subprocess.TimeoutExpired:
        for process in processes:
            os.killpg(process.pid, signal.SIGABRT)
        said = "HANGS " + "".join(process.communicate()[0] for process in processes)
    return [process.returncode for process in processes], said


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def by_launcher(folder: Path, command: list[str]) -> tuple[list[int], str]:
    return ended(start(folder, [*command, "--trainer.devices=2"]))


def by_one(folder: Path, command: list[str]) -> tuple[list[int], str]:
    return ended(start(folder, [*command, "--trainer.devices=1", "--trainer.strategy=auto"]))


def sharded(folder: Path, command: list[str]) -> tuple[list[int], str]:
    return by_launcher(folder, [*command, "--trainer.strategy=fsdp", "--checkpoint.every_steps=5"])


def by_torchrun(folder: Path, command: list[str]) -> tuple[list[int], str]:
    torchrun = ["torch.distributed.run", f"--master_port={free_port()}", "--nproc_per_node=2", "-m"]
    return ended(start(folder, [*torchrun, *command]))


def by_srun(folder: Path, command: list[str]) -> tuple[list[int], str]:
    """Two tasks as srun starts them, each on a node of its own."""
    port = free_port()
    shared = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_NODELIST": "127.0.0.1,localhost",
        "SLURM_LOCALID": "0",
        "MASTER_PORT": port,
    }
    ranks = [shared | {"SLURM_PROCID": rank, "SLURM_NODEID": rank} for rank in ("1", "0")]
    return ended(*(start(folder, command, **variables) for variables in ranks))


def sizes(micro_batch_size: int, workers: int, *more: str) -> list[str]:
    return [f"--data.micro_batch_size={micro_batch_size}", f"--data.num_workers={workers}", *more]


def seen(run: Path, rank: int) -> list[dict[str, Any]]:
    path = run.with_name(f"{run.name}-seen") / f"rank-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def order(run: Path, step: int, n_processes: int) -> list[str]:
    """The sequences of a step as the processes saw them, a micro-batch of each in turn."""
    of_each = [[line["rows"] for line in seen(run, rank) if line["step"] == step] for rank in range(n_processes)]
    return [row for micro_batches in zip(*of_each, strict=True) for rows in micro_batches for row in rows]


def curve(run: Path) -> dict[tuple[int, str], float]:
    names = ("train/loss", "train/gradient_norm", "val/loss", "val/stories/bits_per_byte")
    return {(line["step"], name): line[name] for line in read_metrics(run) for name in names if name in line}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same run by torchrun, which prepares too, by one process, and gone on with by others."""
    folder = tmp_path_factory.mktemp("ranks")
    write_stories(folder / "stories.txt", 600)
    statuses, said = by_torchrun(folder, witnessed("torchrun"))
    assert statuses == [0], said
    (folder / "torchrun.txt").write_text(said)
    statuses, said = by_one(folder, witnessed("one"))
    assert statuses == [0], said
    for run, checkpoint, how, words in (
        ("elastic", "torchrun/checkpoints/step-00000010.ckpt", by_one, sizes(4, 2, "--trainer.max_steps=20")),
        ("elastic", "last", by_srun, sizes(1, 1)),
        ("one-then-sharded", "one/checkpoints/step-00000020.ckpt", sharded, []),
        ("sharded-then-one", "one-then-sharded/checkpoints/step-00000025.ckpt", by_one, []),
    ):
        statuses, said = how(folder, witnessed(run, f"--ckpt_path={checkpoint}", *words))
        assert set(statuses) == {0}, said
    return folder


def test_two_processes_see_in_each_step_what_one_sees_and_in_the_same_order(runs: Path) -> None:
    for step in range(1, STEPS + 1):
        alone = order(runs / "one", step, 1)
        assert len(alone) == len(set(alone)) == GLOBAL
        assert order(runs / "torchrun", step, 2) == alone
        traced = Tracer(runs / "bins", 32, 1, "shuffled", None, GLOBAL).ids(step)[:, :-1].astype(np.int64)
        assert [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in traced] == alone


def test_two_processes_lose_what_one_loses(runs: Path) -> None:
    expected = curve(runs / "one")
    assert len(expected) == STEPS * 2 + 3 * 2
    assert curve(runs / "torchrun") == pytest.approx(expected, rel=1e-6)


def test_two_processes_then_one_then_two_see_and_lose_what_one_does_whatever_their_micro_batches_and_workers(
    runs: Path,
) -> None:
    for step in range(11, STEPS + 1):
        assert order(runs / "elastic", step, 1 if step <= 20 else 2) == order(runs / "one", step, 1)
    assert {len(line["rows"]) for line in seen(runs / "elastic", 0)} == {4, 1}
    # Up to step 10 the run of two processes, compared above.
    expected = {key: value for key, value in curve(runs / "one").items() if key[0] > 10}
    assert curve(runs / "elastic") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("run", "step"), [("one-then-sharded", 20), ("sharded-then-one", 25)])
def test_a_run_goes_on_with_another_number_of_processes(runs: Path, run: str, step: int) -> None:
    expected = {key: value for key, value in curve(runs / "one").items() if key[0] > step}
    assert curve(runs / run) == pytest.approx(expected, rel=1e-6)


def test_a_network_cut_over_processes_is_saved_as_one_process_saves_it(runs: Path) -> None:
    one, cut = (
        torch.load(runs / run / "checkpoints" / "step-00000030.ckpt", weights_only=True)
        for run in ("one", "one-then-sharded")
    )
    assert list(cut["state_dict"]) == list(one["state_dict"])
    torch.testing.assert_close(cut["state_dict"], one["state_dict"], atol=1e-6, rtol=0)
    moments, expected = (found["optimizer_states"][0] for found in (cut, one))
    assert [group["params"] for group in moments["param_groups"]] == [
        group["params"] for group in expected["param_groups"]
    ]
    torch.testing.assert_close(moments["state"], expected["state"], atol=1e-6, rtol=0)
    assert cut["scratchlm"]["gpt_settings"] == one["scratchlm"]["gpt_settings"]
    assert all(torch.load(path, weights_only=True) for path in runs.glob("one-then-sharded/checkpoints/*.ckpt"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_cuda_devices_lose_what_one_loses(runs: Path, strategy: str) -> None:
    on_cuda = ["--trainer.accelerator=cuda", "--model.learning_rate=0.001"]
    for run, devices in ((f"cuda-one-{strategy}", 1), (f"cuda-two-{strategy}", 2)):
        command = words(run, *on_cuda, f"--trainer.devices={devices}", f"--trainer.strategy={strategy}")
        statuses, said = ended(start(runs, command))
        assert statuses == [0], said
    assert curve(runs / f"cuda-two-{strategy}") == pytest.approx(curve(runs / f"cuda-one-{strategy}"), abs=1e-3)


def test_several_processes_leave_one_run_folder(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "torchrun" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert {line["attempt"] for line in lines} == {1}
    names = {path.name for path in (runs / "torchrun").iterdir()}
    assert names == {path.name for path in (runs / "one").iterdir()}
    checkpoints = {path.name for path in (runs / "torchrun" / "checkpoints").iterdir()}
    assert checkpoints == {"step-00000010.ckpt", "step-00000020.ckpt", "step-00000030.ckpt", "best.ckpt"}
    samples = [json.loads(line) for line in (runs / "torchrun" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [10] * 4 + [20] * 4 + [30] * 4


def test_the_first_process_prepares_and_speaks_alone(runs: Path) -> None:
    said = (runs / "torchrun.txt").read_text()
    for words_said in ("documents in  dropped", "train tokens", "cpu, 32-true: ", "tokens a step", "step 3/30"):
        assert said.count(words_said) == 1, words_said
    assert "2 at once x 2 in a row x 2 devices" in said
    assert "finished before" not in said


def test_gradients_are_exchanged_once_a_step_however_many_micro_batches_it_has(runs: Path) -> None:
    lines = seen(runs / "torchrun", 0)
    assert len(lines) == STEPS * 2
    assert lines[-1]["exchanges"] == STEPS  # in one bucket


def test_a_mistake_in_one_process_is_one_line_and_ends_them_all(runs: Path) -> None:
    fault = {"class_path": "tests.rank_witness.Fault", "init_args": {"rank": 1, "step": 3, "kind": "mistake"}}
    statuses, said = by_launcher(runs, words("mistake", f"--trainer.callbacks={json.dumps([fault])}"))
    assert statuses == [2]
    assert said.count("fault=1: made by the test") == said.count("error") == 1
    assert "Traceback" not in said
    expected = {key: value for key, value in curve(runs / "one").items() if key[0] < 3}
    assert curve(runs / "mistake") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_either_process_saves_and_ends_both_within_15_seconds(runs: Path, rank: int) -> None:
    fault = {"class_path": "tests.rank_witness.Fault", "init_args": {"rank": rank, "step": 3, "kind": "SIGTERM"}}
    run = f"told-{rank}"
    words_and_fault = words(run, f"--trainer.callbacks={json.dumps([fault])}", "--trainer.log_every_n_steps=1000")
    statuses, said = by_launcher(runs, words_and_fault)
    told = time.time()
    assert statuses == [143]
    assert said.count("stopped by SIGTERM, saved after step 2; --ckpt_path last goes on with the run") == 1, said
    assert "Traceback" not in said
    checkpoint = runs / run / "checkpoints" / "step-00000002.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    assert told - checkpoint.stat().st_mtime < 15


def test_ranks_that_do_not_divide_the_batch_are_refused_in_one_line_before_anything_is_written(runs: Path) -> None:
    before = set(runs.iterdir())
    statuses, said = by_srun(runs, words("uneven", "--data.global_batch_size=10", "--data.folder=none"))
    assert statuses == [2, 2]
    assert said.splitlines() == [
        "scratchlm: error: data.global_batch_size=10: not a multiple of data.micro_batch_size=2 times 2 processes. "
        "The nearest that works is 8; or keep it, with data.micro_batch_size=1."
    ]
    assert set(runs.iterdir()) == before


def test_the_launcher_refuses_before_it_starts_a_process(
    runs: Path, command: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    before = set(runs.iterdir())
    with pytest.raises(SystemExit, match="2"):
        command(*words("uneven", "--data.global_batch_size=6", "--trainer.devices=2", "--data.folder=none")[1:])
    assert "The nearest that works is 8; or keep it, with data.micro_batch_size=1." in capsys.readouterr().err
    assert set(runs.iterdir()) == before


def test_a_strategy_whose_checkpoints_would_be_others_is_refused(
    tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*words("run", "--trainer.strategy=fsdp_cpu_offload")[1:])
    assert "trainer.strategy=fsdp_cpu_offload: not known to keep" in capsys.readouterr().err


def test_a_task_count_without_tasks_per_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ValueError, match=r"SLURM_NTASKS: .*--ntasks-per-node=2"):
        Ranks()


@pytest.mark.slow  # another 10 s each
@pytest.mark.parametrize("how", [by_launcher, by_torchrun, by_srun])
@pytest.mark.parametrize(
    ("kind", "rank", "line"),
    [
        ("mistake", 0, "fault=1: made by the test"),
        ("mistake", 1, "fault=1: made by the test"),
        ("bug", 0, "KeyError: 'made by the test'"),
        ("bug", 1, "KeyError: 'made by the test'"),
        ("SIGKILL", 1, "another process of this run has ended or cannot be reached"),
        ("SIGTERM", 0, "stopped by SIGTERM, saved after step 1"),
        ("SIGTERM", 1, "stopped by SIGTERM, saved after step 1"),
        ("SIGUSR1", 1, "stopped by SIGUSR1, saved after step 1"),
    ],
)
def test_whatever_ends_one_process_is_said_once_and_ends_them_all(
    runs: Path,
    how: Callable[[Path, list[str]], tuple[list[int], str]],
    kind: str,
    rank: int,
    line: str,
    request: pytest.FixtureRequest,
) -> None:
    fault = {"class_path": "tests.rank_witness.Fault", "init_args": {"rank": rank, "step": 2, "kind": kind}}
    run = request.node.name
    statuses, said = how(runs, words(run, f"--trainer.callbacks={json.dumps([fault])}"))
    assert said.count(line) == 1, said
    expected = {"mistake": 2, "bug": 1, "SIGKILL": 2, "SIGTERM": 143, "SIGUSR1": 138}[kind]
    if how is by_torchrun:
        assert statuses == [1]  # its own, and its own report
    else:
        assert set(statuses) - {-9, 1} == {expected} - {1}, said
        assert said.count("Traceback") == (kind == "bug")


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["data.folder", "memory  "])  # the other process is about to begin; both train
def test_a_first_process_that_is_killed_takes_the_others_with_it(runs: Path, sign: str) -> None:
    command = words(f"killed-{sign[:4]}", "--trainer.devices=2", "--trainer.max_steps=100000")
    first = start(runs, command)
    assert first.stdout is not None
    if sign == "memory  ":
        while sign not in first.stdout.readline():
            pass
    else:
        while len(of_session(first.pid)) < 2:
            time.sleep(0.01)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 15
    while of_session(first.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = of_session(first.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    first.stdout.close()


def of_session(leader: int) -> list[int]:
    """Processes of a session that are alive."""
    found = subprocess.run(["ps", "-s", str(leader), "-o", "pid=,stat="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if not line.split()[1].startswith("Z")]


@pytest.mark.slow
def test_a_loss_that_is_infinite_in_one_process_has_all_leave_the_step_out(runs: Path) -> None:
    fault = {"class_path": "tests.rank_witness.Fault", "init_args": {"rank": 1, "step": 3, "kind": "infinite loss"}}
    statuses, said = by_launcher(runs, words("infinite", f"--trainer.callbacks={json.dumps([fault])}"))
    assert statuses == [0], said
    counted = {line["step"]: line.get("train/skipped_steps") for line in read_metrics(runs / "infinite")}
    assert counted == {step: None if step < 3 else 1 for step in range(1, STEPS + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("how", [by_launcher, by_torchrun, by_srun])
def test_prepare_that_fails_in_the_first_process_ends_them_all(
    runs: Path, how: Callable[[Path, list[str]], tuple[list[int], str]]
) -> None:
    statuses, said = how(runs, words("nothing", "--data.sources={text: missing.txt}", "--data.folder=none"))
    assert said.count("no file missing.txt") == 1
    assert set(statuses) == ({1} if how is by_torchrun else {2})
    assert not (runs / "none").exists()
