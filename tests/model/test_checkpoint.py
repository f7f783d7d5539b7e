"""Laws of the checkpoint file."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.model.checkpoint import KEY, Checkpoint, block, read, verify
from scratchlm.model.gpt import GPT


def network(**settings: Any) -> GPT:
    sizes = {"vocab_size": 30, "context_length": 8, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
    return GPT(**(sizes | settings))


def content_of(gpt: GPT, **changes: Any) -> dict[str, Any]:
    """A Lightning checkpoint as training writes it."""
    card = {"stories": {"tokens": 1000, "share": 0.2, "licence": None}}
    return {
        "state_dict": {f"gpt.{name}": tensor for name, tensor in gpt.state_dict().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(500)}}}],
        "global_step": 7,
        KEY: block(gpt, '{"kind": "char"}', card, 7, 56, configuration={"data": {"seed": 1}}) | changes,
    }


@pytest.fixture
def written(tmp_path: Path) -> tuple[GPT, Path]:
    gpt, path = network(), tmp_path / "step-00000007.ckpt"
    torch.save(content_of(gpt), path)
    return gpt, path


def one_line(error: pytest.ExceptionInfo[Exception], path: Path) -> str:
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line


@pytest.mark.parametrize("settings", [{}, {"tied_head": False, "linear_biases": True, "d_head": 5}])
def test_a_network_comes_back_as_it_was(tmp_path: Path, settings: dict[str, Any]) -> None:
    gpt = network(**settings)
    torch.save(content_of(gpt), tmp_path / "a.ckpt")
    checkpoint = read(tmp_path / "a.ckpt")
    again, ids_BT = checkpoint.build(), torch.randint(30, (2, 8))
    assert torch.equal(again(ids_BT), gpt.eval()(ids_BT))
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert checkpoint.gpt_settings == gpt.settings
    assert checkpoint.tokenizer_json == '{"kind": "char"}'
    assert checkpoint.card == {"stories": {"tokens": 1000, "share": 0.2, "licence": None}}
    assert (checkpoint.step, checkpoint.sequences) == (7, 56)
    assert checkpoint.configuration == {"data": {"seed": 1}}


def test_what_was_read_outlives_the_file(written: tuple[GPT, Path]) -> None:
    gpt, path = written
    checkpoint = read(path)
    os.truncate(path, 0)
    ids_BT = torch.randint(30, (1, 8))
    assert torch.equal(checkpoint.build()(ids_BT), gpt.eval()(ids_BT))


def test_a_file_without_a_configuration_is_still_whole(tmp_path: Path) -> None:
    content = content_of(network())
    del content[KEY]["configuration"]
    torch.save(content, tmp_path / "a.ckpt")
    assert read(tmp_path / "a.ckpt").configuration == {}


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as error:
        read(tmp_path / "none.ckpt")
    assert "scratchlm fit" in one_line(error, tmp_path / "none.ckpt")
    with pytest.raises(BadValue) as folder_error:
        read(tmp_path)
    assert "a folder" in one_line(folder_error, tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_reported(written: tuple[GPT, Path], kept: float) -> None:
    _, path = written
    os.truncate(path, int(kept * path.stat().st_size))
    for look in (verify, read):
        with pytest.raises(BrokenState) as error:
            look(path)
        assert "cut short" in one_line(error, path)


def test_a_flipped_bit_in_a_weight_is_caught(written: tuple[GPT, Path]) -> None:
    gpt, path = written
    content = bytearray(path.read_bytes())
    weights = gpt.token_embedding.weight.detach().numpy().tobytes()
    content[content.find(weights) + len(weights) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)  # torch alone does not notice
    with pytest.raises(BrokenState) as error:
        read(path)
    assert "damaged on disk" in one_line(error, path)


def test_a_flipped_bit_anywhere_does_no_harm_or_is_a_user_error(written: tuple[GPT, Path]) -> None:
    gpt, path = written
    whole = path.read_bytes()
    expected = gpt.state_dict()
    n_caught = 0
    for position in range(0, len(whole), 61):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            weights = read(path).weights
        except UserError:
            n_caught += 1
        else:
            assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert n_caught > 100


class Attack:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("form", ["bare pickle", "old torch", "torch", "torch, hidden in our block"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, form: str) -> None:
    path, canary = tmp_path / "evil.ckpt", tmp_path / "canary"
    content: dict[str, Any] = {"state_dict": {}, "attack": Attack(canary)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    elif form == "old torch":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content_of(network(), card=Attack(canary)) if "hidden" in form else content, path)
    with pytest.raises(UserError) as error:
        read(path)
    one_line(error, path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"layer.weight": torch.ones(2)}, "pytorch-lightning_version": "2.6.6", "global_step": 3},
        {"scratchlm": 3, "state_dict": {}},
        torch.ones(3),
        [1, 2],
    ],
)
def test_a_checkpoint_that_is_none_of_ours_is_told_apart(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    with pytest.raises(BadValue) as error:
        read(path)
    assert "not written by scratchlm" in one_line(error, path)


def test_a_zip_of_another_kind_and_a_text_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    (tmp_path / "config.yaml").write_text("data:\n  folder: x\n")
    for name, kind in (("arrays.npz", BadValue), ("config.yaml", BrokenState)):
        with pytest.raises(kind) as error:
            read(tmp_path / name)
        one_line(error, tmp_path / name)


def test_another_version_of_the_format_says_which(tmp_path: Path) -> None:
    torch.save(content_of(network(), format_version=2), tmp_path / "a.ckpt")
    with pytest.raises(BadValue, match="version 2, and this scratchlm reads version 1"):
        read(tmp_path / "a.ckpt")


def test_a_block_with_parts_missing_names_them(tmp_path: Path) -> None:
    content = content_of(network())
    del content[KEY]["tokenizer_json"], content[KEY]["step"]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(BrokenState, match="lacks tokenizer_json, step"):
        read(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "changes",
    [{"d_model": 32}, {"n_layers": 3}, {"n_layers": 1}, {"n_layers": 0}, {"colour": "red"}, {"tied_head": False}],
)
def test_weights_and_settings_that_do_not_fit_are_one_line(written: tuple[GPT, Path], changes: dict[str, Any]) -> None:
    _, path = written
    checkpoint = read(path)
    checkpoint.gpt_settings |= changes
    with pytest.raises(BrokenState, match=r"^checkpoint of step 7: .*do not fit") as error:
        checkpoint.build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.float64(1.0), Path("a"), (1, 2), {1, 2}, torch.ones(1), {"a": [np.int64(1)]}])
def test_a_value_that_would_make_the_file_unreadable_is_refused_when_it_is_written(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^scratchlm\.configuration"):
        block(network(), "{}", {}, 1, 8, configuration={"inner": value})


def test_a_checkpoint_holds_no_weights_but_the_networks(written: tuple[GPT, Path]) -> None:
    checkpoint: Checkpoint = read(written[1])
    assert set(checkpoint.weights) == set(written[0].state_dict())
    assert not re.search("optimizer", " ".join(checkpoint.extra))
