"""What `bench.py` measures scratchlm against, each after the way of what it is named after.

A contestant runs in a process of its own: python peers.py NAME TEXT.jsonl COLUMN TOKENIZER.json OUT.bin PROCESSES. It
writes the ids of every document in the order of the file, each document followed by the end of text, as uint16.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tiktoken
    import torch

END_OF_TEXT = "<|endoftext|>"
NEEDS = {
    "nanogpt": ("datasets", "tiktoken"),
    "plain": ("fastokens", "orjson"),
    "tokenizers": ("tokenizers",),
}
_BATCH_DOCUMENTS = 500  # handed to an encoder at once (chosen, not tuned)
_SHARD_DOCUMENTS = 8_000  # nanoGPT writes 8 million documents in 1,024 shards


def nanogpt(text: str, column: str, tokenizer: str, out: str, n_processes: int) -> None:
    """`datasets` maps tiktoken over the documents, then the ids are gathered into a memory map.

    It makes no validation split: that favours it, and keeps its ids in the order of the file.

    Source:
        nanoGPT, data/openwebtext/prepare.py, https://github.com/karpathy/nanoGPT/blob/master/data/openwebtext/prepare.py
    """
    import datasets

    encoding = tiktoken_encoding(Path(tokenizer).read_text(encoding="utf-8"))
    rows = datasets.load_dataset("json", data_files=text, split="train")

    def process(row: dict[str, Any]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(row[column])
        ids.append(encoding.eot_token)
        return {"ids": ids, "len": len(ids)}

    encoded = rows.map(process, remove_columns=rows.column_names, num_proc=n_processes)
    n_tokens = np.sum(encoded["len"][:], dtype=np.uint64)
    found = np.memmap(out, np.uint16, mode="w+", shape=(int(n_tokens),))
    n_shards = max(1, len(encoded) // _SHARD_DOCUMENTS)
    at = 0
    for index in range(n_shards):
        shard = encoded.shard(num_shards=n_shards, index=index, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard[:]["ids"])
        found[at : at + len(ids)] = ids
        at += len(ids)
    found.flush()


def plain(text: str, column: str, tokenizer: str, out: str, n_processes: int) -> None:
    """A loop over the encoder that scratchlm uses, in one process; nothing is cleaned, compared or indexed."""
    import fastokens
    import orjson

    encoder = fastokens.Tokenizer.from_json_str(Path(tokenizer).read_text(encoding="utf-8"))
    end_of_text = encoder.token_to_id(END_OF_TEXT)
    with open(text, "rb") as lines, open(out, "wb") as found:
        while texts := [orjson.loads(line)[column] for line in islice(lines, _BATCH_DOCUMENTS)]:
            ids, offsets = encoder.encode_batch_flat(texts, split_special_tokens=True)
            ends = np.frombuffer(offsets, np.uint64)[1:].astype(np.int64)
            np.insert(np.frombuffer(ids, np.uint32).astype(np.uint16), ends, end_of_text).tofile(found)


def tokenizers(text: str, column: str, tokenizer: str, out: str, n_processes: int) -> None:
    """A loop over Hugging Face's encoder, which works on all cores."""
    import tokenizers

    encoder = tokenizers.Tokenizer.from_file(tokenizer)
    encoder.encode_special_tokens = True
    end_of_text = encoder.token_to_id(END_OF_TEXT)
    with open(text, "rb") as lines, open(out, "wb") as found:
        while texts := [json.loads(line)[column] for line in islice(lines, _BATCH_DOCUMENTS)]:
            for encoded in encoder.encode_batch_fast(texts, add_special_tokens=False):
                found.write(np.array([*encoded.ids, end_of_text], np.uint16).tobytes())


def tiktoken_encoding(tokenizer_json: str) -> "tiktoken.Encoding":
    """A tiktoken encoding that gives the same ids as a byte-level BPE of Hugging Face's.

    tiktoken merges whichever pair makes the token of the lowest id, so the ids must be in the order of the merges.

    Args:
        tokenizer_json: The content of a tokenizer.json.

    Raises:
        SystemExit: The tokenizer is of another kind.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    settings = json.loads(tokenizer_json)
    model, splitting = settings["model"], settings["pre_tokenizer"] or {}
    made = [model["vocab"][left + right] for left, right in model.get("merges", [])]
    if model["type"] != "BPE" or splitting.get("type") != "ByteLevel" or not splitting["use_regex"]:
        sys.exit("nanogpt: tiktoken takes a byte-level BPE with GPT-2's pattern. Give such a --tokenizer, or none.")
    if made != sorted(made):
        sys.exit("nanogpt: tiktoken takes ids in the order of the merges. Give such a --tokenizer, or none.")
    special = {token["content"]: token["id"] for token in settings["added_tokens"]}
    byte = _byte_of_character()
    ranks = {
        bytes(byte[character] for character in piece): id
        for piece, id in model["vocab"].items()
        if piece not in special
    }
    return tiktoken.Encoding("bench", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: those that print stand for themselves, the others are numbered from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def nanogpt_batches(
    path: Path, context_length: int, micro_batch_size: int
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Batches as nanoGPT's `get_batch` makes them for a CPU: inputs and targets, int64.

    Source:
        nanoGPT, train.py, https://github.com/karpathy/nanoGPT/blob/master/train.py: the map is opened anew each time,
        against a leak of memory.
    """
    import torch

    while True:
        data = np.memmap(path, np.uint16, mode="r")
        starts = torch.randint(len(data) - context_length, (micro_batch_size,))
        inputs = torch.stack([torch.from_numpy(data[i : i + context_length].astype(np.int64)) for i in starts])
        targets = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + context_length].astype(np.int64)) for i in starts])
        yield inputs, targets


if __name__ == "__main__":
    name, text, column, tokenizer, out, n_processes = sys.argv[1:]
    {"nanogpt": nanogpt, "plain": plain, "tokenizers": tokenizers}[name](text, column, tokenizer, out, int(n_processes))
