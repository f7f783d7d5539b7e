"""Is this device right? Causality, matmul and one training step, checked on the device itself before it is trusted.

Kernels have been silently wrong: attention that let later tokens leak (pytorch#195910, Metal in bf16) and matmuls that
were wrong past 32,767 summands (pytorch#193487, #195163, Metal). A second before a run of days is cheap.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scratchlm.errors import BadValue, BrokenState
from scratchlm.model.gpt import GPT, AttentionKind
from scratchlm.model.loss import mean_nats

DeviceKind = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["auto", "bf16-mixed", "32-true"]

_N_POSITIONS = 67  # odd and past one block of any kernel; pytorch#195910 was seen at 17
_VOCAB_SIZE = 256  # of the small network: the real vocabulary has a check of its own


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked.
        error: How far off the device was; not a number where its result was none.
        tolerance: The error up to which rounding explains it.
    """

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether rounding explains the error."""
        return self.error <= self.tolerance  # false for not-a-number

    def __str__(self) -> str:
        return f"{self.name} off by {self.error:.2g}, {self.tolerance:.2g} allowed"


@dataclass
class Choice:
    """Where and how to compute.

    Attributes:
        device_type: cuda, mps or cpu.
        precision: As the Trainer spells it.
        attention: As `GPT` spells it.
        reason: Why, in one line, with what was tried before and failed.
    """

    device_type: str
    precision: str
    attention: AttentionKind
    reason: str


def choose(
    device_type: DeviceKind,
    precision: Precision,
    vocab_size: int,
    d_model: int,
    n_heads: int,
    d_head: int | None,
    attention: AttentionKind,
) -> Choice:
    """Picks device, precision and attention, and tries them before they are trusted.

    What is asked for is kept. What is left to the machine is, in this order: CUDA, Metal, CPU; bf16 where the hardware
    multiplies it, else float32; the kernel's own causality, else the mask. The first that passes `probe` is taken.

    Args:
        device_type: cuda, mps, cpu, or auto.
        precision: bf16-mixed, 32-true, or auto.
        vocab_size: Of the network to be run, like the three that follow.
        d_model: Channels of its residual stream.
        n_heads: Its heads.
        d_head: Channels in one head; None for d_model / n_heads.
        attention: fused, masked, or auto.

    Returns:
        The choice and its reason.

    Raises:
        BadValue: The device asked for is not there.
        BrokenState: Nothing that was asked for passes.
    """
    failures: list[str] = []
    for kind in devices(device_type):
        precisions = _precisions(kind) if precision == "auto" else [precision]
        attentions: list[AttentionKind] = ["auto", "masked"] if attention == "auto" and kind != "mps" else [attention]
        for number_format, how in product(precisions, attentions):
            dtype = torch.bfloat16 if number_format == "bf16-mixed" else torch.float32
            findings = probe(torch.device(kind), dtype, vocab_size, d_model, n_heads, d_head, how)
            wrong = "; ".join(str(finding) for finding in findings if not finding.ok)
            if not wrong:
                reason = _reason(kind, device_type, number_format, precision)
                if how != attention:
                    reason += ", causality by an explicit mask"
                return Choice(kind, number_format, how, "; failed a probe: ".join([reason, *failures]))
            failures.append(f"{kind}, {number_format}, attention {how} ({wrong})")
    raise BrokenState(
        f"{failures[0]}: gives wrong results on this machine. Leave trainer.accelerator, trainer.precision and "
        f"model.gpt.attention out, so that they are chosen, or use another version of torch than {torch.__version__}."
    )


def probe(
    device: torch.device,
    dtype: torch.dtype,
    vocab_size: int,
    d_model: int,
    n_heads: int,
    d_head: int | None,
    attention: AttentionKind,
) -> list[Finding]:
    """Compares what a device computes with what must come out.

    Args:
        device: The device to try.
        dtype: What matrices multiply in; autocast is on where it is not float32.
        vocab_size: Of the network to be run, like the four that follow.
        d_model: Channels of its residual stream.
        n_heads: Its heads.
        d_head: Channels in one head; None for d_model / n_heads.
        attention: As `GPT` spells it.

    Returns:
        Three findings: causality, matmul over the vocabulary, one training step.
    """
    numbers = torch.Generator().manual_seed(0)  # the global generators are left alone
    with torch.device("meta"):
        small, reference = (
            GPT(_VOCAB_SIZE, _N_POSITIONS, d_model, 1, n_heads, d_head, d_ff=d_model, attention=kind)
            for kind in (attention, "masked")
        )
    weights = {name: _draw(weight.shape, numbers) for name, weight in small.state_dict().items()}
    small.load_state_dict({name: weight.to(device, copy=True) for name, weight in weights.items()}, assign=True)
    reference.load_state_dict(weights, assign=True)
    ids_BT = torch.randint(_VOCAB_SIZE, (2, _N_POSITIONS + 1), generator=numbers)
    return [
        _causality(small, ids_BT[:, 1:].to(device), dtype),
        _matmul(vocab_size, d_model, device, dtype, numbers),
        _training_step(small, reference, ids_BT, device, dtype),
    ]


def _causality(gpt: GPT, ids_BT: Tensor, dtype: torch.dtype) -> Finding:
    """Later tokens are exchanged; no earlier hidden state may move by more than rounding."""
    kept = _N_POSITIONS // 2
    others_BT = ids_BT.clone()
    others_BT[:, kept:] = (ids_BT[:, kept:] + 1) % _VOCAB_SIZE
    moved = []
    for with_gradients in (False, True):  # other kernels
        with torch.set_grad_enabled(with_gradients), _autocast(ids_BT.device, dtype):
            before_BTD, after_BTD = gpt.hidden(ids_BT), gpt.hidden(others_BT)
        moved.append((after_BTD - before_BTD)[:, :kept].detach().abs().max().cpu())
    # Hidden states have variance 1. A right kernel moves them by 0; one leaked token by 0.04 to 1.
    return Finding("causality", float(torch.stack(moved).max()), 0.02)


def _matmul(
    vocab_size: int, d_model: int, device: torch.device, dtype: torch.dtype, numbers: torch.Generator
) -> Finding:
    """The head's product both ways, as in the loss, over the channels and over the vocabulary, against float64."""
    n_rows = 8
    head_VD, hidden_CD, d_logits_CV = (
        torch.randn(shape, generator=numbers).to(dtype)
        for shape in ((vocab_size, d_model), (n_rows, d_model), (n_rows, vocab_size))
    )
    errors = []
    for left, right in ((hidden_CD, head_VD.T), (d_logits_CV, head_VD)):
        got, right_result = left.to(device) @ right.to(device), _plain_product(left, right)
        errors.append((got.double().cpu() - right_result).abs().max() / right_result.std())
    # Measured: 0.018 in bf16, 2e-6 in float32; TF32 lies between. A wrong kernel's is about 1.
    return Finding(f"matmul over a vocabulary of {vocab_size}", float(torch.stack(errors).max()), 0.05)


