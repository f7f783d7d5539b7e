"""AdamW with decayed and undecayed groups, and its rates as pure functions of the step."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

_FUSED_DEVICES = ("cpu", "cuda", "mps")  # where torch has a fused AdamW: torch/utils/_foreach_utils.py, 2.13


def learning_rate_at(step: int, peak: float, warmup_steps: int, decay_steps: int, floor_fraction: float) -> float:
    """Learning rate of one optimizer step: a line up to the peak, half a cosine down to the floor, then the floor.

    Args:
        step: The step about to be made, counted from 1 as in the logs.
        peak: Rate reached at step `warmup_steps`.
        warmup_steps: Steps of the line, which starts at peak / warmup_steps; 0 starts at the peak.
        decay_steps: Step at which the floor is reached, counted from the start of the run.
        floor_fraction: The floor, as a fraction of the peak.

    Returns:
        The rate, a plain float: Metal takes no other.

    Source:
        Radford et al., GPT-1, section 4.1: linear warm-up, cosine. Brown et al., GPT-3, appendix B: floor at a tenth.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if step >= decay_steps:
        return peak * floor_fraction
    done = (step - warmup_steps) / (decay_steps - warmup_steps)
    return peak * (floor_fraction + (1 - floor_fraction) * (1 + math.cos(math.pi * done)) / 2)


def parameter_groups(gpt: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter once: matrices decay; embeddings, norms and biases do not.

    Decay acts on a row of the embedding at every step, its gradient as an input only when its token comes up: rare
    tokens would shrink the most. A tied head is the embedding; a head of its own is a matrix and decays.

    Args:
        gpt: The network.
        weight_decay: Decay of the matrices.

    Returns:
        Two groups for an optimizer, marked by a key `decayed` that lets `set_rates` tell them apart after a resume.
    """
    embeddings = {id(p) for module in gpt.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in gpt.parameters():
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix else undecayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "decayed": True},
        {"params": undecayed, "weight_decay": 0.0, "decayed": False},
    ]


def adamw(gpt: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> AdamW:
    """AdamW over `parameter_groups`, as one fused kernel where the device has it.

    Args:
        gpt: The network, already on its device.
        learning_rate: Rate until `set_rates` gives another.
        weight_decay: Decay of the matrices.
        betas: Averaging of the gradient and of its square.

    Source:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
    """
    fused = next(gpt.parameters()).device.type in _FUSED_DEVICES
    return AdamW(parameter_groups(gpt, weight_decay), lr=learning_rate, betas=betas, fused=fused)


def set_rates(optimizer: Optimizer, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> None:
    """Gives every group the rates of the step about to be made, over whatever a checkpoint brought along."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["betas"] = betas
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


def clip_in_step(optimizer: Optimizer, norm: torch.Tensor, most: float | None, is_left_out: torch.Tensor) -> None:
    """Has the next step of a fused AdamW clip the gradients as it reads them, or leave all as it was.

    It spares a pass over the gradients, and no device is waited for: the kernel itself reads both. Left out means that
    no weight, no moment and no count of steps changes.

    Args:
        optimizer: The AdamW, fused; torch lets its mixed precision leave the scale of gradients with it.
        norm: Norm of all gradients together.
        most: What the norm is clipped to; None does not clip.
        is_left_out: Bool, one number: whether this step is to change nothing.
    """
    scale = None if most is None else (norm / most).clamp(min=1.0)
    optimizer.grad_scale = scale  # type: ignore[attr-defined]
    optimizer.found_inf = is_left_out.to(norm.dtype)  # type: ignore[attr-defined]
