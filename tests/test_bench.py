"""The measuring instrument: contestants do the same work, and an output that is wrong is found."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.text import tokenizer
from scratchlm.text.tales import tales

ROOT = Path(__file__).parents[1]
N_DOCUMENTS = 300

Module = Callable[[str], ModuleType]
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    """A module of scripts/benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that cleaning leaves as they are; one spells a special token."""
    path = tmp_path_factory.mktemp("bench") / "tales.jsonl"
    documents = [text for text, _ in islice(tales(), N_DOCUMENTS)]
    documents[7] += " <|endoftext|> is what it said."
    path.write_text("".join(json.dumps({"id": n, "body": text}) + "\n" for n, text in enumerate(documents)))
    return path


@pytest.fixture(scope="session")
def spelling(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spelling")
    tokenizer.train("bpe", bodies(text), 1000).save(folder)
    return folder / "tokenizer.json"


def bodies(path: Path) -> list[str]:
    return [json.loads(line)["body"] for line in path.read_text().splitlines()]


def run(tmp_path: Path, text: Path | None, *words: str) -> tuple[str, dict[str, Any]]:
    """What `scripts/bench.py ...` printed, and the measurements it wrote."""
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *words]
    command += ["--text", str(text), "--column", "body"] if text else []
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--json", str(tmp_path / "measured.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["measured.json"]
    return done.stdout, json.loads((tmp_path / "measured.json").read_text())


def test_all_contestants_of_prepare_write_the_same_tokens(tmp_path: Path, text: Path, spelling: Path) -> None:
    contestants = ["scratchlm", "nanogpt", "plain", "tokenizers"]
    for library in ("tiktoken", "fastokens", "orjson"):
        pytest.importorskip(library)
    words = ["--rounds", "1", "--tokenizer", str(spelling), "--contestants", *contestants]
    printed, measured = run(tmp_path, text, "prepare", *words)
    assert set(measured["tokens"]) == set(contestants)
    assert len(set(measured["tokens"].values())) == 1
    assert measured["documents"] == measured["kept"]["scratchlm"]["documents"] == N_DOCUMENTS
    assert measured["kept"]["scratchlm"]["changed"] == 0
    for name in contestants:
        assert f"| {name} " in printed
        (once,) = measured["runs"][name]
        assert once["seconds"] > 0
        assert once["cpu_seconds"] > 0
    assert "scratchlm against nanogpt" in printed
    assert "scratchlm against plain" in printed


def test_memory_is_measured_over_text_that_deduplication_keeps(tmp_path: Path, text: Path, spelling: Path) -> None:
    printed, measured = run(tmp_path, text, "memory", "--megabytes", "0.1", "0.6", "--tokenizer", str(spelling))
    small, large = measured["runs"]
    assert large["documents"] > N_DOCUMENTS > small["documents"]
    assert "| peak RssAnon, MB |" in printed
    if sys.platform == "linux":
        assert large["peak_anon_bytes"] > 1e6
        assert "within the goal of 1,500 MB" in printed


def test_windows_are_compared_with_what_the_bin_holds(tmp_path: Path, text: Path) -> None:
    words = ["--megabytes", "1", "--context-length", "64", "--micro-batch-sizes", "3", "--megatokens", "0.01"]
    printed, measured = run(tmp_path, text, "windows", *words, "--rounds", "2")
    assert measured["bin_bytes"] == 1_000_000
    (result,) = measured["batches"]
    assert {name: len(rates) for name, rates in result["rates"].items()} == {"scratchlm": 2, "nanogpt": 2}
    assert 450_000 < result["epoch"]["tokens"] <= 500_000
    assert "batches of 3: " in printed


@pytest.fixture
def outputs(
    tmp_path: Path, text: Path, spelling: Path, command: Callable[..., None], module: Module
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Outputs of scratchlm and of a peer lie in the working folder, and this compares them."""
    ids = tmp_path / "ids"
    source = json.dumps({"text": {"uri": str(text), "text_column": "body"}})
    folder = str(ids / "scratchlm")
    command("prepare", "--data.sources", source, "--data.tokenizer", str(spelling), "--data.folder", folder)
    (ids / "tokenizers").mkdir()
    peers, texts = module("peers"), module("texts")
    peers.tokenizers(str(text), "body", str(spelling), str(ids / "tokenizers" / "train.bin"), 1)
    names = ["scratchlm", "tokenizers"]
    check = module("outputs").check_ids
    return lambda: check(names, texts.counted(text, "body"), spelling, tmp_path)


