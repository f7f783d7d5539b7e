"""Cross-entropy that never holds all logits: nats a token, and their gradients in the same pass.

Logits of a few hundred tokens at a time are made, reduced to what is kept of them (nats, and their share of the
gradients of hidden states and head) and overwritten by the next. Letters: N = B * T targets in a row, C of them in a
chunk; the rest as in `model.gpt`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # a target that is not scored; torch's own choice for cross_entropy


def mean_nats(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, chunk_tokens: int | None = None) -> Tensor:
    """Mean cross-entropy of the scored targets, differentiable once in hidden states and head.

    Where gradients are wanted they are computed along with the loss, so its backward pass only scales them. Under
    autocast the matrices multiply in 16 bits; logits are reduced, and the head's gradient summed over the chunks, in
    float32.

    Args:
        hidden_BTD: What `GPT.hidden` gives.
        head_VD: `GPT.head_VD`.
        targets_BT: Ids to be predicted; -100 is not scored.
        chunk_tokens: Tokens whose logits exist at a time; by default what `chunk_tokens_on` says for the device.

    Returns:
        Float32 scalar, nats a token. With nothing to score it is 0 and so are its gradients: a micro-batch that holds
        only padding must not turn the step into NaN, as a mean over nothing would.
    """
    if torch.is_grad_enabled() and (hidden_BTD.requires_grad or head_VD.requires_grad):
        chunk_tokens = chunk_tokens or chunk_tokens_on(hidden_BTD.device)
        loss: Tensor = _MeanNats.apply(hidden_BTD, head_VD, targets_BT, chunk_tokens)  # type: ignore[no-untyped-call]
        return loss
    return nats_of_each(hidden_BTD, head_VD, targets_BT, chunk_tokens).sum() / _n_scored(targets_BT)


@torch.no_grad()
def nats_of_each(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, chunk_tokens: int | None = None) -> Tensor:
    """Cross-entropy of every target on its own, without gradients.

    Args:
        hidden_BTD: What `GPT.hidden` gives.
        head_VD: `GPT.head_VD`.
        targets_BT: Ids to be predicted; -100 is not scored.
        chunk_tokens: Tokens whose logits exist at a time; by default what `chunk_tokens_on` says for the device.

    Returns:
        Float32 (B, T), nats; 0 where the target is -100.
    """
    chunk_tokens = chunk_tokens or chunk_tokens_on(hidden_BTD.device)
    nats_N = _sweep(hidden_BTD.flatten(0, -2), head_VD, targets_BT.flatten(), chunk_tokens, None, None)
    return nats_N.view_as(targets_BT)


def chunk_tokens_on(device: torch.device) -> int:
    """Tokens whose logits are made at a time.

    On a CPU, where a chunk should stay in cache, 256 to 1,024 were fastest and alike (8,192 tokens, vocabularies of
    4,096 and 16,000, 256 wide, 2 cores with AMX). Elsewhere larger, so that kernels are worth their launch: chosen, not
    tuned.
    """
    return 512 if device.type == "cpu" else 2048


class _MeanNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, chunk_tokens: int) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        d_hidden_BTD = torch.empty_like(hidden_BTD, memory_format=torch.contiguous_format) if wants_hidden else None
        d_head_VD = torch.zeros_like(head_VD, dtype=_wide(head_VD.dtype)) if wants_head else None
        d_hidden_ND = None if d_hidden_BTD is None else d_hidden_BTD.flatten(0, -2)
        nats_N = _sweep(hidden_BTD.flatten(0, -2), head_VD, targets_BT.flatten(), chunk_tokens, d_hidden_ND, d_head_VD)
        n_scored = _n_scored(targets_BT)
        ctx.save_for_backward(d_hidden_BTD, d_head_VD, n_scored)
        ctx.head_dtype = head_VD.dtype
        return nats_N.sum() / n_scored

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden_BTD, d_head_VD, n_scored = ctx.saved_tensors
        scale = d_loss / n_scored  # d_loss is not 1 where micro-batches accumulate
        return (
            None if d_hidden_BTD is None else d_hidden_BTD * scale.to(d_hidden_BTD.dtype),
            None if d_head_VD is None else (d_head_VD * scale).to(ctx.head_dtype),
            None,
            None,
        )


def _sweep(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    chunk_tokens: int,
    d_hidden_ND: Tensor | None,
    d_head_VD: Tensor | None,
) -> Tensor:
    """Nats of each target; where given, fills `d_hidden_ND` and adds to `d_head_VD` the gradients of their sum.

    With e = exp(logits - their maximum) and s its sum along the vocabulary, the gradient of the logits is (e - s at the
    target) / s: e stays in the buffer it was computed in and the division falls on the small matrices.
    """
    device, dtype = hidden_ND.device, hidden_ND.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    with torch.autocast(device.type, enabled=False):
        hidden_ND, head_VD = hidden_ND.to(dtype), head_VD.to(dtype)
        # Both buffers live through all chunks: fresh ones would have the kernel zero their pages every time.
        n_rows = min(chunk_tokens, len(targets_N))
        logits_buffer = torch.empty(n_rows, len(head_VD), dtype=dtype, device=device)
        wide_buffer = logits_buffer if dtype == _wide(dtype) else torch.empty_like(logits_buffer, dtype=_wide(dtype))
        nats_N = torch.empty(len(targets_N), dtype=_wide(dtype), device=device)
        for start in range(0, len(targets_N), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_CD, targets_C1 = hidden_ND[chunk], targets_N[chunk, None]
            scored_C1, targets_C1 = targets_C1 != IGNORED, targets_C1.clamp(min=0)

            logits_CV, e_CV = logits_buffer[: len(hidden_CD)], wide_buffer[: len(hidden_CD)]
            torch.mm(hidden_CD, head_VD.T, out=logits_CV)
            highest_C1 = logits_CV.amax(-1, keepdim=True).to(e_CV.dtype)
            at_target_C1 = logits_CV.gather(1, targets_C1).to(e_CV.dtype)
            e_CV.copy_(logits_CV).sub_(highest_C1).exp_()  # copying a buffer onto itself does nothing
            sum_C1 = e_CV.sum(-1, keepdim=True)
            nats_N[chunk] = (sum_C1.log() + highest_C1 - at_target_C1).masked_fill(~scored_C1, 0)[:, 0]
            if d_hidden_ND is None and d_head_VD is None:
                continue

            e_CV.scatter_add_(1, targets_C1, -sum_C1)  # before rounding: a sure and right prediction has 1 - s near 0
            d_logits_CV = logits_CV.copy_(e_CV)
            weight_C1 = scored_C1 / sum_C1
            if d_hidden_ND is not None:
                d_hidden_ND[chunk] = (d_logits_CV @ head_VD) * weight_C1
            if d_head_VD is not None:
                d_head_VD += d_logits_CV.T @ (hidden_CD * weight_C1).to(dtype)
    return nats_N


def _n_scored(targets_BT: Tensor) -> Tensor:
    return (targets_BT != IGNORED).sum().clamp(min=1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
