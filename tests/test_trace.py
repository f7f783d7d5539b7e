"""`scratchlm trace`: what it says of a step is what the network was given in it."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.test_journey import write_stories

from scratchlm.data.bins import Bin, read_manifest
from scratchlm.data.preparation import Corpus
from scratchlm.data.pretraining import PretrainingData
from scratchlm.data.tracing import Tracer
from scratchlm.text.cleaning import content_hash
from scratchlm.text.tokenizer import load

CONTEXT, GLOBAL = 48, 4
ROOT = Path(__file__).parents[1]
FIRST, LAST = 9, 30  # steps of the run before and after its resume; an epoch has fewer than 15
RUNS: dict[str, list[str]] = {
    "shuffled": [],
    "random": ["--data.windows=random"],
    "overlapping": ["--data.stride_tokens=7", "--data.num_workers=1"],
}


def words(run: str, max_steps: int, *more: str) -> list[str]:
    reader = {"class_path": "tests.rank_witness.Reader", "init_args": {"path": f"{run}.jsonl"}}
    return [
        "fit",
        "--data.sources={stories: {uri: stories.txt, documents: line}, "
        "notes: {uri: notes.txt, documents: line, weight: 0.5}}",
        "--data.folder=bins",
        "--data.vocab_size=300",
        "--data.val_fraction=0.2",
        f"--data.context_length={CONTEXT}",
        "--data.micro_batch_size=2",
        f"--data.global_batch_size={GLOBAL}",
        "--model.gpt.d_model=16",
        "--model.gpt.n_layers=1",
        "--model.gpt.n_heads=2",
        "--model.gpt.d_ff=32",
        "--model.sample_prompts=[]",
        f"--trainer.max_steps={max_steps}",
        "--trainer.limit_val_batches=1",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        f"--trainer.default_root_dir={run}",
        f"--trainer.callbacks={json.dumps([reader])}",
        *more,
    ]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bins and three runs, the first gone on with in other micro-batches; what they read is RUN.jsonl."""
    folder = tmp_path_factory.mktemp("traced")
    write_stories(folder / "stories.txt", 9)
    draw = random.Random(2)
    kinds = ["salt", "rope", "tide", "gull", "sail", "mast", "oar", "net"]
    notes = (" ".join(draw.choices(kinds, k=draw.randint(14, 40))) + f" {number}" for number in range(20))
    (folder / "notes.txt").write_text("\n".join(notes))
    calls = [words(run, FIRST, *more) for run, more in RUNS.items()]
    calls.append(words("shuffled", LAST, "--ckpt_path=last", "--data.micro_batch_size=4", "--data.num_workers=1"))
    code = f"import sys\nfrom scratchlm.cli import main\nfor sys.argv[1:] in {calls}:\n    main()"
    environment = {
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | environment, check=True)
    return folder


