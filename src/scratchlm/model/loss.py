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

# Float32 logits in work at a time on a CPU: 1 MB. Measured there, from a quarter of it to four times as many were
# alike, and 16 times as many, which leave a core's cache of 2 MB, a tenth slower.
_CACHED_LOGITS = 2**18


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
    nats_N, _ = _sweep(hidden_BTD.flatten(0, -2), head_VD, targets_BT.flatten(), chunk_tokens, None, wants_head=False)
    return nats_N.view_as(targets_BT)


def chunk_tokens_on(device: torch.device) -> int:
    """Tokens whose logits are made at a time.

    On a CPU 512 to 2,048 were alike (2,048 tokens, vocabularies of 8,000 and 16,000, 256 to 1,024 wide, a core with
    AMX), 256 a fifth slower. Elsewhere larger, so that kernels are worth their launch: chosen, not tuned.
    """
    return 1024 if device.type == "cpu" else 2048


class _MeanNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, chunk_tokens: int) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        d_hidden_BTD = torch.empty_like(hidden_BTD, memory_format=torch.contiguous_format) if wants_hidden else None
        d_hidden_ND = None if d_hidden_BTD is None else d_hidden_BTD.flatten(0, -2)
        nats_N, d_head_VD = _sweep(
            hidden_BTD.flatten(0, -2), head_VD, targets_BT.flatten(), chunk_tokens, d_hidden_ND, wants_head
        )
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
            None if d_head_VD is None else d_head_VD.to(ctx.head_dtype, copy=True).mul_(scale),
            None,
            None,
        )


def _sweep(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    chunk_tokens: int,
    d_hidden_ND: Tensor | None,
    wants_head: bool,
) -> tuple[Tensor, Tensor | None]:
    """Nats of each target, and gradients of their sum: by the hidden states where there is room, by the head if wanted.

    The head's gradient comes in the 16 bits of autocast where one chunk made it, else in float32.
    """
    device, dtype = hidden_ND.device, hidden_ND.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    d_head_VD: Tensor | None = None
    with torch.autocast(device.type, enabled=False):
        hidden_ND, head_VD = hidden_ND.to(dtype), head_VD.to(dtype)
        # One buffer lives through all chunks: a fresh one would have the kernel zero its pages every time.
        logits_buffer = torch.empty(min(chunk_tokens, len(targets_N)), len(head_VD), dtype=dtype, device=device)
        nats_N = torch.empty(len(targets_N), dtype=_wide(dtype), device=device)
        scored_N1 = (targets_N != IGNORED)[:, None]
        targets_N1 = targets_N[:, None].masked_fill(~scored_N1, 0)
        for start in range(0, len(targets_N), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_CD, scored_C1 = hidden_ND[chunk], scored_N1[chunk]
            logits_CV = logits_buffer[: len(hidden_CD)]
            torch.mm(hidden_CD, head_VD.T, out=logits_CV)
            _reduce(logits_CV, targets_N1[chunk], nats_N[chunk], wants_head or d_hidden_ND is not None)
            d_logits_CV = logits_CV
            if d_hidden_ND is not None:
                d_hidden_ND[chunk] = (d_logits_CV @ head_VD) * scored_C1
            if wants_head:
                of_chunk_VD = d_logits_CV.T @ (hidden_CD * scored_C1)
                d_head_VD = of_chunk_VD if d_head_VD is None else d_head_VD.to(_wide(dtype)).add_(of_chunk_VD)
        return nats_N.masked_fill_(~scored_N1[:, 0], 0), d_head_VD


def _reduce(logits_CV: Tensor, targets_C1: Tensor, nats_C: Tensor, wants_gradients: bool) -> None:
    """Writes the nats of each target; turns the logits, where wanted, into the gradient of the nats by them."""
    n_rows = len(logits_CV)
    if logits_CV.device.type == "cpu":  # a few rows at a time, so that what is float32 stays in a core's cache
        n_rows = min(n_rows, max(1, _CACHED_LOGITS // logits_CV.shape[1]))
    wide_buffer = logits_CV.new_empty(n_rows, logits_CV.shape[1], dtype=nats_C.dtype)
    minus_one_R1 = wide_buffer.new_full((n_rows, 1), -1)
    for start in range(0, len(logits_CV), n_rows):
        rows = slice(start, start + n_rows)
        logits_RV, targets_R1 = logits_CV[rows], targets_C1[rows]
        wide_RV = wide_buffer[: len(logits_RV)]
        wide_RV.copy_(logits_RV)
        torch.log_softmax(wide_RV, -1, out=wide_RV)
        nats_C[rows] = -wide_RV.gather(1, targets_R1)[:, 0]
        if wants_gradients:  # the probabilities, less 1 at the target: before rounding, for both may be near 1
            logits_RV.copy_(wide_RV.exp_().scatter_add_(1, targets_R1, minus_one_R1[: len(logits_RV)]))


def _n_scored(targets_BT: Tensor) -> Tensor:
    return (targets_BT != IGNORED).sum().clamp(min=1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
