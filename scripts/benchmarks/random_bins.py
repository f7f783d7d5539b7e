"""Bins for measurements of training, where what the ids mean is nothing to the time: random ones."""

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from benchmarks.batches import declare_train_tokens

from scratchlm.data.preparation import Corpus
from scratchlm.text.tales import tales

_N_TALES = 1_000  # fills a window of validation at any context length in use


def random_bins(folder: Path, vocab_size: int, n_tokens: int | None) -> dict[str, Any]:
    """Makes bins, and gives the `data:` settings that they were made with.

    Args:
        folder: Where the bins go, in a subfolder, with the text and the tokenizer that they are said to be made of.
        vocab_size: Ids of the tokenizer, 300 or more.
        n_tokens: Ids to draw for train.bin, uniformly; None for real text, of which there is little. val.bin is real.
    """
    folder.mkdir()
    text, spelling = folder / "text.jsonl", folder / "tokenizer.json"
    with text.open("w", encoding="utf-8") as file:
        for _, (tale, _) in zip(range(_N_TALES), tales(), strict=False):
            file.write(json.dumps({"text": tale}) + "\n")
    _tokenizer(vocab_size).save(str(spelling))
    settings: dict[str, Any] = {"folder": str(folder / "bins"), "sources": {"text": str(text)}}
    settings |= {"tokenizer": str(spelling), "val_fraction": 0.1}
    with redirect_stderr(io.StringIO()):
        manifest = Corpus(**settings).prepare()
    assert manifest["vocab_size"] == vocab_size, manifest["vocab_size"]
    if n_tokens is None:
        return settings
    random = np.random.Generator(np.random.Philox(1))
    random.integers(0, vocab_size, n_tokens, np.uint16).tofile(folder / "bins" / "train.bin")
    declare_train_tokens(folder / "bins", n_tokens)
    return settings


def _tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE whose merges are pairs of bytes in order, to be of any size at once."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    specials = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(byte_level.alphabet())
    pairs = [(one, other) for one in alphabet for other in alphabet][: vocab_size - len(specials) - len(alphabet)]
    pieces = [*specials, *alphabet, *(one + other for one, other in pairs)]
    model = tokenizers.models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=pairs)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = byte_level(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(specials)
    return made
