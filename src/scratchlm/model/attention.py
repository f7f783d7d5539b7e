"""Causal attention; on a CPU in bfloat16 with a backward pass of its own.

torch's backward pass there multiplies blocks of 32 queries, too small for a processor's matrix units: a fifth of a
small network's training step went into it. Here whole heads are multiplied. Letters as in `model.gpt`, and G = B * H.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Past this torch's blocks win, for they leave out what causality masks. Measured on 2 cores with AMX, heads of 64
# channels: a whole training step took 0.92 of its time with torch's at 256 positions, 0.98 at 512; the backward pass
# alone, on one core, 1.35 times its time at 1,024.
_MOST_POSITIONS = 512
_SCORES_AT_ONCE = 2**20  # 4 MB in float32; half and twice as many were alike


def attend_causally(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, dropout: float) -> Tensor:
    """What `scaled_dot_product_attention` gives with `is_causal`, by the fastest way there is for these tensors.

    Args:
        query_BHTE: Queries.
        key_BHTE: Keys of the same positions.
        value_BHTE: Their values.
        dropout: Fraction of the attention weights dropped.

    Returns:
        (B, H, T, E).
    """
    is_bf16_on_cpu = query_BHTE.device.type == "cpu" and query_BHTE.dtype == torch.bfloat16
    if is_bf16_on_cpu and dropout == 0 and torch.is_grad_enabled() and query_BHTE.shape[2] <= _MOST_POSITIONS:
        mixed_BHTE: Tensor = _forward(query_BHTE, key_BHTE, value_BHTE)
        return mixed_BHTE
    return F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, dropout_p=dropout, is_causal=True)


# Operators of their own, so that torch.compile calls them as they are.
@torch.library.custom_op("scratchlm::causal_attention", mutates_args=())
def _forward(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, is_causal=True)


@_forward.register_fake
def _(query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor) -> Tensor:
    return torch.empty_like(query_BHTE)


@torch.library.custom_op("scratchlm::causal_attention_backward", mutates_args=())
def _backward(d_mixed_BHTE: Tensor, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor) -> Tensor:
    """Gradients of queries, keys and values, (3, G, T, E); the attention weights are made anew, not kept."""
    n_positions, d_head = query_BHTE.shape[2:]
    d_mixed_GTE, query_GTE, key_GTE, value_GTE = (
        tensor.reshape(-1, n_positions, d_head) for tensor in (d_mixed_BHTE, query_BHTE, key_BHTE, value_BHTE)
    )
    n_heads = min(len(query_GTE), max(1, _SCORES_AT_ONCE // n_positions**2))
    scale = d_head**-0.5
    wide_query_GTE, wide_key_GTE = query_GTE.float(), key_GTE.float()
    later_TT = torch.full((n_positions, n_positions), -torch.inf).triu(1)
    scores_buffer = later_TT.new_empty(n_heads, n_positions, n_positions)
    weights_buffer, d_weights_buffer = (torch.empty_like(scores_buffer, dtype=query_GTE.dtype) for _ in range(2))
    gradients_3GTE = query_GTE.new_empty(3, *query_GTE.shape)
    d_query_GTE, d_key_GTE, d_value_GTE = gradients_3GTE
    for start in range(0, len(query_GTE), n_heads):
        g = slice(start, start + n_heads)
        n = len(query_GTE[g])
        with _float32_by_bfloat16():  # exact, for these numbers came from bfloat16
            scores_GTT = torch.bmm(wide_query_GTE[g], wide_key_GTE[g].mT, out=scores_buffer[:n])
        torch.add(later_TT, scores_GTT, alpha=scale, out=scores_GTT)
        torch.softmax(scores_GTT, -1, out=scores_GTT)
        weights_GTT = weights_buffer[:n].copy_(scores_GTT)
        torch.bmm(weights_GTT.mT, d_mixed_GTE[g], out=d_value_GTE[g])
        d_weights_GTT = torch.bmm(d_mixed_GTE[g], value_GTE[g].mT, out=d_weights_buffer[:n])
        d_scores_GTT = torch._softmax_backward_data(
            d_weights_GTT, weights_GTT, -1, weights_GTT.dtype, grad_input=d_weights_GTT
        )
        torch.bmm(d_scores_GTT, key_GTE[g], out=d_query_GTE[g])
        torch.bmm(d_scores_GTT.mT, query_GTE[g], out=d_key_GTE[g])
    gradients_3GTE[:2] *= scale
    return gradients_3GTE


@_backward.register_fake
def _(d_mixed_BHTE: Tensor, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor) -> Tensor:
    n_sequences, n_heads, *of_head = query_BHTE.shape
    return query_BHTE.new_empty(3, n_sequences * n_heads, *of_head)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_mixed_BHTE: Tensor) -> tuple[Tensor, ...]:
    query_BHTE, key_BHTE, value_BHTE = ctx.saved_tensors
    gradients_3GTE: Tensor = _backward(d_mixed_BHTE, query_BHTE, key_BHTE, value_BHTE)
    return gradients_3GTE.view(3, *query_BHTE.shape).unbind()


_forward.register_autograd(_differentiate, setup_context=_keep)


@contextmanager
def _float32_by_bfloat16() -> Iterator[None]:
    """Lets the units for bfloat16 multiply float32 tensors: each number is rounded first, sums are float32."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made when torch starts
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
