import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchlm.data.bins import Bin, read_manifest
from scratchlm.data.card import card_table, warnings_for
from scratchlm.data.preparation import Corpus
from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.files.lock import folder_lock
from scratchlm.text.cleaning import content_hash
from scratchlm.text.tokenizer import load

CONTEXT = 16
CLEANING = ["unicode", "whitespace", {"length": {"min_characters": 10}}]
SMALL = {"vocab_size": 300, "context_length": CONTEXT, "cleaning": CLEANING, "val_fraction": 0.05}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bins"


@pytest.fixture
def three(write_jsonl, story):
    """Three sources of unlike size and length of document, asked for in 4:4:2."""
    rng = np.random.default_rng(0)
    return {
        "short": {"uri": write_jsonl("short", [story(i, 8, 1) for i in range(300)]), "weight": 4},
        "long": {"uri": write_jsonl("long", [story(i, int(rng.integers(20, 400)), 2) for i in range(60)]), "weight": 4},
        "mid": {"uri": write_jsonl("mid", [story(i, 40, 3) for i in range(150)]), "weight": 2},
    }


def documents_of(folder, split):
    """(source, hash, ids with the end of text) of each document, in order."""
    bin_ = Bin(folder, split)
    ends = [*bin_.documents["start"][1:].tolist(), bin_.n_tokens]
    return [
        (int(row["source"]), int(row["hash"]), bin_.tokens[int(row["start"]) : end].tolist())
        for row, end in zip(bin_.documents, ends, strict=True)
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_bins_give_back_each_document_of_the_source_once(folder, write_jsonl, story):
    texts = [story(i) for i in range(200)]
    manifest = Corpus(str(folder), {"text": write_jsonl("text", texts)}, **SMALL).prepare()
    tokenizer = load(folder)
    written = [tokenizer.decode(ids) for split in ("train", "val") for _, _, ids in documents_of(folder, split)]
    assert sorted(written) == sorted(texts)
    assert all(ids[-1] == tokenizer.end_of_text_id for _, _, ids in documents_of(folder, "train"))
    assert manifest["card"]["sources"][0]["documents"]["train"] == len(documents_of(folder, "train"))
    assert manifest["vocab_size"] == tokenizer.vocab_size


def test_at_every_document_boundary_the_shares_hold(folder, three):
    Corpus(str(folder), three, total_tokens=30_000, **SMALL).prepare()
    tokens, longest = np.zeros(3), 0
    for source, _, ids in documents_of(folder, "train"):
        tokens[source] += len(ids)
        longest = max(longest, len(ids))
        assert np.abs(tokens - tokens.sum() * np.array([0.4, 0.4, 0.2])).max() <= 2 * longest
    assert 30_000 <= tokens.sum() < 30_000 + longest


def test_the_whole_corpus_has_the_shares_asked_for_within_a_hundredth(folder, write_jsonl, story):
    asked = {"one": 4, "two": 4, "three": 2}
    sources = {
        name: {"uri": write_jsonl(name, [story(i, 20 * seed, seed) for i in range(400)]), "weight": weight}
        for seed, (name, weight) in enumerate(asked.items(), 1)
    }
    manifest = Corpus(str(folder), sources, total_tokens=50_000, **SMALL).prepare()
    longest = max(len(ids) for _, _, ids in documents_of(folder, "train"))
    assert longest < 0.005 * 50_000
    for entry in manifest["card"]["sources"]:
        assert entry["achieved_share"] == pytest.approx(asked[entry["name"]] / 10, abs=0.01)


def test_a_source_too_small_for_its_share_is_told_before_anything_is_read(folder, three, capsys):
    Corpus(str(folder), three, total_tokens=200_000, **SMALL).prepare()
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if "data.sources.short: holds about" in line]
    assert re.search(r"holds about [\d.]+k tokens, which 4 passes make [\d.]+k of the 80k of its share", line)
    assert told.index(line) < told.index("tokenizer sample")


