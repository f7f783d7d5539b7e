"""The metric that counts nats, tokens and bytes, over all and for each source."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from scratchlm.model.loss import IGNORED


class Nats(Metric):
    """Cross-entropy of a split, summed exactly enough that its order, batches and ranks do not show.

    Float64 sums and int64 counts, one of each for a source: one all-reduce for them all. Keep it on the CPU where the
    device has no float64 (Metal); `update` takes tensors from anywhere.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    bytes_of_ids_V: Tensor

    def __init__(self, sources: Sequence[str], bytes_of_ids: Sequence[int]) -> None:
        """Starts at zero.

        Args:
            sources: Names of the sources; a source's id is its index.
            bytes_of_ids: UTF-8 bytes that each token id stands for.
        """
        super().__init__()
        self.sources = list(sources)
        self.register_buffer("bytes_of_ids_V", torch.tensor(bytes_of_ids, dtype=torch.int64), persistent=False)
        self.add_state("nats", torch.zeros(len(sources), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(len(sources), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros(len(sources), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats_BT: Tensor, targets_BT: Tensor, source_BT: Tensor) -> None:
        """Adds one batch.

        Args:
            nats_BT: Nats of each target.
            targets_BT: Token ids; -100 is not scored.
            source_BT: Index of each target's source.
        """
        device = self.nats.device
        nats = nats_BT.flatten().to(device).double()
        targets = targets_BT.flatten().to(device)
        source = source_BT.flatten().to(device).long()
        scored = targets != IGNORED
        self.nats.index_add_(0, source, nats * scored)
        self.tokens.index_add_(0, source, scored.long())
        self.bytes.index_add_(0, source, self.bytes_of_ids_V[targets.clamp_min(0)] * scored)

    def compute(self) -> dict[str, float]:
        """Loss in nats a token, perplexity, and bits a byte: over all, and under `<source>/` for each source scored.

        Bits a byte can be compared between tokenizers, perplexities cannot.
        """
        nats, tokens, n_bytes = self.nats.tolist(), self.tokens.tolist(), self.bytes.tolist()
        results = _scores("", sum(nats), sum(tokens), sum(n_bytes))
        for i, name in enumerate(self.sources):
            results |= _scores(f"{name}/", nats[i], tokens[i], n_bytes[i])
        return results


def _scores(prefix: str, nats: float, tokens: int, n_bytes: int) -> dict[str, float]:
    if not tokens:
        return {}
    loss = nats / tokens
    scores = {f"{prefix}loss": loss, f"{prefix}perplexity": math.exp(min(loss, 700.0))}  # exp(710) overflows a float
    if n_bytes:
        scores[f"{prefix}bits_per_byte"] = nats / math.log(2) / n_bytes
    return scores
