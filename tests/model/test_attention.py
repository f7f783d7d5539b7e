"""Attention with a backward pass of its own computes what torch's does."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scratchlm.model.attention import attend_causally


def projections(
    n_sequences: int, n_heads: int, n_positions: int, d_head: int, sharp: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as the network makes them: strided views of one projection."""
    projected = torch.randn(n_sequences, n_positions, 3, n_heads, d_head)
    projected[:, :, :2] *= sharp
    query, key, value = projected.bfloat16().flatten(2).unflatten(2, (3, n_heads, d_head)).transpose(1, 3).unbind(2)
    return query.detach().requires_grad_(), key.detach().requires_grad_(), value.detach().requires_grad_()


def exact(inputs: tuple[Tensor, ...], d_mixed_BHTE: Tensor) -> tuple[Tensor, ...]:
    wide = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    mixed_BHTE = F.scaled_dot_product_attention(*wide, is_causal=True)
    return mixed_BHTE, *torch.autograd.grad(mixed_BHTE, wide, d_mixed_BHTE.double())


def off(of: Tensor, true: Tensor) -> float:
    return float((of.double() - true).norm() / true.norm())


@pytest.mark.parametrize("sharp", [1.0, 3.0])  # at 3 a weight is near 1 in most rows
@pytest.mark.parametrize("shape", [(2, 3, 67, 16), (3, 7, 256, 32), (1, 5, 512, 64), (2, 2, 1, 8)])
def test_its_gradients_are_as_near_to_the_exact_ones_as_those_of_torch(
    shape: tuple[int, int, int, int], sharp: float
) -> None:
    inputs = projections(*shape, sharp)
    d_mixed_BHTE = torch.randn(shape[0], shape[1], shape[2], shape[3]).bfloat16()
    results = []
    for function in (attend_causally, lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v, is_causal=True)):
        mixed_BHTE = function(*inputs, 0.0)
        results.append([mixed_BHTE, *torch.autograd.grad(mixed_BHTE, inputs, d_mixed_BHTE)])
    for ours, of_torch, true in zip(*results, exact(inputs, d_mixed_BHTE), strict=True):
        ours, of_torch, true = ours.detach(), of_torch.detach(), true.detach()
        assert ours.dtype == torch.bfloat16
        assert ours.shape == true.shape
        if true.norm() > 0:  # a lone position's weights are 1 whatever its query
            assert off(ours, true) < max(1.5 * off(of_torch, true), 0.006)


def test_a_later_token_gets_no_gradient_from_an_earlier_output() -> None:
    query, key, value = projections(1, 2, 40, 8, 1.0)
    attend_causally(query, key, value, 0.0)[:, :, :20].sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad[:, :, 20:].abs().max() == 0
        assert tensor.grad[:, :, :20].abs().max() > 0


def test_the_precision_of_other_products_is_left_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    query, key, value = projections(1, 1, 8, 8, 1.0)
    attend_causally(query, key, value, 0.0).sum().backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    torch.testing.assert_close(left @ right, (left.double() @ right.double()).float(), rtol=1e-5, atol=1e-5)