def test_a_dry_source_is_repeated_in_another_order_without_its_validation(folder, three):
    manifest = Corpus(str(folder), three, total_tokens=40_000, **SMALL).prepare()
    train = [hash_ for source, hash_, _ in documents_of(folder, "train") if source == 0]
    val = {hash_ for source, hash_, _ in documents_of(folder, "val") if source == 0}
    n = len(set(train))
    assert n + len(val) == 300
    assert val.isdisjoint(train)
    assert set(train[:n]) == set(train[n : 2 * n])
    assert train[:n] != train[n : 2 * n]
    short, long, _ = manifest["card"]["sources"]
    assert short["repetitions"] == pytest.approx(len(train) / n, rel=0.02)
    assert short["passes"] == -(-len(train) // n)
    assert short["documents"]["train"] == n
    assert long["passes"] == 1


def test_no_source_is_read_more_often_than_allowed_and_the_rest_goes_to_the_others(folder, three):
    manifest = Corpus(str(folder), three, total_tokens=200_000, max_repetitions=1, **SMALL).prepare()
    short, long, mid = manifest["card"]["sources"]
    assert [source["passes"] for source in (short, long, mid)] == [1, 1, 1]
    assert short["asked_share"] == 0.4
    assert short["achieved_share"] < 0.3
    assert "data.total_tokens=200000: the sources ran dry" in " ".join(manifest["card"]["warnings"])


def test_without_a_total_everything_is_used_once_and_in_the_ratio_while_it_lasts(folder, three):
    manifest = Corpus(str(folder), three, **SMALL).prepare()
    sources = manifest["card"]["sources"]
    assert [sum(source["documents"].values()) for source in sources] == [300, 60, 150]
    assert all(source["repetitions"] == 1 for source in sources)
    tokens, longest, left = np.zeros(3), 0, sources[0]["tokens"]["train"]
    for source, _, ids in documents_of(folder, "train"):
        tokens[source] += len(ids)
        longest = max(longest, len(ids))
        if tokens[0] == left:  # `short` is dry from here on
            break
        assert np.abs(tokens - tokens.sum() * np.array([0.4, 0.4, 0.2])).max() <= 2 * longest


def test_copies_are_dropped_across_sources_and_splits_and_in_every_pass(folder, write_jsonl, story):
    shared = [story(i) for i in range(40)]
    one = write_jsonl("one", shared + [story(i, seed=1) for i in range(40)] + shared[:20])
    two = write_jsonl("two", shared + [story(i, seed=2) for i in range(60)])
    manifest = Corpus(
        str(folder), {"one": one, "two": two}, total_tokens=40_000, **SMALL | {"val_fraction": 0.2}
    ).prepare()
    train, val = documents_of(folder, "train"), documents_of(folder, "val")
    assert {hash_ for _, hash_, _ in train}.isdisjoint(hash_ for _, hash_, _ in val)
    assert len({hash_ for _, hash_, _ in val}) == len(val)
    owners = {}
    for source, hash_, _ in train + val:
        assert owners.setdefault(hash_, source) == source
    assert len(owners) == 140
    assert sum(source["dropped"]["copy"] for source in manifest["card"]["sources"]) == 60
    repeated = [hash_ for source, hash_, _ in train if source == 0]
    n = len(set(repeated))
    assert len(set(repeated[n : 2 * n])) == n


def test_near_copies_stand_on_one_side_only(folder, write_jsonl, story):
    pytest.importorskip("rensa", reason="near copies need scratchlm[near]")
    texts = [story(i, 200) for i in range(120)]
    near = [text.replace(text.split()[60], "island", 1) for text in texts]  # another document by its hash
    assert len({content_hash(text) for text in texts + near}) == 240
    one = write_jsonl("one", texts + near[:60] + texts[:10])
    two = write_jsonl("two", near[60:] + [story(i, 200, 9) for i in range(40)])
    manifest = Corpus(
        str(folder), {"one": one, "two": two}, **SMALL | {"val_fraction": 0.3, "near_duplicates": 0.7}
    ).prepare()
    tokenizer = load(folder)
    numbers = {}
    for split in ("train", "val"):
        numbers[split] = [tokenizer.decode(ids).split(":")[0] for _, _, ids in documents_of(folder, split)]
    assert not set(numbers["train"]) & set(numbers["val"])
    assert sum(map(len, numbers.values())) == len(set(numbers["train"] + numbers["val"])) == 160
    dropped = [entry["dropped"] for entry in manifest["card"]["sources"]]
    assert sum(entry.get("copy", 0) + entry.get("near copy", 0) for entry in dropped) == 130


def test_validation_holds_every_source_and_of_each_about_its_fraction(folder, three):
    Corpus(str(folder), three, **SMALL | {"val_fraction": 0.2}).prepare()
    train, val = documents_of(folder, "train"), documents_of(folder, "val")
    for source in range(3):
        held_out = [hash_ for number, hash_, _ in val if number == source]
        tokens = sum(len(ids) for number, _, ids in val if number == source)
        assert tokens >= CONTEXT + 1
        n_all = len(held_out) + len({hash_ for number, hash_, _ in train if number == source})
        assert 0.08 < len(held_out) / n_all < 0.35


def test_which_documents_are_held_out_does_not_depend_on_their_order(folder, tmp_path, write_jsonl, story):
    texts = [story(i) for i in range(400)]
    first = Corpus(str(folder), {"a": write_jsonl("a", texts)}, **SMALL | {"val_fraction": 0.1})
    other = Corpus(
        str(tmp_path / "other"), {"a": write_jsonl("b", texts[::-1])}, **SMALL | {"val_fraction": 0.1, "seed": 7}
    )
    first.prepare(), other.prepare()
    held_out = [{hash_ for _, hash_, _ in documents_of(made, "val")} for made in (folder, tmp_path / "other")]
    by_hash = {content_hash(text) for text in texts if content_hash(text) / 2**64 < 0.1}
    assert all(by_hash <= hashes and len(hashes - by_hash) <= 3 for hashes in held_out)


def test_a_test_split_is_made_on_request_and_shares_nothing(folder, three):
    Corpus(str(folder), three, test_fraction=0.1, **SMALL).prepare()
    hashes = [{hash_ for _, hash_, _ in documents_of(folder, split)} for split in ("train", "val", "test")]
    assert all(hashes)
    assert sum(map(len, hashes)) == len(set.union(*hashes)) == 510
    for source in range(3):
        assert sum(len(ids) for number, _, ids in documents_of(folder, "test") if number == source) > CONTEXT


def test_a_tail_split_cuts_one_text_at_its_fraction(folder, tmp_path, story):
    text = "\n".join(story(i) for i in range(100))
    (tmp_path / "text.txt").write_text(text)
    manifest = Corpus(
        str(folder),
        {"text": str(tmp_path / "text.txt")},
        tokenizer="char",
        split="tail",
        val_fraction=0.1,
        test_fraction=0.05,
        context_length=64,
    ).prepare()
    tokenizer = load(folder)
    parts = [tokenizer.decode(Bin(folder, split).tokens.tolist()) for split in ("train", "val", "test")]
    assert "".join(parts) == text
    assert len(parts[0]) == int(len(text) * (1 - 0.1 - 0.05))
    assert len(parts[2]) == pytest.approx(0.05 * len(text), abs=1)
    assert manifest["card"]["characters"] == len(text)
    assert tokenizer.kind == "char"


def test_a_tail_split_repeats_the_training_part_only(folder, write_jsonl, story):
    texts = [story(i) for i in range(50)]
    Corpus(
        str(folder), {"a": write_jsonl("a", texts)}, split="tail", total_tokens=10_000, **SMALL | {"val_fraction": 0.2}
    ).prepare()
    train, val = documents_of(folder, "train"), documents_of(folder, "val")
    assert len(val) == 50
    assert len(train) > 100
    pieces = {}
    for _, hash_, ids in train:
        assert pieces.setdefault(hash_, ids) == ids
    tokenizer = load(folder)
    whole = {tokenizer.decode(pieces[hash_]) + tokenizer.decode(ids) for _, hash_, ids in val}
    assert whole == set(texts)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_same_settings_and_sources_give_the_same_bytes(tmp_path, three, kind):
    made = []
    for name in ("one", "two", "three", "four"):
        folder = tmp_path / name
        settings = SMALL | {"sources": three, "tokenizer": kind, "total_tokens": 20_000}
        code = f"from scratchlm.data.preparation import Corpus; Corpus({str(folder)!r}, **{settings!r}).prepare()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        made.append(
            {
                name: hashlib.sha256(data).hexdigest()
                for name, data in contents(folder).items()
                if name != "prepare.lock"
            }
        )
    assert made[0] == made[1]
    assert {"train.bin", "val.bin", "train.docs.npy", "val.docs.npy", "tokenizer.json", "manifest.json"} <= set(made[0])