def flip(path: Path, at: int) -> None:
    ids = np.memmap(path, np.uint16, mode="r+")
    ids[at] ^= 1
    ids.flush()


def test_right_outputs_pass(outputs: Callable[[], dict[str, Any]]) -> None:
    checked = outputs()
    assert checked["tokens"]["scratchlm"] == checked["tokens"]["tokenizers"]
    assert checked["kept"]["scratchlm"]["changed"] == 0


@pytest.mark.parametrize("name", ["scratchlm", "tokenizers"])
def test_one_wrong_id_is_found(
    outputs: Callable[[], dict[str, Any]], name: str, tmp_path: Path, module: Module
) -> None:
    flip(tmp_path / "ids" / name / "train.bin", 1000)
    with pytest.raises(module("outputs").Wrong, match="scratchlm: the ids of document"):
        outputs()


def test_a_wrong_id_is_found_in_a_document_that_cleaning_changed(
    outputs: Callable[[], dict[str, Any]], tmp_path: Path, text: Path, spelling: Path, module: Module
) -> None:
    folder, speller = tmp_path / "ids" / "scratchlm", tokenizer.load(spelling)
    check = module("outputs").check_prepared
    assert check(folder, {}, speller, "scratchlm").changed == N_DOCUMENTS
    flip(folder / "train.bin", 1000)
    with pytest.raises(module("outputs").Wrong, match="do not spell the text"):
        check(folder, {}, speller, "scratchlm")


def test_a_library_that_is_missing_is_one_line_with_its_cure(monkeypatch: pytest.MonkeyPatch, module: Module) -> None:
    monkeypatch.setitem(module("peers").NEEDS, "nanogpt", ("datasets", "no_such_library"))
    with pytest.raises(SystemExit, match="nanogpt needs no_such_library: pip install no_such_library"):
        module("preparation").require(["plain", "nanogpt"])


def test_a_tokenizer_that_tiktoken_cannot_be_is_refused(spelling: Path, module: Module) -> None:
    pytest.importorskip("tiktoken")
    settings = json.loads(spelling.read_text())
    settings["model"]["merges"].reverse()
    with pytest.raises(SystemExit, match="in the order of the merges"):
        module("peers").tiktoken_encoding(json.dumps(settings))
    settings["pre_tokenizer"] = None
    with pytest.raises(SystemExit, match="byte-level BPE"):
        module("peers").tiktoken_encoding(json.dumps(settings))


def test_made_text_has_its_size_and_no_document_twice(tmp_path: Path, text: Path, module: Module) -> None:
    made = module("texts").made(tmp_path / "made.jsonl", 1.0, text, "body")
    found = bodies(made.path)
    assert len(set(found)) == len(found) == made.n_documents
    assert sum(len(text.encode()) for text in found) == made.n_bytes
    assert 1_000_000 <= made.n_bytes < 1_002_000
    assert module("texts").counted(made.path, "body") == made


PARENT = """
import subprocess, sys, time
held = bytearray(100_000_000)
child = "import time; held = bytearray(200_000_000); time.sleep(1)"
subprocess.run([sys.executable, "-c", child], check=True)
"""


@needs_proc
def test_memory_is_summed_over_all_that_a_command_starts(tmp_path: Path, module: Module) -> None:
    command = [sys.executable, "-c", PARENT]
    measured = module("process_tree").measure(command, os.environ, tmp_path / "log.txt")
    assert 300e6 < measured.peak_anon_bytes < 400e6
    assert measured.peak_processes == 2
    assert 1 < measured.seconds < 30


def test_a_command_that_fails_shows_the_end_of_its_log(tmp_path: Path, module: Module) -> None:
    tree = module("process_tree")
    with pytest.raises(tree.Failed, match=r"(?s)ended with status 3:.*no luck"):
        tree.measure([sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], os.environ, tmp_path / "log.txt")


UNCOMPILED = ["--set", "model.compile", "false"]  # compiling takes longer than all the rest


