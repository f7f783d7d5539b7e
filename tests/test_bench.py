"""The measuring instrument: contestants do the same work, and an output that is wrong is found."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

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


def run(tmp_path: Path, text: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """What `scripts/bench.py ...` printed, and the measurements it wrote."""
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *words, "--text", str(text), "--column", "body"]
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