def test_another_seed_gives_another_order_of_the_same_documents(tmp_path, write_jsonl, story):
    source = {"a": write_jsonl("a", [story(i) for i in range(100)])}
    orders = []
    for seed in (1, 2):
        Corpus(str(tmp_path / str(seed)), source, seed=seed, **SMALL).prepare()
        orders.append(
            [hash_ for split in ("train", "val") for _, hash_, _ in documents_of(tmp_path / str(seed), split)]
        )
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])


def test_preparing_imports_no_torch():
    code = "import sys, scratchlm.data.preparation, scratchlm.data.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def prepared(folder, three):
    Corpus(str(folder), three, **SMALL).prepare()
    return folder


def test_a_finished_folder_is_left_as_it_is(prepared, three, capsys):
    before = contents(prepared)
    capsys.readouterr()
    manifest = Corpus(str(prepared), three, **SMALL | {"context_length": 8}).prepare()
    assert contents(prepared) == before
    assert manifest == read_manifest(prepared)
    assert capsys.readouterr().err == f"scratchlm: {prepared}: finished before, as asked for; nothing to do\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, r"data.seed=2: .* were made with 1\. .*another data.folder.*prepare --fresh true"),
        ({"vocab_size": 299, "seed": 2}, r"data.vocab_size=299: .* were made with 300"),
        ({"total_tokens": 5000}, r"data.total_tokens=5000: .* were made with None"),
    ],
)
def test_other_settings_are_refused_by_the_first_key_that_differs(prepared, three, change, said):
    before = contents(prepared)
    with pytest.raises(BadValue, match=said):
        Corpus(str(prepared), three, **SMALL | change).prepare()
    assert contents(prepared) == before