@pytest.fixture
def in_folder(traced: Path, command: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """`traced`, in which the command fixture then works; not to be changed."""
    monkeypatch.chdir(traced)
    return traced


def read(folder: Path, run: str) -> dict[int, list[list[int]]]:
    """What the network was given, by step."""
    seen = defaultdict(list)
    for line in (folder / f"{run}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        seen[entry["step"]] += entry["rows"]
    return seen


def tracer_of(folder: Path, run: str) -> Tracer:
    kind = {"random": ("random", None), "overlapping": ("shuffled", 7)}.get(run, ("shuffled", None))
    return Tracer(folder / "bins", CONTEXT, 1, kind[0], kind[1], GLOBAL)  # type: ignore[arg-type]


@pytest.mark.parametrize(("run", "steps"), [("shuffled", LAST), ("random", FIRST), ("overlapping", FIRST)])
def test_a_trace_is_what_the_network_was_given(traced: Path, run: str, steps: int) -> None:
    seen, tracer, tokenizer = read(traced, run), tracer_of(traced, run), load(traced / "bins")
    assert list(seen) == list(range(1, steps + 1))
    assert run != "shuffled" or tracer.epoch(LAST) > 2
    for step, rows in seen.items():
        assert tracer.ids(step).tolist() == rows
        assert [tracer.text(entry["at"]) for entry in tracer.step(step)] == [tokenizer.decode(row) for row in rows]


def test_the_documents_of_a_trace_are_those_that_the_ids_came_from(traced: Path) -> None:
    tracer, bin_, tokenizer = tracer_of(traced, "shuffled"), Bin(traced / "bins", "train"), load(traced / "bins")
    names = [source["name"] for source in read_manifest(traced / "bins")["card"]["sources"]]
    starts, n_shared = bin_.documents["start"].astype(int), 0
    for step in (1, 7, LAST):
        for number, entry in enumerate(tracer.step(step)):
            assert entry["sequence"] == (step - 1) * GLOBAL + number
            covered = 0
            for document in entry["documents"]:
                assert document["first_token"] == covered
                covered += document["tokens"]
                positions = entry["at"] + document["first_token"] + np.arange(document["tokens"])
                assert (np.searchsorted(starts, positions, side="right") - 1 == document["document"]).all()
                assert {names[i] for i in bin_.source_of(positions)} == {document["source"]}
                end = [*starts.tolist(), bin_.n_tokens][document["document"] + 1]
                whole = tokenizer.decode(bin_.tokens[starts[document["document"]] : end].tolist())
                assert document["hash"] == f"{content_hash(whole):016x}"
            assert covered == CONTEXT + 1
            n_shared += len(entry["documents"]) > 1
            assert json.loads(json.dumps(entry)) == entry  # plain, for a journal
    assert n_shared > 0


def test_the_data_module_hands_out_the_tracer_of_its_order(traced: Path) -> None:
    data = PretrainingData(
        str(traced / "bins"), CONTEXT, 1, GLOBAL, windows="random", sources={"stories": "stories.txt"}
    )
    assert data.tracer().ids(3).tolist() == read(traced, "random")[3]


def test_the_verb_prints_each_sequence_with_its_documents_and_the_shares(
    in_folder: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("trace", "--run=shuffled", "--step=7")
    shown = capsys.readouterr().out
    entries = tracer_of(in_folder, "shuffled").step(7)
    assert "step 7 of shuffled: sequences 24 to 27, 196 tokens (4 x 49)" in shown
    tokens: Counter[str] = Counter()
    for entry in entries:
        assert f"sequence {entry['sequence']}, from token {entry['at']:,}: " in shown
        for document in entry["documents"]:
            tokens[document["source"]] += document["tokens"]
            assert f"{document['source']} {document['document']} ({document['hash']}, " in shown
    assert ", ".join(f"{source} {n / 196:.1%}" for source, n in tokens.most_common()) in shown
    assert "scratchlm corpus show --folder bins --document" in shown
    assert "to come" not in shown
    command("corpus", "show", "--folder=bins", f"--document={entries[0]['documents'][0]['document']}")
    assert entries[0]["documents"][0]["hash"] in capsys.readouterr().out


def test_a_sequence_is_printed_whole_between_the_borders_of_its_documents(
    in_folder: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    tracer = tracer_of(in_folder, "shuffled")
    command("trace", "--run=shuffled", "--step=7", "--sequence=25")
    shown = capsys.readouterr().out
    assert "sequence 24, " not in shown
    for document in tracer.step(7)[1]["documents"]:
        text = tracer.text(tracer.step(7)[1]["at"] + document["first_token"], document["tokens"])
        assert f"--- document {document['document']}, {document['source']}, hash {document['hash']}" in shown
        assert f"of the window\n{text}\n" in shown
    command("trace", "--run=shuffled", "--step=7", "--text=true")
    shown = capsys.readouterr().out
    assert all(f"\nsequence {number}, " in shown for number in range(24, 28))


def test_a_step_to_come_is_known_and_said_to_be_one(
    in_folder: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("trace", "--run=random", "--step=1000000")
    assert f"the run has written down {FIRST} steps so far, so this is one to come" in capsys.readouterr().out


def test_what_cannot_be_traced_is_one_line(in_folder: Path, refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "--step=0: steps are counted from 1" in refusal("trace", "--run=shuffled", "--step=0")
    assert "--step=10000000000000: " in refusal("trace", "--run=shuffled", "--step=10000000000000")
    assert "--sequence=28: step 7 has the sequences 24 to 27" in refusal(
        "trace", "--run=shuffled", "--step=7", "--sequence=28"
    )
    assert "--run=nowhere: no config.yaml there" in refusal("trace", "--run=nowhere", "--step=1")


def test_a_trace_needs_the_bins_that_the_run_was_trained_on(
    traced: Path, command: Callable[..., None], refusal: Callable[..., str], tmp_path: Path
) -> None:
    for name in ("random", "stories.txt", "notes.txt"):
        (shutil.copytree if (traced / name).is_dir() else shutil.copy)(traced / name, tmp_path / name)
    line = refusal("trace", "--run=random", "--step=1")
    assert "the bins of --run=random are gone" in line
    with (tmp_path / "notes.txt").open("a") as file:
        file.write("\none note more, which makes other bins, and is long enough not to be dropped for that")
    command("prepare", "-c=random/config.yaml")
    line = refusal("trace", "--run=random", "--step=1")
    hashes = [json.loads((folder / "random/order.json").read_text())["train.bin"][:12] for folder in (traced,)] + [
        read_manifest(tmp_path / "bins")["files"]["train.bin"]["sha256"][:12]
    ]
    assert all(hash_ in line for hash_ in hashes)
    shutil.copy(traced / "notes.txt", tmp_path / "notes.txt")
    command(*line.split("scratchlm ")[-1].split())  # the line's own cure
    command("trace", "--run=random", "--step=1")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.yaml", "data: !!python/object/apply:os.mkdir [canary]", "not the configuration of a run"),
        ("config.yaml", "data: {folder: 3}", "not the configuration of a run"),
        ("config.yaml", "- 5", "not the configuration of a run"),
        ("order.json", "[3]", "order.json: damaged"),
        ("metrics.jsonl", '5\n{"step": 1}\n', "metrics.jsonl: line 1 is damaged"),
        ("metrics.jsonl", '{"step": "x"}\n', "metrics.jsonl: line 1 is damaged"),
    ],
)
def test_rubbish_in_the_run_folder_is_one_line(
    traced: Path, refusal: Callable[..., str], tmp_path: Path, name: str, text: str, said: str
) -> None:
    shutil.copytree(traced / "random", tmp_path / "random")
    (tmp_path / "bins").symlink_to(traced / "bins")
    (tmp_path / "random" / name).write_text(text)
    assert said in refusal("trace", "--run=random", "--step=1")
    assert not (tmp_path / "canary").exists()


def test_a_trace_answers_at_once_however_long_the_bins(tmp_path: Path, run_alone: Callable[..., list[int]]) -> None:
    """Two million documents, of which an index copied as a whole would take half the time and 34 MB."""
    n_documents, length = 2_000_000, 20
    (tmp_path / "notes.txt").write_text("\n".join(f"{n} a line of which there are some" * 3 for n in range(300)))
    Corpus(
        str(tmp_path / "bins"),
        {"notes": {"uri": str(tmp_path / "notes.txt"), "documents": "line"}},
        tokenizer="char",
        context_length=8,
        val_fraction=0.1,
    ).prepare()
    index = np.zeros(n_documents, Bin(tmp_path / "bins", "train").documents.dtype)
    index["start"] = np.arange(n_documents, dtype=np.uint64) * np.uint64(length)
    np.save(tmp_path / "bins" / "train.docs.npy", index)
    with (tmp_path / "bins" / "train.bin").open("r+b") as file:
        file.truncate(2 * n_documents * length)
    script = """
import sys, time
from scratchlm.data.tracing import Tracer
began = time.process_time()
n = sum(len(entry["documents"]) for entry in Tracer(sys.argv[1], 1024, 1, "shuffled", None, 512).step(9))
print(round(1000 * (time.process_time() - began)), n)
"""
    milliseconds, n = run_alone(script, str(tmp_path / "bins"))
    assert n > 512 * 1024 // length
    assert milliseconds < 500