def _training_step(gpt: GPT, reference: GPT, ids_BT: Tensor, device: torch.device, dtype: torch.dtype) -> Finding:
    """Loss and gradients of one step against float32 on the CPU with an explicit mask and a plain loss."""
    inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    expected = F.cross_entropy(reference(inputs_BT).flatten(0, 1), targets_BT.flatten())
    with _autocast(device, dtype):
        loss = mean_nats(gpt.hidden(inputs_BT.to(device)), gpt.head_VD, targets_BT.to(device))
    gradients = torch.autograd.grad(loss, list(gpt.parameters()))
    expected_gradients = torch.autograd.grad(expected, list(reference.parameters()))
    errors = [(loss.detach().cpu() - expected.detach()).abs() / expected.detach()]
    least = 0.01 * torch.stack([gradient.norm() for gradient in expected_gradients]).norm()  # below it, all is rounding
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        errors.append((ours.cpu() - theirs).norm() / theirs.norm().clamp(min=least))
    # Measured over widths of 8 to 1,024: 0.025 in bf16, 1e-6 in float32. A leak of one token makes it 0.3 and more.
    return Finding("training step", float(torch.stack(errors).max()), 0.1)


def _plain_product(left: Tensor, right: Tensor) -> Tensor:
    return left.double() @ right.double()


def _draw(shape: torch.Size, numbers: torch.Generator) -> Tensor:
    """Weights under which each part speaks about as loud as the rest, so that no error in one of them hides."""
    drawn = torch.randn(shape, generator=numbers)
    return drawn / shape[-1] ** 0.5 if len(shape) > 1 else 1 + 0.1 * drawn


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def devices(asked: DeviceKind) -> list[str]:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_there in there.items() if is_there]
    if asked == "auto":
        return found
    if asked not in found:
        raise BadValue(
            f"device {asked}: torch {torch.__version__} finds none here, only {', '.join(found)}. "
            "Say auto, or one of these (trainer.accelerator of a run, device of generate)."
        )
    return [asked]


def _precisions(kind: str) -> list[str]:
    return ["bf16-mixed", "32-true"] if multiplies_bf16(kind) else ["32-true"]


def multiplies_bf16(kind: str) -> bool:
    """Whether a device's hardware multiplies bf16 and training in it has proved sound.

    Args:
        kind: cuda, mps or cpu. Metal counts as no: its bf16 kernels have leaked later tokens.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        flags = torch.cpu.get_capabilities()
        return any(flags.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _reason(kind: str, asked_kind: str, precision: str, asked_precision: str) -> str:
    device = f"{kind} was asked for" if asked_kind != "auto" else f"{kind} is the best device here"
    if asked_precision != "auto":
        return f"{device}, and so was {precision}" if asked_kind != "auto" else f"{device}, {precision} was asked for"
    return f"{device}, and it multiplies bf16 in hardware" if precision == "bf16-mixed" else f"{device}, in float32"