def test_other_sources_are_refused_by_name(prepared, three):
    three["mid"]["weight"] = 3
    with pytest.raises(BadValue, match=r"data.sources.mid.weight=3.0: .* were made with 2.0"):
        Corpus(str(prepared), three, **SMALL).prepare()
    del three["mid"]
    with pytest.raises(BadValue, match=r"data.sources.mid.uri=None"):
        Corpus(str(prepared), three, **SMALL).prepare()


def test_fresh_makes_them_anew_and_leaves_nothing_of_the_old(folder, three):
    Corpus(str(folder), three, test_fraction=0.1, **SMALL).prepare()
    (folder / "notes.txt").write_text("mine")
    Corpus(str(folder), three, tokenizer="char", **SMALL).prepare(fresh=True)
    assert set(contents(folder)) == {
        *("train.bin", "train.docs.npy", "val.bin", "val.docs.npy", "tokenizer.json", "manifest.json"),
        *("prepare.lock", "notes.txt"),
    }
    assert read_manifest(folder)["settings"]["tokenizer"] == "char"


def test_text_that_changed_behind_finished_bins_is_told_and_lost_text_is_not(prepared, three, capsys):
    before = contents(prepared)
    short, long = Path(three["short"]["uri"]), Path(three["long"]["uri"])
    short.write_text(short.read_text() + '{"text": "one more"}\n')
    long.unlink()
    capsys.readouterr()
    Corpus(str(prepared), three, **SMALL).prepare()
    assert capsys.readouterr().err == (
        f"scratchlm: {prepared}: finished before, as asked for; nothing to do\n"
        f"scratchlm: warning: data.sources.short: {short} has changed since the bins were made; "
        "make them anew with scratchlm prepare --fresh true -c YOUR.yaml\n"
    )
    assert contents(prepared) == before


def test_a_tokenizer_that_changed_behind_finished_bins_is_told(prepared, tmp_path, three, capsys):
    adopted = tmp_path / "adopted.json"
    adopted.write_bytes((prepared / "tokenizer.json").read_bytes())
    again = Corpus(str(tmp_path / "again"), three, tokenizer=str(adopted), **SMALL)
    again.prepare()
    capsys.readouterr()
    again.prepare()
    assert capsys.readouterr().err == f"scratchlm: {tmp_path / 'again'}: finished before, as asked for; nothing to do\n"
    adopted.write_text(adopted.read_text() + "\n")
    again.prepare()
    assert f"warning: data.tokenizer: {adopted} has changed since" in capsys.readouterr().err
    adopted.unlink()
    again.prepare()
    assert capsys.readouterr().err == f"scratchlm: {tmp_path / 'again'}: finished before, as asked for; nothing to do\n"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["train.bin", "test.docs.npy", "tokenizer.json", "merges.txt"])
def test_a_file_of_someone_else_is_never_overwritten(folder, three, name, fresh):
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(BadValue, match=rf"^data.folder=.*bins: holds {name}, which is not .* Name another folder\.$"):
        Corpus(str(folder), three, **SMALL).prepare(fresh=fresh)
    assert contents(folder) == {name: b"mine"}


