"""Token files of others as a source: mixed with text, never changed, and told from copies of it."""

import numpy as np
import pytest

from scratchlm.data.bins import Bin
from scratchlm.data.inspection import damage
from scratchlm.data.preparation import Corpus
from scratchlm.errors import BadValue, BrokenState
from scratchlm.text.tokenizer import load, train

SMALL = {"context_length": 16, "val_fraction": 0.05, "cleaning": ["unicode", "whitespace"]}


@pytest.fixture
def tokenizer(tmp_path, story):
    (tmp_path / "tokenizer").mkdir()
    train("bpe", [story(i) for i in range(50)], 300).save(tmp_path / "tokenizer")
    return load(tmp_path / "tokenizer")


@pytest.fixture
def shards(tmp_path, story, tokenizer):
    """Two files with llm.c's header, 60 documents each, the end of text before every document as there."""
    for shard in range(2):
        encoded = tokenizer.encode_many([story(60 * shard + i, seed=7) for i in range(60)])
        ids = np.array([id for document in encoded for id in [tokenizer.end_of_text_id, *document]], "<u2")
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(ids)
        (tmp_path / f"web_train_{shard:06}.bin").write_bytes(header.tobytes() + ids.tobytes())
    return str(tmp_path / "web_train_*.bin")


def documents_of(folder, split):
    bin_ = Bin(folder, split)
    ends = [*bin_.documents["start"][1:].tolist(), bin_.n_tokens]
    return [
        (int(row["source"]), bin_.tokens[int(row["start"]) : end - 1].tolist())
        for row, end in zip(bin_.documents, ends, strict=True)
    ]


@pytest.mark.parametrize("n_processes", [1, 2])
def test_ids_are_mixed_with_text_as_they_are(tmp_path, write_jsonl, story, shards, tokenizer, n_processes):
    texts = [story(i, seed=8) for i in range(100)]
    sources = {"web": {"uri": shards, "weight": 1}, "text": {"uri": write_jsonl("text", texts), "weight": 1}}
    made = Corpus(
        str(tmp_path / "bins"), sources, tokenizer=str(tmp_path / "tokenizer"), n_processes=n_processes, **SMALL
    )
    manifest = made.prepare()
    written = documents_of(tmp_path / "bins", "train") + documents_of(tmp_path / "bins", "val")
    of_web = sorted(ids for source, ids in written if source == 0)
    assert of_web == sorted(tokenizer.encode_many([story(i, seed=7) for i in range(120)]))
    assert len(written) == 220
    web = manifest["card"]["sources"][0]
    assert web["bytes"] == sum(len(story(i, seed=7).encode()) for i in range(120))
    assert damage(tmp_path / "bins", manifest) == {}


def test_a_document_that_comes_as_ids_and_as_text_is_kept_once(tmp_path, write_jsonl, story, shards):
    texts = [story(i, seed=7) for i in range(100, 140)]
    sources = {"web": shards, "text": write_jsonl("text", texts)}
    manifest = Corpus(str(tmp_path / "bins"), sources, tokenizer=str(tmp_path / "tokenizer"), **SMALL).prepare()
    assert sum(entry["dropped"].get("copy", 0) for entry in manifest["card"]["sources"]) == 20


def test_ids_of_an_unknown_tokenizer_are_refused(tmp_path, shards):
    with pytest.raises(
        BadValue, match=r"^data.tokenizer=bpe: would be trained on text, and data.sources.web holds ids"
    ):
        Corpus(str(tmp_path / "bins"), {"web": shards})


def test_an_id_past_the_vocabulary_names_the_file(tmp_path, shards, tokenizer):
    path = tmp_path / "web_train_000001.bin"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xff\xff"
    path.write_bytes(data)
    corpus = Corpus(str(tmp_path / "bins"), {"web": shards}, tokenizer=str(tmp_path / "tokenizer"), **SMALL)
    with pytest.raises((BadValue, BrokenState), match=r"data.sources.web: .*web_train_000001.bin.*65,?535"):
        corpus.prepare()


@pytest.mark.parametrize("key", ["documents", "separator", "text_column"])
def test_what_is_for_text_is_refused_for_ids(tmp_path, key):
    with pytest.raises(BadValue, match=rf"data.sources.web: {key}='line' is for text"):
        Corpus(str(tmp_path / "bins"), {"web": {"uri": "ids.npy", key: "line"}}, tokenizer="somewhere.json")
