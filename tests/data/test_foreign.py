import json
import os
import pickle
import shutil

import numpy as np
import pytest

from scratchlm.data.bins import Bin, read_manifest, sealed
from scratchlm.data.foreign import adopt, characters_of, is_foreign
from scratchlm.data.inspection import check, damage, show
from scratchlm.data.preparation import Corpus
from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.text.tokenizer import load, train

CONTEXT = 8


@pytest.fixture(scope="module")
def text(story):
    return "\n".join(story(i) for i in range(60)) + "\n\u00e9\u4f60"


@pytest.fixture
def characters(tmp_path, text):
    """A folder as nanoGPT's prepare.py for characters leaves it."""
    folder = tmp_path / "shakespeare_char"
    folder.mkdir()
    stoi = {character: id for id, character in enumerate(sorted(set(text)))}
    ids = np.array([stoi[character] for character in text], np.uint16)
    ids[:-1000].tofile(folder / "train.bin")
    ids[-1000:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(stoi), "itos": {id: character for character, id in stoi.items()}, "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def spelling(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train("bpe", [text], 300).save(folder)
    return folder / "tokenizer.json"


@pytest.fixture
def documents(tmp_path, story, spelling):
    """A folder as nanoGPT's prepare.py for web text leaves it: an end of text behind every document, no meta.pkl."""
    folder = tmp_path / "openwebtext"
    folder.mkdir()
    tokenizer = load(spelling)
    for seed, split in enumerate(("train", "val")):
        encoded = tokenizer.encode_many([story(i, seed=seed) for i in range(60 if split == "train" else 8)])
        np.array([id for ids in encoded for id in [*ids, tokenizer.end_of_text_id]], np.uint16).tofile(
            folder / f"{split}.bin"
        )
    return folder


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def data_of(folder, **values):
    values = {"context_length": CONTEXT, "micro_batch_size": 2, "global_batch_size": 2} | values
    return PretrainingData(str(folder), **values)


def test_characters_keep_their_ids_and_special_tokens_come_behind(characters, text):
    meta = pickle.loads((characters / "meta.pkl").read_bytes())
    manifest = adopt(characters, "bpe", CONTEXT)
    tokenizer = load(characters)
    assert tokenizer.kind == "char"
    assert {character: tokenizer.encode(character) for character in meta["stoi"]} == {
        character: [id] for character, id in meta["stoi"].items()
    }
    assert tokenizer.special_ids == [len(meta["stoi"]) + i for i in range(4)]
    assert manifest["vocab_size"] == tokenizer.vocab_size == len(meta["stoi"]) + 4
    ids = [*Bin(characters, "train").tokens.tolist(), *Bin(characters, "val").tokens.tolist()]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("made_by", ["characters", "documents"])
def test_adopting_adds_four_files_and_changes_none(made_by, request, spelling):
    folder = request.getfixturevalue(made_by)
    before = bytes_of(folder)
    adopt(folder, str(spelling) if made_by == "documents" else "char", CONTEXT)
    after = bytes_of(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"train.docs.npy", "val.docs.npy", "tokenizer.json", "manifest.json"}


def test_a_document_ends_at_the_end_of_text_of_the_tokenizer(documents, spelling, story):
    adopt(documents, str(spelling), CONTEXT)
    bin_, tokenizer = Bin(documents, "train"), load(spelling)
    ends = [*bin_.documents["start"][1:].tolist(), bin_.n_tokens]
    texts = [
        tokenizer.decode(bin_.tokens[begin:end].tolist())
        for begin, end in zip(bin_.documents["start"].tolist(), ends, strict=True)
    ]
    assert texts == [story(i) for i in range(60)]


def test_where_no_end_of_text_occurs_a_file_is_one_document(characters):
    adopt(characters, "bpe", CONTEXT)
    assert np.load(characters / "train.docs.npy")["start"].tolist() == [0]


def test_the_card_says_what_was_adopted(documents, spelling, story):
    card = adopt(documents, str(spelling), CONTEXT)["card"]
    assert card == read_manifest(documents)["card"]
    assert card["adopted"] is True
    (source,) = card["sources"]
    assert source["name"] == "openwebtext"
    assert source["uri"] == str(documents)
    assert source["licence"] is None
    assert source["documents"] == {"train": 60, "val": 8}
    assert source["tokens"] == {split: Bin(documents, split).n_tokens for split in ("train", "val")}
    texts = [story(i, seed=seed) for seed, n in ((0, 60), (1, 8)) for i in range(n)]
    assert source["characters"] == card["characters"] == sum(map(len, texts))
    assert source["bytes"] == sum(len(text.encode()) for text in texts)


def test_characters_of_a_long_file_are_inferred_from_its_beginning(characters, text, monkeypatch):
    monkeypatch.setattr("scratchlm.data.foreign._COUNTED_TOKENS", 500)
    assert adopt(characters, "bpe", CONTEXT)["card"]["characters"] == pytest.approx(len(text), rel=0.01)


@pytest.mark.parametrize("made_by", ["characters", "documents"])
def test_what_is_adopted_passes_the_check_and_any_flipped_bit_fails_it(made_by, request, spelling, capsys):
    folder = request.getfixturevalue(made_by)
    manifest = adopt(folder, str(spelling) if made_by == "documents" else "char", CONTEXT)
    check(str(folder))
    show(str(folder), at=700)
    show(str(folder), document=0, split="val")
    assert "source 0: " in capsys.readouterr().out
    for name in ("train.bin", "val.bin", "train.docs.npy", "tokenizer.json"):
        data = (folder / name).read_bytes()
        at = len(data) // 2
        (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert name in damage(folder, manifest)
        (folder / name).write_bytes(data)


def test_a_test_split_is_adopted_where_there_is_one(documents, spelling):
    shutil.copy(documents / "val.bin", documents / "test.bin")
    manifest = adopt(documents, str(spelling), CONTEXT)
    assert manifest["card"]["tokens"]["test"] == manifest["card"]["tokens"]["val"]
    data_of(documents).setup("test")


def test_a_folder_without_sources_is_adopted_once_and_trained_on(characters):
    made = Corpus(str(characters), context_length=CONTEXT).prepare()
    before = (characters / "manifest.json").stat().st_mtime_ns
    data = data_of(characters, verify=True)
    assert data.corpus.prepare() == made
    assert (characters / "manifest.json").stat().st_mtime_ns == before
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    tokens = np.fromfile(characters / "train.bin", np.uint16).tolist()
    for inputs, targets in zip(batch["inputs_BT"].tolist(), batch["targets_BT"].tolist(), strict=True):
        assert any(tokens[i : i + CONTEXT + 1] == [*inputs, targets[-1]] for i in range(len(tokens)))
    assert data.facts["sources"] == ["shakespeare_char"]
    assert len(list(data.val_dataloader())) > 0


def header(n):
    words = np.zeros(256, "<i4")
    words[:3] = 20240520, 1, n
    return words.tobytes()


@pytest.fixture
def shards(documents):
    """The same ids in the files of edu_fineweb's scripts, cut in the middle of documents: .npy, and llm.c's header."""
    folder = documents.parent / "edu_fineweb"
    folder.mkdir()
    ids = np.fromfile(documents / "train.bin", np.uint16)
    for number, piece in enumerate(np.array_split(ids, 3)):
        np.save(folder / f"edufineweb_train_{number:06d}.npy", piece)
    ids = np.fromfile(documents / "val.bin", np.uint16)
    (folder / "edufineweb_val_000000.bin").write_bytes(header(len(ids)) + ids.tobytes())
    return folder


def test_ids_in_other_files_are_copied_into_bins(shards, documents, spelling):
    before = bytes_of(shards)
    assert is_foreign(shards)
    made, same = adopt(shards, str(spelling), CONTEXT), adopt(documents, str(spelling), CONTEXT)
    after = bytes_of(shards)
    assert {name: after[name] for name in before} == before
    for name in ("train.bin", "val.bin", "train.docs.npy", "val.docs.npy", "tokenizer.json"):
        assert after[name] == (documents / name).read_bytes()
    assert made["settings"]["copied_from"]["val"] == ["edufineweb_val_000000.bin"]
    assert made["files"] == same["files"]
    check(str(shards))
    data_of(shards).setup("fit")


def test_copies_are_made_anew_where_that_is_asked_for(shards, documents, spelling):
    corpus = Corpus(str(shards), tokenizer=str(spelling), context_length=CONTEXT)
    corpus.prepare()
    (shards / "edufineweb_train_000001.npy").unlink()
    assert corpus.prepare()["card"]["tokens"]["train"] == Bin(documents, "train").n_tokens
    assert corpus.prepare(fresh=True)["card"]["tokens"]["train"] < Bin(documents, "train").n_tokens
    check(str(shards))


@pytest.mark.parametrize("stop", ["copied", "indexed"])
def test_a_killed_copy_goes_on(shards, spelling, stop):
    adopt(shards, str(spelling), CONTEXT)
    whole = bytes_of(shards)
    for name in {"copied": ["manifest.json", "train.docs.npy", "tokenizer.json"], "indexed": ["manifest.json"]}[stop]:
        (shards / name).unlink()
    adopt(shards, str(spelling), CONTEXT)
    for name in whole.keys() - {"manifest.json"}:
        assert (shards / name).read_bytes() == whole[name]
    check(str(shards))


def test_shards_that_cannot_be_copied_leave_nothing(shards, spelling):
    ids = np.load(shards / "edufineweb_train_000002.npy")
    ids[77] = 300
    np.save(shards / "edufineweb_train_000002.npy", ids)
    assert "train_000002.npy holds the id 300 at position 77" in refused(shards, spelling)
    np.save(shards / "edufineweb_train_000002.npy", ids.astype(np.int32))
    assert "train_000002.npy is an array of int32" in refused(shards, spelling)
    (shards / "val.bin").write_bytes(b"theirs")
    assert "holds val.bin, which is not of scratchlm's making" in refused(shards, spelling)


def test_a_killed_adoption_goes_on(documents, spelling):
    made = adopt(documents, str(spelling), CONTEXT)
    whole = bytes_of(documents)
    (documents / "manifest.json").unlink()
    (documents / "val.docs.npy").unlink()
    assert is_foreign(documents)
    assert adopt(documents, str(spelling), CONTEXT) == made
    assert bytes_of(documents) == whole


def test_files_that_were_made_anew_are_adopted_anew(documents, spelling):
    corpus = Corpus(str(documents), tokenizer=str(spelling), context_length=CONTEXT)
    corpus.prepare()
    shutil.copy(documents / "val.bin", documents / "train.bin")
    with pytest.raises(BrokenState, match=r"train.bin: .*--fresh true"):
        corpus.prepare()
    assert corpus.prepare(fresh=True)["card"]["tokens"]["train"] == Bin(documents, "val").n_tokens
    check(str(documents))


def test_another_tokenizer_than_before_is_refused_and_none_is_the_one_before(documents, spelling, tmp_path):
    Corpus(str(documents), tokenizer=str(spelling)).prepare()
    Corpus(str(documents)).prepare()
    with pytest.raises(BadValue, match=r"data.tokenizer=other.json: these token files were adopted with .*--fresh"):
        Corpus(str(documents), tokenizer="other.json").prepare()


def test_sources_are_never_written_over_token_files(documents, spelling, tmp_path):
    (tmp_path / "a.txt").write_text("word " * 1000)
    before = bytes_of(documents)
    corpus = Corpus(str(documents), {"a": str(tmp_path / "a.txt")}, context_length=CONTEXT, split="tail")
    with pytest.raises(BadValue, match=r"holds train.bin, which is not of scratchlm's making"):
        corpus.prepare()
    Corpus(str(documents), tokenizer=str(spelling)).prepare()
    with pytest.raises(BadValue, match=r"the bins in data.folder=.* were made with"):
        corpus.prepare()
    assert {name: bytes_of(documents)[name] for name in before} == before


def refused(folder, tokenizer="bpe"):
    """The line with which a folder is refused; nothing is written into it."""
    before = bytes_of(folder)
    with pytest.raises(UserError) as error:
        adopt(folder, str(tokenizer), CONTEXT)
    assert bytes_of(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_tokenizer_its_key_is_named(documents):
    assert "no meta.pkl" in refused(documents)
    assert "data.tokenizer=" in refused(documents)


def test_an_id_past_the_vocabulary_is_refused_with_file_position_and_id(documents, characters, spelling):
    for folder, tokenizer, limit in ((documents, spelling, 300), (characters, "bpe", len(set(_meta(characters))))):
        ids = np.fromfile(folder / "val.bin", np.uint16)
        ids[[321, 400]] = limit
        ids.tofile(folder / "val.bin")
        assert f"val.bin holds the id {limit} at position 321, and the tokenizer has ids below {limit}." in refused(
            folder, tokenizer
        )


def _meta(folder):
    return pickle.loads((folder / "meta.pkl").read_bytes())["stoi"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"abc", "train.bin has 3 bytes, an odd number"),
        (b"", "train.bin is empty"),
        (np.arange(300, dtype=np.uint32).tobytes(), "every second id"),
        (np.array([20240520, 1, 0], "<i4").tobytes() + bytes(1012), "Call the file llmc_train.bin"),
    ],
)
def test_files_that_are_no_bins_are_refused(characters, data, said):
    (characters / "train.bin").write_bytes(data)
    assert said in refused(characters)


@pytest.mark.parametrize("name", ["tokenizer.json", "train.docs.npy", "val.docs.npy"])
def test_a_file_of_theirs_is_never_replaced(characters, name):
    (characters / name).write_text("theirs")
    assert f"holds {name}, which is not of scratchlm's making" in refused(characters)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_not_run(characters, tmp_path, protocol):
    harmful = pickle.dumps({"stoi": {"a": 0}, "itos": Malicious(tmp_path / "ran")}, protocol)
    pickle.loads(harmful)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    (characters / "meta.pkl").write_bytes(harmful)
    assert "system, which could run code, and is not read" in refused(characters)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_of_any_protocol_is_read(tmp_path, protocol):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"b": 1, "\u4f60": 0}}, protocol))
    assert characters_of(tmp_path / "meta.pkl") == {"b": 1, "\u4f60": 0}


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"vocab_size": 65}, "holds no stoi"),
        ([1, 2], "holds no stoi"),
        ({"stoi": {}}, "holds no stoi"),
        ({"stoi": {"word": 0}}, "stoi spells 'word' as 0"),
        ({"stoi": {"a": "b"}}, "stoi spells 'a' as 'b'"),
        ({"stoi": {"a": 0, "b": 2}}, "ids of its 2 characters are not 0 to 1"),
        ({"stoi": {"a": 0, "b": 0}}, "ids of its 2 characters are not 0 to 1"),
        ({"stoi": {"a": np.int64(0)}}, "which could run code"),
        ({"stoi": {"\ud800": 0}}, "half of a surrogate pair"),
    ],
)
def test_a_meta_pkl_that_names_no_characters_is_one_line(characters, meta, said):
    (characters / "meta.pkl").write_bytes(pickle.dumps(meta))
    assert said in refused(characters)


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps({"stoi": {"a": 0}})[:-3], b"\x80\x04\x8c\xff"])
def test_a_damaged_meta_pkl_is_one_line(characters, data):
    (characters / "meta.pkl").write_bytes(data)
    assert "meta.pkl: cannot be read" in refused(characters)