def test_fresh_removes_only_what_the_old_bins_were(folder, three):
    settings = SMALL | {"test_fraction": 0.2}
    Corpus(str(folder), three, **settings).prepare()
    for name in ("weights.bin", "other.docs.npy"):
        (folder / name).write_text("mine")
    Corpus(str(folder), three, **SMALL, tokenizer="char").prepare(fresh=True)
    assert set(contents(folder)) == {
        *("weights.bin", "other.docs.npy", "train.bin", "train.docs.npy", "val.bin", "val.docs.npy"),
        *("tokenizer.json", "manifest.json", "prepare.lock"),
    }
    assert (folder / "weights.bin").read_text() == "mine"


@pytest.mark.parametrize("damage", ["", "{}", '{"format_version": 1, "files": 3}'])
def test_fresh_works_where_the_manifest_is_damaged(prepared, three, damage):
    (prepared / "manifest.json").write_text(damage)
    with pytest.raises(BrokenState, match="--fresh true"):
        Corpus(str(prepared), three, **SMALL).prepare()
    manifest = Corpus(str(prepared), three, **SMALL).prepare(fresh=True)
    assert read_manifest(prepared) == manifest


def test_a_folder_where_a_bin_belongs_is_one_line(prepared, three):
    (prepared / "val.bin").unlink()
    (prepared / "val.bin").mkdir()
    with pytest.raises(BadValue, match=r"holds val\.bin"):
        Corpus(str(prepared), three, **SMALL).prepare(fresh=True)
    assert (prepared / "train.bin").exists()


def test_a_file_where_the_new_bins_are_written_is_one_line(folder, three):
    folder.mkdir()
    (folder / ".partial").write_text("mine")
    with pytest.raises(BrokenState, match=r"\.partial: cannot be written"):
        Corpus(str(folder), three, **SMALL).prepare()


def test_an_adopted_tokenizer_may_not_lie_where_it_would_be_replaced(prepared, three):
    for name in (prepared, prepared / "tokenizer.json", prepared / ".." / "bins" / "vocab.json"):
        with pytest.raises(BadValue, match=r"^data.tokenizer=.*: lies in data.folder=.* Copy it"):
            Corpus(str(prepared), three, **SMALL, tokenizer=str(name))


def test_a_damaged_folder_is_not_taken_for_finished(prepared, three):
    (prepared / "val.bin").write_bytes(b"")
    with pytest.raises(BrokenState, match=r"val.bin: 0 bytes.*--fresh true"):
        Corpus(str(prepared), three, **SMALL).prepare()


def test_what_a_process_left_that_was_killed_at_once_is_cleared_away(folder, three):
    (folder / ".partial").mkdir(parents=True)
    (folder / ".partial" / ".plan.json.partial-77").write_bytes(b"{")
    Corpus(str(folder), three, **SMALL).prepare()
    assert not (folder / ".partial").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_someone_else_that_is_called_as_ours_is_left_alone(folder, three, fresh):
    (folder / ".partial").mkdir(parents=True)
    (folder / ".partial" / "precious").write_text("mine")
    with pytest.raises(BadValue, match=r"holds \.partial, which is not of scratchlm's making"):
        Corpus(str(folder), three, **SMALL).prepare(fresh=fresh)
    assert contents(folder) == {"precious": b"mine"}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_manifest_of_someone_else_is_left_alone(folder, three, fresh):
    folder.mkdir()
    for name, text in (("manifest.json", '{"name": "a web extension"}'), ("vocab.json", "{}")):
        (folder / name).write_text(text)
    with pytest.raises(BadValue, match=r"holds manifest\.json, which is not of scratchlm's making"):
        Corpus(str(folder), three, **SMALL).prepare(fresh=fresh)
    assert set(contents(folder)) == {"manifest.json", "vocab.json"}