def test_a_fit_takes_turns_with_a_peer_of_the_same_size(tmp_path: Path) -> None:
    words = ["--shape", "tiny", "--contestants", "scratchlm", "plain-eager", "--rounds", "2", "--steps", "3"]
    printed, measured = run(tmp_path, None, "train", *words, *UNCOMPILED)
    (race,) = measured["races"]
    assert set(race["contestants"]) == {"scratchlm", "plain-eager"}
    for name, found in race["contestants"].items():
        assert f"| {name} " in printed
        assert [turn["seconds"] > 0 for turn in found["rounds"]] == [True, True]
        assert found["tokens_per_second"] * race["flops_per_token"] / race["matmul"]["flops"] == found["mfu"]
        assert found["first"]["since_start"] > found["first"]["seconds"] > 0
        assert found["precision"] in ("bf16", "bf16-mixed")
        assert sys.platform != "linux" or found["peak_bytes"] > 1e8
        assert abs(found["rounds"][-1]["loss"] - math.log(1024)) < 0.7
    assert "is ... times as fast" in printed


@pytest.mark.parametrize("kind", ["parameters", "beyond_embeddings"])
def test_a_contestant_of_another_size_is_refused(kind: str, module: Module) -> None:
    training, shapes = module("training"), module("shapes")
    gpt = training.meta_gpt(shapes.SHAPES["5m"])
    n_embedded = 8_000 * 256 + 256 * 256
    same = {"parameters": gpt.n_parameters, "beyond_embeddings": gpt.n_parameters - n_embedded}
    training.require_same_size({"litgpt-eager": same | {kind: round(1.029 * same[kind])}}, gpt)
    with pytest.raises(module("outputs").Wrong, match=r"litgpt-eager has .* more than 3% apart"):
        training.require_same_size({"litgpt-eager": same | {kind: round(1.031 * same[kind])}}, gpt)


@pytest.mark.parametrize("loss", [5.0, 9.0, float("nan")])
def test_a_contestant_that_does_not_learn_the_same_ids_is_refused(loss: float, module: Module) -> None:
    training, shape = module("training"), module("shapes").SHAPES["tiny"]
    with pytest.raises(module("outputs").Wrong, match=r"its loss in round 2 is .* must be about 6\.93"):
        training.require_same_loss({"litgpt-eager": [{"loss": 6.9}, {"loss": loss}]}, shape)


def test_a_peer_without_an_environment_is_one_line_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Module
) -> None:
    training = module("training")
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    given = Namespace(
        threads=2, environments=str(tmp_path), contestants=["scratchlm", "litgpt-eager"], against=None, set=None
    )
    with pytest.raises(SystemExit, match=r"no litgpt in .* scripts/bench_env\.sh .* --contestants scratchlm"):
        training.environment_of("litgpt-eager", given)
    (tmp_path / "litgpt" / "site").mkdir(parents=True)
    python, environment = training.environment_of("litgpt-eager", given)
    assert python == sys.executable
    assert environment["PYTHONPATH"].startswith(str(tmp_path / "litgpt" / "site"))
    assert environment["OMP_NUM_THREADS"] == "2"


def test_contestants_that_do_not_fit_into_memory_beside_each_other_are_refused(tmp_path: Path) -> None:
    words = ["--shape", "218m", "--sequences", "4096", "--contestants", "scratchlm", "plain-eager"]
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "train", *words, "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--shape 218m: 2 contestants take about" in line


def test_a_fit_takes_turns_with_a_bare_loop_and_its_pauses_do_not_count(tmp_path: Path) -> None:
    words = ["--shape", "tiny", "--rounds", "2", "--steps", "5", "--set", "trainer.val_check_interval", "5"]
    printed, measured = run(tmp_path, None, "loop", *words, *UNCOMPILED)
    assert {name: len(turns) for name, turns in measured["runs"].items()} == {"fit": 2, "bare": 2}
    for turn in measured["runs"]["fit"]:
        assert turn["seconds"] > turn["paused"] > 0
    assert [turn["paused"] for turn in measured["runs"]["bare"]] == [0, 0]
    assert "ratio of minima" in printed
    assert measured["ratio_of_minima"] > 0.5


def test_a_contestant_that_dies_shows_the_end_of_its_log(tmp_path: Path, module: Module) -> None:
    words = [sys.executable, "-c", "print('no luck'); raise SystemExit(3)"]
    contestant = module("turns").Contestant("peer", words, os.environ, tmp_path / "log.txt")
    try:
        with pytest.raises(module("process_tree").Failed, match=r"(?s)peer ended with status 3:.*no luck"):
            contestant.turn(steps=1)
    finally:
        contestant.end()


@needs_proc
def test_nothing_that_a_contestant_started_outlives_it(tmp_path: Path, module: Module) -> None:
    child = "import subprocess, sys, time; " + (
        "held = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        "import os; os.write(int(sys.argv[1]), b'{\"pid\": %d}\\n' % held.pid); time.sleep(600)"
    )
    words = [sys.executable, "-c", child, "ANSWERS"]
    contestant = module("turns").Contestant("peer", words, os.environ, tmp_path / "log.txt")
    pid = contestant.answer()["pid"]
    contestant.end()
    deadline = time.monotonic() + 10  # a process that was killed dies when it is next scheduled
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


