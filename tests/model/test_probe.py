"""Wrong kernels are planted; the probe must find them, and the choice must go round them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scratchlm.errors import BadValue, BrokenState
from scratchlm.model import probe as probe_module
from scratchlm.model.probe import choose, devices, multiplies_bf16, probe

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
SHAPE = {"vocab_size": 500, "d_model": 64, "n_heads": 4, "d_head": None}

true_attention = torch.nn.functional.scaled_dot_product_attention
true_matmul = torch.Tensor.__matmul__


@pytest.fixture(autouse=True)
def _a_cpu_that_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine wherever the tests run."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def leaking_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **others: Any) -> Tensor:
        return true_attention(query, key, value, **others)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)


@pytest.fixture
def attention_that_leaks_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **others: Any) -> Tensor:
        if is_causal:
            others["attn_mask"] = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(1)
        return true_attention(query, key, value, **others)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)


@pytest.fixture
def wrong_matmul(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], None]:
    """Past 256 summands the rest is lost, in one type of number."""

    def plant(dtype: torch.dtype) -> None:
        def matmul(left: Tensor, right: Tensor) -> Tensor:
            if left.dtype == dtype and left.shape[-1] > 256:
                return true_matmul(left[..., :256], right[:256])
            return true_matmul(left, right)

        monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)

    return plant


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["auto", "fused", "masked"])
@pytest.mark.parametrize(
    "shape", [SHAPE, {"vocab_size": 5, "d_model": 1, "n_heads": 1, "d_head": 1}, SHAPE | {"n_heads": 7, "d_head": 54}]
)
def test_a_right_device_passes(dtype: torch.dtype, attention: Any, shape: dict[str, Any]) -> None:
    findings = probe(CPU, dtype, attention=attention, **shape)
    assert len(findings) == 3
    assert all(finding.ok for finding in findings), [str(finding) for finding in findings]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leak", ["leaking_attention", "attention_that_leaks_one_token"])
def test_a_leak_of_later_tokens_is_found_and_the_mask_stops_it(
    dtype: torch.dtype, leak: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(leak)
    causality, matmul, step = probe(CPU, dtype, attention="fused", **SHAPE)
    assert not causality.ok
    assert matmul.ok
    assert not step.ok
    assert all(finding.ok for finding in probe(CPU, dtype, attention="masked", **SHAPE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_sum_over_the_vocabulary_is_found(
    dtype: torch.dtype, wrong_matmul: Callable[[torch.dtype], None]
) -> None:
    wrong_matmul(dtype)
    causality, matmul, _ = probe(CPU, dtype, attention="fused", **SHAPE)
    assert causality.ok
    assert not matmul.ok
    assert "vocabulary of 500" in str(matmul)


def test_results_that_are_no_numbers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda query, *_, **__: query * float("nan")
    )
    causality, _, step = probe(CPU, torch.float32, attention="fused", **SHAPE)
    assert not causality.ok
    assert not step.ok


def test_the_choice_of_a_right_machine_is_its_best() -> None:
    choice = choose("auto", "auto", attention="auto", **SHAPE)
    assert (choice.device_type, choice.precision, choice.attention) == ("cpu", "bf16-mixed", "auto")
    assert "bf16" in choice.reason
    assert choose("auto", "32-true", attention="auto", **SHAPE).precision == "32-true"
    assert choose("cpu", "auto", attention="fused", **SHAPE).attention == "fused"


@pytest.mark.usefixtures("leaking_attention")
def test_where_attention_leaks_auto_takes_the_mask_and_says_so() -> None:
    choice = choose("auto", "auto", attention="auto", **SHAPE)
    assert (choice.precision, choice.attention) == ("bf16-mixed", "masked")
    assert "mask" in choice.reason
    assert "causality" in choice.reason


@pytest.mark.usefixtures("leaking_attention")
def test_where_attention_leaks_an_explicit_choice_of_it_stops() -> None:
    with pytest.raises(BrokenState, match=r"attention fused \(causality off by .*model\.gpt\.attention") as error:
        choose("auto", "auto", attention="fused", **SHAPE)
    assert "\n" not in str(error.value)
    assert choose("auto", "auto", attention="masked", **SHAPE).attention == "masked"


def test_where_bf16_is_wrong_auto_takes_float32_and_an_explicit_choice_stops(
    wrong_matmul: Callable[[torch.dtype], None],
) -> None:
    wrong_matmul(torch.bfloat16)
    choice = choose("auto", "auto", attention="auto", **SHAPE)
    assert choice.precision == "32-true"
    assert "bf16-mixed" in choice.reason
    assert "matmul" in choice.reason
    with pytest.raises(BrokenState, match=r"cpu, bf16-mixed.*trainer\.precision"):
        choose("cpu", "bf16-mixed", attention="auto", **SHAPE)


def test_where_a_better_device_is_wrong_auto_takes_the_cpu_and_an_explicit_choice_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No such device is here: the CPU stands in for it, with a finding that is bad where it was asked for as mps."""

    def probe_of_two_devices(device: torch.device, *arguments: Any) -> list[probe_module.Finding]:
        if device.type == "mps":
            return [probe_module.Finding("causality", 1.0, 0.02)]
        return probe(device, *arguments)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(probe_module, "probe", probe_of_two_devices)
    choice = choose("auto", "auto", attention="auto", **SHAPE)
    assert choice.device_type == "cpu"
    assert "mps, 32-true" in choice.reason
    with pytest.raises(BrokenState, match="mps, 32-true"):
        choose("mps", "auto", attention="auto", **SHAPE)


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(BadValue, match=r"device cuda: .*only cpu"):
        choose("cuda", "auto", attention="auto", **SHAPE)
    assert devices("auto") == ["cpu"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True}, False)],
)
def test_a_cpu_multiplies_bf16_where_its_flags_say_so(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert multiplies_bf16("cpu") is expected
    assert not multiplies_bf16("mps")


def test_the_probe_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    probe(CPU, torch.bfloat16, attention="auto", **SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
