import json
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from scratchlm.data.bins import Bin, read_manifest, sealed
from scratchlm.data.preparation import Corpus
from scratchlm.data.pretraining import PretrainingData
from scratchlm.data.windows import window_starts
from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.files.whole import sha256
from scratchlm.text.tokenizer import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # lightning 2.6 under torch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # the strided gather needs none
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),  # a resumed run goes on in its folder
]

CONTEXT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory, story):
    folder = tmp_path_factory.mktemp("bins")
    sources = {}
    for seed, name in enumerate(("one", "two")):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": story(i, 5 + i % 7, seed)}) + "\n" for i in range(60)))
        sources[name] = str(path)
    Corpus(
        str(folder / "bins"),
        sources,
        vocab_size=280,
        context_length=CONTEXT,
        val_fraction=0.1,
        test_fraction=0.1,
        cleaning=["unicode", "whitespace", {"length": {"min_characters": 1}}],
    ).prepare()
    return folder / "bins"


def data_of(folder, **values):
    values = {
        "context_length": CONTEXT,
        "micro_batch_size": 2,
        "global_batch_size": 2,
        "sources": {"x": "x.txt"},
    } | values
    return PretrainingData(str(folder), **values)


class Witness(pl.LightningModule):
    """Learns nothing, and notes the first ids of every row that it is shown."""

    def __init__(self, die_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.die_at = die_at
        self.trained, self.scored = [], []

    def training_step(self, batch, number):
        if number == self.die_at:
            raise RuntimeError("killed")
        assert batch["inputs_BT"].dtype == batch["targets_BT"].dtype == torch.int64
        assert batch["inputs_BT"][:, 1:].equal(batch["targets_BT"][:, :-1])
        self.trained.append((number, batch["inputs_BT"].tolist()))
        return self.weight.sum()

    def validation_step(self, batch, number):
        self.scored.append((batch["inputs_BT"].tolist(), batch["targets_BT"].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer_of(tmp_path, accumulate=1, max_steps=12, **values):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    return pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        callbacks=[saver],
        val_check_interval=3 * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **values,
    )


def rows_of(folder, sequences, **values):
    """What the sequences of these numbers hold, said in plain Python."""
    tokens = np.memmap(folder / "train.bin", np.uint16)
    starts = window_starts(np.array(sequences), len(tokens), CONTEXT, seed=1, **values)
    return [tokens[start : start + CONTEXT].tolist() for start in starts]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_and_resumed_run_sees_the_same_batches(folder, tmp_path, workers, accumulate):
    values = {"global_batch_size": 2 * accumulate, "num_workers": workers}
    undisturbed = Witness()
    trainer_of(tmp_path / "whole", accumulate).fit(undisturbed, data_of(folder, **values))

    killed, resumed = Witness(die_at=7 * accumulate + accumulate - 1), Witness()
    with pytest.raises(RuntimeError, match="killed"):
        trainer_of(tmp_path / "parts", accumulate).fit(killed, data_of(folder, **values))
    data = data_of(folder, **values)
    last = tmp_path / "parts" / "step=6.ckpt"
    trainer_of(tmp_path / "parts", accumulate).fit(resumed, data, ckpt_path=last, weights_only=True)

    assert len(undisturbed.trained) == 12 * accumulate
    assert resumed.trained == undisturbed.trained[6 * accumulate :]
    assert killed.trained == undisturbed.trained[: 8 * accumulate - 1]
    assert len(undisturbed.scored) == 4 * len(data.val_dataloader())
    assert resumed.scored == undisturbed.scored[len(undisturbed.scored) // 2 :]
    assert data.sequences == 12 * 2 * accumulate
    assert [row for _, rows in undisturbed.trained for row in rows] == rows_of(folder, range(12 * 2 * accumulate))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_together_what_one_sees(folder, workers, monkeypatch):
    def rows(world, rank, n_batches, micro_batch_size):
        data = data_of(folder, micro_batch_size=micro_batch_size, global_batch_size=8, num_workers=workers)
        monkeypatch.setattr(PretrainingData, "_place", (world, rank))
        batches = iter(data.train_dataloader())
        return [data.on_after_batch_transfer(next(batches), 0)["inputs_BT"].tolist() for _ in range(n_batches)]

    together = [rows(2, rank, 12, 2) for rank in (0, 1)]
    joined = [row for pair in zip(*together, strict=True) for rows in pair for row in rows]
    alone = [row for rows in rows(1, 0, 6, 8) for row in rows]
    assert joined == alone == rows_of(folder, range(48))


def test_an_epoch_sees_every_window_once(folder):
    data = data_of(folder, micro_batch_size=1, global_batch_size=1)
    batches = iter(data.train_dataloader())
    tokens = Bin(folder, "train").tokens
    seen = [
        tuple(data.on_after_batch_transfer(next(batches), 0)["inputs_BT"][0].tolist())
        for _ in range(data.sequences_per_epoch)
    ]
    starts = window_starts(np.arange(data.sequences_per_epoch), len(tokens), CONTEXT, 1)
    assert sorted(seen) == sorted(tuple(tokens[start : start + CONTEXT].tolist()) for start in starts)


@pytest.mark.parametrize("values", [{"windows": "random"}, {"stride_tokens": 3}])
def test_windows_can_be_drawn_or_overlap(folder, values):
    batch = next(iter(data_of(folder, **values).train_dataloader()))
    said = {"mode": values["windows"]} if "windows" in values else values
    assert data_of(folder).on_after_batch_transfer(batch, 0)["inputs_BT"].tolist() == rows_of(folder, [0, 1], **said)


@pytest.mark.parametrize(("device", "n_bytes"), [("cpu", 8), ("cuda", 2)])
def test_ids_above_32767_survive_the_journey_and_travel_in_16_bits(tmp_path, folder, device, n_bytes, monkeypatch):
    monkeypatch.setattr(PretrainingData, "_device", device)
    ids = (np.arange(40, dtype=np.uint16) + 65_496).tolist()
    made = tmp_path / "bins"
    made.mkdir()
    for file in folder.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    n = Bin(folder, "train").n_tokens
    np.resize(np.array(ids, np.uint16), n).tofile(made / "train.bin")
    data = data_of(made)
    monkeypatch.setattr(data, "_loader", lambda batches: batches)  # pinned memory needs the device
    batch = next(iter(data.train_dataloader()))
    assert batch["ids_BT"].element_size() == n_bytes
    batch = data.on_after_batch_transfer(batch, 0)
    assert batch["inputs_BT"].dtype == torch.int64
    assert batch["inputs_BT"].min() >= 65_496
    assert batch["targets_BT"].max() <= 65_535


@pytest.mark.parametrize(
    ("world", "micro_batch_size", "workers"), [(1, 1, 0), (1, 3, 0), (2, 3, 0), (2, 3, 2), (3, 2, 0)]
)
@pytest.mark.parametrize("split", ["val", "test"])
def test_every_target_is_scored_exactly_once_with_the_source_of_its_document(
    folder, split, world, micro_batch_size, workers, monkeypatch
):
    bin_ = Bin(folder, split)
    sources = np.zeros(bin_.n_tokens, int)
    for row, end in zip(bin_.documents, [*bin_.documents["start"][1:], bin_.n_tokens], strict=True):
        sources[int(row["start"]) : int(end)] = row["source"]
    scored, lengths = {}, set()
    for rank in range(world):
        data = data_of(folder, micro_batch_size=micro_batch_size, global_batch_size=12, num_workers=workers)
        monkeypatch.setattr(PretrainingData, "_place", (world, rank))
        batches = list(data.val_dataloader() if split == "val" else data.test_dataloader())
        lengths.add(len(batches))
        row = 0
        for batch in batches:
            assert batch["source_BT"].dtype == torch.uint8
            for inputs, targets, of_source in zip(
                *(batch[key].tolist() for key in ("inputs_BT", "targets_BT", "source_BT")), strict=True
            ):
                window = row * world + rank
                for t, target in enumerate(targets):
                    if target != -100:
                        position = window * CONTEXT + t + 1
                        assert position not in scored
                        assert inputs[t] == bin_.tokens[position - 1]
                        scored[position] = (target, of_source[t])
                row += 1
    assert len(lengths) == 1
    assert scored == {p: (int(bin_.tokens[p]), int(sources[p])) for p in range(1, bin_.n_tokens)}
    assert {source for _, source in scored.values()} == {0, 1}


def test_what_goes_to_a_worker_carries_no_tokens(folder):
    for loader in (data_of(folder).train_dataloader(), data_of(folder).val_dataloader()):
        next(iter(loader))
        assert len(pickle.dumps(loader.dataset)) < 1000


def test_loading_draws_nothing_from_the_global_generator(folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = data_of(folder)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_facts_are_plain_and_fit_the_bins(folder):
    data, manifest, tokenizer = data_of(folder), read_manifest(folder), load(folder)
    facts = data.facts
    assert facts == json.loads(json.dumps(facts))
    assert data.vocab_size == facts["vocab_size"] == manifest["vocab_size"] == tokenizer.vocab_size
    assert facts["tokenizer"] == tokenizer.to_json()
    assert facts["sources"] == ["one", "two"]
    assert facts["card"] == manifest["card"]
    tokens = Bin(folder, "train").tokens.tolist()
    assert sum(facts["bytes_of_ids"][id] for id in tokens) == len(tokenizer.decode(tokens).encode())
    assert facts["context_length"] == CONTEXT
    assert facts["global_batch_size"] == 2
    assert facts["order"] == data.order
    assert data.order["val.bin"] == manifest["files"]["val.bin"]["sha256"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"micro_batch_size": 0}, r"data.micro_batch_size=0: too small"),
        ({"stride_tokens": 0}, r"data.stride_tokens=0: too small"),
        ({"num_workers": -1}, r"data.num_workers=-1: too small"),
        ({"windows": "sorted"}, r"data.windows=sorted: no such order"),
        (
            {"micro_batch_size": 4, "global_batch_size": 10},
            r"global_batch_size=10: not a multiple.*size=4.*that works is 8",
        ),
        ({"sources": None}, r"data.sources"),
    ],
)
def test_values_that_cannot_work_are_refused_at_construction(values, said):
    with pytest.raises(BadValue, match=said):
        data_of("nowhere", **values)


def test_auto_is_found_by_the_command_and_refused_where_batches_are_made_by_hand(folder):
    data = data_of(folder, micro_batch_size="auto", global_batch_size=12)
    assert data.micro_batch_sizes(1) == [1, 2, 3, 4, 6, 12]
    assert data.micro_batch_sizes(2) == [1, 2, 3, 6]
    with pytest.raises(BadValue, match=r"global_batch_size=12: cannot be shared by 5 processes.*works is 10"):
        data.micro_batch_sizes(5)
    for batches in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(BadValue, match=r"^data.micro_batch_size=auto: .*scratchlm fit.* whole number\.$"):
            batches()


def test_batch_sizes_must_divide_over_the_processes(folder, monkeypatch):
    monkeypatch.setattr(PretrainingData, "_place", (3, 0))
    with pytest.raises(BadValue, match=r"data.global_batch_size=4: .*micro_batch_size=2 times 3 processes.*works is 6"):
        data_of(folder, global_batch_size=4).train_dataloader()


def test_a_trainer_that_accumulates_otherwise_is_refused(folder, tmp_path):
    with pytest.raises(BadValue, match=r"trainer.accumulate_grad_batches=1: 2 micro-batches make a step"):
        trainer_of(tmp_path).fit(Witness(), data_of(folder, global_batch_size=4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, r"data.seed=2: the checkpoint was trained with 1"),
        ({"windows": "random"}, r"data.windows=random: the checkpoint was trained with shuffled"),
        ({"stride_tokens": 4}, r"data.stride_tokens=4: the checkpoint was trained with None"),
        ({"global_batch_size": 4}, r"data.global_batch_size=4: the checkpoint was trained with 2"),
    ],
)
def test_a_run_does_not_go_on_in_another_order(folder, change, said):
    state = data_of(folder).state_dict()
    with pytest.raises(BadValue, match=said):
        data_of(folder, **change).load_state_dict(state)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