@pytest.mark.parametrize("name", ["x" * 300, "/proc/bins"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, three, name):
    with pytest.raises(BrokenState, match="cannot be written"):
        Corpus(str(tmp_path / name), three, **SMALL).prepare()


def test_two_processes_do_not_write_one_folder(folder, three):
    with folder_lock(folder, "prepare.lock"), pytest.raises(BrokenState, match="in use by process"):
        Corpus(str(folder), three, **SMALL).prepare()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sources": None}, r"data.sources: no source.*--data.sources '\{text: input.txt\}'"),
        ({"sources": {}}, r"data.sources: no source"),
        ({"vocab_size": 100}, r"data.vocab_size=100: .*260.*65536"),
        ({"vocab_size": 70_000}, r"data.vocab_size=70000: .*uint16"),
        ({"min_frequency": 0}, r"data.min_frequency=0: too small"),
        ({"total_tokens": 0}, r"data.total_tokens=0: too small"),
        ({"shuffle_documents": -1}, r"data.shuffle_documents=-1: too small"),
        ({"val_fraction": 0}, r"data.val_fraction=0: not a part"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"data.test_fraction=0.5: leaves nothing.*data.val_fraction=0.5"),
        ({"split": "random"}, r"data.split=random: no such split"),
        ({"n_processes": 0}, r"data.n_processes=0: too small"),
        ({"retry_seconds": -1.0}, r"data.retry_seconds=-1.0: too small. Give a number, 0 or more"),
        ({"near_duplicates": 1.5}, r"data.near_duplicates=1.5: cannot be told apart"),
        ({"cleaning": ["whitespaces"]}, r"data.cleaning: step 1.*whitespaces"),
        ({"sources": {"x": "s3://bucket"}}, r"data.sources.x: .*cannot be opened"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_opened(values, said):
    with pytest.raises(BadValue, match=said):
        Corpus("bins", **{"sources": {"text": "input.txt"}, **values})


def test_a_folder_without_a_name_is_refused():
    with pytest.raises(BadValue, match=r"^data\.folder=: names no folder\. Give"):
        Corpus("", {"a": "a.txt"})


def test_all_bad_values_are_reported_at_once():
    with pytest.raises(BadValue, match=r"data.min_frequency=0.*\n.*data.max_repetitions=0"):
        Corpus("bins", {"text": "input.txt"}, min_frequency=0, max_repetitions=0)


def mishaps(write_jsonl, tmp_path, story):
    good = write_jsonl("good", [story(i) for i in range(50)])
    (tmp_path / "bad.jsonl").write_bytes(
        b"".join(b'{"text": "%s"}\n' % story(i).encode() for i in range(30)) + b'{"text": "\xff"}\n'
    )
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text(story(0, 2000))
    return {
        "missing": ({"a": good, "b": str(tmp_path / "no.txt")}, MissingFile, r"data.sources.b: no file"),
        "column": ({"a": {"uri": good, "text_column": "body"}}, BadValue, r"data.sources.a: .*no column 'body'.*text"),
        "utf8": ({"a": good, "b": str(tmp_path / "bad.jsonl")}, BadValue, r"data.sources.b: .*not UTF-8: line 31"),
        "empty": (
            {"a": good, "b": str(tmp_path / "empty.txt")},
            BadValue,
            r"data.sources.b: no document left.*1 too short",
        ),
        "short": (
            {"a": write_jsonl("few", ["too", "short"])},
            BadValue,
            r"no document left.*2 too short.*min_characters. of data.cleaning drop less",
        ),
        "one": (
            {"a": str(tmp_path / "one.txt")},
            BadValue,
            r"1 document with [\d,]+ tokens.*window takes 17.*data.split=tail",
        ),
        "all bad": (
            {"a": write_jsonl("fewer", ["x"]), "b": str(tmp_path / "empty.txt")},
            BadValue,
            r"(?s)sources.a: no.*sources.b: no",
        ),
    }


MISHAPS = ("missing", "column", "utf8", "empty", "short", "one", "all bad")


@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.parametrize("state", ["absent", "present", "finished"])
def test_a_mishap_is_one_line_and_leaves_the_folder_as_it_was(folder, write_jsonl, tmp_path, mishap, state, story):
    sources, kind, said = mishaps(write_jsonl, tmp_path, story)[mishap]
    if state == "present":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    if state == "finished":
        Corpus(str(folder), {"a": write_jsonl("old", [story(i) for i in range(40)])}, **SMALL).prepare()
    before = contents(folder) if state != "absent" else None
    with pytest.raises(kind, match=said) as caught:
        Corpus(str(folder), sources, **SMALL).prepare(fresh=True)
    assert isinstance(caught.value, UserError)
    assert "\n\n" not in str(caught.value)
    if before is None:
        assert not folder.exists()
    else:
        before.pop("prepare.lock", None)
        after = contents(folder)
        after.pop("prepare.lock", None) if state == "finished" else None
        assert after == before


def test_a_tail_too_short_for_one_window_is_refused_with_its_numbers(folder, tmp_path, story):
    (tmp_path / "text.txt").write_text(story(0, 100))
    corpus = Corpus(
        str(folder),
        {"text": str(tmp_path / "text.txt")},
        tokenizer="char",
        split="tail",
        val_fraction=0.1,
        context_length=256,
    )
    with pytest.raises(
        BadValue,
        match=r"data.sources.text: val.bin would hold \d+ of its \d+ tokens.*one window takes 257.*context_length=256",
    ):
        corpus.prepare()
    assert not folder.exists()


def test_too_little_to_train_on_is_refused_with_its_numbers(folder, write_jsonl, story):
    source = {"a": write_jsonl("a", [story(0, 300), "just a little bit"])}
    with pytest.raises(BadValue, match=r"train.bin would hold \d+ tokens, and one window takes 101"):
        Corpus(str(folder), source, **SMALL | {"context_length": 100, "shuffle_documents": 0}).prepare()
    assert not folder.exists()


def test_a_corpus_larger_than_the_disk_is_refused_before_it_is_read(folder, tmp_path):
    (tmp_path / "large.txt").touch()
    os.truncate(tmp_path / "large.txt", 8 * 10**12)  # sparse: it takes no space itself
    source = {"uri": str(tmp_path / "large.txt"), "separator": "---"}
    with pytest.raises(BrokenState, match="bytes are needed"):
        Corpus(str(folder), {"a": source}, total_tokens=10**15, **SMALL).prepare()
    assert not folder.exists()


def test_a_full_disk_names_the_bytes_needed_and_the_same_call_goes_on(folder, tmp_path, three):
    code = f"""
import resource
from scratchlm.data.preparation import Corpus
from scratchlm.errors import BrokenState
corpus = Corpus({str(folder)!r}, {three!r}, **{SMALL!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # below train.bin, above tokenizer.json
try:
    corpus.prepare()
except BrokenState as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(rf"{folder}: no space left; about [\d,]+ bytes more are needed, and [\d,]+ are free", done.stdout)
    assert not (folder / "manifest.json").exists()
    Corpus(str(folder), three, **SMALL).prepare()
    Corpus(str(tmp_path / "whole"), three, **SMALL).prepare()
    made, whole = contents(folder), contents(tmp_path / "whole")
    assert {name: made[name] for name in made if name != "prepare.lock"} == {
        name: whole[name] for name in whole if name != "prepare.lock"
    }


def test_an_adopted_tokenizer_is_kept_to_the_byte(prepared, tmp_path, three):
    manifest = Corpus(str(tmp_path / "again"), three, tokenizer=str(prepared), **SMALL).prepare()
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (prepared / "tokenizer.json").read_bytes()
    assert manifest["tokenizer_sha256"] == read_manifest(prepared)["tokenizer_sha256"]


def test_a_tokenizer_that_is_not_there_is_one_line(folder, three):
    with pytest.raises(MissingFile, match=r"data.tokenizer=nowhere.json"):
        Corpus(str(folder), three, tokenizer="nowhere.json", **SMALL).prepare()
    assert not folder.exists()


def test_the_tokenizer_learns_from_a_bounded_sample_shared_by_the_weights(tmp_path, write_jsonl):
    latin = write_jsonl("latin", [f"{i} " + "abcdefgh " * 200 for i in range(50)])
    greek = write_jsonl("greek", [f"{i} " + "αβγδεζηθ " * 200 for i in range(50)])
    sources = {"latin": {"uri": latin, "weight": 1}, "greek": {"uri": greek, "weight": 3}}
    tokenizer = []
    for n_bytes in (4_000, 100_000):
        made = tmp_path / str(n_bytes)
        Corpus(str(made), sources, tokenizer_sample_bytes=n_bytes, **SMALL | {"min_frequency": 400}).prepare()
        tokenizer.append(load(made))
    # 1,000 bytes of Latin hold 111 of these words, 25,000 hold 2,777; 3,000 bytes of Greek hold 176.
    assert [len(t.encode(" abcdefgh")) for t in tokenizer] == [9, 1]


def test_a_character_tokenizer_sees_all_text(folder, write_jsonl, story):
    texts = [story(i) for i in range(300)]
    texts[-1] += " Ω"
    sources = {"a": write_jsonl("a", texts)}
    Corpus(str(folder), sources, tokenizer="char", tokenizer_sample_bytes=100, shuffle_documents=0, **SMALL).prepare()
    assert "Ω" in load(folder).decode(Bin(folder, "train").tokens.tolist())


def test_the_card_table_shows_what_was_asked_and_what_was_achieved(folder, three):
    manifest = Corpus(str(folder), three, total_tokens=30_000, **SMALL).prepare()
    table = card_table(manifest)
    short = next(line for line in table.splitlines() if line.startswith("short"))
    assert "40.0%" in short
    assert f"{manifest['card']['sources'][0]['repetitions']:.2f} x" in short
    assert f"{manifest['card']['sources'][0]['tokens']['train']:,}" in short
    train = documents_of(folder, "train")
    tokenizer = load(folder)
    first = next(ids for source, _, ids in train if source == 0)
    last = next(ids for source, _, ids in reversed(train) if source == 0)
    assert f"  {tokenizer.decode(first[:12])!r} ... {tokenizer.decode(last[-13:])!r}" in table
    entry = manifest["card"]["sources"][0]
    written = {hash_: ids for source, hash_, ids in train + documents_of(folder, "val") if source == 0}
    n_words = sum(len(tokenizer.decode(ids).split()) for ids in written.values())
    assert entry["words"] == n_words
    assert entry["tokens_a_word"] == round(sum(len(ids) - 1 for ids in written.values()) / n_words, 3)
    assert f"{entry['tokens_a_word']:.2f}" in short
    assert f"short: {three['short']['uri']}; licence: not known; dropped: none" in table
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_small_corpus_is_warned_of_and_the_warning_names_the_cure(folder, write_jsonl, story, capsys):
    sources = {name: write_jsonl(name, [story(i, 40, seed) for i in range(50)]) for seed, name in enumerate("abc")}
    Corpus(str(folder), sources, **SMALL).prepare()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scratchlm: warning: ")]
    assert len(lines) == 2
    assert "memorise" in lines[0]
    assert "1,000,000 characters" in lines[0]
    assert "3 sources" in lines[1]
    manifest = read_manifest(folder)
    assert [f"scratchlm: warning: {warning}" for warning in manifest["card"]["warnings"]] == lines
    assert warnings_for(manifest, CONTEXT) == manifest["card"]["warnings"]


SHARES = ("asked_share", "achieved_share")


def test_shares_that_nobody_holds_are_told_with_their_cure(folder, three, capsys):
    Corpus(str(folder), three, **SMALL).prepare()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "data.total_tokens is not set" in line]
    assert re.search(r"so (\w+) has \d+% of the tokens and not [24]0%\. Set data.total_tokens", line)


@pytest.mark.parametrize(
    ("n_tokens", "n_characters", "n_sources", "n_warnings"),
    [
        (10_000, 200_000, 2, 0),
        (9_999, 200_000, 2, 1),
        (10_000, 99_999, 1, 1),
        (10_000, 199_999, 2, 1),
        (5_000, 50_000, 2, 2),
    ],
)
def test_warnings_begin_where_they_are_said_to(n_tokens, n_characters, n_sources, n_warnings):
    card = {
        "sources": [{"name": "one", "tokens": {"train": 900, "val": 100}, **dict.fromkeys(SHARES, 1 / n_sources)}]
        * n_sources,
        "tokens": {"train": n_tokens},
        "characters": n_characters,
        "asked_tokens": None,
        "val_fraction": 0.1,
    }
    assert len(warnings_for({"card": card}, 100)) == n_warnings


def test_a_few_long_documents_that_validation_swallows_are_warned_of(folder, tmp_path, capfd):
    for name in ("one", "two", "three", "four"):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"{name} {n}" for n in range(20_000)))
    Corpus(str(folder), {"notes": str(tmp_path / "*.txt")}, **SMALL).prepare()
    assert "of source 'notes'" in capfd.readouterr().err


def test_progress_says_tokens_and_megabytes_a_second(folder, three, capfd):
    Corpus(str(folder), three, **SMALL).prepare()
    shown = capfd.readouterr().err
    assert "tokens/s" in shown
    assert "MB/s" in shown


def test_the_builtin_sources_mix_as_asked(folder):
    sources = {"docs": {"uri": "builtin:python-docs", "weight": 4}, "tales": {"uri": "builtin:tiny-tales", "weight": 2}}
    manifest = Corpus(
        str(folder), sources, total_tokens=150_000, vocab_size=500, context_length=64, tokenizer_sample_bytes=200_000
    ).prepare()
    docs, tales = manifest["card"]["sources"]
    assert docs["achieved_share"] == pytest.approx(2 / 3, abs=0.05)
    assert tales["licence"]
    assert Path(folder / "train.bin").stat().st_size == 2 * manifest["card"]["tokens"]["train"]
