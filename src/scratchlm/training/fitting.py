"""The largest micro-batch that fits, tried in child processes: running out of memory ends an attempt, not the run.

An attempt is the worst that a step can come to: full context, every target scored, weights, gradients of an earlier
micro-batch and AdamW's moments all there. The first attempts give a line, bytes by sequences; the line names the next.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from scratchlm.errors import BadValue
from scratchlm.model.gpt import GPT
from scratchlm.model.loss import mean_nats
from scratchlm.process import keep_freed_memory
from scratchlm.training.free_memory import free_bytes, held_bytes, limit_growth, most_held_bytes
from scratchlm.training.optimizers import adamw

# Of the free memory: for what comes later and is not tried (validation, samples, writing a checkpoint, a heap or an
# allocator that fragments: after ten steps on a CPU 5% more was measured than after two). Chosen, not tuned.
MARGIN = 0.1

# How much more than its tensors a training takes, at most as far as measured: glibc's heap fragments.
_HEAP_FACTOR = {"cpu": 1.6}

# What torch, oneDNN and C++ say where memory runs out.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory", "bad_alloc", "create a primitive")


@dataclass(frozen=True)
class Attempt:
    """What an attempt is to train.

    Attributes:
        gpt: Arguments of `GPT`.
        device: As torch spells it, such as cuda:0.
        autocast: Whether matrices multiply in bf16.
        n_processes: Processes that train side by side.
        n_nodes: Machines they are on.
        micro_batch_size: Sequences at once.
    """

    gpt: dict[str, Any]
    device: str
    autocast: bool
    n_processes: int = 1
    n_nodes: int = 1
    micro_batch_size: int = 1

    def on_paper(self, **changed: Any) -> int:
        """Bytes that the tensors take, computed; `changed` are other arguments of `GPT`."""
        with torch.device("meta"):
            gpt = GPT(**(self.gpt | changed))
        return gpt.training_bytes(self.micro_batch_size, self.autocast, torch.device(self.device))


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Attributes:
        micro_batch_size: Sequences at once.
        free_bytes: Memory that training could have taken when the attempt began.
        peak_bytes: The most that it took; None where it ran out of memory.
        seconds: How long it took, from the start of its process to its end.
    """

    micro_batch_size: int
    free_bytes: int
    peak_bytes: int | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it went through, and left the margin free."""
        return self.peak_bytes is not None and self.peak_bytes <= self.free_bytes * (1 - MARGIN)

    def __str__(self) -> str:
        n, free = self.micro_batch_size, f"{self.free_bytes / 1e9:.2f} GB free"
        took = "ran out of memory," if self.peak_bytes is None else f"took {self.peak_bytes / 1e9:.2f} GB of"
        return f"{n} sequence{'s' if n > 1 else ''} at once {took} {free}"


def as_chosen(before: dict[str, Any] | None, wanted: Attempt, sizes: Sequence[int]) -> dict[str, Any]:
    """The choice of a run: what it chose when it began, where that still holds, else `largest`.

    Args:
        before: What this function gave when the run began; None for a new run.
        wanted: What is to be trained; its micro_batch_size does not count.
        sizes: Those to choose from, rising.

    Returns:
        Plain values: `sequences` (the micro-batch size), `peak_bytes` and `free_bytes` as measured, and `found_for`.

    Raises:
        BadValue: Not even the smallest fits.
        RuntimeError: An attempt failed for another reason than memory.
    """
    found_for = {**wanted.gpt, **vars(wanted)}
    del found_for["gpt"], found_for["micro_batch_size"]
    if before is not None:
        then = before["found_for"]
        changed = [
            f"{key} is now {found_for.get(key)}, was {then.get(key)}"
            for key in then | found_for
            if found_for.get(key) != then.get(key)
        ]
        if before["sequences"] not in sizes:
            changed.append(f"the batch no longer divides by {before['sequences']}")
        if not changed:
            _say(f"{before['sequences']}, as when the run began")
            return before
        _say(f"found anew: {'; '.join(changed)}")
    found = largest(wanted, sizes)
    measured = {"peak_bytes": found.peak_bytes, "free_bytes": found.free_bytes}
    return {"sequences": found.micro_batch_size, **measured, "found_for": found_for}


def largest(wanted: Attempt, sizes: Sequence[int]) -> Outcome:
    """Finds the largest micro-batch that fits, and says on stderr what it tries: it takes seconds.

    Args:
        wanted: What is to be trained; its micro_batch_size does not count.
        sizes: Those to choose from, rising.

    Returns:
        The attempt that went through with it.

    Raises:
        BadValue: Not even the smallest fits.
        RuntimeError: An attempt failed for another reason than memory.
    """

    def attempt(size: int) -> Outcome:
        outcome = measure(replace(wanted, micro_batch_size=size))
        _say(f"{outcome} ({outcome.seconds:.1f} s)")
        return outcome

    two, one = (replace(wanted, micro_batch_size=size).on_paper() for size in (2, 1))
    slope = (two - one) * _HEAP_FACTOR.get(torch.device(wanted.device).type, 1.0)
    _say(f"trying, with {MARGIN:.0%} of the free memory kept back ...")
    outcome = search(sizes, attempt, slope)
    if not outcome.fits:
        raise BadValue(_refusal(replace(wanted, micro_batch_size=outcome.micro_batch_size), outcome))
    _say(f"{outcome.micro_batch_size} is the largest of {', '.join(map(str, sizes))} that fits")
    return outcome


def search(sizes: Sequence[int], attempt: Callable[[int], Outcome], bytes_per_sequence: float) -> Outcome:
    """The outcome of the largest size that fits, in few attempts; of the smallest where none does.

    Args:
        sizes: Those to choose from, rising.
        attempt: Tries one.
        bytes_per_sequence: A guess at what one more sequence takes, until two sizes have been measured.
    """
    best = last = attempt(sizes[0])
    if not best.fits:
        return best
    measured = [best]
    too_large = sizes[-1] + 1
    while between := [size for size in sizes if best.micro_batch_size < size < too_large]:
        slope = _slope(measured) if len(measured) > 1 else bytes_per_sequence
        room = best.free_bytes * (1 - MARGIN) - (best.peak_bytes or 0)
        promising = [size for size in between if (size - best.micro_batch_size) * slope <= room] or between[:1]
        # Who ran out of memory gave no number to mend the line with: half-way, or each size in turn would run out.
        last = attempt(promising[-1] if last.peak_bytes is not None else promising[len(promising) // 2])
        if last.peak_bytes is not None:
            measured.append(last)
        if last.fits:
            best = last
        else:
            too_large = last.micro_batch_size
    return best


def measure(wanted: Attempt) -> Outcome:
    """Makes one attempt in a process of its own.

    Args:
        wanted: What to train.

    Raises:
        RuntimeError: It failed for another reason than memory.
    """
    began = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(vars(wanted)), capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    said: dict[str, int] = {key: value for line in lines for key, value in line.items()}
    # The kernel kills by SIGKILL; C++ that has no memory left to say so aborts.
    was_killed = "free" in said and child.returncode in (-signal.SIGKILL, -signal.SIGABRT)
    if "peak" not in said and not was_killed and "out_of_memory" not in said:
        raise RuntimeError(f"the attempt ended with status {child.returncode}:\n{child.stderr}")
    return Outcome(wanted.micro_batch_size, said.get("free", 0), said.get("peak"), time.monotonic() - began)


def _slope(measured: Sequence[Outcome]) -> float:
    """Bytes that one more sequence takes, by the two largest sizes measured."""
    low, high = sorted(measured, key=lambda outcome: outcome.micro_batch_size)[-2:]
    assert low.peak_bytes is not None
    assert high.peak_bytes is not None
    return max(0.0, (high.peak_bytes - low.peak_bytes) / (high.micro_batch_size - low.micro_batch_size))


def _refusal(wanted: Attempt, outcome: Outcome) -> str:
    computed = f"{wanted.on_paper() / 1e9:.2f} GB computed"
    took = "it ran out" if outcome.peak_bytes is None else f"{outcome.peak_bytes / 1e9:.2f} GB measured"
    cures = [f"lower data.context_length={wanted.gpt['context_length']}"]
    cures += [f"model.gpt.{name}={wanted.gpt[name]}" for name in ("d_model", "n_layers")]
    if not wanted.gpt["activation_checkpointing"]:
        less = wanted.on_paper(activation_checkpointing=True) / 1e9
        cures.insert(0, f"set model.gpt.activation_checkpointing=true ({less:.2f} GB computed)")
    sequences = "one sequence" if outcome.micro_batch_size == 1 else f"{outcome.micro_batch_size} sequences"
    return (
        f"data.micro_batch_size=auto: not even {sequences} at once can be trained: {computed}, {took}, and "
        f"{wanted.device} has {outcome.free_bytes / 1e9:.2f} GB free, of which {MARGIN:.0%} is kept back. "
        f"In this order: {', '.join(cures[:-1])} or {cures[-1]}."
    )


def _try(wanted: Attempt) -> dict[str, int]:
    """The most memory that training takes, beyond what a process holds before it trains."""
    device = torch.device(wanted.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the run will
    _train(GPT(8, 8, d_model=8, n_layers=1, n_heads=1, d_ff=8), device, wanted.autocast, 1)  # loads what is loaded once
    free = free_bytes(device, max(1, wanted.n_processes // wanted.n_nodes))
    print(json.dumps({"free": free}), flush=True)
    held = held_bytes()
    if device.type == "cpu":
        limit_growth(free)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.device("meta"):
        gpt = GPT(**wanted.gpt)
    _train(gpt.to_empty(device=device), device, wanted.autocast, wanted.micro_batch_size)
    peak = most_held_bytes() - held
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        peak = int(torch.mps.driver_allocated_memory())
    if wanted.n_processes > 1:
        # DistributedDataParallel makes its buckets of gradients anew after the first step, before it drops the old.
        peak += 4 * gpt.n_parameters
    return {"peak": peak}


def _train(gpt: GPT, device: torch.device, autocast: bool, micro_batch_size: int) -> None:
    """Two micro-batches of a step after the first: the second finds a heap that the first has left in pieces."""
    gpt.to(device).train()
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = adamw(gpt, 0.0, 0.0, (0.9, 0.95))
    optimizer.step()
    ids_BT = torch.randint(gpt.settings["vocab_size"], (micro_batch_size, gpt.context_length), device=device)
    for _ in range(2):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast, cache_enabled=False):
            loss = mean_nats(gpt.hidden(ids_BT), gpt.head_VD, ids_BT)
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _say(text: str) -> None:
    print(f"scratchlm: data.micro_batch_size=auto: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Makes the attempt that stdin describes, and says on stdout what came of it."""
    try:
        print(json.dumps(_try(Attempt(**json.load(sys.stdin)))), flush=True)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        print(json.dumps({"out_of_memory": 1}), flush=True)


if __name__ == "__main__":
    main()