def test_only_bins_of_others_without_a_manifest_are_foreign(characters, tmp_path):
    assert is_foreign(characters)
    adopt(characters, "bpe", CONTEXT)
    assert is_foreign(characters)
    manifest = read_manifest(characters)
    del manifest["card"]["adopted"]
    (characters / "manifest.json").write_text(json.dumps(sealed(manifest)))
    assert not is_foreign(characters)
    (characters / "manifest.json").unlink()
    (characters / "val.bin").unlink()
    assert not is_foreign(characters)
    assert not is_foreign(tmp_path / "nowhere")


def test_a_plain_memory_map_loader_trains_on_our_bins(tmp_path, write_jsonl, story):
    """What nanoGPT's loader does: map the file, draw positions, take block_size ids and the same moved by one."""
    texts = [story(i) for i in range(80)]
    sources = {"stories": write_jsonl("stories", texts)}
    Corpus(str(tmp_path / "bins"), sources, vocab_size=300, context_length=CONTEXT, val_fraction=0.1).prepare()
    tokenizer = load(tmp_path / "bins")
    read = []
    for split in ("train", "val"):
        ids = np.memmap(tmp_path / "bins" / f"{split}.bin", dtype=np.uint16, mode="r")
        for at in np.random.default_rng(1).integers(0, len(ids) - CONTEXT, 50):
            inputs, targets = ids[at : at + CONTEXT].astype(np.int64), ids[at + 1 : at + 1 + CONTEXT].astype(np.int64)
            assert (inputs[1:] == targets[:-1]).all()
            assert targets.max() < tokenizer.vocab_size
        ends = np.flatnonzero(ids == tokenizer.end_of_text_id)
        read += [tokenizer.decode(piece.tolist()) for piece in np.split(ids, ends + 1)[:-1]]
    assert sorted(read) == sorted(texts)