def test_a_run_does_not_go_on_with_other_bins(folder, name):
    data = data_of(folder)
    now = data.order[name][:12]
    state = data.state_dict() | {"order": data.order | {name: "0" * 64}}
    with pytest.raises(BadValue, match=rf"its {name} \(SHA-256 {now}\) .* trained with \(000000000000\).*prepare"):
        data.load_state_dict(state)


def test_a_state_from_before_the_order_had_a_name_is_compared_all_the_same(folder):
    data = data_of(folder)
    before = {"sequences": 4, "step": 2, "seed": 1, "context_length": CONTEXT, "windows": "shuffled"}
    data.load_state_dict(before | {"stride_tokens": None, "train_sha256": data.order["train.bin"]})
    with pytest.raises(BadValue, match=r"train.bin .* trained with \(000000000000\)"):
        data.load_state_dict(before | {"train_sha256": "0" * 64})


def test_a_library_users_run_is_refused_before_its_first_step(folder, tmp_path):
    trainer_of(tmp_path, max_steps=2).fit(Witness(), data_of(folder))
    other = data_of(folder, seed=2)
    resumed = Witness()
    with pytest.raises(BadValue, match=r"data.seed=2: the checkpoint was trained with 1"):
        trainer_of(tmp_path).fit(resumed, other, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert resumed.trained == []


def test_a_library_users_checkpoint_is_not_scored_with_another_tokenizer(copied, tmp_path):
    trainer_of(tmp_path, max_steps=2).fit(Witness(), data_of(copied))
    (copied / "tokenizer.json").write_text((copied / "tokenizer.json").read_text() + "\n")
    manifest = read_manifest(copied) | {"tokenizer_sha256": sha256(copied / "tokenizer.json")}
    (copied / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(BadValue, match=r"its tokenizer.json \(SHA-256"):
        trainer_of(tmp_path).validate(Witness(), data_of(copied), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)


def test_the_state_survives_a_safe_load(folder, tmp_path):
    torch.save(data_of(folder).state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["sequences"] == 0


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_without_bins_the_verb_that_makes_them_is_named(tmp_path, stage):
    with pytest.raises(MissingFile, match="scratchlm prepare"):
        data_of(tmp_path / "nowhere").setup(stage)
    with pytest.raises(MissingFile, match="scratchlm prepare"):
        _ = data_of(tmp_path / "nowhere").vocab_size


@pytest.fixture
def copied(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change_manifest(folder, change):
    manifest = read_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def test_without_a_test_split_the_key_that_makes_it_is_named(copied):
    change_manifest(copied, lambda manifest: manifest["files"].pop("test.bin"))
    data_of(copied).setup("fit")
    with pytest.raises(MissingFile, match=r"Set data\.test_fraction"):
        data_of(copied).setup("test")


def test_bins_of_another_size_are_refused_before_training(copied):
    with (copied / "train.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(BrokenState, match=r"train.bin: [\d,]+ bytes, and manifest.json says"):
        data_of(copied).setup("fit")


@pytest.mark.parametrize(("name", "said"), [("train.bin", "not as it was written"), ("val.bin", "not as it was")])
def test_a_flipped_bit_is_refused_where_bins_are_verified_and_nowhere_else(copied, name, said):
    data_of(copied, verify=True).setup("fit")
    ids = bytearray((copied / name).read_bytes())
    ids[100] ^= 1
    (copied / name).write_bytes(ids)
    data_of(copied).setup("fit")
    for stage in ("fit", "validate", "test"):
        with pytest.raises(BrokenState, match=rf"{name}: {said}"):
            data_of(copied, verify=True).setup(stage)


def test_a_manifest_that_names_no_bin_to_train_on_is_refused(copied):
    change_manifest(copied, lambda manifest: [manifest["files"].pop(f"train.{kind}") for kind in ("bin", "docs.npy")])
    with pytest.raises(BrokenState, match=r"manifest.json names no train.bin"):
        data_of(copied).setup("fit")


def test_a_tokenizer_of_another_vocabulary_is_refused(copied):
    change_manifest(copied, lambda manifest: manifest.update(vocab_size=5))
    with pytest.raises(BrokenState, match=r"tokenizer has \d+ ids, and the bins were made with 5"):
        _ = data_of(copied).facts


def test_a_source_shorter_than_one_window_is_named_with_its_numbers(folder):
    held = read_manifest(folder)["card"]["sources"][0]["tokens"]["val"]
    with pytest.raises(
        BadValue,
        match=rf"val.bin holds {held} tokens of source 'one', and one window takes {held + 1} .*context_length={held}",
    ):
        data_of(folder, context_length=held).setup("validate")


def test_training_text_shorter_than_one_window_is_refused(folder):
    with pytest.raises(BadValue, match=r"train.bin holds [\d,]+ tokens, and one window takes 100,001"):
        data_of(folder, context_length=100_000).setup("fit")


def prompts_of(tmp_path, **values):
    data = data_of(tmp_path / "nowhere", **values)
    data.setup("predict")
    return list(data.predict_dataloader())


def test_prompts_come_one_a_batch(tmp_path):
    assert prompts_of(tmp_path, prompts=["Once", "twice"]) == [{"prompts": ["Once"]}, {"prompts": ["twice"]}]


def test_prompts_come_from_lines_or_from_a_column(tmp_path):
    (tmp_path / "p.txt").write_text("Once\n\nupon a time\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Once", "other": 1}\n{"prompt": "two\\nlines"}\n')
    assert prompts_of(tmp_path, prompts_file=str(tmp_path / "p.txt")) == [
        {"prompts": ["Once"]},
        {"prompts": ["upon a time"]},
    ]
    assert prompts_of(tmp_path, prompts_file=str(tmp_path / "p.jsonl"))[1] == {"prompts": ["two\nlines"]}


def test_only_a_line_end_ends_a_prompt(tmp_path):
    one = "Once\u2028upon\x85a\x0btime"
    (tmp_path / "p.txt").write_text(f"{one}\r\nTwo\n", encoding="utf-8", newline="")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": one}, ensure_ascii=False), encoding="utf-8")
    assert prompts_of(tmp_path, prompts_file=str(tmp_path / "p.txt")) == [{"prompts": [one]}, {"prompts": ["Two"]}]
    assert prompts_of(tmp_path, prompts_file=str(tmp_path / "p.jsonl")) == [{"prompts": [one]}]


def test_prompts_go_round_the_processes(tmp_path, monkeypatch):
    prompts, seen = [str(i) for i in range(5)], []
    for rank in range(2):
        monkeypatch.setattr(PretrainingData, "_place", (2, rank))
        seen += [batch["prompts"][0] for batch in prompts_of(tmp_path, prompts=prompts)]
    assert sorted(seen) == prompts


@pytest.mark.parametrize(
    ("text", "name", "kind", "said"),
    [
        (None, "p.txt", MissingFile, r"data.prompts_file=.*p.txt: No such file"),
        (b"\n\n", "p.txt", BadValue, r"it is empty.*data.prompts"),
        (b"\xff", "p.txt", BadValue, r"not UTF-8"),
        (b"Once", "p.jsonl", BadValue, r"line 1 is not JSON"),
        (b'{"text": "Once"}', "p.jsonl", BadValue, r'line 1 has no text under "prompt"'),
        (b"[" * 100_000, "p.jsonl", BadValue, r"line 1 is not JSON"),
        (b'\n{"prompt": "Once"}\n\n{}', "p.jsonl", BadValue, r'line 4 has no text under "prompt"'),
        (b"[]", "p.jsonl", BadValue, r'line 1 has no text under "prompt"'),
    ],
)
def test_prompts_that_cannot_be_read_are_one_line(tmp_path, text, name, kind, said):
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(kind, match=said):
        prompts_of(tmp_path, prompts_file=str(tmp_path / name))


def test_no_prompts_at_all_name_the_key(tmp_path):
    for values in ({}, {"prompts": []}):
        with pytest.raises(MissingFile, match=r"^data.prompts: "):
            prompts_of(tmp_path, **values)
    with pytest.raises(BadValue, match="both are given"):
        prompts_of(tmp_path, prompts=["a"], prompts_file="b.txt")


def test_predict_takes_everything_from_the_checkpoint(folder, tmp_path):
    from scratchlm.model.checkpoint import KEY, block
    from scratchlm.model.gpt import GPT

    tokenizer, card = load(folder), read_manifest(folder)["card"]
    gpt = GPT(vocab_size=tokenizer.vocab_size, context_length=CONTEXT, d_model=16, n_layers=1, n_heads=2, d_ff=16)
    weights = {f"gpt.{name}": weight for name, weight in gpt.state_dict().items()}
    whole = {"state_dict": weights, KEY: block(gpt, tokenizer.to_json(), card, 3, 6, order=data_of(folder).order)}
    torch.save(whole, tmp_path / "a.ckpt")
    data = data_of(tmp_path / "nowhere", checkpoint=str(tmp_path / "a.ckpt"), prompts=["Once"])
    data.setup("predict")
    assert data.vocab_size == tokenizer.vocab_size
    assert data.facts == data_of(folder).facts
    assert list(data.predict_dataloader()) == [{"prompts": ["Once"]}]
    assert not (tmp_path / "nowhere").exists()


def test_the_command_line_sees_the_keys_of_the_corpus():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PretrainingData, "data")
    given = parser.parse_args(["--data.folder", "f", "--data.sources", "{text: a.txt}", "--data.total_tokens", "5"])
    assert given.data.total_tokens == 5
    assert given.data.tokenizer == "bpe"
    assert "Tokens of train.bin" in parser.format_help()
