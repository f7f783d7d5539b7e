"""Prompts continued as text, piece by piece, up to a stop string."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch

from scratchlm.errors import BadValue
from scratchlm.model import generate as decoding
from scratchlm.model.checkpoint import read
from scratchlm.model.gpt import GPT
from scratchlm.model.probe import DeviceKind, choose, devices
from scratchlm.text.tokenizer import Tokenizer, from_json


def complete(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 1,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continues a prompt until the network ends the text, a stop string comes, or the tokens run out.

    Args:
        gpt: The network.
        tokenizer: The one it was trained with.
        prompt: Text to go on from; an empty one begins a document.
        max_new_tokens: Tokens to draw at most.
        temperature: As in `model.generate`.
        top_k: As in `model.generate`.
        seed: As in `model.generate`.
        stop: Strings that end the text; none of them, nor what follows, appears in it.

    Returns:
        An iterator over pieces of the continuation, each at least one whole character; the prompt is not among them.

    Raises:
        BadValue: An argument cannot work, or the tokenizer cannot spell the prompt; raised by the call itself.
        BrokenState: The network has diverged (while iterating).
    """
    if "" in stop:
        raise BadValue("stop='': an empty string would end every text before it begins. Leave it out.")
    end_of_text = tokenizer.end_of_text_id
    ids = decoding.generate(
        gpt,
        tokenizer.encode(prompt) or [end_of_text],
        max_new_tokens,
        temperature,
        top_k,
        seed,
        stop_ids=[end_of_text],
        banned_ids=[special for special in tokenizer.special_ids if special != end_of_text],
    )
    return _up_to_stop(_pieces(tokenizer, ids), stop)


def generate(
    checkpoint: str,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 1,
    n_samples: int = 1,
    stop: list[str] | None = None,
    device: DeviceKind = "auto",
) -> None:
    """Continues a prompt with a trained network; the text goes to standard output as it comes.

    Args:
        checkpoint: File that `scratchlm fit` wrote; nothing else is needed.
        prompt: Text to go on from; an empty one begins a document.
        max_new_tokens: Tokens to draw at most.
        temperature: Divides the logits: below 1 is safer, above 1 is wilder, 0 always takes the likeliest token.
        top_k: Draw among this many likeliest tokens; null is all of them.
        seed: Of the draws; the same seed gives the same text.
        n_samples: Texts to write, each with its own draws.
        stop: Strings that end a text.
        device: cuda, mps or cpu; auto takes the first of these that is here and computes rightly.

    Raises:
        MissingFile: There is no such checkpoint.
        BadValue: An argument cannot work, or the file is none of ours.
        BrokenState: The file is damaged, or the network has diverged.
    """
    if n_samples < 1:
        raise BadValue(f"n_samples={n_samples}: give 1 or more.")
    gpt, tokenizer = load(checkpoint, device)
    for sample in range(n_samples):
        pieces = complete(gpt, tokenizer, prompt, max_new_tokens, temperature, top_k, seed + sample, stop or ())
        if sample:
            print()
        for piece in chain([prompt], pieces):
            print(piece, end="", flush=True)
        print()


def load(path: str, device: DeviceKind = "auto") -> tuple[GPT, Tokenizer]:
    """Builds network and tokenizer out of a checkpoint, and says on standard error where they run.

    Args:
        path: The checkpoint.
        device: As in `generate`.

    Raises:
        MissingFile: There is no such checkpoint.
        BadValue: The file is none of ours, or the device is not here.
        BrokenState: The file is damaged, or the device computes wrongly.
    """
    kinds = devices(device)
    found = read(path)
    settings = found.gpt_settings | {"attention": "auto"}  # where it was trained may not be where it speaks
    kind, reason = kinds[0], "the only device here" if device == "auto" else "as asked"
    if kinds != ["cpu"]:  # float32 on a CPU is what the others are measured against
        shape = {name: settings[name] for name in ("vocab_size", "d_model", "n_heads", "d_head", "attention")}
        choice = choose(device, "32-true", **shape)
        kind, reason, settings["attention"] = choice.device_type, choice.reason, choice.attention
    print(f"{path}: step {found.step:,}, on {kind} ({reason})", file=sys.stderr)
    found.gpt_settings = settings
    return found.build().to(torch.device(kind)), from_json(found.tokenizer_json)


def _pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    decoder = tokenizer.stream()
    for token in ids:
        if piece := decoder.add(token):
            yield piece
    if rest := decoder.end():
        yield rest


def _up_to_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text before the stop string that is complete first; what may yet become one is held back until decided."""
    held = ""
    for piece in pieces:
        held += piece
        ends_and_starts = [(at + len(string), at) for string in stop if (at := held.find(string)) >= 0]
        sure = min(ends_and_starts)[1] if ends_and_starts else len(held) - _n_undecided(held, stop)
        if sure:
            yield held[:sure]
        if ends_and_starts:
            return
        held = held[sure:]
    if held:
        yield held


def _n_undecided(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    longest = max(map(len, stop), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(string.startswith(text[-n:]) for string in stop)), 0)
