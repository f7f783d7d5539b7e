"""Laws of completion: text in, text out, up to a stop string."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scratchlm.errors import BadValue, MissingFile
from scratchlm.inference import completion
from scratchlm.inference.completion import complete, generate, load
from scratchlm.model.checkpoint import KEY, block
from scratchlm.model.generate import generate as generate_ids
from scratchlm.model.gpt import GPT
from scratchlm.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train

TEXTS = ["Once upon a time there was a fox, and the fox was grün. ", "The end of it: a day, two days. "] * 30


@pytest.fixture(scope="module", params=["char", "bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train(request.param, TEXTS, 300)


@pytest.fixture
def gpt(tokenizer: Tokenizer) -> GPT:
    gpt = GPT(tokenizer.vocab_size, context_length=32, d_model=16, n_layers=1, n_heads=2, d_ff=16)
    with torch.no_grad():
        gpt.token_embedding.weight.normal_(0, 1)
        gpt.position_embedding.weight.normal_(0, 3)  # so that it does not repeat itself
        gpt.norm.bias[0] = 3  # and does not end by itself
        gpt.token_embedding.weight[tokenizer.end_of_text_id, 0] = -9
    return gpt


@pytest.fixture
def checkpoint(gpt: GPT, tokenizer: Tokenizer, tmp_path: Path) -> str:
    weights = {f"gpt.{name}": tensor for name, tensor in gpt.state_dict().items()}
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": weights, "global_step": 3, KEY: block(gpt, tokenizer.to_json(), {}, 3, 24)}, path)
    return str(path)


def whole(gpt: GPT, tokenizer: Tokenizer, stop: tuple[str, ...] = (), max_new_tokens: int = 60, seed: int = 1) -> str:
    return "".join(complete(gpt, tokenizer, "Once ", max_new_tokens, 1.0, None, seed, stop))


def test_the_pieces_together_are_the_decoded_ids(gpt: GPT, tokenizer: Tokenizer) -> None:
    banned = [special for special in tokenizer.special_ids if special != tokenizer.end_of_text_id]
    ids = generate_ids(gpt, tokenizer.encode("Once "), 60, 1.0, None, 1, [tokenizer.end_of_text_id], banned)
    assert whole(gpt, tokenizer) == tokenizer.decode(list(ids))


def test_pieces_come_as_they_are_drawn(gpt: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(*arguments: object, **others: object) -> Iterator[int]:
        for token in generate_ids(*arguments, **others):  # type: ignore[arg-type]
            drawn.append(token)
            yield token

    monkeypatch.setattr(completion.decoding, "generate", counted)
    next(complete(gpt, tokenizer, "Once ", 60, 1.0, None, 1))
    assert len(drawn) < 10


@pytest.mark.parametrize("seed", range(5))
def test_a_stop_string_and_what_follows_never_appear(gpt: GPT, tokenizer: Tokenizer, seed: int) -> None:
    free = whole(gpt, tokenizer, seed=seed)
    assert len(free) > 20
    for at, length in ((0, 1), (3, 2), (7, 5), (9, 11), (len(free) - 3, 3)):
        stop = free[at : at + length]
        assert whole(gpt, tokenizer, (stop,), seed=seed) == free[: free.find(stop)]
    stops = (free[9:14], free[11:12], "not in it")
    _, complete_first = min((free.find(stop) + len(stop), free.find(stop)) for stop in stops[:2])
    assert whole(gpt, tokenizer, stops, seed=seed) == free[:complete_first]


def test_what_only_begins_like_a_stop_string_is_given_back(gpt: GPT, tokenizer: Tokenizer) -> None:
    free = whole(gpt, tokenizer)
    stops = tuple(free[at : at + 3] + "☃" for at in range(len(free)))
    assert whole(gpt, tokenizer, stops) == free


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["ab", "ca", "b", "cd", "x"], ["abcd"], "abc"),
        (["a", "a", "a", "b", "c"], ["aab"], "a"),
        (["abc"], [], "abc"),
        (["a", "b", "c"], ["b", "abc"], "a"),
        (["abc"], ["b", "abc"], "a"),
        (["a", "b", "c"], ["bc", "abc"], ""),
        ([], ["a"], ""),
        (["xx", "y"], ["yz"], "xxy"),
    ],
)
def test_text_is_held_back_no_longer_than_it_may_be_a_stop_string(
    pieces: list[str], stop: list[str], expected: str
) -> None:
    assert "".join(completion._up_to_stop(pieces, stop)) == expected


def test_special_tokens_are_never_written_and_end_of_text_ends_the_text(gpt: GPT, tokenizer: Tokenizer) -> None:
    with torch.no_grad():  # every special token is far likelier than anything else
        gpt.norm.bias[:] = 5.0
        gpt.token_embedding.weight[:, :] *= 0.01
        gpt.token_embedding.weight[tokenizer.special_ids] = 3.0
        gpt.token_embedding.weight[tokenizer.end_of_text_id] = 2.0
    assert whole(gpt, tokenizer) == ""
    with torch.no_grad():
        gpt.token_embedding.weight[tokenizer.end_of_text_id] = -3.0
    text = whole(gpt, tokenizer)
    assert text
    assert not any(special in text for special in SPECIAL_TOKENS)


def test_an_empty_prompt_begins_a_document(gpt: GPT, tokenizer: Tokenizer) -> None:
    banned = [special for special in tokenizer.special_ids if special != tokenizer.end_of_text_id]
    ids = generate_ids(gpt, [tokenizer.end_of_text_id], 20, 0, stop_ids=[tokenizer.end_of_text_id], banned_ids=banned)
    assert "".join(complete(gpt, tokenizer, "", 20, 0)) == tokenizer.decode(list(ids))


def test_an_empty_stop_string_is_refused(gpt: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadValue, match="stop=''"):
        complete(gpt, tokenizer, "a", 1, stop=["x", ""])


def test_the_verb_writes_prompt_and_text_to_stdout_and_the_rest_to_stderr(
    checkpoint: str, gpt: GPT, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(checkpoint, "Once ", 60, 1.0, None, seed=1, device="cpu")
    out, err = capsys.readouterr()
    assert out == "Once " + whole(gpt, tokenizer) + "\n"
    assert "step 3, on cpu" in err
    assert err.count("\n") == 1


def test_each_sample_has_its_own_draws(
    checkpoint: str, gpt: GPT, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(checkpoint, "Once ", 60, 1.0, None, seed=1, n_samples=2, device="cpu")
    expected = ["Once " + whole(gpt, tokenizer, seed=seed) + "\n" for seed in (1, 2)]
    assert capsys.readouterr().out == "\n".join(expected)
    assert expected[0] != expected[1]


def test_the_network_speaks_as_it_did_before_it_was_stored(checkpoint: str, gpt: GPT, tokenizer: Tokenizer) -> None:
    again, tokenizer_again = load(checkpoint, "cpu")
    assert whole(again, tokenizer_again) == whole(gpt, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_samples": 0}, "n_samples=0"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"stop": [""]}, "stop=''"),
    ],
)
def test_a_value_that_cannot_work_is_named_before_anything_is_written(
    checkpoint: str, arguments: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadValue, match=f"^{words}"):
        generate(checkpoint, **arguments)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"none\.ckpt: no such checkpoint"):
        generate(str(tmp_path / "none.ckpt"))


def test_a_prompt_that_cannot_be_spelled_is_a_users_error() -> None:
    tokenizer = train("char", ["abc" * 30], 300)
    gpt = GPT(tokenizer.vocab_size, context_length=8, d_model=8, n_layers=1, n_heads=1, d_ff=8)
    with pytest.raises(BadValue):
        complete(gpt, tokenizer, "a%", 1)


def test_it_needs_neither_lightning_nor_datasets() -> None:
    script = "import json, sys, scratchlm.inference.completion; print(json.dumps(list(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in json.loads(printed)}
    assert not loaded & {"lightning", "lightning_fabric", "datasets", "pyarrow", "wandb", "torchmetrics"}
