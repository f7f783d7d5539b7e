"""New ids out of a network: read the prompt once, then one token at a time through the cache."""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from scratchlm.errors import BadValue, BrokenState
from scratchlm.model.gpt import GPT, Cache

_HOTTEST = 1e30  # far beyond it float32 turns the division of a banned id's minus infinity into no number


def generate(
    gpt: GPT,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    banned_ids: Collection[int] = (),
) -> Iterator[int]:
    """Continues a prompt; the same arguments give the same ids.

    A prompt longer than the context is read from its end. Once the context is full, its last half is read anew and the
    text goes on from there, so that each token costs little on average.

    Args:
        gpt: The network; it computes in evaluation mode, and each time is left in the mode it was in.
        prompt_ids: At least one id; where there is no text, the end-of-text id, which is what a document follows.
        max_new_tokens: Ids to yield at most.
        temperature: Divides the logits: below 1 is safer, above 1 is wilder, 0 always takes the likeliest.
        top_k: Sample among the likeliest this many ids; None, or more than there are, is all.
        seed: Of the random draws; the global generators are left alone.
        stop_ids: Ids that end the text; they are not yielded.
        banned_ids: Ids that are never drawn.

    Returns:
        An iterator that computes each id when asked for it.

    Raises:
        BadValue: An argument cannot work; raised by the call itself, not by the first step of the iterator.
        BrokenState: Logits are not finite (while iterating): the network has diverged.
    """
    vocab_size = gpt.settings["vocab_size"]
    _check(vocab_size, prompt_ids, max_new_tokens, temperature, top_k, seed, banned_ids)
    generator = torch.Generator().manual_seed(seed)
    banned = sorted(set(banned_ids))

    def draw() -> Iterator[int]:
        ids, cache = list(prompt_ids[-gpt.context_length :]), Cache(gpt)
        unread = ids
        for _ in range(max_new_tokens):
            logits_V = _next_logits(gpt, unread, cache)
            logits_V[banned] = -math.inf
            drawn = sample(logits_V, temperature, top_k, generator)
            if drawn in stop_ids:
                return
            yield drawn
            ids, unread = [*ids, drawn][-gpt.context_length :], [drawn]
            if cache.length == gpt.context_length:
                cache, unread = Cache(gpt), ids[-max(1, gpt.context_length // 2) :]

    return draw()


def sample(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Draws one id.

    Args:
        logits_V: Float32, on the CPU.
        temperature: As in `generate`.
        top_k: As in `generate`.
        generator: A CPU generator, advanced by one draw unless the temperature is 0.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    scaled_V = (logits_V - logits_V.max()) / temperature  # at most 0, so that no temperature overflows
    if top_k is not None and top_k < len(scaled_V):
        likeliest, ids = scaled_V.topk(top_k)
        return int(ids[torch.multinomial(likeliest.softmax(0), 1, generator=generator)])
    return int(torch.multinomial(scaled_V.softmax(0), 1, generator=generator))


@torch.no_grad()
def _next_logits(gpt: GPT, unread: list[int], cache: Cache) -> Tensor:
    """Reads ids into the cache and gives the logits after the last of them, float32 on the CPU."""
    was_training = gpt.training
    gpt.eval()
    try:
        ids_BT = torch.tensor([unread], device=gpt.head_VD.device)
        last_D = gpt.hidden(ids_BT, cache)[0, -1]
        logits_V = (gpt.head_VD @ last_D.to(gpt.head_VD.dtype)).float().cpu()
    finally:
        gpt.train(was_training)
    if not logits_V.isfinite().all():
        raise BrokenState("the network's logits are not finite: it has diverged. Use an earlier checkpoint.")
    return logits_V


def _check(
    vocab_size: int,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    banned_ids: Collection[int],
) -> None:
    if len(prompt_ids) == 0:
        raise BadValue("prompt_ids=[]: a network continues something. Start from the end-of-text id.")
    for name, ids in (("prompt_ids", prompt_ids), ("banned_ids", banned_ids)):
        if outside := [token for token in ids if not 0 <= token < vocab_size]:
            raise BadValue(f"{name} holds {outside[0]}: the vocabulary has ids 0 to {vocab_size - 1}.")
    if max_new_tokens < 0:
        raise BadValue(f"max_new_tokens={max_new_tokens}: cannot be negative.")
    if not 0 <= temperature <= _HOTTEST:
        raise BadValue(
            f"temperature={temperature}: divides logits. Give a number from 0 (the likeliest) to {_HOTTEST:g}."
        )
    if top_k is not None and top_k < 1:
        raise BadValue(f"top_k={top_k}: at least one id must be left to draw. Give 1 or more, or null for all.")
    if not 0 <= seed < 2**63:
        raise BadValue(f"seed={seed}: give a whole number from 0 to 2**63 - 1.")
    if len(set(banned_ids)) == vocab_size:
        raise BadValue("banned_ids holds the whole vocabulary: no id is left to draw.")