STAND_IN = """#!/usr/bin/env bash
case $1-${2:-} in
    -m-venv)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        ;;
    -m-pip)
        echo "$@" >>"$CALLS"
        [ -z "${REFUSE:-}" ] || case "$*" in *"$REFUSE"*) exit 1 ;; esac
        ;;
esac
"""


def make_environments(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs scripts/bench_env.sh with a stand-in for Python, on a machine without a GPU; what it asked of pip."""
    stand_in, no_gpu = tmp_path / "python", tmp_path / "bin" / "nvidia-smi"
    no_gpu.parent.mkdir(exist_ok=True)
    for script, text in ((stand_in, STAND_IN), (no_gpu, "#!/bin/sh\nexit 1\n")):
        script.write_text(text)
        script.chmod(0o755)
    calls = tmp_path / "calls.txt"
    calls.write_text("")
    path = f"{no_gpu.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(shutil.which("bash")), str(ROOT / "scripts" / "bench_env.sh"), str(tmp_path / "environments")],
        env=os.environ | {"PYTHON": str(stand_in), "CALLS": str(calls), "PATH": path} | environment,
        capture_output=True,
        text=True,
    )
    return done, calls.read_text().splitlines()


def test_each_peer_gets_an_environment_once_with_the_torch_of_the_constraints(tmp_path: Path) -> None:
    platform = "darwin" if sys.platform == "darwin" else "linux"
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (torch,) = [pin.partition(";")[0] for pin in pins if pin.startswith("torch==") and platform in pin]
    done, calls = make_environments(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "environments").iterdir()) == ["litgpt", "transformers"]
    for peer in ("litgpt", "transformers"):
        (asked,) = [call for call in calls if f" {peer}==" in call]
        assert torch in asked.split()
    assert not [call for call in calls if "scratchlm" in call.split() or "-e" in call.split()]
    again, calls = make_environments(tmp_path)
    assert again.stdout.count("is up to date") == 2
    assert calls == []


def test_an_environment_that_pip_could_not_make_is_one_line_and_made_anew(tmp_path: Path) -> None:
    done, _ = make_environments(tmp_path, REFUSE="transformers==")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench_env.sh: pip could not install transformers==")
    done, calls = make_environments(tmp_path)
    assert done.returncode == 0
    assert not [call for call in calls if " litgpt==" in call]
    assert [call for call in calls if " transformers==" in call]


def test_a_folder_that_is_no_environment_of_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "environments" / "litgpt" / "mine.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    done, _ = make_environments(tmp_path)
    assert done.returncode == 1
    assert "is not of this script's making" in done.stderr
    assert theirs.read_text() == "mine"


def measure_gpu(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/bench_gpu.sh with this interpreter."""
    command = [str(shutil.which("bash")), str(ROOT / "scripts" / "bench_gpu.sh"), *words]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_machine_without_a_gpu_is_refused_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = measure_gpu()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no CUDA device" in line


@pytest.mark.timeout(900)  # eight trainings of seconds, each a process of its own
def test_a_dry_run_of_the_gpu_page_measures_every_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n\nBefore.\n")
    done = measure_gpu("--dry-run", "--page", str(page), "--work", str(tmp_path), "--minutes", "14")
    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert written.startswith("# Benchmarks\n\nBefore.\n")
    for title in ("Device", "Speed", "Memory", "Killed and resumed", "The Trainer's own cost"):
        assert f"\n#### {title}\n" in written
    assert "Not measured" not in written
    assert "attention: _scaled_dot_product_flash_attention" in written
    assert "| plain-eager " in written
    assert "and went on after step" in written
    assert os.listdir(tmp_path) == ["page.md"]


def test_a_page_is_written_anew_between_its_marks_alone(tmp_path: Path, module: Module) -> None:
    write, page = module("gpu").write_between_marks, tmp_path / "page.md"
    page.write_text("before\n")
    write(page, "NVIDIA A", ["one"])
    write(page, "NVIDIA B", ["two"])
    write(page, "NVIDIA A", ["three"])
    written = page.read_text()
    assert written.startswith("before\n")
    assert [word for word in written.split() if word in ("one", "two", "three")] == ["three", "two"]
